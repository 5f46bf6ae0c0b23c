"""Requests that a machine without a server passes on: what its store is not allowed to do, a server does.

One table says which (`TABLE`). Such a request is sent whole, with its credentials, to a server, which judges it as its
own; the answer comes back as it is, long polls and watches included. The message says where the request came from; the
server believes that because of the machine's certificate, and nothing of it is taken from a header.

    app = Forwarding(Guard(Router(…), …), servers=engine.servers, transport=transport, …)
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, Protocol

import msgspec

from waypost.access.authn.local import is_loopback
from waypost.base.clock import Clock
from waypost.base.errors import Forbidden, Malformed, NoLeader, Unavailable, Unknown, WaypostError
from waypost.model.catalog import fold
from waypost.store.remote.protocol import ERROR_HEADER, error_of, is_code
from waypost.store.remote.servers import Servers, Tour
from waypost.store.remote.transport import Exchange
from waypost.surfaces.http.message import Answer, Head, Peer, Request, Response
from waypost.surfaces.http.router import App, BodyLimit, clean_path
from waypost.wire.http import HOP_BY_HOP

log = logging.getLogger(__name__)

PATH: Final = "/cluster/v1/forward"
LARGE_PATH: Final = "/cluster/v1/forward/large"
"""For a request with a large body: the body as it is, all else in the header `ENVELOPE`."""
ENVELOPE: Final = "X-Waypost-Envelope"
MAX_MESSAGE_BYTES: Final = 8 * 2**20
"""Of a request sent to `PATH`."""
MARK: Final = "X-Waypost-Forwarded"
"""Header of an answer that a server's application gave, in contrast to one about the forwarding itself."""
NO_SERVERS: Final = "No known Consul servers"
"""What a client agent of Consul answers when it reaches none."""
_TOTAL_S: Final = 4.0
_WHOLE_BYTES: Final = 2**20

NOT_FORWARDED: Final = HOP_BY_HOP | {"content-length", "expect"}
"""Fields of a request that say how it came, and not what is asked."""
_OWN_FIELDS: Final = NOT_FORWARDED | {
    "content-encoding",
    "content-type",
    "date",
    "vary",
    MARK.lower(),
}


class Forwarded(msgspec.Struct, frozen=True, array_like=True):
    """A request on its way to a server. `repr` shows no header and no body."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    address: str
    """IP address of the client as the forwarding machine saw it; empty for a unix socket."""
    is_local: bool
    """It came over the machine's own loopback or unix socket."""

    def __repr__(self) -> str:
        return f"Forwarded({self.method})"


# -- which -------------------------------------------------------------------------------------------------------------

READS: Final = frozenset({"GET", "HEAD"})


class Rule(msgspec.Struct, frozen=True):
    """Requests for `path` (below it when it ends with `/`) are forwarded.

    `methods` empty: all. `when`: only if the function says so, of the request and the machine's own node name.
    """

    path: str
    methods: tuple[str, ...] = ()
    when: Callable[[Request, str], bool] | None = None
    unless_kv: bool = False
    """Not when KV entries are replicated to this machine."""

    def fits(self, path: str, method: str) -> bool:
        """Return whether the rule is about such a request."""
        if self.methods and method not in self.methods:
            return False
        return path.startswith(self.path) if self.path.endswith("/") else path == self.path


def _names_other_node(request: Request, node: str) -> bool:
    """Return whether a session is asked for on another node; without a node it is this machine's."""
    try:
        found = msgspec.json.decode(request.body) if request.body else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False  # its own handler says what is wrong
    if not isinstance(found, dict):
        return False
    # Consul's field names are matched without regard to case.
    named = [value for key, value in found.items() if key.lower() == "node"]
    return any(isinstance(one, str) and one and fold(one) != fold(node) for one in named)


def _asks_wan(request: Request, _node: str) -> bool:
    return bool(request.query.get("wan"))


