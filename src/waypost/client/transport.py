"""Carries calls out: `Client` blocks (commands that ask once), `AsyncClient` does not (whatever runs long).

`Client` uses the standard library's HTTP client: importing it takes 45 ms less than aiohttp's 500 ms, and a
command asks once or twice. `AsyncClient` imports aiohttp when it is opened.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

from waypost.client.blocking import Poll
from waypost.client.call import Call, Response, headers, target, url
from waypost.client.errors import Unreachable
from waypost.client.settings import ClientSettings, TlsSettings

if TYPE_CHECKING:
    import random

    import aiohttp

T = TypeVar("T")

CONNECT_TIMEOUT_S = 30.0
WATCH_WAIT_S = 60.0
_ANSWER_GRACE_S = 15.0
"""Beyond the asked-for wait: the server adds up to a sixteenth of it, and the way there and back."""
_STREAM_CHUNK_BYTES = 64 * 1024


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return the context for HTTPS. Raises Unreachable if a file cannot be read."""
    try:
        context = ssl.create_default_context(
            cafile=tls.ca_file or None, capath=tls.ca_path or None, cadata=tls.ca_pem or None
        )
        if tls.client_cert:
            context.load_cert_chain(tls.client_cert, tls.client_key or None)
        elif tls.client_pem.strip():
            _load_pem(context, tls.client_pem)
    except OSError as exc:
        files = [
            name for name in (tls.ca_file, tls.ca_path, tls.client_cert, tls.client_key) if name
        ]
        raise Unreachable(f"cannot load the TLS files {', '.join(files)}: {exc}") from exc
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    # The standard library takes certificate and key from files only; this one is gone at once.
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="waypost-") as file:  # mode 0600
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)


class _Connection(http.client.HTTPConnection):
    """A connection by TCP, TLS or a Unix socket, whichever the settings say."""

    def __init__(self, settings: ClientSettings) -> None:
        super().__init__(settings.host or "localhost", settings.port or None)
        self._settings = settings

    def connect(self) -> None:
        settings = self._settings
        if settings.socket_path:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(settings.socket_path)
            except BaseException:
                sock.close()
                raise
            self.sock = sock
            return
        self.sock = socket.create_connection(
            (settings.host, settings.port), timeout=CONNECT_TIMEOUT_S
        )
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if settings.scheme == "https":
            context = tls_context(settings.tls)
            name = settings.tls.server_name or settings.host
            self.sock = context.wrap_socket(self.sock, server_hostname=name)


class Client:
    """Speaks to one agent, one call after the other, over one connection. Not safe for several threads."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._connection: _Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def do(self, call: Call[T]) -> T:
        """Carry out `call`. Raises Unreachable, UnexpectedResponse, UnreadableResponse."""
        return self.ask(call)[0]

    def ask(self, call: Call[T], *, index: int = 0, wait_s: float = 0.0) -> tuple[T, int]:
        """Return the result and its index; with `index`, wait up to `wait_s` for one that is newer."""
        where = target(call, self.settings, index=index, wait_s=wait_s)
        timeout_s = wait_s * 17 / 16 + _ANSWER_GRACE_S if index else None
        answer = self._send(call, where, timeout_s=timeout_s)
        try:
            body = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise self._unreachable(call, where, exc) from exc
        found = {name.lower(): value for name, value in answer.getheaders()}
        response = Response(answer.status, found, body)
        return call.read(response), response.index

    def watch(self, call: Call[T], *, wait_s: float = WATCH_WAIT_S) -> Iterator[tuple[T, int]]:
        """Yield the result and its index now and after every change. Raises as `do` does."""
        poll = Poll()
        while True:
            result, index = self.ask(call, index=poll.index, wait_s=wait_s)
            poll, changed = poll.answered(index)
            if changed:
                yield result, index

    def stream(self, call: Call[Any]) -> Iterator[bytes]:
        """Yield the answer's body as it comes, until the agent ends it. Raises as `do` does."""
        where = target(call, self.settings)
        answer = self._send(call, where, timeout_s=None)
        try:
            if answer.status not in call.expect:
                call.read(Response(answer.status, {}, answer.read()))
            while chunk := answer.read1(_STREAM_CHUNK_BYTES):
                yield chunk
        except (OSError, http.client.HTTPException) as exc:
            raise self._unreachable(call, where, exc) from exc
        finally:
            self.close()

    def _send(
        self, call: Call[Any], where: str, *, timeout_s: float | None
    ) -> http.client.HTTPResponse:
        reused = self._connection is not None
        if self._connection is None:
            self._connection = _Connection(self.settings)
        try:
            if self._connection.sock is None:
                self._connection.connect()
            self._connection.sock.settimeout(timeout_s)
            self._connection.request(
                call.method, where, body=call.body, headers=headers(call, self.settings)
            )
            return self._connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            # The agent may close an idle connection at any time; only a read is safe to send again.
            idle_closed = isinstance(exc, http.client.RemoteDisconnected | BrokenPipeError)
            if reused and idle_closed and call.method == "GET":
                return self._send(call, where, timeout_s=timeout_s)
            raise self._unreachable(call, where, exc) from exc

    def _unreachable(self, call: Call[Any], where: str, exc: Exception) -> Unreachable:
        verb = call.method.capitalize()
        return Unreachable(f'{verb} "{url(where, self.settings)}": {describe(exc, self.settings)}')


