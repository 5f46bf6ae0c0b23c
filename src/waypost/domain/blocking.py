"""Blocking queries: wait until what was asked for changes. Source: Consul HTTP API, blocking queries."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from waypost.state.topics import Topic
from waypost.state.view import View

DEFAULT_WAIT_S: Final = 300.0
MAX_WAIT_S: Final = 600.0


def wait_limit(
    asked_s: float,
    *,
    rng: random.Random,
    default_s: float = DEFAULT_WAIT_S,
    max_s: float = MAX_WAIT_S,
) -> float:
    """Return how long to wait: the default for none (<= 0), at most `max_s`, plus up to a sixteenth.

    The random part keeps many clients that started together from coming back together.
    """
    wanted = min(asked_s if asked_s > 0 else default_s, max_s)
    return wanted + rng.uniform(0, wanted / 16)


async def wait_past(
    view: View,
    topics: Sequence[Topic],
    *,
    index: int,
    at_most_s: float,
    now: Callable[[], float],
) -> int:
    """Return the highest index of `topics` once it is past `index`, or what it is after `at_most_s` seconds.

    Never raises on a timeout: a blocking query then answers what is there. Cancel-safe.
    """
    deadline = now() + at_most_s
    while True:
        current = max(view.index(topic) for topic in topics)
        left = deadline - now()
        if current > index or left <= 0:
            return current
        await view.topics.wait(topics, at_most_s=left)
