"""/v1/status, /v1/operator, /v1/coordinate. Source: Consul HTTP API, status, operator, coordinates."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.gate import Attributes
from waypost.base.duration import format_ns
from waypost.base.errors import Malformed, Rejected
from waypost.domain.cluster import (
    Server,
    agents,
    autopilot,
    parse_autopilot,
    plan_autopilot,
)
from waypost.domain.cluster import ServerHealth as Health
from waypost.model.catalog import PASSING, SERF_HEALTH_ID
from waypost.surfaces.consul.context import DONE, Context
from waypost.surfaces.consul.member import ZERO_COORDINATE
from waypost.surfaces.consul.reading import Question, parse_unsigned
from waypost.surfaces.http.message import Answer, Request, Response
from waypost.wire.consul.gojson import parse

_READ: Final = Attributes("get", "operators")
_CHANGE: Final = Attributes("update", "operators")


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
    """operator/autopilot/configuration."""

    CleanupDeadServers: bool
    LastContactThreshold: str
    MaxTrailingLogs: int
    MinQuorum: int
    ServerStabilizationTime: str
    RedundancyZoneTag: str
    DisableUpgradeMigration: bool
    UpgradeVersionTag: str
    CreateIndex: int
    ModifyIndex: int


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


def _find(servers: Sequence[Server], *, id_: str = "", address: str = "") -> Server | None:
    """Return the server of that id or address."""
    wanted = id_.lower()
    return next(
        (s for s in servers if (wanted and s.id.lower() == wanted) or s.address == address), None
    )


def _without_keys(where: str, members: Sequence[str]) -> list[str]:
    count = len(members)
    return [
        f"{where} error: {count}/{count} nodes reported failure",
        *(f"{name}: Keyring is empty (encryption not enabled)" for name in members),
    ]


_ZERO: Final = msgspec.Raw(msgspec.json.encode(ZERO_COORDINATE))


def _coordinate(trip_s: float, *, axis: int) -> msgspec.Raw:
    """Return where a server is that is so far from this datacenter, which is the origin. Vivaldi, as serf has it.

    Each datacenter has an axis of its own: how far two others are from each other is not known here.
    """
    vector = [0.0] * 8
    vector[axis % 8] = max(0.0, trip_s - 2 * ZERO_COORDINATE["Height"])
    return msgspec.Raw(msgspec.json.encode(ZERO_COORDINATE | {"Vec": vector}))


class ClusterRoutes:
    """Handlers of what concerns the servers together."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cluster = context.cluster
        self._view = context.domain.state.view

    def _checked(self, request: Request, attributes: Attributes) -> None:
        self._context.require_datacenter(request)
        self._context.admit(request, attributes)

    # -- status --------------------------------------------------------------------------------------------------------

    def leader(self, request: Request) -> Response:
        """GET status/leader."""
        self._checked(request, Attributes("get", "nodes"))
        return self._context.json(request, self._cluster.leader_address())

    async def peers(self, request: Request) -> Response:
        """GET status/peers."""
        self._checked(request, Attributes("get", "nodes"))
        servers = await self._cluster.servers()
        return self._context.json(request, [server.address for server in servers])

    # -- operator ------------------------------------------------------------------------------------------------------

    async def raft_configuration(self, request: Request) -> Response:
        """GET operator/raft/configuration."""
        self._checked(request, _READ)
        servers = [
            RaftServer(one.id, one.node, one.address, one.is_leader, Voter=one.is_voter)
            for one in await self._cluster.servers()
        ]
        return self._context.json(request, RaftConfiguration(servers))

    async def remove_peer(self, request: Request) -> Response:
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
        found = _find(await self._cluster.servers(), id_=peer_id, address=address)
        if found is None:
            what = f'id "{peer_id}"' if peer_id else f'address "{address}"'
            msg = f"{what} was not found in the Raft configuration"
            raise Rejected(msg)
        await self._cluster.remove_server(found.id)
        return DONE

    async def transfer_leader(self, request: Request) -> Response:
        """POST operator/raft/transfer-leader. Source: Consul 1.16, HTTP API, operator raft."""
        self._checked(request, _CHANGE)
        wanted = request.query.get("id")
        if wanted and _find(await self._cluster.servers(), id_=wanted) is None:
            msg = f'id "{wanted}" was not found in the Raft configuration'
            raise Rejected(msg)
        await self._cluster.transfer_leader(wanted)
        return self._context.json(request, {"Success": True})

    def autopilot(self, request: Request) -> Response:
        """GET operator/autopilot/configuration."""
        self._checked(request, _READ)
        config = autopilot(self._view)
        shown = Autopilot(
            CleanupDeadServers=config.cleanup_dead_servers,
            LastContactThreshold=format_ns(config.last_contact_threshold_ns),
            MaxTrailingLogs=config.max_trailing_logs,
            MinQuorum=config.min_quorum,
            ServerStabilizationTime=format_ns(config.server_stabilization_time_ns),
            RedundancyZoneTag=config.redundancy_zone_tag,
            DisableUpgradeMigration=config.disable_upgrade_migration,
            UpgradeVersionTag=config.upgrade_version_tag,
            CreateIndex=config.create_index,
            ModifyIndex=config.modify_index,
        )
        return self._context.json(request, shown)

    async def configure_autopilot(self, request: Request) -> Response:
        """PUT operator/autopilot/configuration."""
        self._checked(request, _CHANGE)
        wanted = parse_autopilot(request.body)
        at_index: int | None = None
        if "cas" in request.query:
            try:
                at_index = parse_unsigned(request.query.get("cas"))
            except Malformed as error:
                msg = f"Bad request: Error parsing cas value: {error}"
                raise Malformed(msg) from error
        done = await self._context.domain.state.commit(
            lambda view: plan_autopilot(view, wanted, at_index=at_index)
        )
        return self._context.json(request, done)

    async def health(self, request: Request) -> Response:
        """GET operator/autopilot/health."""
        self._checked(request, _READ)
        servers = [self._health(one) for one in await self._cluster.health()]
        voters = [server for server in servers if server.Voter]
        alive = sum(server.Healthy for server in voters)
        tolerance = max(0, alive - (len(voters) // 2 + 1))
        healthy = bool(servers) and all(server.Healthy for server in servers)
        return self._context.json(
            request,
            ClusterHealth(healthy, tolerance, servers),
            status=200 if healthy else 429,
        )

    def _health(self, found: Health) -> ServerHealth:
        server, since_s = found.server, found.since_s
        since = datetime.fromtimestamp(self._context.started_s if since_s is None else since_s, UTC)
        check = self._view.check(server.node, SERF_HEALTH_ID)
        is_alive = check is not None and check.status == PASSING
        return ServerHealth(
            ID=server.id,
            Name=server.node,
            Address=server.address,
            SerfStatus="alive" if is_alive else "failed",
            Version=self._context.settings.version,
            Leader=server.is_leader,
            LastContact=format_ns(
                -1 if found.contact_s is None else round(found.contact_s * 1e6) * 1000
            ),
            LastTerm=found.term,
            LastIndex=found.index,
            Healthy=found.is_healthy and is_alive,
            Voter=server.is_voter,
            StableSince=f"{since:%Y-%m-%dT%H:%M:%SZ}",
        )

    def keyring(self, request: Request) -> Response:
        """Anything on operator/keyring: there is no gossip, so there are no keys."""
        self._checked(request, _READ)
        datacenter = self._context.reader.datacenter
        wan = [f"{node.node}.{datacenter}" for node in agents(self._view, servers=True)]
        wan += [f"{far.node}.{far.datacenter}" for far in self._context.far_servers()]
        lan = [node.node for node in agents(self._view)]
        problems = (*_without_keys("WAN", wan), *_without_keys(f"{datacenter} (LAN)", lan))
        msg = f"{len(problems)} errors occurred:" + "".join(f"\n\t* {one}" for one in problems)
        raise Rejected(msg + "\n\n")

    # -- coordinates ---------------------------------------------------------------------------------------------------

    def datacenters(self, request: Request) -> Response:
        """GET coordinate/datacenters."""
        self._context.admit(request, Attributes("list", "nodes"))
        servers = agents(self._view, servers=True)
        found = [CoordinateObject(node.node, "", _ZERO) for node in servers]
        own = self._context.reader.datacenter
        maps = [DatacenterMap(own, "wan", found)]
        far = self._context.far_servers()
        for name in self._context.reader.datacenters():
            there = [
                CoordinateObject(one.node, "", _coordinate(one.trip_s, axis=len(maps)))
                for one in far
                if one.datacenter == name and one.trip_s is not None
            ]
            if name != own:
                maps.append(DatacenterMap(name, "wan", there))
        return self._context.json(request, maps)

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
