"""nginx as a process: tested, started, reloaded, found again, stopped.

nginx runs as a daemon in a session of its own, so the end of the agent, however sudden, does not touch it; the next
agent finds it by its pid file and adopts it. Whether it is alive is known from a pidfd, child of ours or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Malformed, Unavailable
from waypost.drivers.nginx.config import Rendered
from waypost.drivers.nginx.control import Control
from waypost.drivers.nginx.settings import Listen

log = logging.getLogger(__name__)

_SHUTTING_DOWN: Final = b"is shutting down"
_OLD_GENERATIONS: Final = 3
"""Generations of old workers that may finish their streams; each costs 4 to 40 MB."""
_LOG_MAX_BYTES: Final = 16 << 20
_ERROR_AT = re.compile(r"\[emerg\] (?:\d+#\d+: )?(.*?)(?: in (\S+):(\d+))?\s*$", re.MULTILINE)
_FATAL_LOG = re.compile(r"\[emerg\].*|\[alert\].*cannot be respawned.*")


class Refusal(msgspec.Struct, frozen=True):
    """Why `nginx -t` refused a configuration."""

    text: str
    line: int = 0


class Process(msgspec.Struct, frozen=True):
    """One process; the start time tells it from a later one of the same pid."""

    pid: int
    start: int


class Master(msgspec.Struct, frozen=True):
    """A running master process."""

    process: Process
    binary: str

    @property
    def pid(self) -> int:
        """Return its pid."""
        return self.process.pid


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """That a configuration is in force."""

    live_s: float
    """Until the first answer of the new generation."""
    total_s: float
    """Until no old worker took new connections any more."""


class Nginx:
    """One nginx in its own directory `prefix`. Not for concurrent use; one task drives it."""

    def __init__(self, *, binary: Path, prefix: Path, clock: Clock) -> None:
        self._binary = binary
        self._prefix = prefix
        self._clock = clock
        self._socket = prefix / "run" / "ctl.sock"
        if len(os.fsencode(self._socket)) > 107:  # sun_path of Linux
            raise Malformed(f"nginx's directory {prefix} has too long a name for a socket in it")
        self.control = Control(self._socket)

    def prepare(self) -> None:
        """Make the directories; raises Unavailable. The control socket is created 0666 by nginx, so its directory is 0700."""
        for name, mode in (("", 0o711), ("run", 0o700), ("logs", 0o700), ("js", 0o700)):
            path = self._prefix / name
            try:
                path.mkdir(mode=mode, parents=True, exist_ok=True)
                path.chmod(mode)
            except OSError as exc:
                raise Unavailable(f"nginx's directory {path} cannot be used: {exc}") from exc

    # configuration

    async def test(self, rendered: Rendered) -> Refusal | None:
        """Return why nginx refuses `rendered`, None when it takes it. Raises Unavailable if it cannot be asked."""
        self._write("js/wp.js", rendered.script)
        self._write("candidate.conf", rendered.text)
        code, output = await self._call("-t", "-c", "candidate.conf", "-e", "stderr")
        if code == 0:
            if "[warn]" in output:
                log.warning("nginx warns about its configuration: %s", output.strip())
            return None
        match = _ERROR_AT.search(output)
        if match is None:
            return Refusal(output.strip() or f"nginx -t ended with {code}")
        return Refusal(match[1], int(match[3] or 0))

    def install(self, rendered: Rendered) -> None:
        """Make `rendered` the configuration of the next start or reload, all of it or nothing."""
        self._write("js/wp.js", rendered.script)
        self._write("nginx.conf", rendered.text)

    def installed(self) -> str:
        """Return the text of the installed configuration, empty when there is none."""
        try:
            return (self._prefix / "nginx.conf").read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return ""

    def restore(self, text: str) -> None:
        """Put an earlier configuration back."""
        self._write("nginx.conf", text)

    def _write(self, name: str, text: str) -> None:
        path = self._prefix / name
        aside = path.with_name(path.name + ".new")
        try:
            aside.unlink(missing_ok=True)
            with open(aside, "x", encoding="ascii", opener=_private) as file:
                file.write(text)
            aside.replace(path)
        except OSError as exc:
            raise Unavailable(f"cannot write {path}: {exc}") from exc

    # life

    async def start(self, *, generation: int, workers: int, within_s: float) -> Master:
        """Start nginx on the installed configuration and return when it answers with `generation`.

        Workers that a killed master left behind are asked to finish first: they hold the ports.
        Raises Unavailable with nginx's own words.
        """
        await self.retire_orphans(within_s=within_s)
        self._socket.unlink(missing_ok=True)
        (self._prefix / "run" / "nginx.pid").unlink(missing_ok=True)
        self.rotate_log(None)
        offset = self._log_size()
        code, output = await self._call("-c", "nginx.conf", "-e", "logs/error.log")
        if code != 0:
            raise Unavailable(f"nginx does not start: {output.strip() or f'exit code {code}'}")
        end = self._clock.now() + within_s
        while self._clock.now() < end:
            master = self.find()
            if master is not None and await self._answers(generation):
                if len(self._workers(master)) >= workers:
                    self._write("run/group", str(master.pid))
                    return master
            elif fatal := self._fatal_since(offset):
                raise Unavailable(f"nginx does not start: {fatal}")
            await asyncio.sleep(0.005)
        raise Unavailable(f"nginx started, but does not answer after {within_s:g} s")

    async def reload(
        self, master: Master, *, generation: int, workers: int, within_s: float
    ) -> Proof:
        """Make `master` take the installed configuration; return when only new workers accept connections.

        Raises Unavailable when nginx refused it or did not get there in `within_s`; what serves then is the old
        configuration, or nothing at all: the caller puts the last good one back and reloads again.
        """
        self.rotate_log(master)
        before = set(self._workers(master))
        offset = self._log_size()
        began = self._clock.now()
        live_s: float | None = None
        _signal(master.process, signal.SIGHUP)
        while (elapsed := self._clock.now() - began) < within_s:
            if fatal := self._fatal_since(offset):
                raise Unavailable(f"nginx refused the new configuration: {fatal}")
            if live_s is None and await self._answers(generation):
                live_s = self._clock.now() - began
            serving = self._workers(master)
            fresh = [one for one in serving if one not in before]
            if live_s is not None and len(fresh) >= workers and len(fresh) == len(serving):
                self._cap_old_workers(master, workers=workers)
                return Proof(live_s=live_s, total_s=self._clock.now() - began)
            if not _alive(master.process):
                raise Unavailable("nginx's master process ended during a reload")
            await asyncio.sleep(0.002 if elapsed < 0.3 else 0.02)
        raise Unavailable(f"nginx did not take the new configuration within {within_s:g} s")

    async def stop(self, master: Master, *, within_s: float) -> None:
        """End nginx: requests in flight get `within_s`, then it is terminated."""
        for number, wait_s in ((signal.SIGQUIT, within_s), (signal.SIGTERM, 2.0)):
            _signal(master.process, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.wait_dead(master)
                    await self._wait_group_gone(master.pid)
                    return
        _signal(master.process, signal.SIGKILL)
        for process in _group(master.pid):
            _signal(process, signal.SIGKILL)

    async def wait_dead(self, master: Master) -> None:
        """Return when the master has ended. Cancel-safe."""
        await _wait_end(master.process)

    def find(self) -> Master | None:
        """Return the running master of this directory, whoever started it."""
        try:
            pid = int((self._prefix / "run" / "nginx.pid").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        process = _process(pid)
        title = _title(pid)
        mine = os.fsencode(f"-p {self._prefix}/ ")
        if process is None or not title.startswith(b"nginx: master process") or mine not in title:
            return None
        try:
            binary = str(Path(f"/proc/{pid}/exe").readlink())
        except OSError:
            binary = ""
        return Master(process, binary)

    def worker_pids(self, master: Master) -> tuple[int, ...]:
        """Return the pids of the workers that accept connections."""
        return tuple(one.pid for one in self._workers(master))

    # inside

    async def _call(self, *args: str) -> tuple[int, str]:
        """Run the binary to its end; returns exit code and what it wrote to stderr.

        Into a file, not a pipe: the daemon would keep a pipe open.
        """
        output = self._prefix / "run" / "output"
        try:
            with output.open("wb") as file:
                process = await asyncio.create_subprocess_exec(
                    str(self._binary),
                    "-p",
                    f"{self._prefix}/",
                    *args,
                    cwd=str(self._prefix),
                    env={"PATH": os.defpath},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
        except OSError as exc:
            raise Unavailable(f"cannot run {self._binary}: {exc}") from exc
        try:
            async with asyncio.timeout(30.0):
                code = await process.wait()
        except TimeoutError as exc:
            raise Unavailable(f"{self._binary} {' '.join(args)} does not end") from exc
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        return code, output.read_text(encoding="utf-8", errors="replace")

    async def _answers(self, generation: int) -> bool:
        try:
            return await self.control.generation() == generation
        except Unavailable:
            return False

    def _workers(self, master: Master) -> list[Process]:
        """Return the children that accept connections."""
        return [
            one
            for one in _children(master.pid)
            if (title := _title(one.pid)).startswith(b"nginx: worker process")
            and _SHUTTING_DOWN not in title
        ]

    def _cap_old_workers(self, master: Master, *, workers: int) -> None:
        old = sorted(
            (one for one in _children(master.pid) if _SHUTTING_DOWN in _title(one.pid)),
            key=lambda one: one.start,
        )
        for process in old[: max(0, len(old) - _OLD_GENERATIONS * workers)]:
            log.warning("nginx: worker %d of an old configuration is ended", process.pid)
            _signal(process, signal.SIGTERM)

    async def retire_orphans(self, *, within_s: float) -> None:
        """Make the workers of a dead master close their ports; they finish the requests they have."""
        try:
            group = int((self._prefix / "run" / "group").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return
        orphans = _group(group)
        if not orphans:
            return
        log.warning("nginx: %d workers of a dead master are replaced", len(orphans))
        for process in orphans:
            _signal(process, signal.SIGQUIT)
        try:
            async with asyncio.timeout(within_s):
                # A worker closes its listening sockets at once and its title says so; it may finish its requests.
                while any(  # noqa: ASYNC110 (other processes: nothing to be woken by)
                    _SHUTTING_DOWN not in _title(one.pid) for one in _group(group)
                ):
                    await asyncio.sleep(0.002)
        except TimeoutError:
            for process in _group(group):
                _signal(process, signal.SIGKILL)

    async def _wait_group_gone(self, group: int) -> None:
        while _group(group):  # noqa: ASYNC110 (other processes: nothing to be woken by)
            await asyncio.sleep(0.01)

    # error log

    @property
    def _log(self) -> Path:
        return self._prefix / "logs" / "error.log"

    def _log_size(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    def _fatal_since(self, offset: int) -> str:
        if self._log_size() <= offset:
            return ""
        with self._log.open("rb") as file:
            file.seek(offset)
            text = file.read(65536).decode("utf-8", "replace")
        match = _FATAL_LOG.search(text)
        return match[0] if match else ""

    def rotate_log(self, master: Master | None) -> None:
        """Set the error log aside when it is large: two files of 16 MB are kept."""
        if self._log_size() > _LOG_MAX_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
            if master is not None:
                _signal(master.process, signal.SIGUSR1)


def cannot_bind(listens: Iterable[Listen]) -> dict[Listen, str]:
    """Return the addresses that cannot be bound now, each with the reason.

    `nginx -t` does not report a port in use, and a reload with one leaves the master deaf for 2.5 s.
    """
    failed: dict[Listen, str] = {}
    for listen in listens:
        family = socket.AF_INET6 if ":" in listen.address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((listen.address, listen.port))
                probe.listen(1)
        except OSError as exc:
            failed[listen] = exc.strerror or str(exc)
    return failed


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _signal(process: Process, number: signal.Signals) -> None:
    if _alive(process):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat after the name: state, ppid, pgrp, …, [19] start time. Source: proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _process(pid: int) -> Process | None:
    fields = _stat(pid)
    if not fields or fields[0] == b"Z":
        return None
    return Process(pid, int(fields[19]))


def _alive(process: Process) -> bool:
    return _process(process.pid) == process


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def _children(pid: int) -> list[Process]:
    try:
        names = Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()
        pids = [int(name) for name in names]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        pids = [one for one in _pids() if _stat(one)[1:2] == [str(pid).encode()]]
    return [process for one in pids if (process := _process(one)) is not None]


def _group(group: int) -> list[Process]:
    """Return the living nginx workers of a process group. A group's number is not reused while a member lives."""
    wanted = str(group).encode()
    return [
        process
        for pid in _pids()
        if _stat(pid)[2:3] == [wanted]
        and _title(pid).startswith(b"nginx: worker process")
        and (process := _process(pid)) is not None
    ]


async def _wait_end(process: Process) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        if _alive(process):
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
            loop.remove_reader(descriptor)
        # An agent that is init of its container inherits nginx and has to bury it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)  # noqa: ASYNC222 (does not wait)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
