"""The roles and bindings every cluster starts with, and how stored ones are brought up to them.

`default_policy.jsonl` holds what a kube-apiserver has, one object a line; the roles of waypost itself follow below.
All carry the bootstrapping label and the autoupdate annotation; setting the annotation to "false" on a stored object
keeps it as it is. Reconciling only ever adds: rules, subjects, labels and annotations of the operator stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, Final, Literal, cast

import msgspec

from waypost.access.actor import AUTHENTICATED, NODES, UNAUTHENTICATED
from waypost.access.authz.aggregation import aggregate
from waypost.access.authz.records import (
    GROUP,
    RESOURCES,
    Binding,
    BindingKind,
    PolicyRule,
    Role,
    RoleKind,
    RoleRef,
    Subject,
    binding_document,
    parse_binding,
    parse_role,
    role_document,
    rule_document,
    selector_document,
    subject_document,
)
from waypost.access.authz.rules import missing
from waypost.access.gate import GROUP as DISCOVERY
from waypost.model.object import Object

BOOTSTRAP_LABELS: Final[Mapping[str, str]] = {"kubernetes.io/bootstrapping": "rbac-defaults"}
AUTOUPDATE: Final = "rbac.authorization.kubernetes.io/autoupdate"
KV_PATH: Final = "/v1/kv/"

_READ: Final = ("get", "list", "watch")
_WRITE: Final = ("create", "delete", "patch", "update")
_REGISTER: Final = ("delete", "patch", "update")
_KV_READ: Final = ("get", "list")
_KV_WRITE: Final = ("create", "delete", "update")
_BALANCING: Final = ("balancers", "routes")


# -- roles of waypost ----------------------------------------------------------------------------------------------------


def kv_role(name: str, prefix: str, *, write: bool) -> Role:
    """Return a ClusterRole for the keys below `prefix` (without a leading slash): to read, or to edit as well."""
    verbs = tuple(sorted(_KV_READ + _KV_WRITE)) if write else _KV_READ
    rule = PolicyRule(verbs=verbs, non_resource_urls=(f"{KV_PATH}{prefix}*",))
    return Role(kind="ClusterRole", name=name, rules=(rule,))


def registrant_role(name: str, services: Sequence[str], *, checks: Sequence[str] = ()) -> Role:
    """Return a ClusterRole that may register and deregister the named services and checks, and read the catalog.

    Without any name it may do so with all of them; with names, only with those, so without checks named with none.
    Registering is one verb, `update`, that carries the service's name, so limiting it by name works, unlike `create`
    of kube objects.
    """
    rules = [
        _discovery((resource,), _REGISTER, names=tuple(names))
        for resource, names in (("services", services), ("checks", checks))
        if names or not (services or checks)
    ]
    rules.append(_discovery(("checks", "nodes", "services"), _READ))
    return Role(kind="ClusterRole", name=name, rules=tuple(rules))


def _discovery(
    of: tuple[str, ...], verbs: tuple[str, ...], *, names: tuple[str, ...] = ()
) -> PolicyRule:
    return PolicyRule(verbs=verbs, api_groups=(DISCOVERY,), resources=of, resource_names=names)


def _group(name: str) -> Subject:
    return Subject(kind="Group", api_group=GROUP, name=name)


def _bind(name: str, role: str, *subjects: Subject) -> Binding:
    return Binding(
        kind="ClusterRoleBinding",
        name=name,
        role_ref=RoleRef(kind="ClusterRole", name=role),
        subjects=subjects,
    )


def _aggregated(role: Role, to: str) -> Role:
    return msgspec.structs.replace(
        role, labels={f"rbac.authorization.k8s.io/aggregate-to-{to}": "true"}
    )


OPERATORS: Final = "waypost:operators"
"""Group of the certificate in `operator.conf`, which `waypost init` writes."""


def _own() -> list[Role | Binding]:
    discoverer = Role(
        kind="ClusterRole",
        name="waypost:discoverer",
        rules=(_discovery(("checks", "nodes", "queries", "services"), _READ),),
    )
    balancing = Role(
        kind="ClusterRole",
        name="waypost:balancer-operator",
        rules=(
            _discovery(("checks", "nodes", *_BALANCING, "services"), _READ),
            _discovery(_BALANCING, _WRITE),
            # Weights, draining and maintenance are changes of services and nodes.
            _discovery(("nodes", "services"), ("patch", "update")),
        ),
    )
    auditor = Role(
        kind="ClusterRole",
        name="waypost:auditor",
        rules=(
            _discovery(("*",), _READ),
            PolicyRule(
                verbs=_READ, api_groups=(GROUP,), resources=tuple(sorted(RESOURCES.values()))
            ),
            PolicyRule(
                verbs=_READ,
                api_groups=("certificates.k8s.io",),
                resources=("certificatesigningrequests",),
            ),
            PolicyRule(verbs=_READ, api_groups=("",), resources=("namespaces", "serviceaccounts")),
            PolicyRule(
                verbs=("create",),
                api_groups=("authorization.k8s.io",),
                resources=("localsubjectaccessreviews", "subjectaccessreviews"),
            ),
            PolicyRule(verbs=("get",), non_resource_urls=("/metrics",)),
        ),
    )
    operator = Role(
        kind="ClusterRole",
        name="waypost:operator",
        rules=(
            _discovery(("*",), ("*",)),
            PolicyRule(verbs=("*",), non_resource_urls=("/metrics", "/v1/*")),
        ),
    )
    return [
        _aggregated(discoverer, "view"),
        _aggregated(registrant_role("waypost:service-registrant", ()), "edit"),
        kv_role("waypost:kv-reader", "", write=False),
        kv_role("waypost:kv-editor", "", write=True),
        balancing,
        auditor,
        operator,
        # The identity for every day. Unlike `system:masters` it can be narrowed: edit this binding, autoupdate "false".
        _bind("waypost:operators", "cluster-admin", _group(OPERATORS)),
        # Finding services is open to everybody who may reach the port, as in the posture before access control.
        _bind(
            "waypost:discoverer",
            "waypost:discoverer",
            _group(AUTHENTICATED),
            _group(UNAUTHENTICATED),
        ),
        # Templates on every machine read keys; narrow it by editing this binding with autoupdate "false".
        _bind("waypost:node-templates", "waypost:kv-reader", _group(NODES)),
    ]


@lru_cache(maxsize=1)
def default_policy() -> tuple[Role | Binding, ...]:
    """Return all default roles and bindings, in the order in which they are made; aggregated roles have their rules."""
    found: list[Role | Binding] = []
    text = resources.files("waypost.access.authz").joinpath("default_policy.jsonl").read_bytes()
    for line in text.splitlines():
        document = msgspec.json.decode(line)
        kind = document["kind"]
        if kind in ("ClusterRole", "Role"):
            found.append(parse_role(document, kind=cast("RoleKind", kind)))
        else:
            found.append(parse_binding(document, kind=cast("BindingKind", kind)))
    found += _own()
    marked = [
        msgspec.structs.replace(
            one,
            labels={**BOOTSTRAP_LABELS, **one.labels},
            annotations={AUTOUPDATE: "true", **one.annotations},
        )
        for one in found
    ]
    filled = {role.name: role for role in aggregate(r for r in marked if isinstance(r, Role))}
    order = list(RESOURCES)
    return tuple(
        sorted(
            (filled.get(one.name, one) if one.kind == "ClusterRole" else one for one in marked),
            key=lambda one: order.index(one.kind),
        )
    )


def node_rules() -> tuple[PolicyRule, ...]:
    """Return the rules that hold for every node (ClusterRole `system:node`)."""
    for one in default_policy():
        if isinstance(one, Role) and one.name == "system:node":
            return one.rules
    return ()


# -- reconciling ---------------------------------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done with one object so that it has at least what is expected of it."""

    action: Literal["create", "update", "recreate", "protected"]
    """`recreate`: delete with the uid as precondition, then create (roleRef cannot change); `protected`: do nothing."""
    kind: str
    namespace: str
    name: str
    document: dict[str, Any] | None = None
    """The whole object to write, None for `protected`. Create the namespace first if there is none."""
    rules: tuple[PolicyRule, ...] = ()
    """The rules that are added."""
    subjects: tuple[Subject, ...] = ()
    """The subjects that are added."""


