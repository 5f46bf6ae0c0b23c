"""What only the SQLite engine promises: files, recovery, refusals, and what a full disk looks like."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from waypost.base.errors import NotFound, Unavailable, Unknown
from waypost.store.engine import Compare, Delete, Put, Txn
from waypost.store.sqlite import SqliteEngine, SqliteSettings
from waypost.store.sqlite import engine as engine_module
from waypost.store.sqlite.database import commit_failure

LAST = b"\xff" * 8


class HandClock:
    time_s = 1000.0

    def now(self) -> float:
        return self.time_s

    def wall(self) -> float:
        return self.time_s


@asynccontextmanager
async def opened(
    directory: Path, *, clock: HandClock | None = None, **settings: float
) -> AsyncIterator[SqliteEngine]:
    engine = SqliteEngine(
        directory,
        clock=clock or HandClock(),
        settings=SqliteSettings(**settings),  # type: ignore[arg-type]
        sweep_s=0.01,
    )
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def put(engine: SqliteEngine, key: bytes, value: bytes = b"v", lease: int = 0) -> int:
    return (await engine.commit(Txn(then=(Put(key, value, lease),)))).revision


async def keys(engine: SqliteEngine) -> list[bytes]:
    return [row.key for row in (await engine.range(b"\0", LAST)).items]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- files ------------------------------------------------------------------------------------


async def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        async with opened(tmp_path / "deep" / "store") as engine:
            await put(engine, b"a")
            assert mode(tmp_path / "deep" / "store") == 0o700
            files = {path.name: mode(path) for path in (tmp_path / "deep" / "store").iterdir()}
    finally:
        os.umask(old)
    assert files == dict.fromkeys(["lock", "store.db", "store.db-wal", "store.db-shm"], 0o600)


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        for i in range(10):
            await put(engine, b"k%d" % (i % 4), b"%d" % i)
        await engine.commit(Txn(then=(Delete(b"k0"),)))
        before = await engine.range(b"\0", LAST)
        revision = await engine.read_index()
    async with opened(tmp_path) as engine:
        assert await engine.range(b"\0", LAST) == before
        assert await engine.read_index() == revision
        status = await engine.status()
        assert (status.keys, status.compacted, status.durable) == (3, revision, True)
        assert await put(engine, b"new") == revision + 1


async def test_every_commit_is_synced(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        db = engine._database.writer
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_many_callers_share_a_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        statements: list[str] = []
        engine._database.writer.set_trace_callback(statements.append)
        await asyncio.gather(*(put(engine, b"%d" % i) for i in range(300)))
        engine._database.writer.set_trace_callback(None)
    assert 1 <= statements.count("COMMIT") < 30


async def test_nothing_changed_costs_no_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await put(engine, b"a")
        statements: list[str] = []
        engine._database.writer.set_trace_callback(statements.append)
        never = Txn(when=(Compare(b"a", "version", ">", 1),), then=(Put(b"a", b""),))
        assert not (await engine.commit(never)).succeeded
        engine._database.writer.set_trace_callback(None)
    assert "COMMIT" not in statements


async def test_the_log_is_emptied_when_idle(tmp_path: Path) -> None:
    async with opened(tmp_path, idle_s=0.05) as engine:
        await put(engine, b"a", b"x" * 100_000)
        wal = tmp_path / "store.db-wal"
        async with asyncio.timeout(5):
            while wal.stat().st_size:
                await asyncio.sleep(0.01)
        # The database file alone is a complete copy now.
        shutil.copy(tmp_path / "store.db", tmp_path / "copy.db")
        with sqlite3.connect(tmp_path / "copy.db") as db:
            assert db.execute("SELECT length(v) FROM kv").fetchall() == [(100_000,)]
        db.close()
        await put(engine, b"b")
        assert await keys(engine) == [b"a", b"b"]


async def test_a_flood_does_not_grow_the_log_without_end(tmp_path: Path) -> None:
    async with opened(tmp_path, checkpoint_pages=200) as engine:
        for _ in range(60):
            await asyncio.gather(*(put(engine, b"%d" % i, b"x" * 4000) for i in range(50)))
        assert (tmp_path / "store.db-wal").stat().st_size < 2_000_000  # of 12 MB written


# -- a second opener --------------------------------------------------------------------------


async def test_a_second_engine_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await put(engine, b"a")
        other = SqliteEngine(tmp_path, clock=HandClock())
        with pytest.raises(Unavailable, match=f"is in use by process {os.getpid()}"):
            await other.open()
        await other.close()
        await put(engine, b"b")
    async with opened(tmp_path) as engine:
        assert await keys(engine) == [b"a", b"b"]


async def test_a_lock_without_a_pid_is_still_a_lock(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="in use by another process"):
            await SqliteEngine(tmp_path, clock=HandClock()).open()
    async with opened(tmp_path) as engine:
        await put(engine, b"a")


# -- what cannot be opened is refused and left alone ------------------------------------------


async def refused(directory: Path, match: str) -> None:
    path = directory / "store.db"
    before = path.read_bytes()
    engine = SqliteEngine(directory, clock=HandClock())
    with pytest.raises(Unavailable, match=match):
        await engine.open()
    await engine.close()
    assert path.read_bytes() == before
    with (directory / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def made(directory: Path, count: int = 2000) -> Path:
    async with opened(directory) as engine:
        for at in range(0, count, 500):
            await engine.commit(Txn(then=tuple(Put(b"k%06d" % i, b"v" * 200) for i in range(at, at + 500))))  # fmt: skip
    return directory / "store.db"


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"precious text, not a database" * 100)
    await refused(tmp_path, "store.db: file is not a database")


async def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"")
    await refused(tmp_path, "not a waypost store")


async def test_a_database_of_somebody_else(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.execute("CREATE TABLE kv (k, v)")
    db.close()
    await refused(tmp_path, "not a waypost store")


async def test_a_damaged_header(tmp_path: Path) -> None:
    path = await made(tmp_path)
    with path.open("r+b") as file:
        file.write(b"\0" * 100)
    await refused(tmp_path, "store.db")


async def test_damaged_pages(tmp_path: Path) -> None:
    path = await made(tmp_path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(random.Random(1).randbytes(8192))
    await refused(tmp_path, "damaged|malformed")


async def test_a_truncated_file(tmp_path: Path) -> None:
    path = await made(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    await refused(tmp_path, "damaged|malformed")


async def test_a_newer_schema(tmp_path: Path) -> None:
    path = await made(tmp_path, 500)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = 7 WHERE name = 'schema'")
    db.close()
    await refused(tmp_path, "schema version 7, this program knows 1")


async def test_a_log_whose_database_is_gone(tmp_path: Path) -> None:
    (tmp_path / "store.db-wal").write_bytes(b"frames")
    with pytest.raises(Unavailable, match="missing but its log"):
        await SqliteEngine(tmp_path, clock=HandClock()).open()
    assert (tmp_path / "store.db-wal").read_bytes() == b"frames"
    assert not (tmp_path / "store.db").exists()


async def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"Not a directory|File exists"):
        await SqliteEngine(tmp_path / "file", clock=HandClock()).open()


async def test_a_creation_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "store.new").write_bytes(b"half")
    async with opened(tmp_path) as engine:
        assert await put(engine, b"a") == 2
    assert not (tmp_path / "store.new").exists()


@pytest.mark.parametrize("seed", range(8))
async def test_a_torn_log_loses_only_its_end(tmp_path: Path, seed: int) -> None:
    """A power cut may leave any prefix of the unsynced tail: what opens is a prefix of the history."""
    rng = random.Random(seed)
    torn = tmp_path / "torn"
    async with opened(tmp_path / "live", checkpoint_pages=100_000, idle_s=60) as engine:
        first = await put(engine, b"k0")
        for i in range(1, 100):
            await put(engine, b"k%d" % i, b"x" * rng.randrange(3000))
        torn.mkdir()
        for name in ("store.db", "store.db-wal"):
            shutil.copy(tmp_path / "live" / name, torn / name)
    wal = torn / "store.db-wal"
    cut = rng.randrange(wal.stat().st_size)
    os.truncate(wal, cut)
    with wal.open("ab") as file:
        file.write(rng.randbytes(rng.randrange(5000)))
    async with opened(torn) as engine:
        revision = await engine.read_index()
        count = max(0, revision - first + 1)
        assert sorted(await keys(engine)) == sorted(b"k%d" % i for i in range(count))
        assert await put(engine, b"next") == revision + 1


# -- leases -----------------------------------------------------------------------------------


async def test_a_lease_outlives_a_restart_at_its_full_ttl(tmp_path: Path) -> None:
    clock = HandClock()
    async with opened(tmp_path, clock=clock) as engine:
        lease = await engine.grant(ttl_s=10)
        ended = await engine.grant(ttl_s=10)
        await put(engine, b"a", b"v", lease)
        await engine.revoke(ended)
        clock.time_s += 9
    clock.time_s += 1000
    async with opened(tmp_path, clock=clock) as engine:
        clock.time_s += 9
        await asyncio.sleep(0.05)
        assert await keys(engine) == [b"a"]
        with pytest.raises(NotFound):
            await engine.keep_alive(ended)
        clock.time_s += 2
        await asyncio.sleep(0.1)
        assert await keys(engine) == []
        assert await engine.grant(ttl_s=1) not in (lease, ended), "an old holder could renew it"
    async with opened(tmp_path, clock=clock) as engine:
        with pytest.raises(NotFound):
            await engine.keep_alive(lease)


# -- no room, no disk -------------------------------------------------------------------------


async def test_a_full_store_refuses_with_the_reason_and_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()
    async with opened(tmp_path, clock=clock, max_size_bytes=400_000) as engine:
        lease = await engine.grant(ttl_s=10)
        await put(engine, b"leased", b"v", lease)
        written = [b"leased"]
        failure = None
        for i in range(1000):
            try:
                await put(engine, b"k%03d" % i, b"x" * 2000)
            except Unavailable as error:
                failure = error
                break
            written.append(b"k%03d" % i)
        assert failure is not None
        assert "store.db: database or disk is full (SQLITE_FULL)" in str(failure)
        assert not isinstance(failure, Unknown)
        revision = await engine.read_index()
        assert revision == len(written) + 1
        big = Txn(then=(Delete(b"k000"), Put(b"big", b"x" * 300_000), Put(b"z", b"")))
        with pytest.raises(Unavailable, match="full"):
            await engine.commit(big)
        assert sorted(await keys(engine)) == sorted(written), "half of it was applied"
        assert await engine.read_index() == revision
        assert not (await engine.status()).has_quorum
        assert [r.levelname for r in caplog.records].count("ERROR") == 1
        await engine.commit(Txn(then=(Delete(b"k", b"k1"),)))
        assert await put(engine, b"again") == revision + 2
        status = await engine.status()
        assert (status.has_quorum, status.revision) == (True, revision + 2)
        clock.time_s += 11
        await asyncio.sleep(0.1)
        assert b"leased" not in await keys(engine)
    async with opened(tmp_path) as engine:
        assert await engine.read_index() == revision + 3


IN_A_SMALL_SPACE = textwrap.dedent("""
    import asyncio, resource, signal, sys
    from pathlib import Path
    from waypost.base.clock import SystemClock
    from waypost.base.errors import Unavailable
    from waypost.store.engine import Put, Txn
    from waypost.store.sqlite import SqliteEngine, SqliteSettings

    async def main():
        settings = SqliteSettings(checkpoint_pages=1_000_000, idle_s=60)
        engine = SqliteEngine(Path(sys.argv[1]), clock=SystemClock(), settings=settings)
        await engine.open()
        watch, seen = engine.watch(after=1), 0
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        count = 0
        try:
            while count < 1000:
                await engine.commit(Txn(then=(Put(b"k%04d" % count, b"x" * 3000),)))
                count += 1
        except Unavailable as error:
            print(type(error).__name__, error)
        for _ in range(3):
            try:
                await engine.commit(Txn(then=(Put(b"p", b"x" * 400_000), Put(b"q", b""))))
            except Unavailable:
                pass
        page = await engine.range(b"a", b"z")
        print(len(page.items) == count, page.revision == count + 1, 10 < count < 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        result = await engine.commit(Txn(then=(Put(b"p", b"x" * 400_000),)))
        print(result.revision == count + 2, (await engine.status()).has_quorum)
        async with asyncio.timeout(5):
            for i in range(count + 1):
                assert (await anext(watch)).revision == i + 2
        await engine.close()
        await engine.open()
        print(len((await engine.range(b"a", b"z")).items) == count + 1)
        await engine.close()

    asyncio.run(main())
""")


def test_a_write_error_of_the_system_refuses_and_recovers(tmp_path: Path) -> None:
    """The limit on file sizes stands in for a disk that takes no more."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_SMALL_SPACE, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith("Unavailable ")
    assert "SQLITE_" in first
    assert rest == ["True True True", "True True", "True"]


def fill(path: Path) -> None:
    """Write until the disk is full."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(fd)


def mounted(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


async def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or not mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)):
        pytest.skip("tmpfs cannot be mounted here")
    try:
        async with opened(disk / "store", idle_s=60) as engine:
            await put(engine, b"a", b"1")
            fill(disk / "ballast")
            with pytest.raises(Unavailable, match="SQLITE_"):
                await put(engine, b"b", b"x" * 1_000_000)
            assert [r.value for r in (await engine.range(b"a")).items] == [b"1"]
            revision = await engine.read_index()
            (disk / "ballast").unlink()
            assert await put(engine, b"c") == revision + 1
        async with opened(disk / "store") as engine:
            assert await engine.read_index() == revision + 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_read_only_directory_is_refused_at_open(tmp_path: Path) -> None:
    async with opened(tmp_path / "store") as engine:
        await put(engine, b"a")
    view = tmp_path / "view"
    view.mkdir()
    if os.geteuid() or not mounted("--bind", str(tmp_path / "store"), str(view)):
        pytest.skip("a directory cannot be mounted here")
    try:
        if not mounted("-o", "remount,ro,bind", str(view)):
            pytest.skip("a directory cannot be mounted read-only here")
        with pytest.raises(Unavailable, match="Read-only file system"):
            await SqliteEngine(view, clock=HandClock()).open()
    finally:
        subprocess.run(["umount", "-l", str(view)], check=True)


async def test_another_program_that_holds_the_lock_long_is_named_busy(tmp_path: Path) -> None:
    async with opened(tmp_path, busy_s=0.05) as engine:
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked"):
            await put(engine, b"a")
        other.execute("ROLLBACK")
        other.close()
        assert await put(engine, b"a") == 2


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, Unavailable),
        (sqlite3.SQLITE_IOERR_WRITE, Unavailable),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Unavailable),
        (sqlite3.SQLITE_READONLY_DBMOVED, Unavailable),
        (sqlite3.SQLITE_IOERR_FSYNC, Unknown),
        (sqlite3.SQLITE_IOERR_SHMSIZE, Unknown),
        (sqlite3.SQLITE_CORRUPT, Unknown),
    ],
)
def test_what_a_failed_commit_means(code: int, kind: type[Exception], tmp_path: Path) -> None:
    error = sqlite3.OperationalError("it failed")
    error.sqlite_errorcode = code
    assert type(commit_failure(error, tmp_path)) is kind


async def test_too_many_waiting_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MAX_WAITING", 20)
    async with opened(tmp_path) as engine:
        answers = await asyncio.gather(*(put(engine, b"%d" % i) for i in range(30)), return_exceptions=True)  # fmt: skip
        assert [type(a) for a in answers] == [int] * 20 + [Unavailable] * 10
        assert len(await keys(engine)) == 20
        assert await put(engine, b"later") == 22


async def test_cancelling_open_leaves_nothing_open(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path, clock=HandClock())
    opening = asyncio.ensure_future(engine.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    async with opened(tmp_path) as engine:
        await put(engine, b"a")
