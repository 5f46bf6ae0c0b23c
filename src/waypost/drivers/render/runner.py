"""The template runner: watches what templates need, renders them when it changes, runs their commands.

Source: consul-template's runner. Beyond it, nothing that goes wrong with one template, file or command ends the
runner or touches the other templates: it is logged and tried again with growing pauses. Only `once` gives up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Rejected, WaypostError
from waypost.drivers.render import commands, files
from waypost.drivers.render.dependency import Dependency
from waypost.drivers.render.evaluate import Evaluation, Renderer
from waypost.drivers.render.quiescence import Quiescence
from waypost.drivers.render.settings import RunnerSettings, TemplateSpec
from waypost.drivers.render.source import Source
from waypost.drivers.render.watching import Watcher

log = logging.getLogger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 14
_CHECK_TIMEOUT_S: Final = 30.0


class Outcome(msgspec.Struct, frozen=True):
    """How a run ended: the exit status of the program and what went wrong."""

    status: int
    errors: tuple[str, ...] = ()


class _Job:
    """One template on its way to its file."""

    def __init__(self, spec: TemplateSpec, *, quiescence: Quiescence | None) -> None:
        self.spec = spec
        self.quiescence = quiescence
        self.renderer: Renderer | None = None
        self.used: frozenset[Dependency] = frozenset()
        self.pending: Evaluation | None = None
        """Complete, but not written yet."""
        self.stale = True
        """To be evaluated."""
        self.rendered = False
        self.failed = ""
        self.attempt = 0
        self.retry_at: float | None = None
        self.evaluated_before = False

    def __str__(self) -> str:
        return f'"{self.spec.shown_source}" => "{self.spec.destination}"'


class _Written(msgspec.Struct, frozen=True):
    """A file that was replaced in this run, and what it was before."""

    job: _Job
    previous: files.Previous


class Runner:
    """One set of templates over one source.

    `run` ends by cancellation; with `once` when all is rendered, with an exec child when the child ends. `env` is
    what commands and the function `env` see; `show` gets the output of `dry`.
    """

    def __init__(
        self,
        settings: RunnerSettings,
        *,
        source: Source,
        clock: Clock,
        env: Mapping[str, str],
        rng: random.Random,
        show: Callable[[bytes], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._env = dict(env)
        self._show = show
        self._jobs = [
            _Job(
                spec, quiescence=Quiescence(wait) if (wait := spec.wait or settings.wait) else None
            )
            for spec in settings.templates
        ]
        self._wake = asyncio.Event()
        self._fatal: list[str] = []
        self._errors: list[str] = []
        self._watcher = Watcher(
            source,
            clock=clock,
            retry=settings.retry,
            wait_s=settings.query_wait_s,
            changed=self._data_changed,
            failed=self._data_failed,
        )
        self._child = (
            commands.Child(settings.exec, env=self._env, rng=rng) if settings.exec else None
        )
        self._child_status: int | None = None
        self._command_retries: dict[str, _CommandRetry] = {}
        self._reapers: list[asyncio.Task[None]] = []

    @property
    def child(self) -> commands.Child | None:
        """Return the process of exec mode, if there is one."""
        return self._child

    def failures(self) -> tuple[str, ...]:
        """Return what is wrong now, one text a template or command: for health and the UI."""
        broken = [job.failed for job in self._jobs if job.failed]
        return (*broken, *(retry.error for retry in self._command_retries.values()))

    async def run(self) -> Outcome:
        """Render until cancelled, or as `once` and exec mode say. Never raises for a template's sake."""
        log.info("(runner) starting")
        async with asyncio.TaskGroup() as tasks:
            try:
                return await self._loop(tasks)
            finally:
                self._watcher.stop()
                for reaper in self._reapers:
                    reaper.cancel()
                if self._child is not None:
                    await self._child.stop()
                log.info("(runner) stopping")

    async def _loop(self, tasks: asyncio.TaskGroup) -> Outcome:
        child_watch: asyncio.Task[None] | None = None
        try:
            while True:
                self._wake.clear()
                changed = await self._turn(tasks)
                if self._settings.once and self._fatal:
                    return Outcome(EXIT_FAILED, tuple(self._fatal))
                if self._settings.once and all(job.rendered or job.failed for job in self._jobs):
                    log.info("(runner) once mode and all templates rendered")
                    if self._errors:
                        return Outcome(EXIT_FAILED, tuple(self._errors))
                    return await self._child_to_the_end()
                if self._child is not None and not self._settings.dry:
                    child_watch = await self._drive_child(tasks, child_watch, changed=changed)
                await self._sleep()
                if self._child_status is not None:
                    log.error("(runner) child process died with exit code %d", self._child_status)
                    return Outcome(
                        self._child_status,
                        (f"child process died with exit code {self._child_status}",),
                    )
        finally:
            if child_watch is not None:
                child_watch.cancel()

    async def _sleep(self) -> None:
        """Wait for new data, or for the time at which something is due."""
        due = [job.quiescence.due for job in self._jobs if job.quiescence and job.pending]
        due += [job.retry_at for job in self._jobs]
        due += [retry.at for retry in self._command_retries.values()]
        times = [moment for moment in due if moment is not None]
        if not times:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(max(0.0, min(times) - self._clock.now())):
                await self._wake.wait()
        except TimeoutError:
            return

    # Data

    def _data_changed(self, dependency: Dependency) -> None:
        for job in self._jobs:
            if dependency in job.used:
                job.stale = True
        self._wake.set()

    def _data_failed(self, dependency: Dependency, text: str) -> None:
        if self._settings.once:
            log.error("(runner) watcher reported error: %s", text)
            self._fatal.append(text)
            self._wake.set()

    # One turn: evaluate, render, command

    async def _turn(self, tasks: asyncio.TaskGroup) -> bool:
        """Do all that can be done now; return whether any file was replaced."""
        for job in self._jobs:
            if job.retry_at is not None and self._clock.now() >= job.retry_at:
                job.retry_at = None
                job.stale = True
            if job.stale:
                job.stale = False
                await self._evaluate(job)
        wanted = {dependency for job in self._jobs for dependency in job.used}
        self._watcher.want(wanted, tasks)
        written = []
        for job in self._jobs:
            if self._is_due(job):
                replaced = await self._render(job)
                if replaced is not None:
                    written.append(replaced)
        await self._run_commands(written, tasks)
        return bool(written)

    async def _evaluate(self, job: _Job) -> None:
        try:
            if job.renderer is None:
                job.renderer = await asyncio.to_thread(_load, job.spec)
            known = self._watcher.snapshot()
            # In a thread: a template may take long, and plugins wait for their programs.
            evaluation = await asyncio.to_thread(
                job.renderer.evaluate, known, clock=self._clock, env=self._env
            )
        except WaypostError as exc:
            self._evaluation_failed(job, exc)
            return
        job.used = frozenset((*evaluation.used, *evaluation.missing))
        if evaluation.missing:
            job.pending = None
            return
        job.pending = evaluation
        if job.quiescence is not None and (job.used or job.evaluated_before):
            job.quiescence.change(self._clock.now())
        job.evaluated_before = True

    def _evaluation_failed(self, job: _Job, exc: WaypostError) -> None:
        text = str(exc)
        job.pending = None
        # What the template used last is still watched: the next change may cure it. A text that cannot be read or
        # parsed is read again.
        if job.renderer is None or not job.used:
            self._fail_later(job, text)
            job.renderer = None
        else:
            self._fail(job, text)

    def _fail(self, job: _Job, text: str) -> None:
        if self._settings.once:
            self._errors.append(text)
        elif job.failed != text:
            log.error("(runner) %s", text)
        job.failed = text

    def _fail_later(self, job: _Job, text: str) -> None:
        """Note a failure that may go away without new data, and try again after a pause."""
        self._fail(job, text)
        job.attempt += 1
        job.retry_at = self._clock.now() + self._settings.command_retry.pause_s(job.attempt)

    def _is_due(self, job: _Job) -> bool:
        if job.pending is None:
            return False
        if job.quiescence is None or job.quiescence.due is None:
            return True
        return self._clock.now() >= job.quiescence.due

    async def _render(self, job: _Job) -> _Written | None:
        evaluation, job.pending = job.pending, None
        assert evaluation is not None
        if job.quiescence is not None:
            job.quiescence.clear()
        content = evaluation.text.encode("utf-8", "surrogateescape")
        try:
            written = await self._put(job, content)
        except WaypostError as exc:
            self._fail_later(job, f"error rendering {job}: {exc}")
            return None
        if job.failed:
            log.info("(runner) template %s is good again", job)
        job.rendered = True
        job.failed = ""
        job.attempt = 0
        return written

    async def _put(self, job: _Job, content: bytes) -> _Written | None:
        spec = job.spec
        previous = files.Previous(None, 0)
        if spec.destination:
            previous = await asyncio.to_thread(files.read_previous, Path(spec.destination))
        if not files.differs(previous, content):
            return None
        if self._settings.dry:
            self._show(f"> {spec.destination}\n".encode() + content)
            return None
        if not spec.destination:
            raise Rejected("missing destination")
        check = self._checker(spec) if spec.check_command else None
        await asyncio.to_thread(files.replace, spec, content, previous, check=check)
        log.info("(runner) rendered %s", job)
        return _Written(job, previous)

    def _checker(self, spec: TemplateSpec) -> Callable[[Path], None]:
        loop = asyncio.get_running_loop()

        def check(path: Path) -> None:
            command = check_command(spec.check_command, path)
            env = {**self._env, "WAYPOST_NEW_FILE": str(path)}
            job = commands.run(command, timeout_s=_CHECK_TIMEOUT_S, env=env)
            # The file is written in a thread; processes belong to the loop.
            asyncio.run_coroutine_threadsafe(job, loop).result()

        return check

    # Commands

    async def _run_commands(self, written: list[_Written], tasks: asyncio.TaskGroup) -> None:
        """Run the commands of this turn, each once, in configuration order, and those whose retry is due."""
        due: dict[str, list[_Written]] = {}
        for each in written:
            if each.job.spec.command:
                due.setdefault(each.job.spec.command, []).append(each)
        now = self._clock.now()
        for command, retry in self._command_retries.items():
            if now >= retry.at:
                due.setdefault(command, [])
        for command, changes in due.items():
            spec = changes[0].job.spec if changes else self._command_retries[command].spec
            await self._run_command(command, spec, changes, tasks)

    async def _run_command(
        self, command: str, spec: TemplateSpec, changes: list[_Written], tasks: asyncio.TaskGroup
    ) -> None:
        place = f'"{spec.shown_source}" => "{spec.destination}"'
        log.info('(runner) executing command "%s" from %s', command, place)
        try:
            if spec.command_timeout_s == 0:
                process = await commands.start(command, env=self._env)
                self._reapers = [task for task in self._reapers if not task.done()]
                self._reapers.append(
                    tasks.create_task(_reap(process, command), name="render.command")
                )
            else:
                await commands.run(command, timeout_s=spec.command_timeout_s, env=self._env)
        except WaypostError as exc:
            await self._command_failed(command, spec, changes, f"{exc} (from {place})")
            return
        if self._command_retries.pop(command, None) is not None:
            log.info('(runner) command "%s" succeeded again', command)

    async def _command_failed(
        self, command: str, spec: TemplateSpec, changes: list[_Written], text: str
    ) -> None:
        for change in changes:
            if change.job.spec.rollback:
                text += await self._roll_back(change)
        if self._settings.once:
            self._errors.append(text)
            return
        log.error("(runner) %s", text)
        known = self._command_retries.get(command)
        if changes and all(change.job.spec.rollback for change in changes):
            # The files are rolled back, and are tried again as a whole.
            self._command_retries.pop(command, None)
            return
        attempt = known.attempt + 1 if known else 1
        pause = self._settings.command_retry.pause_s(attempt)
        self._command_retries[command] = _CommandRetry(
            spec, attempt, self._clock.now() + pause, text
        )

    async def _roll_back(self, change: _Written) -> str:
        job = change.job
        try:
            await asyncio.to_thread(files.restore, job.spec, change.previous)
        except WaypostError as exc:
            return f"; {job.spec.destination} could not be rolled back: {exc}"
        job.rendered = False
        if not self._settings.once:
            self._fail_later(job, f"{job}: rolled back, its command failed")
        else:
            job.failed = "rolled back"
        return f"; {job.spec.destination} was rolled back"

    # Exec mode

    async def _drive_child(
        self, tasks: asyncio.TaskGroup, watch: asyncio.Task[None] | None, *, changed: bool
    ) -> asyncio.Task[None] | None:
        child = self._child
        assert child is not None
        if not child.started:
            if not all(job.rendered for job in self._jobs):
                return watch
            await child.start()
            return tasks.create_task(self._watch_child(), name="render.child")
        if changed:
            await child.reload()
        return watch

    async def _watch_child(self) -> None:
        assert self._child is not None
        self._child_status = await self._child.wait()
        self._wake.set()

    async def _child_to_the_end(self) -> Outcome:
        if self._child is None or self._settings.dry:
            return Outcome(EXIT_OK)
        try:
            await self._child.start()
            return Outcome(await self._child.wait())
        except WaypostError as exc:
            return Outcome(EXIT_FAILED, (str(exc),))


