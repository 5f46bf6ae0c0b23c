"""Bodies in, bodies out: JSON, YAML or protobuf ↔ objects that fit their schema."""

from __future__ import annotations

import base64
import contextlib
import enum
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.wire.kube import protobuf
from waypost.wire.kube.resources import BUILT_IN, Resource
from waypost.wire.kube.schema import conform as schema_conform
from waypost.wire.kube.schema.types import API, META
from waypost.wire.kube.status import (
    FieldError,
    bad_request,
    invalid,
    not_acceptable,
    unexpected,
    unsupported,
    unsupported_media_type,
)
from waypost.wire.kube.values import JsonObject, decode_json, encode_json, quoted_list
from waypost.wire.kube.yaml_body import decode_yaml, encode_yaml

JSON: Final = "application/json"
YAML: Final = "application/yaml"
PROTOBUF: Final = "application/vnd.kubernetes.protobuf"

_META_GROUP: Final = "meta.k8s.io"
_SUMMARY: Final = 30
"""Bytes of a body that an error shows."""
_DELETE_OPTIONS: Final = META + "DeleteOptions"
_POLICIES: Final = ("Foreground", "Background", "Orphan")


class FieldValidation(enum.Enum):
    """What becomes of unknown and repeated fields (`?fieldValidation=`); WARN is the default."""

    IGNORE = "Ignore"
    WARN = "Warn"
    STRICT = "Strict"


def parse_field_validation(text: str, *, options_kind: str) -> FieldValidation:
    """Return the value of the query parameter; "" is WARN.

    Raises ApiError 422 naming `options_kind` (`CreateOptions`, `UpdateOptions`, `PatchOptions`).
    """
    if not text:
        return FieldValidation.WARN
    try:
        return FieldValidation(text)
    except ValueError as exc:
        fault = unsupported("fieldValidation", text, ("Ignore", "Warn", "Strict"))
        raise invalid(options_kind, "", (fault,), group=_META_GROUP) from exc


def parse_dry_run(values: list[str], *, options_kind: str) -> bool:
    """Return whether `?dryRun=All` was said. Raises ApiError 422 for any other value."""
    if not values:
        return False
    if set(values) == {"All"}:
        return True
    shown = f'Unsupported value: {quoted_list(values)}: supported values: "All"'
    fault = FieldError("dryRun", "FieldValueNotSupported", shown)
    raise invalid(options_kind, "", (fault,), group=_META_GROUP)


class Body(msgspec.Struct, frozen=True):
    """A body that was understood."""

    object: JsonObject
    """Canonical: known fields only, in the schema's order, defaults not yet set, kind and apiVersion first."""
    warnings: tuple[str, ...] = ()
    """For `Warning: 299 - "TEXT"` headers: `unknown field "rulez"`."""


class _Expected(msgspec.Struct, frozen=True):
    """What a body at a URL must be."""

    group: str
    version: str
    kind: str
    message: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


def _expected(resource: Resource, subresource: str) -> _Expected:
    found = resource.subresource(subresource) if subresource else None
    if found is None or found.group is None:
        return _Expected(resource.group, resource.version, resource.kind, resource.schema)
    version = found.version or resource.version
    area = found.group.partition(".")[0] or "core"
    return _Expected(found.group, version, found.kind, f"{API}{area}.{version}.{found.kind}")


def decode_body(
    body: bytes,
    *,
    media_type: str,
    resource: Resource,
    subresource: str = "",
    field_validation: FieldValidation,
) -> Body:
    """Return the object in a POST or PUT body; missing apiVersion and kind are the resource's.

    Raises ApiError 400 (bad JSON, YAML or protobuf, wrong kind, wrong type, strict faults), 415.
    """
    expected = _expected(resource, subresource)
    try:
        if media_type == PROTOBUF:
            envelope = protobuf.open_envelope(body)
            _check_kind(envelope.api_version, envelope.kind, expected)
            value: Any = protobuf.decode_object(envelope, message=expected.message)
        elif media_type == YAML:
            value = _parse_yaml(body)
        elif media_type == JSON:
            value = _parse_json(body)
        else:
            raise unsupported_media_type()
    except Malformed as error:
        text = f"the object provided is unrecognized (must be of type {expected.kind}): "
        raise bad_request(f"{text}{error} ({_summary(body)})") from error
    return _fitted(value, expected, field_validation)


def _parse_json(body: bytes) -> Any:
    try:
        return decode_json(body)
    except Malformed as error:
        raise Malformed(f"couldn't get version/kind; json parse error: {error}") from error


def _parse_yaml(body: bytes) -> Any:
    if body.lstrip().startswith(b"{"):  # JSON is YAML as well, and read much faster
        with contextlib.suppress(Malformed):
            return decode_json(body)
    return decode_yaml(body)


