"""The whole table of the Consul API on one page, and what it is made of.

A row is a path (ending in `/` when a name follows), and for each method its handler. Access: handlers of the catalog,
health, kv, session, txn and event families and of agent/service and agent/check go through verbs of the domain, which
ask the gate with the attributes in the right column; the others ask it themselves.

Source: Consul HTTP API; the methods and their order in `Allow` are those of Consul 1.8.7.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final

from waypost.access.actor import Actor
from waypost.base.clock import Clock
from waypost.base.errors import Unauthenticated
from waypost.cluster.snapshots import Snapshots as StoreSnapshots
from waypost.domain.cluster import ClusterView, OtherDatacenters, SingleServer
from waypost.surfaces.consul import kv, txn
from waypost.surfaces.consul.agent import AgentRoutes
from waypost.surfaces.consul.catalog import CatalogRoutes
from waypost.surfaces.consul.cluster import ClusterRoutes
from waypost.surfaces.consul.context import Context, Domain, Network, Snapshots
from waypost.surfaces.consul.event import EventRoutes
from waypost.surfaces.consul.health import HealthRoutes
from waypost.surfaces.consul.internal_ui import InternalUIRoutes
from waypost.surfaces.consul.kv import KVRoutes
from waypost.surfaces.consul.member import MemberRoutes
from waypost.surfaces.consul.reading import Reader, Settings
from waypost.surfaces.consul.session import SessionRoutes
from waypost.surfaces.consul.snapshot import MAX_SNAPSHOT_BYTES, SnapshotRoutes
from waypost.surfaces.consul.txn import TxnRoutes
from waypost.surfaces.http.message import (
    Handler,
    Head,
    Peer,
    Rendered,
    Request,
    Response,
    text_response,
)
from waypost.surfaces.http.router import BodyLimit, Route

Row = tuple[str, dict[str, Handler]]

ACL_PATHS: Final = {
    "acl/auth-method": ("PUT",),
    "acl/auth-method/": ("GET", "PUT", "DELETE"),
    "acl/auth-methods": ("GET",),
    "acl/binding-rule": ("PUT",),
    "acl/binding-rule/": ("GET", "PUT", "DELETE"),
    "acl/binding-rules": ("GET",),
    "acl/bootstrap": ("PUT",),
    "acl/clone/": ("PUT",),
    "acl/create": ("PUT",),
    "acl/destroy/": ("PUT",),
    "acl/info/": ("GET",),
    "acl/list": ("GET",),
    "acl/login": ("POST",),
    "acl/logout": ("POST",),
    "acl/policies": ("GET",),
    "acl/policy": ("PUT",),
    "acl/policy/": ("GET", "PUT", "DELETE"),
    "acl/replication": ("GET",),
    "acl/role": ("PUT",),
    "acl/role/": ("GET", "PUT", "DELETE"),
    "acl/roles": ("GET",),
    "acl/rules/translate": ("POST",),
    "acl/rules/translate/": ("GET",),
    "acl/token": ("PUT",),
    "acl/token/": ("GET", "PUT", "DELETE"),
    "acl/token/self": ("GET",),
    "acl/tokens": ("GET",),
    "acl/update": ("PUT",),
    "agent/token/": ("PUT",),
}
"""Consul's own access control, which is off here: access is decided by the gate."""

LATER: Final = {
    "agent/connect/authorize": (("POST",), "the service mesh"),
    "agent/connect/ca/leaf/": (("GET",), "the service mesh"),
    "agent/connect/ca/roots": (("GET",), "the service mesh"),
    "config": (("PUT",), "config entries"),
    "config/": (("GET", "DELETE"), "config entries"),
    "connect/ca/configuration": (("GET", "PUT"), "the service mesh"),
    "connect/ca/roots": (("GET",), "the service mesh"),
    "connect/intentions": (("GET", "POST"), "intentions"),
    "connect/intentions/": (("GET", "PUT", "DELETE"), "intentions"),
    "connect/intentions/check": (("GET",), "intentions"),
    "connect/intentions/match": (("GET",), "intentions"),
    "query": (("GET", "POST"), "prepared queries"),
    "query/": (("GET", "PUT", "DELETE"), "prepared queries"),
}
"""What Consul has and this agent does not have yet: methods, and its name in the answer."""


