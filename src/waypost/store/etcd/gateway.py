"""etcd's JSON gateway over HTTP: the one place where requests to etcd are sent.

Everything here is one attempt at one endpoint, or attempts that may be repeated safely. What may not be repeated, a
write, is made repeatable by `lanes`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import TypeVar

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import NoLeader
from waypost.store.etcd.auth import EtcdAuth, Tokens, is_stale
from waypost.store.etcd.endpoints import Endpoints
from waypost.store.etcd.failure import Failure, not_done, parse_failure
from waypost.store.etcd.http import Answer, Broken, Connections
from waypost.store.etcd.tls import Credentials, EtcdTls

log = logging.getLogger(__name__)

HAS_LEADER = {"Grpc-Metadata-hasleader": "true", "Content-Type": "application/json"}
"""A member without a leader says so at once, and ends its watches, instead of keeping silent."""

PLAIN = {"Content-Type": "application/json"}

PAUSE_S = (0.02, 0.5)
"""First and longest pause when every endpoint has failed."""

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


def _reason(error: Exception) -> str:
    """Return why a connection was not made; asyncio's own text is only where it was to go."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
    number = getattr(error, "errno", None) or 0
    return (os.strerror(number) if number > 0 else str(error)).lower()


class Gateway:
    """etcd's endpoints behind one HTTP client."""

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
        self._connections: Connections | None = None

    async def open(self) -> None:
        """Make the HTTP client; connects to nobody. Raises Unavailable when the certificates cannot be used."""
        if self._connections is not None:
            return
        if self._tls is not None:
            self._credentials = Credentials(self._tls, self._clock)
        self._connections = Connections(
            tls=None if self._credentials is None else self._credentials.context,
            connect_s=self.attempt_timeout_s,
        )

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

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
        connections = self._ready()
        try:
            async with asyncio.timeout(timeout_s):
                status, answer = await connections.post(endpoint, path, body, headers)
        except TimeoutError as error:
            text = f"no answer within {timeout_s:g} s"
            raise Failure(text, outcome="unknown", endpoint=endpoint) from error
        except Broken as broken:
            raise self._translated(broken, endpoint) from broken
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
        connections = self._ready()
        token = await self._token(endpoint)
        headers = _with(token, HAS_LEADER if needs_leader else PLAIN)
        try:
            async with AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(self.attempt_timeout_s):
                        answer = await stack.enter_async_context(
                            connections.stream(endpoint, path, body, headers)
                        )
                except TimeoutError as error:
                    text = f"no stream within {self.attempt_timeout_s:g} s"
                    raise Failure(text, outcome="unknown", endpoint=endpoint) from error
                if answer.status != 200:
                    failure = parse_failure(
                        await answer.body(), status=answer.status, endpoint=endpoint
                    )
                    if self._tokens is not None and is_stale(failure):
                        self._tokens.stale(token)
                    raise failure
                yield self._split(answer, endpoint)
        except Broken as broken:
            raise self._translated(broken, endpoint) from broken

    async def _split(self, answer: Answer, endpoint: str) -> AsyncIterator[bytes]:
        begun: list[bytes] = []
        size_bytes = 0
        try:
            async for chunk in answer.chunks():
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
        except Broken as broken:
            raise self._translated(broken, endpoint) from broken
        if line := b"".join(begun):
            yield line

    def _ready(self) -> Connections:
        if self._connections is None:
            msg = "the store is not open"
            raise NoLeader(msg)
        if self._credentials is not None:
            self._credentials.refresh()
        return self._connections

    def _translated(self, broken: Broken, endpoint: str) -> Failure:
        """Return it as what it means for the request, in words for an operator."""
        cause, text, is_sent = broken.cause, str(broken), broken.is_sent
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"certificate verify failed: {cause.verify_message} (-etcd-cafile names the authority)"
        elif not is_sent:
            text = "no connection in time" if cause.args == () else _reason(cause)
        elif "alert" in text.lower():  # of TLS 1.3: it comes when the connection stands already
            text = f"it refuses this machine's client certificate: {text}"
            is_sent = False
        elif isinstance(cause, OSError):
            text += self._hint(endpoint)
        return Failure(text, outcome="unknown" if is_sent else "not_applied", endpoint=endpoint)

    def _hint(self, endpoint: str) -> str:
        """Return what may be behind a connection that etcd ended at once."""
        if endpoint.startswith("http://"):
            return " (it may be one for https://)"
        if endpoint.startswith("https://") and (
            self._tls is None or self._tls.certificate_file is None
        ):
            return " (it may want a client certificate: -etcd-certfile)"
        return ""
