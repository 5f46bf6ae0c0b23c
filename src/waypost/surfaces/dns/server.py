"""The DNS server: sockets, datagrams, streams, start and stop.

    server = DnsServer(settings, OpenAdmission(view), [("127.0.0.1", 8600)])
    async with server:                 # bound; `server.addresses` has the real ports
        await server.run()             # answers until cancelled

UDP is read from the bare socket, many datagrams a system call, without a callback and a task for each. A datagram that
cannot be sent at once is dropped, as the network may do anyway, and counted; the client asks again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from waypost.base.clock import Clock, SystemClock
from waypost.base.errors import Unavailable
from waypost.surfaces.dns.catalog import Admission, Datacenters, Finder
from waypost.surfaces.dns.responder import Deferred, Responder
from waypost.surfaces.dns.settings import DnsSettings
from waypost.surfaces.dns.stream import Stream
from waypost.surfaces.dns.udp import Datagrams

log = logging.getLogger(__name__)

Address = tuple[str, int]

_PORT_TRIES: Final = 16


class DnsLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that keep one client from hurting the others."""

    deferred: int = 1024
    """Queries that wait for recursors; one more over UDP is dropped, over TCP it closes the connection."""
    connections: int = 1024
    """TCP connections; one more is closed at once."""
    connections_per_address: int = 128
    idle_s: float = 10.0
    """A TCP connection without a query for so long is closed (RFC 7766 §6.2.3)."""
    stream_deferred: int = 32
    """Queries of one TCP connection that wait for recursors; it is not read meanwhile."""


class DnsServer:
    """Serves the catalog over UDP and TCP on every address. Use as an async context manager; see the module's text."""

    def __init__(
        self,
        settings: DnsSettings,
        admission: Admission,
        addresses: Iterable[Address],
        *,
        finder: Finder | None = None,
        datacenters: Datacenters | None = None,
        limits: DnsLimits | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.limits = limits or DnsLimits()
        self.responder = Responder(
            settings,
            admission,
            clock=clock or SystemClock(),
            rng=rng or random.SystemRandom(),
            finder=finder,
            datacenters=datacenters,
        )
        self.dropped = 0
        """Datagrams and connections given up for a limit or a full socket."""
        self._wanted = tuple(addresses)
        self._udp: list[Datagrams] = []
        self._tcp: list[socket.socket] = []
        self._streams: set[Stream] = set()
        self._group: asyncio.TaskGroup | None = None
        self._deferred = 0

    @property
    def addresses(self) -> Sequence[Address]:
        """What is bound, with the real ports; UDP and TCP alike."""
        return [udp.address for udp in self._udp]

    async def answer(self, data: bytes, peer: str, tcp: bool) -> bytes | None:  # noqa: FBT001
        """Return the reply to one message of `peer`, however long it takes; None for silence."""
        self.responder.begin()
        reply = self.responder.respond(data, peer, tcp)
        return await self.responder.finish(reply) if isinstance(reply, Deferred) else reply

    def configure(self, settings: DnsSettings) -> None:
        """Answer by other settings from now on. Raises Malformed and then keeps the old ones."""
        self.responder.configure(settings)

    # -- life --------------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Bind every address. Raises Unavailable (`listen udp 127.0.0.1:53: bind: address already in use`)."""
        try:
            for host, port in self._wanted:
                udp, tcp = _bind_pair(host, port)
                self._udp.append(Datagrams(udp, self))
                self._tcp.append(tcp)
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every socket."""
        self._close()

    async def run(self, *, ready: Callable[[], None] | None = None) -> None:
        """Answer until cancelled, then close. `ready` is called once it answers."""
        loop = asyncio.get_running_loop()
        servers: list[asyncio.Server] = []
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for udp in self._udp:
                    udp.start(loop)
                for sock in self._tcp:
                    servers.append(  # noqa: PERF401
                        await loop.create_server(self._stream, sock=sock, backlog=128)
                    )
                log.debug("dns listening on %s", ", ".join(f"{h}:{p}" for h, p in self.addresses))
                if ready is not None:
                    ready()
                await loop.create_future()
        finally:
            self._group = None
            for server in servers:
                server.close()
            self._close()

    def _stream(self) -> Stream:
        return Stream(self)

    def _close(self) -> None:
        for udp in self._udp:
            udp.close()
        for sock in self._tcp:
            sock.close()
        for stream in list(self._streams):
            stream.abort()
        self._udp.clear()
        self._tcp.clear()

    # -- for datagrams and streams -----------------------------------------------------------------------------------------

    def admit_stream(self, stream: Stream) -> bool:
        """Return whether one more connection is welcome, and count it."""
        same = sum(1 for other in self._streams if other.peer == stream.peer)
        if (
            len(self._streams) >= self.limits.connections
            or same >= self.limits.connections_per_address
        ):
            self.dropped += 1
            return False
        self._streams.add(stream)
        return True

    def forget_stream(self, stream: Stream) -> None:
        """Stop counting a connection."""
        self._streams.discard(stream)

    def defer(self, deferred: Deferred, reply: Callable[[bytes], None]) -> bool:
        """Finish a query in a task and give its reply to `reply`; False when there are too many."""
        if self._group is None or self._deferred >= self.limits.deferred:
            self.dropped += 1
            return False
        self._deferred += 1
        self._group.create_task(self._finish(deferred, reply), name="dns.recursor")
        return True

    async def _finish(self, deferred: Deferred, reply: Callable[[bytes], None]) -> None:
        try:
            reply(await self.responder.finish(deferred))
        finally:
            self._deferred -= 1


def _bind_pair(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a TCP socket on one address; for port 0 on one free port."""
    for attempt in range(_PORT_TRIES):
        udp = _bind(socket.SOCK_DGRAM, host, port)
        try:
            return udp, _bind(socket.SOCK_STREAM, host, udp.getsockname()[1])
        except Unavailable:
            udp.close()
            if port or attempt == _PORT_TRIES - 1:
                raise
    msg = f"no port of {host} is free for both UDP and TCP"
    raise Unavailable(msg)


def _bind(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(0)
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        transport = "udp" if kind == socket.SOCK_DGRAM else "tcp"
        shown = f"[{host}]" if ":" in host else host
        reason = (exc.strerror or str(exc)).lower()
        msg = f"listen {transport} {shown}:{port}: bind: {reason}"
        raise Unavailable(msg) from exc
    return sock
