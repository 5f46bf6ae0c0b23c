"""Writes lines to a file that turns over by size and age; never on the event loop's own time.

One thread writes and syncs nothing: the log is as durable as the system's page cache. Overflow: in mode `batch` a full
buffer drops the newest events of stage RequestReceived first and then any, counts them, and says so in the log and in
a line of its own; in mode `blocking` the request waits until its event is written, and fails when it cannot be.
Files have mode 0600. Source: kube `--audit-log-…`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
import stat
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Malformed, Unavailable

log = logging.getLogger(__name__)

_MODE: Final = 0o600
_RETRY_S: Final = 1.0
_COMPLAIN_S: Final = 60.0


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the log is and how long it is kept."""

    path: str = ""
    """Empty: standard output."""
    max_size_bytes: int = 100 * 2**20
    """0: one file for ever."""
    max_age_s: float = 0.0
    """Old files go when they are older; 0: never for their age."""
    max_backups: int = 0
    """0: all."""
    buffer_events: int = 10_000
    blocks: bool = False


class Rotation:
    """The file and its older siblings `NAME-2026-01-02T03-04-05.678.EXT`. One thread only."""

    def __init__(self, settings: LogSettings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._path = Path(settings.path)
        self._descriptor = -1
        self._size = 0

    def open(self) -> None:
        """Open the file, made with mode 0600. Raises Malformed that names it."""
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(
                path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE
            )
            found = os.fstat(self._descriptor)
            if stat.S_ISREG(found.st_mode):
                os.fchmod(self._descriptor, _MODE)
            self._size = found.st_size
        except OSError as exc:
            raise Malformed(f"audit log {path}: {exc.strerror or exc}") from exc

    def write(self, data: bytes) -> None:
        """Append whole lines, into a new file if they do not fit any more. Raises OSError."""
        limit = self._settings.max_size_bytes
        if limit and self._size and self._size + len(data) > limit:
            self._turn()
        if self._descriptor < 0:
            self.open()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            # Half a line on a full disk would spoil the next one.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _turn(self) -> None:
        self.close()
        moment = dt.datetime.fromtimestamp(self._clock.wall(), dt.UTC)
        stamp = moment.strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3]
        target = self._path.with_name(f"{self._path.stem}-{stamp}{self._path.suffix}")
        number = 0
        while target.exists():
            number += 1
            target = self._path.with_name(f"{self._path.stem}-{stamp}.{number}{self._path.suffix}")
        self._path.rename(target)
        self.open()
        self._clear()

    def _clear(self) -> None:
        settings = self._settings
        found = sorted(
            self._path.parent.glob(f"{self._path.stem}-[0-9][0-9][0-9][0-9]-*{self._path.suffix}"),
            key=lambda one: one.stat().st_mtime,
        )
        too_many = found[: -settings.max_backups] if settings.max_backups else []
        oldest = self._clock.wall() - settings.max_age_s
        too_old = [one for one in found if settings.max_age_s and one.stat().st_mtime < oldest]
        for one in {*too_many, *too_old}:
            one.unlink(missing_ok=True)


class _StandardOutput:
    def open(self) -> None:
        """Do nothing."""

    def write(self, data: bytes) -> None:
        """Write to standard output. Raises OSError."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def close(self) -> None:
        """Do nothing."""


class AuditLog:
    """Takes lines from the event loop and has a thread write them; use `run` as one part of the agent.

    `put` never waits. `written` waits until everything put so far is in the file.
    """

    def __init__(self, settings: LogSettings, *, clock: Clock) -> None:
        self.settings = settings
        self.dropped = 0
        """Events that found the buffer full, since the start."""
        self._clock = clock
        self._file: Rotation | _StandardOutput = (
            Rotation(settings, clock=clock) if settings.path else _StandardOutput()
        )
        self._lines: deque[bytes] = deque()
        self._wake = threading.Condition()
        self._put = 0
        self._done = 0
        self._ending = False
        self._end = threading.Event()
        self._fault = ""
        self._complained_s = -_COMPLAIN_S
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Open the file and start writing. Raises Malformed when the file cannot be opened."""
        self._file.open()
        self._ending = False
        self._end.clear()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write_all, name="audit log", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Write what is left and close the file; a disk that does not answer is waited for two seconds."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._end.set()
        await asyncio.to_thread(thread.join, 2.0)
        if thread.is_alive():
            log.error("audit log: %d events could not be written", len(self._lines))
        self._file.close()

    def put(self, line: bytes, *, is_late: bool) -> bool:
        """Take one line; return False if it was dropped. `is_late`: it says how a request ended.

        The last tenth of the buffer is kept for such lines.
        """
        with self._wake:
            room = self.settings.buffer_events - len(self._lines)
            if room <= (0 if is_late else self.settings.buffer_events // 10):
                self.dropped += 1
                self._complain()
                return False
            self._lines.append(line)
            self._put += 1
            self._wake.notify()
        return True

    async def written(self) -> None:
        """Wait until everything put so far is written. Raises Unavailable when it cannot be."""
        assert self._loop is not None
        future: asyncio.Future[None] = self._loop.create_future()
        with self._wake:
            if self._done >= self._put:
                return
            self._waiting.append((self._put, future))
        await future

    def _complain(self) -> None:
        now = self._clock.now()
        if now - self._complained_s >= _COMPLAIN_S:
            self._complained_s = now
            log.error("audit log: the buffer is full, %d events dropped so far", self.dropped)

    # -- the thread --------------------------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            with self._wake:
                while not self._lines and not self._ending:
                    self._wake.wait()
                if not self._lines:
                    return
                lines = list(self._lines)
                ending = self._ending
            try:
                self._file.write(b"".join(lines))
            except (OSError, Malformed) as exc:
                self._failed(exc)
                if ending:
                    return
                self._end.wait(_RETRY_S)
                continue
            self._fault = ""
            with self._wake:
                for _ in lines:
                    self._lines.popleft()
                self._done += len(lines)
                self._answer(None)

    def _failed(self, exc: Exception) -> None:
        with self._wake:
            text = str(exc)
            if text != self._fault:
                log.error("audit log: %s", text)
            self._fault = text
            self._answer(Unavailable("the audit log cannot be written, see the agent's log"))

    def _answer(self, error: Unavailable | None) -> None:
        while self._waiting and (error is not None or self._waiting[0][0] <= self._done):
            _, future = self._waiting.popleft()
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(_settle, future, error)
            except RuntimeError:  # the loop has ended, and with it whoever waited
                return


def _settle(future: asyncio.Future[None], error: Unavailable | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
