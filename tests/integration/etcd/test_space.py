"""A real etcd that runs out of its quota."""

import asyncio
import logging

import pytest

from waypost.base.errors import Unavailable
from waypost.cluster.space import Space
from waypost.store.engine import Delete, Put, Txn

from .conftest import opened
from .server import EtcdCluster

pytestmark = pytest.mark.needs("etcd")

QUOTA = 24 * 2**20
VALUE = b"x" * 2**17


@pytest.fixture
def small(directory):
    cluster = EtcdCluster(directory, flags=("--quota-backend-bytes", str(QUOTA)))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


async def fill(engine, *, key):
    """Write until etcd refuses; return the refusal's text."""
    for number in range(0, 800, 4):
        refusal = await batch(engine, *(Put(key(number + i), VALUE) for i in range(4)))
        if refusal is not None:
            return refusal
    raise AssertionError("etcd takes everything")


async def batch(engine, *operations):
    """Send them at once, so that they are one batch: etcd's quota does not see what one alone writes, as it is nested."""
    found = await asyncio.gather(
        *(engine.commit(Txn(then=(one,))) for one in operations), return_exceptions=True
    )
    errors = [one for one in found if isinstance(one, Exception)]
    assert all(isinstance(one, Unavailable) for one in errors), errors
    return str(errors[0]) if errors else None


def keeper(engine):
    return Space(engine, engine.members, quota_bytes=QUOTA, is_leader=lambda: True)


async def test_history_fills_it_and_goes(small, caplog):
    caplog.set_level(logging.INFO)
    async with opened(small.urls, attempt_timeout_s=5.0) as engine:
        space = keeper(engine)
        assert await space.look()
        text = await fill(engine, key=lambda number: b"k%d" % (number % 4))
        assert "quota is used up" in text
        assert "quota is used up" in await batch(engine, Delete(b"k0"), Delete(b"k1"))
        assert len((await engine.range(b"k", b"l")).items) == 4, "reads go on"
        assert await space.look()
        assert await batch(engine, Delete(b"k0"), Delete(b"k1")) is None
        assert "etcd takes writes again" in caplog.text
        assert await engine.members.alarms() == ()


async def test_data_that_need_more_than_the_quota(small, caplog):
    async with opened(small.urls, attempt_timeout_s=5.0) as engine:
        # What the alarm leaves unused differs: a little more room may be found the first time.
        for turn in range(4):
            await fill(engine, key=lambda number, turn=turn: b"k%d%03d" % (turn, number))
            if not await keeper(engine).look():
                break
        else:
            raise AssertionError("there is room again and again")
        assert "start the servers with a larger cluster.quota_bytes" in caplog.text
        assert "quota is used up" in await batch(engine, Put(b"more", b""), Put(b"most", b""))