def describe(exc: BaseException, settings: ClientSettings) -> str:
    """Return what went wrong on the way, in the words of Go's network library."""
    if isinstance(exc, socket.gaierror):
        return f"dial tcp: lookup {settings.host}: no such host"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"x509: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        if exc.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return "http: server gave HTTP response to HTTPS client"
        return f"tls: {(exc.reason or str(exc)).lower().replace('_', ' ')}"
    if isinstance(exc, http.client.RemoteDisconnected | http.client.IncompleteRead):
        return "EOF"
    if isinstance(exc, TimeoutError):
        return "net/http: timeout awaiting response"
    if isinstance(exc, OSError) and exc.errno is not None:
        text = os.strerror(exc.errno).lower()
        if exc.errno in _CONNECT_ERRNOS:
            return f"dial {_dialled(settings)}: connect: {text}"
        return text
    return " ".join(str(exc).split()) or type(exc).__name__


def _dialled(settings: ClientSettings) -> str:
    """Return what was dialled: the socket, or the address that the host's name stands for."""
    if settings.socket_path:
        return f"unix {settings.socket_path}"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[-1]
    except OSError:
        return f"tcp {settings.authority}"
    host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    return f"tcp {host}:{settings.port}"


_CONNECT_ERRNOS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ENOENT,
        errno.EACCES,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.ENOTSOCK,
    }
)


class AsyncClient:
    """Speaks to one agent from asyncio; use it as an async context manager. Calls may run side by side."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        settings = self.settings
        connector: aiohttp.BaseConnector
        if settings.socket_path:
            connector = aiohttp.UnixConnector(path=settings.socket_path)
        elif settings.scheme == "https":
            connector = aiohttp.TCPConnector(ssl=tls_context(settings.tls), limit=0)
        else:
            connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def do(self, call: Call[T]) -> T:
        """Carry out `call`. Raises Unreachable, UnexpectedResponse, UnreadableResponse."""
        return (await self.ask(call))[0]

    async def ask(self, call: Call[T], *, index: int = 0, wait_s: float = 0.0) -> tuple[T, int]:
        """Return the result and its index; with `index`, wait up to `wait_s` for one that is newer."""
        import aiohttp
        from yarl import URL

        if self._session is None:
            raise RuntimeError("AsyncClient is used outside its `async with`")
        settings = self.settings
        where = target(call, settings, index=index, wait_s=wait_s)
        authority = "localhost" if settings.socket_path else settings.authority
        timeout_s = wait_s * 17 / 16 + _ANSWER_GRACE_S if index else None
        try:
            async with self._session.request(
                call.method,
                URL(f"{settings.scheme}://{authority}{where}", encoded=True),
                data=call.body,
                headers=headers(call, settings),
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
                server_hostname=settings.tls.server_name or None,
                allow_redirects=False,
            ) as answer:
                body = await answer.read()
                found = {name.lower(): value for name, value in answer.headers.items()}
                response = Response(answer.status, found, body)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            cause = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
            text = (
                f'{call.method.capitalize()} "{url(where, settings)}": {describe(cause, settings)}'
            )
            raise Unreachable(text) from exc
        return call.read(response), response.index

    async def watch(
        self, call: Call[T], *, rng: random.Random, wait_s: float = WATCH_WAIT_S
    ) -> AsyncGenerator[T, None]:
        """Yield the result now and after every change, for ever; an agent that is away is asked again later.

        Raises UnexpectedResponse with a status below 500, which asking again would not mend.
        """
        import asyncio
        import logging

        from waypost.client.errors import UnexpectedResponse

        log = logging.getLogger(__name__)
        poll = Poll()
        while True:
            try:
                result, index = await self.ask(call, index=poll.index, wait_s=wait_s)
            except (Unreachable, UnexpectedResponse) as exc:
                if isinstance(exc, UnexpectedResponse) and exc.status < 500:
                    raise
                poll, delay_s = poll.failed(rng)
                log.warning("watching %s failed, again in %.1f s: %s", call.path, delay_s, exc)
                await asyncio.sleep(delay_s)
                continue
            poll, changed = poll.answered(index)
            if changed:
                yield result
