"""One event of the log, as JSON, with nothing secret in it.

Bodies are written only as JSON objects, with every value under a name that sounds like a secret taken out; bodies of
resources that exist to hold secrets (and all of KV) are never written, whatever the policy says.
Source: `audit.k8s.io/v1` Event.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.audit.policy import Level, Stage
from waypost.access.authz.decision import Grant, Step
from waypost.access.authz.rules import rule_text
from waypost.access.gate import GROUP, Attributes
from waypost.wire.http import hidden

REDACTED: Final = "REDACTED"
_MAX_BODY_BYTES: Final = 256 * 1024
_MAX_TEXT: Final = 1024
_SECRET_NAME: Final = re.compile(
    r"token|secret|passw|authorization|credential|private.?key|client.?key|cookie|^api.?key$|bearer",
    re.IGNORECASE,
)
_SECRET_PARAMETER: Final = re.compile(
    r"token|secret|passw|signature|(?:client|api|private)[_.-]?key", re.IGNORECASE
)
_IN_TEXT: Final = re.compile(r"((?:token|secret|password)=)[^&;\s]*", re.IGNORECASE)
_WITHOUT_BODIES: Final = frozenset(
    {
        ("", "secrets", ""),
        ("", "serviceaccounts", "token"),
        ("authentication.k8s.io", "tokenreviews", ""),
        (GROUP, "events", ""),
        (GROUP, "transactions", ""),
        (GROUP, "agents", ""),
    }
)
_COPIES: Final = "kubectl.kubernetes.io/last-applied-configuration"


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """A request as the log sees it; the answer comes with `Answered`."""

    audit_id: str
    level: Level
    uri: str
    """Path and query, already without secrets: see `shown_uri`."""
    asked: Attributes
    actor: Actor | None
    received_s: float
    address: str = ""
    user_agent: str = ""
    has_object: bool = False
    """Whether this is an object of the kube-style API, so that the event names its version."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    status: int
    at_s: float
    message: str = ""
    annotations: dict[str, str] = {}
    impersonated: Actor | None = None
    request_body: bytes = b""
    response_body: bytes = b""


def shown_uri(path: str, query: str) -> str:
    """Return a request target for the log: values of parameters that carry secrets are taken out."""
    if not query:
        return _text(path)
    text = hidden(
        query, is_secret=lambda name: bool(_SECRET_PARAMETER.search(name)), shown=REDACTED
    )
    return _text(f"{path}?{text}")


def event_line(exchange: Exchange, stage: Stage, answered: Answered | None = None) -> bytes:
    """Return an event as one line of JSON."""
    document: dict[str, Any] = {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": exchange.level.text,
        "auditID": exchange.audit_id,
        "stage": str(stage),
        "requestURI": exchange.uri,
        "verb": exchange.asked.verb,
        "user": _user(exchange.actor),
    }
    if answered is not None and answered.impersonated is not None:
        document["impersonatedUser"] = _user(answered.impersonated)
    document["sourceIPs"] = [exchange.address] if exchange.address else []
    if exchange.user_agent:
        document["userAgent"] = _text(exchange.user_agent)
    reference = _reference(exchange.asked)
    if reference:
        document["objectRef"] = reference
    if answered is not None:
        status: dict[str, Any] = {"metadata": {}, "code": answered.status}
        if answered.status >= 400:
            status["status"] = "Failure"
            if answered.message:
                status["message"] = _text(_IN_TEXT.sub(rf"\1{REDACTED}", answered.message))
        document["responseStatus"] = status
        _put_bodies(document, exchange, answered)
    document["requestReceivedTimestamp"] = _stamp(exchange.received_s)
    document["stageTimestamp"] = _stamp(exchange.received_s if answered is None else answered.at_s)
    if answered is not None and answered.annotations:
        document["annotations"] = answered.annotations
    return msgspec.json.encode(document) + b"\n"


def _put_bodies(document: dict[str, Any], exchange: Exchange, answered: Answered) -> None:
    if not bodies_allowed(exchange.asked):
        return
    if exchange.level >= Level.REQUEST and answered.request_body:
        document["requestObject"] = shown_body(answered.request_body)
    if exchange.level >= Level.REQUEST_RESPONSE and answered.response_body:
        document["responseObject"] = shown_body(answered.response_body)


def bodies_allowed(asked: Attributes) -> bool:
    """Return whether bodies of such a request may ever be written."""
    if asked.path:
        return False
    return (asked.group, asked.resource, asked.subresource) not in _WITHOUT_BODIES and (
        asked.resource != "secrets"
    )


def shown_body(body: bytes) -> Any:
    """Return a JSON body without secrets; a body that is none, or large, by its size only."""
    if len(body) > _MAX_BODY_BYTES:
        return {"omitted": f"{len(body)} bytes"}
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {"omitted": f"{len(body)} bytes that are no JSON"}
    try:
        return _without_secrets(value)
    except RecursionError:
        return {"omitted": f"{len(body)} bytes"}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        is_variable = isinstance(value.get("name"), str) and _SECRET_NAME.search(value["name"])
        return {
            key: REDACTED
            if (_SECRET_NAME.search(key) and one not in (None, "", [], {}, True, False))
            or key == _COPIES
            or (is_variable and key == "value")
            else _without_secrets(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(one) for one in value]
    return value


def _user(actor: Actor | None) -> dict[str, Any]:
    if actor is None:
        return {}
    found: dict[str, Any] = {"username": actor.user}
    if actor.uid:
        found["uid"] = actor.uid
    if actor.groups:
        found["groups"] = list(actor.groups)
    if actor.extra:
        found["extra"] = {key: list(values) for key, values in actor.extra.items()}
    return found


def _reference(asked: Attributes) -> dict[str, str]:
    if asked.path:
        return {}
    fields = {
        "resource": asked.resource,
        "namespace": asked.namespace,
        "name": asked.name,
        "apiGroup": asked.group,
        "apiVersion": asked.version,
        "subresource": asked.subresource,
    }
    return {key: _text(value) for key, value in fields.items() if value}


def _text(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _stamp(at_s: float) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# -- annotations -----------------------------------------------------------------------------------------------------------


def annotations_of(step: Step | None, *, is_allowed: bool, reason: str) -> dict[str, str]:
    """Return what the log says of a decision: kube's two annotations, and the way through the policy."""
    found = {"authorization.k8s.io/decision": "allow" if is_allowed else "forbid"}
    found["authorization.k8s.io/reason"] = _text(reason)
    if step is not None:
        found["access.waypost.io/authorizer"] = step.authorizer
        if step.grant is not None:
            found |= _grant(step.grant)
    return found


def _grant(grant: Grant) -> dict[str, str]:
    binding = f"{grant.namespace}/{grant.binding}" if grant.namespace else grant.binding
    return {
        "access.waypost.io/binding": f"{grant.binding_kind} {binding}",
        "access.waypost.io/role": f"{grant.role_kind} {grant.role}",
        "access.waypost.io/rule": f"{grant.rule_index}: {_text(rule_text(grant.rule))}",
    }