def reconcile(
    expected: Iterable[Role | Binding],
    stored: Callable[[str, str, str], Object | None],
) -> list[Change]:
    """Return what to do so that everything expected is there; nothing for what is in order already.

    `stored(resource, namespace, name)` finds objects of the RBAC group. Raises Malformed when a stored object cannot
    be read.
    """
    changes: list[Change] = []
    for one in expected:
        found = stored(RESOURCES[one.kind], one.namespace, one.name)
        change: Change | None
        if found is None:
            change = _change("create", one, _document(one))
        elif isinstance(one, Role):
            change = _reconcile_role(one, found.body)
        else:
            change = _reconcile_binding(one, found.body)
        if change is not None:
            changes.append(change)
    return changes


def _document(one: Role | Binding) -> dict[str, Any]:
    return role_document(one) if isinstance(one, Role) else binding_document(one)


def _change(
    action: Literal["create", "update", "recreate", "protected"],
    one: Role | Binding,
    document: dict[str, Any] | None,
    *,
    rules: Sequence[PolicyRule] = (),
    subjects: Sequence[Subject] = (),
) -> Change:
    return Change(
        action=action,
        kind=one.kind,
        namespace=one.namespace,
        name=one.name,
        document=document,
        rules=tuple(rules),
        subjects=tuple(subjects),
    )


