"""Keeps the parts of an agent running: a fault of one of them is logged and it starts again; the others go on."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from waypost.base.clock import Clock
from waypost.base.errors import Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_DELAY_S = 0.5
_MOST_DELAY_S = 30.0
_STEADY_S = 60.0
_SAY_AGAIN_S = 60.0


async def patiently(do: Callable[[], Awaitable[T]], *, what: str) -> T:
    """Do something that the store may refuse for a while; the reason is logged when it changes, and once a minute."""
    now_s = asyncio.get_running_loop().time
    said, said_s = "", 0.0
    while True:
        try:
            return await do()
        except Unavailable as error:
            if str(error) != said or now_s() - said_s >= _SAY_AGAIN_S:
                said, said_s = str(error), now_s()
                log.warning("%s: %s", what, said)
        await asyncio.sleep(_FIRST_DELAY_S)


async def supervise(
    name: str, run: Callable[[], Awaitable[None]], *, clock: Clock, rng: random.Random
) -> None:
    """Call `run` until cancelled; when it ends or fails, again after a growing pause.

    A part that ran for a minute has proved itself: its next failure starts with the short pause again.
    """
    delay = _FIRST_DELAY_S
    while True:
        started = clock.now()
        try:
            await run()
            log.warning("%s ended by itself", name)
        except Exception:
            log.exception("%s failed", name)
        if clock.now() - started > _STEADY_S:
            delay = _FIRST_DELAY_S
        pause = delay * rng.uniform(0.75, 1.25)
        log.info("%s starts again in %.1f s", name, pause)
        await asyncio.sleep(pause)
        delay = min(delay * 2, _MOST_DELAY_S)
