"""Which authorizers there are and in what order: `Node,RBAC`, or an AuthorizationConfiguration file.

Source: kube `--authorization-mode`, `apiserver.config.k8s.io` AuthorizationConfiguration (v1, v1beta1, v1alpha1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

import msgspec

from waypost.access.authz.webhook import FailurePolicy
from waypost.base.duration import parse_s
from waypost.base.errors import Malformed

Mode = Literal["Node", "RBAC", "ABAC", "Webhook", "AlwaysAllow", "AlwaysDeny"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
_API_VERSIONS: Final = tuple(
    f"apiserver.config.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1")
)
_MAX_TIMEOUT_S: Final = 30.0


class WebhookPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook as configured; where it is comes from the kubeconfig file."""

    kubeconfig: str
    timeout_s: float
    authorized_ttl_s: float
    unauthorized_ttl_s: float
    failure_policy: FailurePolicy


class AuthorizerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the chain."""

    mode: Mode
    name: str
    webhook: WebhookPlan | None = None


def parse_modes(text: str) -> tuple[AuthorizerPlan, ...]:
    """Return the authorizers of a comma list. Raises Malformed for unknown, repeated and missing ones."""
    plans: list[AuthorizerPlan] = []
    for name in (one.strip() for one in text.split(",")):
        mode = next((one for one in MODES if one == name), None)
        if mode is None:
            msg = f"authorization mode {name!r} is not known; there are {', '.join(MODES)}"
            raise Malformed(msg)
        if any(plan.mode == mode for plan in plans):
            msg = f"authorization mode {name!r} is given more than once"
            raise Malformed(msg)
        plans.append(AuthorizerPlan(mode=mode, name=mode.lower()))
    return tuple(plans)


class _ConnectionJson(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    type: str = ""
    kube_config_file: str | None = None


class _WebhookJson(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    timeout: str = ""
    subject_access_review_version: str = ""
    match_condition_subject_access_review_version: str = ""
    failure_policy: str = ""
    connection_info: _ConnectionJson = msgspec.field(default_factory=_ConnectionJson)
    authorized_ttl: str = msgspec.field(name="authorizedTTL", default="5m")
    unauthorized_ttl: str = msgspec.field(name="unauthorizedTTL", default="30s")
    cache_authorized_requests: bool = True
    cache_unauthorized_requests: bool = True
    match_conditions: list[dict[str, Any]] | None = None


class _AuthorizerJson(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    type: str = ""
    name: str = ""
    webhook: _WebhookJson | None = None


class _FileJson(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    api_version: str = ""
    kind: str = ""
    authorizers: list[_AuthorizerJson] = []


def parse_configuration(document: Any) -> tuple[AuthorizerPlan, ...]:
    """Return the authorizers of an AuthorizationConfiguration (decoded YAML). Raises Malformed with the place."""
    try:
        found = msgspec.convert(document, _FileJson)
    except msgspec.ValidationError as exc:
        msg = f"AuthorizationConfiguration: {exc}"
        raise Malformed(msg) from exc
    if found.kind != "AuthorizationConfiguration" or found.api_version not in _API_VERSIONS:
        msg = f"expected kind AuthorizationConfiguration of {_API_VERSIONS[0]}, found {found.kind!r} of {found.api_version!r}"
        raise Malformed(msg)
    if not found.authorizers:
        msg = "authorizers: at least one authorization mode must be defined"
        raise Malformed(msg)
    plans = [_plan(one, f"authorizers[{at}]") for at, one in enumerate(found.authorizers)]
    _refuse_repeated(plans)
    return tuple(plans)


def _refuse_repeated(plans: Sequence[AuthorizerPlan]) -> None:
    names: set[str] = set()
    modes: set[str] = set()
    for at, plan in enumerate(plans):
        if plan.name in names:
            msg = f"authorizers[{at}].name: {plan.name!r} is given more than once"
            raise Malformed(msg)
        if plan.mode in modes and plan.mode != "Webhook":
            msg = f"authorizers[{at}].type: {plan.mode!r} is given more than once"
            raise Malformed(msg)
        names.add(plan.name)
        modes.add(plan.mode)


def _plan(found: _AuthorizerJson, where: str) -> AuthorizerPlan:
    mode = next((one for one in MODES if one == found.type), None)
    if mode is None:
        msg = f"{where}.type: {found.type!r} is not known; there are {', '.join(MODES)}"
        raise Malformed(msg)
    if not found.name:
        msg = f"{where}.name: required"
        raise Malformed(msg)
    if (mode == "Webhook") != (found.webhook is not None):
        msg = f"{where}.webhook: required for type Webhook, and only there"
        raise Malformed(msg)
    webhook = None if found.webhook is None else _webhook(found.webhook, f"{where}.webhook")
    return AuthorizerPlan(mode=mode, name=found.name, webhook=webhook)


def _webhook(found: _WebhookJson, where: str) -> WebhookPlan:
    def refuse(field: str, text: str) -> Malformed:
        return Malformed(f"{where}.{field}: {text}")

    if found.match_conditions:
        # A condition that is not understood must not be taken for one that holds.
        raise refuse("matchConditions", "CEL conditions are not supported")
    if found.subject_access_review_version != "v1":
        raise refuse("subjectAccessReviewVersion", 'must be "v1"')
    policy = next((one for one in get_args(FailurePolicy) if one == found.failure_policy), None)
    if policy is None:
        raise refuse("failurePolicy", 'must be "NoOpinion" or "Deny"')
    connection = found.connection_info
    if connection.type != "KubeConfigFile" or not connection.kube_config_file:
        raise refuse("connectionInfo", "type KubeConfigFile with a kubeConfigFile is needed")
    times: dict[str, float] = {}
    for field, text in (
        ("timeout", found.timeout),
        ("authorizedTTL", found.authorized_ttl),
        ("unauthorizedTTL", found.unauthorized_ttl),
    ):
        try:
            times[field] = parse_s(text)
        except Malformed as exc:
            raise refuse(field, str(exc)) from exc
    if not 0 < times["timeout"] <= _MAX_TIMEOUT_S:
        raise refuse("timeout", "must be above 0 and at most 30s")
    return WebhookPlan(
        kubeconfig=connection.kube_config_file,
        timeout_s=times["timeout"],
        authorized_ttl_s=times["authorizedTTL"] if found.cache_authorized_requests else 0.0,
        unauthorized_ttl_s=times["unauthorizedTTL"] if found.cache_unauthorized_requests else 0.0,
        failure_policy=policy,
    )
