"""The objects of `rbac.authorization.k8s.io/v1` as typed records.

They are parsed once from the stored JSON. Lists that are null in JSON are empty here; an absent `aggregationRule`
is None, which is not the same as one without selectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from waypost.base.errors import Malformed

GROUP: Final = "rbac.authorization.k8s.io"
API_VERSION: Final = f"{GROUP}/v1"
SERVICE_ACCOUNT_PREFIX: Final = "system:serviceaccount:"

RoleKind = Literal["ClusterRole", "Role"]
BindingKind = Literal["ClusterRoleBinding", "RoleBinding"]
RESOURCES: Final[Mapping[str, str]] = {
    "ClusterRole": "clusterroles",
    "Role": "roles",
    "ClusterRoleBinding": "clusterrolebindings",
    "RoleBinding": "rolebindings",
}
"""Kind → resource, in the order in which the objects are to be made."""

Strings = tuple[str, ...]


class PolicyRule(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule grants: resources of API groups, or URLs; never both."""

    verbs: Strings = ()
    api_groups: Strings = ()
    resources: Strings = ()
    resource_names: Strings = ()
    non_resource_urls: Strings = ()


class Requirement(msgspec.Struct, frozen=True, kw_only=True):
    """One expression of a label selector."""

    key: str = ""
    operator: str = ""
    values: Strings = ()


class LabelSelector(msgspec.Struct, frozen=True, kw_only=True):
    """Labels to match; an empty selector matches everything."""

    match_labels: Mapping[str, str] = {}
    match_expressions: tuple[Requirement, ...] = ()


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """A Role or ClusterRole."""

    kind: RoleKind
    name: str
    namespace: str = ""
    """Empty for a ClusterRole."""
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    rules: tuple[PolicyRule, ...] = ()
    aggregation: tuple[LabelSelector, ...] | None = None
    """The selectors of `aggregationRule`; None without one."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Who a binding grants to. `namespace` is only of service accounts."""

    kind: str = ""
    api_group: str = ""
    name: str = ""
    namespace: str = ""


class RoleRef(msgspec.Struct, frozen=True, kw_only=True):
    """The role a binding grants."""

    api_group: str = GROUP
    kind: str = ""
    name: str = ""


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """A RoleBinding or ClusterRoleBinding."""

    kind: BindingKind
    name: str
    namespace: str = ""
    """Empty for a ClusterRoleBinding."""
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    subjects: tuple[Subject, ...] = ()
    role_ref: RoleRef = RoleRef()


# -- parsing -----------------------------------------------------------------------------------------------------------


class _RuleJson(msgspec.Struct, frozen=True, rename="camel"):
    verbs: Strings | None = None
    api_groups: Strings | None = None
    resources: Strings | None = None
    resource_names: Strings | None = None
    non_resource_urls: Strings | None = msgspec.field(name="nonResourceURLs", default=None)


class _RequirementJson(msgspec.Struct, frozen=True):
    key: str = ""
    operator: str = ""
    values: Strings | None = None


class _SelectorJson(msgspec.Struct, frozen=True, rename="camel"):
    match_labels: dict[str, str] | None = None
    match_expressions: tuple[_RequirementJson, ...] | None = None


class _AggregationJson(msgspec.Struct, frozen=True, rename="camel"):
    cluster_role_selectors: tuple[_SelectorJson, ...] | None = None


