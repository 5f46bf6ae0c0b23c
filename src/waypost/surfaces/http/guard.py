"""Authentication in front of every surface: an app around an app.

Each request gets its `identity` before a handler sees it. A bad credential is answered with 401 in the form of the
route it was meant for. What is known without the network costs no task, so that hot reads stay synchronous.

With an `auditor`, what its policy asks for is written down. With `resolve`, a handler whose gate needs the answer of a
webhook is asked again once the webhook has answered: handlers ask the gate before they do anything. With
`impersonate`, a request that asks to act as somebody else is answered as that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.audit.trail import following
from waypost.access.authn.impersonation import is_impersonation_field
from waypost.access.authn.records import Authentication
from waypost.access.authz.decision import Decision
from waypost.access.authz.settled import Answers, key_of, settled
from waypost.access.gate import Attributes, Undecided
from waypost.base.errors import Unauthenticated, WaypostError
from waypost.surfaces.http.audit import Auditor, Following
from waypost.surfaces.http.message import Answer, Head, Request, Response
from waypost.surfaces.http.router import App, BodyLimit

Authenticate = Callable[[Request], Authentication | Awaitable[Authentication]]
"""Finds out who sends a request; at once where that needs no network."""
Resolve = Callable[[Actor, Attributes], Awaitable[Decision]]
"""Has the webhooks asked about a request."""
Impersonate = Callable[[Request, Actor], Awaitable[Actor]]
"""Returns who a request acts as that has fields of impersonation. Raises Forbidden, Malformed."""

_MAX_QUESTIONS: Final = 64


class Guard:
    """An `App` that authenticates before it asks another."""

    def __init__(
        self,
        app: App,
        authenticate: Authenticate,
        *,
        auditor: Auditor | None = None,
        resolve: Resolve | None = None,
        impersonate: Impersonate | None = None,
    ) -> None:
        self._app = app
        self._authenticate = authenticate
        self._auditor = auditor
        self._resolve = resolve
        self._impersonate = impersonate

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
        if self._auditor is not None:
            following_ = self._auditor.begin(request, found.actor)
            if following_ is not None:
                return self._audited(request, found, self._auditor, following_)
        return self._ask(request, found)

    def _ask(self, request: Request, found: Authentication) -> Answer | Awaitable[Answer]:
        if found.actor is None:
            msg = "Unauthorized"
            raise Unauthenticated(msg)
        request.identity = found
        if self._impersonate is not None and _wants_to_be_another(request):
            return self._as_another(request, found, found.actor, self._impersonate)
        return self._served(request)

    async def _as_another(
        self, request: Request, found: Authentication, actor: Actor, impersonate: Impersonate
    ) -> Answer:
        other = await impersonate(request, actor)
        if other is not actor:
            request.identity = msgspec.structs.replace(found, actor=other)
        answer = self._served(request)
        return await answer if isinstance(answer, Awaitable) else answer

    def _served(self, request: Request) -> Answer | Awaitable[Answer]:
        if self._resolve is not None:
            return self._patiently(request, self._resolve)
        return self._app.answer(request)

    async def _patiently(self, request: Request, resolve: Resolve) -> Answer:
        answers: Answers = {}
        while True:
            try:
                with settled(answers):
                    answer = self._app.answer(request)
                    return await answer if isinstance(answer, Awaitable) else answer
            except Undecided as question:
                key = key_of(question.actor, question.asked)
                if key in answers or len(answers) >= _MAX_QUESTIONS:
                    raise
                answers[key] = await resolve(question.actor, question.asked)

    # -- with an audit log -------------------------------------------------------------------------------------------------

    def _audited(
        self, request: Request, found: Authentication, auditor: Auditor, record: Following
    ) -> Answer | Awaitable[Answer]:
        try:
            with following(record.trail):
                answer = self._ask(request, found)
        except WaypostError as error:
            answer = self._app.failed(request, error)
        except Exception:
            auditor.failed(record)
            raise
        if found.actor is None and isinstance(answer, Response):
            return auditor.refused(record, answer)
        if isinstance(answer, Awaitable) or auditor.blocks:
            return self._audited_later(request, answer, auditor, record)
        return auditor.finish(record, answer)

    async def _audited_later(
        self,
        request: Request,
        pending: Answer | Awaitable[Answer],
        auditor: Auditor,
        record: Following,
    ) -> Answer:
        try:
            with following(record.trail):
                answer = await pending if isinstance(pending, Awaitable) else pending
        except WaypostError as error:
            answer = self._app.failed(request, error)
        except asyncio.CancelledError:
            auditor.gone(record)
            raise
        except Exception:
            auditor.failed(record)
            raise
        answer = auditor.finish(record, answer)
        if auditor.blocks:
            await auditor.written()
        return answer

    # -- the app -----------------------------------------------------------------------------------------------------------

    def limit(self, head: Head) -> BodyLimit:
        """Return the app's limit."""
        return self._app.limit(head)

    def failed(self, request: Request, error: WaypostError) -> Response:
        """Return the app's form of an error."""
        return self._app.failed(request, error)


def _wants_to_be_another(request: Request) -> bool:
    head = request.head
    if head.is_simple:
        return False
    return any(is_impersonation_field(name) for name, _ in head.headers)
