"""Paths and methods → handlers, with the redirects and refusals of Go's mux and Consul's wrapper.

Source: recorded answers of Consul 1.8.7; Go `net/http.ServeMux` for path cleaning and redirects.
Order of the checks: unprintable path 400, redirect 301, unknown path 404 (these three without `Vary`),
malformed query 500, blocked prefix 403, OPTIONS 200, wrong method 405.
"""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Protocol
from urllib.parse import quote

import msgspec

from waypost.base.errors import Malformed, WaypostError
from waypost.surfaces.http.message import Answer, Handler, Head, Request, Response, text_response
from waypost.surfaces.http.status import error_response

MAX_BODY_BYTES: Final = 4 * 2**20
"""Default limit of a request body."""

ANY: Final = "*"
"""The method key of a handler that takes every method, OPTIONS included."""


def default_too_large(size_bytes: int, max_bytes: int) -> str:
    """Return the text of a 413 answer."""
    return f"Request body({size_bytes} bytes) too large, max size: {max_bytes} bytes."


class BodyLimit(msgspec.Struct, frozen=True):
    """How large a request body may be, and what is said about a larger one."""

    max_bytes: int = MAX_BODY_BYTES
    too_large: Callable[[int, int], str] = default_too_large
    """Called with (size, limit) in bytes; the size of a chunked body is the part read so far."""


class Route(msgspec.Struct, frozen=True):
    """One path with a handler for each method, in the order in which `Allow` lists them.

    `is_prefix`: `path` ends with `/` and everything below belongs to the route; the handler finds the
    decoded remainder in `request.rest`.
    """

    path: str
    handlers: Mapping[str, Handler]
    is_prefix: bool = False
    limit: BodyLimit = BodyLimit()
    on_error: Callable[[Request, WaypostError], Response] | None = None
    """Makes the answer of an error that a handler raised; None: the text with the table's status."""