TABLE: Final = (
    Rule("/v1/kv/", ("GET", "HEAD"), unless_kv=True),
    Rule("/v1/kv/", ("PUT", "DELETE", "POST")),
    Rule("/v1/txn"),
    Rule("/v1/catalog/register"),
    Rule("/v1/catalog/deregister"),
    Rule("/v1/session/create", when=_names_other_node),
    Rule("/v1/session/destroy/"),  # frees keys as well
    Rule("/v1/event/fire/"),
    Rule("/v1/agent/force-leave/"),
    # Only servers know the other datacenters.
    Rule("/v1/agent/members", ("GET", "HEAD"), when=_asks_wan),
    Rule("/v1/catalog/datacenters", ("GET", "HEAD")),
    Rule("/v1/coordinate/datacenters", ("GET", "HEAD")),
    Rule("/v1/operator/"),
    Rule("/v1/snapshot"),
    Rule("/v1/query"),
    Rule("/v1/query/"),
    Rule("/v1/config"),
    Rule("/v1/config/"),
    Rule("/v1/connect/"),
    Rule("/v1/coordinate/update"),
    Rule("/v1/waypost/auth/"),  # only a server has all authenticators
    Rule("/api"),
    Rule("/api/"),
    Rule("/apis"),
    Rule("/apis/"),
    Rule("/openapi/"),
    Rule("/version"),
    Rule("/version/"),
)
"""What a client agent does not do itself. What is not named here it answers from its view, or does for its own node."""


def is_forwarded(request: Request, *, node: str, has_kv: bool) -> bool:
    """Return whether a request is for a server. One whose path is not clean is redirected by the router first."""
    try:
        path = request.path
    except Malformed:
        return False
    if clean_path(path) != path:
        return False
    return any(
        rule.fits(path, request.method)
        and not (rule.unless_kv and has_kv)
        and (rule.when is None or rule.when(request, node))
        for rule in TABLE
    )


def envelope(request: Request) -> Forwarded:
    """Return a request as it is sent to a server. Raises Forbidden when its credential cannot be passed on."""
    peer: Peer = request.peer
    if peer.certificates_der and not _shows_token(request):
        msg = (
            "a client certificate proves an identity to the machine it is shown to and cannot be passed on: "
            "ask a server, or use a token"
        )
        raise Forbidden(msg)
    return Forwarded(
        method=request.method,
        target=request.target,
        headers=tuple(
            (name, value)
            for name, value in request.headers.raw
            if name.decode("latin-1") not in NOT_FORWARDED
        ),
        body=request.body,
        address=peer.address,
        is_local=peer.is_unix or is_loopback(peer.address),
    )


def _shows_token(request: Request) -> bool:
    headers = request.headers
    return (
        "authorization" in headers
        or "x-consul-token" in headers
        or ("token" in request.head.raw_query and bool(request.query.get("token")))
    )


# -- how ---------------------------------------------------------------------------------------------------------------


class _Message(msgspec.Struct, frozen=True):
    """How a request is sent to a server."""

    path: str
    body: bytes
    headers: dict[str, str] = {}

    @classmethod
    def of(cls, request: Forwarded) -> _Message:
        # The body is not copied into another message where that matters.
        if len(request.body) <= MAX_MESSAGE_BYTES // 2:
            return cls(PATH, msgspec.msgpack.encode(request))
        head = msgspec.msgpack.encode(msgspec.structs.replace(request, body=b""))
        fields = {ENVELOPE: base64.b64encode(head).decode("ascii")}
        return cls(LARGE_PATH, request.body, fields)


