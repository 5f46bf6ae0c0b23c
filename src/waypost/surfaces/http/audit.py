"""The audit log's eyes: what a request was, who sent it, what was decided and what was answered.

`Guard` calls it around each request. What the policy does not ask for costs one dictionary look-up.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.audit.event import Answered, Exchange, annotations_of, event_line, shown_uri
from waypost.access.audit.log import AuditLog
from waypost.access.audit.policy import Level, Policy, Stage, Verdict
from waypost.access.audit.trail import Trail, decisive
from waypost.access.gate import Attributes
from waypost.base.clock import Clock
from waypost.surfaces.http.message import Answer, Head, Rendered, Request, Response

log = logging.getLogger(__name__)

HEADER: Final = "Audit-Id"
CLIENT_GONE: Final = 499
_REMEMBERED: Final = 4096


class Following(msgspec.Struct, frozen=True):
    """A request that is written down."""

    exchange: Exchange
    verdict: Verdict
    trail: Trail
    impersonates: bool
    request_body: bytes


class Auditor:
    """Writes what `policy` asks for. `asked_of` says what a request line asks."""

    def __init__(
        self,
        policy: Policy,
        sink: AuditLog,
        *,
        asked_of: Callable[[Head], Attributes],
        new_id: Callable[[], str],
        clock: Clock,
    ) -> None:
        self._policy = policy
        self._sink = sink
        self._asked_of = asked_of
        self._new_id = new_id
        self._clock = clock
        self._quiet: dict[tuple[bytes, str, tuple[str, ...]], bool] = {}

    @property
    def blocks(self) -> bool:
        """Whether an answer waits until its event is written."""
        return self._sink.settings.blocks

    async def written(self) -> None:
        """Wait until everything is written. Raises Unavailable."""
        await self._sink.written()

    def is_quiet(self, head: Head, actor: Actor) -> bool:
        """Return whether a GET is not written; remembered, because asked for each hot read."""
        key = (head.target, actor.user, actor.groups)
        found = self._quiet.get(key)
        if found is None:
            verdict = self._policy.decide(actor, self._asked_of(head), head.raw_path)
            found = verdict.level is Level.NONE
            if len(self._quiet) >= _REMEMBERED:
                self._quiet.clear()
            self._quiet[key] = found
        return found

    def begin(self, request: Request, actor: Actor | None) -> Following | None:
        """Return what is written of a request; None: nothing. Writes stage RequestReceived."""
        head = request.head
        asked = self._asked_of(head)
        verdict = self._policy.decide(actor, asked, head.raw_path)
        if verdict.level is Level.NONE:
            return None
        request.audit_id = self._new_id()
        exchange = Exchange(
            audit_id=request.audit_id,
            level=verdict.level,
            uri=shown_uri(head.raw_path, head.raw_query),
            asked=asked,
            actor=actor,
            received_s=self._clock.wall(),
            address=request.peer.address,
            user_agent=head.headers.get("user-agent") or "",
        )
        keeps = verdict.level >= Level.REQUEST
        following = Following(
            exchange,
            verdict,
            Trail(),
            head.headers.get("impersonate-user") is not None,
            request.body if keeps else b"",
        )
        if actor is not None:
            self._put(following, Stage.REQUEST_RECEIVED, None)
        return following

    def refused(self, following: Following, answer: Response) -> Answer:
        """Write that nobody was believed, in the one event that kube writes of it, and return the marked answer."""
        answered = Answered(status=401, at_s=self._clock.wall(), message="Authentication failed")
        self._put(following, Stage.RESPONSE_STARTED, answered)
        return _marked(answer, following)

    def finish(self, following: Following, answer: Answer) -> Answer:
        """Write how a request ended and return the answer with its audit id; a stream is written at its end as well."""
        if isinstance(answer, Response) and answer.stream is not None:
            self._put(following, Stage.RESPONSE_STARTED, self._answered(following, answer.status))
            stream = self._until_end(following, answer.status, answer.stream)
            return _marked(msgspec.structs.replace(answer, stream=stream), following)
        body = answer.body if following.verdict.level >= Level.REQUEST_RESPONSE else b""
        self._put(
            following,
            Stage.RESPONSE_COMPLETE,
            self._answered(
                following,
                answer.status,
                body=body,
                message=_message(answer.body) if answer.status >= 400 else "",
            ),
        )
        return _marked(answer, following)

    def gone(self, following: Following) -> None:
        """Write that the client went away before there was an answer."""
        answered = self._answered(following, CLIENT_GONE, message="the client went away")
        self._put(following, Stage.RESPONSE_COMPLETE, answered)

    def failed(self, following: Following) -> None:
        """Write that a fault of ours ended the request."""
        answered = self._answered(following, 500, message="internal error")
        self._put(following, Stage.PANIC, answered)

    async def _until_end(
        self, following: Following, status: int, stream: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        try:
            async for chunk in stream:
                yield chunk
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
            self._put(following, Stage.RESPONSE_COMPLETE, self._answered(following, status))

    def _answered(
        self, following: Following, status: int, *, body: bytes = b"", message: str = ""
    ) -> Answered:
        note = following.trail.main(is_refused=status == 403)
        annotations: dict[str, str] = {}
        impersonated: Actor | None = None
        if note is not None:
            decision = note.decision
            annotations = annotations_of(
                decisive(decision), is_allowed=decision.allowed, reason=decision.reason
            )
            if following.impersonates and note.asked.verb != "impersonate":
                impersonated = note.actor
        return Answered(
            status=status,
            at_s=self._clock.wall(),
            message=message,
            # A webhook that calls itself like an authorizer does not speak for it.
            annotations=following.trail.annotations | annotations,
            impersonated=impersonated,
            request_body=following.request_body,
            response_body=body,
        )

    def _put(self, following: Following, stage: Stage, answered: Answered | None) -> None:
        if stage in following.verdict.omits:
            return
        line = event_line(following.exchange, stage, answered)
        self._sink.put(line, is_late=stage is not Stage.REQUEST_RECEIVED)


def _marked(answer: Answer, following: Following) -> Answer:
    audit_id = following.exchange.audit_id
    if isinstance(answer, Rendered):
        return answer.with_header(HEADER, audit_id)
    others = [pair for pair in answer.headers if pair[0] != HEADER]
    return msgspec.structs.replace(answer, headers=((HEADER, audit_id), *others))


class _Status(msgspec.Struct, frozen=True):
    message: str = ""


def _message(body: bytes) -> str:
    if body.startswith(b"{"):
        try:
            return msgspec.json.decode(body, type=_Status).message
        except msgspec.MsgspecError:
            return ""
    return body[:1024].decode("utf-8", "replace")
