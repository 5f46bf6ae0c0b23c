"""/v1/session. Source: Consul HTTP API, sessions."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Sequence

from waypost.access.gate import Attributes
from waypost.base.errors import Malformed
from waypost.domain.session import CreateSession
from waypost.model.session import Session
from waypost.surfaces.consul.context import Context
from waypost.surfaces.consul.reading import Question
from waypost.surfaces.http.message import Answer, Request, Response, text_response
from waypost.wire.consul import decode, encode


def _id(request: Request) -> str:
    if not request.rest:
        msg = "Missing session"
        raise Malformed(msg)
    return request.rest


def _shape(found: Sequence[Session]) -> list[encode.SessionObject]:
    return [encode.session_object(session) for session in found]


class SessionRoutes:
    """Handlers of /v1/session."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sessions = context.domain.sessions

    async def create(self, request: Request) -> Response:
        """PUT create."""
        try:
            body = decode.session_creation(request.body)
        except Malformed as error:
            msg = f"Request decode failed: {error}"
            raise Malformed(msg) from error
        self._context.require_datacenter(request, named=body.datacenter)
        services = body.service_checks
        command = CreateSession(
            node=body.node or self._context.domain.agent.local.node,
            name=body.name,
            behavior=body.behavior,
            ttl=body.ttl,
            lock_delay_ns=body.lock_delay_ns,
            node_checks=body.node_checks,
            service_checks=None if services is None else tuple(check for check, _ in services),
            checks=body.checks,
        )
        session = await self._sessions.create(
            self._context.actor(request), command, session_id=str(uuid.uuid4())
        )
        return self._context.json(request, {"ID": session.id})

    async def destroy(self, request: Request) -> Response:
        """PUT destroy/:id."""
        session_id = _id(request)
        self._context.require_datacenter(request)
        await self._sessions.destroy(self._context.actor(request), session_id)
        return self._context.json(request, value=True)

    async def renew(self, request: Request) -> Response:
        """PUT renew/:id."""
        session_id = _id(request)
        self._context.require_datacenter(request)
        session = await self._sessions.renew(self._context.actor(request), session_id)
        if session is None:
            return text_response(404, f"Session id '{session_id}' not found")
        return self._context.json(request, _shape([session]))

    def info(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET info/:id."""
        session_id = _id(request)
        question: Question[Session | None] = Question(
            topics=(("sessions",),),
            read=lambda actor: self._sessions.get(actor, session_id),
            encode=lambda found: _shape([found] if found is not None else []),
            asked=Attributes("get", "sessions", session_id),
            shows_consistency=False,
        )
        return self._context.reader.answer(request, self._context.actor(request), question)

    def node(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET node/:node."""
        node = request.rest
        if not node:
            msg = "Missing node name"
            raise Malformed(msg)
        question = Question(
            topics=(("sessions",),),
            read=lambda actor: self._sessions.of_node(actor, node),
            encode=_shape,
            asked=Attributes("list", "sessions"),
            shows_consistency=False,
        )
        return self._context.reader.answer(request, self._context.actor(request), question)

    def list(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET list."""
        question = Question(
            topics=(("sessions",),),
            read=self._sessions.all,
            encode=_shape,
            asked=Attributes("list", "sessions"),
            shows_consistency=False,
        )
        return self._context.reader.answer(request, self._context.actor(request), question)
