"""Files of the PKI: read as they are, written whole or not at all, with the modes that secrets need."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from waypost.base.errors import Conflict, Malformed, Unavailable

DIRECTORY_MODE: Final = 0o700
SECRET_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
MAX_BYTES: Final = 4 << 20


class FileWrite(msgspec.Struct, frozen=True):
    """One file to write. `repr` does not show what."""

    path: Path
    data: bytes
    mode: int

    def __repr__(self) -> str:
        return f"FileWrite({str(self.path)!r}, mode={self.mode:o})"


def read(path: Path) -> bytes | None:
    """Return what is in a file, None if there is none. Raises Malformed with the reason it cannot be read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Malformed(f"{path}: larger than {MAX_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise Malformed(f"{path}: {exc.strerror or exc}") from exc


def ensure_directory(path: Path) -> None:
    """Make a directory with mode 0700, and its parents as the umask says; one that is there stays as it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror or exc}") from exc


def write_all(writes: Sequence[FileWrite]) -> None:
    """Write several files: all beside their places first, then each into it.

    A full disk or a missing right changes nothing. Raises Unavailable with the path and the reason.
    """
    beside: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for one in writes:
            path = one.path
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
            beside.append((temporary, path))
            _write_new(temporary, one.data, mode=one.mode)
        for temporary, path in beside:
            temporary.replace(path)
        for folder in {path.parent for _, path in beside}:
            _sync_directory(folder)
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror or exc}") from exc
    finally:
        for temporary, _ in beside:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_all(paths: Iterable[Path]) -> None:
    """Remove files, those that are there. Raises Unavailable with the path and the reason; then some may be gone."""
    path = Path()
    folders = set()
    try:
        for path in paths:
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for path in folders:
            _sync_directory(path)
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror or exc}") from exc


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), mode)  # the umask does not count
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a directory against another `waypost` that changes it. Raises Conflict at once if one does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Conflict(f"{folder}: another waypost is changing it") from exc
        yield
    finally:
        os.close(descriptor)


def tighten(path: Path) -> bool:
    """Take the rights of group and others off a secret file; return whether there were any."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & 0o077:
            return False
        path.chmod(SECRET_MODE)
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror or exc}") from exc
    return True
