"""Answers are lost and copies come late: every transaction is done once, and its caller gets its own answer."""

from __future__ import annotations

import asyncio
import json

import pytest

from waypost.base.errors import NoLeader, NotFound, TooLarge, Unknown
from waypost.store.engine import Compare, Delete, Get, Put, Txn, TxnResult

from .conftest import opened
from .proxy import LossyProxy
from .server import EtcdCluster

pytestmark = pytest.mark.needs("etcd")


async def test_a_batch_whose_answer_is_lost_is_answered_as_if_it_was_not(one: EtcdCluster) -> None:
    async with LossyProxy(one.urls[0]).running() as proxy, opened([proxy.url]) as engine:
        base = (await engine.commit(Txn(then=(Put(b"a", b"1"), Put(b"c", b"1"))))).revision
        (a,) = (await engine.range(b"a")).items
        proxy.lose = 2
        proxy.sent.clear()
        txns = [
            Txn(when=(Compare(b"a", "modify", "==", base),), then=(Put(b"a", b"2"), Get(b"a"))),
            Txn(when=(Compare(b"b", "create", "==", 0),), then=(Put(b"b", b"1"),)),
            Txn(when=(Compare(b"d", "value", "==", b""),), then=(Put(b"d", b"1"),)),
            Txn(when=(Compare(b"e", "version", ">", 0),), otherwise=(Delete(b"c", b"d"),)),
            Txn(then=(Delete(b"x"), Get(b"x", b"z"))),
            Txn(then=(Put(b"a", b"3"),)),
        ]
        answers = await asyncio.gather(*map(engine.commit, txns))
        batches = [body for path, body in proxy.sent if path == "/v3/kv/txn" and b"Put" not in body]
        assert batches[0] == batches[1], "the same batch again"
        assert answers == [
            TxnResult(True, base + 1, (None, (a,))),
            TxnResult(True, base + 1, (None,)),
            TxnResult(True, base + 1, (None,)),
            TxnResult(False, base + 1, (1,)),
            TxnResult(True, base + 1, (0, ())),
            TxnResult(True, base + 2, (None,)),
        ]
        page = await engine.range(b"a", b"z")
        assert [(r.key, r.value, r.version) for r in page.items] == [
            (b"a", b"3", 3),
            (b"b", b"1", 1),
            (b"d", b"1", 1),
        ]


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_one_alone_whose_answer_is_lost(one: EtcdCluster, lost: int) -> None:
    async with LossyProxy(one.urls[0]).running() as proxy, opened([proxy.url]) as engine:
        for name in (b"a", b"b", b"c"):
            base = await engine.read_index()
            create = Txn(when=(Compare(name, "create", "==", 0),), then=(Put(name, b"1"),))
            proxy.lose = lost
            assert await engine.commit(create) == TxnResult(True, base + 1, (None,))
            proxy.lose = lost
            again = await engine.commit(create)
            assert not again.succeeded
            (row,) = (await engine.range(name)).items
            assert row.version == 1


async def test_copies_that_come_late_change_nothing(one: EtcdCluster) -> None:
    (server,) = one.servers
    async with LossyProxy(one.urls[0]).running() as proxy, opened([proxy.url]) as engine:
        for count in range(30):
            proxy.lose = count % 2
            await asyncio.gather(
                *(engine.commit(Txn(then=(Put(b"%d" % i, b"%d" % count),))) for i in range(5))
            )
        before = await engine.range(b"\0", b"\xff")
        batches = [json.loads(body) for path, body in proxy.sent if path == "/v3/kv/txn"]
        batches = [batch for batch in batches if batch["compare"]]
        assert len(batches) > 30
        for batch in batches:
            assert not server.post("/v3/kv/txn", batch).get("succeeded")
        assert await engine.range(b"\0", b"\xff") == before
        assert {row.value for row in before.items} == {b"29"}
        assert {row.version for row in before.items} == {30}


async def test_a_batch_that_nobody_waits_for_any_more_cannot_come_late(one: EtcdCluster) -> None:
    """Held up on its way until the callers had gone, and sent again after the next was done."""
    (server,) = one.servers
    async with LossyProxy(one.urls[0]).running() as proxy, opened([proxy.url]) as engine:
        await engine.commit(Txn(then=(Put(b"a", b"1"),)))
        proxy.hold = asyncio.Event()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await engine.commit(Txn(then=(Put(b"a", b"late"),)))
        proxy.hold = None
        results = [await engine.commit(Txn(then=(Put(b"a", b"%d" % i),))) for i in range(4)]
        assert all(result.succeeded for result in results)
        late = [json.loads(body) for body in proxy.held]
        assert len(late) >= 2
        for body in late:
            assert not server.post("/v3/kv/txn", body).get("succeeded")
        (row,) = (await engine.range(b"a")).items
        assert row.value == b"3"


