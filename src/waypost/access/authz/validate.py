"""Which roles and bindings are acceptable, and the words that refuse the others (HTTP 422).

Source: recorded answers of kube-apiserver 1.20; the texts are its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from waypost.access.authz.records import (
    GROUP,
    Binding,
    LabelSelector,
    PolicyRule,
    Role,
    RoleRef,
    Subject,
)
from waypost.base.quoting import quoted

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SUBDOMAIN_TEXT: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_NAME: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_NAME_TEXT: Final = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_VALUE_TEXT: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_MAX_NAME: Final = 63
_MAX_SUBDOMAIN: Final = 253
_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")


class FieldError(msgspec.Struct, frozen=True):
    """One fault of an object, as an entry of a Status' `details.causes`."""

    field: str
    reason: str
    """`FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`, `FieldValueForbidden`."""
    message: str

    @property
    def text(self) -> str:
        """The fault with its place."""
        return f"{self.field}: {self.message}"


def invalid_text(kind: str, name: str, errors: Sequence[FieldError]) -> str:
    """Return the message of the 422: `ClusterRole.rbac.authorization.k8s.io "x" is invalid: …`."""
    texts = [one.text for one in errors]
    shown = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    return f"{kind}.{GROUP} {quoted(name)} is invalid: {shown}"


def _required(field: str, detail: str = "") -> FieldError:
    return FieldError(
        field, "FieldValueRequired", f"Required value{': ' if detail else ''}{detail}"
    )


def _invalid(field: str, value: str, detail: str) -> FieldError:
    return FieldError(field, "FieldValueInvalid", f"Invalid value: {value}: {detail}")


def _unsupported(field: str, value: str, supported: Sequence[str]) -> FieldError:
    shown = ", ".join(map(quoted, supported))
    return FieldError(
        field,
        "FieldValueNotSupported",
        f"Unsupported value: {quoted(value)}: supported values: {shown}",
    )


# -- names and labels ----------------------------------------------------------------------------------------------------


def path_segment_faults(name: str) -> list[str]:
    """Return what keeps `name` from being a part of a path, in the original's words."""
    if name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{char}'" for char in "/%" if char in name]


def _metadata(record: Role | Binding) -> Iterator[FieldError]:
    if not record.name:
        yield _required("metadata.name", "name or generateName is required")
    for fault in path_segment_faults(record.name):
        yield _invalid("metadata.name", quoted(record.name), fault)
    if record.kind in ("Role", "RoleBinding") and not record.namespace:
        yield _required("metadata.namespace")
    yield from label_errors(record.labels, field="metadata.labels")
    for key in record.annotations:
        for fault in _qualified_name_faults(key.lower()):
            yield _invalid("metadata.annotations", quoted(key), fault)


def label_errors(labels: Mapping[str, str], *, field: str) -> Iterator[FieldError]:
    """Yield the faults of labels: keys are qualified names, values short plain texts."""
    for key, value in labels.items():
        for fault in _qualified_name_faults(key):
            yield _invalid(field, quoted(key), fault)
        for fault in _label_value_faults(value):
            yield _invalid(field, quoted(value), fault)


def _qualified_name_faults(key: str) -> Iterator[str]:
    prefix, slash, name = key.partition("/")
    if not slash:
        prefix, name = "", key
    elif not prefix:
        yield "prefix part must be non-empty"
    elif "/" in name:
        yield (
            f"a qualified name {_NAME_TEXT.removeprefix('name part ')} with an optional DNS subdomain prefix and '/' "
            "(e.g. 'example.com/MyName')"
        )
        return
    elif len(prefix) > _MAX_SUBDOMAIN:
        yield f"prefix part must be no more than {_MAX_SUBDOMAIN} characters"
    elif not _SUBDOMAIN.fullmatch(prefix):
        yield f"prefix part {_SUBDOMAIN_TEXT}"
    if not name:
        yield "name part must be non-empty"
    elif len(name) > _MAX_NAME:
        yield f"name part must be no more than {_MAX_NAME} characters"
    if not _NAME.fullmatch(name):
        yield _NAME_TEXT


def _label_value_faults(value: str) -> Iterator[str]:
    if len(value) > _MAX_NAME:
        yield f"must be no more than {_MAX_NAME} characters"
    if value and not _NAME.fullmatch(value):
        yield _VALUE_TEXT


# -- roles ---------------------------------------------------------------------------------------------------------------


def validate_role(role: Role) -> list[FieldError]:
    """Return the faults of a role that is to be written; empty when it is fine."""
    errors = list(_metadata(role))
    for at, rule in enumerate(role.rules):
        errors += _rule(rule, field=f"rules[{at}]", namespaced=role.kind == "Role")
    if role.aggregation is not None:
        field = "aggregationRule.clusterRoleSelectors"
        if not role.aggregation:
            errors.append(
                _required(
                    field, "at least one clusterRoleSelector required if aggregationRule is non-nil"
                )
            )
        for at, selector in enumerate(role.aggregation):
            errors += _selector(selector, field=f"{field}[{at}]")
    return errors


