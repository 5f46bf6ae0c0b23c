"""The engine that keeps nothing: for `-dev` agents and for tests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

from waypost.base.clock import Clock
from waypost.base.errors import NoLeader, Unavailable
from waypost.store.engine import (
    Batch,
    EngineStatus,
    Event,
    KeyValue,
    Page,
    Txn,
    TxnResult,
)
from waypost.store.evaluate import deletion, evaluate, validate
from waypost.store.history import KEEP_BATCHES, KEEP_BYTES, History
from waypost.store.keyspace import KeySpace
from waypost.store.leases import Leases, check_ttl


class MemoryEngine:
    """A sorted key space in this process. A transaction is one turn of the event loop, so it is atomic by itself.

    A commit has reached the watchers' buffer when it returns. Opened again after close() it is empty and starts at
    revision 1: the data lives as long as the engine is open.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        keep_batches: int = KEEP_BATCHES,
        keep_bytes: int = KEEP_BYTES,
        sweep_s: float = 0.5,
    ) -> None:
        self._history = History(keep_batches=keep_batches, keep_bytes=keep_bytes)
        self._rows = KeySpace()
        self._leases = Leases(clock)
        self._lease_keys: dict[int, set[bytes]] = {}
        self._lease_ids = itertools.count(1)
        self._sweep_s = sweep_s
        self._granted = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None
        self._open = False

    async def open(self) -> None:
        """Start with an empty key space. Raises Unavailable when it is open already."""
        if self._open:
            msg = "the memory engine is open already"
            raise Unavailable(msg)
        self._rows = KeySpace()
        self._leases.clear()
        self._lease_keys.clear()
        # Revision 1 is the empty store, as in etcd: Consul's clients take index 0 as "not set".
        self._history.start(revision=1)
        self._open = True
        self._sweeper = asyncio.create_task(self._sweep(), name="store.memory.sweep")

    async def close(self) -> None:
        """Stop; watches end after what is published. Safe to call twice."""
        self._open = False
        self._history.end()
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await sweeper

    async def commit(self, txn: Txn) -> TxnResult:
        """Apply atomically. Raises Malformed, NotFound (unknown lease), Unavailable once closed; then nothing changed."""
        self._check_open()
        validate(txn)
        result, events = evaluate(
            txn, self._rows, revision=self._history.revision, leases=self._leases
        )
        if events:
            self._apply(events)
        return result

    async def range(self, key: bytes, end: bytes | None = None, *, limit: int = 0) -> Page:
        """Return the key, or key <= k < end, as of the current revision. `limit` 0 = all."""
        self._check_open()
        revision = self._history.revision
        if end is None:
            row = self._rows.get(key)
            return Page(revision, () if row is None else (row,))
        found: Iterable[KeyValue] = self._rows.span(key, end)
        if not limit:
            return Page(revision, tuple(found))
        items = tuple(itertools.islice(found, limit + 1))
        return Page(revision, items[:limit], len(items) > limit)

    def watch(self, *, after: int) -> AsyncIterator[Batch]:
        """Yield every revision > `after`. Raises Compacted, also when the watcher fell out of the kept history."""
        return self._history.watch(after=after)

    async def read_index(self) -> int:
        """Return the current revision. Raises NoLeader once closed."""
        self._check_open()
        return self._history.revision

    async def compact(self, *, before: int) -> None:
        """Forget the revisions < `before`."""
        self._check_open()
        self._history.compact(before=before)

    async def grant(self, *, ttl_s: float) -> int:
        """Return a lease. Raises Malformed when the TTL is not above 0."""
        self._check_open()
        check_ttl(ttl_s)
        lease = next(self._lease_ids)
        self._leases.start(lease, ttl_s=ttl_s)
        self._granted.set()
        return lease

    async def keep_alive(self, lease: int) -> float:
        """Renew; return the new remaining seconds. Raises NotFound when the lease is gone."""
        self._check_open()
        return self._leases.renew(lease)

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys in one revision. Unknown leases are ignored."""
        self._check_open()
        self._end(lease)

    async def status(self) -> EngineStatus:
        """Return facts for people and metrics. Answers when closed, too."""
        return EngineStatus(
            engine="memory",
            revision=self._history.revision,
            compacted=self._history.compacted,
            keys=len(self._rows),
            size_bytes=self._rows.size_bytes,
            durable=False,
            leader=self._open,
            has_quorum=self._open,
        )

    def _check_open(self) -> None:
        if not self._open:
            msg = "the store is not open"
            raise NoLeader(msg)

    def _apply(self, events: tuple[Event, ...]) -> None:
        for event in events:
            row = event.kv
            old = self._rows.get(row.key)
            if old is not None and old.lease:
                self._lease_keys[old.lease].discard(row.key)
            if event.kind == "delete":
                self._rows.remove(row.key)
            else:
                self._rows.put(row)
                if row.lease:
                    self._lease_keys.setdefault(row.lease, set()).add(row.key)
        self._history.publish((Batch(self._history.revision + 1, events),))

    def _end(self, lease: int) -> None:
        revision = self._history.revision + 1
        keys = sorted(self._lease_keys.get(lease, ()))
        if keys:
            self._apply(tuple(deletion(key, revision=revision) for key in keys))
        self._lease_keys.pop(lease, None)
        self._leases.end(lease)

    async def _sweep(self) -> None:
        while True:
            if not self._leases:
                self._granted.clear()
                await self._granted.wait()
            await asyncio.sleep(self._leases.pause_s(at_most_s=self._sweep_s))
            for lease in self._leases.expired():
                self._end(lease)