async def test_what_an_earlier_process_left_on_its_way_cannot_come(one: EtcdCluster) -> None:
    (server,) = one.servers
    async with LossyProxy(one.urls[0]).running() as proxy:
        async with opened([proxy.url], process_id="same") as engine:
            await engine.commit(Txn(then=(Put(b"a", b"1"),)))
            proxy.hold = asyncio.Event()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await engine.commit(Txn(then=(Put(b"a", b"late"),)))
            proxy.hold = None
        async with opened([proxy.url], process_id="same") as engine:
            for body in proxy.held:
                assert not server.post("/v3/kv/txn", json.loads(body)).get("succeeded")
            assert (await engine.range(b"a")).items[0].value == b"1"


async def test_two_processes_of_one_name_harm_nobody(one: EtcdCluster) -> None:
    """A copied data directory: both go on, and say so."""
    async with opened(one.urls) as first, opened(one.urls) as second:
        for i in range(5):
            for engine in (first, second):
                result = await engine.commit(Txn(then=(Put(b"%d" % i, b""),)))
                assert result.succeeded
        assert {row.version for row in (await first.range(b"\0", b"\xff")).items} == {2}


async def test_an_outcome_that_cannot_be_learned_is_unknown(
    one: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waypost.store.etcd.lanes.TIMEOUT_S", 1.0)
    async with LossyProxy(one.urls[0]).running() as proxy, opened([proxy.url]) as engine:
        proxy.lose = 10_000
        with pytest.raises(
            Unknown, match=r"whether it was applied could not be learned within 1 s"
        ):
            await engine.commit(Txn(then=(Put(b"a", b"1"),)))
        proxy.lose = 0
        assert (await engine.range(b"a")).items[0].version == 1
        one.servers[0].freeze()
        try:
            with pytest.raises(Unknown):
                await engine.commit(Txn(then=(Put(b"b", b"1"),)))
        finally:
            one.servers[0].thaw()
        one.servers[0].kill()
        with pytest.raises(NoLeader):
            await engine.commit(Txn(then=(Put(b"c", b"1"),)))


async def test_a_refused_member_does_not_spoil_the_batch(one: EtcdCluster) -> None:
    async with opened(one.urls) as engine:
        txns = [Txn(then=(Put(b"%03d" % i, b"", 77 if i == 40 else 0),)) for i in range(100)]
        txns[60] = Txn(then=(Put(b"large", b"x" * 2_000_000),))
        txns[70] = Txn(then=tuple(Put(b"many%d" % i, b"") for i in range(5000)))
        answers = await asyncio.gather(*map(engine.commit, txns), return_exceptions=True)
        wrong = {i: type(a) for i, a in enumerate(answers) if isinstance(a, Exception)}
        assert wrong == {40: NotFound, 60: TooLarge, 70: TooLarge}
        assert len((await engine.range(b"0", b"1")).items) == 97


async def test_other_peoples_keys_are_left_alone(one: EtcdCluster) -> None:
    (server,) = one.servers
    server.post("/v3/kv/put", {"key": "L3JlZ2lzdHJ5", "value": "e30="})
    async with opened(one.urls) as engine:
        watch = engine.watch(after=await engine.read_index())
        server.post("/v3/kv/put", {"key": "L3JlZ2lzdHJ5", "value": "e30="})
        batch = await anext(watch)
        assert [e.kv.key for e in batch.events] == [b"/registry"]
        await engine.commit(Txn(then=(Delete(b"n\0", b"n\1"), Put(b"k\0a", b""))))
        page = await engine.range(b"/", b"0")
        assert [row.version for row in page.items] == [2]
    found = server.post("/v3/kv/range", {"key": "AA==", "range_end": "AA==", "keys_only": True})
    assert len(found["kvs"]) == 4, "theirs, ours and two lanes"


async def test_an_etcd_with_its_own_limits(directory, caplog: pytest.LogCaptureFixture) -> None:
    """128 operations a transaction, as etcd has it by itself: batches shrink, and everybody is told once."""
    cluster = EtcdCluster(directory, flags=("--max-txn-ops", "128"))
    try:
        cluster.start()
        async with opened(cluster.urls) as engine:
            for _ in range(3):
                txns = [Txn(then=(Put(b"%03d" % i, b""),)) for i in range(500)]
                answers = await asyncio.gather(*map(engine.commit, txns))
                assert all(answer.succeeded for answer in answers)
            assert {r.version for r in (await engine.range(b"0", b"9")).items} == {3}
    finally:
        cluster.stop()
    assert 1 <= sum("--max-txn-ops 4096" in r.message for r in caplog.records) <= 5
