"""What every engine promises. Source: the docstrings of waypost.store.engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from waypost.base.errors import Malformed, NoLeader, NotFound, Unavailable
from waypost.store.engine import (
    Batch,
    Compacted,
    Compare,
    Delete,
    Engine,
    Event,
    Get,
    KeyValue,
    Operation,
    Put,
    Txn,
    TxnResult,
)

LAST = b"\xff" * 8


async def do(engine: Engine, *operations: Operation) -> TxnResult:
    return await engine.commit(Txn(then=operations))


async def put(engine: Engine, key: bytes, value: bytes = b"v", lease: int = 0) -> int:
    return (await do(engine, Put(key, value, lease))).revision


async def keys(engine: Engine, start: bytes = b"\0", end: bytes = LAST) -> list[bytes]:
    return [row.key for row in (await engine.range(start, end)).items]


async def row(engine: Engine, key: bytes) -> KeyValue | None:
    items = (await engine.range(key)).items
    return items[0] if items else None


async def take(watch: AsyncIterator[Batch], count: int) -> list[Batch]:
    """The next batches, within a time."""
    async with asyncio.timeout(5):
        return [await anext(watch) for _ in range(count)]


# -- transactions -----------------------------------------------------------------------------


async def test_a_new_key_has_the_revision_of_its_transaction_and_version_1(engine: Engine) -> None:
    before = await engine.read_index()
    revision = await put(engine, b"a", b"1")
    assert revision == before + 1
    assert await row(engine, b"a") == KeyValue(b"a", b"1", revision, revision, 1, 0)


async def test_overwriting_keeps_the_create_revision_and_counts_the_version(engine: Engine) -> None:
    first = await put(engine, b"a", b"1")
    second = await put(engine, b"a", b"2")
    third = await put(engine, b"a", b"2")
    assert (second, third) == (first + 1, first + 2)
    assert await row(engine, b"a") == KeyValue(b"a", b"2", first, third, 3, 0)


async def test_a_key_made_again_after_deletion_starts_afresh(engine: Engine) -> None:
    await put(engine, b"a")
    await put(engine, b"a")
    await do(engine, Delete(b"a"))
    revision = await put(engine, b"a")
    assert await row(engine, b"a") == KeyValue(b"a", b"v", revision, revision, 1, 0)


async def test_all_keys_of_a_transaction_share_its_revision(engine: Engine) -> None:
    result = await do(engine, Put(b"a", b"1"), Put(b"b", b"2"), Put(b"c", b"3"))
    assert result.results == (None, None, None)
    page = await engine.range(b"a", b"d")
    assert {item.modify_revision for item in page.items} == {result.revision} == {page.revision}


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        # key "k": created at base + 1, modified at base + 2, version 2, value b"m"
        (("k", "modify", "==", 2), True),
        (("k", "modify", "==", 1), False),
        (("k", "modify", "!=", 1), True),
        (("k", "modify", "!=", 2), False),
        (("k", "modify", "<", 3), True),
        (("k", "modify", "<", 2), False),
        (("k", "modify", ">", 1), True),
        (("k", "modify", ">", 2), False),
        (("k", "create", "==", 1), True),
        (("k", "create", "==", 2), False),
        (("k", "create", ">", 0), True),
        (("k", "version", "==", 2), True),
        (("k", "version", "!=", 2), False),
        (("k", "version", ">", 1), True),
        (("k", "version", "<", 2), False),
        (("k", "value", "==", b"m"), True),
        (("k", "value", "==", b"n"), False),
        (("k", "value", "!=", b"n"), True),
        (("k", "value", "<", b"n"), True),
        (("k", "value", "<", b"m"), False),
        (("k", "value", ">", b"l"), True),
        (("k", "value", ">", b"m\0"), False),
        (("missing", "modify", "==", 0), True),
        (("missing", "modify", ">", 0), False),
        (("missing", "create", "==", 0), True),
        (("missing", "create", "!=", 0), False),
        (("missing", "version", "==", 0), True),
        (("missing", "version", "<", 1), True),
        (("missing", "value", "==", b""), True),
        (("missing", "value", "!=", b""), False),
        (("missing", "value", "<", b"a"), True),
    ],
)
async def test_compare(
    engine: Engine, compare: tuple[str, str, str, int | bytes], expected: bool
) -> None:
    base = await engine.read_index()
    await put(engine, b"k", b"l")
    await put(engine, b"k", b"m")
    key, field, op, want = compare
    if isinstance(want, int) and want and field in ("modify", "create"):
        want += base
    txn = Txn(
        when=(Compare(key.encode(), field, op, want),),  # type: ignore[arg-type]
        then=(Put(b"out", b"then"),),
        otherwise=(Put(b"out", b"otherwise"),),
    )
    result = await engine.commit(txn)
    assert result.succeeded is expected
    out = await row(engine, b"out")
    assert out is not None
    assert out.value == (b"then" if expected else b"otherwise")


async def test_all_compares_must_hold(engine: Engine) -> None:
    revision = await put(engine, b"a")
    good = Compare(b"a", "modify", "==", revision)
    bad = Compare(b"b", "modify", ">", 0)
    assert (await engine.commit(Txn(when=(good, good)))).succeeded
    assert not (await engine.commit(Txn(when=(good, bad)))).succeeded
    assert not (await engine.commit(Txn(when=(bad, good)))).succeeded


async def test_a_transaction_reads_as_of_its_start(engine: Engine) -> None:
    revision = await put(engine, b"a", b"old")
    result = await do(
        engine, Put(b"a", b"new"), Get(b"a"), Get(b"b"), Put(b"b", b"1"), Get(b"a", b"z")
    )
    old = KeyValue(b"a", b"old", revision, revision)
    assert result.results == (None, (old,), (), None, (old,))


async def test_results_count_what_was_deleted(engine: Engine) -> None:
    for key in (b"a1", b"a2", b"a3", b"b"):
        await put(engine, key)
    result = await do(engine, Delete(b"a2"), Delete(b"a", b"b"), Delete(b"missing"), Put(b"c", b""))
    assert result.results == (1, 2, 0, None)
    assert await keys(engine) == [b"b", b"c"]


async def test_the_end_of_a_deleted_range_stays(engine: Engine) -> None:
    for key in (b"a", b"b", b"c"):
        await put(engine, key)
    await do(engine, Delete(b"a", b"c"))
    assert await keys(engine) == [b"c"]


@pytest.mark.parametrize(
    "txn",
    [
        Txn(),
        Txn(then=(Delete(b"missing"),)),
        Txn(then=(Delete(b"m", b"z"),)),
        Txn(then=(Get(b"a"),)),
        Txn(when=(Compare(b"a", "modify", "==", 0),), then=(Put(b"a", b""),)),
        Txn(when=(Compare(b"b", "version", "==", 1),), otherwise=(Delete(b"b"), Get(b"a", b"c"))),
    ],
)
async def test_nothing_changed_leaves_the_revision(engine: Engine, txn: Txn) -> None:
    revision = await put(engine, b"a")
    assert (await engine.commit(txn)).revision == revision
    assert await engine.read_index() == revision
    assert (await row(engine, b"a")) == KeyValue(b"a", b"v", revision, revision)


@pytest.mark.parametrize(
    "operations",
    [
        (Put(b"a", b"1"), Put(b"a", b"2")),
        (Put(b"a", b"1"), Delete(b"a")),
        (Delete(b"a"), Delete(b"a")),
        (Put(b"a", b"1"), Delete(b"a", b"b")),
        (Delete(b"\0", LAST), Get(b"a"), Put(b"a", b"1")),
        (Put(b"", b"1"),),
        (Put(b"a", b"1", -1),),
    ],
)
async def test_what_cannot_be_meant_is_refused(
    engine: Engine, operations: tuple[Operation, ...]
) -> None:
    revision = await put(engine, b"z")
    for txn in (Txn(then=operations), Txn(otherwise=operations)):
        with pytest.raises(Malformed):
            await engine.commit(txn)
    assert await keys(engine) == [b"z"]
    assert await engine.read_index() == revision


@pytest.mark.parametrize(
    "compare",
    [
        Compare(b"a", "value", "==", 1),
        Compare(b"a", "modify", "==", b"1"),
        Compare(b"a", "lease", "==", 1),  # type: ignore[arg-type]
        Compare(b"a", "modify", ">=", 1),  # type: ignore[arg-type]
    ],
)
async def test_a_compare_of_the_wrong_kind_is_refused(engine: Engine, compare: Compare) -> None:
    with pytest.raises(Malformed, match="compare of key b'a'"):
        await engine.commit(Txn(when=(compare,)))


async def test_values_are_kept_byte_for_byte(engine: Engine) -> None:
    every = bytes(range(256))
    values = [b"", b"\0", every, b"\xff" * 3, "ü€😀".encode(), b"x" * 600_000]
    await do(engine, *(Put(b"k%d" % i, value) for i, value in enumerate(values)))
    assert [item.value for item in (await engine.range(b"k", b"l")).items] == values
    await put(engine, every, b"1")
    assert (await row(engine, every)) is not None


# -- ranges -----------------------------------------------------------------------------------

ORDERED = [b"\0", b"\0\0", b"A", b"a", b"a\0", b"a\0b", b"aa", b"b", b"b\x7f", b"b\xff", b"c", b"\xc3\xa4", b"\xff", b"\xff\xff"]  # fmt: skip


async def test_keys_come_in_bytewise_order(engine: Engine) -> None:
    await do(engine, *(Put(key, key) for key in reversed(ORDERED)))
    assert await keys(engine, b"") == ORDERED == sorted(ORDERED)


@pytest.mark.parametrize(
    ("start", "end"),
    [(b"", b"\0"), (b"a", b"a"), (b"a", b"b"), (b"b", b"a"), (b"b", b"b\xff"), (b"d", b"e"), (b"\xff", b"\xff\xff"), (b"\0", LAST)],
)  # fmt: skip
async def test_a_range_is_half_open(engine: Engine, start: bytes, end: bytes) -> None:
    await do(engine, *(Put(key, key) for key in ORDERED))
    expected = [key for key in ORDERED if start <= key < end]
    assert await keys(engine, start, end) == expected
    (got,) = (await do(engine, Get(start, end))).results
    assert [item.key for item in got] == expected  # type: ignore[union-attr]
    assert (await do(engine, Delete(start, end))).results == (len(expected),)
    assert await keys(engine, b"") == [key for key in ORDERED if key not in expected]


@pytest.mark.parametrize(
    ("limit", "count", "more"), [(0, 5, False), (1, 1, True), (4, 4, True), (5, 5, False), (6, 5, False)]
)  # fmt: skip
async def test_a_limit_says_whether_there_is_more(
    engine: Engine, limit: int, count: int, more: bool
) -> None:
    await do(engine, *(Put(b"k%d" % i, b"") for i in range(5)))
    page = await engine.range(b"k", b"l", limit=limit)
    assert [item.key for item in page.items] == [b"k%d" % i for i in range(count)]
    assert page.more is more


async def test_a_missing_key_is_an_empty_page_at_the_revision(engine: Engine) -> None:
    revision = await put(engine, b"a")
    page = await engine.range(b"b")
    assert (page.items, page.more, page.revision) == ((), False, revision)


async def test_many_keys(engine: Engine) -> None:
    names = [b"%05d" % (i * 7919 % 5000) for i in range(5000)]
    for at in range(0, 5000, 500):
        await do(engine, *(Put(name, b"") for name in names[at : at + 500]))
    assert await keys(engine) == sorted(names)
    await do(engine, Delete(b"01000", b"04000"))
    assert await keys(engine) == sorted(n for n in names if not b"01000" <= n < b"04000")
    assert (await engine.status()).keys == 2000


async def test_a_range_is_of_one_revision_beside_writes(engine: Engine) -> None:
    await do(engine, Put(b"a", b"0"), Put(b"b", b"0"))
    stop = False

    async def write() -> None:
        count = 0
        while not stop:
            count += 1
            value = b"%d" % count
            await do(engine, Put(b"a", value), Put(b"b", value))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tg:
        tg.create_task(write())
        last = 0
        for _ in range(100):
            page = await engine.range(b"a", b"c")
            a, b = page.items
            assert a.value == b.value
            assert a.modify_revision == b.modify_revision == page.revision >= last
            last = page.revision
            await asyncio.sleep(0)
        stop = True


# -- watching ---------------------------------------------------------------------------------


async def fill(engine: Engine) -> tuple[int, list[Batch]]:
    """Six revisions of several kinds; returns the revision before them, and what they are."""
    base = await engine.read_index()
    await do(engine, Put(b"a", b"1"), Put(b"b", b"1"))
    await put(engine, b"a", b"2")
    await do(engine, Delete(b"a"), Put(b"c", b"1"))
    await put(engine, b"a", b"3")
    await do(engine, Get(b"a"))
    await do(engine, Delete(b"a", b"c"))
    await do(engine, Delete(b"zz"))
    await put(engine, b"d", b"")
    r = base
    gone = [Event("delete", KeyValue(key, b"", 0, r + 5, 0)) for key in (b"a", b"b")]
    return base, [
        Batch(r + 1, (Event("put", KeyValue(b"a", b"1", r + 1, r + 1)), Event("put", KeyValue(b"b", b"1", r + 1, r + 1)))),
        Batch(r + 2, (Event("put", KeyValue(b"a", b"2", r + 1, r + 2, 2)),)),
        Batch(r + 3, (Event("delete", KeyValue(b"a", b"", 0, r + 3, 0)), Event("put", KeyValue(b"c", b"1", r + 3, r + 3)))),
        Batch(r + 4, (Event("put", KeyValue(b"a", b"3", r + 4, r + 4)),)),
        Batch(r + 5, tuple(gone)),
        Batch(r + 6, (Event("put", KeyValue(b"d", b"", r + 6, r + 6)),)),
    ]  # fmt: skip


@pytest.mark.parametrize("skip", range(7))
async def test_watch_from_each_revision(engine: Engine, skip: int) -> None:
    base, expected = await fill(engine)
    watch = engine.watch(after=base + skip)
    assert await take(watch, 6 - skip) == expected[skip:]
    revision = await put(engine, b"e", b"new")
    assert await take(watch, 1) == [
        Batch(revision, (Event("put", KeyValue(b"e", b"new", revision, revision)),))
    ]


async def test_a_watch_that_waits_is_woken_and_reads_agree_with_it(engine: Engine) -> None:
    base = await engine.read_index()
    seen: list[Batch] = []

    async def follow() -> None:
        async for batch in engine.watch(after=base):
            seen.append(batch)
            page = await engine.range(b"\0", LAST)
            assert page.revision >= batch.revision

    async with asyncio.TaskGroup() as tg:
        task = tg.create_task(follow())
        for i in range(20):
            await put(engine, b"k%d" % (i % 3), b"%d" % i)
            await asyncio.sleep(0.001 if i % 4 else 0)
        async with asyncio.timeout(5):
            while len(seen) < 20:
                await asyncio.sleep(0.001)
        task.cancel()
    assert [batch.revision for batch in seen] == list(range(base + 1, base + 21))


async def test_a_watch_of_the_future_starts_there(engine: Engine) -> None:
    base = await engine.read_index()
    watch = engine.watch(after=base + 2)
    for i in range(4):
        await put(engine, b"%d" % i)
    assert [batch.revision for batch in await take(watch, 2)] == [base + 3, base + 4]


async def test_watchers_are_independent(engine: Engine) -> None:
    base, expected = await fill(engine)
    watches = [engine.watch(after=base) for _ in range(3)]
    assert await take(watches[0], 2) == expected[:2]
    waiting = asyncio.ensure_future(take(engine.watch(after=base + 6), 1))
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert await take(watches[1], 6) == expected
    assert await take(watches[0], 4) == expected[2:]
    assert await take(watches[2], 6) == expected


async def test_a_slow_watcher_gets_compacted_and_stalls_nobody(engine: Engine) -> None:
    base = await put(engine, b"a")
    await put(engine, b"a")
    slow = engine.watch(after=base)
    assert len(await take(slow, 1)) == 1
    for _ in range(200):
        await put(engine, b"a")
    with pytest.raises(Compacted):
        await take(slow, 200)
    revision = await engine.read_index()
    assert revision == base + 201
    with pytest.raises(Compacted):
        await take(engine.watch(after=base), 1)
    (batch,) = await take(engine.watch(after=revision - 1), 1)
    assert batch.revision == revision


async def test_compact_forgets_what_is_before(engine: Engine) -> None:
    base, expected = await fill(engine)
    await engine.compact(before=base + 4)
    for skip in (0, 1, 2):
        with pytest.raises(Compacted):
            await take(engine.watch(after=base + skip), 1)
    for skip in (3, 4, 5):
        assert await take(engine.watch(after=base + skip), 6 - skip) == expected[skip:]
    await engine.compact(before=base + 2)
    assert (await engine.status()).compacted == base + 3
    assert await keys(engine) == [b"c", b"d"]


async def test_compact_reaches_a_watcher_that_is_behind(engine: Engine) -> None:
    base, _ = await fill(engine)
    watch = engine.watch(after=base)
    await take(watch, 2)
    await engine.compact(before=base + 6)
    with pytest.raises(Compacted):
        await take(watch, 1)


async def test_compacting_everything_leaves_watchers_that_are_current(engine: Engine) -> None:
    base, _ = await fill(engine)
    watch = engine.watch(after=base + 6)
    waiting = asyncio.ensure_future(take(watch, 1))
    await asyncio.sleep(0)
    await engine.compact(before=base + 7)
    await asyncio.sleep(0)
    revision = await put(engine, b"e")
    assert [batch.revision for batch in await waiting] == [revision] == [base + 7]


# -- leases -----------------------------------------------------------------------------------
# `clock` is the engine's clock.


async def test_keys_vanish_with_their_lease_in_one_revision(engine: Engine, clock) -> None:
    lease = await engine.grant(ttl_s=10)
    await put(engine, b"stays")
    for key in (b"b", b"a"):
        await put(engine, key, b"v", lease)
    found = await row(engine, b"a")
    assert found is not None
    assert found.lease == lease
    before = await engine.read_index()
    await clock.move(9.9)
    assert await engine.read_index() == before
    await clock.move(0.2)
    assert await keys(engine) == [b"stays"]
    (batch,) = await take(engine.watch(after=before), 1)
    assert [(e.kind, e.kv.key) for e in batch.events] == [("delete", b"a"), ("delete", b"b")]
    assert await engine.read_index() == before + 1
    with pytest.raises(NotFound):
        await engine.keep_alive(lease)
    with pytest.raises(NotFound):
        await put(engine, b"c", b"v", lease)
    assert await engine.read_index() == before + 1


async def test_keep_alive_starts_the_ttl_again(engine: Engine, clock) -> None:
    lease = await engine.grant(ttl_s=10)
    await put(engine, b"a", b"v", lease)
    for _ in range(3):
        await clock.move(8)
        assert await engine.keep_alive(lease) == 10
    await clock.move(9)
    assert await keys(engine) == [b"a"]
    await clock.move(2)
    assert await keys(engine) == []


async def test_leases_are_independent(engine: Engine, clock) -> None:
    short, long = await engine.grant(ttl_s=5), await engine.grant(ttl_s=20)
    assert short != long
    await put(engine, b"short", b"v", short)
    await put(engine, b"long", b"v", long)
    await clock.move(6)
    assert await keys(engine) == [b"long"]
    await clock.move(15)
    assert await keys(engine) == []


async def test_revoke_deletes_the_keys_in_one_revision(engine: Engine) -> None:
    lease = await engine.grant(ttl_s=60)
    before = (
        await do(engine, Put(b"a", b"", lease), Put(b"b", b"", lease), Put(b"c", b""))
    ).revision
    await engine.revoke(lease)
    assert await keys(engine) == [b"c"]
    assert await engine.read_index() == before + 1
    await engine.revoke(lease)
    await engine.revoke(987654)
    assert await engine.read_index() == before + 1
    with pytest.raises(NotFound):
        await engine.keep_alive(lease)


async def test_a_lease_without_keys_ends_without_a_revision(engine: Engine, clock) -> None:
    before = await engine.read_index()
    lease = await engine.grant(ttl_s=5)
    await clock.move(6)
    with pytest.raises(NotFound):
        await engine.keep_alive(lease)
    await engine.revoke(await engine.grant(ttl_s=5))
    assert await engine.read_index() == before


async def test_the_last_put_decides_the_lease(engine: Engine) -> None:
    one, two = await engine.grant(ttl_s=60), await engine.grant(ttl_s=60)
    await put(engine, b"freed", b"", one)
    await put(engine, b"freed", b"")
    await put(engine, b"moved", b"", one)
    await put(engine, b"moved", b"", two)
    await put(engine, b"made again", b"", one)
    await do(engine, Delete(b"made again"))
    await put(engine, b"made again", b"")
    await engine.revoke(one)
    assert await keys(engine) == [b"freed", b"made again", b"moved"]
    await engine.revoke(two)
    assert await keys(engine) == [b"freed", b"made again"]


async def test_an_unknown_lease_refuses_the_whole_transaction(engine: Engine) -> None:
    before = await engine.read_index()
    with pytest.raises(NotFound, match="lease 4711"):
        await do(engine, Put(b"a", b""), Put(b"b", b"", 4711))
    assert await keys(engine) == []
    assert await engine.read_index() == before


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf")])
async def test_a_lease_needs_a_ttl(engine: Engine, ttl_s: float) -> None:
    with pytest.raises(Malformed, match="TTL"):
        await engine.grant(ttl_s=ttl_s)


# -- concurrency ------------------------------------------------------------------------------


async def test_64_callers_compare_and_set_one_counter(engine: Engine) -> None:
    await put(engine, b"n", b"0")
    before = await engine.read_index()
    lost = 0

    async def add(times: int) -> None:
        nonlocal lost
        while times:
            current = await row(engine, b"n")
            assert current is not None
            await asyncio.sleep(0)
            result = await engine.commit(
                Txn(
                    when=(Compare(b"n", "modify", "==", current.modify_revision),),
                    then=(Put(b"n", b"%d" % (int(current.value) + 1)),),
                )
            )
            times -= result.succeeded
            lost += not result.succeeded

    async with asyncio.timeout(60), asyncio.TaskGroup() as tg:
        for _ in range(64):
            tg.create_task(add(3))
    assert (await row(engine, b"n")).value == b"192"  # type: ignore[union-attr]
    assert await engine.read_index() == before + 192
    assert lost, "the callers never got in each other's way"


async def test_concurrent_writes_get_revisions_without_gap_or_duplicate(
    engine: Engine, grouped: bool
) -> None:
    base = await engine.read_index()
    results = await asyncio.gather(*(put(engine, b"%d" % i) for i in range(100)))
    if grouped:  # several share a revision, and there is still no gap
        assert sorted(set(results)) == list(range(base + 1, max(results) + 1))
        assert len(set(results)) < 100
    else:
        assert sorted(results) == list(range(base + 1, base + 101))
    modified = {item.modify_revision for item in (await engine.range(b"\0", LAST)).items}
    assert modified == set(results)


async def test_one_failing_transaction_does_not_touch_its_neighbours(
    engine: Engine, grouped: bool
) -> None:
    base = await engine.read_index()
    never = Compare(b"missing", "version", ">", 0)
    txns = [
        Txn(when=(never,), then=(Put(b"%d" % i, b""),)) if i % 3 == 0 else Txn(then=(Put(b"%d" % i, b"", i % 3 - 1),))
        for i in range(60)
    ]  # fmt: skip
    answers = await asyncio.gather(*map(engine.commit, txns), return_exceptions=True)
    for i, answer in enumerate(answers):
        if i % 3 == 0:
            assert isinstance(answer, TxnResult)
            assert not answer.succeeded
        elif i % 3 == 1:
            assert isinstance(answer, TxnResult)
            assert answer.succeeded
        else:
            assert isinstance(answer, NotFound)
    assert len(await keys(engine)) == 20
    if not grouped:
        assert await engine.read_index() == base + 20


async def test_callers_at_the_same_time_see_each_other_in_order(engine: Engine) -> None:
    """Only the first of many that create the same key can win, and a delete of it is seen by the next."""
    create = Txn(when=(Compare(b"k", "create", "==", 0),), then=(Put(b"k", b""), Get(b"a", b"z")))
    delete = Txn(then=(Delete(b"a", b"z"),))
    answers = await asyncio.gather(*map(engine.commit, [create, create, delete, create, delete, delete]))  # fmt: skip
    assert [a.succeeded for a in answers] == [True, False, True, True, True, True]
    assert [a.results for a in answers] == [(None, ()), (), (1,), (None, ()), (1,), (0,)]


async def test_a_cancelled_caller_leaves_the_engine_well(engine: Engine, grouped: bool) -> None:
    tasks = [asyncio.ensure_future(put(engine, b"%d" % i)) for i in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kept = [r for r in results if isinstance(r, int)]
    assert len(kept) >= 25
    assert grouped or len(set(kept)) == len(kept)
    last = await put(engine, b"last")
    assert last == await engine.read_index() > max(kept)


# -- reading, opening, closing ----------------------------------------------------------------


async def test_read_index_covers_every_acknowledged_write(engine: Engine) -> None:
    for i in range(5):
        revision = await put(engine, b"%d" % i)
        assert await engine.read_index() >= revision
        assert (await engine.range(b"%d" % i)).revision >= revision


async def test_status(engine: Engine) -> None:
    await do(engine, Put(b"a", b"1"), Put(b"b", b"2"))
    await do(engine, Put(b"a", b"3"), Delete(b"b"), Put(b"c", b""))
    status = await engine.status()
    assert status.engine
    assert status.revision == await engine.read_index()
    assert status.keys == 2
    assert status.size_bytes > 0
    assert status.leader
    assert status.has_quorum


async def test_the_first_revision_is_above_0(engine: Engine) -> None:
    """Consul's clients take index 0 for "not set", so no state may have it."""
    assert await engine.read_index() >= 1


