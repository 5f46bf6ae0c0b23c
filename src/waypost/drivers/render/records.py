"""What templates see of the catalog and the key/value store: Go structs with consul-template's field names.

Fields that consul-template got after 0.19.5 (`later`) can be read, but are not shown when a whole struct is printed
or turned into JSON, so that old templates give what they always gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec
from msgspec import field

from waypost.gotemplate.values import (
    STRINGS,
    Function,
    Map,
    NilPointer,
    Slice,
    Struct,
    Uint64,
    nil_pointer,
    string_map,
)
from waypost.model.catalog import (
    CRITICAL,
    MAINTENANCE,
    NODE_MAINTENANCE_ID,
    PASSING,
    SERVICE_MAINTENANCE_PREFIX,
    WARNING,
    Check,
    Node,
    Service,
    TaggedAddress,
)
from waypost.model.kv import KVEntry

ANY_STATUS: Final = "any"


def service_tags(tags: Iterable[str]) -> Slice:
    """Return tags sorted by bytes, as the named type templates see."""
    return Slice(sorted(tags), go_type="dependency.ServiceTags", underlying=STRINGS)


def listed(go_type: str, items: Iterable[Any]) -> Slice:
    """Return a list of structs: `listed("[]*dependency.Node", …)`."""
    return Slice(items, go_type=go_type)


class HealthCheck(Struct, frozen=True, rename="pascal"):
    """One check. Source: Consul API client, `api.HealthCheck`."""

    go_name: ClassVar[str] = "api.HealthCheck"

    node: str
    check_id: str = field(name="CheckID")
    name: str
    status: str
    notes: str
    output: str
    service_id: str = field(name="ServiceID")
    service_name: str
    service_tags: Slice


def aggregated_status(checks: Iterable[tuple[str, str]]) -> str:
    """Return the worst status of (check id, status): maintenance, critical, warning, passing."""
    worst = PASSING
    for check_id, status in checks:
        if check_id == NODE_MAINTENANCE_ID or check_id.startswith(SERVICE_MAINTENANCE_PREFIX):
            return MAINTENANCE
        if status == CRITICAL or (status == WARNING and worst == PASSING):
            worst = status
    return worst


class HealthChecks(Slice):
    """The checks of one instance, with the method `AggregatedStatus`."""

    __slots__ = ()
    go_methods: ClassVar[Mapping[str, Function]] = {
        "AggregatedStatus": Function(
            "AggregatedStatus",
            lambda checks: aggregated_status((check.check_id, check.status) for check in checks),
        )
    }

    def __init__(self, checks: Iterable[HealthCheck]) -> None:
        super().__init__(checks, go_type="api.HealthChecks", underlying="[]*api.HealthCheck")


class ServiceAddress(Struct, frozen=True, rename="pascal"):
    """A tagged address of an instance."""

    go_name: ClassVar[str] = "api.ServiceAddress"
    go_pointer: ClassVar[bool] = False

    address: str
    port: int


class AgentWeights(Struct, frozen=True, rename="pascal"):
    """DNS weights of an instance."""

    go_name: ClassVar[str] = "api.AgentWeights"
    go_pointer: ClassVar[bool] = False

    passing: int
    warning: int


class HealthService(Struct, frozen=True, rename="pascal"):
    """One instance with its node and its checks: what `service` lists."""

    go_name: ClassVar[str] = "dependency.HealthService"
    go_later: ClassVar[frozenset[str]] = frozenset(
        ("ServiceMeta", "Weights", "ServiceTaggedAddresses")
    )

    node: str
    node_id: str = field(name="NodeID")
    node_address: str
    node_tagged_addresses: Map
    node_meta: Map
    address: str
    id: str = field(name="ID")
    name: str
    tags: Slice
    checks: Slice
    status: str
    port: int
    service_meta: Map
    weights: AgentWeights
    service_tagged_addresses: Map


class CatalogSnippet(Struct, frozen=True, rename="pascal"):
    """A service's name with the tags of all its instances: what `services` lists."""

    go_name: ClassVar[str] = "dependency.CatalogSnippet"

    name: str
    tags: Slice


class NodeRecord(Struct, frozen=True, rename="pascal"):
    """A node: what `nodes` lists."""

    go_name: ClassVar[str] = "dependency.Node"

    id: str = field(name="ID")
    node: str
    address: str
    datacenter: str
    tagged_addresses: Map
    meta: Map


class CatalogNodeService(Struct, frozen=True, rename="pascal"):
    """An instance as the catalog of one node shows it."""

    go_name: ClassVar[str] = "dependency.CatalogNodeService"
    go_later: ClassVar[frozenset[str]] = frozenset(("Meta",))

    id: str = field(name="ID")
    service: str
    tags: Slice
    port: int
    address: str
    enable_tag_override: bool
    meta: Map


NO_NODE: Final = nil_pointer(NodeRecord)


