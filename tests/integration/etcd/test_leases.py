"""Leases on etcd's own time, which no test can move."""

from __future__ import annotations

import asyncio
import time

import pytest

from waypost.base.errors import NotFound
from waypost.store.engine import Put, Txn

from .conftest import opened
from .server import EtcdCluster

pytestmark = pytest.mark.needs("etcd")


async def test_keys_go_with_their_leases(one: EtcdCluster) -> None:
    async with opened(one.urls) as engine:
        short, kept = await engine.grant(ttl_s=2), await engine.grant(ttl_s=1.2)
        puts = (Put(b"a", b"", short), Put(b"b", b"", short), Put(b"k", b"", kept), Put(b"s", b""))
        before = (await engine.commit(Txn(then=puts))).revision
        begin = time.monotonic()
        watch = engine.watch(after=before)

        async def keep() -> None:
            while True:
                assert await engine.keep_alive(kept) == 2
                await asyncio.sleep(0.5)

        async with asyncio.timeout(5), asyncio.TaskGroup() as tg:
            keeping = tg.create_task(keep())
            batch = await anext(watch)
            assert 1.9 <= time.monotonic() - begin <= 4
            keeping.cancel()
        assert [(e.kind, e.kv.key) for e in batch.events] == [("delete", b"a"), ("delete", b"b")]
        assert [r.key for r in (await engine.range(b"a", b"z")).items] == [b"k", b"s"]
        with pytest.raises(NotFound, match=f"lease {short} does not exist"):
            await engine.keep_alive(short)
        with pytest.raises(NotFound, match=f"lease {short} does not exist"):
            await engine.commit(Txn(then=(Put(b"z", b"", short),)))
        async with asyncio.timeout(5):
            batch = await anext(watch)
        assert [e.kv.key for e in batch.events] == [b"k"]
