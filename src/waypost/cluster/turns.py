"""Changes wait for their turn: one task makes all of them, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

from waypost.base.errors import Unavailable, WaypostError

T = TypeVar("T")

_WAITING: Final = 64
"""Changes that wait; a 65th is refused with Unavailable, and whoever asked asks again."""


class Turns:
    """Where any task asks the one that owns the state to change it, and wakes it."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = (
            asyncio.Queue(_WAITING)
        )
        self._wake = asyncio.Event()
        self._is_owned = False

    # -- for all

    async def take(self, change: Callable[[], Awaitable[T]]) -> T:
        """Have the owner make a change, and return what it returns, or raise what it raises. Raises Unavailable."""
        if not self._is_owned:
            raise Unavailable("the cluster is not running on this machine")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((change, answer))
        except asyncio.QueueFull as exc:
            raise Unavailable("too many requests are waiting") from exc
        self._wake.set()
        return await answer

    def wake(self) -> None:
        """Let the owner look now: there is news."""
        self._wake.set()

    # -- for the owner

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Take changes within the block; at its end those that still wait are refused."""
        self._is_owned = True
        try:
            yield
        finally:
            self._is_owned = False
            while not self._waiting.empty():
                _, answer = self._waiting.get_nowait()
                if not answer.done():
                    answer.set_exception(Unavailable("the agent is stopping"))

    async def wait(self, *, at_most_s: float) -> None:
        """Return when there is news, or after `at_most_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._wake.wait()
        self._wake.clear()

    async def make(self) -> None:
        """Make every change that waits. What is not an error of the tree is a fault and comes out here."""
        while not self._waiting.empty():
            change, answer = self._waiting.get_nowait()
            await _settle(change, answer)


async def _settle(change: Callable[[], Awaitable[Any]], answer: asyncio.Future[Any]) -> None:
    """Make a change and hand its outcome to whoever waits for it."""
    try:
        found = await change()
    except WaypostError as exc:
        if not answer.done():
            answer.set_exception(exc)
    except BaseException as exc:
        if not answer.done():
            answer.set_exception(Unavailable(f"a fault of waypost's: {type(exc).__name__}"))
        raise
    else:
        if not answer.done():
            answer.set_result(found)
