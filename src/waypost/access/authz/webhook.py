"""The Webhook authorizer: another server decides, by SubjectAccessReview v1 over HTTP.

Answers are kept under the whole question: allowed ones longer than the others. Overflow: the one used longest ago
goes. A failing peer is an error in the answer, and the failure policy says whether that is no opinion (a later
authorizer may still allow) or a denial.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from waypost.access.actor import Actor
from waypost.access.authz.decision import Step, Verdict
from waypost.access.gate import Attributes
from waypost.base.clock import Clock
from waypost.base.quoting import quoted

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

FailurePolicy = Literal["NoOpinion", "Deny"]

_MAX_ANSWERS: Final = 8192
_MAX_ATTRIBUTES_CHARS: Final = 10_000
_MAX_BODY_BYTES: Final = 1 << 20
_TRIES: Final = 5
_DELAY_FACTOR: Final = 1.5


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One webhook."""

    name: str
    url: str
    timeout_s: float = 30.0
    """For one try; at most 30."""
    authorized_ttl_s: float = 300.0
    unauthorized_ttl_s: float = 30.0
    failure_policy: FailurePolicy = "NoOpinion"
    retry_delay_s: float = 0.5
    """Before the second of five tries; each further wait is half as long again."""


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    allowed: bool = False
    denied: bool = False
    reason: str = ""
    evaluation_error: str = ""


class _Answer(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    status: _Status = _Status()


class _Failed(Exception):
    """The peer gave no answer that can be used; `again` says whether another try may help."""

    def __init__(self, text: str, *, again: bool) -> None:
        super().__init__(text)
        self.again = again


def review_document(actor: Actor, asked: Attributes) -> dict[str, Any]:
    """Return the SubjectAccessReview that asks about a request."""
    spec: dict[str, Any] = {}
    if asked.path:
        spec["nonResourceAttributes"] = {"path": asked.path, "verb": asked.verb}
    else:
        fields = {
            "namespace": asked.namespace,
            "verb": asked.verb,
            "group": asked.group,
            "version": asked.version,
            "resource": asked.resource,
            "subresource": asked.subresource,
            "name": asked.name,
        }
        spec["resourceAttributes"] = {key: value for key, value in fields.items() if value}
    if actor.user:
        spec["user"] = actor.user
    if actor.groups:
        spec["groups"] = list(actor.groups)
    if actor.extra:
        spec["extra"] = {key: list(values) for key, values in actor.extra.items()}
    if actor.uid:
        spec["uid"] = actor.uid
    return {
        "kind": "SubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {"creationTimestamp": None},
        "spec": spec,
        "status": {"allowed": False},
    }


class WebhookAuthorizer:
    """Asks one webhook. `matches` limits it to some requests; TLS and credentials are the session's."""

    def __init__(
        self,
        settings: WebhookSettings,
        *,
        session: aiohttp.ClientSession,
        clock: Clock,
        matches: Callable[[Actor, Attributes], bool] | None = None,
    ) -> None:
        self.settings = settings
        self._session = session
        self._clock = clock
        self._matches = matches
        self._answers: OrderedDict[bytes, tuple[float, Step]] = OrderedDict()

    @property
    def name(self) -> str:
        """What a trace calls it."""
        return f"Webhook {quoted(self.settings.name)}"

    def authorize(self, actor: Actor, asked: Attributes) -> Step | None:
        """Return the answer if it is known and fresh."""
        if self._matches is not None and not self._matches(actor, asked):
            return Step(authorizer=self.name, verdict="no-opinion")
        return self._known(_key(review_document(actor, asked)))

    def _known(self, key: bytes) -> Step | None:
        found = self._answers.get(key)
        if found is None:
            return None
        until, step = found
        if self._clock.now() >= until:
            del self._answers[key]
            return None
        self._answers.move_to_end(key)
        return step

    async def resolve(self, actor: Actor, asked: Attributes) -> Step:
        """Return the answer, asking the webhook if it is not known."""
        known = self.authorize(actor, asked)
        if known is not None:
            return known
        document = review_document(actor, asked)
        try:
            status = await self._ask_patiently(document)
        except _Failed as exc:
            verdict: Verdict = "deny" if self.settings.failure_policy == "Deny" else "no-opinion"
            log.warning("webhook %s did not answer: %s", self.settings.name, exc)
            return Step(authorizer=self.name, verdict=verdict, error=str(exc))
        step = self._step(status)
        if _cacheable(asked):
            allowed = status.allowed and not status.denied
            ttl_s = self.settings.authorized_ttl_s if allowed else self.settings.unauthorized_ttl_s
            self._remember(_key(document), step, ttl_s)
        return step

    def _step(self, status: _Status) -> Step:
        if status.allowed and status.denied:
            return Step(
                authorizer=self.name,
                verdict="deny",
                reason=status.reason,
                error="webhook subject access review returned both allow and deny response",
            )
        verdict: Verdict = "no-opinion"
        if status.denied:
            verdict = "deny"
        elif status.allowed:
            verdict = "allow"
        return Step(authorizer=self.name, verdict=verdict, reason=status.reason)

    def _remember(self, key: bytes, step: Step, ttl_s: float) -> None:
        if ttl_s <= 0:
            return
        self._answers[key] = (self._clock.now() + ttl_s, step)
        self._answers.move_to_end(key)
        while len(self._answers) > _MAX_ANSWERS:
            self._answers.popitem(last=False)

    async def _ask_patiently(self, document: dict[str, Any]) -> _Status:
        delay_s = self.settings.retry_delay_s
        for _ in range(_TRIES - 1):
            try:
                return await self._ask(document)
            except _Failed as exc:
                if not exc.again:
                    raise
            await asyncio.sleep(delay_s)
            delay_s *= _DELAY_FACTOR
        return await self._ask(document)

    async def _ask(self, document: dict[str, Any]) -> _Status:
        import aiohttp

        timeout_s = min(self.settings.timeout_s, 30.0)
        try:
            async with self._session.post(
                self.settings.url,
                params={"timeout": f"{timeout_s:g}s"},
                json=document,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                status = response.status
                body = await _read(response)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            msg = f"{self.settings.url}: {exc or type(exc).__name__}"
            raise _Failed(msg, again=True) from exc
        if not 200 <= status < 300:
            msg = f"{self.settings.url} answered {status}"
            raise _Failed(msg, again=status >= 500 or status == 429)
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            msg = f"{self.settings.url} did not answer with a SubjectAccessReview: {exc}"
            raise _Failed(msg, again=False) from exc
        if answer.kind != "SubjectAccessReview" or answer.api_version != "authorization.k8s.io/v1":
            msg = f"{self.settings.url} answered with {answer.kind} of {answer.api_version}"
            raise _Failed(msg, again=False)
        return answer.status


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            msg = f"{response.url.origin()} answered more than {_MAX_BODY_BYTES} bytes"
            raise _Failed(msg, again=False)
    return bytes(body)


def _key(document: dict[str, Any]) -> bytes:
    return json.dumps(document["spec"], sort_keys=True).encode()


def _cacheable(asked: Attributes) -> bool:
    """Return whether an answer is worth the memory: what a caller can make long at will is not kept."""
    return (
        sum(map(len, (asked.namespace, asked.verb, asked.group, asked.version, asked.resource)))
        + sum(map(len, (asked.subresource, asked.name, asked.path)))
        <= _MAX_ATTRIBUTES_CHARS
    )
