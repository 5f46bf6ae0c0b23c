"""Records as documents that a webhook sees and may change, and back: the catalog, keys, sessions, events. Pure.

    {"apiVersion": "discovery.waypost.io/v1", "kind": "Service",
     "metadata": {"name": ID, "labels": METADATA}, "spec": {"service": NAME, "node": NODE, "tags": […], "port": 80, …}}

`metadata.labels` is Consul's metadata of a service or node, so that `objectSelector` and policies for kube objects
work on it. A webhook may change labels and spec; what identifies the record it may not.

Two changes come often and matter to few, so they are subresources, and only rules that name them are asked: the result
of a check (`checks/status`) and the renewal of a session (`sessions/renewal`).
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
from waypost.model.catalog import (
    CRITICAL,
    PASSING,
    WARNING,
    Check,
    CheckDefinition,
    Node,
    Service,
    TaggedAddress,
    Weights,
)
from waypost.model.event import UserEvent
from waypost.model.kv import KVEntry
from waypost.model.session import Session

VERSION: Final = "v1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KINDS: Final[dict[type, tuple[str, str]]] = {
    Node: ("Node", "nodes"),
    Service: ("Service", "services"),
    Check: ("Check", "checks"),
    KVEntry: ("Key", "keys"),
    Session: ("Session", "sessions"),
    UserEvent: ("Event", "events"),
}
"""Record → (kind, resource)."""
STATUS: Final = "status"
"""Subresource of checks: a result."""
RENEWAL: Final = "renewal"
"""Subresource of sessions: their TTL starts anew."""
_STATUSES: Final = (PASSING, WARNING, CRITICAL)

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
    output: str = ""
    notes: str = ""
    type: str = ""
    definition: dict[str, Any] | None = None
    """How it is run: the fields of `model.catalog.CheckDefinition` that are set, in camelCase."""


class _Key(_Spec, frozen=True, kw_only=True):
    value: str = ""
    """Base64, as in Consul's answers."""
    flags: int = 0


class _Session(_Spec, frozen=True, kw_only=True):
    name: str = ""
    node: str = ""
    behavior: str = ""
    ttl: str = ""
    lock_delay_ns: int = 0
    node_checks: tuple[str, ...] = ()
    service_checks: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()


class _Event(_Spec, frozen=True, kw_only=True):
    payload: str = ""
    """Base64."""
    node_filter: str = ""
    service_filter: str = ""
    tag_filter: str = ""


def subject_of(one: Record, *, operation: Operation, subresource: str = "") -> Review:
    """Return what happens to a record, without its documents."""
    kind, resource = KINDS[type(one)]
    return Review(
        operation=operation,
        group=GROUP,
        version=VERSION,
        kind=kind,
        resource=resource,
        subresource=subresource,
        name=_name(one),
    )


def shown(review: Review, new: Record | None, old: Record | None) -> Review:
    """Return `review` with the documents of the change that makes `new` of `old`."""
    return msgspec.structs.replace(
        review,
        object=None if new is None else document(new),
        old=None if old is None else document(old),
    )


def node_of(one: Record) -> str:
    """Return the node a record belongs to, empty for one of no node."""
    return "" if isinstance(one, KVEntry | UserEvent) else one.node


def _name(one: Record) -> str:
    match one:
        case Node():
            return one.node
        case Service() | Session():
            return one.id
        case Check():
            return one.check_id
        case UserEvent():
            return one.name
    return one.key


def document(one: Record) -> JsonObject:
    """Return a record as a document."""
    kind, _ = KINDS[type(one)]
    metadata: JsonObject = {"name": _name(one)}
    if isinstance(one, Node | Service) and one.meta:
        metadata["labels"] = dict(one.meta)
    if not isinstance(one, UserEvent) and one.modify_index:
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
                output=one.output,
                notes=one.notes,
                type=one.type,
                definition=_definition_document(one.definition),
            )
        case Session():
            return _Session(
                name=one.name,
                node=one.node,
                behavior=one.behavior,
                ttl=one.ttl,
                lock_delay_ns=one.lock_delay_ns,
                node_checks=one.node_checks,
                service_checks=one.service_checks or (),
                checks=one.checks,
            )
        case UserEvent():
            return _Event(
                payload=base64.b64encode(one.payload).decode(),
                node_filter=one.node_filter,
                service_filter=one.service_filter,
                tag_filter=one.tag_filter,
            )
    return _Key(value=base64.b64encode(one.value).decode(), flags=one.flags)


# -- and back ----------------------------------------------------------------------------------------------------------


def changed(record: Record, found: JsonObject, *, subresource: str = "") -> Record:
    """Return `record` as a webhook has changed its document. Raises Malformed for what must not or cannot be."""
    new = _changed(record, found)
    try:
        msgspec.msgpack.encode(new)
    except (OverflowError, UnicodeEncodeError) as exc:
        raise Malformed(f"spec: a value cannot be stored: {exc}") from exc
    if subresource == RENEWAL and new != record:
        raise Malformed("a renewal changes nothing of a session")
    if subresource == STATUS and isinstance(new, Check) and isinstance(record, Check):
        result = msgspec.structs.replace(record, status=new.status, output=new.output)
        if new != result:
            raise Malformed("of a result only spec.status and spec.output can be changed")
    return new


def _changed(record: Record, found: JsonObject) -> Record:
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
    if labels and not isinstance(record, Node | Service):
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
    if new.status != one.status and new.status not in _STATUSES:
        raise Malformed(f"spec.status must be one of {', '.join(_STATUSES)}")
    return msgspec.structs.replace(
        one,
        name=new.name,
        status=new.status,
        output=new.output,
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
    value = _bytes("value", new.value)
    if not 0 <= new.flags < 2**64:
        raise Malformed("spec.flags is no unsigned number of 64 bits")
    return msgspec.structs.replace(one, value=value, flags=new.flags)


def _bytes(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Malformed(f"spec.{name} is not base64") from exc


def _changed_session(one: Session, spec: object, _labels: dict[str, str] | None) -> Session:
    new = _converted(spec, _Session, "spec")
    _same("node", new.node, one.node)
    if new.lock_delay_ns < 0:
        raise Malformed("spec.lockDelayNs must not be negative")
    return msgspec.structs.replace(
        one,
        name=new.name,
        behavior=new.behavior,
        ttl=new.ttl,
        lock_delay_ns=new.lock_delay_ns,
        node_checks=new.node_checks,
        # An empty list is what was given, unless nothing was.
        service_checks=new.service_checks or (None if one.service_checks is None else ()),
        checks=new.checks,
    )


def _changed_event(one: UserEvent, spec: object, _labels: dict[str, str] | None) -> UserEvent:
    new = _converted(spec, _Event, "spec")
    return msgspec.structs.replace(
        one,
        payload=_bytes("payload", new.payload),
        node_filter=new.node_filter,
        service_filter=new.service_filter,
        tag_filter=new.tag_filter,
    )


_CHANGED: Final[dict[type, Callable[[Any, object, dict[str, str] | None], Record]]] = {
    Node: _changed_node,
    Service: _changed_service,
    Check: _changed_check,
    KVEntry: _changed_key,
    Session: _changed_session,
    UserEvent: _changed_event,
}
