"""The kept revisions of an engine that is not alone in its store: some are none of ours."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.store.engine import Batch, Compacted
from waypost.store.etcd.feed import batches, span_of
from waypost.store.etcd.messages import WireEvent, WireKeyValue
from waypost.store.history import History


async def taken(watch, count):
    async with asyncio.timeout(5):
        return [(await anext(watch)).revision for _ in range(count)]


@given(
    st.sets(st.integers(11, 60), min_size=1),
    st.integers(5, 60),
    st.integers(5, 70),
    st.integers(1, 30),
)
def test_every_watcher_gets_what_is_left_or_is_told(revisions, after, before, keep):
    kept = sorted(revisions)

    async def run():
        history = History(keep_batches=keep)
        history.start(revision=10)
        for revision in kept:
            history.publish([Batch(revision, ())])
        history.compact(before=before)
        gone = [one for one in kept if one < before or one not in kept[-keep:]]
        wanted = [one for one in kept if one > after]
        watch = history.watch(after=after)
        if after < max([10, min(before - 1, kept[-1]), *gone]):
            with pytest.raises(Compacted):
                await anext(watch)
        else:
            assert await taken(watch, len(wanted)) == wanted

    asyncio.run(run())


async def test_revisions_that_were_forgotten_are_not_kept_for_ever():
    history = History(keep_batches=10)
    history.start(revision=0)
    for revision in range(2, 20_000, 2):
        history.publish([Batch(revision, ())])
    assert len(history._revisions) < 4096
    assert await taken(history.watch(after=19_990), 4) == [19_992, 19_994, 19_996, 19_998]


@pytest.mark.parametrize(
    ("prefix", "span"),
    [
        (b"", (b"\0", b"\0")),
        (b"/waypost/", (b"/waypost/", b"/waypost0")),
        (b"a\xff\xff", (b"a\xff\xff", b"b")),
        (b"\xff", (b"\xff", b"\0")),
    ],
)
def test_the_span_of_a_prefix(prefix, span):
    assert span_of(prefix) == span


def test_keys_come_without_their_prefix():
    events = [
        WireEvent(WireKeyValue(b"/w/_\0lane\0p\0\x30", b"x", 1, 4)),
        WireEvent(WireKeyValue(b"/w/k\0a", b"1", 4, 4, 1)),
        WireEvent(WireKeyValue(b"/w/k\0b", mod_revision=9), type="DELETE"),
    ]
    found = list(batches(events, after=3, skip=3))
    assert [(batch.revision, [event.kv.key for event in batch.events]) for batch in found] == [
        (4, [b"k\0a"]),
        (9, [b"k\0b"]),
    ]
