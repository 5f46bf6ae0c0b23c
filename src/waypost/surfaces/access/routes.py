"""/v1/waypost/auth: who am I, why may somebody do that, who can, what looks wrong in the policy.

Everybody may ask about himself. Asking about others needs `create subjectaccessreviews`, as in kube; the policy itself
(who can, lint, what almost allowed a request) needs `list` on roles and bindings.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from waypost.access.actor import ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, Actor
from waypost.access.audit.past import find_event
from waypost.access.authn.chain import Chain as Authenticators
from waypost.access.authn.records import Attempt, Authentication, Credentials
from waypost.access.authz.attributes import request_attributes
from waypost.access.authz.chain import Chain
from waypost.access.authz.escalation import Held
from waypost.access.authz.rbac import RbacIndex, subject_text
from waypost.access.authz.records import GROUP as RBAC
from waypost.access.authz.records import Subject
from waypost.access.authz.review import lint, review_rules, who_can
from waypost.access.authz.rules import rule_text
from waypost.access.authz.text import action
from waypost.access.explain import Explanation, explain, explanation_document, render
from waypost.access.gate import GROUP, Attributes
from waypost.base.clock import Clock
from waypost.base.errors import Forbidden, Malformed, NotFound
from waypost.surfaces.consul.attributes import ENDPOINTS, consul_attributes
from waypost.surfaces.http.message import Head, Peer, Request, Response
from waypost.surfaces.http.router import BodyLimit, Route
from waypost.wire.kube.resources import BUILT_IN

_PREFIX: Final = "/v1/waypost/auth/"
_MAX_BODY_BYTES: Final = 256 * 1024
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_ASK_OTHERS: Final = Attributes(
    "create", "subjectaccessreviews", group="authorization.k8s.io", version="v1"
)
_SEE_POLICY: Final = tuple(
    Attributes("list", resource, group=RBAC, version="v1")
    for resource in ("clusterrolebindings", "clusterroles", "rolebindings", "roles")
)
_DISCOVERY: Final = frozenset(
    ask.resource for methods in ENDPOINTS.values() for asks in methods.values() for ask in asks
)


def asked_of(head: Head) -> Attributes:
    """Return what a request asks, as far as its line tells it."""
    if head.raw_path.startswith("/v1/"):
        return consul_attributes(head.method, head.raw_path, head.raw_query)
    return line_attributes(head.method, head.target.decode("latin-1"))


def line_attributes(method: str, target: str) -> Attributes:
    """Return what a request line asks; a path that means nothing is asked for as it is."""
    path, _, query = target.partition("?")
    if path.startswith("/v1/"):
        return consul_attributes(method, path, query)
    try:
        return request_attributes(method, target)
    except Malformed:
        return Attributes(method.lower(), path=path, group="")


class Questions(msgspec.Struct, frozen=True, kw_only=True):
    """What answers."""

    authorizers: Chain
    authenticators: Authenticators
    policy: Callable[[], RbacIndex] | None
    held: Held | None
    audit_path: Path | None = None
    """The audit log, for questions about past requests."""
    known: Callable[[Subject, str], bool] | None = None
    """Whether a subject exists, as far as that can be told."""


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `explain` and `who-can`. What is asked: `method` and `url`, or `verb` and `path`, or a resource.

    About whom: nobody named is the caller; else a user with groups, a token, a certificate, or a past request.
    """

    verb: str = ""
    resource: str = ""
    """`services`, `services/status`, `pods.GROUP`; the group may be given by itself as well."""
    group: str | None = None
    name: str = ""
    namespace: str = ""
    path: str = ""
    method: str = ""
    url: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    token: str = ""
    certificate: str = ""
    audit_id: str = ""

    def __repr__(self) -> str:
        return f"Question({self.verb} {self.resource or self.path})"

    @property
    def is_about_others(self) -> bool:
        """Whether it is not about the caller."""
        return bool(self.user or self.groups or self.token or self.certificate or self.audit_id)


_DECODE: Final = msgspec.json.Decoder(Question)


