"""Records of the catalog as documents that a webhook sees and may change, and back. Pure.

    {"apiVersion": "discovery.waypost.io/v1", "kind": "Service",
     "metadata": {"name": ID, "labels": METADATA}, "spec": {"service": NAME, "node": NODE, "tags": […], "port": 80, …}}

`metadata.labels` is Consul's metadata of a service or node, so that `objectSelector` and policies for kube objects
work on it. A webhook may change labels and spec; what identifies the record it may not.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from waypost.access.admission.records import JsonObject, Operation, Review
from waypost.access.admission.rules import Record
from waypost.access.gate import GROUP
from waypost.base.errors import Malformed
from waypost.model.catalog import Check, CheckDefinition, Node, Service, TaggedAddress, Weights
from waypost.model.kv import KVEntry

VERSION: Final = "v1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KINDS: Final[dict[type, tuple[str, str]]] = {
    Node: ("Node", "nodes"),
    Service: ("Service", "services"),
    Check: ("Check", "checks"),
    KVEntry: ("Key", "keys"),
}
"""Record → (kind, resource)."""

T = TypeVar("T")


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


_CAMEL: Final = {name: _camel(name) for name in CheckDefinition.__struct_fields__}
"""Name of a field of a check's definition → what webhooks call it."""


class _Spec(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """What a webhook reads and writes of a record."""


class _Node(_Spec, frozen=True, kw_only=True):
    address: str = ""
    id: str = ""
    datacenter: str = ""
    tagged_addresses: dict[str, str] = {}


class _Service(_Spec, frozen=True, kw_only=True):
    service: str
    node: str = ""
    tags: tuple[str, ...] = ()
    address: str = ""
    port: int = 0
    tagged_addresses: dict[str, TaggedAddress] = {}
    weights: Weights = Weights()
    enable_tag_override: bool = False
    kind: str = ""
    proxy: dict[str, Any] = {}
    connect: dict[str, Any] = {}


class _Check(_Spec, frozen=True, kw_only=True):
    name: str = ""
    node: str = ""
    service_id: str = ""
    service: str = ""
    status: str = ""
    notes: str = ""
    type: str = ""
    definition: dict[str, Any] | None = None
    """How it is run: the fields of `model.catalog.CheckDefinition` that are set, in camelCase."""


class _Key(_Spec, frozen=True, kw_only=True):
    value: str = ""
    """Base64, as in Consul's answers."""
    flags: int = 0


def review_of(new: Record | None, old: Record | None, *, operation: Operation) -> Review:
    """Return the change that makes `new` of `old` as webhooks see it; at least one is given."""
    one = new if new is not None else old
    assert one is not None
    kind, resource = KINDS[type(one)]
    return Review(
        operation=operation,
        group=GROUP,
        version=VERSION,
        kind=kind,
        resource=resource,
        name=_name(one),
        object=None if new is None else document(new),
        old=None if old is None else document(old),
    )


def _name(one: Record) -> str:
    match one:
        case Node():
            return one.node
        case Service():
            return one.id
        case Check():
            return one.check_id
    return one.key


def document(one: Record) -> JsonObject:
    """Return a record as a document."""
    kind, _ = KINDS[type(one)]
    metadata: JsonObject = {"name": _name(one)}
    if isinstance(one, Node | Service) and one.meta:
        metadata["labels"] = dict(one.meta)
    if one.modify_index:
        metadata["resourceVersion"] = str(one.modify_index)
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "spec": msgspec.to_builtins(_spec(one)),
    }


def _spec(one: Record) -> _Spec:
    match one:
        case Node():
            return _Node(
                address=one.address,
                id=one.id,
                datacenter=one.datacenter,
                tagged_addresses=one.tagged_addresses or {},
            )
        case Service():
            return _Service(
                service=one.name,
                node=one.node,
                tags=one.tags,
                address=one.address,
                port=one.port,
                tagged_addresses=one.tagged_addresses or {},
                weights=one.weights,
                enable_tag_override=one.enable_tag_override,
                kind=one.kind,
                proxy=one.proxy or {},
                connect=one.connect or {},
            )
        case Check():
            return _Check(
                name=one.name,
                node=one.node,
                service_id=one.service_id,
                service=one.service_name,
                status=one.status,
                notes=one.notes,
                type=one.type,
                definition=_definition_document(one.definition),
            )
    return _Key(value=base64.b64encode(one.value).decode(), flags=one.flags)


