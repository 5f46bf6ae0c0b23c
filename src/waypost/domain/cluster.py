"""What the surfaces ask of the group of servers, and what an agent without a group answers.

The servers of a cluster agree on every write; one of them leads. `ClusterView` is all that the surfaces know of that.
`SingleServer` is the group of one that every agent with a store of its own is.

Source: Consul HTTP API, status, operator and agent endpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

from waypost.base.duration import parse_ns
from waypost.base.errors import Malformed, Rejected
from waypost.domain.agent import CONSUL_SERVICE, LocalNode
from waypost.domain.planning import Draft
from waypost.model.catalog import SERF_HEALTH_ID, Node
from waypost.state.keys import system_key
from waypost.state.state import Plan
from waypost.state.view import View


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One server of the group, as its operator sees it."""

    id: str
    """The node's id (a UUID), by which operators name the server."""
    node: str
    address: str
    """`host:port` at which the servers replicate; an IPv6 host is in brackets."""
    is_leader: bool = False
    is_voter: bool = True


class ServerHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How one server of the group was when the leader looked last."""

    server: Server
    is_healthy: bool
    contact_s: float | None
    """How old the leader's knowledge was that the server follows it; None: it never knew."""
    term: int
    index: int
    """How far its log is known to be agreed."""
    since_s: float | None
    """Wall time since when it is healthy, or not; None: since this agent started."""


class FarServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server of another datacenter."""

    node: str
    id: str
    datacenter: str
    address: str
    port: int
    """Where other datacenters reach it (`serf_wan`)."""
    server_port: int
    status: Literal["alive", "failed", "left"]
    trip_s: float | None = None
    """How long a message to it and its answer take; None: not measured."""


class OtherDatacenters(Protocol):
    """What a server knows of the other datacenters."""

    def names(self) -> Sequence[str]:
        """Return their names, the nearest first."""
        ...

    def far_servers(self) -> Sequence[FarServer]:
        """Return their servers, by datacenter and name."""
        ...


class ClusterView(Protocol):
    """The group of servers as one agent sees it."""

    @property
    def is_leader(self) -> bool:
        """Whether the server of this agent leads."""
        ...

    @property
    def knows_leader(self) -> bool:
        """Whether somebody leads, as far as this agent knows."""
        ...

    def leader_address(self) -> str:
        """Return `host:port` of the leading server; empty when nobody leads."""
        ...

    def last_contact_s(self) -> float:
        """Return the seconds since this agent last heard of the leader; 0 on the leader, inf if it never did."""
        ...

    async def servers(self) -> Sequence[Server]:
        """Return the servers that replicate, learners included. Raises NoLeader, Unavailable."""
        ...

    async def health(self) -> Sequence[ServerHealth]:
        """Return how the servers are, as the leader sees it. Raises NoLeader, Unavailable."""
        ...

    async def join(self, address: str) -> None:
        """Meet another agent at `host` or `host:port`. Raises Rejected with the reason in Consul's words."""
        ...

    async def sign_off(self) -> bool:
        """Have the leader take this agent's node out of the catalog, and note that it left.

        False: nobody is asked for that, the agent does it itself. Raises NoLeader, Unavailable.
        """
        ...

    async def leave(self) -> None:
        """Take this agent's server out of the group, for good; nothing to do on an agent that is none.

        Raises Rejected when the others could not go on, Unavailable.
        """
        ...

    async def remove_server(self, server_id: str) -> None:
        """Take a server that will not come back out of the group. Raises NotFound, Rejected, Unavailable."""
        ...

    async def transfer_leader(self, server_id: str) -> None:
        """Make another server lead; any that can with an empty id. Raises NotFound, Rejected, Unavailable."""
        ...


