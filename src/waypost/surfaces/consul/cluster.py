"""/v1/status, /v1/operator, /v1/coordinate. Source: Consul HTTP API, status, operator, coordinates."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.gate import Attributes
from waypost.base.duration import format_ns
from waypost.base.errors import Malformed, Rejected
from waypost.domain.agent import CONSUL_SERVICE
from waypost.model.catalog import PASSING, SERF_HEALTH_ID, Node
from waypost.surfaces.consul.context import DONE, Context
from waypost.surfaces.consul.member import ZERO_COORDINATE, MemberRoutes
from waypost.surfaces.consul.reading import Question
from waypost.surfaces.http.message import Answer, Request, Response
from waypost.wire.consul.gojson import parse

_READ: Final = Attributes("get", "operators")
_CHANGE: Final = Attributes("update", "operators")
_LAST_CONTACT_NS: Final = 200 * 10**6
_STABILIZATION_NS: Final = 10 * 10**9


class RaftServer(msgspec.Struct, frozen=True):
    """One server of operator/raft/configuration."""

    ID: str
    Node: str
    Address: str
    Leader: bool
    ProtocolVersion: str = "3"
    Voter: bool = True


class RaftConfiguration(msgspec.Struct, frozen=True):
    """operator/raft/configuration."""

    Servers: list[RaftServer]
    Index: int = 0


class Autopilot(msgspec.Struct, frozen=True):
    """operator/autopilot/configuration with what holds here."""

    CleanupDeadServers: bool = True
    LastContactThreshold: str = format_ns(_LAST_CONTACT_NS)
    MaxTrailingLogs: int = 250
    MinQuorum: int = 0
    ServerStabilizationTime: str = format_ns(_STABILIZATION_NS)
    RedundancyZoneTag: str = ""
    DisableUpgradeMigration: bool = False
    UpgradeVersionTag: str = ""
    CreateIndex: int = 1
    ModifyIndex: int = 1


class ServerHealth(msgspec.Struct, frozen=True):
    """One server of operator/autopilot/health."""

    ID: str
    Name: str
    Address: str
    SerfStatus: str
    Version: str
    Leader: bool
    LastContact: str
    LastTerm: int
    LastIndex: int
    Healthy: bool
    Voter: bool
    StableSince: str


class ClusterHealth(msgspec.Struct, frozen=True):
    """operator/autopilot/health."""

    Healthy: bool
    FailureTolerance: int
    Servers: list[ServerHealth]


class CoordinateObject(msgspec.Struct, frozen=True):
    """Where a node is on the network's map."""

    Node: str
    Segment: str
    Coord: Any


class DatacenterMap(msgspec.Struct, frozen=True):
    """One datacenter of coordinate/datacenters."""

    Datacenter: str
    AreaID: str
    Coordinates: list[CoordinateObject]


_ZERO: Final = msgspec.Raw(msgspec.json.encode(ZERO_COORDINATE))


