"""How messages get to a server: HTTPS with the machine's certificate."""

from __future__ import annotations

import io
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from waypost.base.errors import Unavailable, Unknown, WaypostError
from waypost.store.remote.protocol import CONTENT_TYPE, ERROR_HEADER, error_of, is_code

if TYPE_CHECKING:
    import aiohttp

CONNECT_S: Final = 2.0
_PIECE_BYTES: Final = 256 * 1024
_MAX_ERROR_BYTES: Final = 4096


class Transport(Protocol):
    """Carries one message to one server."""

    async def call(self, address: str, path: str, body: bytes) -> bytes:
        """Return the answer. Raises Unavailable when the server never got the message, Unknown when its answer is
        missing, else the error that the server answered.
        """
        ...

    def stream(self, address: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the answer as it comes; raises as `call` does, Unknown also when it breaks off."""
        ...

    async def close(self) -> None:
        """Close all connections. Safe to call twice; a later call opens new ones."""
        ...


class Exchange(msgspec.Struct, frozen=True):
    """An answer whose body is still to come."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """In order; names as sent."""
    chunks: AsyncIterator[bytes]
    size_bytes: int | None
    """Of the body, when the server said so."""


class HttpTransport:
    """A transport with connections that are kept. One event loop only.

    `tls` is asked for each message and returns the context with the client's certificate, the same one until the
    certificate is renewed. None: plain HTTP, for tests. `server_name`: what the servers' certificates are issued for,
    where that is not their address.
    """

    def __init__(
        self,
        *,
        tls: Callable[[], ssl.SSLContext] | None,
        server_name: str = "",
        connect_s: float = CONNECT_S,
    ) -> None:
        self._tls = tls
        self._server_name = server_name
        self._connect_s = connect_s
        self._session: aiohttp.ClientSession | None = None

    async def call(self, address: str, path: str, body: bytes) -> bytes:
        """Return the answer; see `Transport.call`."""
        async with self.exchange(address, path, body) as answer:
            content = b"".join([chunk async for chunk in answer.chunks])
        if answer.status != 200:
            raise _error(answer, content, f"{address}{path}")
        return content

    async def stream(self, address: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the answer as it comes; see `Transport.stream`."""
        async with self.exchange(address, path, body) as answer:
            if answer.status != 200:
                content = b"".join([chunk async for chunk in answer.chunks])
                raise _error(answer, content, f"{address}{path}")
            async for chunk in answer.chunks:
                yield chunk

    @asynccontextmanager
    async def exchange(
        self, address: str, path: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Exchange, None]:
        """Send a message and have the answer's head, whatever its status; the body is read from `chunks`.

        Raises Unavailable when the server never got the message, Unknown when the answer is missing or breaks off.
        """
        import aiohttp

        session = self._open()
        context = None if self._tls is None else self._tls()
        scheme = "http" if context is None else "https"
        try:
            async with session.post(
                f"{scheme}://{address}{path}",
                # As a file it is sent piece by piece, and the loop has time for others.
                data=body if len(body) <= _PIECE_BYTES else io.BytesIO(body),
                headers={
                    "Content-Type": CONTENT_TYPE,
                    "Accept-Encoding": "identity",
                    **(headers or {}),
                },
                ssl=True if context is None else context,
                server_hostname=(self._server_name or None) if context is not None else None,
                allow_redirects=False,
            ) as answer:
                yield Exchange(
                    status=answer.status,
                    headers=tuple(answer.headers.items()),
                    chunks=_chunks(answer, address),
                    size_bytes=answer.content_length,
                )
        except aiohttp.ClientConnectorError as exc:
            raise Unavailable(f"server {address}: {exc.os_error.strerror or exc}") from exc
        except aiohttp.ConnectionTimeoutError as exc:
            raise Unavailable(f"server {address}: cannot connect in {self._connect_s:g}s") from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise Unknown(f"server {address}: {exc or type(exc).__name__}") from exc

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s),
                # Who calls bounds how many calls run at once; the limits here would only queue watches behind them.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
                trust_env=False,
                auto_decompress=False,
            )
        return self._session


async def _chunks(answer: aiohttp.ClientResponse, address: str) -> AsyncIterator[bytes]:
    import aiohttp

    try:
        while chunk := await answer.content.readany():
            yield chunk
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        raise Unknown(f"server {address}: the answer broke off") from exc


def _error(answer: Exchange, content: bytes, what: str) -> WaypostError:
    code = next((v for n, v in answer.headers if n.lower() == ERROR_HEADER.lower()), "")
    text = content[:_MAX_ERROR_BYTES].decode("utf-8", "replace")
    if is_code(code):
        return error_of(code, text)
    # Nobody of ours answered: another program, or a server that does not serve this yet.
    return Unavailable(f"server {what}: status {answer.status}")
