from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from waypost.base.clock import SystemClock
from waypost.store.etcd import EtcdEngine

from .server import EtcdCluster


@pytest.fixture
def directory() -> Iterator[Path]:
    """Of its own, on the machine's disk."""
    path = Path(tempfile.mkdtemp(prefix="waypost-etcd-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def three(directory: Path) -> Iterator[EtcdCluster]:
    """Three members with elections of 0.5 s."""
    cluster = EtcdCluster(directory, count=3, heartbeat_ms=50)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def one(directory: Path) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(directory, count=1)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def make(urls: Any, *, process_id: str = "test", **settings: Any) -> EtcdEngine:
    rng = random.Random()
    settings = {"attempt_timeout_s": 1.0} | settings
    return EtcdEngine(urls, process_id=process_id, clock=SystemClock(), rng=rng, **settings)


@asynccontextmanager
async def opened(
    urls: Any, *, process_id: str = "test", **settings: Any
) -> AsyncIterator[EtcdEngine]:
    """An engine of its own while the block runs."""
    engine = make(urls, process_id=process_id, **settings)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def until(true: Callable[[], bool], *, at_most_s: float = 10) -> None:
    async with asyncio.timeout(at_most_s):
        while not true():
            await asyncio.sleep(0.02)


async def in_thread(do: Callable[[], Any]) -> Any:
    """The tests' own handling of processes blocks."""
    return await asyncio.to_thread(do)