def attributes_of(question: Question) -> Attributes:
    """Return what a question is about. Raises Malformed."""
    if question.url:
        if question.method not in _METHODS:
            raise Malformed(f"{question.method!r} is no method of HTTP")
        if not question.url.startswith("/"):
            raise Malformed(f"{question.url!r} does not start with /")
        return line_attributes(question.method, question.url)
    if not question.verb:
        return Attributes("*", "*", group="*")
    if question.path:
        if not question.path.startswith("/"):
            raise Malformed(f"{question.path!r} does not start with /")
        group = GROUP if question.path.startswith("/v1/kv/") else ""
        return Attributes(question.verb, path=question.path, group=group)
    if not question.resource:
        raise Malformed("name a resource or a path")
    full, _, subresource = question.resource.partition("/")
    resource, _, group = full.partition(".")
    if question.group is not None:
        group = question.group
    elif not group:
        group = group_of(resource)
    return Attributes(
        question.verb,
        resource,
        question.name,
        group=group,
        namespace=question.namespace,
        subresource=subresource,
    )


def group_of(resource: str) -> str:
    """Return the API group of a plural resource name; Consul's nouns come first, unknown ones are of the core."""
    if resource == "*":
        return "*"
    if resource in _DISCOVERY:
        return GROUP
    return next((one.group for one in BUILT_IN if one.plural == resource), "")


