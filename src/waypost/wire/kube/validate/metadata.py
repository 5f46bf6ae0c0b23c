"""What metadata must look like, for every kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from waypost.wire.kube.resources import Resource
from waypost.wire.kube.status import (
    FieldError,
    forbidden_field,
    invalid_value,
    required,
    too_long,
)
from waypost.wire.kube.validate.names import (
    Check,
    label_faults,
    label_value_faults,
    path_prefix_faults,
    path_segment_faults,
    qualified_name_faults,
    subdomain_faults,
)
from waypost.wire.kube.values import JsonObject, quoted_list

MAX_ANNOTATIONS_BYTES: Final = 256 * 1024
_IMMUTABLE: Final = "field is immutable"


def name_check(resource: Resource) -> Check:
    """Return the rule for names of a resource."""
    if resource.path_names:
        return path_segment_faults
    return label_faults if resource.kind == "Namespace" else subdomain_faults


def metadata_errors(value: JsonObject, *, resource: Resource) -> Iterator[FieldError]:
    """Yield the faults of an object's metadata, in the original's order."""
    metadata = value.get("metadata") or {}
    name, prefix = metadata.get("name", ""), metadata.get("generateName", "")
    check = name_check(resource)
    if prefix:
        # The prefix is judged as if something followed it.
        judged = prefix[:-1] + "a" if prefix.endswith("-") and not resource.path_names else prefix
        for fault in (path_prefix_faults if resource.path_names else check)(judged):
            yield invalid_value("metadata.generateName", prefix, fault)
    if not name:
        yield required("metadata.name", "name or generateName is required")
    else:
        for fault in check(name):
            yield invalid_value("metadata.name", name, fault)
    namespace = metadata.get("namespace", "")
    if resource.namespaced:
        if not namespace:
            yield required("metadata.namespace")
        else:
            for fault in label_faults(namespace):
                yield invalid_value("metadata.namespace", namespace, fault)
    elif namespace:
        yield forbidden_field("metadata.namespace", "not allowed on this type")
    yield from label_errors(metadata.get("labels") or {}, field="metadata.labels")
    yield from _annotations(metadata.get("annotations") or {})
    yield from _owners(metadata.get("ownerReferences") or ())
    for finalizer in metadata.get("finalizers") or ():
        for fault in qualified_name_faults(finalizer):
            yield invalid_value("metadata.finalizers", finalizer, fault)


def label_errors(labels: Mapping[str, str], *, field: str) -> Iterator[FieldError]:
    """Yield the faults of labels: keys are qualified names, values short plain texts."""
    for key, value in labels.items():
        for fault in qualified_name_faults(key):
            yield invalid_value(field, key, fault)
        for fault in label_value_faults(value):
            yield invalid_value(field, value, fault)


def _annotations(annotations: Mapping[str, str]) -> Iterator[FieldError]:
    size = 0
    for key, value in annotations.items():
        size += len(key.encode()) + len(value.encode())
        for fault in qualified_name_faults(key.lower()):
            yield invalid_value("metadata.annotations", key, fault)
    if size > MAX_ANNOTATIONS_BYTES:
        yield too_long("metadata.annotations", limit=MAX_ANNOTATIONS_BYTES)


def _owners(references: Sequence[JsonObject]) -> Iterator[FieldError]:
    field = "metadata.ownerReferences"
    controllers = []
    for one in references:
        for key, what in (
            ("apiVersion", "version"),
            ("kind", "kind"),
            ("name", "name"),
            ("uid", "uid"),
        ):
            if not one.get(key):
                yield invalid_value(f"{field}.{key}", "", f"{what} must not be empty")
        if one.get("controller"):
            controllers.append(one.get("name", ""))
    if len(controllers) > 1:
        text = (
            'Only one reference can have Controller set to true. Found "true" in references for '
            f"{controllers[0]} and {controllers[1]}"
        )
        yield FieldError(field, "FieldValueInvalid", f"Invalid value: {text}")


def metadata_update_errors(live: JsonObject, value: JsonObject) -> Iterator[FieldError]:
    """Yield what of the metadata changed and must not. Absent values are carried on and no change."""
    old, new = live["metadata"], value.get("metadata") or {}
    for key in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"):
        found = new.get(key)
        if found and found != old.get(key):
            yield invalid_value(f"metadata.{key}", found, _IMMUTABLE)
    if old.get("deletionTimestamp"):
        before = old.get("finalizers") or ()
        fresh = [one for one in new.get("finalizers") or () if one not in before]
        if fresh:
            yield forbidden_field(
                "metadata.finalizers",
                "no new finalizers can be added if the object is being deleted, found new finalizers "
                f"{quoted_list(fresh)}",
            )
