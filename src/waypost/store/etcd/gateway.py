"""etcd's JSON gateway over HTTP: the one place where requests to etcd are sent.

Everything here is one attempt at one endpoint, or attempts that may be repeated safely. What may not be repeated, a
write, is made repeatable by `lanes`.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, TypeVar

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import NoLeader
from waypost.store.etcd.auth import EtcdAuth, Tokens, is_stale
from waypost.store.etcd.endpoints import Endpoints
from waypost.store.etcd.failure import Failure, not_done, parse_failure
from waypost.store.etcd.tls import Credentials, EtcdTls

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

HAS_LEADER = {"Grpc-Metadata-hasleader": "true", "Content-Type": "application/json"}
"""A member without a leader says so at once, and ends its watches, instead of keeping silent."""

PLAIN = {"Content-Type": "application/json"}

PAUSE_S = (0.02, 0.5)
"""First and longest pause when every endpoint has failed."""

_LARGE_BYTES = 2**19
"""From here on a body is written in pieces, so that the loop goes on meanwhile."""

_MAX_LINE_BYTES = 64 * 2**20


T = TypeVar("T")


def decode(answer: bytes, decoder: msgspec.json.Decoder[T], endpoint: str) -> T:
    """Return what an answer says. Raises Failure when it is not what etcd says."""
    try:
        return decoder.decode(answer)
    except msgspec.MsgspecError as error:
        text = f"an answer that cannot be read: {error}"
        raise Failure(text, outcome="unknown", endpoint=endpoint) from error


def _with(token: str, headers: Mapping[str, str]) -> Mapping[str, str]:
    return {**headers, "Authorization": token} if token else headers


def _reason(error: OSError) -> str:
    """Return why a connection was not made; asyncio's own text is only where it was to go."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
    number = error.errno or 0
    return (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()


def _distrust(error: Exception) -> str:
    """Return why a certificate of etcd's is not taken, in words for an operator."""
    why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else str(error)
    return f"certificate verify failed: {why} (-etcd-cafile names the authority)"


class Gateway:
    """etcd's endpoints behind one HTTP client. aiohttp is imported when it is opened."""

    def __init__(
        self,
        endpoints: Sequence[str] | Callable[[], Sequence[str]],
        *,
        tls: EtcdTls | None,
        clock: Clock,
        rng: Random,
        auth: EtcdAuth | None = None,
        attempt_timeout_s: float = 1.5,
    ) -> None:
        self.endpoints = Endpoints(endpoints, clock)
        self.attempt_timeout_s = attempt_timeout_s
        self._tls = tls
        self._clock = clock
        self._rng = rng
        self._tokens = None if auth is None else Tokens(auth)
        self._credentials: Credentials | None = None
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the HTTP client; connects to nobody. Raises Unavailable when the certificates cannot be used."""
        import aiohttp

        if self._session is not None:
            return
        if self._tls is not None:
            self._credentials = Credentials(self._tls, self._clock)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                ssl=True if self._credentials is None else self._credentials.context,
                keepalive_timeout=60,
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.attempt_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=2**20,
        )

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        endpoint: str,
        timeout_s: float,
        needs_leader: bool = True,
    ) -> bytes:
        """One attempt at one endpoint. Raises Failure, also NoLeader when the gateway is not open."""
        headers = HAS_LEADER if needs_leader else PLAIN

        async def send(token: str) -> bytes:
            return await self._send(
                path,
                body,
                endpoint=endpoint,
                timeout_s=timeout_s,
                headers=_with(token, headers),
            )

        if self._tokens is None:
            return await send("")
        token = await self._token(endpoint)
        try:
            return await send(token)
        except Failure as failure:
            if not is_stale(failure):
                raise
            self._tokens.stale(token)
        return await send(await self._token(endpoint))

    async def _token(self, endpoint: str) -> str:
        """Return what is shown to an etcd with authentication. Raises Failure."""
        if self._tokens is None:
            return ""

        async def post(path: str, body: bytes) -> bytes:
            return await self._send(
                path,
                body,
                endpoint=endpoint,
                timeout_s=self.attempt_timeout_s,
                headers=PLAIN,
            )

        return await self._tokens.get(post, endpoint=endpoint)

    async def _send(
        self, path: str, body: bytes, *, endpoint: str, timeout_s: float, headers: Mapping[str, str]
    ) -> bytes:
        session = self._ready()
        try:
            async with (
                asyncio.timeout(timeout_s),
                session.post(
                    endpoint + path,
                    data=body if len(body) < _LARGE_BYTES else io.BytesIO(body),
                    headers=headers,
                ) as response,
            ):
                answer = await response.read()
                status = response.status
        except TimeoutError as error:
            text = f"no answer within {timeout_s:g} s"
            raise Failure(text, outcome="unknown", endpoint=endpoint) from error
        except (OSError, self._client_error) as error:
            raise self._translated(error, endpoint) from error
        if status != 200 or not answer.startswith(b"{"):
            raise parse_failure(answer, status=status, endpoint=endpoint)
        return answer

    async def attempt(
        self,
        path: str,
        body: bytes,
        *,
        into: msgspec.json.Decoder[T],
        timeout_s: float | None = None,
    ) -> T:
        """One attempt at the endpoint that is best now; one that fails rests. Raises Failure."""
        endpoint = self.endpoints.pick()
        if endpoint is None:
            text = "no etcd endpoint is known"
            raise Failure(text, outcome="not_applied")
        limit_s = self.attempt_timeout_s if timeout_s is None else timeout_s
        try:
            answer = decode(
                await self.post(path, body, endpoint=endpoint, timeout_s=limit_s), into, endpoint
            )
        except Failure as failure:
            if failure.outcome != "refused":
                self.endpoints.failed(endpoint)
            raise
        self.endpoints.works(endpoint)
        return answer

    async def ask(
        self,
        path: str,
        body: bytes,
        *,
        into: msgspec.json.Decoder[T],
        at_most_s: float,
        attempt_s: float | None = None,
    ) -> T:
        """Ask until there is an answer. Only for what may be done twice.

        Raises Failure when etcd refuses, NoLeader when nobody has answered after `at_most_s`.
        """
        end = self._clock.now() + at_most_s
        last: Failure | None = None
        tries = 0
        while (left_s := end - self._clock.now()) > 0:
            limit_s = min(attempt_s or self.attempt_timeout_s, left_s)
            try:
                return await self.attempt(path, body, into=into, timeout_s=limit_s)
            except Failure as failure:
                if failure.outcome == "refused":
                    raise
                last = failure
            await self.pause(tries, at_most_s=max(0.0, end - self._clock.now()))
            tries += 1
        raise not_done(last, at_most_s=at_most_s)

    async def pause(
        self, tries: int, *, at_most_s: float = PAUSE_S[1], always: bool = False
    ) -> None:
        """Wait before the next attempt, but unless `always` not while an endpoint is left that did not fail lately."""
        if not always and self.endpoints.rested():
            return
        pause_s = min(PAUSE_S[0] * 2 ** min(tries, 10), PAUSE_S[1])
        await asyncio.sleep(min(pause_s * self._rng.uniform(0.5, 1.0), at_most_s))

    @asynccontextmanager
    async def lines(
        self, path: str, body: bytes, *, endpoint: str, needs_leader: bool = True
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A streamed answer: one JSON document a line, ending when etcd ends it.

        Raises Failure when the stream cannot be had or breaks. The first line must come within the attempt timeout
        of whoever reads it; silence afterwards is allowed.
        """
        session = self._ready()
        token = await self._token(endpoint)
        headers = _with(token, HAS_LEADER if needs_leader else PLAIN)
        try:
            async with asyncio.timeout(self.attempt_timeout_s):
                response = await session.post(endpoint + path, data=body, headers=headers)
        except TimeoutError as error:
            text = f"no stream within {self.attempt_timeout_s:g} s"
            raise Failure(text, outcome="unknown", endpoint=endpoint) from error
        except (OSError, self._client_error) as error:
            raise self._translated(error, endpoint) from error
        try:
            if response.status != 200:
                answer = await response.read()
                failure = parse_failure(answer, status=response.status, endpoint=endpoint)
                if self._tokens is not None and is_stale(failure):
                    self._tokens.stale(token)
                raise failure
            yield self._split(response, endpoint)
        finally:
            response.close()

    async def _split(self, response: aiohttp.ClientResponse, endpoint: str) -> AsyncIterator[bytes]:
        begun: list[bytes] = []
        size_bytes = 0
        try:
            async for chunk in response.content.iter_any():
                *complete, rest = chunk.split(b"\n")
                if complete:
                    complete[0] = b"".join((*begun, complete[0]))
                    begun, size_bytes = [], 0
                    for line in complete:
                        if line:
                            yield line
                begun.append(rest)
                size_bytes += len(rest)
                if size_bytes > _MAX_LINE_BYTES:
                    text = f"a message of more than {_MAX_LINE_BYTES} bytes"
                    raise Failure(text, outcome="unknown", endpoint=endpoint)
        except (OSError, self._client_error) as error:
            raise self._translated(error, endpoint) from error
        if line := b"".join(begun):
            yield line

    def _ready(self) -> aiohttp.ClientSession:
        if self._session is None:
            msg = "the store is not open"
            raise NoLeader(msg)
        if self._credentials is not None:
            self._credentials.refresh()
        return self._session

    def _hint(self, endpoint: str) -> str:
        """Return what may be behind a connection that etcd ended at once."""
        if not endpoint.startswith("https://"):
            return " (it may be one for https://)"
        if self._tls is None or self._tls.certificate_file is None:
            return " (it may want a client certificate: -etcd-certfile)"
        return ""

    @property
    def _client_error(self) -> type[Exception]:
        import aiohttp

        return aiohttp.ClientError

    def _translated(self, error: Exception, endpoint: str) -> Failure:
        import aiohttp

        not_sent = isinstance(error, aiohttp.ClientConnectorError)
        text = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ServerDisconnectedError):
            text = "the connection was closed"
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            text = _distrust(error.certificate_error)
        elif isinstance(error, aiohttp.ClientConnectorError):
            text = _reason(error.os_error)
        elif "alert" in text.lower():  # of TLS 1.3: it comes when the connection stands already
            text = f"it refuses this machine's client certificate: {text}"
            not_sent = True
        elif isinstance(error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError):
            text += self._hint(endpoint)
        return Failure(text, outcome="not_applied" if not_sent else "unknown", endpoint=endpoint)
