"""A whole domain over the memory engine."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from waypost.access.actor import node_actor
from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.base.clock import SystemClock
from waypost.domain.agent import LocalAgent, LocalNode
from waypost.domain.catalog import Catalog
from waypost.domain.kv import KV
from waypost.state.state import State
from waypost.store.memory import MemoryEngine


class Domain:
    def __init__(self, state):
        gate = Gate(ExposureAuthorizer())
        self.state = state
        self.view = state.view
        self.start = state.view.revision
        self.actor = node_actor("n1")
        self.catalog = Catalog(state, gate, datacenter="dc1")
        self.kv = KV(state, gate)
        local = LocalNode(
            node="n1",
            id="11111111-2222-3333-4444-555555555555",
            address="10.0.0.1",
            datacenter="dc1",
        )
        self.agent = LocalAgent(state, gate, local=local, clock=SystemClock())


@asynccontextmanager
async def running_state():
    engine = MemoryEngine(clock=SystemClock())
    await engine.open()
    state = State(engine)
    await state.load()
    task = asyncio.create_task(state.run())
    try:
        yield state
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await engine.close()


@pytest.fixture
async def domain():
    async with running_state() as state:
        yield Domain(state)
