"""What the catalog holds: nodes, service instances and checks, as frozen records.

Revisions are the store's: `create_index` and `modify_index` are not part of the stored value, they come from the
key's own create and modify revision when a record is read. Names keep the case they were registered with;
`fold` gives the form under which they are compared (Consul compares names without regard to case).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

PASSING: Final = "passing"
WARNING: Final = "warning"
CRITICAL: Final = "critical"
MAINTENANCE: Final = "maintenance"

NODE_MAINTENANCE_ID: Final = "_node_maintenance"
SERVICE_MAINTENANCE_PREFIX: Final = "_service_maintenance:"
SERF_HEALTH_ID: Final = "serfHealth"


def fold(name: str) -> str:
    """Return the form under which two names are the same name."""
    return name.lower()


class TaggedAddress(msgspec.Struct, frozen=True, gc=False):
    """One named address of an instance."""

    address: str = ""
    port: int = 0


class Weights(msgspec.Struct, frozen=True, gc=False):
    """DNS SRV weights by health, 0..65535. Source: Consul service definition, RFC 2782."""

    passing: int = 1
    warning: int = 1


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A machine."""

    node: str
    address: str
    id: str = ""
    datacenter: str = ""
    tagged_addresses: dict[str, str] | None = None
    meta: dict[str, str] | None = None
    create_index: int = 0
    modify_index: int = 0


class Service(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One instance of a service on one node. The pair (node, id) is its identity."""

    node: str
    id: str
    name: str
    tags: tuple[str, ...] = ()
    address: str = ""
    port: int = 0
    meta: dict[str, str] | None = None
    tagged_addresses: dict[str, TaggedAddress] | None = None
    weights: Weights = Weights()
    enable_tag_override: bool = False
    kind: str = ""
    proxy: dict[str, Any] | None = None
    """Consul's `Proxy` object as given; empty when the instance is no proxy."""
    connect: dict[str, Any] | None = None
    """Consul's `Connect` object as given."""
    owner: str = ""
    """Who keeps it: `""` the catalog API, `api` the agent API, `config` a definition file, `docker` the registrator."""
    create_index: int = 0
    modify_index: int = 0


class CheckDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a check is run. Durations in nanoseconds, 0 = not set. Source: Consul API, `agent/check/register`."""

    http: str = ""
    method: str = ""
    header: dict[str, tuple[str, ...]] | None = None
    body: str = ""
    tls_skip_verify: bool = False
    tcp: str = ""
    grpc: str = ""
    grpc_use_tls: bool = False
    args: tuple[str, ...] = ()
    docker_container_id: str = ""
    shell: str = ""
    ttl_ns: int = 0
    alias_node: str = ""
    alias_service: str = ""
    interval_ns: int = 0
    timeout_ns: int = 0
    success_before_passing: int = 0
    failures_before_critical: int = 0
    deregister_critical_service_after_ns: int = 0
    output_max_size: int = 4096


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A check of a node (`service_id` empty) or of one instance. The pair (node, check_id) is its identity."""

    node: str
    check_id: str
    name: str
    status: str = CRITICAL
    notes: str = ""
    output: str = ""
    service_id: str = ""
    service_name: str = ""
    service_tags: tuple[str, ...] = ()
    type: str = ""
    definition: CheckDefinition | None = None
    """What the agent of `node` runs; None for a check that somebody else reports."""
    shown_definition: dict[str, Any] | None = None
    """Consul's `Definition` object of a check registered through the catalog, shown as given and never run."""
    owner: str = ""
    create_index: int = 0
    modify_index: int = 0
