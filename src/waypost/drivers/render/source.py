"""Where templates' data comes from: the seam between the runner and a catalog."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from waypost.drivers.render.dependency import Dependency


class Fetched(msgspec.Struct, frozen=True):
    """One answer: the value as `dependency.py` and `records.py` describe it, and the index it is true at."""

    index: int
    value: Any


class Source(Protocol):
    """Answers dependencies with blocking-query semantics."""

    async def fetch(self, dependency: Dependency, *, index: int, wait_s: float) -> Fetched:
        """Return the value once it is newer than `index`, or the current one after about `wait_s` seconds.

        Index 0 asks for the current value at once. Raises NotFound for what cannot be had at all, Unavailable
        for what may be had later, Rejected with the other side's words. Cancel-safe.
        """
        ...
