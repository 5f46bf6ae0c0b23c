"""The catalog's records → Consul's JSON objects, byte for byte: member order, null against [] and {}, what is left out.

Every object of the API is one struct here whose members are called and ordered as in Consul's answers; a member that
Consul leaves out when it is empty is UNSET. `dump` makes the bytes, in the compact form of a server or the indented
one of `-dev` and `?pretty`. Source: recorded answers of Consul 1.8.7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from waypost.base.duration import format_ns
from waypost.model.catalog import Check, Node, Service, TaggedAddress, Weights
from waypost.model.kv import KVEntry
from waypost.model.session import Session

_encoder: Final = msgspec.json.Encoder(order="deterministic")
_ESCAPES: Final = (
    (b"<", rb"\u003c"),
    (b">", rb"\u003e"),
    (b"&", rb"\u0026"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)


def dump(value: Any, *, indent: bool) -> bytes:
    """Return `value` as JSON as Go writes it: maps sorted, `<>&` escaped; indented with a final newline, or compact."""
    data = _encoder.encode(value)
    for character, escaped in _ESCAPES:
        # These never stand outside of a string.
        if character in data:
            data = data.replace(character, escaped)
    if indent:
        return msgspec.json.format(data, indent=4) + b"\n"
    return data


class _Object(msgspec.Struct, frozen=True, gc=False):
    pass


class AddressObject(_Object, frozen=True, gc=False):
    """One of `TaggedAddresses` of a service."""

    Address: str
    Port: int


class WeightsObject(_Object, frozen=True, gc=False):
    """`Weights`."""

    Passing: int
    Warning: int


class ProxyObject(_Object, frozen=True, gc=False):
    """`Proxy` of an instance; its inner objects are as they were sent."""

    DestinationServiceName: str | UnsetType = UNSET
    DestinationServiceID: str | UnsetType = UNSET
    LocalServiceAddress: str | UnsetType = UNSET
    LocalServicePort: int | UnsetType = UNSET
    Config: Any = UNSET
    Upstreams: Any = UNSET
    MeshGateway: Any = {}
    Expose: Any = {}


class ConnectObject(_Object, frozen=True, gc=False):
    """`Connect` of an instance."""

    Native: bool | UnsetType = UNSET


class NodeObject(_Object, frozen=True, gc=False):
    """A node."""

    ID: str
    Node: str
    Address: str
    Datacenter: str
    TaggedAddresses: dict[str, str] | None
    Meta: dict[str, str] | None
    CreateIndex: int
    ModifyIndex: int


class ServiceNodeObject(_Object, frozen=True, gc=False):
    """An instance with its node, of catalog/service."""

    ID: str
    Node: str
    Address: str
    Datacenter: str
    TaggedAddresses: dict[str, str] | None
    NodeMeta: dict[str, str] | None
    ServiceKind: str
    ServiceID: str
    ServiceName: str
    ServiceTags: Sequence[str]
    ServiceAddress: str
    ServiceTaggedAddresses: dict[str, AddressObject] | UnsetType
    ServiceWeights: WeightsObject
    ServiceMeta: dict[str, str]
    ServicePort: int
    ServiceEnableTagOverride: bool
    ServiceProxy: ProxyObject
    ServiceConnect: ConnectObject
    CreateIndex: int
    ModifyIndex: int


class NodeServiceObject(_Object, frozen=True, gc=False):
    """An instance without its node, of catalog/node and health/service."""

    Kind: str | UnsetType
    ID: str
    Service: str
    Tags: Sequence[str] | None
    Address: str
    TaggedAddresses: dict[str, AddressObject] | UnsetType
    Meta: dict[str, str] | None
    Port: int
    Weights: WeightsObject
    EnableTagOverride: bool
    Proxy: ProxyObject
    Connect: ConnectObject
    CreateIndex: int
    ModifyIndex: int


class AgentServiceObject(_Object, frozen=True, gc=False):
    """An instance as its own agent shows it."""

    Kind: str | UnsetType
    ID: str
    Service: str
    Tags: Sequence[str]
    Meta: dict[str, str]
    Port: int
    Address: str
    TaggedAddresses: dict[str, AddressObject] | UnsetType
    Weights: WeightsObject
    EnableTagOverride: bool
    Proxy: ProxyObject | UnsetType
    Connect: ConnectObject | UnsetType
    ContentHash: str | UnsetType = UNSET


class DefinitionObject(_Object, frozen=True, gc=False):
    """What a check does, as far as somebody told the catalog."""

    Interval: str | UnsetType = UNSET
    Timeout: str | UnsetType = UNSET
    DeregisterCriticalServiceAfter: str | UnsetType = UNSET
    HTTP: str | UnsetType = UNSET
    Header: dict[str, Any] | UnsetType | None = UNSET
    Method: str | UnsetType = UNSET
    Body: str | UnsetType = UNSET
    TLSSkipVerify: bool | UnsetType = UNSET
    TCP: str | UnsetType = UNSET


class CheckObject(_Object, frozen=True, gc=False):
    """A check."""

    Node: str
    CheckID: str
    Name: str
    Status: str
    Notes: str
    Output: str
    ServiceID: str
    ServiceName: str
    ServiceTags: Sequence[str] | None
    Type: str
    Definition: DefinitionObject
    CreateIndex: int
    ModifyIndex: int


class InstanceObject(_Object, frozen=True, gc=False):
    """An instance with its node and checks, of health/service."""

    Node: NodeObject
    Service: NodeServiceObject
    Checks: list[CheckObject]


class KVObject(_Object, frozen=True, gc=False):
    """A key with its value."""

    LockIndex: int
    Key: str
    Flags: int
    Value: bytes | None
    Session: str | UnsetType
    CreateIndex: int
    ModifyIndex: int


class ServiceCheckObject(_Object, frozen=True, gc=False):
    """One of a session's `ServiceChecks`."""

    ID: str
    Namespace: str


