"""The only places where time and randomness enter.

`now()` is monotonic and meant for leases, TTLs and waits, so a jump of the wall clock moves none of them;
`wall()` is for people and logs.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Time in seconds as floats."""

    def now(self) -> float:
        """Return monotonic seconds; only differences mean anything."""
        ...

    def wall(self) -> float:
        """Return seconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Return monotonic seconds; only differences mean anything."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since the Unix epoch."""
        return time.time()
