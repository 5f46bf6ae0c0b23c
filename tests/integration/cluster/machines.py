"""Machines of a cluster within one process: each with its own directory, ports and event-loop tasks, and a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from waypost.cluster.admission import TokenFacts
from waypost.cluster.cluster import Cluster
from waypost.cluster.records import Phase, RaftMember
from waypost.cluster.settings import ClusterPorts, ClusterSettings
from waypost.surfaces.cluster.routes import ClusterRoutes
from waypost.surfaces.http.router import Router
from waypost.surfaces.http.server import OpenTls, Server, TcpEndpoint, TlsEndpoint

TOKEN = "abcdef.0123456789abcdef"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses, below those that the system gives to clients."""
    found: list[int] = []
    rng = random.SystemRandom()
    while len(found) < count:
        port = rng.randrange(18000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def good_token(token: str) -> TokenFacts | None:
    return TokenFacts(id=token[:6]) if token == TOKEN else None


class Machine:
    """One machine that can be started, killed, stopped and wiped."""

    def __init__(self, folder: Path, name: str, **changes: object) -> None:
        cluster, server, store = free_ports(3)
        self.settings = ClusterSettings(
            data_dir=folder / name,
            node=name,
            node_id=str(uuid.uuid4()),
            address="127.0.0.1",
            is_server=True,
            bootstrap_expect=3,
            ports=ClusterPorts(cluster=cluster, server=server, store=store),
            heartbeat_ms=50,
            election_ms=500,
            second_voter_after_s=1.0,
        )
        self.change(**changes)
        self.token_facts: Callable[[str], TokenFacts | None] = good_token
        self.cluster: Cluster | None = None
        self._task: asyncio.Task[None] | None = None
        self._server: Server | None = None

    def change(self, **changes: object) -> None:
        self.settings = msgspec.structs.replace(self.settings, **changes)

    @property
    def contact(self) -> str:
        return f"127.0.0.1:{self.settings.ports.cluster}"

    @property
    def now(self) -> Cluster:
        assert self.cluster is not None
        return self.cluster

    async def start(self) -> None:
        tls: TlsEndpoint | None = None
        cluster = Cluster(self.settings, token_facts=self.token_facts)

        def changed() -> None:
            if tls is not None:
                tls.replace(open_tls(cluster))

        cluster.on_serving_changed = changed
        await cluster.open()
        tls = TlsEndpoint(open_tls(cluster))
        server = Server(
            Router(ClusterRoutes(cluster).routes()),
            [TcpEndpoint("127.0.0.1", self.settings.ports.cluster, "cluster", tls)],
            grace_s=0.2,
        )
        await server.__aenter__()
        self.cluster, self._server = cluster, server
        self._task = asyncio.get_running_loop().create_task(cluster.run())

    async def stop(self) -> None:
        if self._task is None or self.cluster is None or self._server is None:
            return
        task, self._task = self._task, None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await self._server.stop()
        await self.cluster.close()
        self.cluster = None

    async def kill(self) -> None:
        """End it as a power cut would: etcd first, without warning."""
        if (pid := self.now.store.pid) is not None:
            os.kill(pid, signal.SIGKILL)
        await self.stop()


def open_tls(cluster: Cluster) -> OpenTls:
    files = cluster.serving()
    return OpenTls(certificate_file=str(files.certificate_file), key_file=str(files.key_file))


@asynccontextmanager
async def started(*machines: Machine) -> AsyncIterator[None]:
    """Start machines, and stop all of them at the end, whatever happened."""
    try:
        for one in machines:
            await one.start()
        yield
    finally:
        for one in machines:
            await one.stop()


async def until(condition: Callable[[], object], *, what: str = "", within_s: float = 15.0) -> None:
    """Wait until a condition holds."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what or condition}") from None


async def all_ready(*machines: Machine, within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        for one in machines:
            await one.now.ready()


async def voters(machine: Machine, *ids: str, within_s: float = 15.0) -> tuple[RaftMember, ...]:
    """Wait until exactly these servers vote, as `machine` sees it, one of them leads and nobody else is listed."""
    found: tuple[RaftMember, ...] = ()
    try:
        async with asyncio.timeout(within_s):
            while True:
                with contextlib.suppress(Exception):
                    found = await machine.now.raft()
                if (
                    {one.id for one in found} == set(ids)
                    and all(one.is_voter for one in found)
                    and sum(one.is_leader for one in found) == 1
                ):
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s; members are {found}") from None


def trio(folder: Path, **changes: object) -> list[Machine]:
    """Three servers that form a cluster; the second and third know the first."""
    first = Machine(folder, "one", **changes)
    return [
        first,
        Machine(folder, "two", join=(first.contact,), **changes),
        Machine(folder, "three", join=(first.contact,), **changes),
    ]


def is_member(machine: Machine) -> bool:
    return machine.now.phase is Phase.MEMBER