class SessionObject(_Object, frozen=True, gc=False):
    """A session."""

    ID: str
    Name: str
    Node: str
    LockDelay: int
    Behavior: str
    TTL: str
    NodeChecks: Sequence[str] | None
    ServiceChecks: Sequence[ServiceCheckObject] | None
    Checks: Sequence[str] | UnsetType
    CreateIndex: int
    ModifyIndex: int


_NO_PROXY: Final = ProxyObject()
_NO_CONNECT: Final = ConnectObject()
_NO_DEFINITION: Final = DefinitionObject()
_NO_META: Final[dict[str, str]] = {}
_ZERO_DEFINITION: Final = DefinitionObject(
    Interval="0s",
    Timeout="0s",
    DeregisterCriticalServiceAfter="0s",
    HTTP="",
    Header=None,
    Method="",
    Body="",
    TLSSkipVerify=False,
    TCP="",
)
_EVEN_WEIGHTS: Final = WeightsObject(1, 1)
_USUAL_WEIGHTS: Final = Weights()


def _weights(weights: Weights) -> WeightsObject:
    if weights == _USUAL_WEIGHTS:
        return _EVEN_WEIGHTS
    return WeightsObject(weights.passing, weights.warning)


def _addresses(
    addresses: Mapping[str, TaggedAddress] | None,
) -> dict[str, AddressObject] | UnsetType:
    if not addresses:
        return UNSET
    return {name: AddressObject(tagged.address, tagged.port) for name, tagged in addresses.items()}


def _proxy(service: Service) -> ProxyObject:
    if not service.proxy:
        return _NO_PROXY
    known = {
        name: value
        for name, value in service.proxy.items()
        if name in ProxyObject.__struct_fields__ and value not in (None, "", 0, [], {})
    }
    return ProxyObject(**known)


def _connect(service: Service) -> ConnectObject:
    return ConnectObject(Native=True) if (service.connect or {}).get("Native") else _NO_CONNECT


def node_object(node: Node) -> NodeObject:
    """Return a node."""
    return NodeObject(
        node.id,
        node.node,
        node.address,
        node.datacenter,
        node.tagged_addresses,
        node.meta,
        node.create_index,
        node.modify_index,
    )


def service_node_object(node: Node, service: Service) -> ServiceNodeObject:
    """Return an instance with its node."""
    return ServiceNodeObject(
        node.id,
        # The name as the instance was registered with, should the node have got another spelling since.
        service.node or node.node,
        node.address,
        node.datacenter,
        node.tagged_addresses,
        node.meta,
        service.kind,
        service.id,
        service.name,
        service.tags,
        service.address,
        _addresses(service.tagged_addresses),
        _weights(service.weights),
        service.meta or _NO_META,
        service.port,
        service.enable_tag_override,
        _proxy(service),
        _connect(service),
        service.create_index,
        service.modify_index,
    )


