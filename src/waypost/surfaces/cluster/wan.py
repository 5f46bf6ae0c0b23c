"""Between datacenters: what other datacenters' servers ask of us, and requests of our clients that belong elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import msgspec

from waypost.base.errors import Malformed, Unavailable, WaypostError
from waypost.cluster.wan import DNS_PATH, HELLO_PATH, MAX_MESSAGE_BYTES, Hello, Reply, decode_hello
from waypost.surfaces.http.message import Answer, Head, Request, Response, text_response
from waypost.surfaces.http.router import App, BodyLimit, Route, Router

AnswerDns = Callable[[bytes, str, bool], Awaitable[bytes | None]]
"""Message, peer's address, whether it came over TCP → the reply, None for silence."""

_MAX_DNS_BYTES: Final = 65535
_WHOLE_BYTES: Final = 1 << 20
_IN_BODY: Final = ("/v1/catalog/register", "/v1/catalog/deregister")
"""Requests whose body may name a datacenter. Source: Consul HTTP API, catalog."""


class Federation(Protocol):
    """What these routes need to know of the other datacenters."""

    def knows(self, name: str) -> bool:
        """Return whether `name` is another datacenter."""
        ...

    def hello(self) -> Hello:
        """Return what we tell others."""
        ...

    def heard(self, hello: Hello) -> None:
        """Take in what another server says. Raises Forbidden, Malformed."""
        ...

    async def forward(
        self,
        name: str,
        *,
        method: str,
        target: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
    ) -> Reply:
        """Send a request to another datacenter. Raises Unavailable."""
        ...


class WanRoutes:
    """What servers of other datacenters ask on the WAN port."""

    def __init__(self, federation: Federation, *, answer_dns: AnswerDns) -> None:
        self._federation = federation
        self._answer_dns = answer_dns

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(HELLO_PATH, {"POST": self.hello}, limit=BodyLimit(MAX_MESSAGE_BYTES)),
            Route(DNS_PATH, {"POST": self.dns}, limit=BodyLimit(_MAX_DNS_BYTES)),
        ]

    def hello(self, request: Request) -> Response:
        """Take a hello and return ours."""
        self._federation.heard(decode_hello(request.body))
        body = msgspec.json.encode(self._federation.hello())
        return Response(body=body, content_type="application/json")

    async def dns(self, request: Request) -> Response:
        """Answer a DNS message, as the DNS port would answer this peer."""
        reply = await self._answer_dns(request.body, request.peer.address, "tcp" in request.query)
        if reply is None:
            raise Malformed("this is no DNS query")
        return Response(body=reply, content_type="application/dns-message", vary=False)


class WanApp:
    """What the WAN port serves: the routes between servers, and the application for requests from other datacenters."""

    def __init__(self, routes: WanRoutes, app: App) -> None:
        self._routes = Router(routes.routes())
        self._app = app

    def _of(self, head: Head) -> App:
        return self._routes if head.raw_path.startswith("/cluster/") else self._app

    def answer(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer by the part that the path belongs to."""
        return self._of(request.head).answer(request)

    def limit(self, head: Head) -> BodyLimit:
        """Return the part's limit."""
        return self._of(head).limit(head)

    def failed(self, request: Request, error: WaypostError) -> Response:
        """Return the part's form of an error."""
        return self._of(request.head).failed(request, error)


class Elsewhere:
    """An `App` around an app: a request for another datacenter goes there, everything else to the app.

    It stands before authentication: the other datacenter knows its own users.
    """

    def __init__(self, app: App, federation: Federation, *, datacenter: str) -> None:
        self._app = app
        self._federation = federation
        self._own = datacenter.lower()

    def answer(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer here, or have it answered there."""
        name = self._wanted(request)
        if not name:
            return self._app.answer(request)
        request.may_interrupt = True
        return self._there(request, name)

    def _wanted(self, request: Request) -> str:
        """Return the known other datacenter that a request is for, else an empty text."""
        head = request.head
        if not head.raw_path.startswith("/v1/"):
            return ""
        name = head.query.get("dc") if "dc=" in head.raw_query else ""
        if not name and request.body and head.raw_path in _IN_BODY:
            name = _named_in(request.body)
        name = name.lower()
        return name if name and name != self._own and self._federation.knows(name) else ""

    async def _there(self, request: Request, name: str) -> Answer:
        try:
            reply = await self._federation.forward(
                name,
                method=request.method,
                target=request.target.decode("latin-1"),
                headers=tuple(request.headers),
                body=request.body,
            )
        except Unavailable as error:
            return text_response(500, f"rpc error getting client: {error}")
        chunks: list[bytes] = []
        size = 0
        async for chunk in reply.stream:
            chunks.append(chunk)
            size += len(chunk)
            if size > _WHOLE_BYTES:
                break
        else:
            return _response(reply, body=b"".join(chunks))
        return _response(reply, stream=_joined(b"".join(chunks), reply.stream))

    def limit(self, head: Head) -> BodyLimit:
        """Return the app's limit."""
        return self._app.limit(head)

    def failed(self, request: Request, error: WaypostError) -> Response:
        """Return the app's form of an error."""
        return self._app.failed(request, error)


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _response(
    reply: Reply, *, body: bytes = b"", stream: AsyncIterator[bytes] | None = None
) -> Response:
    return Response(
        status=reply.status,
        body=body,
        content_type=reply.content_type,
        headers=reply.headers,
        stream=stream,
    )


def _named_in(body: bytes) -> str:
    """Return the datacenter that a body names; a body that is no JSON object is for the handler to refuse."""
    try:
        return msgspec.json.decode(body, type=_Named).Datacenter
    except msgspec.MsgspecError:
        return ""


class _Named(msgspec.Struct):
    Datacenter: str = ""
