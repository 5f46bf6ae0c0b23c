"""What client agents have a server do, on the cluster port: whole requests, and whose a token is.

A forwarded request runs through the server's own application, authentication and audit included. Its credentials count
as if they had been shown here. What it says about the connection it came by is believed of a machine of this cluster
only, and never more than that machine could do itself: without access control "it is a program of my own machine"
makes it local, as on the machine itself; with access control it is anonymous. A certificate or a user of a unix socket
cannot be vouched for.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Awaitable
from typing import Final, Protocol

import msgspec

from waypost.access.authn.local import is_loopback
from waypost.access.authn.records import Authentication
from waypost.access.authn.request import REMOTE_PREFIX
from waypost.access.authn.servers import PATH as AUTHENTICATE_PATH
from waypost.access.authn.servers import decode_ask, encode_answer
from waypost.base.clock import Clock
from waypost.base.errors import Malformed, WaypostError
from waypost.store.remote.protocol import CONTENT_TYPE, decode
from waypost.surfaces.cluster.store_routes import NodeOf, store_error
from waypost.surfaces.consul.snapshot import MAX_SNAPSHOT_BYTES
from waypost.surfaces.http.forward import (
    ENVELOPE,
    LARGE_PATH,
    MARK,
    MAX_MESSAGE_BYTES,
    NOT_FORWARDED,
    Forwarded,
)
from waypost.surfaces.http.forward import PATH as FORWARD_PATH
from waypost.surfaces.http.message import (
    Answer,
    Head,
    Headers,
    Peer,
    Rendered,
    Request,
    Response,
)
from waypost.surfaces.http.router import App, BodyLimit, Route

_MAX_ASK_BYTES: Final = 65536
_LOOPBACK: Final = "127.0.0.1"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Review(Protocol):
    """Finds out whose a token is; `access.authn.chain.Chain.review` does."""

    def __call__(
        self, token: str, *, audiences: tuple[str, ...] = (), now_s: float
    ) -> Awaitable[Authentication]:
        """Return whose it is, without an actor if it is nobody's."""
        ...


class ForwardRoutes:
    """The routes `/cluster/v1/forward` and `/cluster/v1/authenticate`.

    `app` is what answers the server's own requests, its guard included. `is_protected`: there is access control, so
    being local to a machine means nothing. `review` None: there are no tokens to ask about.
    """

    def __init__(
        self,
        app: App,
        *,
        node_of: NodeOf,
        is_protected: bool,
        review: Review | None,
        clock: Clock,
    ) -> None:
        self._app = app
        self._node_of = node_of
        self._is_protected = is_protected
        self._review = review
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return the routes."""
        found = [
            Route(
                FORWARD_PATH,
                {"POST": self.forward},
                limit=BodyLimit(MAX_MESSAGE_BYTES),
                on_error=store_error,
            ),
            Route(
                LARGE_PATH,
                {"POST": self.forward_large},
                limit=BodyLimit(MAX_SNAPSHOT_BYTES),
                on_error=store_error,
            ),
        ]
        if self._review is not None:
            found.append(
                Route(
                    AUTHENTICATE_PATH,
                    {"POST": self.authenticate},
                    limit=BodyLimit(_MAX_ASK_BYTES),
                    on_error=store_error,
                )
            )
        return found

    # -- requests ----------------------------------------------------------------------------------------------------------

    async def forward(self, request: Request) -> Answer:
        """Answer what a client of another machine asked."""
        node = self._node_of(request)
        message = decode(request.body, Forwarded)
        return await self._answer(request, message, node=node, body=message.body)

    async def forward_large(self, request: Request) -> Answer:
        """The same for a large body, which comes as it is."""
        node = self._node_of(request)
        try:
            head = base64.b64decode(request.headers.get(ENVELOPE) or "", validate=True)
        except ValueError as exc:
            raise Malformed(f"the header {ENVELOPE} is not base64") from exc
        return await self._answer(request, decode(head, Forwarded), node=node, body=request.body)

    async def _answer(
        self, request: Request, message: Forwarded, *, node: str, body: bytes
    ) -> Answer:
        head = _head(message)
        peer = forwarded_peer(
            message, node=node, is_protected=self._is_protected, machine=request.peer.address
        )
        inner = _Inner(head, body=body, peer=peer, arrived_s=request.arrived_s, outer=request)
        limit = self._app.limit(head)
        if len(body) > limit.max_bytes:
            text = limit.too_large(len(body), limit.max_bytes)
            return _marked(Response(status=413, body=text.encode()))
        try:
            answer = self._app.answer(inner)
            return _marked(await answer if isinstance(answer, Awaitable) else answer)
        except WaypostError as error:
            return _marked(self._app.failed(inner, error))

    # -- tokens ------------------------------------------------------------------------------------------------------------

    async def authenticate(self, request: Request) -> Response:
        """Answer whose a token is."""
        self._node_of(request)
        assert self._review is not None
        ask = decode_ask(request.body)
        found = await self._review(ask.token, audiences=ask.audiences, now_s=self._clock.wall())
        return Response(body=encode_answer(found), content_type=CONTENT_TYPE, vary=False)


class _Inner(Request):
    """A request inside another: what its handler says about interruption holds for the connection it came by."""

    __slots__ = ("_outer",)

    def __init__(
        self, head: Head, *, body: bytes, peer: Peer, arrived_s: float, outer: Request
    ) -> None:
        self._outer = outer
        super().__init__(head, body=body, peer=peer, arrived_s=arrived_s)

    @property
    def may_interrupt(self) -> bool:
        """Whether a stopping server need not wait for the answer."""
        return self._outer.may_interrupt

    @may_interrupt.setter
    def may_interrupt(self, value: bool) -> None:
        self._outer.may_interrupt = value


def forwarded_peer(message: Forwarded, *, node: str, is_protected: bool, machine: str) -> Peer:
    """Return who a forwarded request counts as coming from. Raises Malformed for an address that is none.

    `node` is who forwards it, `machine` the address it does so from. With access control no forwarded request is local:
    one of the machine's own programs has the machine's address, or none if that is this very machine.
    """
    address = message.address
    if message.is_local:
        address = machine if is_protected else _LOOPBACK
    else:
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError as exc:
            raise Malformed(f"{address!r} is not the address of a client") from exc
    if is_protected and is_loopback(address):
        address = ""
    return Peer(listener=f"forwarded by {node or 'a server'}", address=address)


def _head(message: Forwarded) -> Head:
    """Return the head of a forwarded request. Raises Malformed for what no HTTP request could be."""
    target = message.target
    if message.method not in _METHODS:
        raise Malformed(f"{message.method!r} is no method that can be forwarded")
    if not target.startswith(b"/") or any(byte <= 32 or byte == 127 for byte in target):
        raise Malformed("the target of a forwarded request is no path")
    return Head(
        method=message.method,
        target=target,
        headers=Headers(
            (name, value) for name, value in message.headers if _goes_on(name.decode("latin-1"))
        ),
    )


def _goes_on(name: str) -> bool:
    lower = name.lower()
    # A front proxy proves itself by its certificate, which does not come through here.
    return lower not in NOT_FORWARDED and not lower.startswith(REMOTE_PREFIX)


def _marked(answer: Answer) -> Answer:
    if isinstance(answer, Rendered):
        return answer.with_header(MARK, "1")
    return msgspec.structs.replace(answer, headers=(*answer.headers, (MARK, "1")))