def node_service_object(service: Service, *, null_tags: bool = False) -> NodeServiceObject:
    """Return an instance without its node; with `null_tags` no tags are null, as txn and ui answers have it."""
    return NodeServiceObject(
        service.kind or UNSET,
        service.id,
        service.name,
        service.tags or None if null_tags else service.tags,
        service.address,
        _addresses(service.tagged_addresses),
        service.meta or None,
        service.port,
        _weights(service.weights),
        service.enable_tag_override,
        _proxy(service),
        _connect(service),
        service.create_index,
        service.modify_index,
    )


def agent_service_object(service: Service, *, with_hash: bool = False) -> AgentServiceObject:
    """Return an instance as its agent shows it, with `ContentHash` on demand."""
    proxy = _proxy(service)
    connect = _connect(service)
    found = AgentServiceObject(
        service.kind or UNSET,
        service.id,
        service.name,
        service.tags,
        service.meta or _NO_META,
        service.port,
        service.address,
        _addresses(service.tagged_addresses),
        _weights(service.weights),
        service.enable_tag_override,
        UNSET if proxy is _NO_PROXY else proxy,
        UNSET if connect is _NO_CONNECT else connect,
    )
    if not with_hash:
        return found
    return msgspec.structs.replace(found, ContentHash=content_hash(found))


def content_hash(service: AgentServiceObject) -> str:
    """Return 16 hex digits that change whenever anything of the definition does."""
    return hashlib.blake2b(_encoder.encode(service), digest_size=8).hexdigest()


_DURATIONS: Final = ("Interval", "Timeout", "DeregisterCriticalServiceAfter")


def _definition(check: Check) -> DefinitionObject:
    if not check.shown_definition:
        return _NO_DEFINITION
    shown: dict[str, Any] = {
        name: format_ns(value) if name in _DURATIONS else value
        for name, value in check.shown_definition.items()
        if name in DefinitionObject.__struct_fields__
    }
    return DefinitionObject(**shown)


def check_object(check: Check, *, null_tags: bool = False) -> CheckObject:
    """Return a check as catalog and health show it; with `null_tags` no tags are null."""
    return CheckObject(
        check.node,
        check.check_id,
        check.name,
        check.status,
        check.notes,
        check.output,
        check.service_id,
        check.service_name,
        check.service_tags or None if null_tags else check.service_tags,
        check.type,
        _definition(check),
        check.create_index,
        check.modify_index,
    )


def agent_check_object(check: Check) -> CheckObject:
    """Return a check as its agent shows it: without indexes."""
    return msgspec.structs.replace(
        check_object(check), Definition=_NO_DEFINITION, CreateIndex=0, ModifyIndex=0
    )


def agent_health_check_object(check: Check) -> CheckObject:
    """Return a check as agent/health/service shows it: no type, and the definition with all its zeros."""
    return msgspec.structs.replace(
        check_object(check, null_tags=True),
        Type="",
        Definition=_ZERO_DEFINITION,
        CreateIndex=0,
        ModifyIndex=0,
    )


def instance_object(node: Node, service: Service, checks: Iterable[Check]) -> InstanceObject:
    """Return an instance with its node and checks."""
    return InstanceObject(
        node_object(node), node_service_object(service), [check_object(check) for check in checks]
    )


def kv_object(entry: KVEntry, *, with_value: bool = True) -> KVObject:
    """Return a key; a write in a transaction shows it without its value."""
    return KVObject(
        entry.lock_index,
        entry.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
        entry.flags,
        (entry.value or None) if with_value else None,
        entry.session or UNSET,
        entry.create_index,
        entry.modify_index,
    )


def session_object(session: Session) -> SessionObject:
    """Return a session."""
    services = session.service_checks
    return SessionObject(
        session.id,
        session.name,
        session.node,
        session.lock_delay_ns,
        session.behavior,
        session.ttl,
        session.node_checks,
        None if services is None else [ServiceCheckObject(check, "") for check in services],
        session.checks or UNSET,
        session.create_index,
        session.modify_index,
    )
