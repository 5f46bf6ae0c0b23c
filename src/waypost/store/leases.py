"""When leases end. What ends with them is the engine's business."""

from __future__ import annotations

import math

from waypost.base.clock import Clock
from waypost.base.errors import Malformed, NotFound


class Leases:
    """TTL and deadline of every lease, on the monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ttl_s: dict[int, float] = {}
        self._deadline: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._ttl_s)

    def __contains__(self, lease: object) -> bool:
        return lease in self._ttl_s

    def start(self, lease: int, *, ttl_s: float) -> None:
        """Begin a lease, or begin it afresh, at its full TTL."""
        self._ttl_s[lease] = ttl_s
        self._deadline[lease] = self._clock.now() + ttl_s

    def renew(self, lease: int) -> float:
        """Return the seconds it lives from now. Raises NotFound once its end has begun."""
        if lease not in self._ttl_s:
            msg = f"lease {lease} does not exist"
            raise NotFound(msg)
        ttl_s = self._ttl_s[lease]
        self._deadline[lease] = self._clock.now() + ttl_s
        return ttl_s

    def end(self, lease: int) -> None:
        """Forget a lease; unknown ones are ignored."""
        self._ttl_s.pop(lease, None)
        self._deadline.pop(lease, None)

    def clear(self) -> None:
        """Forget all."""
        self._ttl_s.clear()
        self._deadline.clear()

    def pause_s(self, *, at_most_s: float) -> float:
        """Return how long to sleep between two sweeps, so that every lease ends well before twice its TTL."""
        shortest_s = min(self._ttl_s.values(), default=math.inf)
        return min(at_most_s, max(shortest_s / 4, 0.01))

    def expired(self) -> list[int]:
        """Return the leases whose time is over, the one that is over longest first."""
        now = self._clock.now()
        over = [lease for lease, deadline in self._deadline.items() if deadline <= now]
        return sorted(over, key=self._deadline.__getitem__)


def check_ttl(ttl_s: float) -> None:
    """Raise Malformed when `ttl_s` cannot be a TTL."""
    if not (math.isfinite(ttl_s) and ttl_s > 0):
        msg = f"a lease needs a TTL of more than 0 seconds, not {ttl_s}"
        raise Malformed(msg)
