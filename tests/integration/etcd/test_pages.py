"""Reading more than one answer can carry in time."""

from __future__ import annotations

import random

import pytest

from waypost.store.engine import Put, Txn

from .conftest import opened
from .proxy import LossyProxy
from .server import EtcdCluster

pytestmark = pytest.mark.needs("etcd")


async def test_large_values_are_read_over_a_slow_line(one: EtcdCluster) -> None:
    rng = random.Random(1)
    values = {b"\0\0k%02d" % n: rng.randbytes(400_000) for n in range(40)}
    async with LossyProxy(one.urls[0]).running() as proxy:
        async with opened(one.urls) as engine:
            for key, value in values.items():
                await engine.commit(Txn(then=(Put(key, value),)))
        async with opened([proxy.url], attempt_timeout_s=0.5) as engine:
            # 16 MB take about 1.7 s at this pace: longer than anybody waits for one answer.
            proxy.slow_s = 0.005
            page = await engine.range(b"\0\0k", b"\0\0l")
            assert {kv.key: kv.value for kv in page.items} == values
            assert not page.more
            page = await engine.range(b"\0\0k", b"\0\0l", limit=3)
            assert ([kv.key for kv in page.items], page.more) == (sorted(values)[:3], True)
