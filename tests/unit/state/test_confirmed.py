"""What may be answered on a view that is behind: nothing that says no."""

import asyncio

import pytest

from waypost.base.clock import SystemClock
from waypost.base.errors import NoLeader, Rejected
from waypost.model.kv import KVEntry
from waypost.state.keys import put
from waypost.state.state import Plan, State
from waypost.store.engine import Txn
from waypost.store.memory import MemoryEngine


class Behind:
    """An engine whose watch starts only when it is told to, so that its view is behind."""

    def __init__(self, engine):
        self._engine = engine
        self.may_watch = asyncio.Event()
        self.has_leader = True

    def __getattr__(self, name):
        return getattr(self._engine, name)

    async def read_index(self):
        if not self.has_leader:
            raise NoLeader("No cluster leader")
        self.may_watch.set()
        return await self._engine.read_index()

    async def watch(self, *, after):
        await self.may_watch.wait()
        async for batch in self._engine.watch(after=after):
            yield batch


@pytest.fixture
async def behind():
    engine = MemoryEngine(SystemClock())
    await engine.open()
    late = Behind(engine)
    state = State(late, authoritative=False)
    await state.load()
    await engine.commit(Txn(then=(put(KVEntry(key="a", value=b"x")),)))
    running = asyncio.create_task(state.run())
    yield state, late
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await engine.close()


def is_there(view):
    return Plan(answer=view.kv("a") is not None)


async def test_an_answer_without_a_transaction_is_given_on_a_confirmed_view(behind):
    state, _ = behind
    assert await state.commit(is_there) is True


async def test_a_refusal_is_thought_over_on_a_confirmed_view(behind):
    state, _ = behind

    def decide(view):
        if view.kv("a") is None:
            raise Rejected("there is no a")
        return Plan(answer="found")

    assert await state.commit(decide) == "found"


async def test_without_a_leader_nothing_is_denied(behind):
    state, late = behind
    late.has_leader = False
    with pytest.raises(NoLeader):
        await state.commit(is_there)


async def test_what_only_this_agent_writes_needs_no_leader(behind):
    state, late = behind
    late.has_leader = False
    assert await state.commit(lambda _: Plan(answer="mine", is_own=True)) == "mine"


async def test_a_refusal_that_stands_is_raised(behind):
    state, _ = behind

    def refuse(_):
        raise Rejected("never")

    with pytest.raises(Rejected, match="never"):
        await state.commit(refuse)