# -- and back ----------------------------------------------------------------------------------------------------------


def changed(record: Record, found: JsonObject) -> Record:
    """Return `record` as a webhook has changed its document. Raises Malformed for what must not or cannot be."""
    before = document(record)
    for key in ("apiVersion", "kind"):
        if found.get(key) != before[key]:
            raise Malformed(f"{key} must not be changed")
    metadata = found.get("metadata")
    if not isinstance(metadata, dict):
        raise Malformed("metadata must be an object")
    if _without_labels(metadata) != _without_labels(before["metadata"]):
        raise Malformed("of metadata only labels can be changed")
    labels = metadata.get("labels")
    if isinstance(record, Check | KVEntry) and labels:
        raise Malformed(f"{before['kind']} has no labels")
    return _CHANGED[type(record)](record, found.get("spec"), _labels(labels))


def _without_labels(metadata: JsonObject) -> JsonObject:
    return {key: value for key, value in metadata.items() if key != "labels"}


def _labels(value: object) -> dict[str, str] | None:
    return _converted(value or {}, dict[str, str], "metadata.labels") or None


def _converted(value: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        raise Malformed(f"{where}: {exc}") from exc


def _same(name: str, new: str, old: str) -> None:
    if new != old:
        raise Malformed(f"spec.{name} must not be changed")


def _changed_node(one: Node, spec: object, labels: dict[str, str] | None) -> Node:
    new = _converted(spec, _Node, "spec")
    _same("id", new.id, one.id)
    _same("datacenter", new.datacenter, one.datacenter)
    return msgspec.structs.replace(
        one,
        address=new.address,
        tagged_addresses=new.tagged_addresses or None,
        meta=labels,
    )


def _changed_service(one: Service, spec: object, labels: dict[str, str] | None) -> Service:
    new = _converted(spec, _Service, "spec")
    _same("service", new.service, one.name)
    _same("node", new.node, one.node)
    return msgspec.structs.replace(
        one,
        tags=new.tags,
        address=new.address,
        port=new.port,
        meta=labels,
        tagged_addresses=new.tagged_addresses or None,
        weights=new.weights,
        enable_tag_override=new.enable_tag_override,
        kind=new.kind,
        proxy=new.proxy or None,
        connect=new.connect or None,
    )


def _changed_check(one: Check, spec: object, _labels: dict[str, str] | None) -> Check:
    new = _converted(spec, _Check, "spec")
    _same("node", new.node, one.node)
    _same("serviceId", new.service_id, one.service_id)
    _same("service", new.service, one.service_name)
    return msgspec.structs.replace(
        one,
        name=new.name,
        status=new.status,
        notes=new.notes,
        type=new.type,
        definition=_definition(new.definition),
    )


def _definition_document(one: CheckDefinition | None) -> JsonObject | None:
    if one is None:
        return None
    return {_CAMEL[key]: value for key, value in msgspec.to_builtins(one).items()}


def _definition(found: JsonObject | None) -> CheckDefinition | None:
    if found is None:
        return None
    names = {camel: name for name, camel in _CAMEL.items()}
    unknown = next((key for key in found if key not in names), None)
    if unknown is not None:
        raise Malformed(f"spec.definition has no field {unknown}")
    value = {names[key]: one for key, one in found.items()}
    return _converted(value, CheckDefinition, "spec.definition")


def _changed_key(one: KVEntry, spec: object, _labels: dict[str, str] | None) -> KVEntry:
    new = _converted(spec, _Key, "spec")
    try:
        value = base64.b64decode(new.value, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Malformed("spec.value is not base64") from exc
    if not 0 <= new.flags < 2**64:
        raise Malformed("spec.flags is no unsigned number of 64 bits")
    return msgspec.structs.replace(one, value=value, flags=new.flags)


_CHANGED: Final[dict[type, Callable[[Any, object, dict[str, str] | None], Record]]] = {
    Node: _changed_node,
    Service: _changed_service,
    Check: _changed_check,
    KVEntry: _changed_key,
}
