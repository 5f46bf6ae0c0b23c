"""From settings to a running process: event loop, log, signals, pid file, banner and exit status."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import uvloop

from waypost import __version__
from waypost.agent.agent import Agent
from waypost.agent.config import AgentSettings, environment, resolve
from waypost.agent.identity import node_id
from waypost.agent.logs import set_up
from waypost.agent.posture import StartAgain
from waypost.base.errors import Rejected, WaypostError

log = logging.getLogger(__name__)

Load = Callable[[], dict[str, Any]]

_SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread keeps the interpreter while another waits for it. The store's writer comes back from the disk many
hundred times a second; with Python's 5 ms each return would wait that long for a busy event loop."""


def start(load: Load, *, dev: bool) -> int:
    """Run an agent until a signal ends it; `load` reads files and flags. Returns the exit status.

    Errors of the configuration are said in one line on standard error, as Consul does.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    raise_file_limit()
    while (status := _start(load, dev=dev)) is None:
        log.info("starting again with the access control of the cluster")
    return status


def _start(load: Load, *, dev: bool) -> int | None:
    """Run one agent; return the exit status, None when another one has to be made from what is on disk now."""
    began = time.monotonic()
    try:
        values = load()
        if dev:
            values.setdefault("log_level", "DEBUG")
        settings = resolve(values, dev=dev)
        settings = resolve(values, dev=dev, node_id=settings.node_id or node_id(settings.data_dir))
        set_up(settings.config.log_level, as_json=settings.config.log_json)
        agent = Agent(settings, environment=dict(environment()))
    except WaypostError as error:
        sys.stderr.write(f"==> {error}\n")
        return 1
    sys.stdout.write(banner(settings) + "\n")
    sys.stdout.flush()
    for note in settings.notes:
        log.info("%s", note)
    pid_file = Path(settings.config.pid_file) if settings.config.pid_file else None
    try:
        if pid_file is not None:
            pid_file.write_text(f"{os.getpid()}\n", encoding="ascii")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(agent, load, dev=dev, began=began))
    except OSError as error:
        sys.stderr.write(f"==> {error}\n")
        return 1
    finally:
        if pid_file is not None:
            with suppress(OSError):
                pid_file.unlink()


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: every client and every waiting query is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(agent: Agent, load: Load, *, dev: bool, began: float) -> int | None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    reloads = asyncio.Event()
    received: list[signal.Signals] = []

    def reload() -> None:
        try:
            settings = resolve(load(), dev=dev, node_id=agent.settings.node_id)
            agent.take_over(settings)
        except WaypostError as error:
            # For the log and for whoever asked over HTTP: they need not be the same person.
            log.error("the configuration is not taken over: %s", error)
            raise Rejected(f"the configuration is not taken over: {error}") from error
        set_up(settings.config.log_level, as_json=settings.config.log_json)
        log.info("configuration read again")
        reloads.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stop, number, received)
    loop.add_signal_handler(signal.SIGHUP, _on_hangup, reload)
    agent.on_reload = reload
    # The answer to the request goes out first.
    agent.on_leave = lambda: _later(loop, stop)

    def ready() -> None:
        # What start-up left behind is never collected; freezing it keeps it out of every later pass.
        gc.collect()
        gc.freeze()
        for line in listening(agent):
            log.info("%s", line)
        log.info("agent is ready after %.2f s", time.monotonic() - began)

    serving = asyncio.create_task(agent.run(ready=ready, reloads=reloads), name="agent")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if serving.done() and not stop.is_set():
        return _failed(serving)
    await agent.sign_off(interrupted=signal.SIGINT in received)
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    log.info("agent has ended")
    return 0


def _on_hangup(reload: Callable[[], None]) -> None:
    with suppress(Rejected):  # it is in the log
        reload()


def _later(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    loop.call_later(0.1, _on_stop, stop, "leave")


def _on_signal(stop: asyncio.Event, number: signal.Signals, received: list[signal.Signals]) -> None:
    received.append(number)
    _on_stop(stop, number.name)


def _on_stop(stop: asyncio.Event, name: str) -> None:
    log.info("%s: ending", name)
    stop.set()


def _failed(serving: asyncio.Task[None]) -> int | None:
    error = serving.exception()
    if isinstance(error, BaseExceptionGroup):
        # Two parts may find at the same moment that it is time.
        again, rest = error.split(StartAgain)
        if again is not None:
            if rest is not None:
                log.error("while the agent ended to start again", exc_info=rest)
            return None
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, WaypostError):
        log.error("agent: Error starting agent: error=%r", str(error))
    else:
        log.error("agent ended", exc_info=error)
    return 1


def banner(settings: AgentSettings) -> str:
    """Return what is shown before the log begins, in Consul's form."""
    config = settings.config
    ports = config.ports
    client = " ".join(settings.http_addresses)
    kept = str(settings.data_dir) if settings.data_dir else "nothing is kept"
    rows = [
        ("Version", f"'{__version__}'"),
        ("Node ID", f"'{settings.node_id}'"),
        ("Node name", f"'{settings.node_name}'"),
        ("Datacenter", f"'{config.datacenter}'"),
        ("Server", "false" if settings.role == "client" else "true"),
        ("Client Addr", f"[{client}] (HTTP: {ports.http}, HTTPS: {ports.https}, DNS: {ports.dns})"),
        ("Node Addr", settings.address),
        ("Data", kept),
    ]
    lines = [f"{name:>18}: {value}" for name, value in rows]
    return "\n".join(
        [
            "==> Starting waypost agent...",
            *lines,
            "",
            "==> Log data will now stream in as it occurs:",
            "",
        ]
    )


def listening(agent: Agent) -> list[str]:
    """Return a line for everything that can be asked, with its real address."""
    lines = []
    if agent.http is not None:
        addresses = agent.http.addresses
        lines.append(f"HTTP API: {', '.join(addresses)}")
        web = next((one for one in addresses if not one.startswith("unix:")), None)
        if agent.settings.config.ui and web:
            lines.append(f"web interface: http://{web}/ui/")
    if agent.dns is not None and agent.dns.addresses:
        names = ", ".join(f"{host}:{port}" for host, port in agent.dns.addresses)
        lines.append(f"DNS: {names} (udp, tcp), domain {agent.settings.config.domain}")
    return lines