class Exchanger(Protocol):
    """Sends one message to one server; `store.remote.HttpTransport` does."""

    def exchange(
        self, address: str, path: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[Exchange]:
        """Return the answer's head, its body to be read. Raises Unavailable, Unknown."""
        ...


class Forwarding:
    """An `App` around an app: what a server has to do goes there, everything else to the app.

    It stands before authentication: the server judges. `has_kv` says whether KV entries are replicated here now.
    """

    def __init__(
        self,
        app: App,
        *,
        servers: Servers,
        transport: Exchanger,
        node: str,
        datacenter: str = "",
        has_kv: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`datacenter` is this machine's own: only servers know the others. Empty: there are no others."""
        self._datacenter = datacenter.lower()
        self._app = app
        self._servers = servers
        self._transport = transport
        self._node = node
        self._has_kv = has_kv
        self._clock = clock

    def answer(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer here, or have a server answer."""
        is_here = not self._is_for_others(request)
        if is_here and not is_forwarded(request, node=self._node, has_kv=self._has_kv()):
            return self._app.answer(request)
        request.may_interrupt = request.method in READS
        return self._forward(request)

    def _is_for_others(self, request: Request) -> bool:
        head = request.head
        if not self._datacenter or "dc=" not in head.raw_query:
            return False
        wanted = head.query.get("dc").lower()
        return head.raw_path.startswith("/v1/") and wanted not in ("", self._datacenter)

    def limit(self, head: Head) -> BodyLimit:
        """Return the app's limit."""
        return self._app.limit(head)

    def failed(self, request: Request, error: WaypostError) -> Response:
        """Return the app's form of an error."""
        return self._app.failed(request, error)

    async def _forward(self, request: Request) -> Answer:
        """Send the request to the servers in turn, until one answers. A write is sent again only if none has got it."""
        message = _Message.of(envelope(request))
        tour = Tour(self._servers, clock=self._clock, total_s=_TOTAL_S)
        while (address := await tour.next()) is not None:
            try:
                return await self._ask(address, message)
            except (Unavailable, TimeoutError) as exc:
                error = tour.failed(address, exc)
                if isinstance(error, Unknown) and request.method not in READS:
                    msg = f"the server's answer was lost, the request may have been carried out: {error}"
                    raise Unknown(msg) from exc
        raise NoLeader(NO_SERVERS)

    async def _ask(self, address: str, message: _Message) -> Response:
        """Send the request to one server. Raises TimeoutError when that server falls silent meanwhile."""
        async with AsyncExitStack() as stack:
            async with _while_alive(self._servers, address):
                exchange = await stack.enter_async_context(
                    self._transport.exchange(
                        address, message.path, message.body, headers=message.headers
                    )
                )
                fields = {name.lower(): value for name, value in exchange.headers}
                if MARK.lower() not in fields:
                    await self._raise(address, exchange, fields.get(ERROR_HEADER.lower(), ""))
                self._servers.worked(address)
                if exchange.size_bytes is not None and exchange.size_bytes <= _WHOLE_BYTES:
                    body = b"".join([chunk async for chunk in exchange.chunks])
                    return _response(exchange, fields, body=body)
            piped = _Piped(exchange, stack.pop_all(), servers=self._servers, address=address)
            return _response(exchange, fields, stream=piped)

    async def _raise(self, address: str, exchange: Exchange, code: str) -> None:
        text = b"".join([chunk async for chunk in exchange.chunks]).decode("utf-8", "replace")
        if is_code(code):
            raise error_of(code, text)
        # A server that does not take requests of others yet.
        raise Unavailable(f"server {address}: status {exchange.status}")


def _response(
    exchange: Exchange,
    fields: dict[str, str],
    *,
    body: bytes = b"",
    stream: AsyncIterator[bytes] | None = None,
) -> Response:
    return Response(
        status=exchange.status,
        body=body,
        content_type=fields.get("content-type", ""),
        headers=tuple(
            (name, value) for name, value in exchange.headers if name.lower() not in _OWN_FIELDS
        ),
        stream=stream,
        vary="vary" in fields,
    )


@asynccontextmanager
async def _while_alive(servers: Servers, address: str) -> AsyncGenerator[None, None]:
    """End what is inside with TimeoutError when the watch finds that the server fell silent."""
    async with asyncio.timeout(None) as limit:

        def lost(which: str) -> None:
            if which == address:
                limit.reschedule(asyncio.get_running_loop().time())

        forget = servers.on_lost(lost)
        try:
            yield
        finally:
            forget()


class _Piped:
    """An answer's body on its way through; closing it ends the exchange, whether it was read or not."""

    def __init__(
        self, exchange: Exchange, stack: AsyncExitStack, *, servers: Servers, address: str
    ) -> None:
        self._chunks = exchange.chunks
        self._stack = stack
        self._servers = servers
        self._address = address

    def __aiter__(self) -> _Piped:
        return self

    async def __anext__(self) -> bytes:
        try:
            async with _while_alive(self._servers, self._address):
                return await anext(self._chunks)
        except TimeoutError as exc:
            raise Unknown(f"server {self._address} fell silent") from exc

    async def aclose(self) -> None:
        """End the exchange."""
        await self._stack.aclose()
