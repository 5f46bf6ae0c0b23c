"""A running server over a small catalog, and upstream resolvers that behave badly."""

import asyncio
import contextlib

import pytest
import uvloop

from waypost.model.catalog import Check, Node, Service
from waypost.state.keys import encode, key_of
from waypost.state.view import View
from waypost.store.engine import KeyValue
from waypost.surfaces.dns.catalog import OpenAdmission
from waypost.surfaces.dns.server import DnsServer
from waypost.surfaces.dns.settings import DnsSettings


def catalog():
    records = []
    for number in (1, 2, 3):
        node = f"n{number}"
        records += [
            Node(node=node, address=f"10.0.0.{number}", datacenter="dc1"),
            Service(node=node, id="consul", name="consul", port=8300),
            Check(node=node, check_id="serfHealth", name="s", status="passing"),
            Service(node=node, id="web", name="httpbackend", port=8081, tags=("http",)),
        ]
    view = View()
    view.load([KeyValue(key_of(r), encode(r), 1, 1) for r in records], revision=len(records))
    return view


@pytest.fixture
def serve():
    """Return a context manager that runs a server and gives (server, port)."""

    @contextlib.asynccontextmanager
    async def serve(settings=None, *, host="127.0.0.1", port=0, **more):
        server = DnsServer(
            settings or DnsSettings(), OpenAdmission(catalog()), [(host, port)], **more
        )
        ready = asyncio.Event()
        async with server:
            bound = server.addresses[0][1]
            task = asyncio.create_task(server.run(ready=ready.set))
            await asyncio.wait_for(ready.wait(), 5)
            try:
                yield server, bound
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    return serve


class Upstream(asyncio.DatagramProtocol):
    """Answers by `behave(query bytes)`: a list of datagrams."""

    def __init__(self, behave):
        self.behave = behave
        self.seen = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.seen.append((data, addr))
        for reply in self.behave(data):
            self.transport.sendto(reply, addr)


@pytest.fixture
async def upstream():
    """Return a function that starts an upstream and gives (it, `ADDRESS:PORT`)."""
    transports = []

    async def start(behave):
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            lambda: Upstream(behave), local_addr=("127.0.0.1", 0)
        )
        transports.append(transport)
        return protocol, f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"

    yield start
    for transport in transports:
        transport.close()


def pytest_asyncio_loop_factories(config, item):
    """Run every test on both loops: they differ in what they do with bare sockets."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