class ClusterRoutes:
    """Handlers of what concerns the servers together."""

    def __init__(self, context: Context, members: MemberRoutes) -> None:
        self._context = context
        self._members = members
        self._view = context.domain.state.view

    def _checked(self, request: Request, attributes: Attributes) -> None:
        self._context.require_datacenter(request)
        self._context.admit(request, attributes)

    def _address(self, node: Node) -> str:
        service = self._view.service(node.node, CONSUL_SERVICE)
        port = service.port if service is not None else self._context.network.server_port
        return f"[{node.address}]:{port}" if ":" in node.address else f"{node.address}:{port}"

    # -- status --------------------------------------------------------------------------------------------------------

    def leader(self, request: Request) -> Response:
        """GET status/leader."""
        self._checked(request, Attributes("get", "nodes"))
        return self._context.json(request, self._members.leader())

    def peers(self, request: Request) -> Response:
        """GET status/peers."""
        self._checked(request, Attributes("get", "nodes"))
        servers = self._members.agents(servers=True)
        return self._context.json(request, [self._address(node) for node in servers])

    # -- operator ------------------------------------------------------------------------------------------------------

    def raft_configuration(self, request: Request) -> Response:
        """GET operator/raft/configuration."""
        self._checked(request, _READ)
        leader = self._members.leader()
        servers = [
            RaftServer(node.id, node.node, self._address(node), self._address(node) == leader)
            for node in self._members.agents(servers=True)
        ]
        return self._context.json(request, RaftConfiguration(servers))

    def remove_peer(self, request: Request) -> Response:
        """DELETE operator/raft/peer."""
        self._checked(request, _CHANGE)
        query = request.query
        peer_id, address = query.get("id"), query.get("address")
        if not peer_id and not address:
            msg = (
                "Bad request: Must specify either ?id with the server's ID "
                "or ?address with IP:port of peer to remove"
            )
            raise Malformed(msg)
        if peer_id and address:
            msg = "Bad request: Must specify only one of ?id or ?address"
            raise Malformed(msg)
        servers = self._members.agents(servers=True)
        if not any(peer_id == n.id or address == self._address(n) for n in servers):
            what = f'id "{peer_id}"' if peer_id else f'address "{address}"'
            msg = f"{what} was not found in the Raft configuration"
            raise Rejected(msg)
        msg = "a server that is part of the cluster leaves it by its own agent"
        raise Rejected(msg)

    def autopilot(self, request: Request) -> Response:
        """GET operator/autopilot/configuration."""
        self._checked(request, _READ)
        return self._context.json(request, Autopilot())

    def health(self, request: Request) -> Response:
        """GET operator/autopilot/health."""
        self._checked(request, _READ)
        leader = self._members.leader()
        since = datetime.fromtimestamp(self._context.started_s, UTC)
        servers = []
        for node in self._members.agents(servers=True):
            check = self._view.check(node.node, SERF_HEALTH_ID)
            is_alive = check is not None and check.status == PASSING
            servers.append(
                ServerHealth(
                    ID=node.id,
                    Name=node.node,
                    Address=self._address(node),
                    SerfStatus="alive" if is_alive else "failed",
                    Version=self._context.settings.version,
                    Leader=self._address(node) == leader,
                    LastContact="0s",
                    LastTerm=1,
                    LastIndex=self._view.revision,
                    Healthy=is_alive,
                    Voter=True,
                    StableSince=f"{since:%Y-%m-%dT%H:%M:%SZ}",
                )
            )
        alive = sum(server.Healthy for server in servers)
        tolerance = max(0, alive - (len(servers) // 2 + 1))
        healthy = bool(servers) and alive == len(servers)
        return self._context.json(
            request,
            ClusterHealth(healthy, tolerance, servers),
            status=200 if healthy else 429,
        )

    def keyring(self, request: Request) -> Response:
        """Anything on operator/keyring: there is no gossip, so there are no keys."""
        self._checked(request, _READ)
        local = self._context.domain.agent.local
        node, datacenter = local.node, local.datacenter
        problems = (
            "WAN error: 1/1 nodes reported failure",
            f"{node}.{datacenter}: Keyring is empty (encryption not enabled)",
            f"{datacenter} (LAN) error: 1/1 nodes reported failure",
            f"{node}: Keyring is empty (encryption not enabled)",
        )
        msg = "4 errors occurred:" + "".join(f"\n\t* {text}" for text in problems) + "\n\n"
        raise Rejected(msg)

    # -- coordinates ---------------------------------------------------------------------------------------------------

    def datacenters(self, request: Request) -> Response:
        """GET coordinate/datacenters."""
        self._context.admit(request, Attributes("list", "nodes"))
        servers = self._members.agents(servers=True)
        found = [CoordinateObject(node.node, "", _ZERO) for node in servers]
        name = self._context.reader.datacenter
        return self._context.json(request, [DatacenterMap(name, "wan", found)])

    def coordinates(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET coordinate/nodes: no distances are measured between the nodes."""

        def read(actor: Actor) -> list[Any]:
            self._context.domain.catalog.nodes(actor)
            return []

        question = Question(
            topics=(("nodes",),), read=read, encode=lambda found: found, shows_consistency=False
        )
        return self._context.reader.answer(request, self._context.actor(request), question)

    def coordinate(self, request: Request) -> Response:
        """GET coordinate/node/:node."""
        self._checked(request, Attributes("get", "nodes", request.rest))
        return Response(status=404)

    def update_coordinate(self, request: Request) -> Response:
        """PUT coordinate/update: taken and not used, nothing here sorts by distance."""
        self._context.admit(request, Attributes("update", "nodes"))
        try:
            body = parse(request.body)
        except Malformed as error:
            msg = f"Request decode failed: {error}"
            raise Malformed(msg) from error
        if not isinstance(body, dict):
            msg = "Request decode failed: expected an object"
            raise Malformed(msg)
        return DONE
