"""Ring, retry, frames and the order of servers."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import Malformed, NoLeader, Unavailable, Unknown
from waypost.store.engine import Batch, Compacted, Compare, Delete, Event, Get, KeyValue, Put, Txn
from waypost.store.evaluate import evaluate
from waypost.store.keyspace import KeySpace
from waypost.store.remote.protocol import (
    Change,
    End,
    Frames,
    Progress,
    RangeStart,
    Rows,
    decode_txns,
    encode_txn,
    error_of,
    frame,
    join_txns,
)
from waypost.store.remote.retry import is_repeatable
from waypost.store.remote.ring import Ring
from waypost.store.remote.servers import Servers, Tour


def batch(revision: int, size: int = 1) -> Batch:
    return Batch(revision, (Event("put", KeyValue(b"k", b"v" * size, revision, revision)),))


# -- ring --------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 5), max_size=60),
    st.integers(1, 10),
    st.integers(0, 200),
    st.integers(0, 200),
)
def test_a_follower_gets_everything_after_its_position_or_is_told(
    steps: list[int], keep: int, before: int, after: int
) -> None:
    """Whatever was published with whatever gaps, and whatever was forgotten."""
    ring = Ring(keep_batches=keep)
    ring.start(revision=1)
    published: list[int] = []
    revision = 1
    for step in steps:
        revision += step
        published.append(revision)
        ring.publish(batch(revision))
    ring.compact(before=before)
    wanted = [one for one in published if one > after]
    try:
        got = [one.revision for one in ring.take(after=after, at_most=1000)]
    except Compacted:
        # Only who would have missed something, or asks for what was before the ring began.
        kept = published[-keep:] if published else []
        assert wanted[: len(wanted) - len(kept)] or after < 1 or after < min(before - 1, revision)
    else:
        assert got == wanted


def test_a_ring_keeps_no_more_bytes_than_it_may() -> None:
    ring = Ring(keep_bytes=5000)
    ring.start(revision=1)
    for n in range(2, 50):
        ring.publish(batch(n, size=1000))
    assert 2 <= len(ring.take(after=ring.compacted, at_most=100)) <= 4
    ring.publish(batch(50, size=100_000))
    assert [one.revision for one in ring.take(after=49)] == [50]


def test_what_is_not_newer_is_not_published_again() -> None:
    ring = Ring()
    ring.start(revision=5)
    for revision in (4, 5, 7, 6, 7, 8):
        ring.publish(batch(revision))
    assert [one.revision for one in ring.take(after=5)] == [7, 8]


async def test_a_ring_that_starts_over_sends_its_followers_away() -> None:
    ring = Ring()
    with pytest.raises(Unavailable):
        ring.watch(after=0)
    ring.start(revision=5)
    watch = ring.watch(after=5)
    ring.publish(batch(6))
    assert (await anext(watch)).revision == 6
    ring.start(revision=3)
    ring.publish(batch(7))
    with pytest.raises(Compacted):
        await anext(watch)
    later = ring.watch(after=3)
    ring.end()
    assert [one.revision async for one in later] == [7]


# -- retry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("txn", "expected"),
    [
        (Txn(), True),
        (Txn(then=(Get(b"a"),)), True),
        (Txn(when=(Compare(b"a", "modify", "==", 7),), then=(Put(b"a", b""),)), True),
        (Txn(when=(Compare(b"a", "modify", "==", 0),), then=(Put(b"a", b""),)), True),
        (Txn(when=(Compare(b"a", "modify", "==", 7),), then=(Delete(b"a"),)), True),
        (Txn(when=(Compare(b"a", "modify", "==", 7),), then=(Delete(b"a"), Put(b"b", b""))), True),
        (Txn(when=(Compare(b"a", "modify", "==", 0),), then=(Delete(b"a"),)), False),
        (Txn(when=(Compare(b"a", "modify", "==", 7),), then=(Put(b"b", b""),)), False),
        (Txn(when=(Compare(b"a", "modify", ">", 7),), then=(Put(b"a", b""),)), False),
        (Txn(when=(Compare(b"a", "version", "==", 7),), then=(Put(b"a", b""),)), False),
        (Txn(when=(Compare(b"a", "value", "==", b""),), then=(Put(b"a", b""),)), False),
        (Txn(then=(Put(b"a", b""),)), False),
        (Txn(when=(Compare(b"a", "modify", "==", 7),), then=(Delete(b"a", b"b"),)), False),
        (
            Txn(when=(Compare(b"a", "modify", "==", 7),), then=(Put(b"a", b""),), otherwise=(Put(b"b", b""),)),
            False,
        ),
    ],
)  # fmt: skip
def test_what_may_be_sent_again(txn: Txn, expected: bool) -> None:
    assert is_repeatable(txn) is expected


KEYS = st.sampled_from([b"a", b"b", b"c"])
COMPARES = st.builds(
    Compare, KEYS, st.sampled_from(["modify", "create", "version"]), st.sampled_from(["==", "!=", "<", ">"]), st.integers(0, 5)
)  # fmt: skip
PUTS = st.builds(Put, KEYS, st.sampled_from([b"", b"1"]))
OPERATIONS = st.lists(PUTS | st.builds(Delete, KEYS), max_size=3, unique_by=lambda o: o.key)
TXNS = st.builds(
    Txn, st.lists(COMPARES, max_size=3).map(tuple), OPERATIONS.map(tuple), OPERATIONS.map(tuple)
)


@given(st.lists(TXNS, max_size=8), TXNS)
def test_what_is_sent_again_changes_nothing_the_second_time(before: list[Txn], txn: Txn) -> None:
    """In any state that a store can be in, a repeatable transaction applied at once again has no effect."""
    rows, revision = KeySpace(), 1

    def apply(one: Txn) -> int:
        nonlocal revision
        _, events = evaluate(one, rows, revision=revision, leases=())
        for event in events:
            rows.put(event.kv) if event.kind == "put" else rows.remove(event.kv.key)
        revision += bool(events)
        return len(events)

    for one in before:
        apply(one)
    if apply(txn) and is_repeatable(txn):
        assert not apply(txn)


# -- frames ------------------------------------------------------------------------------------------------------------

ROWS = st.builds(KeyValue, st.binary(), st.binary(), st.integers(0), st.integers(0))
MESSAGES = st.one_of(
    st.builds(RangeStart, st.integers(0, 2**62), st.booleans(), st.booleans()),
    st.builds(Progress, st.integers(0, 2**62), st.booleans(), st.booleans()),
    st.just(End()),
    st.just(Change(batch(7))),
    st.just(Rows((KeyValue(b"\xff", bytes(range(256)), 1, 2, 3, 4),))),
)


@given(st.lists(MESSAGES, max_size=8), st.lists(st.integers(1, 40), min_size=1))
def test_frames_in_any_pieces(messages: list, sizes: list[int]) -> None:
    data = b"".join(map(frame, messages))
    frames, got, at, n = Frames(), [], 0, 0
    while at < len(data):
        size = sizes[n % len(sizes)]
        got += frames.feed(data[at : at + size])
        at, n = at + size, n + 1
    assert got == messages


@given(st.binary(max_size=60))
def test_garbage_is_malformed_or_incomplete(data: bytes) -> None:
    with suppress(Malformed):
        list(Frames().feed(data))
    with suppress(Malformed):
        decode_txns(data)


@given(st.lists(TXNS, max_size=5))
def test_transactions_arrive_as_they_were_sent(txns: list[Txn]) -> None:
    assert decode_txns(join_txns([encode_txn(txn) for txn in txns])) == txns


def test_what_cannot_be_sent_is_malformed() -> None:
    with pytest.raises(Malformed):
        encode_txn(Txn(when=(Compare(b"a", "modify", "==", 2**70),)))


def test_an_error_of_an_unknown_code_may_have_happened_at_any_point() -> None:
    assert type(error_of("compacted", "x")) is Compacted
    assert type(error_of("of a later version", "x")) is Unknown


# -- servers -----------------------------------------------------------------------------------------------------------


class Clock:
    at = 100.0

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return self.at


def test_the_one_that_answered_comes_first_and_one_that_failed_rests() -> None:
    clock, known = Clock(), ["a", "b", "c"]
    servers = Servers(lambda: known, clock=clock, rng=random.Random(7))
    first, second, third = servers.order()
    assert servers.rest_s() == 0
    servers.worked(third)
    assert servers.order() == [third, first, second]
    servers.failed(third)
    assert servers.order() == [first, second, third]
    servers.failed(first)
    servers.failed(second)
    clock.at += 0.5
    assert servers.rest_s() == 1.5
    clock.at += 1.5
    assert servers.rest_s() == 0
    known.remove(first)
    known.append("d")
    assert set(servers.order()) == {second, third, "d"}


def test_clients_spread_over_the_servers() -> None:
    firsts = {
        Servers(lambda: ["a", "b", "c"], clock=Clock(), rng=random.Random(n)).order()[0]
        for n in range(30)
    }
    assert firsts == {"a", "b", "c"}


async def test_a_tour_ends_when_every_server_said_that_it_has_no_quorum() -> None:
    servers = Servers(lambda: ["a", "b"], clock=Clock(), rng=random.Random(1))
    tour = Tour(servers, clock=Clock(), total_s=100)
    asked = []
    while (address := await tour.next()) is not None:
        asked.append(address)
        tour.failed(address, NoLeader("no leader"))
    assert sorted(asked) == ["a", "b"]
    assert str(tour.error()) == "no leader"
