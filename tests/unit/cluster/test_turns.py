"""Changes are made one after the other by the task that owns the state; whoever asked hears what came of it."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from waypost.base.errors import Conflict, Unavailable
from waypost.cluster.turns import Turns


async def own(turns: Turns) -> None:
    with turns.owned():
        while True:
            await turns.wait(at_most_s=10)
            await turns.make()


async def test_outcomes_come_back_in_order() -> None:
    turns = Turns()
    made: list[int] = []

    async def change(number: int) -> int:
        made.append(number)
        await asyncio.sleep(0)
        if number == 2:
            raise Conflict("no")
        return number

    owner = asyncio.create_task(own(turns))
    await asyncio.sleep(0)
    asked = [asyncio.create_task(turns.take(partial(change, n))) for n in range(4)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert made == [0, 1, 2, 3]
    assert found[:2] == [0, 1]
    assert isinstance(found[2], Conflict)
    assert found[3] == 3
    owner.cancel()


async def test_without_an_owner_nothing_waits() -> None:
    turns = Turns()

    async def change() -> None:
        raise AssertionError("nobody makes it")

    with pytest.raises(Unavailable, match="not running on this machine"):
        await turns.take(change)
    with turns.owned():
        asked = asyncio.create_task(turns.take(change))
        await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="the agent is stopping"):
        await asked


async def test_too_many_are_refused() -> None:
    turns = Turns()

    async def change() -> None: ...

    with turns.owned():
        asked = [asyncio.create_task(turns.take(change)) for _ in range(65)]
        await asyncio.sleep(0)
        assert asked[64].done()
        assert isinstance(asked[64].exception(), Unavailable)
        await turns.make()
        await asyncio.gather(*asked[:64])


async def test_a_fault_ends_the_owner_and_is_no_silence_for_who_asked() -> None:
    turns = Turns()

    async def change() -> None:
        raise ZeroDivisionError

    owner = asyncio.create_task(own(turns))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="a fault of waypost's: ZeroDivisionError"):
        await turns.take(change)
    with pytest.raises(ZeroDivisionError):
        await owner


async def test_who_stopped_waiting_does_not_stop_the_change() -> None:
    turns = Turns()
    made: list[int] = []

    async def change() -> None:
        made.append(1)

    with turns.owned():
        asked = asyncio.create_task(turns.take(change))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.sleep(0)
        await turns.make()
    assert made == [1]
