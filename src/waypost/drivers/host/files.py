"""Files of the system, changed whole or not at all. Blocking.

Every path is that of the machine, below `root` (`/`, but for tests).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from waypost.base.errors import Conflict, Forbidden, Malformed, Unavailable
from waypost.drivers.host.records import Edit
from waypost.drivers.host.undo import FORMAT, Record

MAX_BYTES: Final = 4 << 20
_NEW_MODE: Final = 0o644
_SECRET_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o755
_SECRET_DIRECTORY_MODE: Final = 0o700
_NO_RENAME: Final = (errno.EBUSY, errno.EXDEV)
"""What a file says that is itself a mount, as resolv.conf in a container."""


def below(root: Path, path: str) -> Path:
    """Return where a path of the machine is."""
    return root / path.lstrip("/")


def read(path: Path) -> bytes | None:
    """Return what is in a file, None if there is none. Raises Malformed with the reason it cannot be read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Malformed(f"{path}: larger than {MAX_BYTES} bytes")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise Malformed(f"{path}: {exc.strerror or exc}") from exc


def write(path: Path, data: bytes | None, *, mode: int = _NEW_MODE) -> tuple[str, ...]:
    """Put `data` in the place of a file, or take the file away; return the directories made, the innermost first.

    A symbolic link stays and leads to the new contents. Mode, owner and attributes are those of the file that was there; a
    new one gets `mode`. Swapped in one step, but for a file that is itself a mount: that is written over. Raises Forbidden, Unavailable.
    """
    try:
        real = Path(os.path.realpath(path))
        if data is None:
            real.unlink(missing_ok=True)
            _sync_directory(real.parent)
            return ()
        made = _make_directories(real.parent)
        temporary = real.with_name(f".{real.name}.{secrets.token_hex(6)}.tmp")
        try:
            _write_beside(temporary, real, data, mode=mode)
            temporary.replace(real)
        except OSError as exc:
            if exc.errno not in _NO_RENAME:
                raise
            _write_over(real, data)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync_directory(real.parent)
    except PermissionError as exc:
        # Root meets this on a file that was made immutable (chattr +i).
        raise Forbidden(
            f"{path}: {exc.strerror}; this needs root, and a file without `chattr +i`"
        ) from exc
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror or exc}") from exc
    return made


def remove_directories(directories: Sequence[str]) -> None:
    """Remove directories that are empty, the innermost first."""
    for directory in directories:
        with suppress(OSError):
            Path(directory).rmdir()


def apply(edits: Sequence[Edit], *, root: Path) -> dict[str, tuple[str, ...]]:
    """Make all changes or none; return the directories made for each path. Raises Forbidden, Unavailable."""
    made: dict[str, tuple[str, ...]] = {}
    begun: list[Edit] = []
    try:
        for edit in edits:
            begun.append(edit)
            made[edit.path] = write(below(root, edit.path), edit.after)
    except BaseException:
        for edit in reversed(begun):
            with suppress(Forbidden, Unavailable, Malformed):
                if not holds(edit.before, below(root, edit.path)):
                    write(below(root, edit.path), edit.before)
            remove_directories(made.get(edit.path, ()))
        raise
    return made


def holds(data: bytes | None, path: Path) -> bool:
    """Tell whether a file is just that. Raises Malformed when it cannot be read."""
    return read(path) == data


def read_record(path: Path) -> Record:
    """Return what was kept; an empty record without a file. Raises Malformed."""
    data = read(path)
    if data is None:
        return Record()
    try:
        record = msgspec.json.decode(data, type=Record)
    except msgspec.DecodeError as exc:
        raise Malformed(f"{path} is no record of changes: {exc}") from exc
    if record.version != FORMAT:
        raise Malformed(f"{path} was written by another version of waypost ({record.version})")
    return record


def write_record(path: Path, record: Record) -> None:
    """Keep a record, readable for root only: daemon.json may hold passwords. An empty one is no file."""
    if record.files or record.steps:
        write(
            path,
            msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n",
            mode=_SECRET_MODE,
        )
    else:
        write(path, None)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory against another waypost; raises Conflict at once if one has it.

    It is made if need be, and does not stay when it is empty at the end.
    """
    made: tuple[str, ...] = ()
    try:
        made = _make_directories(directory, mode=_SECRET_DIRECTORY_MODE)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise Unavailable(f"{directory}: {exc.strerror or exc}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Conflict(f"{directory}: another waypost is setting up this machine") from exc
        yield
    finally:
        os.close(descriptor)
        remove_directories(made or (str(directory),))


def _make_directories(directory: Path, *, mode: int = _DIRECTORY_MODE) -> tuple[str, ...]:
    made: list[str] = []
    while not directory.exists():
        made.append(str(directory))
        directory = directory.parent
    for missing in reversed(made):
        Path(missing).mkdir(mode=mode, exist_ok=True)
    return tuple(made)


def _write_beside(temporary: Path, real: Path, data: bytes, *, mode: int) -> None:
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _SECRET_MODE
    )
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        try:
            status = real.stat()
        except FileNotFoundError:
            os.fchmod(file.fileno(), mode)  # the umask does not count
        else:
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
            shutil.copystat(real, temporary)  # the mode, and attributes such as SELinux's label
            os.utime(temporary)
        os.fsync(file.fileno())


def _write_over(real: Path, data: bytes) -> None:
    # The new bytes first, then the end: a reader in between sees old lines below, never an empty file.
    with real.open("r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    # Without this a power cut may bring the old file back; not every file system allows it.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
