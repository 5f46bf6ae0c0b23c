"""Writing a rendered file: compared, written aside, checked, swapped in one step. Blocking; call it in a thread."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from waypost.base.errors import Rejected
from waypost.drivers.render.settings import TemplateSpec

_DEFAULT_MODE: Final = 0o644


class Previous(msgspec.Struct, frozen=True):
    """What a destination was before it was replaced; `content` None means that it did not exist."""

    content: bytes | None
    mode: int
    uid: int = -1
    gid: int = -1


def read_previous(path: Path) -> Previous:
    """Return what is there now. Raises Rejected for anything that cannot be read as a file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Rejected(f"failed reading file: read {path}: is a directory")
        return Previous(
            path.read_bytes(), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        )
    except (FileNotFoundError, NotADirectoryError):
        return Previous(None, _DEFAULT_MODE)
    except OSError as exc:
        raise Rejected(f"failed reading file: open {path}: {_reason(exc)}") from exc


def differs(previous: Previous, content: bytes) -> bool:
    """Tell whether the content must be written; nothing to say and no file is no difference."""
    return (previous.content or b"") != content


def replace(
    spec: TemplateSpec,
    content: bytes,
    previous: Previous,
    *,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Put the content in place of the destination. Raises Rejected; then the destination is as it was.

    `check` gets the path of the complete new file before the swap and raises to refuse it. A destination that is
    a symbolic link is replaced by a file. The owner stays if the process may set it.
    """
    path = Path(spec.destination)
    try:
        _prepare_directory(path.parent, create=spec.create_dest_dirs)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), spec.perms or previous.mode)
                if previous.content is not None:
                    with suppress(OSError):
                        os.fchown(file.fileno(), previous.uid, previous.gid)
                os.fsync(file.fileno())
            if check is not None:
                check(temporary)
            if spec.backup and previous.content is not None:
                shutil.copy2(path, path.with_name(path.name + ".bak"))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as exc:
        raise Rejected(f"failed writing file: {_reason(exc)}: {path}") from exc


def restore(spec: TemplateSpec, previous: Previous) -> None:
    """Put the previous content back, or take the file away if there was none. Raises Rejected."""
    path = Path(spec.destination)
    if previous.content is None:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise Rejected(f"failed removing file: {_reason(exc)}: {path}") from exc
        return
    same_mode = msgspec.structs.replace(spec, perms=previous.mode, backup=False)
    replace(same_mode, previous.content, previous)


def _prepare_directory(directory: Path, *, create: bool) -> None:
    if directory.is_dir():
        return
    if not create:
        raise Rejected(f"parent directory is missing: {directory}")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)


def _sync_directory(directory: Path) -> None:
    # Without this a power cut may bring the old name back; not every file system allows it.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()
