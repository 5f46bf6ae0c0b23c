"""The agent's log: one line an event on standard error, in Consul's form or as JSON.

2026-11-23T04:44:32.182Z [INFO]  surfaces.dns: listening on 127.0.0.1:8600 (udp, tcp)
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Final

_NAMES: Final = {"WARNING": "WARN", "CRITICAL": "ERROR"}
_LEVELS: Final = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERR": logging.ERROR,
    "ERROR": logging.ERROR,
}
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127) if code not in (9, 10)}


def _time(record: logging.LogRecord) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.msecs):03d}Z"


def _trace(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    return "".join(traceback.format_exception(record.exc_info[1])).rstrip()


class LineFormatter(logging.Formatter):
    """One line an event; a traceback follows indented. Control characters of foreign text cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of one event."""
        level = _NAMES.get(record.levelname, record.levelname)
        name = record.name.removeprefix("waypost.")
        text = record.getMessage().translate(_CONTROL).replace("\n", "\n    ")
        line = f"{_time(record)} [{level}]{' ' * (5 - len(level))} {name}: {text}"
        trace = _trace(record)
        return line + ("\n    " + trace.replace("\n", "\n    ") if trace else "")


class JsonFormatter(logging.Formatter):
    """One JSON object an event, with Consul's member names."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of one event."""
        event = {
            "@level": _NAMES.get(record.levelname, record.levelname).lower(),
            "@message": record.getMessage(),
            "@module": record.name.removeprefix("waypost."),
            "@timestamp": _time(record),
        }
        if trace := _trace(record):
            event["trace"] = trace
        return json.dumps(event, ensure_ascii=False)


def set_up(level: str, *, as_json: bool) -> None:
    """Send the log to standard error from `level` (`TRACE` … `ERR`, any case) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("waypost").setLevel(_LEVELS[level.upper()])
    if level.upper() not in ("DEBUG", "TRACE"):
        # uvloop and aiohttp tell of every refused connection; what matters is told by the part that made it.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
