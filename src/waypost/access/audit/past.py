"""Past requests: looks an audit id up in the log and its older files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from waypost.base.errors import Unavailable


def find_event(path: Path, audit_id: str) -> dict[str, Any] | None:
    """Return the last event of a request, newest file first; None if there is none. Reads files: not on the event loop.

    Raises Unavailable for a file that cannot be read.
    """
    older = sorted(
        path.parent.glob(f"{path.stem}-[0-9][0-9][0-9][0-9]-*{path.suffix}"), reverse=True
    )
    wanted = f'"auditID":"{audit_id}"'.encode()
    for file in (path, *older):
        found = _last_in(file, wanted)
        if found is not None:
            return found
    return None


def _last_in(file: Path, wanted: bytes) -> dict[str, Any] | None:
    last: bytes | None = None
    try:
        with file.open("rb") as lines:
            for line in lines:
                if wanted in line:
                    last = line
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise Unavailable(f"{file}: {exc.strerror or exc}") from exc
    if last is None:
        return None
    try:
        event = msgspec.json.decode(last)
    except msgspec.DecodeError:
        return None
    return event if isinstance(event, dict) else None
