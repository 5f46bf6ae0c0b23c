"""Commands of templates, and the child of exec mode: a shell in its own process group, ended as a group."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from waypost.base.errors import Rejected
from waypost.drivers.render.settings import ExecSpec

log = logging.getLogger(__name__)

_REAP_S: Final = 5.0


async def start(command: str, *, env: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start a command by `sh -c` in a process group of its own. Raises Rejected."""
    try:
        return await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", command, env=dict(env), start_new_session=True
        )
    except (OSError, ValueError) as exc:
        raise Rejected(f'failed to start command "{command}": {exc}') from exc


def signal_group(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal to the whole process group, if it is still there."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def run(command: str, *, timeout_s: float, env: Mapping[str, str]) -> None:
    """Run a command to its end. Raises Rejected with its status, or after killing it at the timeout."""
    process = await start(command, env=env)
    try:
        async with asyncio.timeout(timeout_s):
            status = await process.wait()
    except TimeoutError:
        raise Rejected(f'command "{command}" did not finish in {timeout_s:g}s') from None
    finally:
        if process.returncode is None:
            signal_group(process, signal.SIGKILL)
            await process.wait()
    if status:
        shown = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise Rejected(f'command "{command}" failed: {shown}')


class Child:
    """The process of exec mode."""

    def __init__(self, spec: ExecSpec, *, env: Mapping[str, str], rng: random.Random) -> None:
        self._spec = spec
        self._env = env
        self._rng = rng
        self._process: asyncio.subprocess.Process | None = None
        self._running = asyncio.Event()

    @property
    def started(self) -> bool:
        """Tell whether it has been started and not stopped."""
        return self._process is not None

    async def start(self) -> None:
        """Start it. Raises Rejected."""
        log.info("(child) spawning: %s", self._spec.command)
        self._process = await start(self._spec.command, env=self._env)
        self._running.set()

    async def wait(self) -> int:
        """Return its exit status once it has ended by itself; 255 if a signal ended it. Restarts do not count."""
        while True:
            await self._running.wait()
            process = self._process
            assert process is not None
            status = await process.wait()
            if process is self._process:
                return status if status >= 0 else 255

    async def reload(self) -> None:
        """Tell it about a change: by its signal, or by a restart."""
        if self._spec.splay_s:
            await asyncio.sleep(self._rng.uniform(0, self._spec.splay_s))
        if self._process is not None and self._spec.reload_signal:
            log.info("(child) reloading process")
            signal_group(self._process, self._spec.reload_signal)
            return
        log.info("(child) restarting process")
        old, self._process = self._process, None
        self._running.clear()
        if old is not None:
            await self._end(old)
        await self.start()

    async def stop(self) -> None:
        """End it: kill signal, then SIGKILL after the timeout."""
        process, self._process = self._process, None
        self._running.clear()
        if process is not None:
            log.info("(child) stopping process")
            await self._end(process)

    def forward(self, number: int) -> None:
        """Pass a signal on."""
        if self._process is not None:
            signal_group(self._process, number)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        try:
            if process.returncode is None:
                signal_group(process, self._spec.kill_signal)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._spec.kill_timeout_s):
                        await process.wait()
        finally:
            if process.returncode is None:
                signal_group(process, signal.SIGKILL)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REAP_S):
                        await process.wait()
