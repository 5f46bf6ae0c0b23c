"""The HTTP server: endpoints, connections, limits, start and stop.

A surface describes its routes and hands them to the server::

    async def read(request: Request) -> Response:
        request.may_interrupt = True           # a stopping server need not wait for this one
        await something_new(request.query.get("index"))
        return Response(body=b"[]", content_type="application/json")

    def leader(request: Request) -> Response:  # without await: answered within the same read
        return Response(body=b'"10.0.0.1:8300"', content_type="application/json")

    router = Router([
        Route("/v1/status/leader", {"GET": leader}),
        Route("/v1/kv/", {"GET": read, "PUT": write}, is_prefix=True, limit=BodyLimit(524288)),
    ])
    server = Server(router, [TcpEndpoint("127.0.0.1", 8500), UnixEndpoint("/run/waypost.sock")])
    async with server:                         # listening; `server.addresses` has the real ports
        await server.run()                     # until cancelled

What the server does itself: HTTP/1.1 with keep-alive, pipelining and `Expect: 100-continue`; gzip;
Date; sizes and times in `Limits`; the number of connections of one address; tidy stop. What it asks
of others: an `App` (mostly a `Router`) for answers, body limits and the form of errors, and
optionally `fast`, which may answer a body-less request without further parsing:

    cache: AnswerCache[Index] = AnswerCache(lambda index: view.index == index)
    def fast(head: Head, peer: Peer) -> Rendered | None:
        return cache.get(head.target) if head.is_plain and peer.is_anonymous else None

A handler fills such a cache with `cache.put(head.target, Rendered(response), validity=index)` and may
return the `Rendered` itself; many woken waiters can share one.

TLS: `TcpEndpoint("0.0.0.0", 8501, "https", OpenTls(certificate_file=…, key_file=…))` takes any client
certificate into `request.peer.certificates_der`, unverified; an `ssl.SSLContext` verifies, and refuses by
breaking the handshake off. `TlsEndpoint(OpenTls(…))` in that place can be given other files while the server runs
(`replace`): new handshakes get them, listeners and open connections go on.

Errors: a handler raises what is in `waypost.base.errors`; the text goes to the client with the status
of `status.STATUS`. Anything else is a fault of ours: logged with its traceback, answered with 500, and
the connection goes on. Streams: `Response(stream=…)` with an async iterator, sent chunked with
back-pressure; it ends when the client goes away.

Sources: RFC 9110, RFC 9112; limits of Consul (200 connections an address) and of Go's net/http.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from email.utils import formatdate
from types import TracebackType
from typing import Self

import msgspec

from waypost.base.clock import Clock, SystemClock
from waypost.surfaces.http.cache import HeadMemo
from waypost.surfaces.http.connection import Connection
from waypost.surfaces.http.endpoint import (
    Endpoint,
    Listener,
    TcpEndpoint,
    UnixEndpoint,
    open_endpoint,
    peer_of,
)
from waypost.surfaces.http.message import Fast, Request, Response, status_line, text_response
from waypost.surfaces.http.router import App
from waypost.surfaces.http.tls import OpenTls, TlsEndpoint

__all__ = ["Limits", "OpenTls", "Server", "TcpEndpoint", "TlsEndpoint", "UnixEndpoint"]

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_OPENINGS_MAX = 64


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that keep one client from hurting the others."""

    head_bytes: int = 65536
    """Request line and headers together; more is answered with 431."""
    head_s: float = 10.0
    """From the first byte of a request to the end of its headers; then 408."""
    body_s: float = 30.0
    """Without a byte of an announced body; then 408."""
    idle_s: float = 120.0
    """Between requests. Longer than the 90 s after which Go's clients give up an idle connection."""
    write_s: float = 60.0
    """A client that takes no bytes for so long is dropped."""
    linger_s: float = 2.0
    """Time for the client to read a last answer while its own bytes are thrown away."""
    large_body_bytes: int = 8 * 2**20
    """A body above this counts as large: it lies in memory as a whole."""
    large_bodies: int = 2
    """Large bodies at once, until their requests are answered; then 503."""
    connections_per_address: int = 200
    """Over TCP; then 429. Unix sockets count only into the total."""
    connections: int = 20000
    """Of the whole server; then 503."""


