"""The engines that the contract runs against. The tests know no names: add an engine with one line in ENGINES."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.etcd.server import EtcdCluster, running

from waypost.base.clock import Clock, SystemClock
from waypost.store.engine import Engine
from waypost.store.etcd import EtcdEngine
from waypost.store.memory import MemoryEngine
from waypost.store.sqlite import SqliteEngine

from .remote import RemoteWithServer

Make = Callable[[Path, Clock, int], Engine]

_etcd: list[EtcdCluster] = []
"""The one that runs while the session runs."""


def _make_etcd(_path: Path, _clock: Clock, keep: int, *, prefix: bytes = b"") -> Engine:
    """An engine over the session's etcd, wiped. Its time is its own."""
    (cluster,) = _etcd
    cluster.servers[0].post("/v3/kv/deleterange", {"key": "AA==", "range_end": "AA=="})
    rng = random.Random(1)
    return EtcdEngine(
        cluster.urls,
        process_id="contract",
        prefix=prefix,
        clock=SystemClock(),
        rng=rng,
        keep_batches=keep,
    )


ENGINES: dict[str, Make] = {
    "memory": lambda _, clock, keep: MemoryEngine(clock, keep_batches=keep, sweep_s=0.01),
    "remote": lambda _, clock, keep: RemoteWithServer(clock, keep_batches=keep),
    "sqlite": lambda path, clock, keep: SqliteEngine(
        path, clock=clock, keep_batches=keep, sweep_s=0.01
    ),
    "etcd": _make_etcd,
    "etcd-prefix": lambda path, clock, keep: _make_etcd(path, clock, keep, prefix=b"/waypost/\xff"),
}

NAMES = [
    pytest.param(name, marks=pytest.mark.needs("etcd")) if name.startswith("etcd") else name
    for name in sorted(ENGINES)
]

GROUPED = frozenset({"etcd", "etcd-prefix"})
"""Engines where transactions of callers at the same time may share a revision, and where one that changes nothing may
still be counted with others: see "Group commit" in the docstring of waypost.store.engine."""

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


class NoHandClock(HandClock):
    """Of an engine whose leases run on the clocks of other processes."""

    async def move(self, seconds: float) -> None:
        pytest.skip(f"{seconds} s cannot be skipped: see tests/integration/etcd/test_leases.py")


@pytest.fixture(scope="session")
def etcd() -> Iterator[None]:
    """One real etcd for the session."""
    with (
        tempfile.TemporaryDirectory(prefix="waypost-etcd-") as directory,
        running(Path(directory) / "e") as cluster,
    ):
        _etcd.append(cluster)
        yield
        _etcd.clear()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """The engine's name; whatever it needs runs."""
    if request.param in GROUPED:
        request.getfixturevalue("etcd")
    chosen: str = request.param
    return chosen


@pytest.fixture
def clock(name: str) -> HandClock:
    return NoHandClock() if name in GROUPED else HandClock()


@pytest.fixture
def grouped(name: str) -> bool:
    """Whether the engine is of those that are described at GROUPED."""
    return name in GROUPED


@pytest.fixture
def make(name: str) -> Make:
    return ENGINES[name]


@pytest.fixture
def unopened(make: Make, clock: HandClock, tmp_path: Path) -> Engine:
    return make(tmp_path / "store", clock, KEEP)


@pytest.fixture
async def engine(unopened: Engine) -> AsyncIterator[Engine]:
    await unopened.open()
    yield unopened
    await unopened.close()
