"""The engines that the contract runs against. The tests know no names: add an engine with one line in ENGINES."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from waypost.base.clock import Clock
from waypost.store.engine import Engine
from waypost.store.memory import MemoryEngine
from waypost.store.sqlite import SqliteEngine

Make = Callable[[Path, Clock, int], Engine]

ENGINES: dict[str, Make] = {
    "memory": lambda _, clock, keep: MemoryEngine(clock, keep_batches=keep, sweep_s=0.01),
    "sqlite": lambda path, clock, keep: SqliteEngine(
        path, clock=clock, keep_batches=keep, sweep_s=0.01
    ),
}

KEEP = 50
"""Revisions an engine under test keeps for watchers; enough for every test but those on slow watchers."""


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now(self) -> float:
        return self.time_s

    def wall(self) -> float:
        return 1.7e9 + self.time_s

    async def move(self, seconds: float) -> None:
        """Let `seconds` pass, and give the engine the time to notice."""
        self.time_s += seconds
        await asyncio.sleep(0.1)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=sorted(ENGINES))
def make(request: pytest.FixtureRequest) -> Make:
    return ENGINES[request.param]


@pytest.fixture
def unopened(make: Make, clock: HandClock, tmp_path: Path) -> Engine:
    return make(tmp_path / "store", clock, KEEP)


@pytest.fixture
async def engine(unopened: Engine) -> AsyncIterator[Engine]:
    await unopened.open()
    yield unopened
    await unopened.close()