class Server:
    """Serves one `App` on many endpoints. Use as an async context manager; see the module's text.

    `headers` are added to every answer (Consul's `http_config.response_headers`).
    `interrupted` makes the answer for a request whose handler was cancelled by the stop.
    `grace_s`: at stop, running handlers get so long, those that set `may_interrupt` nothing.
    """

    def __init__(
        self,
        app: App,
        endpoints: Iterable[Endpoint],
        *,
        fast: Fast | None = None,
        limits: Limits | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        interrupted: Callable[[Request], Response] | None = None,
        grace_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self.app = app
        self.fast = fast
        self.limits = limits or Limits()
        self.clock: Clock = clock or SystemClock()
        self.memo = HeadMemo()
        self.stopping = False
        self.tick_s = 0.0
        """Seconds that the loop has run, as of the last sweep: a coarse clock for the limits of time.

        A stall counts as one sweep; what clients sent meanwhile could not be read.
        """
        self.answers: Counter[int] = Counter()
        """Status code → number of answers so far."""
        self._endpoints = tuple(endpoints)
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers)
        if self._headers.count("\n") != len(headers):
            raise ValueError("a response header holds a line break")
        self._interrupted = interrupted
        self._grace_s = grace_s
        self._listeners: list[Listener] = []
        self._connections: set[Connection] = set()
        self._per_address: dict[str, int] = {}
        self._large = 0
        self._over: set[str] = set()
        self._openings: dict[int, bytes] = {}
        self._swept_s = 0.0
        self._sweeper: asyncio.TimerHandle | None = None

    def take_large(self) -> bool:
        """Count one more large body, if there may be one; who got True calls `release_large` once."""
        if self._large >= self.limits.large_bodies:
            return False
        self._large += 1
        return True

    def release_large(self) -> None:
        """Count one large body less."""
        self._large -= 1

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    # -- life ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open every endpoint. Raises Unavailable (`listen tcp …: bind: address already in use`)."""
        loop = asyncio.get_running_loop()
        self.stopping = False
        self._swept_s = loop.time()
        self._sweep()
        try:
            for endpoint in self._endpoints:
                self._listeners.append(await open_endpoint(endpoint, self._protocol))
        except BaseException:
            await self.stop()
            raise
        for listener in self._listeners:
            log.debug("%s: listening on %s", listener.endpoint.name, ", ".join(listener.addresses))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def run(self) -> None:
        """Serve until cancelled, then stop tidily. Opens the endpoints unless that was done."""
        if self._listeners:
            await asyncio.get_running_loop().create_future()
        else:
            async with self:
                await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        """Take no more connections, close idle ones, let running handlers end within the grace."""
        self.stopping = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        try:
            running = [task for c in tuple(self._connections) if (task := c.stop(now=False))]
            if running:
                await asyncio.wait(running, timeout=self._grace_s)
            running = [task for c in tuple(self._connections) if (task := c.stop(now=True))]
            if running:
                await asyncio.wait(running, timeout=1.0)
            for _ in range(20):  # flushing the last answers
                if not self._connections:
                    break
                await asyncio.sleep(0.01)
        finally:
            for connection in tuple(self._connections):
                connection.abort()
            if self._sweeper is not None:
                self._sweeper.cancel()
                self._sweeper = None
        for listener in listeners:
            await listener.wait_closed()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, with real ports: `127.0.0.1:8500`, `[::1]:8500`, `unix:///run/x.sock`."""
        return tuple(a for listener in self._listeners for a in listener.addresses)

    def port(self, name: str) -> int:
        """Return the real TCP port of the endpoint called `name`. Raises KeyError."""
        for listener in self._listeners:
            if listener.endpoint.name == name and listener.port:
                return listener.port
        raise KeyError(name)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    # -- for connections -------------------------------------------------------------------------------

    def _protocol(self, endpoint: Endpoint) -> Connection:
        return Connection(self, endpoint=endpoint, loop=asyncio.get_running_loop())

    def admit(self, connection: Connection, transport: asyncio.Transport) -> Response | None:
        """Count a new connection and fill in its peer; return the refusal when there are too many."""
        peer = peer_of(transport, connection.endpoint)
        connection.peer = peer
        self._connections.add(connection)
        if len(self._connections) > self.limits.connections:
            return _FULL
        if peer.is_unix:
            return None
        address = peer.address
        count = self._per_address.get(address, 0) + 1
        self._per_address[address] = count
        if count <= self.limits.connections_per_address:
            return None
        if address not in self._over:
            self._over.add(address)
            log.warning(
                "%s has more than %d connections, refusing the ones above",
                address,
                self.limits.connections_per_address,
            )
        return _TOO_MANY

    def forget(self, connection: Connection) -> None:
        """Uncount a connection that ended."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        address = connection.peer.address
        count = self._per_address.get(address, 0) - 1
        if count > 0:
            self._per_address[address] = count
            if count <= self.limits.connections_per_address // 2:
                self._over.discard(address)
        else:
            self._per_address.pop(address, None)
            self._over.discard(address)

    def opening(self, status: int) -> bytes:
        """Return the status line, Date and the headers that every answer has, and count the answer."""
        self.answers[status] += 1
        opening = self._openings.get(status)
        if opening is None:
            date = formatdate(self.clock.wall(), usegmt=True)
            opening = f"{status_line(status)}Date: {date}\r\n{self._headers}".encode()
            if len(self._openings) < _OPENINGS_MAX:
                self._openings[status] = opening
        return opening

    def interrupted(self, request: Request) -> Response:
        """Return the answer for a request that the stop cuts off."""
        return _STOPPING if self._interrupted is None else self._interrupted(request)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        self.tick_s += min(now_s - self._swept_s, 2 * _SWEEP_S)
        self._swept_s = now_s
        self._openings.clear()
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        for connection in tuple(self._connections):
            connection.sweep(self.tick_s)


def _closing(status: int, text: str) -> Response:
    return Response(
        status=status,
        body=text.encode(),
        content_type="text/plain; charset=utf-8",
        vary=False,
        close=True,
    )


_TOO_MANY = _closing(
    429, "Your IP is issuing too many concurrent connections, please rate limit your calls"
)
_FULL = _closing(503, "too many connections")
_STOPPING = text_response(503, "the agent is stopping")
