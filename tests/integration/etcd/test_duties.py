"""What the leader does, and snapshots, over a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from waypost.base.clock import SystemClock
from waypost.cluster.duties import compaction
from waypost.cluster.leadership import Deposed, Leadership, leader_of
from waypost.cluster.snapshots import Snapshots, interrupted
from waypost.domain.planning import Draft
from waypost.model.kv import KVEntry
from waypost.state.keys import put
from waypost.state.state import Plan, State
from waypost.state.view import View
from waypost.store.engine import Delete, Txn

from .conftest import opened
from .server import EtcdCluster

pytestmark = pytest.mark.needs("etcd")


class Source:
    is_leader = True
    knows_leader = True


@asynccontextmanager
async def state_of(cluster: EtcdCluster, *, process_id: str) -> AsyncIterator[State]:
    async with opened(cluster.urls, process_id=process_id) as engine:
        state = State(engine, authoritative=False)
        await state.load()
        task = asyncio.create_task(state.run())
        try:
            yield state
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def write(state: State, first: int, last: int, prefix: str) -> None:
    for start in range(first, last, 500):
        records = (
            KVEntry(key=f"{prefix}/{n}", value=b"x" * 400) for n in range(start, start + 500)
        )
        result = await state.engine.commit(Txn(then=tuple(put(one) for one in records)))
        await state.reached(result.revision)


async def test_a_snapshot_larger_than_a_transaction(one: EtcdCluster) -> None:
    async with state_of(one, process_id="a") as state:
        await write(state, 0, 5000, "old")
        snapshots = Snapshots(state, clock=SystemClock())
        _, archive = await snapshots.save()
        await state.engine.commit(Txn(then=(Delete(b"k\0", b"k\1"),)))
        await write(state, 0, 1000, "new")
        before = state.view.revision
        await snapshots.restore(archive)
        assert len(state.view.kv_below("old/")) == 5000
        assert state.view.kv_below("new/") == []
        assert interrupted(state.view) == ""
        assert state.view.revision > before + 1
        # The engine works on: its own keys were neither saved nor deleted.
        await write(state, 0, 500, "more")
        assert len(state.view.kv_below("more/")) == 500


def plan_write(view: View) -> Plan[bool]:
    draft = Draft()
    draft.replace(view.kv("a"), KVEntry(key="a", value=b"from a leader of the past"))
    return draft.plan(answer=True)


async def test_a_deposed_leader_writes_nothing(one: EtcdCluster) -> None:
    async with state_of(one, process_id="a") as first, state_of(one, process_id="b") as second:
        terms = []

        async def work(term: object) -> None:
            terms.append(term)
            await asyncio.Event().wait()

        # Neither looks whether the other leads: only what is written down stands between them.
        old = Leadership(first, Source(), server_id="id1", node="s1", beat_s=60)
        new = Leadership(second, Source(), server_id="id2", node="s2", beat_s=60)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            tasks = [group.create_task(old.run(work))]
            while len(terms) < 1:
                await asyncio.sleep(0.01)
            tasks.append(group.create_task(new.run(work)))
            while len(terms) < 2:
                await asyncio.sleep(0.01)
            assert [one.number for one in terms] == [1, 2]
            with pytest.raises(Deposed):
                await terms[0].commit(plan_write)
            assert second.view.kv("a") is None
            await terms[1].commit(plan_write)
            found = leader_of(second.view)
            assert found is not None
            assert (found.id, found.term) == ("id2", 2)
            for task in tasks:
                task.cancel()


async def test_history_is_forgotten_but_for_the_last_revisions(one: EtcdCluster) -> None:
    async with state_of(one, process_id="a") as state:
        for number in range(60):
            entry = put(KVEntry(key=f"k{number}"))
            await state.engine.commit(Txn(then=(entry,)))
        task = asyncio.create_task(compaction(state.engine, keep=20, every_s=0.05).run(None))
        revision = (await state.engine.status()).revision
        async with asyncio.timeout(10):
            while (await state.engine.status()).compacted < revision - 25:
                await asyncio.sleep(0.05)
        task.cancel()
