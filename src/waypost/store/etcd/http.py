"""HTTP/1.1 to etcd: POST and what comes back, over connections that are kept, by TCP, TLS or a unix socket.

Made for what the gateway is asked: one small request, one small answer, and one stream that never ends. A request costs a fifth
of the CPU time that a general client takes for it (docs/adr/0008).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

UNIX: Final = "unix:"
"""Begins an endpoint that is the path of a socket: plain HTTP, for whoever may open the file."""

IDLE_MAX: Final = 64
"""Connections kept to one endpoint while nothing is asked. More may be in use."""

BUFFER_BYTES: Final = 2**20
"""Of a stream that nobody reads, after which no more is taken from the socket."""


class Broken(Exception):
    """There is no answer. `is_sent`: the request may have got there."""

    def __init__(self, cause: Exception, *, is_sent: bool) -> None:
        super().__init__(str(cause) or type(cause).__name__)
        self.cause = cause
        self.is_sent = is_sent


class Answer:
    """An answer as it comes in."""

    __slots__ = ("_connection", "_error", "_is_complete", "_pieces", "_size", "_wake", "status")

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._wake: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._is_complete = False

    @property
    def is_complete(self) -> bool:
        """Whether nothing more comes."""
        return self._is_complete

    async def begun(self) -> None:
        """Return when `status` is known. Raises Broken."""
        while not self.status:
            await self._more()

    async def body(self) -> bytes:
        """Return the whole body. Raises Broken."""
        while not self._is_complete:
            await self._more()
        return self._take()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises Broken when it breaks off."""
        while True:
            if self._pieces:
                yield self._take()
            elif self._is_complete:
                return
            else:
                await self._more()

    def _take(self) -> bytes:
        found = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self._connection.resume()
        return found

    async def _more(self) -> None:
        if self._error is not None:
            raise Broken(self._error, is_sent=True)
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    # What the connection says.

    def add(self, piece: bytes) -> bool:
        """Take a piece of the body; return whether there is too much of it."""
        self._pieces.append(piece)
        self._size += len(piece)
        return self._size > BUFFER_BYTES

    def end(self, error: Exception | None) -> None:
        """Nothing more comes."""
        if error is None:
            self._is_complete = True
        elif not self._is_complete:
            self._error = error
        self.notify()

    def notify(self) -> None:
        """Wake who waits for more."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, endpoint: str, owner: Connections) -> None:
        self.endpoint = endpoint
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._is_paused = False
        self.is_open = False
        self.is_streaming = False
        """The pieces of the body are wanted as they come."""

    def ask(self, request: bytes, *, is_stream: bool) -> Answer:
        """Send a request. The connection must be open and unused."""
        assert self._transport is not None
        self.is_streaming = is_stream
        self._answer = answer = Answer(self)
        self._transport.write(request)
        return answer

    @property
    def is_free(self) -> bool:
        """Whether another request may be sent."""
        return self.is_open and self._answer is None

    def close(self) -> None:
        """Give the connection up, with whatever is under way."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """Read on, if that was stopped because nobody took what came."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True
        self._owner.made(self)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:  # nobody has asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lose(error)
            return
        if self.is_streaming:
            answer.notify()

    def eof_received(self) -> None:
        self._lose(ConnectionResetError("the connection was closed"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(exc or ConnectionResetError("the connection was closed"))
        self._owner.lost(self)

    def _lose(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        self.close()
        if answer is not None:
            answer.end(error)

    # -- httptools -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answer is None:  # right behind an answer, another that nobody asked for
            self.close()

    def on_headers_complete(self) -> None:
        if self._answer is not None:
            self._answer.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        if self._answer is not None and self._answer.add(piece) and self.is_streaming:
            assert self._transport is not None
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if answer.status < 200:  # 100 Continue: the real one follows
            answer.status = 0
            self._answer = answer
            return
        if not self._parser.should_keep_alive():
            self.close()
        answer.end(None)


class Connections:
    """Connections to any number of endpoints: `https://HOST:PORT`, `http://HOST:PORT`, `unix:PATH`. One event loop only."""

    def __init__(self, *, tls: ssl.SSLContext | None, connect_s: float) -> None:
        """`tls`: None trusts the system's authorities and shows no certificate."""
        self._tls = tls
        self._connect_s = connect_s
        self._idle: dict[str, list[_Connection]] = {}
        self._open: set[_Connection] = set()

    async def post(
        self, endpoint: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """Return status and body. Raises Broken."""
        connection = await self._get(endpoint)
        try:
            answer = connection.ask(_request(endpoint, path, body, headers), is_stream=False)
            found = await answer.body()
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return answer.status, found

    @asynccontextmanager
    async def stream(
        self, endpoint: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Hand out an answer of which the status is known. Raises Broken."""
        connection = await self._get(endpoint)
        try:
            answer = connection.ask(_request(endpoint, path, body, headers), is_stream=True)
            await answer.begun()
            yield answer
        finally:
            connection.close()

    def close(self) -> None:
        """Close all connections; requests under way raise Broken."""
        for connection in list(self._open):
            connection.close()
        self._idle.clear()

    async def _get(self, endpoint: str) -> _Connection:
        idle = self._idle.get(endpoint, [])
        while idle:
            if (connection := idle.pop()).is_free:
                return connection
        loop = asyncio.get_running_loop()

        def make() -> _Connection:
            return _Connection(endpoint, self)

        try:
            async with asyncio.timeout(self._connect_s):
                if endpoint.startswith(UNIX):
                    path = endpoint.removeprefix(UNIX)
                    _, connection = await loop.create_unix_connection(make, path)
                else:
                    url = urlsplit(endpoint)
                    is_tls = url.scheme == "https"
                    if is_tls and self._tls is None:
                        self._tls = ssl.create_default_context()
                    _, connection = await loop.create_connection(
                        make,
                        url.hostname or "",
                        url.port or (443 if is_tls else 80),
                        ssl=self._tls if is_tls else None,
                        server_hostname=url.hostname if is_tls else None,
                    )
        except (OSError, TimeoutError) as error:  # of TLS too
            raise Broken(error, is_sent=False) from error
        return connection

    def _keep(self, connection: _Connection) -> None:
        idle = self._idle.setdefault(connection.endpoint, [])
        if connection.is_free and len(idle) < IDLE_MAX:
            idle.append(connection)
        else:
            connection.close()

    def made(self, connection: _Connection) -> None:
        """Know a connection, so that it can be closed."""
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        """Forget a connection that is gone."""
        self._open.discard(connection)
        idle = self._idle.get(connection.endpoint, [])
        if connection in idle:
            idle.remove(connection)


def _request(endpoint: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    host = "localhost" if endpoint.startswith(UNIX) else urlsplit(endpoint).netloc
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body)}\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1") + body
