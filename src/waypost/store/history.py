"""The latest revisions, kept in memory for those who watch."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence

from waypost.base.errors import Unavailable
from waypost.store.engine import Batch, Compacted

KEEP_BATCHES = 10_000
"""Revisions kept: at 2,000 writes a second a watcher may be away for 5 s before it has to load again."""

KEEP_BYTES = 32 * 2**20
"""Keys and values kept, so that a flood of large values cannot fill the memory."""

_EVENT_BYTES = 300
"""About what one event costs beside its key and value."""

_TRIMMED = 1024


def _size_bytes(batch: Batch) -> int:
    return sum(len(e.kv.key) + len(e.kv.value) + _EVENT_BYTES for e in batch.events)


class History:
    """The last revisions of an engine. Used from the event loop only.

    This is the only buffer: a watcher is a position in it. Overflow rule: the oldest revisions go first, and a
    watcher that still needed them gets Compacted; nobody waits for a slow watcher.
    """

    def __init__(self, *, keep_batches: int = KEEP_BATCHES, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_batches = keep_batches
        self._keep_bytes = keep_bytes
        self._batches: dict[int, Batch] = {}
        self._revisions: list[int] = []
        """Those of the batches, in order; what stands before `_first` is forgotten."""
        self._first = 0
        self._size_bytes = 0
        self._changed = asyncio.Event()
        self._open = False
        self._beginnings = 0
        self.revision = 0
        """The last revision published."""
        self.compacted = 0
        """The last revision that is no longer kept."""

    def start(self, *, revision: int) -> None:
        """Begin at `revision`, with no past: whoever still watches an earlier one gets Compacted."""
        self._beginnings += 1
        self._batches.clear()
        self._revisions.clear()
        self._first = self._size_bytes = 0
        self.revision = self.compacted = revision
        self._changed.clear()  # set for good by an earlier end
        self._open = True

    def end(self) -> None:
        """Let every watcher read what there is, and end."""
        self._open = False
        self._changed.set()

    def publish(self, batches: Sequence[Batch]) -> None:
        """Append the next revisions in order, and wake the watchers. Those left out are of no concern to anybody here."""
        for batch in batches:
            assert batch.revision > self.revision
            self.revision = batch.revision
            self._revisions.append(batch.revision)
            self._batches[batch.revision] = batch
            self._size_bytes += _size_bytes(batch)
        while len(self._batches) > self._keep_batches or (
            self._size_bytes > self._keep_bytes and len(self._batches) > 1
        ):
            self._forget()
        self._changed.set()
        self._changed.clear()

    def compact(self, *, before: int) -> None:
        """Forget the revisions < `before`; of the future there is nothing to forget."""
        while self._batches and self._revisions[self._first] < before:
            self._forget()
        self.compacted = max(self.compacted, min(before - 1, self.revision))
        self._changed.set()
        self._changed.clear()

    def _forget(self) -> None:
        self.compacted = self._revisions[self._first]
        self._size_bytes -= _size_bytes(self._batches.pop(self.compacted))
        self._first += 1
        if self._first > _TRIMMED and 2 * self._first > len(self._revisions):
            del self._revisions[: self._first]
            self._first = 0

    def _next(self, after: int) -> Batch | None:
        """Return the first batch > `after`."""
        batch = self._batches.get(after + 1)
        if batch is None and after < self.revision:
            at = bisect_right(self._revisions, after, lo=self._first)
            batch = self._batches[self._revisions[at]]
        return batch

    def watch(self, *, after: int) -> AsyncIterator[Batch]:
        """Yield every revision > `after`; end with the engine. Raises Compacted, or Unavailable when not open."""
        if not self._open:
            msg = "the store is not open"
            raise Unavailable(msg)
        return self._follow(after, self._beginnings)

    async def _follow(self, after: int, beginning: int) -> AsyncIterator[Batch]:
        while True:
            if beginning != self._beginnings:
                msg = f"the history with revision {after} has ended, another began at {self.compacted}"
                raise Compacted(msg)
            if after < self.compacted:
                msg = f"revision {after + 1} is no longer kept, the oldest is {self.compacted + 1}"
                raise Compacted(msg)
            batch = self._next(after)
            if batch is not None:
                after = batch.revision
                yield batch
            elif self._open:
                await self._changed.wait()
            else:
                return
