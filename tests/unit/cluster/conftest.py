"""A clock that tests move."""

from __future__ import annotations

import pytest


class HandClock:
    """Both times begin at some number and stand until `advance`."""

    def __init__(self, *, now_s: float = 1000.0, wall_s: float = 1_790_000_000.0) -> None:
        self._now_s, self._wall_s = now_s, wall_s

    def now(self) -> float:
        return self._now_s

    def wall(self) -> float:
        return self._wall_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
        self._wall_s += seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()
