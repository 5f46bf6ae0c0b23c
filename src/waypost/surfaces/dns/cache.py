"""Replies by the bytes of the question, so that a repeated query is a dictionary hit.

A key is a query without its id: flags, name in its case, type, class and EDNS are all in it. A value holds some
replies (without id) that differ in the order of the records and are given out in turn. It is valid while nothing it
was made of has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Final

from waypost.state.topics import Topic
from waypost.surfaces.dns.catalog import Catalog
from waypost.surfaces.dns.lookup import Turn

ENTRIES: Final = 8192
"""More are not kept: the oldest goes first."""
BYTES: Final = 16 << 20
"""Size of all replies together; beyond it the oldest entry goes first."""
ORDERS: Final = 32
"""About so many orders are kept of a reply with several instances."""
ORDERS_AT_MOST: Final = 128
ENTRY_BYTES: Final = 128 << 10
"""Big replies are kept in fewer orders."""
ROUNDS: Final = 64
"""After so many rounds through them, new orders are drawn."""
ROUNDS_OF_SOME: Final = 8
"""The same when not every instance can come first in the orders that are kept."""


def orders_for(width: int, *, reply_bytes: int) -> int:
    """Return how many orders of a reply to keep: whole rotations of `width` instances where they fit."""
    if width < 2:
        return 1
    rounds = max(1, ORDERS // width) * width
    return max(2, min(rounds, ORDERS_AT_MOST, ENTRY_BYTES // max(1, reply_bytes)))


class Entry:
    """The replies to one question.

    While `ready` > 0 and `moment` is the catalog's, a reply may be taken by `next_reply()` without further checks,
    and `ready` counted down; else ask the cache.
    """

    __slots__ = (
        "bytes",
        "index",
        "moment",
        "next_reply",
        "ready",
        "replies",
        "second",
        "topics",
        "turn",
        "wanted",
    )

    def __init__(
        self,
        *,
        moment: int,
        index: int,
        topics: tuple[Topic, ...],
        turn: Turn,
        second: int | None = None,
    ) -> None:
        self.moment = moment
        self.index = index
        self.topics = topics
        self.turn = turn
        """The next order to make."""
        self.second = second
        """The unix second it is good for, None for always."""
        self.replies: list[bytes] = []
        self.wanted = 1
        self.ready = 0
        self.bytes = 0
        self.next_reply: Callable[[], bytes] = cycle([b""]).__next__

    @property
    def is_complete(self) -> bool:
        """Whether all wanted orders are there."""
        return len(self.replies) >= self.wanted

    def add(self, reply: bytes, *, width: int) -> int:
        """Take in one more order; return the bytes it adds."""
        if not self.replies:
            self.wanted = orders_for(width, reply_bytes=len(reply))
        self.replies.append(reply)
        self.bytes += len(reply)
        self.turn = Turn(self.turn.seed, self.turn.number + 1)
        if self.is_complete:
            self.next_reply = cycle(self.replies).__next__
            if self.second is None:
                rounds = ROUNDS if self.wanted >= width else ROUNDS_OF_SOME
                self.ready = rounds * self.wanted
        return len(reply)

    def again(self) -> None:
        """Forget the orders there are; the next ones go on where these ended."""
        self.replies = []
        self.bytes = 0
        self.ready = 0


class ReplyCache:
    """Entries of one catalog and one transport."""

    def __init__(self, *, entries: int = ENTRIES, size_bytes: int = BYTES) -> None:
        self.entries: dict[bytes, Entry] = {}
        self._limit = entries
        self._limit_bytes = size_bytes
        self.bytes = 0

    def valid(self, key: bytes, catalog: Catalog, *, moment: int, now_s: int) -> Entry | None:
        """Return the entry of a question if nothing it was made of has changed, and drop it otherwise."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.second is not None and entry.second != now_s:
            self.drop(key)
            return None
        if entry.moment != moment:
            if newest(catalog, entry.topics) != entry.index:
                self.drop(key)
                return None
            entry.moment = moment
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an entry, at the cost of the oldest ones when it is too much."""
        self.drop(key)
        self.entries[key] = entry
        self.grew(entry.bytes)
        while len(self.entries) > self._limit:
            self.drop(next(iter(self.entries)))

    def grew(self, added: int) -> None:
        """Count bytes that were added to an entry."""
        self.bytes += added
        while self.bytes > self._limit_bytes and self.entries:
            self.drop(next(iter(self.entries)))

    def renew(self, entry: Entry) -> None:
        """Let an entry have new orders."""
        self.bytes -= entry.bytes
        entry.again()

    def drop(self, key: bytes) -> None:
        """Forget one question."""
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.bytes
            entry.again()


def newest(catalog: Catalog, topics: tuple[Topic, ...]) -> int:
    """Return the highest index of `topics`; 0 without any.

    Indexes only grow, and a change is newer than all before it, so this one number stands still exactly while none
    of them changes.
    """
    return max([catalog.index(topic) for topic in topics], default=0)
