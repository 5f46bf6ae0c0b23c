"""Servers over one engine on loopback, with a line to each that can be cut, frozen and made to lose answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack

import pytest
import uvloop

from waypost.base.clock import SystemClock
from waypost.state.state import State
from waypost.store.engine import Engine
from waypost.store.memory import MemoryEngine
from waypost.store.remote import HttpTransport, RemoteEngine, Servers
from waypost.store.remote.engine import Patience
from waypost.surfaces.cluster.store_routes import StoreRoutes
from waypost.surfaces.http.router import Route, Router
from waypost.surfaces.http.server import Server, TcpEndpoint


def pytest_asyncio_loop_factories():
    return {"uvloop": uvloop.new_event_loop}


class Line:
    """A TCP proxy in front of one server: the network between a machine and it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.loses_answers = False
        """Requests get through, their connections break before an answer does."""
        self.address = ""

    async def open(self) -> None:
        port = int(self.address.rpartition(":")[2] or 0)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def cut(self) -> None:
        """As when the server's process is killed: connections break, new ones are refused."""
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def freeze(self) -> None:
        """As SIGSTOP: connections stay, nothing comes through."""
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        back: asyncio.StreamWriter | None = None
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, back))
                group.create_task(self._copy(there, writer, is_answer=True))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for one in (writer, back):
                if one is not None:
                    one.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool = False
    ) -> None:
        while data := await reader.read(65536):
            await self._flows.wait()
            if is_answer and self.loses_answers:
                raise OSError("lost on the way")
            writer.write(data)
            await writer.drain()
        raise OSError("closed")


class Cluster:
    """`count` servers that share an engine and a view; `node` is who calls, "" for a server."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.clock = SystemClock()
        self.engine = MemoryEngine(self.clock, sweep_s=0.05)
        self.state = State(self.engine)
        self.view = self.state.view
        self.node = ""
        self.reads_kv = False
        self.lines: list[Line] = []
        self.stores: list[StoreRoutes] = []
        self.servers: list[Server] = []
        self.engines: list[RemoteEngine] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(
        self,
        count: int,
        *,
        keep_batches: int = 10_000,
        routes: Callable[[], list[Route]] = list,
        wrap: Callable[[int, Engine], Engine] = lambda _, engine: engine,
    ) -> None:
        self._stack.push_async_callback(self._cancel)
        await self.engine.open()
        self._stack.push_async_callback(self.engine.close)
        await self.state.load()
        self.spawn(self.state.run())
        for n in range(count):
            store = StoreRoutes(
                wrap(n, self.engine),
                self.view,
                node_of=lambda _request: self.node,
                may_read_kv=lambda _node: self.reads_kv,
                keep_batches=keep_batches,
                heartbeat_s=0.2,
            )
            server = Server(
                Router([*store.routes(), *routes()]),
                [TcpEndpoint("127.0.0.1", 0, name="cluster")],
                grace_s=0.2,
            )
            await self._stack.enter_async_context(server)
            self.spawn(store.run())
            line = Line(server.port("cluster"))
            await line.open()
            self._stack.push_async_callback(line.cut)
            self.lines.append(line)
            self.stores.append(store)
            self.servers.append(server)

    async def client(self, **options: object) -> RemoteEngine:
        """An open engine of a machine that knows all servers, the first one first."""
        order = {line.address: n for n, line in enumerate(self.lines)}
        servers = Servers(lambda: list(order), clock=self.clock, rng=_InOrder(), rest_s=0.5)
        engine = RemoteEngine(
            servers,
            transport=HttpTransport(tls=None, connect_s=0.5),
            clock=self.clock,
            patience=Patience(
                read_attempt_s=0.5, read_total_s=3.0, attempt_s=0.5, total_s=5.0,
                silence_s=0.6, unconfirmed_s=0.3,
            ),
            **options,
        )  # fmt: skip
        await engine.open()
        self._stack.push_async_callback(engine.close)
        self.engines.append(engine)
        return engine

    def spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        """Run something until the test ends; a fixture begins and ends in two tasks, so no TaskGroup can hold it."""
        self._tasks.append(asyncio.create_task(coroutine))

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        for answer in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert answer is None or isinstance(answer, asyncio.CancelledError), answer

    async def follow(self, engine: Engine) -> State:
        """A view over an engine, kept current."""
        state = State(engine, authoritative=False)
        await state.load()
        self.spawn(state.run())
        return state


class _InOrder(random.Random):
    """Servers are asked in the order in which they are known."""

    def __init__(self) -> None:
        super().__init__(0)
        self._n = 0

    def random(self) -> float:
        self._n += 1
        return self._n / 1e6


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(stack)


async def until(holds: Callable[[], object], *, at_most_s: float = 5.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(at_most_s):
        while not holds():
            await asyncio.sleep(0.01)