def host_port(address: str, port: int) -> str:
    """Return `host:port`, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def agents(view: View, *, servers: bool = False) -> list[Node]:
    """Return the nodes that have an agent, or only those with a server, by name."""
    return [
        node
        for node in view.nodes()
        if view.check(node.node, SERF_HEALTH_ID) is not None
        and (not servers or view.service(node.node, CONSUL_SERVICE) is not None)
    ]


def server_address(view: View, node: Node, *, port: int) -> str:
    """Return where a server replicates according to its entry in the catalog; `port` if it has none."""
    service = view.service(node.node, CONSUL_SERVICE)
    return host_port(node.address, service.port if service is not None else port)


class SingleServer:
    """The group of one: an agent with a store of its own."""

    def __init__(self, view: View, local: LocalNode, *, server_port: int) -> None:
        self._view = view
        self._local = local
        self._port = server_port

    @property
    def is_leader(self) -> bool:
        """See ClusterView."""
        return True

    @property
    def knows_leader(self) -> bool:
        """See ClusterView."""
        return True

    def leader_address(self) -> str:
        """See ClusterView."""
        return f"{self._local.address}:{self._port}"

    def last_contact_s(self) -> float:
        """See ClusterView."""
        return 0.0

    async def servers(self) -> Sequence[Server]:
        """See ClusterView."""
        leader = self.leader_address()
        found = []
        for node in agents(self._view, servers=True):
            address = server_address(self._view, node, port=self._port)
            found.append(
                Server(id=node.id, node=node.node, address=address, is_leader=address == leader)
            )
        return found

    async def health(self) -> Sequence[ServerHealth]:
        """See ClusterView."""
        return [
            ServerHealth(
                server=one,
                is_healthy=True,
                contact_s=0.0,
                term=1,
                index=self._view.revision,
                since_s=None,
            )
            for one in await self.servers()
        ]

    async def join(self, address: str) -> None:
        """See ClusterView."""
        host = address.rpartition(":")[0] if address.count(":") == 1 else address
        msg = f"Failed to join {host}: this agent runs alone; a cluster is formed at its start"
        raise Rejected(msg)

    async def sign_off(self) -> bool:
        """See ClusterView."""
        return False

    async def leave(self) -> None:
        """See ClusterView."""

    async def remove_server(self, server_id: str) -> None:
        """See ClusterView."""
        msg = "a server that is part of the cluster leaves it by its own agent"
        raise Rejected(msg)

    async def transfer_leader(self, server_id: str) -> None:
        """See ClusterView."""
        msg = "cannot find peer"
        raise Rejected(msg)


# -- autopilot ---------------------------------------------------------------------------------------------------------

_AUTOPILOT: Final = "autopilot"


class Autopilot(msgspec.Struct, frozen=True, kw_only=True):
    """How the group of servers looks after itself. Durations in nanoseconds. Source: Consul, autopilot."""

    cleanup_dead_servers: bool = True
    """A server that failed is taken out of the group once a new one is there to take its place."""
    last_contact_threshold_ns: int = 200 * 10**6
    """A server that heard the leader longer ago is not healthy."""
    max_trailing_logs: int = 250
    """A server that is more revisions behind is not healthy."""
    min_quorum: int = 0
    """Dead servers are not taken out of a group of this size or smaller."""
    server_stabilization_time_ns: int = 10 * 10**9
    """How long a new server has to be healthy before it votes."""
    redundancy_zone_tag: str = ""
    disable_upgrade_migration: bool = False
    upgrade_version_tag: str = ""
    create_index: int = 1
    modify_index: int = 1


_DEFAULTS: Final = Autopilot()


class _AutopilotBody(msgspec.Struct, frozen=True, rename="pascal"):
    """Autopilot as a client sends it; a duration is a text such as `200ms`, or nanoseconds."""

    cleanup_dead_servers: bool = False
    last_contact_threshold: str | int = 0
    max_trailing_logs: int = 0
    min_quorum: int = 0
    server_stabilization_time: str | int = 0
    redundancy_zone_tag: str = ""
    disable_upgrade_migration: bool = False
    upgrade_version_tag: str = ""


def parse_autopilot(body: bytes) -> Autopilot:
    """Return what a client sent; members not sent are 0, empty or false, as in Consul.

    Raises Malformed in Consul's words.
    """
    try:
        sent = msgspec.json.decode(body, type=_AutopilotBody)
        return Autopilot(
            cleanup_dead_servers=sent.cleanup_dead_servers,
            last_contact_threshold_ns=_nanoseconds(sent.last_contact_threshold),
            max_trailing_logs=_natural(sent.max_trailing_logs, "MaxTrailingLogs"),
            min_quorum=_natural(sent.min_quorum, "MinQuorum"),
            server_stabilization_time_ns=_nanoseconds(sent.server_stabilization_time),
            redundancy_zone_tag=sent.redundancy_zone_tag,
            disable_upgrade_migration=sent.disable_upgrade_migration,
            upgrade_version_tag=sent.upgrade_version_tag,
        )
    except (msgspec.MsgspecError, Malformed) as error:
        msg = f"Bad request: Error parsing autopilot config: {error}"
        raise Malformed(msg) from error


def _nanoseconds(given: str | int) -> int:
    found = parse_ns(given) if isinstance(given, str) else given
    return _natural(found, "a duration")


def _natural(number: int, what: str) -> int:
    if not 0 <= number < 2**63:
        msg = f"{what} cannot be {number}"
        raise Malformed(msg)
    return number


def autopilot(view: View) -> Autopilot:
    """Return the configuration that holds: the stored one, else the defaults."""
    entry = view.system(_AUTOPILOT)
    if entry is None:
        return _DEFAULTS
    found = msgspec.msgpack.decode(entry.value, type=Autopilot)
    return msgspec.structs.replace(
        found, create_index=entry.create_index, modify_index=entry.modify_index
    )


def plan_autopilot(view: View, wanted: Autopilot, *, at_index: int | None) -> Plan[bool]:
    """Decide a change of the configuration; the answer is whether it was made.

    `at_index` is the modify index that the caller has seen; None changes whatever is there.
    """
    old = view.system(_AUTOPILOT)
    if at_index is not None and at_index != autopilot(view).modify_index:
        return Plan(answer=False)
    draft = Draft()
    value = msgspec.msgpack.encode(msgspec.structs.replace(wanted, create_index=0, modify_index=0))
    draft.write(system_key(_AUTOPILOT), value, revision=old.modify_index if old else 0)
    return draft.plan(answer=True)
