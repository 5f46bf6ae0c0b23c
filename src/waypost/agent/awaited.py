"""The store of a machine that is not a member of its cluster yet: everything is refused until the store is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from waypost.base.errors import NoLeader
from waypost.store.engine import Batch, Engine, EngineStatus, Page, Txn, TxnResult

_TEXT = "No cluster leader"


class AwaitedEngine:
    """An `Engine` that is made when it is opened, and passes everything on from then. Before that each call raises NoLeader.

    So that the surfaces of a machine that waits for others can answer at once, with Consul's own words.
    """

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._inner: Engine | None = None

    def _engine(self) -> Engine:
        if self._inner is None:
            raise NoLeader(_TEXT)
        return self._inner

    async def open(self) -> None:
        """Make and open the engine. Raises Unavailable with the reason, and can be called again then."""
        inner = self._make()
        await inner.open()
        self._inner = inner

    async def close(self) -> None:
        """Close the engine, if it was opened."""
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.close()

    async def commit(self, txn: Txn) -> TxnResult:
        """See `Engine.commit`."""
        return await self._engine().commit(txn)

    async def range(self, key: bytes, end: bytes | None = None, *, limit: int = 0) -> Page:
        """See `Engine.range`."""
        return await self._engine().range(key, end, limit=limit)

    def watch(self, *, after: int) -> AsyncIterator[Batch]:
        """See `Engine.watch`."""
        return self._engine().watch(after=after)

    async def read_index(self) -> int:
        """See `Engine.read_index`."""
        return await self._engine().read_index()

    async def compact(self, *, before: int) -> None:
        """See `Engine.compact`."""
        await self._engine().compact(before=before)

    async def grant(self, *, ttl_s: float) -> int:
        """See `Engine.grant`."""
        return await self._engine().grant(ttl_s=ttl_s)

    async def keep_alive(self, lease: int) -> float:
        """See `Engine.keep_alive`."""
        return await self._engine().keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        """See `Engine.revoke`."""
        await self._engine().revoke(lease)

    async def status(self) -> EngineStatus:
        """See `Engine.status`."""
        return await self._engine().status()