class ConsulApi:
    """The Consul API as routes for a router, and the fast path for a server."""

    def __init__(
        self,
        domain: Domain,
        *,
        settings: Settings,
        network: Network,
        identify: Callable[[Peer], Actor],
        clock: Clock,
        rng: random.Random,
        confirms: bool = False,
        cluster: ClusterView | None = None,
        snapshots: Snapshots | None = None,
        elsewhere: OtherDatacenters | None = None,
        reload: Callable[[], Awaitable[None]] | None = None,
        leave: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`confirms`: other agents write into the same store, so reads wait until the view has caught up.

        `cluster` is the group of servers; None for an agent with a store of its own, which can also make snapshots of
        it; in a cluster servers are given `snapshots`, and what they know of the datacenters `elsewhere`.
        """
        if cluster is None:
            snapshots = snapshots or StoreSnapshots(domain.state, clock=clock)
        group = cluster or SingleServer(
            domain.state.view, domain.agent.local, server_port=network.server_port
        )
        reader = Reader(
            domain.state,
            domain.gate,
            settings=settings,
            datacenter=domain.catalog.datacenter,
            clock=clock,
            rng=rng,
            identify=identify,
            confirms=confirms,
            knows_leader=lambda: group.knows_leader,
            last_contact_s=group.last_contact_s,
            other_datacenters=tuple if elsewhere is None else elsewhere.names,
        )
        self._context = Context(
            domain,
            reader,
            network=network,
            identify=identify,
            cluster=group,
            is_clustered=cluster is not None,
            snapshots=snapshots,
            elsewhere=elsewhere,
            reload=reload,
            leave=leave,
            started_s=clock.wall(),
        )
        self._reader = reader

    def fast(self, head: Head, peer: Peer) -> Rendered | None:
        """Return a kept answer, if there is one for exactly this; see `Server(fast=…)`."""
        return self._reader.fast(head, peer)

    def kept(self, head: Head, actor: Actor) -> Rendered | None:
        """Return a kept answer to a request of which nothing counts but its target and who sends it."""
        return self._reader.kept(head, actor)

    def routes(self) -> list[Route]:
        """Return every route under /v1/."""
        rows = [*self._data_rows(), *self._agent_rows(), *self._cluster_rows(), *_other_rows()]
        settings = self._context.settings
        limits = {
            "kv/": BodyLimit(settings.max_value_bytes, kv.too_large),
            "txn": BodyLimit(settings.max_txn_bytes, txn.too_large),
            "snapshot": BodyLimit(MAX_SNAPSHOT_BYTES),
        }
        return [
            Route(
                "/v1/" + path,
                handlers,
                is_prefix=path.endswith("/"),
                limit=limits.get(path, BodyLimit()),
            )
            for path, handlers in rows
        ]

    def _data_rows(self) -> list[Row]:
        catalog, health = CatalogRoutes(self._context), HealthRoutes(self._context)
        keys, sessions = KVRoutes(self._context), SessionRoutes(self._context)
        events, transactions = EventRoutes(self._context), TxnRoutes(self._context)
        ui = InternalUIRoutes(self._context)
        return [
            # path, handler of each method                                    what the gate is asked
            ("catalog/register", {"PUT": catalog.register}),  # update services|checks|nodes
            ("catalog/deregister", {"PUT": catalog.deregister}),  # delete services|checks|nodes
            ("catalog/datacenters", {"GET": catalog.datacenters}),  # list nodes
            ("catalog/nodes", {"GET": catalog.nodes}),  # list nodes
            ("catalog/services", {"GET": catalog.services}),  # list services
            ("catalog/service/", {"GET": catalog.service}),  # get services NAME
            ("catalog/connect/", {"GET": catalog.connect}),  # list services
            ("catalog/node/", {"GET": catalog.node}),  # get nodes NAME, list services
            ("catalog/node-services/", {"GET": catalog.node_services}),  # the same
            ("catalog/gateway-services/", {"GET": catalog.gateway_services}),  # list services
            ("health/node/", {"GET": health.node}),  # list checks
            ("health/checks/", {"GET": health.checks}),  # list checks
            ("health/state/", {"GET": health.state}),  # list checks
            ("health/service/", {"GET": health.service}),  # get services NAME
            ("health/connect/", {"GET": health.connect}),  # list services
            ("health/ingress/", {"GET": health.ingress}),  # list services
            ("kv/", {"GET": keys.get, "PUT": keys.put, "DELETE": keys.delete}),  # path /v1/kv/KEY
            ("session/create", {"PUT": sessions.create}),  # create sessions
            ("session/destroy/", {"PUT": sessions.destroy}),  # delete sessions
            ("session/renew/", {"PUT": sessions.renew}),  # update sessions
            ("session/info/", {"GET": sessions.info}),  # get sessions
            ("session/node/", {"GET": sessions.node}),  # list sessions
            ("session/list", {"GET": sessions.list}),  # list sessions
            ("txn", {"PUT": transactions.apply}),  # each operation as it would be asked alone
            ("event/fire/", {"PUT": events.fire}),  # create events NAME
            ("event/list", {"GET": events.list}),  # list events
            ("internal/ui/nodes", {"GET": ui.nodes}),  # list nodes, services, checks
            ("internal/ui/node/", {"GET": ui.node}),  # get nodes NAME, list services, checks
            ("internal/ui/services", {"GET": ui.services}),  # list services
        ]

    def _agent_rows(self) -> list[Row]:
        agent, member = AgentRoutes(self._context), MemberRoutes(self._context)
        return [
            ("agent/service/register", {"PUT": agent.register_service}),  # update services NAME
            ("agent/service/deregister/", {"PUT": agent.deregister_service}),  # delete services
            ("agent/service/maintenance/", {"PUT": agent.maintain_service}),  # update services ID
            ("agent/services", {"GET": agent.services}),  # list services
            ("agent/service/", {"GET": agent.service}),  # list services
            ("agent/check/register", {"PUT": agent.register_check}),  # update checks ID
            ("agent/check/deregister/", {"PUT": agent.deregister_check}),  # delete checks ID
            ("agent/check/pass/", {"PUT": agent.pass_check}),  # update checks ID
            ("agent/check/warn/", {"PUT": agent.warn_check}),  # update checks ID
            ("agent/check/fail/", {"PUT": agent.fail_check}),  # update checks ID
            ("agent/check/update/", {"PUT": agent.update_check}),  # update checks ID
            ("agent/checks", {"GET": agent.checks}),  # list checks
            ("agent/maintenance", {"PUT": agent.maintain_node}),  # update nodes NAME
            ("agent/health/service/id/", {"GET": agent.health_of_id}),  # list services, checks
            ("agent/health/service/name/", {"GET": agent.health_of_name}),  # the same
            ("agent/self", {"GET": member.self}),  # get agents
            ("agent/members", {"GET": member.members}),  # get agents
            ("agent/host", {"GET": member.host}),  # get agents
            ("agent/version", {"GET": member.version}),  # get agents
            ("agent/metrics", {"GET": member.metrics}),  # get agents
            ("agent/monitor", {"GET": member.monitor}),  # get agents
            ("agent/reload", {"PUT": member.reload}),  # update agents
            ("agent/leave", {"PUT": member.leave}),  # update agents
            ("agent/join/", {"PUT": member.join}),  # update agents
            ("agent/force-leave/", {"PUT": member.force_leave}),  # update agents
        ]

    def _cluster_rows(self) -> list[Row]:
        cluster = ClusterRoutes(self._context)
        keyring, snapshot = cluster.keyring, SnapshotRoutes(self._context)
        return [
            ("status/leader", {"GET": cluster.leader}),  # get nodes
            ("status/peers", {"GET": cluster.peers}),  # get nodes
            ("operator/raft/configuration", {"GET": cluster.raft_configuration}),  # get operators
            ("operator/raft/peer", {"DELETE": cluster.remove_peer}),  # update operators
            ("operator/raft/transfer-leader", {"POST": cluster.transfer_leader}),  # the same
            (
                "operator/autopilot/configuration",
                {"GET": cluster.autopilot, "PUT": cluster.configure_autopilot},
            ),  # get operators, update operators
            ("operator/autopilot/health", {"GET": cluster.health}),  # get operators
            (
                "operator/keyring",
                {"GET": keyring, "POST": keyring, "PUT": keyring, "DELETE": keyring},
            ),  # get operators
            (
                "snapshot",
                {"GET": snapshot.save, "PUT": snapshot.restore},
            ),  # get, update snapshots.store.waypost.io
            ("coordinate/datacenters", {"GET": cluster.datacenters}),  # list nodes
            ("coordinate/nodes", {"GET": cluster.coordinates}),  # list nodes
            ("coordinate/node/", {"GET": cluster.coordinate}),  # get nodes NAME
            ("coordinate/update", {"PUT": cluster.update_coordinate}),  # update nodes
        ]


def _other_rows() -> list[Row]:
    rows: list[Row] = [
        (path, dict.fromkeys(methods, _no_acl)) for path, methods in ACL_PATHS.items()
    ]
    rows += [
        (path, dict.fromkeys(methods, _missing(what))) for path, (methods, what) in LATER.items()
    ]
    return rows


def _no_acl(_request: Request) -> Response:
    msg = "ACL support disabled"
    raise Unauthenticated(msg)


def _missing(what: str) -> Handler:
    def handler(_request: Request) -> Response:
        return text_response(501, f"This agent does not support {what} yet")

    return handler
