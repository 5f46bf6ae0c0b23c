"""The calls of Consul's HTTP API that waypost's commands make, each returning a typed `Call`.

Only what is asked for is read: the records hold those fields of the answers that somebody uses.
Source: Consul HTTP API 1.8.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import msgspec

from waypost.client.call import Call, Response, json_of, nothing
from waypost.client.errors import UnexpectedResponse, UnreadableResponse
from waypost.model.kv import KVEntry

MEMBER_STATUS: Final = ("none", "alive", "leaving", "left", "failed")
"""Serf's names of `Member.status`."""


class Member(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One member of the cluster. `status` indexes `MEMBER_STATUS`."""

    name: str
    addr: str
    port: int
    tags: dict[str, str] = {}
    status: int = 0


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The `Config` of the agent's answer about itself."""

    datacenter: str = ""
    node_name: str = ""
    version: str = ""


class AgentSelf(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What an agent says about itself. `stats` are the groups of `waypost info`."""

    config: AgentConfig = AgentConfig()
    stats: dict[str, dict[str, str]] = {}


class CatalogNode(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One node of the catalog."""

    node: str
    address: str
    id: str = msgspec.field(name="ID", default="")
    datacenter: str = ""
    tagged_addresses: dict[str, str] | None = None
    meta: dict[str, str] | None = None


class NodeService(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One instance as seen on its node."""

    service: str
    id: str = msgspec.field(name="ID", default="")
    tags: list[str] | None = None


class NodeServices(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A node's instances by their id."""

    services: dict[str, NodeService] | None = None


class AgentCheck(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One check of the agent."""

    node: str
    check_id: str = msgspec.field(name="CheckID")
    notes: str = ""
    service_id: str = msgspec.field(name="ServiceID", default="")


class RaftServer(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One server of the consensus group."""

    id: str = msgspec.field(name="ID")
    node: str
    address: str
    leader: bool
    voter: bool
    protocol_version: str = ""


class RaftConfiguration(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The consensus group."""

    servers: list[RaftServer]


class _KVPair(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    key: str
    value: str | None = None
    flags: int = 0
    lock_index: int = 0
    session: str = ""
    create_index: int = 0
    modify_index: int = 0


class _Id(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="ID")


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


def _pairs(**flags: bool | int | str) -> tuple[tuple[str, str], ...]:
    """Return those query parameters that are set; a true boolean has an empty value, as Go's client sends it."""
    return tuple(
        (name.replace("_", "-"), "" if value is True else str(value))
        for name, value in flags.items()
        if value is not False and value != ""
    )


# The agent itself.


def members(*, wan: bool = False, segment: str = "_all") -> Call[list[Member]]:
    """List the members of the LAN or WAN pool."""
    query = _pairs(segment=segment, wan="1" if wan else "")
    return _agent("GET", "/v1/agent/members", json_of(list[Member]), query=query)


def agent_self() -> Call[AgentSelf]:
    """Ask the agent about itself."""
    return _agent("GET", "/v1/agent/self", json_of(AgentSelf))


def agent_checks() -> Call[dict[str, AgentCheck]]:
    """List the agent's own checks by id."""
    return _agent("GET", "/v1/agent/checks", json_of(dict[str, AgentCheck]))


def node_maintenance(*, enable: bool, reason: str = "") -> Call[None]:
    """Put the agent's node into maintenance, or take it out."""
    query = (*_pairs(reason=reason), ("enable", str(enable).lower()))
    return _agent("PUT", "/v1/agent/maintenance", nothing, query=query)


def service_maintenance(service_id: str, *, enable: bool, reason: str = "") -> Call[None]:
    """Put one instance of the agent into maintenance, or take it out."""
    query = (*_pairs(reason=reason), ("enable", str(enable).lower()))
    return _agent("PUT", f"/v1/agent/service/maintenance/{service_id}", nothing, query=query)


def register_service(definition: dict[str, Any]) -> Call[None]:
    """Register an instance with the agent; `definition` has the API's names."""
    return _agent("PUT", "/v1/agent/service/register", nothing, body=_json(definition))


def deregister_service(service_id: str) -> Call[None]:
    """Take an instance of the agent out."""
    return _agent("PUT", f"/v1/agent/service/deregister/{service_id}", nothing)


def reload() -> Call[None]:
    """Have the agent read its configuration again."""
    return _agent("PUT", "/v1/agent/reload", nothing)


def leave() -> Call[None]:
    """Have the agent leave the cluster and end."""
    return _agent("PUT", "/v1/agent/leave", nothing)


def join(address: str, *, wan: bool = False) -> Call[None]:
    """Have the agent join the cluster that `address` is in."""
    query = _pairs(wan="1" if wan else "")
    return _agent("PUT", f"/v1/agent/join/{address}", nothing, query=query)


def force_leave(node: str, *, prune: bool = False) -> Call[None]:
    """Have a failed member count as left; with `prune` forget it altogether."""
    query = _pairs(prune="1" if prune else "")
    return _agent("PUT", f"/v1/agent/force-leave/{node}", nothing, query=query)


def monitor(*, level: str, json: bool = False) -> Call[None]:
    """Follow the agent's log; for `Client.stream`."""
    query = _pairs(loglevel=level, logjson="true" if json else "")
    return _agent("GET", "/v1/agent/monitor", nothing, query=query)


def _agent(
    method: str,
    path: str,
    decode: Any,
    *,
    query: tuple[tuple[str, str], ...] = (),
    body: bytes | None = None,
) -> Call[Any]:
    return Call(
        method=method, path=path, decode=decode, query=query, body=body, in_datacenter=False
    )


# The catalog.


def datacenters() -> Call[list[str]]:
    """List the datacenters, nearest first."""
    return Call(method="GET", path="/v1/catalog/datacenters", decode=json_of(list[str]))


def nodes(
    *,
    near: str = "",
    filter: str = "",  # noqa: A002
    node_meta: tuple[tuple[str, str], ...] = (),
) -> Call[list[CatalogNode]]:
    """List the nodes of the catalog."""
    query = (*_pairs(near=near, filter=filter), *_node_meta(node_meta))
    return Call(
        method="GET", path="/v1/catalog/nodes", query=query, decode=json_of(list[CatalogNode])
    )


def service_nodes(
    service: str,
    *,
    near: str = "",
    filter: str = "",  # noqa: A002
    node_meta: tuple[tuple[str, str], ...] = (),
) -> Call[list[CatalogNode]]:
    """List the nodes of a service's instances, one entry an instance."""
    query = (*_pairs(near=near, filter=filter), *_node_meta(node_meta))
    path = f"/v1/catalog/service/{service}"
    return Call(method="GET", path=path, query=query, decode=_nodes_of_instances)


class _Instance(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    node: str
    address: str
    id: str = msgspec.field(name="ID", default="")
    datacenter: str = ""
    tagged_addresses: dict[str, str] | None = None
    node_meta: dict[str, str] | None = None


def _nodes_of_instances(response: Response) -> list[CatalogNode]:
    return [
        CatalogNode(
            node=instance.node,
            address=instance.address,
            id=instance.id,
            datacenter=instance.datacenter,
            tagged_addresses=instance.tagged_addresses,
            meta=instance.node_meta,
        )
        for instance in json_of(list[_Instance])(response)
    ]


def services(*, node_meta: tuple[tuple[str, str], ...] = ()) -> Call[dict[str, list[str]]]:
    """List the services with their tags."""
    return Call(
        method="GET",
        path="/v1/catalog/services",
        query=_node_meta(node_meta),
        decode=json_of(dict[str, list[str]]),
    )


def services_of_node(
    node: str, *, node_meta: tuple[tuple[str, str], ...] = ()
) -> Call[NodeServices]:
    """List the instances of a node; none if there is no such node."""
    return Call(
        method="GET",
        path=f"/v1/catalog/node/{node}",
        query=_node_meta(node_meta),
        decode=json_of(NodeServices),
    )


def _node_meta(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(("node-meta", f"{key}:{value}") for key, value in pairs)


# The key/value store.


def kv_get(key: str) -> Call[KVEntry | None]:
    """Read one key; None if there is none."""
    return Call(method="GET", path=f"/v1/kv/{key}", expect=(200, 404), decode=_one_entry)


def kv_list(prefix: str) -> Call[list[KVEntry]]:
    """Read all keys with a prefix."""
    query = _pairs(recurse=True)
    return Call(
        method="GET", path=f"/v1/kv/{prefix}", query=query, expect=(200, 404), decode=_entries
    )


def kv_keys(prefix: str, *, separator: str = "") -> Call[list[str]]:
    """List the keys with a prefix, up to the next separator."""
    query = _pairs(keys=True, separator=separator)

    def decode(response: Response) -> list[str]:
        return [] if response.status == 404 else json_of(list[str])(response)

    return Call(
        method="GET", path=f"/v1/kv/{prefix}", query=query, expect=(200, 404), decode=decode
    )


def kv_put(
    key: str,
    value: bytes,
    *,
    flags: int = 0,
    cas: int | None = None,
    acquire: str = "",
    release: str = "",
) -> Call[bool]:
    """Write one key; False if the compare-and-set or the lock did not succeed.

    `cas` is the expected ModifyIndex (0: must not exist); `acquire` and `release` are session ids.
    """
    query = _pairs(
        flags=flags or "", cas="" if cas is None else cas, acquire=acquire, release=release
    )
    return Call(method="PUT", path=f"/v1/kv/{key}", query=query, body=value, decode=_truth)


def kv_delete(key: str, *, cas: int | None = None) -> Call[bool]:
    """Delete one key; False if the compare-and-set did not succeed."""
    query = _pairs(cas="" if cas is None else cas)
    return Call(method="DELETE", path=f"/v1/kv/{key}", query=query, decode=_truth)


def kv_delete_prefix(prefix: str) -> Call[bool]:
    """Delete all keys with a prefix."""
    query = _pairs(recurse=True)
    return Call(method="DELETE", path=f"/v1/kv/{prefix}", query=query, decode=_truth)


def _truth(response: Response) -> bool:
    return response.body.strip() == b"true"


def _entries(response: Response) -> list[KVEntry]:
    if response.status == 404:
        # An empty 404 is "no such key"; one with a text is an agent that does not know the path.
        if response.body.strip():
            raise UnexpectedResponse(status=404, body=response.body.decode("utf-8", "replace"))
        return []
    return [
        KVEntry(
            key=pair.key,
            value=_unbase64(pair.value or "", key=pair.key),
            flags=pair.flags,
            lock_index=pair.lock_index,
            session=pair.session,
            create_index=pair.create_index,
            modify_index=pair.modify_index,
        )
        for pair in json_of(list[_KVPair])(response)
    ]


def _one_entry(response: Response) -> KVEntry | None:
    found = _entries(response)
    return found[0] if found else None


def _unbase64(text: str, *, key: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise UnreadableResponse(f'the value of key "{key}" is not base64: {exc}') from exc


# Sessions, events, the servers.


def session_create(
    *, name: str, ttl: str, behavior: str = "release", lock_delay: str = ""
) -> Call[str]:
    """Create a session of the agent's node and return its id. Durations in Go's form."""
    body = {"Name": name, "TTL": ttl, "Behavior": behavior}
    if lock_delay:
        body["LockDelay"] = lock_delay
    return Call(method="PUT", path="/v1/session/create", body=_json(body), decode=_session_id)


def _session_id(response: Response) -> str:
    return json_of(_Id)(response).id


def session_renew(session: str) -> Call[bool]:
    """Renew a session; False if it is gone."""

    def decode(response: Response) -> bool:
        return response.status == 200

    return Call(method="PUT", path=f"/v1/session/renew/{session}", expect=(200, 404), decode=decode)


def session_destroy(session: str) -> Call[None]:
    """Destroy a session; its locks are released."""
    return Call(method="PUT", path=f"/v1/session/destroy/{session}", decode=nothing)


def event_fire(
    name: str, payload: bytes, *, node: str = "", service: str = "", tag: str = ""
) -> Call[str]:
    """Fire a user event and return its id; the filters are regular expressions."""
    query = _pairs(node=node, service=service, tag=tag)
    return Call(
        method="PUT",
        path=f"/v1/event/fire/{name}",
        query=query,
        body=payload or None,
        decode=_session_id,
    )


def raft_configuration() -> Call[RaftConfiguration]:
    """List the servers of the consensus group."""
    path = "/v1/operator/raft/configuration"
    return Call(method="GET", path=path, decode=json_of(RaftConfiguration))


def raft_remove_peer(*, address: str = "", id: str = "") -> Call[None]:  # noqa: A002
    """Take a server out of the consensus group, by its address or its id."""
    query = _pairs(address=address, id=id)
    return Call(method="DELETE", path="/v1/operator/raft/peer", query=query, decode=nothing)


def raft_transfer_leader(*, id: str = "") -> Call[bool]:  # noqa: A002
    """Make another server lead, any if `id` is empty; return whether it does."""
    path = "/v1/operator/raft/transfer-leader"
    return Call(method="POST", path=path, query=_pairs(id=id), decode=_success)


def _success(response: Response) -> bool:
    return json_of(_Success)(response).success


class _Success(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    success: bool = False


class AutopilotConfiguration(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """How the servers look after themselves. Durations are texts such as `200ms`."""

    cleanup_dead_servers: bool = True
    last_contact_threshold: str = "200ms"
    max_trailing_logs: int = 250
    min_quorum: int = 0
    server_stabilization_time: str = "10s"
    redundancy_zone_tag: str = ""
    disable_upgrade_migration: bool = False
    upgrade_version_tag: str = ""
    create_index: int = 0
    modify_index: int = 0


class ServerHealth(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """How one server is."""

    id: str = msgspec.field(name="ID")
    name: str
    address: str
    serf_status: str
    version: str = ""
    leader: bool = False
    last_contact: str = ""
    last_term: int = 0
    last_index: int = 0
    healthy: bool = False
    voter: bool = False
    stable_since: str = ""


class ClusterHealth(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """How the servers are together. `failure_tolerance` of them may fail before writes stop."""

    healthy: bool
    failure_tolerance: int
    servers: list[ServerHealth]


_AUTOPILOT = "/v1/operator/autopilot/configuration"


def autopilot_configuration() -> Call[AutopilotConfiguration]:
    """Read how the servers look after themselves."""
    return Call(method="GET", path=_AUTOPILOT, decode=json_of(AutopilotConfiguration))


def set_autopilot_configuration(wanted: AutopilotConfiguration) -> Call[bool]:
    """Change it, if it is still at the given modify index; return whether it was."""
    return Call(
        method="PUT",
        path=_AUTOPILOT,
        query=(("cas", str(wanted.modify_index)),),
        body=_json(wanted),
        decode=_truth,
    )


def autopilot_health() -> Call[ClusterHealth]:
    """Ask how the servers are; 429 is the answer when not all are well."""
    path = "/v1/operator/autopilot/health"
    return Call(method="GET", path=path, decode=json_of(ClusterHealth), expect=(200, 429))


def snapshot_save() -> Call[bytes]:
    """Get a snapshot of everything."""
    return Call(method="GET", path="/v1/snapshot", decode=lambda response: response.body)


def snapshot_restore(archive: bytes) -> Call[None]:
    """Replace everything by a snapshot."""
    return Call(method="PUT", path="/v1/snapshot", body=archive, decode=nothing)


def raw(path: str, query: tuple[tuple[str, str], ...] = ()) -> Call[Any]:
    """Read any JSON answer as it is; `watch` hands it on. A 404 without text reads as None."""

    def decode(response: Response) -> Any:
        if response.status == 404:
            return None
        try:
            return msgspec.json.decode(response.body)
        except msgspec.MsgspecError as exc:
            raise UnreadableResponse(f"the agent's answer cannot be read: {exc}") from exc

    return Call(method="GET", path=path, query=query, expect=(200, 404), decode=decode)