def _summary(body: bytes) -> str:
    if not body:
        return "<empty>"
    shown = body[:_SUMMARY]
    text = shown.decode("utf-8", "replace") if body.startswith(b"{") else shown.hex()
    return text + (" ..." if len(body) > _SUMMARY else "")


def _check_kind(api_version: str, kind: str, expected: _Expected) -> None:
    api_version = api_version or expected.api_version
    kind = kind or expected.kind
    if (api_version, kind) == (expected.api_version, expected.kind):
        return
    version = api_version.rpartition("/")[2]
    if BUILT_IN.of_kind(api_version=api_version, kind=kind) is None:
        why = (
            f"no kind {quoted(kind)} is registered for version {quoted(api_version)} in scheme "
            '"pkg/api/legacyscheme/scheme.go:30"'
        )
    else:
        target = f"{expected.group.partition('.')[0] or 'core'}.{expected.kind}"
        why = f"converting ({version}.{kind}) to ({target}): unknown conversion"
    raise bad_request(
        f"{kind} in version {quoted(version)} cannot be handled as a {expected.kind}: {why}"
    )


def conform(
    value: object,
    *,
    resource: Resource,
    subresource: str = "",
    field_validation: FieldValidation,
) -> Body:
    """Check and prune a JSON value made otherwise (the outcome of a patch). Raises ApiError 400."""
    return _fitted(value, _expected(resource, subresource), field_validation)


def _fitted(value: object, expected: _Expected, field_validation: FieldValidation) -> Body:
    if isinstance(value, dict):
        kind, api_version = value.get("kind"), value.get("apiVersion")
        if isinstance(kind, str | None) and isinstance(api_version, str | None):
            _check_kind(api_version or "", kind or "", expected)
    head = f"{expected.kind} in version {quoted(expected.version)} cannot be handled as a {expected.kind}: "
    try:
        found = schema_conform.conform(value, message=expected.message)
    except Malformed as error:
        raise bad_request(head + str(error)) from error
    if found.faults and field_validation is FieldValidation.STRICT:
        raise bad_request(head + schema_conform.strict_text(found.faults))
    fitted = found.value
    if "kind" not in fitted or "apiVersion" not in fitted:
        fitted = {"kind": expected.kind, "apiVersion": expected.api_version} | fitted
    warnings = found.faults if field_validation is FieldValidation.WARN else ()
    return Body(fitted, warnings)


# -- defaults --------------------------------------------------------------------------------------


def with_defaults(value: JsonObject, *, resource: Resource, subresource: str = "") -> JsonObject:
    """Return a conformed object with the defaults of its kind."""
    expected = _expected(resource, subresource)
    filled = schema_conform.with_defaults(value, message=expected.message)
    special = _SPECIAL.get(expected.kind)
    if special is None:
        return filled
    special(filled)
    # What was added must stand where the schema has it, so that equal objects have equal bytes.
    return schema_conform.conform(filled, message=expected.message).value


def _default_namespace(value: JsonObject) -> None:
    spec, status = value.setdefault("spec", {}), value.setdefault("status", {})
    spec.setdefault("finalizers", ["kubernetes"])
    status.setdefault("phase", "Active")
    metadata = value["metadata"]
    if metadata.get("name"):
        # Since 1.21, so that selectors can name a namespace.
        label = {"kubernetes.io/metadata.name": metadata["name"]}
        metadata["labels"] = (metadata.get("labels") or {}) | label


def _default_binding(value: JsonObject) -> None:
    for subject in value.get("subjects") or ():
        if subject.get("kind") in ("User", "Group") and not subject.get("apiGroup"):
            subject["apiGroup"] = "rbac.authorization.k8s.io"


def _default_secret(value: JsonObject) -> None:
    plain = value.pop("stringData", None)
    if plain:
        coded = {key: base64.b64encode(text.encode()).decode() for key, text in plain.items()}
        value["data"] = (value.get("data") or {}) | coded


def _default_webhooks(value: JsonObject) -> None:
    for webhook in value.get("webhooks") or ():
        for name in ("namespaceSelector", "objectSelector"):
            if webhook.get(name) is None:
                webhook[name] = {}


_SPECIAL: Final = {
    "Namespace": _default_namespace,
    "RoleBinding": _default_binding,
    "ClusterRoleBinding": _default_binding,
    "Secret": _default_secret,
    "MutatingWebhookConfiguration": _default_webhooks,
    "ValidatingWebhookConfiguration": _default_webhooks,
}


# -- deletes ---------------------------------------------------------------------------------------


class DeleteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to delete."""

    dry_run: bool = False
    propagation_policy: str = ""
    """`Foreground`, `Background`, `Orphan` or nothing said."""
    grace_period_s: int | None = None
    uid: str | None = None
    """Precondition."""
    resource_version: str | None = None
    """Precondition."""


def decode_delete_options(
    body: bytes, *, media_type: str, query: Mapping[str, list[str]]
) -> DeleteOptions:
    """Return the options of a DELETE from its body (of kind DeleteOptions or of none) or else its query.

    Raises ApiError 400 (unreadable), 422 (values), 500 (another kind, as in the original).
    """
    value = _delete_body(body, media_type) if body.strip() else _delete_query(query)
    try:
        fitted = schema_conform.conform(value, message=_DELETE_OPTIONS).value
    except Malformed as error:
        raise bad_request(str(error)) from error
    policy = fitted.get("propagationPolicy", "")
    orphan = fitted.get("orphanDependents")
    faults = []
    if policy and policy not in _POLICIES:
        faults.append(unsupported("propagationPolicy", policy, (*_POLICIES, "nil")))
    if policy and orphan is not None:
        text = "orphanDependents and deletionPropagation cannot be both set"
        faults.append(
            FieldError(
                "propagationPolicy", "FieldValueInvalid", f"Invalid value: {quoted(policy)}: {text}"
            )
        )
    if faults:
        raise invalid("DeleteOptions", "", faults, group=_META_GROUP)
    if not policy and orphan is not None:
        policy = "Orphan" if orphan else "Background"
    preconditions = fitted.get("preconditions") or {}
    return DeleteOptions(
        dry_run=parse_dry_run(fitted.get("dryRun") or [], options_kind="DeleteOptions"),
        propagation_policy=policy,
        grace_period_s=fitted.get("gracePeriodSeconds"),
        uid=preconditions.get("uid"),
        resource_version=preconditions.get("resourceVersion"),
    )


def _delete_body(body: bytes, media_type: str) -> Any:
    try:
        if media_type == PROTOBUF:
            value: Any = protobuf.decode_object(
                protobuf.open_envelope(body), message=_DELETE_OPTIONS
            )
        else:
            value = decode_yaml(body) if media_type == YAML else decode_json(body)
    except Malformed as error:
        raise bad_request(str(error)) from error
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("", "DeleteOptions"):
        version = value.get("apiVersion") or "v1"
        raise unexpected(
            f"no kind {quoted(kind)} is registered for version {quoted(str(version))} in scheme "
            '"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27"'
        )
    return value


def _delete_query(query: Mapping[str, list[str]]) -> JsonObject:
    value: JsonObject = {}
    policy = query.get("propagationPolicy", [""])[0]
    if policy:
        value["propagationPolicy"] = policy
    if query.get("dryRun"):
        value["dryRun"] = query["dryRun"]
    grace = query.get("gracePeriodSeconds", [""])[0]
    if grace:
        if not grace.lstrip("+-").isdecimal() or len(grace) > 19:
            raise bad_request(f"strconv.ParseInt: parsing {quoted(grace)}: invalid syntax")
        value["gracePeriodSeconds"] = int(grace)
    orphan = query.get("orphanDependents", [""])[0]
    if orphan:
        value["orphanDependents"] = orphan in ("1", "t", "T", "true", "TRUE", "True")
    return value


# -- out -------------------------------------------------------------------------------------------


def encode_body(value: JsonObject, *, media_type: str, pretty: bool = False) -> bytes:
    """Return JSON with a final newline, YAML, or protobuf.

    Protobuf is for objects, lists and statuses whose kind the schema knows; ApiError 406 for others.
    """
    if media_type == YAML:
        return encode_yaml(value)
    if media_type == PROTOBUF:
        return _encode_protobuf(value)
    encoded = encode_json(value)
    if pretty:
        encoded = msgspec.json.format(encoded, indent=2)
    return encoded + b"\n"


def _encode_protobuf(value: JsonObject) -> bytes:
    api_version, kind = value.get("apiVersion", ""), value.get("kind", "")
    if (api_version, kind) == ("v1", "Status"):
        return protobuf.encode_object(value, message=META + "Status")
    found = BUILT_IN.of_kind(api_version=api_version, kind=kind)
    if found is not None:
        return protobuf.encode_object(value, message=found.schema)
    found = BUILT_IN.of_kind(api_version=api_version, kind=kind.removesuffix("List"))
    if found is not None and kind.endswith("List"):
        return protobuf.encode_list(value, message=found.schema)
    if kind == "TokenRequest":
        return protobuf.encode_object(value, message=f"{API}authentication.v1.TokenRequest")
    raise not_acceptable()