class AccessRoutes:
    """Holds what the routes need; `identify` makes an actor of a connection's peer."""

    def __init__(
        self, questions: Questions, *, identify: Callable[[Peer], Actor], clock: Clock
    ) -> None:
        self._questions = questions
        self._identify = identify
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return the routes."""
        limit = BodyLimit(_MAX_BODY_BYTES)
        return [
            Route(_PREFIX + "whoami", {"GET": self.whoami}),
            Route(_PREFIX + "explain", {"POST": self.explain}, limit=limit),
            Route(_PREFIX + "who-can", {"POST": self.who_can}, limit=limit),
            Route(_PREFIX + "lint", {"GET": self.lint}),
        ]

    def _identity(self, request: Request) -> Authentication:
        found = request.identity
        if found is not None:
            return found
        return Authentication(actor=self._identify(request.peer))

    async def _may(self, actor: Actor, *asked: Attributes) -> bool:
        for one in asked:
            decision = self._questions.authorizers.authorize(actor, one)
            if decision is None:
                decision = await self._questions.authorizers.resolve(actor, one)
            if not decision.allowed:
                return False
        return True

    async def _require(self, actor: Actor, *asked: Attributes) -> None:
        for one in asked:
            if not await self._may(actor, one):
                raise Forbidden(f'Forbidden: User "{actor.user}" cannot {action(one)}')

    # -- who am I ----------------------------------------------------------------------------------------------------------

    async def whoami(self, request: Request) -> Response:
        """GET: the caller as every decision sees him, and with `?namespace=` what he may do there."""
        found = self._identity(request)
        actor = found.actor
        assert actor is not None  # the guard lets nobody else through
        value: dict[str, Any] = {
            "user": actor.user,
            "uid": actor.uid,
            "groups": list(actor.groups),
            "extra": actor.extra,
            "origin": actor.origin,
            "address": actor.address,
            "expires": found.expires_s,
            "authentication": _trace(found.trace),
            "authorizers": list(self._questions.authorizers.names),
        }
        policy = self._questions.policy
        if "namespace" in request.query:
            index = policy() if policy is not None else RbacIndex()
            names = self._questions.authorizers.names
            review = review_rules(
                index, actor, request.query.get("namespace") or "default", authorizers=names
            )
            value["rules"] = review.status
        return _json(value)

    # -- why ---------------------------------------------------------------------------------------------------------------

    async def explain(self, request: Request) -> Response:
        """POST a Question: the whole way from credential to rule, or what is missing."""
        question = _decode(request.body)
        caller = self._identity(request)
        asker = caller.actor
        assert asker is not None  # the guard lets nobody else through
        if question.is_about_others:
            await self._require(asker, _ASK_OTHERS)
        asked = attributes_of(question) if not question.audit_id else None
        past: dict[str, Any] | None = None
        if question.audit_id:
            past = await self._past(question.audit_id)
            subject, asked = Authentication(actor=past_actor(past)), past_attributes(past)
        elif question.token or question.certificate:
            subject = await self._believed(question)
        elif question.is_about_others:
            subject = Authentication(actor=_named(question))
        else:
            subject = caller
        assert asked is not None
        if subject.actor is None:
            return _json(_not_believed(subject))
        return await self._explained(asker, subject, subject.actor, asked, past)

    async def _explained(
        self,
        asker: Actor,
        subject: Authentication,
        actor: Actor,
        asked: Attributes,
        past: dict[str, Any] | None,
    ) -> Response:
        questions = self._questions
        if questions.authorizers.authorize(actor, asked) is None:
            await questions.authorizers.resolve(actor, asked)
        found = explain(
            questions.authorizers,
            questions.policy() if questions.policy is not None else RbacIndex(),
            actor,
            asked,
            origins=origins_of(actor),
            held=questions.held,
            asker=asker,
        )
        if questions.policy is None:
            found = msgspec.structs.replace(found, near_misses=(), fix=None)
        elif not await self._may(asker, *_SEE_POLICY):
            found = _without_policy(found)
        text = _trace_text(subject.trace) + render(found)
        if past is not None:
            text = _past_text(past) + text
        return _json(
            {
                "exitCode": found.exit_code,
                "text": text,
                "authentication": _trace(subject.trace),
                "expires": subject.expires_s,
                "past": past,
                "explanation": explanation_document(found),
            }
        )

    async def _past(self, audit_id: str) -> dict[str, Any]:
        path = self._questions.audit_path
        if path is None:
            raise NotFound("this agent keeps no audit log in a file (-audit-log-path)")
        event = await asyncio.to_thread(find_event, path, audit_id)
        if event is None:
            raise NotFound(f"no request {audit_id} in the audit log {path} and its older files")
        return event

    async def _believed(self, question: Question) -> Authentication:
        certificates: tuple[bytes, ...] = ()
        if question.certificate:
            certificates = _certificates(question.certificate)
        return await self._questions.authenticators.authenticate(
            Credentials(consul_token=question.token, certificates_der=certificates),
            now_s=self._clock.wall(),
        )

    # -- the policy --------------------------------------------------------------------------------------------------------

    async def who_can(self, request: Request) -> Response:
        """POST a Question without a subject: every subject that RBAC lets do this."""
        actor = self._identity(request).actor
        assert actor is not None  # the guard lets nobody else through
        await self._require(actor, *_SEE_POLICY)
        asked = attributes_of(_decode(request.body))
        index = self._policy()
        others = [name for name in self._questions.authorizers.names if name != "RBAC"]
        holders = who_can(index, asked)
        return _json(
            {
                "action": action(asked),
                "holders": [msgspec.to_builtins(one) for one in holders],
                "others": others,
                "incomplete": any(one.startswith(("Webhook", "ABAC")) for one in others),
                "rows": [
                    [
                        subject_text(one.subject, namespace=one.grant.namespace),
                        f"{one.grant.binding_kind} {one.grant.namespace + '/' if one.grant.namespace else ''}{one.grant.binding}",
                        f"{one.grant.role_kind} {one.grant.role}",
                        rule_text(one.grant.rule),
                    ]
                    for one in holders
                ],
            }
        )

    async def lint(self, request: Request) -> Response:
        """GET what looks wrong in the policy."""
        actor = self._identity(request).actor
        assert actor is not None  # the guard lets nobody else through
        await self._require(actor, *_SEE_POLICY)
        found = lint(self._policy(), known=self._questions.known)
        return _json({"findings": [msgspec.to_builtins(one) for one in found]})

    def _policy(self) -> RbacIndex:
        if self._questions.policy is None:
            raise NotFound("RBAC is not one of this agent's authorizers; see `waypost init`")
        return self._questions.policy()


# -- helpers ---------------------------------------------------------------------------------------------------------------


def _decode(body: bytes) -> Question:
    try:
        return _DECODE.decode(body or b"{}")
    except msgspec.MsgspecError as exc:
        raise Malformed(f"the question cannot be read: {exc}") from exc


def _json(value: Mapping[str, Any]) -> Response:
    return Response(
        body=msgspec.json.encode(value) + b"\n",
        content_type="application/json",
        headers=(("Cache-Control", "no-store"),),
    )


def _certificates(pem: str) -> tuple[bytes, ...]:
    pieces = pem.split("-----END CERTIFICATE-----")[:-1]
    try:
        found = tuple(
            ssl.PEM_cert_to_DER_cert(
                piece[piece.index("-----BEGIN") :] + "-----END CERTIFICATE-----\n"
            )
            for piece in pieces
        )
    except ValueError as exc:
        raise Malformed("certificate: no valid PEM") from exc
    if not found:
        raise Malformed("certificate: no PEM certificate in it")
    return found


def _named(question: Question) -> Actor:
    groups = question.groups
    if question.user == ANONYMOUS:
        groups = tuple(dict.fromkeys((*groups, UNAUTHENTICATED)))
    elif question.user and AUTHENTICATED not in groups:
        groups = (*groups, AUTHENTICATED)
    return Actor(user=question.user, groups=groups, origin="as asked")


def origins_of(actor: Actor) -> dict[str, str]:
    """Return where an actor's groups come from, as far as the credential's kind tells it."""
    kind = actor.origin.partition(":")[0]
    source = {
        "x509": "O of the certificate",
        "static token": "column 4 of the token file",
        "basic": "column 4 of the password file",
        "oidc": "the token's groups claim",
        "token webhook": "named by the webhook",
        "front proxy": "named by the proxy",
        "service account": "added to every service account",
        "bootstrap token": "the token's secret",
    }.get(kind, "")
    if not source and actor.origin.startswith("unix socket"):
        source = "the socket's peer"
    own = (AUTHENTICATED, UNAUTHENTICATED)
    return {group: source for group in actor.groups if source and group not in own}


def _without_policy(found: Explanation) -> Explanation:
    fix = found.fix
    if fix is not None:
        fix = msgspec.structs.replace(fix, existing=())
    return msgspec.structs.replace(found, near_misses=(), fix=fix)


def _trace(trace: tuple[Attempt, ...]) -> list[dict[str, str]]:
    return [
        {"authenticator": one.authenticator, "outcome": str(one.outcome), "detail": one.detail}
        for one in trace
    ]


def _trace_text(trace: tuple[Attempt, ...]) -> str:
    refused = [one for one in trace if one.outcome == "rejected"]
    return "".join(f"! {one.authenticator}: {one.detail}\n" for one in refused)


def _not_believed(found: Authentication) -> dict[str, Any]:
    lines = ["REFUSED  401 Unauthorized: no authenticator accepts this credential", ""]
    width = max((len(one.authenticator) for one in found.trace), default=0)
    lines += [f"         {one.authenticator:<{width}}  {one.detail}" for one in found.trace]
    return {
        "exitCode": 1,
        "text": "\n".join(lines) + "\n",
        "authentication": _trace(found.trace),
        "error": found.error,
        "explanation": None,
    }


def past_actor(event: Mapping[str, Any]) -> Actor:
    """Return who sent a logged request (whom it impersonated, if it did)."""
    user = event.get("impersonatedUser") or event.get("user") or {}
    return Actor(
        user=str(user.get("username", "")),
        groups=tuple(user.get("groups") or ()),
        uid=str(user.get("uid", "")),
        extra={key: tuple(values) for key, values in (user.get("extra") or {}).items()},
        address=next(iter(event.get("sourceIPs") or ()), ""),
        origin="as logged",
    )


def past_attributes(event: Mapping[str, Any]) -> Attributes:
    """Return what a logged request asked."""
    found = event.get("objectRef")
    verb = str(event.get("verb", ""))
    if not found:
        path = str(event.get("requestURI", "")).partition("?")[0]
        return Attributes(verb, path=path, group="")
    return Attributes(
        verb,
        str(found.get("resource", "")),
        str(found.get("name", "")),
        group=str(found.get("apiGroup", "")),
        namespace=str(found.get("namespace", "")),
        subresource=str(found.get("subresource", "")),
        version=str(found.get("apiVersion", "")),
    )


def _past_text(event: Mapping[str, Any]) -> str:
    notes = event.get("annotations") or {}
    status = (event.get("responseStatus") or {}).get("code", "")
    then = notes.get("authorization.k8s.io/decision", "not decided")
    via = notes.get("access.waypost.io/binding") or notes.get("access.waypost.io/authorizer") or ""
    by = f" by {via}" if via else ""
    return (
        f"then     {event.get('requestReceivedTimestamp', '')}  {event.get('requestURI', '')}: {then}{by}, "
        f"status {status}\nnow      "
    )