async def everything(engine: Engine) -> None:
    for call in (
        engine.commit(Txn(then=(Put(b"a", b""),))),
        engine.range(b"a"),
        engine.read_index(),
        engine.compact(before=1),
        engine.grant(ttl_s=5),
        engine.keep_alive(1),
        engine.revoke(1),
    ):
        with pytest.raises(Unavailable):
            await call
    with pytest.raises(NoLeader):
        await engine.read_index()


async def test_before_open_nothing_works(unopened: Engine) -> None:
    await everything(unopened)
    with pytest.raises(Unavailable):
        await anext(unopened.watch(after=0))


async def test_after_close_nothing_works_and_closing_twice_is_fine(engine: Engine) -> None:
    await put(engine, b"a")
    await engine.close()
    await engine.close()
    await everything(engine)
    assert not (await engine.status()).leader
    with pytest.raises(Unavailable):
        await anext(engine.watch(after=0))


async def test_opening_twice_is_refused(engine: Engine) -> None:
    await put(engine, b"a")
    with pytest.raises(Unavailable, match="open already"):
        await engine.open()
    assert await keys(engine) == [b"a"]


async def test_close_ends_watches_after_the_last_revision(engine: Engine) -> None:
    base = await engine.read_index()
    behind, current = engine.watch(after=base), engine.watch(after=base + 3)
    waiting = asyncio.ensure_future(anext(current, None))
    for i in range(3):
        await put(engine, b"%d" % i)
    await asyncio.sleep(0)
    await engine.close()
    async with asyncio.timeout(5):
        assert await waiting is None
        assert [batch.revision async for batch in behind] == [base + 1, base + 2, base + 3]


async def test_close_finishes_what_was_accepted(engine: Engine, grouped: bool) -> None:
    writes = [asyncio.ensure_future(put(engine, b"%d" % i)) for i in range(200)]
    await asyncio.sleep(0)
    await engine.close()
    async with asyncio.timeout(5):
        revisions = [await write for write in writes]
        assert grouped or len(set(revisions)) == 200


async def test_it_can_be_opened_again(engine: Engine) -> None:
    await put(engine, b"a")
    await engine.close()
    await engine.open()
    status = await engine.status()
    assert await keys(engine) == ([b"a"] if status.durable else [])
    base = await engine.read_index()
    watch = engine.watch(after=base)
    assert await put(engine, b"b") == base + 1
    assert [batch.revision for batch in await take(watch, 1)] == [base + 1]