class App(Protocol):
    """What the server needs to know about the things it serves."""

    def answer(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer a request, at once or later. Errors of the tree may be raised either way."""
        ...

    def limit(self, head: Head) -> BodyLimit:
        """Return the limit for the body that follows `head`."""
        ...

    def failed(self, request: Request, error: WaypostError) -> Response:
        """Return the answer for an error that `answer` raised."""
        ...


class _Match:
    """What the router decided for a head: a route with its handler, or a ready answer."""

    __slots__ = ("answer", "handler", "rest", "route")

    def __init__(
        self,
        *,
        route: Route | None = None,
        handler: Handler | None = None,
        rest: str = "",
        answer: Response | None = None,
    ) -> None:
        self.route = route
        self.handler = handler
        self.rest = rest
        self.answer = answer


class Router:
    """An `App` over a fixed table of routes.

    `blocked` are path prefixes answered with 403 (Consul's `http_config.block_endpoints`).
    `not_found` answers what no route takes; the default is Consul's empty 404.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        blocked: Iterable[str] = (),
        not_found: Handler | None = None,
    ) -> None:
        self._exact: dict[str, Route] = {}
        self._prefixes: dict[str, Route] = {}
        self._blocked = tuple(blocked)
        self._not_found = not_found
        for route in routes:
            if not route.path.startswith("/") or (route.is_prefix and route.path[-1] != "/"):
                raise ValueError(f"a route's path starts, and a prefix ends, with /: {route.path}")
            table = self._prefixes if route.is_prefix else self._exact
            if route.path in table:
                raise ValueError(f"two routes for {route.path}")
            table[route.path] = route
        self._depth = max((p.count("/") for p in self._prefixes), default=0)

    def answer(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer by the route's handler, or with the refusal that fits."""
        match = self._match(request.head)
        request.rest = match.rest
        if match.handler is not None:
            return match.handler(request)
        assert match.answer is not None
        return match.answer

    def limit(self, head: Head) -> BodyLimit:
        """Return the route's limit; the default for what has no route."""
        route = self._match(head).route
        return _DEFAULT_LIMIT if route is None else route.limit

    def failed(self, request: Request, error: WaypostError) -> Response:
        """Return the route's own form of the error, or the table's."""
        route = self._match(request.head).route
        if route is None or route.on_error is None:
            return error_response(error)
        return route.on_error(request, error)

    def find(self, path: str) -> tuple[Route, str] | None:
        """Return the route of a clean, decoded path and what follows its prefix."""
        route = self._exact.get(path)
        if route is not None:
            return route, ""
        best: Route | None = None
        at = -1
        for _ in range(self._depth):
            at = path.find("/", at + 1)
            if at < 0:
                break
            best = self._prefixes.get(path[: at + 1], best)
        return None if best is None else (best, path[len(best.path) :])

    def _match(self, head: Head) -> _Match:
        match = head.match
        if not isinstance(match, _Match):
            match = self._decide(head)
            head.match = match
        return match

    def _decide(self, head: Head) -> _Match:
        try:
            path = head.path
        except Malformed:
            return _Match(answer=_BAD_PATH)
        if head.target == b"*" and head.method == "OPTIONS":  # RFC 9110 section 9.3.7
            return _Match(answer=_EMPTY)
        if not path.startswith("/") or not path.isprintable() or "\ufffd" in path:
            return _Match(answer=_BAD_PATH)
        target = self._redirect(path)
        if target is not None:
            return _Match(answer=_moved(head, target))
        found = self.find(path)
        if found is None:
            if self._not_found is not None:
                return _Match(handler=self._not_found)
            return _Match(answer=Response(status=404, vary=False))
        return self._decide_route(head, found[0], found[1])

    def _decide_route(self, head: Head, route: Route, rest: str) -> _Match:
        handlers = route.handlers
        handler: Handler | None = None
        answer: Response | None = None
        if "%" in head.raw_query and head.query.error is not None:
            answer = Response(status=500)
        elif self._blocked and head.path.startswith(self._blocked):
            answer = text_response(403, "Endpoint is blocked by agent configuration")
        else:
            handler = handlers.get(ANY) or handlers.get(head.method)
            if handler is None:
                allow = (("Allow", ",".join(("OPTIONS", *handlers))),)
                if head.method == "OPTIONS":
                    answer = Response(headers=allow)
                else:
                    text = f"method {head.method} not allowed"
                    answer = text_response(405, text, headers=allow)
        return _Match(route=route, handler=handler, rest=rest, answer=answer)

    def _redirect(self, path: str) -> str | None:
        clean = clean_path(path)
        if clean not in self._exact and clean + "/" in self._prefixes:
            return clean + "/"
        return None if clean == path else clean


_DEFAULT_LIMIT: Final = BodyLimit()
_BAD_PATH: Final = Response(status=400, vary=False)
_EMPTY: Final = Response()


def clean_path(path: str) -> str:
    """Return the path without `//`, `.` and `..`; a trailing slash stays (Go `path.Clean` in the mux)."""
    if "//" not in path and "/." not in path:
        return path
    out: list[str] = []
    for piece in path.split("/"):
        if piece == "..":
            del out[-1:]
        elif piece and piece != ".":
            out.append(piece)
    clean = "/" + "/".join(out)
    return clean + "/" if path.endswith("/") and out else clean


def _moved(head: Head, path: str) -> Response:
    location = quote(path, safe="/$&+,:;=@~-._")
    if head.raw_query:
        location += "?" + quote(head.raw_query, safe="%/?$&+,:;=@!'()*~-._[]")
    if head.method not in ("GET", "HEAD"):
        return Response(status=301, headers=(("Location", location),), vary=False)
    body = f'<a href="{html.escape(location)}">Moved Permanently</a>.\n\n'
    return Response(
        status=301,
        body=body.encode(),
        content_type="text/html; charset=utf-8",
        headers=(("Location", location),),
        vary=False,
    )
