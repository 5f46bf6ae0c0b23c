"""The latest revisions for those who follow them, with gaps where there was nothing to see.

Used on both sides of the wire: a server keeps what its engine's watch yields and many clients read it, a client keeps
what its server sent and its own watchers read it. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator

from waypost.base.errors import Unavailable
from waypost.store.engine import Batch, Compacted
from waypost.store.history import KEEP_BATCHES, KEEP_BYTES

_EVENT_BYTES = 300
_BATCH_BYTES = 100
_TRIM_AT = 1024


def _size_bytes(batch: Batch) -> int:
    """About what a batch costs in memory."""
    return _BATCH_BYTES + sum(
        len(event.kv.key) + len(event.kv.value) + _EVENT_BYTES for event in batch.events
    )


class Ring:
    """The last batches in order of revision. A follower is a position, not a buffer.

    Overflow rule: the oldest batches go first; a follower that still needed them gets Compacted, and nobody waits for it.
    Unlike `store.history.History` revisions may be left out: what a caller may not see is not sent, and a batch without
    events says how far the store is.
    """

    def __init__(self, *, keep_batches: int = KEEP_BATCHES, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_batches = keep_batches
        self._keep_bytes = keep_bytes
        self._revisions: list[int] = []
        self._batches: list[Batch] = []
        self._sizes: list[int] = []
        self._head = 0
        """Everything before it is forgotten already; the lists are cut in larger pieces."""
        self._size_bytes = 0
        self._changed = asyncio.Event()
        self._epoch = 0
        self.is_open = False
        self.revision = 0
        """The last revision published."""
        self.compacted = 0
        """Who has seen less than this revision has missed something."""

    def start(self, *, revision: int) -> None:
        """Begin at `revision` without a past. Whoever follows already gets Compacted."""
        self._revisions.clear()
        self._batches.clear()
        self._sizes.clear()
        self._head = self._size_bytes = 0
        self._epoch += 1
        self.revision = self.compacted = revision
        self.is_open = True
        self._wake()

    def end(self) -> None:
        """Let every follower read what there is, and end."""
        self.is_open = False
        self._wake()

    def publish(self, batch: Batch) -> None:
        """Append a batch and wake the followers; one that is not newer than what is there is ignored."""
        if batch.revision <= self.revision:
            return
        self.revision = batch.revision
        size = _size_bytes(batch)
        self._revisions.append(batch.revision)
        self._batches.append(batch)
        self._sizes.append(size)
        self._size_bytes += size
        while len(self._batches) - self._head > self._keep_batches or (
            self._size_bytes > self._keep_bytes and len(self._batches) - self._head > 1
        ):
            self._forget()
        self._trim()
        self._wake()

    def compact(self, *, before: int) -> None:
        """Forget the revisions < `before`; of the future there is nothing to forget."""
        end = bisect_left(self._revisions, before, lo=self._head)
        while self._head < end:
            self._forget()
        self.compacted = max(self.compacted, min(before - 1, self.revision))
        self._trim()
        self._wake()

    def take(self, *, after: int, at_most: int = 256) -> list[Batch]:
        """Return the next batches with a revision > `after`, none when there are no newer ones. Raises Compacted."""
        if after < self.compacted:
            msg = f"revision {after + 1} is no longer kept, the oldest is {self.compacted + 1}"
            raise Compacted(msg)
        start = bisect_right(self._revisions, after, lo=self._head)
        return self._batches[start : start + at_most]

    async def wait(self, *, after: int) -> None:
        """Return when `take(after=…)` may have something to say, or when the ring has ended."""
        if self.is_open and self.compacted <= after >= self.revision:
            await self._changed.wait()

    async def reached(self, revision: int) -> None:
        """Return when `revision` has been published, or when the ring has ended."""
        while self.is_open and self.revision < revision:
            await self._changed.wait()

    def watch(self, *, after: int) -> AsyncIterator[Batch]:
        """Yield every batch > `after`; end with the ring. Raises Compacted, Unavailable when it is not open."""
        if not self.is_open:
            msg = "the store is not open"
            raise Unavailable(msg)
        return self._follow(after, self._epoch)

    @property
    def epoch(self) -> int:
        """Changes whenever the ring starts over."""
        return self._epoch

    async def _follow(self, after: int, epoch: int) -> AsyncIterator[Batch]:
        while True:
            if epoch != self._epoch:
                msg = f"what followed revision {after} is not known"
                raise Compacted(msg)
            batches = self.take(after=after, at_most=1)
            if batches:
                after = batches[0].revision
                yield batches[0]
            elif self.is_open:
                await self._changed.wait()
            else:
                return

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()

    def _forget(self) -> None:
        self.compacted = self._revisions[self._head]
        self._size_bytes -= self._sizes[self._head]
        self._head += 1

    def _trim(self) -> None:
        if self._head > _TRIM_AT and self._head * 2 > len(self._batches):
            del self._revisions[: self._head]
            del self._batches[: self._head]
            del self._sizes[: self._head]
            self._head = 0
