"""A machine's part in a cluster, as the agent wires it: the cluster itself, its port, liveness, the store."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from waypost.access.authn.bootstrap import BootstrapTokens
from waypost.access.authn.records import Accepted
from waypost.agent.awaited import AwaitedEngine
from waypost.agent.config import AgentSettings
from waypost.agent.supervise import patiently
from waypost.base.clock import Clock
from waypost.base.duration import parse_s
from waypost.base.errors import Malformed
from waypost.cluster.cluster import Cluster, TokenCheck, TokenFacts
from waypost.cluster.facade import ClusterContacts, ClusterFacade
from waypost.cluster.liveness import Beat, Liveness, LivenessSettings
from waypost.cluster.settings import ClusterPorts, ClusterSettings
from waypost.domain.session import Sessions
from waypost.state.state import State
from waypost.state.view import View
from waypost.store.engine import Engine
from waypost.store.etcd import EtcdEngine
from waypost.surfaces.cluster.liveness_routes import LivenessRoutes
from waypost.surfaces.cluster.routes import ClusterRoutes
from waypost.surfaces.http.router import Router
from waypost.surfaces.http.server import Limits, Server, TcpEndpoint
from waypost.surfaces.http.tls import OpenTls, TlsEndpoint

log = logging.getLogger(__name__)

_CONNECTIONS = 1000


class Member:
    """What makes an agent a member. `attach`, then `async with member`, and `run` until cancelled."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        environment: Mapping[str, str],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Raises Malformed that names the key that is wrong."""
        self._settings = settings
        self._told = cluster_settings(settings, environment=environment)
        self._clock = clock
        self._rng = rng
        self.cluster = Cluster(
            self._told, clock=clock, rng=rng, on_serving_changed=self._serve_renewed
        )
        self.engine = AwaitedEngine(self._make_engine)
        self._tls: TlsEndpoint | None = None
        self._server: Server | None = None
        self._stack = AsyncExitStack()

    def attach(self, state: State, sessions: Sessions) -> None:
        """Connect with the parts of the agent that need the store."""
        settings, cluster = self._settings, self.cluster
        cluster.token_facts = join_tokens(state.view, self._clock)
        config = settings.config
        self.liveness = Liveness(
            state,
            Beat(
                node=settings.node_name,
                id=settings.node_id,
                address=settings.address,
                session=self._rng.getrandbits(63),
                is_server=settings.role == "server",
            ),
            call=cluster.client.call,
            contacts=ClusterContacts(cluster),
            renewals=sessions,
            clock=self._clock,
            settings=LivenessSettings(
                failed_after_s=_seconds("cluster.failure_timeout", config.cluster.failure_timeout),
                reap_after_s=_seconds("reconnect_timeout", config.reconnect_timeout),
            ),
        )
        self.view = ClusterFacade(cluster, last_contact_s=self.liveness.last_contact_s)

    def _make_engine(self) -> Engine:
        return EtcdEngine(
            self.cluster.endpoints,
            tls=self.cluster.etcd_tls(),
            process_id=self._settings.node_id,
            clock=self._clock,
            rng=self._rng,
            attempt_timeout_s=self._told.election_ms / 1000 + 0.5,
        )

    # -- the cluster port --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Read what is on disk and listen on the cluster port. Raises Malformed, Unavailable."""
        await self.cluster.open()
        self._stack.push_async_callback(self.cluster.close)
        try:
            self._tls = TlsEndpoint(self._serving())
            address = self._settings.config.bind_addr or "0.0.0.0"
            self._server = Server(
                Router(
                    [
                        *ClusterRoutes(self.cluster).routes(),
                        *LivenessRoutes(self.liveness, self.cluster).routes(),
                    ]
                ),
                [
                    TcpEndpoint(
                        address.strip("[]"), self._told.ports.cluster, name="cluster", tls=self._tls
                    )
                ],
                limits=Limits(connections_per_address=_CONNECTIONS),
                clock=self._clock,
            )
            await self._stack.enter_async_context(self._server)
        except BaseException:
            await self._stack.aclose()
            raise
        log.info("cluster port: %s", ", ".join(self._server.addresses))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the port and the connections to others."""
        await self._stack.aclose()

    def _serving(self) -> OpenTls:
        files = self.cluster.serving()
        return OpenTls(certificate_file=str(files.certificate_file), key_file=str(files.key_file))

    def _serve_renewed(self) -> None:
        if self._tls is not None and self._tls.is_open:
            self._tls.replace(self._serving())

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Be a member until cancelled."""
        assert self._server is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._server.run(), name="cluster port")
            group.create_task(self.cluster.run(), name="cluster")
            group.create_task(self._beat(), name="beats")

    async def _beat(self) -> None:
        await self.cluster.ready()
        await self.liveness.run()

    async def enter(self, engine: Engine, state: State) -> None:
        """Wait until this machine is a member, open the store and fill the view from it."""
        await self.cluster.ready()
        await patiently(engine.open, what="opening the store")
        await patiently(state.load, what="reading the store")


def join_tokens(view: View, clock: Clock) -> TokenCheck:
    """Return what judges the tokens of machines that join: bootstrap tokens for authentication."""
    tokens = BootstrapTokens(view)

    def check(text: str) -> TokenFacts | None:
        verdict = tokens.authenticate_token(text, audiences=(), now_s=clock.wall())
        if not isinstance(verdict, Accepted):
            log.info("cluster: a machine's token is refused: %s", verdict.detail)
            return None
        identity = verdict.identity
        return TokenFacts(id=identity.user.rpartition(":")[2], groups=identity.groups)

    return check


def cluster_settings(settings: AgentSettings, *, environment: Mapping[str, str]) -> ClusterSettings:
    """Return what the cluster part of an agent is told. Raises Malformed that names the key."""
    config = settings.config
    assert settings.data_dir is not None, "a member keeps its identity on disk"
    cluster = config.cluster
    found = ClusterSettings(
        data_dir=settings.data_dir,
        node=settings.node_name,
        node_id=settings.node_id,
        datacenter=config.datacenter,
        address=settings.address,
        bind="0.0.0.0" if config.bind_addr in ("0.0.0.0", "") else config.bind_addr,
        is_server=settings.role == "server",
        bootstrap_expect=config.bootstrap_expect,
        join=config.start_join,
        retry_join=config.retry_join,
        retry_interval_s=_seconds("retry_interval", config.retry_interval),
        retry_max=config.retry_max,
        ports=ClusterPorts(
            cluster=config.ports.serf_lan, server=config.ports.server, store=config.ports.store
        ),
        encrypt=config.encrypt,
        join_token=cluster.join_token or environment.get("WAYPOST_JOIN_TOKEN", ""),
        ca_pin=cluster.discovery_token_ca_cert_hash,
        open_join=cluster.open_join,
        etcd=cluster.etcd,
        heartbeat_ms=_milliseconds("cluster.heartbeat", cluster.heartbeat),
        election_ms=_milliseconds("cluster.election_timeout", cluster.election_timeout),
    )
    found.secret()
    return found


def _seconds(key: str, text: str) -> float:
    try:
        return parse_s(text)
    except Malformed as error:
        msg = f"{key}: {error}"
        raise Malformed(msg) from error


def _milliseconds(key: str, text: str) -> int:
    number = round(_seconds(key, text) * 1000)
    if number <= 0:
        msg = f"{key}: {text} is too short"
        raise Malformed(msg)
    return number
