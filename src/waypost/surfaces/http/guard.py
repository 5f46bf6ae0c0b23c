"""Authentication in front of every surface: an app around an app.

Each request gets its `identity` before a handler sees it. A bad credential is answered with 401 in the form of the
route it was meant for. What is known without the network costs no task, so that hot reads stay synchronous.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from waypost.access.authn.records import Authentication
from waypost.base.errors import Unauthenticated, WaypostError
from waypost.surfaces.http.message import Answer, Head, Request, Response
from waypost.surfaces.http.router import App, BodyLimit

Authenticate = Callable[[Request], Authentication | Awaitable[Authentication]]
"""Finds out who sends a request; at once where that needs no network."""


class Guard:
    """An `App` that authenticates before it asks another."""

    def __init__(self, app: App, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    def answer(self, request: Request) -> Answer | Awaitable[Answer]:
        """Authenticate, then let the app answer. Raises Unauthenticated."""
        found = self._authenticate(request)
        if isinstance(found, Authentication):
            return self._admitted(request, found)
        return self._later(request, found)

    async def _later(self, request: Request, pending: Awaitable[Authentication]) -> Answer:
        answer = self._admitted(request, await pending)
        return await answer if isinstance(answer, Awaitable) else answer

    def _admitted(self, request: Request, found: Authentication) -> Answer | Awaitable[Answer]:
        if found.actor is None:
            msg = "Unauthorized"
            raise Unauthenticated(msg)
        request.identity = found
        return self._app.answer(request)

    def limit(self, head: Head) -> BodyLimit:
        """Return the app's limit."""
        return self._app.limit(head)

    def failed(self, request: Request, error: WaypostError) -> Response:
        """Return the app's form of an error."""
        return self._app.failed(request, error)
