"""The web interface: static files of the package, one JSON document, and a stream that sends it whenever it changes.

Nothing is loaded from anywhere else, so it works in a closed network; a strict Content-Security-Policy keeps it so.
Source of the stream's form: WHATWG HTML, server-sent events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.gate import Attributes, Gate
from waypost.domain.cluster import ClusterView
from waypost.state.view import View
from waypost.surfaces.http.message import Peer, Request, Response
from waypost.surfaces.http.router import Route
from waypost.surfaces.ui.picture import LeaderPicture, draw

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
)
_SPACING_S: Final = 0.2
"""At most five pictures a second: more than anybody can see."""
_LOOK_S: Final = 1.0
"""How often a stream looks who leads, which no topic tells."""
_HEARTBEAT_S: Final = 15.0
_TOPICS: Final = (("services",), ("nodes",), ("checks", "any"))


class Interface:
    """Holds what the routes need; `identify` makes an actor of a connection's peer."""

    def __init__(
        self,
        view: View,
        gate: Gate,
        *,
        node: str,
        datacenter: str,
        version: str,
        identify: Callable[[Peer], Actor],
        cluster: ClusterView | None = None,
    ) -> None:
        """Without a `cluster` this agent is alone and always leads."""
        self._view = view
        self._gate = gate
        self._node = node
        self._datacenter = datacenter
        self._version = version
        self._identify = identify
        self._cluster = cluster
        self._drawn: tuple[int, LeaderPicture | None, bytes] = (-1, None, b"")
        self._files = _read_files()

    def routes(self) -> list[Route]:
        """Return the routes below `/ui/`."""
        return [
            Route("/ui/", {"GET": self.static}, is_prefix=True),
            Route("/ui/api/picture", {"GET": self.picture}),
            Route("/ui/api/events", {"GET": self.events}),
        ]

    def static(self, request: Request) -> Response:
        """Answer a file of the interface; every unknown page is the interface itself, which knows its own paths."""
        name = request.rest or "index.html"
        kind, body = self._files.get(name, (None, b""))
        if kind is None and "." not in name:
            kind, body = self._files["index.html"]
        if kind is None:
            return Response(status=404, body=b"no such file", content_type="text/plain")
        return Response(
            body=body,
            content_type=kind,
            headers=(*_HEADERS, ("Cache-Control", "no-cache")),
        )

    def picture(self, request: Request) -> Response:
        """Answer the whole picture."""
        self._admit(request)
        return Response(
            body=self._draw(),
            content_type="application/json",
            headers=(*_HEADERS, ("Cache-Control", "no-store")),
        )

    def events(self, request: Request) -> Response:
        """Answer an endless stream of pictures, the first at once."""
        self._admit(request)
        request.may_interrupt = True
        return Response(
            stream=self._stream(),
            content_type="text/event-stream",
            headers=(*_HEADERS, ("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")),
        )

    def _admit(self, request: Request) -> None:
        identity = request.identity
        actor = identity.actor if identity is not None else None
        if actor is None:
            actor = self._identify(request.peer)
        for resource in ("services", "nodes", "checks"):
            self._gate.admit(actor, Attributes("list", resource))

    def _leader(self) -> LeaderPicture:
        if self._cluster is None:
            return LeaderPicture(is_known=True, address="")
        return LeaderPicture(
            is_known=self._cluster.knows_leader, address=self._cluster.leader_address()
        )

    def _draw(self) -> bytes:
        # One picture a moment and leader, shared by everybody who looks.
        moment, leader = self._view.moment, self._leader()
        if self._drawn[:2] != (moment, leader):
            drawn = draw(
                self._view,
                node=self._node,
                datacenter=self._datacenter,
                version=self._version,
                leader=leader,
            )
            self._drawn = (moment, leader, msgspec.json.encode(drawn))
        return self._drawn[2]

    async def _stream(self) -> AsyncIterator[bytes]:
        while True:
            seen = (self._indexes(), self._leader())
            yield b"event: picture\ndata: " + self._draw() + b"\n\n"
            await asyncio.sleep(_SPACING_S)
            silent_s = 0.0
            while (self._indexes(), self._leader()) == seen:
                if not await self._view.topics.wait(_TOPICS, at_most_s=_LOOK_S):
                    silent_s += _LOOK_S
                if silent_s >= _HEARTBEAT_S:
                    # Proxies and browsers give up a silent connection; a comment keeps it.
                    yield b": still here\n\n"
                    silent_s = 0.0

    def _indexes(self) -> tuple[int, ...]:
        return tuple(self._view.index(topic) for topic in _TOPICS)


def _read_files() -> dict[str, tuple[str, bytes]]:
    found = {}
    for file in resources.files("waypost.surfaces.ui").joinpath("static").iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in _TYPES:
            found[file.name] = (_TYPES[suffix], file.read_bytes())
    return found
