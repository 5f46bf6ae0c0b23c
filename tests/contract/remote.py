"""The remote engine with a server of its own: a memory engine behind real HTTP on loopback, asked as a server asks."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from waypost.base.clock import Clock, SystemClock
from waypost.state.view import View
from waypost.store.memory import MemoryEngine
from waypost.store.remote import HttpTransport, RemoteEngine
from waypost.surfaces.cluster.store_routes import StoreRoutes
from waypost.surfaces.http.router import Router
from waypost.surfaces.http.server import Server, TcpEndpoint


class RemoteWithServer(RemoteEngine):
    """Opening it starts an empty server, closing it stops that one, as the memory engine behind it does."""

    def __init__(self, clock: Clock, *, keep_batches: int) -> None:
        self._backend = MemoryEngine(clock, keep_batches=keep_batches, sweep_s=0.01)
        self._keep = keep_batches
        self._address = ""
        self._serving: asyncio.Task[None] | None = None
        super().__init__(
            lambda: [self._address],
            transport=HttpTransport(tls=None),
            clock=SystemClock(),
            rng=random.Random(1),
            keep_batches=keep_batches,
        )

    async def open(self) -> None:
        if self._serving is None:
            ready = asyncio.Event()
            self._serving = asyncio.create_task(self._serve(ready))
            await ready.wait()
        await super().open()

    async def close(self) -> None:
        await super().close()
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    async def _serve(self, ready: asyncio.Event) -> None:
        await self._backend.open()
        routes = StoreRoutes(
            self._backend,
            View(),
            node_of=lambda _request: "",
            may_read_kv=lambda _node: False,
            keep_batches=self._keep,
        )
        server = Server(Router(routes.routes()), [TcpEndpoint("127.0.0.1", 0)], grace_s=0.5)
        try:
            async with asyncio.TaskGroup() as group, server:
                group.create_task(routes.run())
                self._address = f"127.0.0.1:{server.port('http')}"
                ready.set()
                await server.run()
        finally:
            await self._backend.close()
