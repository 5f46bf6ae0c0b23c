"""Which server to ask: the one that answered last, then the others; one that failed rests."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from waypost.base.clock import Clock
from waypost.base.errors import NoLeader, Unknown, WaypostError

log = logging.getLogger(__name__)

REST_S: Final = 2.0
_PAUSE_S: Final = 0.25


class Servers:
    """The servers of a cluster in the order in which one client asks them.

    `known` returns their addresses (`10.0.0.1:8301`) as of now; the list may change at any time. Each client shuffles
    them its own way, so that many clients spread over all servers.
    """

    def __init__(
        self,
        known: Callable[[], Sequence[str]],
        *,
        clock: Clock,
        rng: random.Random,
        rest_s: float = REST_S,
    ) -> None:
        self._known = known
        self._clock = clock
        self._rng = rng
        self._rest_s = rest_s
        self._rank: dict[str, float] = {}
        self._rests_until: dict[str, float] = {}
        self._on_lost: list[Callable[[str], None]] = []
        self.current = ""
        """The address that answered last; empty when none did, or when it failed since."""

    def order(self) -> list[str]:
        """Return all addresses: the current one, then those that may be asked, then those that rest."""
        known = dict.fromkeys(self._known())
        for gone in self._rank.keys() - known.keys():
            del self._rank[gone]
            self._rests_until.pop(gone, None)
        for address in known:
            if address not in self._rank:
                self._rank[address] = self._rng.random()
        now = self._clock.now()
        return sorted(
            known,
            key=lambda one: (
                self._rests_until.get(one, 0.0) > now,
                one != self.current,
                self._rank[one],
            ),
        )

    def rest_s(self) -> float:
        """Return how long until one of them may be asked: 0 when one may now; a full rest when none is known."""
        order = self.order()
        if not order:
            return self._rest_s
        now = self._clock.now()
        return max(0.0, min(self._rests_until.get(one, 0.0) - now for one in order))

    def worked(self, address: str) -> None:
        """Note that a server answered."""
        self.current = address
        self._rests_until.pop(address, None)

    def failed(self, address: str) -> None:
        """Note that a server did not answer, or cannot serve now: the others come first for a while."""
        self._rests_until[address] = self._clock.now() + self._rest_s
        if self.current == address:
            self.current = ""

    def on_lost(self, call: Callable[[str], None]) -> Callable[[], None]:
        """Have `call` told of servers that fell silent; returns what ends that."""
        self._on_lost.append(call)
        return lambda: self._on_lost.remove(call)

    def lost(self, address: str) -> None:
        """Note that a server fell silent: what waits for it need not wait any longer."""
        self.failed(address)
        for call in tuple(self._on_lost):
            call(address)


class Tour:
    """The servers one call asks, in turn, round after round until its time is over; and why each did not answer."""

    def __init__(self, servers: Servers, *, clock: Clock, total_s: float) -> None:
        self._servers = servers
        self._clock = clock
        self._until = clock.now() + total_s
        self._left = deque(servers.order())
        self._last: WaypostError | None = None
        self._others_may_help = not self._left
        """Another round makes sense: not if every server said that it has no quorum, having waited for one itself."""

    async def next(self) -> str | None:
        """Return the next address, None when it is time to give up."""
        while not self._left:
            if not self._others_may_help or self._clock.now() + _PAUSE_S >= self._until:
                return None
            await asyncio.sleep(_PAUSE_S)
            self._left.extend(self._servers.order())
            self._others_may_help = not self._left
        return self._left.popleft()

    def failed(self, address: str, exc: Exception) -> WaypostError:
        """Note why a server did not answer; return it as one of our errors."""
        self._servers.failed(address)
        if not isinstance(exc, WaypostError):
            exc = Unknown(f"server {address}: no answer in time")
        self._others_may_help |= not isinstance(exc, NoLeader)
        self._last = exc
        log.debug("server %s: %s", address, exc)
        return exc

    def error(self) -> WaypostError:
        """Return what to tell the caller."""
        if isinstance(self._last, NoLeader):
            return self._last
        return NoLeader(f"no server answers: {self._last}" if self._last else "no server is known")
