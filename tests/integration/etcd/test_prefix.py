"""Engines below a prefix of an etcd in which others write, and which others compact."""

import asyncio
import base64

import pytest

from waypost.store.engine import Compare, Get, Put, Txn

from .conftest import in_thread, opened, until

pytestmark = pytest.mark.needs("etcd")

OURS, THEIRS = b"/waypost/", b"/other/"


def b64(raw):
    return base64.b64encode(raw).decode()


def foreign(server, count=1, *, key=b"/registry/x"):
    """Let somebody else write; return the revision after it."""
    for number in range(count):
        answer = server.post("/v3/kv/put", {"key": b64(key), "value": b64(b"%d" % number)})
    return int(answer["header"]["revision"])


async def test_revisions_of_others_are_waited_for_by_nobody(one):
    (server,) = one.servers
    async with opened(one.urls, prefix=OURS) as engine:
        watch = engine.watch(after=await engine.read_index())
        first = await engine.commit(Txn(then=(Put(b"a", b"1"),)))
        there = await in_thread(lambda: foreign(server, 20))
        assert await engine.read_index() == first.revision < there
        lost = Txn(when=(Compare(b"a", "version", "==", 9),), then=(Put(b"a", b"2"),))
        answer = await engine.commit(lost)
        assert not answer.succeeded
        assert answer.revision == first.revision, "nobody's view would ever get further"
        second = await engine.commit(Txn(then=(Put(b"b", b"1"), Get(b"a", b"c"))))
        assert second.revision == there + 1
        rows = second.results[1]
        assert [row.key for row in rows] == [b"a"]
        async with asyncio.timeout(10):
            seen = [await anext(watch), await anext(watch)]
        assert [batch.revision for batch in seen] == [first.revision, second.revision]
        assert [row.key for row in (await engine.range(b"\0", b"\xff")).items] == [b"a", b"b"]
        assert (await engine.status()).keys == 2


async def test_two_prefixes_do_not_see_each_other(one):
    async with (
        opened(one.urls, prefix=OURS, process_id="p") as a,
        opened(one.urls, prefix=THEIRS, process_id="p") as b,
    ):
        await a.commit(Txn(then=(Put(b"k", b"a"),)))
        await b.commit(Txn(then=(Put(b"k", b"b"),)))
        assert (await a.range(b"k")).items[0].value == b"a"
        assert (await b.range(b"k")).items[0].value == b"b"
        both = {a: b"a", b: b"b"}
        for engine, value in both.items():
            found = (await engine.range(b"\0", b"\xff")).items
            assert [(row.key, row.value) for row in found] == [(b"k", value)]


async def test_a_read_covers_what_another_process_wrote(one):
    (server,) = one.servers
    async with (
        opened(one.urls, prefix=OURS, process_id="p") as a,
        opened(one.urls, prefix=OURS, process_id="q") as b,
    ):
        watch = b.watch(after=await b.read_index())
        for number in range(30):
            written = await a.commit(Txn(then=(Put(b"k", b"%d" % number),)))
            if number % 10 == 0:
                await in_thread(lambda: foreign(server))
            assert await b.read_index() >= written.revision
            async with asyncio.timeout(10):
                assert (await anext(watch)).events[0].kv.value == b"%d" % number


async def test_what_others_compact_and_a_watch_that_breaks(one, caplog):
    """A member that was away while others went on writing and compacting: the watch starts over, nothing is lost."""
    (server,) = one.servers
    async with opened(one.urls, prefix=OURS) as engine:
        await engine.commit(Txn(then=(Put(b"a", b"1"),)))
        there = await in_thread(lambda: foreign(server, 50))
        await in_thread(lambda: server.post("/v3/kv/compaction", {"revision": str(there)}))
        await in_thread(server.kill)
        await in_thread(one.start)
        await until(lambda: "watch starts over" in caplog.text, at_most_s=20)
        # From then on it goes on from what nobody can have compacted.
        answer = await engine.commit(Txn(then=(Put(b"a", b"2"),)))
        async with asyncio.timeout(20):
            watch = engine.watch(after=answer.revision)
            later = await engine.commit(Txn(then=(Put(b"a", b"3"),)))
            assert (await anext(watch)).revision == later.revision