def _reconcile_role(expected: Role, body: bytes) -> Change | None:
    found = parse_role(body, kind=expected.kind)
    if found.annotations.get(AUTOUPDATE) == "false":
        return _change("protected", expected, None)
    document = msgspec.json.decode(body)
    added: list[PolicyRule] = []
    if expected.aggregation is None or found.aggregation is None:
        # Rules of a role that is aggregated on both sides are the aggregation's business.
        added = missing(found.rules, expected.rules)
    changed = _merge_metadata(document, expected)
    if added:
        document["rules"] = (document.get("rules") or []) + [rule_document(one) for one in added]
    if expected.aggregation is None and found.aggregation is not None:
        del document["aggregationRule"]
        changed = True
    elif expected.aggregation is not None:
        kept = found.aggregation or ()
        lacking = [one for one in expected.aggregation if one not in kept]
        if lacking:
            selectors = (document.get("aggregationRule") or {}).get("clusterRoleSelectors") or []
            document["aggregationRule"] = {
                "clusterRoleSelectors": selectors + [selector_document(one) for one in lacking]
            }
            changed = True
    if not changed and not added:
        return None
    return _change("update", expected, document, rules=added)


def _reconcile_binding(expected: Binding, body: bytes) -> Change | None:
    found = parse_binding(body, kind=expected.kind)
    if found.annotations.get(AUTOUPDATE) == "false":
        return _change("protected", expected, None)
    if found.role_ref != expected.role_ref:
        return _change("recreate", expected, _document(expected), subjects=expected.subjects)
    document = msgspec.json.decode(body)
    added = [one for one in expected.subjects if one not in found.subjects]
    changed = _merge_metadata(document, expected)
    if added:
        document["subjects"] = (document.get("subjects") or []) + [
            subject_document(one) for one in added
        ]
    if not changed and not added:
        return None
    return _change("update", expected, document, subjects=added)


def _merge_metadata(document: dict[str, Any], expected: Role | Binding) -> bool:
    """Add expected labels and annotations that are not there; what the operator set wins. Return whether any was."""
    metadata = document.setdefault("metadata", {})
    changed = False
    for name, wanted in (("labels", expected.labels), ("annotations", expected.annotations)):
        now = metadata.get(name) or {}
        lacking = {key: value for key, value in wanted.items() if key not in now}
        if lacking:
            metadata[name] = now | lacking
            changed = True
    return changed
