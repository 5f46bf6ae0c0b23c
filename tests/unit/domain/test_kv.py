"""The key/value store's rules."""

import asyncio

import pytest

from waypost.base.errors import Rejected, TooLarge
from waypost.domain.blocking import wait_limit, wait_past
from waypost.domain.kv import PutKey


async def put(domain, key, value=b"", **more):
    return await domain.kv.put(domain.actor, PutKey(key=key, value=value, **more))


async def test_cas_writes_only_on_the_index_it_names(domain):
    assert not await put(domain, "a", cas=7)
    assert await put(domain, "a", b"1", cas=0)
    assert not await put(domain, "a", b"2", cas=0)
    index = domain.view.kv("a").modify_index
    assert await put(domain, "a", b"2", cas=index)
    assert not await domain.kv.delete(domain.actor, "a", cas=index)
    assert await domain.kv.delete(domain.actor, "a", cas=index + 1)
    assert await domain.kv.delete(domain.actor, "a", cas=99)


async def test_an_equal_write_moves_no_index(domain):
    await put(domain, "a", b"1", flags=3)
    revision = domain.view.revision
    assert await put(domain, "a", b"1", flags=3)
    assert domain.view.revision == revision
    await put(domain, "a", b"1", flags=4)
    assert domain.view.revision == revision + 1


async def test_prefixes_are_text_not_folders(domain):
    for key in ("tree", "tree/a", "treeish", "x"):
        await put(domain, key)
    assert [entry.key for entry in domain.kv.below(domain.actor, "tree")] == [
        "tree",
        "tree/a",
        "treeish",
    ]
    await domain.kv.delete_below(domain.actor, "tree/")
    assert [entry.key for entry in domain.kv.below(domain.actor, "")] == ["tree", "treeish", "x"]
    await domain.kv.delete_below(domain.actor, "")
    assert domain.kv.below(domain.actor, "") == []


async def test_limits(domain):
    with pytest.raises(TooLarge, match="524289 bytes"):
        await put(domain, "a", b"x" * 524289)
    with pytest.raises(Rejected, match="Must provide key"):
        await put(domain, "")
    with pytest.raises(Rejected, match='invalid session "s"'):
        await put(domain, "a", acquire="s")
    assert domain.view.revision == domain.start


async def test_sixty_four_writers_on_one_counter_lose_no_step(domain):
    async def add():
        while True:
            entry = domain.kv.get(domain.actor, "n")
            index, value = (entry.modify_index, int(entry.value)) if entry else (0, 0)
            if await put(domain, "n", str(value + 1).encode(), cas=index):
                return

    await asyncio.gather(*(add() for _ in range(64)))
    assert domain.kv.get(domain.actor, "n").value == b"64"


async def test_a_blocking_query_returns_on_its_own_change_only(domain):
    await put(domain, "a")
    loop = asyncio.get_running_loop()
    index = domain.view.index(("kv", "a"))
    waiting = asyncio.create_task(
        wait_past(domain.view, [("kv", "a")], index=index, at_most_s=5, now=loop.time)
    )
    await put(domain, "b")
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await put(domain, "a", b"new")
    assert await waiting == domain.view.kv("a").modify_index
    unchanged = await wait_past(
        domain.view, [("kv", "b")], index=10**9, at_most_s=0.01, now=loop.time
    )
    assert unchanged == domain.view.kv("b").modify_index


def test_the_limit_of_a_wait():
    import random

    rng = random.Random(1)
    for asked, low, high in (
        (0, 300, 318.75),
        (10, 10, 10.625),
        (10_000, 600, 637.5),
        (-1, 300, 318.75),
    ):
        waits = [wait_limit(asked, rng=rng) for _ in range(200)]
        assert low <= min(waits) < max(waits) <= high
