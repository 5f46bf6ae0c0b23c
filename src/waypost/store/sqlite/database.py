"""The files of the SQLite engine: creation, checks, lock and schema. Synchronous; used from threads only.

<directory>/           0700 when created here
  lock                 flock of the process that has the store open; holds its pid
  store.db             0600; beside it SQLite's store.db-wal and store.db-shm
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from waypost.base.errors import Unavailable, Unknown

SCHEMA = 1
"""Version of the tables. An older program refuses a newer store."""

_APPLICATION_ID = 0x77617970  # "wayp", in the file header; `file` and `sqlite3` show it
_FIRST_REVISION = 1  # the empty store, as in etcd: Consul's clients take index 0 as "not set"

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE kv (
    k BLOB PRIMARY KEY,
    v BLOB NOT NULL,
    crev INTEGER NOT NULL,
    mrev INTEGER NOT NULL,
    ver INTEGER NOT NULL,
    lease INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX kv_lease ON kv (lease) WHERE lease != 0;
CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL);
"""

_NOT_APPLIED = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR_WRITE,
    }
)
"""What COMMIT can fail with before its last frame, the one that makes it valid, is in the log. After any other
failure (of fsync, above all) recovery may still find the frame: the outcome is unknown."""


class SqliteSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the SQLite engine keeps its files."""

    max_size_bytes: int = 0
    """Writes that would let the database grow beyond this are refused. 0: as far as the disk goes."""

    checkpoint_pages: int = 3000
    """Pages in the write-ahead log before it is copied back: 12 MB, a pause of about 10 ms."""

    idle_s: float = 1.0
    """After this time without writes the log is copied back and emptied, so backups of the file are nearly current."""

    busy_s: float = 5.0
    """How long to wait for another program (such as the sqlite3 shell) that holds the database locked."""


class Loaded(msgspec.Struct, frozen=True):
    """What an engine needs to know of a store it has opened."""

    revision: int
    keys: int
    leases: dict[int, float]
    """TTL in seconds by lease."""


def reason(error: sqlite3.Error, path: Path) -> str:
    """Return the text for people: what SQLite says, where, and its name for it."""
    name = getattr(error, "sqlite_errorname", "")
    return f"{path}: {error}" + (f" ({name})" if name else "")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's and the system's errors into Unavailable."""
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable(reason(error, path)) from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}") from error


def commit_failure(error: sqlite3.Error, path: Path) -> Unavailable:
    """Return what a failed COMMIT means to those who wait for it."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _NOT_APPLIED or code & 0xFF in _NOT_APPLIED:
        return Unavailable(reason(error, path))
    return Unknown(reason(error, path))


class Database:
    """An open store: one connection that writes, one that reads, and the lock on the directory."""

    def __init__(self, directory: Path, settings: SqliteSettings) -> None:
        self.path = directory / "store.db"
        self.settings = settings
        self._directory = directory
        self._lock_fd = -1
        self._connections: list[sqlite3.Connection] = []

    def open(self) -> Loaded:
        """Create what is missing, check what is there. Raises Unavailable with the reason, and holds nothing then."""
        try:
            with translated(self.path):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock()
                self._create()
                self.writer = self._connect()
                loaded = self._load()
                self.reader = self._connect()
                self.reader.execute("PRAGMA query_only = 1")
        except BaseException:
            self.close()
            raise
        return loaded

    def close(self) -> None:
        """Close and unlock. The writer goes last: SQLite empties the log when the last connection closes."""
        for connection in reversed(self._connections):
            with suppress(sqlite3.Error):
                connection.close()
        self._connections.clear()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def size_bytes(self) -> int:
        """Return the size of the database and its log."""
        total = 0
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                total += os.stat(f"{self.path}{suffix}").st_size  # noqa: PTH116  # one call, no Path built
        return total

    def _lock(self) -> None:
        fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(fd, 32).decode("ascii", "replace").strip()
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            who = f"process {pid}" if pid else "another process"
            raise Unavailable(f"{self._directory} is in use by {who}") from error
        self._lock_fd = fd
        with suppress(
            OSError
        ):  # the pid is for the text above only, so a full disk does not matter here
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def _create(self) -> None:
        """Make an empty store, whole or not at all: so an empty or foreign store.db is never ours to fill."""
        if self.path.exists():
            return
        wal = Path(f"{self.path}-wal")
        if wal.exists() and wal.stat().st_size:
            msg = f"{self.path} is missing but its log {wal.name} is there: restore the file, or remove the log to start empty"
            raise Unavailable(msg)
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(new, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(f"BEGIN;{_TABLES}")
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [("schema", SCHEMA), ("revision", _FIRST_REVISION)],
            )
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute("COMMIT")
        finally:
            connection.close()
        new.rename(self.path)
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self.settings.busy_s,
        )
        self._connections.append(connection)
        # Before anything that could write: a file that is not ours, an empty one included, stays as it is.
        if connection.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
            raise Unavailable(f"{self.path} is not a waypost store")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute("PRAGMA journal_mode = WAL")
        # NORMAL loses acknowledged writes at a power cut: it does not sync the log at a commit.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {self.settings.checkpoint_pages}")
        connection.execute(f"PRAGMA journal_size_limit = {self.settings.checkpoint_pages * size}")
        connection.execute("PRAGMA cache_size = -16384")
        if self.settings.max_size_bytes:
            connection.execute(f"PRAGMA max_page_count = {self.settings.max_size_bytes // size}")
        return connection

    def _load(self) -> Loaded:
        db = self.writer
        problems = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise Unavailable(f"{self.path} is damaged, restore a backup: {'; '.join(problems)}")
        meta = dict(db.execute("SELECT name, value FROM meta"))
        schema = meta.get("schema")
        if schema != SCHEMA:
            raise Unavailable(
                f"{self.path} has schema version {schema}, this program knows {SCHEMA}: "
                "run the waypost that wrote it, or a newer one"
            )
        (keys,) = db.execute("SELECT count(*) FROM kv").fetchone()
        leases = dict(db.execute("SELECT id, ttl_s FROM lease"))
        return Loaded(meta["revision"], keys, leases)
