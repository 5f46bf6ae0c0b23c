"""`waypost template`: renders Go templates from a Consul API, with consul-template's flags and exit codes.

Exit codes: 0 done, or stopped by SIGTERM; 12 stopped by the kill signal; 13 wrong flags; 14 failed at run time;
15 wrong configuration; in exec mode the child's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from waypost.base.clock import SystemClock
from waypost.base.errors import Malformed
from waypost.cli.flags import Command, HelpRequested, UsageError, parse
from waypost.cli.template_settings import ConfigFailure, FlagFailure, Plan, TemplateFlags, plan
from waypost.drivers.render.consul_source import ConsulSettings, open_source
from waypost.drivers.render.runner import Outcome, Runner
from waypost.drivers.render.source import Source

SUMMARY = "Render templates from the registry (consul-template's flags)"

EXIT_INTERRUPTED: Final = 12
EXIT_FLAGS: Final = 13
EXIT_FAILED: Final = 14
EXIT_CONFIG: Final = 15

log = logging.getLogger("waypost")

_LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "err": logging.ERROR,
}
_FORWARDED: Final = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


class _Lines(logging.Formatter):
    """`2006/01/02 15:04:05.000000 [LEVEL] text`, in UTC."""

    _NAMES: Final = {"WARNING": "WARN", "ERROR": "ERR", "CRITICAL": "ERR"}

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime(record.created))
        micros = int(record.created % 1 * 1e6)
        level = self._NAMES.get(record.levelname, record.levelname)
        return f"{stamp}.{micros:06d} [{level}] {record.getMessage()}"


def _start_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    log.handlers[:] = [handler]
    log.setLevel(_LEVELS.get(level, logging.WARNING))
    log.propagate = False


def _show(raw: bytes) -> None:
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()


class _Signals:
    """What the signals of one process asked for."""

    def __init__(self) -> None:
        self.stop_status: int | None = None
        self.wake = asyncio.Event()

    def stop(self, status: int) -> None:
        self.stop_status = status
        self.wake.set()

    def reload(self) -> None:
        self.wake.set()


def _template(flags: TemplateFlags, args: list[str]) -> int:
    if args:
        print(f"waypost template: too many arguments: {' '.join(args)}", file=sys.stderr)
        return EXIT_FLAGS
    try:
        first = plan(flags, env=os.environ)
    except FlagFailure as exc:
        print(f"waypost template: {exc}", file=sys.stderr)
        return EXIT_FLAGS
    except ConfigFailure as exc:
        print(f"waypost template: {exc}", file=sys.stderr)
        return EXIT_CONFIG
    if flags.v or flags.version:
        from waypost import __version__

        print(f"waypost template v{__version__}", file=sys.stderr)
        return 0
    return asyncio.run(_supervise(flags, first))


async def _supervise(flags: TemplateFlags, current: Plan) -> int:
    """Run, and after each reload signal run what the configuration says then."""
    signals = _Signals()
    while True:
        _start_logging(current.log_level)
        for part in current.ignored:
            log.warning("(config) %s has no effect here", part)
        if not current.runner.templates and current.runner.exec is None:
            log.warning("(config) no template and no command is given: there is nothing to do")
        status = await _start(current, signals)
        if status is not None:
            return status
        log.warning("(cli) reloading configuration")
        signals = _Signals()
        try:
            current = plan(flags, env=os.environ)
        except Malformed as exc:
            log.error("(cli) %s", exc)
            return EXIT_CONFIG


async def _start(current: Plan, signals: _Signals) -> int | None:
    """Run one plan; None means that it is to be read again."""
    try:
        _write_pid(current.pid_file)
        async with open_source(current.consul) as source:
            status = await serve(current, source=source, env=_environment(current), signals=signals)
    except Malformed as exc:
        log.error("(cli) %s", exc)
        return EXIT_FAILED
    _remove_pid(current.pid_file)
    return status


async def serve(
    current: Plan, *, source: Source, env: Mapping[str, str], signals: _Signals | None = None
) -> int | None:
    """Run one plan over a source until it ends or a signal comes. Returns the exit status; None to read again."""
    signals = signals or _Signals()
    runner = Runner(
        current.runner,
        source=source,
        clock=SystemClock(),
        env=env,
        rng=random.Random(),  # noqa: S311  (spreads restarts)
        show=_show,
    )
    loop = asyncio.get_running_loop()
    handled = _listen(loop, current, signals, runner)
    work = asyncio.create_task(runner.run(), name="template.runner")
    wake = asyncio.create_task(signals.wake.wait(), name="template.signals")
    try:
        await asyncio.wait((work, wake), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            if signals.stop_status == EXIT_INTERRUPTED:
                print("Cleaning up...", file=sys.stderr)
            return signals.stop_status
        return _report(work.result())
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        work.cancel()
        wake.cancel()
        await asyncio.wait((work, wake))


def _report(outcome: Outcome) -> int:
    for text in outcome.errors:
        log.error("(cli) %s", text)
    return outcome.status


def _listen(
    loop: asyncio.AbstractEventLoop, current: Plan, signals: _Signals, runner: Runner
) -> list[int]:
    handlers: dict[int, Callable[[], None]] = {
        signal.SIGTERM: lambda: signals.stop(0),
        current.reload_signal: signals.reload,
        current.kill_signal: lambda: signals.stop(EXIT_INTERRUPTED),
    }
    for number in _FORWARDED:
        if runner.child is not None and number not in handlers:
            handlers[number] = partial(runner.child.forward, number)
    handlers.pop(0, None)
    for each, handler in handlers.items():
        loop.add_signal_handler(each, handler)
    return list(handlers)


def _environment(current: Plan) -> dict[str, str]:
    """Return what commands, children and the function `env` see."""
    return {**os.environ, **_consul_environment(current.consul)}


def _consul_environment(consul: ConsulSettings) -> dict[str, str]:
    found = {"CONSUL_HTTP_ADDR": consul.address}
    if consul.auth:
        found["CONSUL_HTTP_AUTH"] = ":".join(consul.auth)
    if consul.tls:
        found["CONSUL_HTTP_SSL"] = "true"
        found["CONSUL_HTTP_SSL_VERIFY"] = "true" if consul.tls_verify else "false"
    return found


def _write_pid(path: str) -> None:
    if not path:
        return
    try:
        Path(path).write_text(str(os.getpid()), encoding="ascii")
    except OSError as exc:
        raise Malformed(f"could not write pid file {path}: {exc.strerror}") from exc


def _remove_pid(path: str) -> None:
    if path:
        with suppress(OSError):
            Path(path).unlink()


COMMAND = Command(
    "template [options]",
    "Renders Go templates from the registry, writes them where they belong and runs\n"
    "their commands whenever what they show has changed.\n\n"
    '    $ waypost template -template "nginx.conf.tmpl:/etc/nginx/nginx.conf:nginx -s reload"',
    settings=TemplateFlags,
    action=_template,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    try:
        parse(TemplateFlags, argv)
    except HelpRequested:
        pass  # the command itself gives the help
    except UsageError as exc:
        text = "\n".join(part for part in (str(exc), exc.suggestion) if part)
        print(text, file=sys.stderr)
        print('Run "waypost template -h" for the options.', file=sys.stderr)
        return EXIT_FLAGS
    return COMMAND.run(argv)
