"""Who this machine is: the node id, made once and kept in the data directory."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from waypost.base.errors import Malformed, Unavailable


def node_id(data_dir: Path | None) -> str:
    """Return the id kept in `data_dir/node-id`, making one at the first start; a new one without a directory.

    Raises Unavailable when the directory cannot be written, Malformed when the file does not hold a UUID.
    """
    if data_dir is None:
        return str(uuid.uuid4())
    path = data_dir / "node-id"
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return _make(path)
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise Unavailable(msg) from error
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        msg = f"{path} does not hold a node id; remove the file to have a new one made"
        raise Malformed(msg) from error


def _make(path: Path) -> str:
    made = str(uuid.uuid4())
    temporary = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with temporary.open("w", encoding="ascii") as file:
            file.write(made + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        msg = f"data directory {path.parent}: {error.strerror}"
        raise Unavailable(msg) from error
    return made
