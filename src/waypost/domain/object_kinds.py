"""What is particular to a kind when an object is written: what the server sets, and what only a subresource may change.

Pure functions over documents; they change the document they are given. What a kind must look like is in
`wire.kube.validate` and, for roles and bindings, in `access.authz.validate`.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, cast

from waypost.access.actor import Actor
from waypost.access.authn.service_account import SECRET_TYPE
from waypost.access.authz import validate as rbac
from waypost.access.authz.records import (
    GROUP as RBAC,
)
from waypost.access.authz.records import (
    BindingKind,
    RoleKind,
    parse_binding,
    parse_role,
)
from waypost.access.pki.signer import SigningRequest, creation_problem, read_request
from waypost.base.errors import Malformed
from waypost.wire.kube.resources import CERTIFICATES, Resource
from waypost.wire.kube.status import FieldError, forbidden
from waypost.wire.kube.values import JsonObject, copied

ACCOUNT_NAME: Final = "kubernetes.io/service-account.name"
ACCOUNT_UID: Final = "kubernetes.io/service-account.uid"
PROTECTED_NAMESPACES: Final = ("default", "kube-system", "kube-public")
_DECISIONS: Final = ("Approved", "Denied")


def prepare_create(value: JsonObject, *, resource: Resource, actor: Actor) -> None:
    """Set what a new object has from the server. Raises ApiError for what may never be asked."""
    if resource.group == CERTIFICATES:
        _own_request(value, actor)
    elif not resource.group and resource.plural == "namespaces":
        spec = value.setdefault("spec", {})
        if "kubernetes" not in (spec.get("finalizers") or []):
            spec["finalizers"] = [*(spec.get("finalizers") or []), "kubernetes"]
        value["status"] = {"phase": "Active"}


def prepare_update(
    value: JsonObject, *, live: JsonObject, resource: Resource, subresource: str = ""
) -> None:
    """Take back what this path may not change."""
    if resource.group == CERTIFICATES:
        _keep(value, live, "spec")
        _update_request(value, live, subresource)
    elif not resource.group and resource.plural == "namespaces":
        if subresource == "status":
            _keep(value, live, "spec")
            value["metadata"] = copied(live["metadata"]) | _only_managed(value)
        elif subresource == "finalize":
            _keep(value, live, "status")
        else:
            _keep(value, live, "spec")
            _keep(value, live, "status")


def _keep(value: JsonObject, live: JsonObject, field: str) -> None:
    value.pop(field, None)
    if field in live:
        value[field] = copied(live[field])


def _only_managed(value: JsonObject) -> JsonObject:
    managed = value["metadata"].get("managedFields")
    return {"managedFields": managed} if managed is not None else {}


def token_account(resource: Resource, value: JsonObject) -> str:
    """Return the service account that a secret shall hold a token of, "" for other objects."""
    if resource.group or resource.plural != "secrets" or value.get("type") != SECRET_TYPE:
        return ""
    name = (value["metadata"].get("annotations") or {}).get(ACCOUNT_NAME, "")
    return str(name)


# -- certificate signing requests ------------------------------------------------------------------------------------------


def _own_request(value: JsonObject, actor: Actor) -> None:
    spec = value.setdefault("spec", {})
    for field in ("username", "uid", "groups", "extra"):
        spec.pop(field, None)
    spec["username"] = actor.user
    if actor.uid:
        spec["uid"] = actor.uid
    if actor.groups:
        spec["groups"] = list(actor.groups)
    if actor.extra:
        spec["extra"] = {key: list(values) for key, values in actor.extra.items()}
    value.pop("status", None)
    problem = _creation_problem(spec)
    if problem:
        name = value["metadata"].get("name", "")
        raise forbidden("certificatesigningrequests", name, problem, group=CERTIFICATES)


def signing_request(spec: JsonObject) -> SigningRequest:
    """Return what signing needs of a CertificateSigningRequest's spec. Raises Malformed when `request` is no base64."""
    try:
        pem = base64.b64decode(spec.get("request") or "", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Malformed("spec.request is not base64") from exc
    return SigningRequest(
        request_pem=pem,
        signer=spec.get("signerName", ""),
        usages=tuple(spec.get("usages") or ()),
        expiration_s=spec.get("expirationSeconds"),
    )


def _creation_problem(spec: JsonObject) -> str:
    try:
        request = signing_request(spec)
        return creation_problem(request, read_request(request.request_pem))
    except Malformed:
        return ""  # validation tells what is wrong with it


def _update_request(value: JsonObject, live: JsonObject, subresource: str) -> None:
    """Let `approval` change only the decision, `status` only the rest of the status, and a plain update neither."""
    asked = value.get("status") or {}
    had = copied(live.get("status") or {})
    if subresource == "approval":
        decided = [one for one in asked.get("conditions") or () if one.get("type") in _DECISIONS]
        other = [one for one in had.get("conditions") or () if one.get("type") not in _DECISIONS]
        had["conditions"] = decided + other
        value["status"] = had
    elif subresource == "status":
        decided = [one for one in had.get("conditions") or () if one.get("type") in _DECISIONS]
        other = [one for one in asked.get("conditions") or () if one.get("type") not in _DECISIONS]
        value["status"] = asked | {"conditions": decided + other}
    else:
        value["status"] = had
    if subresource:
        value["metadata"] = copied(live["metadata"]) | _only_managed(value)
    if not (value["status"].get("conditions") or ()):
        value["status"].pop("conditions", None)
    if not value["status"]:
        value.pop("status")


def stamp_conditions(value: JsonObject, *, live: JsonObject, now_text: str) -> None:
    """Fill in the times of conditions of a signing request that have none."""
    before = {one.get("type"): one for one in (live.get("status") or {}).get("conditions") or ()}
    for one in (value.get("status") or {}).get("conditions") or ():
        old = before.get(one.get("type"))
        same = old is not None and old.get("status") == one.get("status")
        one.setdefault("status", "True")
        one.setdefault("lastUpdateTime", now_text)
        one.setdefault(
            "lastTransitionTime",
            old.get("lastTransitionTime", now_text) if same and old is not None else now_text,
        )


def changed_decisions(value: JsonObject, live: JsonObject) -> bool:
    """Tell whether an update of a signing request approves, denies or takes either back."""

    def decided(one: JsonObject) -> list[JsonObject]:
        conditions = (one.get("status") or {}).get("conditions") or ()
        return [entry for entry in conditions if entry.get("type") in _DECISIONS]

    return decided(value) != decided(live)


# -- roles and bindings ------------------------------------------------------------------------------------------------------


def policy_errors(
    value: JsonObject, *, resource: Resource, live: JsonObject | None
) -> list[FieldError]:
    """Return the faults of a role or binding; nothing for other kinds."""
    if resource.group != RBAC:
        return []
    if resource.kind in ("Role", "ClusterRole"):
        found = rbac.validate_role(parse_role(value, kind=cast("RoleKind", resource.kind)))
    else:
        kind = cast("BindingKind", resource.kind)
        binding = parse_binding(value, kind=kind)
        if live is None:
            found = rbac.validate_binding(binding)
        else:
            found = rbac.validate_binding_update(binding, old=parse_binding(live, kind=kind))
    return [FieldError(one.field, one.reason, one.message) for one in found]
