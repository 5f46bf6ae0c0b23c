"""The agent's parts over the memory engine, serving the Consul API in a thread of their own."""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from contextlib import contextmanager

import uvloop

from waypost.access.actor import node_actor
from waypost.access.authn import anonymous
from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.base.clock import SystemClock
from waypost.domain.agent import LocalAgent, LocalNode
from waypost.domain.catalog import Catalog
from waypost.domain.event import Events
from waypost.domain.kv import KV
from waypost.domain.session import Sessions
from waypost.domain.txn import Transactions
from waypost.drivers.checks.runner import CheckRunner
from waypost.state.state import State
from waypost.store.memory import MemoryEngine
from waypost.surfaces.consul.context import Domain, Network
from waypost.surfaces.consul.reading import Settings
from waypost.surfaces.consul.routes import ConsulApi
from waypost.surfaces.http.router import Router
from waypost.surfaces.http.server import Server, TcpEndpoint

NODE = "rec1"


async def serve(started, *, indent):
    """Build the stack, tell `started` its port, and run until cancelled."""
    clock, rng = SystemClock(), random.Random(1)
    engine = MemoryEngine(clock=clock)
    await engine.open()
    state = State(engine)
    await state.load()
    gate = Gate(ExposureAuthorizer())
    local = LocalNode(node=NODE, id=str(uuid.uuid4()), address="127.0.0.1", datacenter="dc1")
    agent = LocalAgent(state, gate, local=local, clock=clock)
    sessions = Sessions(state, gate, clock=clock)
    domain = Domain(
        state=state,
        gate=gate,
        catalog=Catalog(state, gate, datacenter="dc1"),
        agent=agent,
        kv=KV(state, gate, locked_out=sessions.locked_out),
        sessions=sessions,
        transactions=Transactions(state, gate, datacenter="dc1", locked_out=sessions.locked_out),
        events=Events(state, gate, node=NODE),
    )
    api = ConsulApi(
        domain,
        settings=Settings(indent=indent),
        network=Network(),
        identify=lambda peer: anonymous(peer.address),
        clock=clock,
        rng=rng,
    )
    runner = CheckRunner(agent, state.view, actor=node_actor(NODE), clock=clock, rng=rng)
    server = Server(Router(api.routes()), [TcpEndpoint("127.0.0.1", 0)], fast=api.fast)
    async with asyncio.TaskGroup() as group:
        group.create_task(state.run())
        await agent.ensure_self()
        group.create_task(agent.run())
        group.create_task(sessions.run())
        group.create_task(runner.run())
        async with server:
            started(server.port("http"))
            await server.run()


@contextmanager
def running_api(*, indent):
    """Yield the port of a stack that runs in a thread."""
    ready = threading.Event()
    found = {}

    def started(port):
        found["port"] = port
        ready.set()

    def run():
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found["loop"] = runner.get_loop()

            async def main():
                found["task"] = asyncio.current_task()
                await serve(started, indent=indent)

            try:
                runner.run(main())
            except asyncio.CancelledError:
                pass
            except BaseException as error:
                found["error"] = error
                ready.set()
                raise

    thread = threading.Thread(target=run, name="consul-api")
    thread.start()
    try:
        assert ready.wait(10), "the stack did not start"
        if "error" in found:
            raise found["error"]
        yield found["port"]
    finally:
        found["loop"].call_soon_threadsafe(found["task"].cancel)
        thread.join(10)
        assert not thread.is_alive(), "the stack did not stop"