class _MetaJson(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _RoleJson(msgspec.Struct, frozen=True, rename="camel"):
    metadata: _MetaJson = _MetaJson()
    rules: tuple[_RuleJson, ...] | None = None
    aggregation_rule: _AggregationJson | None = None


class _SubjectJson(msgspec.Struct, frozen=True, rename="camel"):
    kind: str = ""
    api_group: str | None = None
    name: str = ""
    namespace: str = ""


class _RefJson(msgspec.Struct, frozen=True, rename="camel"):
    api_group: str = ""
    kind: str = ""
    name: str = ""


class _BindingJson(msgspec.Struct, frozen=True, rename="camel"):
    metadata: _MetaJson = _MetaJson()
    subjects: tuple[_SubjectJson, ...] | None = None
    role_ref: _RefJson = _RefJson()


_ROLE_DECODER: Final = msgspec.json.Decoder(_RoleJson)
_BINDING_DECODER: Final = msgspec.json.Decoder(_BindingJson)


def parse_role(document: bytes | Mapping[str, Any], *, kind: RoleKind) -> Role:
    """Return the role that a JSON document describes. Raises Malformed with the place in the document."""
    try:
        found = (
            _ROLE_DECODER.decode(document)
            if isinstance(document, bytes)
            else msgspec.convert(document, _RoleJson)
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Malformed(_unreadable(kind, exc)) from exc
    aggregation = found.aggregation_rule
    return Role(
        kind=kind,
        name=found.metadata.name,
        namespace=found.metadata.namespace if kind == "Role" else "",
        labels=found.metadata.labels or {},
        annotations=found.metadata.annotations or {},
        rules=tuple(map(_rule, found.rules or ())),
        aggregation=None
        if aggregation is None or kind == "Role"
        else tuple(map(_selector, aggregation.cluster_role_selectors or ())),
    )


def parse_binding(document: bytes | Mapping[str, Any], *, kind: BindingKind) -> Binding:
    """Return the binding that a JSON document describes, with the default API groups filled in.

    Raises Malformed with the place in the document.
    """
    try:
        found = (
            _BINDING_DECODER.decode(document)
            if isinstance(document, bytes)
            else msgspec.convert(document, _BindingJson)
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Malformed(_unreadable(kind, exc)) from exc
    return Binding(
        kind=kind,
        name=found.metadata.name,
        namespace=found.metadata.namespace if kind == "RoleBinding" else "",
        labels=found.metadata.labels or {},
        annotations=found.metadata.annotations or {},
        subjects=tuple(map(_subject, found.subjects or ())),
        role_ref=RoleRef(
            api_group=found.role_ref.api_group or GROUP,
            kind=found.role_ref.kind,
            name=found.role_ref.name,
        ),
    )


def _unreadable(kind: str, exc: Exception) -> str:
    return f'{kind} in version "v1" cannot be handled as a {kind}: {exc}'


def _rule(found: _RuleJson) -> PolicyRule:
    return PolicyRule(
        verbs=found.verbs or (),
        api_groups=found.api_groups or (),
        resources=found.resources or (),
        resource_names=found.resource_names or (),
        non_resource_urls=found.non_resource_urls or (),
    )


def _selector(found: _SelectorJson) -> LabelSelector:
    return LabelSelector(
        match_labels=found.match_labels or {},
        match_expressions=tuple(
            Requirement(key=one.key, operator=one.operator, values=one.values or ())
            for one in found.match_expressions or ()
        ),
    )


def _subject(found: _SubjectJson) -> Subject:
    group = found.api_group or ""
    if not group and found.kind in ("User", "Group"):
        group = GROUP
    return Subject(kind=found.kind, api_group=group, name=found.name, namespace=found.namespace)


# -- printing ----------------------------------------------------------------------------------------------------------


def rule_document(rule: PolicyRule) -> dict[str, Any]:
    """Return a rule as JSON-ready data: verbs always, the rest when there is any."""
    document: dict[str, Any] = {"verbs": list(rule.verbs)}
    for name, values in (
        ("apiGroups", rule.api_groups),
        ("resources", rule.resources),
        ("resourceNames", rule.resource_names),
        ("nonResourceURLs", rule.non_resource_urls),
    ):
        if values:
            document[name] = list(values)
    return document


def subject_document(subject: Subject) -> dict[str, Any]:
    """Return a subject as JSON-ready data."""
    document = {"kind": subject.kind}
    if subject.api_group:
        document["apiGroup"] = subject.api_group
    document["name"] = subject.name
    if subject.namespace:
        document["namespace"] = subject.namespace
    return document


def role_document(role: Role) -> dict[str, Any]:
    """Return a role as the JSON-ready document of the API; without rules they are null, as the original stores them."""
    document = _head(role)
    if role.aggregation is not None:
        document["aggregationRule"] = {
            "clusterRoleSelectors": [selector_document(one) for one in role.aggregation]
        }
    document["rules"] = [rule_document(rule) for rule in role.rules] or None
    return document


def selector_document(selector: LabelSelector) -> dict[str, Any]:
    """Return a label selector as JSON-ready data."""
    document: dict[str, Any] = {}
    if selector.match_labels:
        document["matchLabels"] = dict(selector.match_labels)
    if selector.match_expressions:
        document["matchExpressions"] = [
            {"key": one.key, "operator": one.operator}
            | ({"values": list(one.values)} if one.values else {})
            for one in selector.match_expressions
        ]
    return document


def binding_document(binding: Binding) -> dict[str, Any]:
    """Return a binding as the JSON-ready document of the API."""
    document = _head(binding)
    document["roleRef"] = {
        "apiGroup": binding.role_ref.api_group,
        "kind": binding.role_ref.kind,
        "name": binding.role_ref.name,
    }
    if binding.subjects:
        document["subjects"] = [subject_document(one) for one in binding.subjects]
    return document


def _head(record: Role | Binding) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": record.name}
    if record.namespace:
        metadata["namespace"] = record.namespace
    if record.labels:
        metadata["labels"] = dict(record.labels)
    if record.annotations:
        metadata["annotations"] = dict(record.annotations)
    return {"apiVersion": API_VERSION, "kind": record.kind, "metadata": metadata}