class _CommandRetry(msgspec.Struct, frozen=True):
    """A command that failed and when it is tried again."""

    spec: TemplateSpec
    attempt: int
    at: float
    error: str


def check_command(command: str, path: Path) -> str:
    """Return the check command for one file: `%s` stands for its quoted path, `%%` for a percent sign."""
    return re.sub(
        "%[s%]", lambda match: shlex.quote(str(path)) if match.group() == "%s" else "%", command
    )


async def _reap(process: asyncio.subprocess.Process, command: str) -> None:
    status = await process.wait()
    if status:
        log.error('(runner) command "%s" ended with status %d', command, status)


def _load(spec: TemplateSpec) -> Renderer:
    """Read and parse a template. Raises Rejected, Malformed."""
    name = spec.shown_source
    if bool(spec.source) == bool(spec.contents):
        raise Rejected("template: exactly one of source and contents must be given")
    text = spec.contents
    if spec.source:
        try:
            text = Path(spec.source).read_bytes().decode("utf-8", "surrogateescape")
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            raise Rejected(f"failed to read template: open {name}: {reason}") from exc
    return Renderer.parse(
        text,
        name=name,
        delimiters=(spec.left_delimiter, spec.right_delimiter),
        error_on_missing_key=spec.error_on_missing_key,
    )