def _rule(rule: PolicyRule, *, field: str, namespaced: bool) -> Iterator[FieldError]:
    if not rule.verbs:
        yield _required(f"{field}.verbs", "verbs must contain at least one value")
    if rule.non_resource_urls:
        urls = "[]string{" + ", ".join(map(quoted, rule.non_resource_urls)) + "}"
        if namespaced:
            yield _invalid(
                f"{field}.nonResourceURLs",
                urls,
                "namespaced rules cannot apply to non-resource URLs",
            )
        if rule.api_groups or rule.resources or rule.resource_names:
            yield _invalid(
                f"{field}.nonResourceURLs",
                urls,
                "rules cannot apply to both regular resources and non-resource URLs",
            )
        return
    if not rule.api_groups:
        yield _required(f"{field}.apiGroups", "resource rules must supply at least one api group")
    if not rule.resources:
        yield _required(f"{field}.resources", "resource rules must supply at least one resource")


def _selector(selector: LabelSelector, *, field: str) -> Iterator[FieldError]:
    yield from label_errors(selector.match_labels, field=f"{field}.matchLabels")
    for at, one in enumerate(selector.match_expressions):
        here = f"{field}.matchExpressions[{at}]"
        if one.operator in ("In", "NotIn"):
            if not one.values:
                yield _required(
                    f"{here}.values", "must be specified when `operator` is 'In' or 'NotIn'"
                )
        elif one.operator in ("Exists", "DoesNotExist"):
            if one.values:
                yield FieldError(
                    f"{here}.values",
                    "FieldValueForbidden",
                    "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                )
        else:
            yield _invalid(
                f"{here}.operator", quoted(one.operator), "not a valid selector operator"
            )
        for fault in _qualified_name_faults(one.key):
            yield _invalid(f"{here}.key", quoted(one.key), fault)


# -- bindings ------------------------------------------------------------------------------------------------------------


def validate_binding(binding: Binding) -> list[FieldError]:
    """Return the faults of a binding that is to be written; empty when it is fine. The role need not exist."""
    errors = list(_metadata(binding))
    ref = binding.role_ref
    if ref.api_group != GROUP:
        errors.append(_unsupported("roleRef.apiGroup", ref.api_group, [GROUP]))
    cluster = binding.kind == "ClusterRoleBinding"
    kinds = ["ClusterRole"] if cluster else ["ClusterRole", "Role"]
    if ref.kind not in kinds:
        errors.append(_unsupported("roleRef.kind", ref.kind, kinds))
    if not ref.name:
        errors.append(_required("roleRef.name"))
    errors += [
        _invalid("roleRef.name", quoted(ref.name), fault) for fault in path_segment_faults(ref.name)
    ]
    for at, subject in enumerate(binding.subjects):
        errors += _subject(subject, field=f"subjects[{at}]", namespaced=not cluster)
    return errors


def _subject(subject: Subject, *, field: str, namespaced: bool) -> Iterator[FieldError]:
    if not subject.name:
        yield _required(f"{field}.name")
    if subject.kind == "ServiceAccount":
        if subject.name and (
            len(subject.name) > _MAX_SUBDOMAIN or not _SUBDOMAIN.fullmatch(subject.name)
        ):
            yield _invalid(f"{field}.name", quoted(subject.name), _SUBDOMAIN_TEXT)
        if subject.api_group:
            yield _unsupported(f"{field}.apiGroup", subject.api_group, [""])
        if not namespaced and not subject.namespace:
            yield _required(f"{field}.namespace")
    elif subject.kind in ("User", "Group"):
        if subject.api_group != GROUP:
            yield _unsupported(f"{field}.apiGroup", subject.api_group, [GROUP])
    else:
        yield _unsupported(f"{field}.kind", subject.kind, ["ServiceAccount", "User", "Group"])


def validate_binding_update(binding: Binding, *, old: Binding) -> list[FieldError]:
    """Return the faults of a binding that replaces `old`: `roleRef` never changes."""
    errors = validate_binding(binding)
    if binding.role_ref != old.role_ref:
        errors.append(_invalid("roleRef", _go_ref(binding.role_ref), "cannot change roleRef"))
    return errors


def _go_ref(ref: RoleRef) -> str:
    group, kind, name = map(quoted, (ref.api_group, ref.kind, ref.name))
    return f"rbac.RoleRef{{APIGroup:{group}, Kind:{kind}, Name:{name}}}"
