"""Members of etcd die, freeze and lead elsewhere: nothing acknowledged is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import time

import pytest

from waypost.base.errors import NoLeader, Unavailable, Unknown
from waypost.model.kv import KVEntry
from waypost.state.keys import put as stored
from waypost.state.state import Plan, State
from waypost.store.engine import Batch, Compacted, Compare, Put, Txn
from waypost.store.etcd import EtcdEngine

from .conftest import in_thread, make, opened, until
from .server import EtcdCluster

pytestmark = pytest.mark.needs("etcd")


async def put(engine: EtcdEngine, key: bytes, value: bytes = b"v") -> int:
    return (await engine.commit(Txn(then=(Put(key, value),)))).revision


class Watcher:
    """Follows an engine from where it is, and keeps what it sees."""

    def __init__(self, engine: EtcdEngine, after: int) -> None:
        self.engine = engine
        self.after = after
        self.batches: list[Batch] = []

    async def run(self) -> None:
        async for batch in self.engine.watch(after=self.after):
            self.batches.append(batch)

    def keys(self) -> list[bytes]:
        return [event.kv.key for batch in self.batches for event in batch.events]

    def check(self) -> None:
        """Every revision once, in order."""
        revisions = [batch.revision for batch in self.batches]
        assert revisions == list(range(self.after + 1, self.after + 1 + len(revisions)))


async def break_while_writing(three: EtcdCluster, urls: list[str], hurt, heal) -> float:
    """A writer beside, a watcher on `urls[0]`, which is hurt and healed. Returns the longest gap in the watch."""
    async with opened(urls) as engine, opened(urls[1:], process_id="writer") as writer:
        watcher = Watcher(engine, await engine.read_index())
        written: list[bytes] = []
        seen_at: list[float] = []
        stop = asyncio.Event()

        async def write() -> None:
            count = 0
            while not stop.is_set():
                key = b"%06d" % count
                count += 1
                await put(writer, key)
                written.append(key)
                await asyncio.sleep(0.003)

        async def look() -> None:
            seen = -1
            while not stop.is_set():
                if len(watcher.batches) != seen:
                    seen = len(watcher.batches)
                    seen_at.append(time.monotonic())
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as tg:
            following = tg.create_task(watcher.run())
            tg.create_task(write())
            tg.create_task(look())
            await asyncio.sleep(0.5)
            await in_thread(hurt)
            begin = time.monotonic()
            await put(engine, b"mine")
            assert time.monotonic() - begin < 4
            await asyncio.sleep(4 - (time.monotonic() - begin))
            await in_thread(heal)
            await asyncio.sleep(0.3)
            stop.set()
            last = await engine.read_index()
            await until(lambda: watcher.after + len(watcher.batches) >= last)
            following.cancel()
        watcher.check()
        assert sorted(watcher.keys()) == sorted([*written, b"mine"])
        return max(b - a for a, b in itertools.pairwise(seen_at))


async def test_the_endpoint_that_is_watched_dies(three: EtcdCluster) -> None:
    victim = three.followers()[0]
    others = [s.url for s in three.servers if s is not victim]
    gap_s = await break_while_writing(three, [victim.url, *others], victim.kill, victim.start)
    assert gap_s < 1.5


async def test_the_endpoint_that_is_watched_freezes(three: EtcdCluster) -> None:
    victim = three.followers()[0]
    others = [s.url for s in three.servers if s is not victim]
    gap_s = await break_while_writing(three, [victim.url, *others], victim.freeze, victim.thaw)
    assert gap_s < 4


async def test_the_leader_dies_under_16_writers_who_compare_and_set(three: EtcdCluster) -> None:
    """Each adds 1 to its own counter and to one shared by four: what was acknowledged is there, exactly once."""
    leader = three.leader()
    followers = [s.url for s in three.servers if s is not leader]
    async with opened([followers[0], leader.url, followers[1]]) as engine:
        base = await engine.read_index()
        watcher = Watcher(engine, base)
        acknowledged = [0] * 16
        unknown = 0
        stop = asyncio.Event()

        async def add(number: int) -> None:
            nonlocal unknown
            own, shared = b"own%02d" % number, b"shared%d" % (number % 4)
            while not stop.is_set():
                try:
                    rows = {
                        key: row for key in (own, shared) for row in (await engine.range(key)).items
                    }
                    values = {k: (int(r.value), r.modify_revision) for k, r in rows.items()}
                    when = tuple(
                        Compare(k, "modify", "==", values.get(k, (0, 0))[1]) for k in (own, shared)
                    )
                    then = tuple(
                        Put(k, b"%d" % (values.get(k, (0, 0))[0] + 1)) for k in (own, shared)
                    )
                    result = await engine.commit(Txn(when=when, then=then))
                except Unknown:
                    unknown += 1
                except Unavailable:
                    continue
                else:
                    acknowledged[number] += result.succeeded

        async with asyncio.TaskGroup() as tg:
            following = tg.create_task(watcher.run())
            for number in range(16):
                tg.create_task(add(number))
            await asyncio.sleep(1)
            before = sum(acknowledged)
            await in_thread(leader.kill)
            await asyncio.sleep(3)
            during = sum(acknowledged)
            await in_thread(leader.start)
            await asyncio.sleep(1)
            stop.set()
            await until(lambda: len(tg._tasks) <= 1, at_most_s=15)
            last = await engine.read_index()
            await until(lambda: base + len(watcher.batches) >= last)
            following.cancel()
        assert 0 < before < during, "no write went through after the election"
        watcher.check()
        assert unknown == 0, "the outcome of every write could be learned"
        for number in range(16):
            (row,) = (await engine.range(b"own%02d" % number)).items
            assert int(row.value) == acknowledged[number]
        shared = [int((await engine.range(b"shared%d" % n)).items[0].value) for n in range(4)]
        assert sum(shared) == sum(acknowledged)


async def test_without_a_quorum_everything_is_refused_in_time_and_comes_back(
    three: EtcdCluster,
) -> None:
    first = three.servers[0]
    async with opened(three.urls) as engine:
        revision = await put(engine, b"a")
        for server in three.servers[1:]:
            server.kill()
        begin = time.monotonic()
        with pytest.raises(NoLeader, match=r"no leader that answers within 5 s \("):
            await engine.read_index()
        assert 4.5 < time.monotonic() - begin < 6.5
        status = await engine.status()
        assert not status.has_quorum
        assert status.revision >= revision
        writing = asyncio.ensure_future(put(engine, b"b"))
        await asyncio.sleep(0.5)
        for server in three.servers[1:]:
            server.start()
        assert await writing > revision
        assert (await engine.status()).has_quorum
        assert first.process is not None


async def test_nobody_answers_at_open(one: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    one.stop()
    monkeypatch.setattr("waypost.store.etcd.engine.TIMEOUT_S", 1.5)
    engine = make(one.urls)
    with pytest.raises(NoLeader, match=r"no leader that answers within 1\.5 s \(.*onnect"):
        await engine.open()
    with pytest.raises(NoLeader, match="not open"):
        await engine.read_index()
    await in_thread(one.start)
    await engine.open()
    assert await put(engine, b"a") > 1
    await engine.close()


async def test_compaction_while_the_watch_is_broken(one: EtcdCluster) -> None:
    """Who watches is told; a load from there is complete again."""
    (server,) = one.servers
    known = [server.url]
    async with opened(lambda: known) as engine:
        after = await put(engine, b"a")
        following = asyncio.ensure_future(anext(engine.watch(after=after)))
        await asyncio.sleep(0.1)
        known.clear()
        server.kill()
        await in_thread(one.start)
        for _ in range(20):
            server.post("/v3/kv/put", {"key": "Yg==", "value": "MQ=="})
        server.post("/v3/kv/deleterange", {"key": "YQ=="})
        revision = int(server.post("/v3/kv/range", {"key": "AA=="})["header"]["revision"])
        server.post("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        assert not following.done()
        known.append(server.url)
        with pytest.raises(Compacted):
            async with asyncio.timeout(5):
                await following
        page = await engine.range(b"\0", b"\xff")
        assert [(row.key, row.value) for row in page.items] == [(b"b", b"1")]
        again = engine.watch(after=page.revision)
        new = await put(engine, b"c")
        async with asyncio.timeout(5):
            assert (await anext(again)).revision == new == page.revision + 1


async def test_the_state_follows_through_all_of_it(three: EtcdCluster) -> None:
    """`State` over an engine: members die one after the other, and the view has everything."""
    async with opened(three.urls) as engine:
        state = State(engine, authoritative=False)
        await state.load()
        written = 0
        async with asyncio.TaskGroup() as tg:
            running = tg.create_task(state.run())
            for server in three.servers:
                for _ in range(20):
                    entry = KVEntry(key=f"k{written}", value=b"v")
                    await state.commit(
                        lambda _, entry=entry: Plan(None, Txn(then=(stored(entry),)))
                    )
                    written += 1
                await in_thread(server.kill)
                entry = KVEntry(key=f"k{written}", value=b"v")
                await state.commit(lambda _, entry=entry: Plan(None, Txn(then=(stored(entry),))))
                written += 1
                await in_thread(three.start)
            await state.confirm()
            assert [state.view.kv(f"k{i}") is not None for i in range(written)] == [True] * written
            running.cancel()


async def test_data_that_were_replaced_by_older_ones_are_loaded_again(one: EtcdCluster) -> None:
    """An operator restores a backup under a running agent: nobody sits on a revision that is gone."""
    (server,) = one.servers
    async with opened(one.urls) as engine:
        await put(engine, b"a")
        backup = one.servers[0].directory / "backup"
        backup.write_bytes(b"".join([blob async for blob in engine.members.snapshot(server.url)]))
        for _ in range(20):
            after = await put(engine, b"b")
        following = asyncio.ensure_future(anext(engine.watch(after=after)))
        server.kill()
        data = server.directory / server.name
        shutil.rmtree(data)
        restored = subprocess.run(
            [
                "etcdctl", "snapshot", "restore", str(backup), "--name", server.name, "--data-dir", str(data),
                "--initial-cluster", f"{server.name}={server.peer_url}",
                "--initial-advertise-peer-urls", server.peer_url,
            ],
            env=os.environ | {"ETCDCTL_API": "3"},
            capture_output=True,
            check=False,
        )  # fmt: skip
        assert restored.returncode == 0, restored.stderr
        await in_thread(one.start)
        with pytest.raises(Compacted):
            async with asyncio.timeout(8):
                await following
        page = await engine.range(b"\0", b"\xff")
        assert [row.key for row in page.items] == [b"a"]
        assert await put(engine, b"c") > page.revision
        assert page.revision < after