class CatalogNode(Struct, frozen=True, rename="pascal"):
    """A node with its instances: what `node` gives. An unknown node has the nil pointer."""

    go_name: ClassVar[str] = "dependency.CatalogNode"

    node: NodeRecord | NilPointer
    services: Slice


NO_CATALOG_NODE: Final = nil_pointer(CatalogNode)


class KeyPair(Struct, frozen=True, rename="pascal"):
    """A key: `Path` in full, `Key` relative to what was asked for."""

    go_name: ClassVar[str] = "dependency.KeyPair"

    path: str
    key: str
    value: str
    create_index: Uint64
    modify_index: Uint64
    lock_index: Uint64
    flags: Uint64
    session: str


KEY_PAIRS: Final = "[]*dependency.KeyPair"
HEALTH_SERVICES: Final = "[]*dependency.HealthService"
SNIPPETS: Final = "[]*dependency.CatalogSnippet"
NODES: Final = "[]*dependency.Node"
NODE_SERVICES: Final = "[]*dependency.CatalogNodeService"


# From our own model


def node_record(node: Node) -> NodeRecord:
    """Return a node as templates see it."""
    return NodeRecord(
        id=node.id,
        node=node.node,
        address=node.address,
        datacenter=node.datacenter,
        tagged_addresses=string_map(node.tagged_addresses),
        meta=string_map(node.meta),
    )


def _tagged(addresses: Mapping[str, TaggedAddress] | None) -> Map:
    return Map(
        {
            name: ServiceAddress(address=each.address, port=each.port)
            for name, each in (addresses or {}).items()
        },
        go_type="map[string]api.ServiceAddress",
        zero=ServiceAddress(address="", port=0),
    )


def health_service(node: Node, service: Service, checks: Sequence[Check]) -> HealthService:
    """Return one instance as templates see it; `checks` are the node's and the instance's own."""
    return HealthService(
        node=node.node,
        node_id=node.id,
        node_address=node.address,
        node_tagged_addresses=string_map(node.tagged_addresses),
        node_meta=string_map(node.meta),
        address=service.address or node.address,
        id=service.id,
        name=service.name,
        tags=service_tags(service.tags),
        checks=HealthChecks(
            HealthCheck(
                node=check.node,
                check_id=check.check_id,
                name=check.name,
                status=check.status,
                notes=check.notes,
                output=check.output,
                service_id=check.service_id,
                service_name=check.service_name,
                service_tags=Slice(check.service_tags, go_type=STRINGS),
            )
            for check in checks
        ),
        status=aggregated_status((check.check_id, check.status) for check in checks),
        port=service.port,
        service_meta=string_map(service.meta),
        weights=AgentWeights(passing=service.weights.passing, warning=service.weights.warning),
        service_tagged_addresses=_tagged(service.tagged_addresses),
    )


def select(
    services: Iterable[HealthService], *, filters: Sequence[str], keep_order: bool = False
) -> tuple[HealthService, ...]:
    """Return the instances of the wanted statuses (`any` = all), by node name, then ID."""
    wanted = set(filters)
    kept = [each for each in services if ANY_STATUS in wanted or each.status in wanted]
    if not keep_order:
        kept.sort(key=lambda each: (each.node, each.id))
    return tuple(kept)


def catalog_node(node: Node | None, services: Iterable[Service]) -> CatalogNode:
    """Return a node with its instances, by service name, then ID."""
    ordered = sorted(services, key=lambda service: (service.name, service.id))
    return CatalogNode(
        node=node_record(node) if node is not None else NO_NODE,
        services=listed(
            NODE_SERVICES,
            (
                CatalogNodeService(
                    id=service.id,
                    service=service.name,
                    tags=service_tags(service.tags),
                    port=service.port,
                    address=service.address,
                    enable_tag_override=service.enable_tag_override,
                    meta=string_map(service.meta),
                )
                for service in ordered
            ),
        ),
    )


def key_pair(entry: KVEntry, *, prefix: str) -> KeyPair:
    """Return a key as templates see it when they asked for a prefix."""
    return KeyPair(
        path=entry.key,
        key=entry.key.removeprefix(prefix).lstrip("/"),
        value=entry.value.decode("utf-8", "surrogateescape"),
        create_index=Uint64(entry.create_index),
        modify_index=Uint64(entry.modify_index),
        lock_index=Uint64(entry.lock_index),
        flags=Uint64(entry.flags),
        session=entry.session,
    )


def snippets(tags_by_name: Mapping[str, Iterable[str]]) -> tuple[CatalogSnippet, ...]:
    """Return services by name."""
    return tuple(
        CatalogSnippet(name=name, tags=service_tags(set(tags_by_name[name])))
        for name in sorted(tags_by_name)
    )


def with_key(pair: KeyPair, key: str) -> KeyPair:
    """Return the pair under another relative key."""
    return msgspec.structs.replace(pair, key=key)
