"""A machine's part in a cluster, as the agent wires it: the cluster itself, its port, liveness, the store."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from waypost.access.actor import node_actor
from waypost.access.authn.bootstrap import BootstrapTokens
from waypost.access.authn.records import Accepted
from waypost.access.authn.servers import PATH as AUTHENTICATE_PATH
from waypost.access.authn.servers import RemoteAuthenticator
from waypost.access.gate import Attributes, Gate
from waypost.agent.access import AccessControl
from waypost.agent.awaited import AwaitedEngine
from waypost.agent.config import AgentSettings
from waypost.agent.last_state import LastStateFile
from waypost.agent.posture import Posture
from waypost.agent.supervise import patiently
from waypost.base.clock import Clock
from waypost.base.duration import parse_s
from waypost.base.errors import Malformed, NoLeader, Unavailable, WaypostError
from waypost.cluster.admission import TokenCheck, TokenFacts
from waypost.cluster.cluster import Cluster
from waypost.cluster.external import ExternalCluster
from waypost.cluster.facade import ClusterContacts, ClusterFacade
from waypost.cluster.liveness import Beat, Liveness, LivenessSettings
from waypost.cluster.records import Phase
from waypost.cluster.settings import ClusterPorts, ClusterSettings
from waypost.cluster.sharing import known_protected
from waypost.cluster.space import Space
from waypost.cluster.trust import server_name
from waypost.cluster.wan import MAX_SERVERS, Datacenter, Wan, WanServer
from waypost.domain.cluster import autopilot
from waypost.domain.member import members
from waypost.domain.session import Sessions
from waypost.model.catalog import CRITICAL, SERF_HEALTH_ID
from waypost.state.state import State
from waypost.state.view import View
from waypost.store.engine import Engine
from waypost.store.etcd import EtcdEngine
from waypost.store.remote import RemoteEngine
from waypost.store.remote.servers import Servers, Tour
from waypost.store.remote.transport import HttpTransport
from waypost.surfaces.cluster.forward_routes import ForwardRoutes, Review
from waypost.surfaces.cluster.liveness_routes import LivenessRoutes
from waypost.surfaces.cluster.routes import ClusterRoutes
from waypost.surfaces.cluster.store_routes import StoreRoutes, members_of
from waypost.surfaces.cluster.wan import AnswerDns, Elsewhere, WanApp, WanRoutes
from waypost.surfaces.http.forward import Forwarding
from waypost.surfaces.http.router import App, Router
from waypost.surfaces.http.server import Limits, Server, TcpEndpoint
from waypost.surfaces.http.tls import OpenTls, TlsEndpoint

log = logging.getLogger(__name__)

_CONNECTIONS = 1000
_ASK_S = 4.0
_LEAST_ATTEMPT_S = 0.5
_ATTEMPT_S = 2.0
_LEAST_QUOTA_BYTES = 64 * 2**20


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
        self.was_protected = known_protected(self._told.directory)
        """Whether this machine's cluster was known to ask callers who they are when this agent was made."""
        self._posture: Posture | None = None
        self.engine = AwaitedEngine(self._make_engine)
        self.cluster = self._make_cluster()
        self._remote: RemoteEngine | None = None
        self._context: tuple[int, ssl.SSLContext] | None = None
        self._transport = HttpTransport(
            tls=self._client_context, server_name=server_name(self._told.datacenter)
        )
        self._servers = Servers(
            lambda: [one.contact for one in self.cluster.servers()], clock=clock, rng=rng
        )
        self.tokens = (
            None
            if self._told.is_server
            else RemoteAuthenticator(self._ask_servers(AUTHENTICATE_PATH), clock=clock)
        )
        self.wan = self._make_wan() if self._told.is_server else None
        self._tls: TlsEndpoint | None = None
        self._ports: list[Server] = []
        self._store_routes: StoreRoutes | None = None
        self._space: Space | None = None
        self._entered = asyncio.Event()
        self._stack = AsyncExitStack()

    def attach(self, state: State, sessions: Sessions, gate: Gate) -> None:
        """Connect with the parts of the agent that need the store."""
        self._state, self._gate = state, gate
        self.last_state = LastStateFile(
            self._told.directory / "last-state",
            state.view,
            node_id=self._settings.node_id,
            clock=self._clock,
        )
        settings, cluster = self._settings, self.cluster
        cluster.token_facts = join_tokens(state.view, self._clock)
        if isinstance(cluster, ExternalCluster):
            cluster.is_alive = lambda node: is_alive(state.view, node)
        else:
            cluster.autopilot = lambda: autopilot(state.view)
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
        self.view = ClusterFacade(
            cluster,
            last_contact_s=self.liveness.last_contact_s,
            sign_off=self.liveness.sign_off,
        )

    def follow(self, access: AccessControl) -> Posture:
        """Return what keeps this machine as protected as its cluster, and tell others how it is.

        Keys make a cluster protected. Settings that name users in files of one machine are that machine's alone.
        """
        if access.keys is not None and "AlwaysAllow" not in access.authorizers.names:
            self.cluster.asks_callers()
        self._posture = Posture(
            self._settings,
            self.cluster,
            is_protected=access.is_protected,
            has_keys=access.keys is not None,
            modes=access.authorizers.names,
            clock=self._clock,
        )
        return self._posture

    def _make_cluster(self) -> Cluster | ExternalCluster:
        told, clock, rng = self._told, self._clock, self._rng
        if self._settings.etcd is None:
            return Cluster(told, clock=clock, rng=rng, on_serving_changed=self._serve_renewed)
        return ExternalCluster(
            told, self.engine, clock=clock, rng=rng, on_serving_changed=self._serve_renewed
        )

    def _make_engine(self) -> Engine:
        if not self._told.is_server:
            self._remote = RemoteEngine(
                self._servers, transport=self._transport, clock=self._clock, rng=self._rng
            )
            return self._remote
        etcd = self._settings.etcd
        if etcd is not None:
            return EtcdEngine(
                etcd.servers,
                tls=etcd.tls,
                auth=etcd.auth,
                prefix=etcd.prefix,
                process_id=self._settings.node_id,
                clock=self._clock,
                rng=self._rng,
            )
        assert isinstance(self.cluster, Cluster)
        engine = EtcdEngine(
            self.cluster.endpoints,
            tls=self.cluster.etcd_tls(),
            process_id=self._settings.node_id,
            clock=self._clock,
            rng=self._rng,
            # Sent again, a batch is not applied twice: whoever waited for a dead leader asks the next one soon.
            attempt_timeout_s=max(_LEAST_ATTEMPT_S, 0.75 * self._told.election_ms / 1000),
        )
        self._space = Space(
            engine,
            engine.members,
            quota_bytes=self._told.quota_bytes,
            is_leader=lambda: self.cluster.is_leader,
        )
        return engine

    def _client_context(self) -> ssl.SSLContext:
        """Return how this machine is known to servers; another context once its certificate was renewed."""
        changed_ns = (self._told.directory / "node.crt").stat().st_mtime_ns
        if self._context is None or self._context[0] != changed_ns:
            self._context = (changed_ns, self.cluster.trust.members_only())
        return self._context[1]

    def _ask_servers(self, path: str) -> Callable[[bytes], Awaitable[bytes]]:
        async def ask(message: bytes) -> bytes:
            tour = Tour(self._servers, clock=self._clock, total_s=_ASK_S)
            error: WaypostError = NoLeader("No known Consul servers")
            while (address := await tour.next()) is not None:
                try:
                    async with asyncio.timeout(_ATTEMPT_S):
                        answer = await self._transport.call(address, path, message)
                except (Unavailable, TimeoutError) as failed:
                    error = tour.failed(address, failed)
                else:
                    self._servers.worked(address)
                    return answer
            raise error

        return ask

    def _may_read_kv(self, node: str) -> bool:
        return self._gate.allows(node_actor(node), Attributes("get", path="/v1/kv/"))

    def _make_wan(self) -> Wan | None:
        settings = self._settings
        port = settings.config.ports.serf_wan
        if port <= 0:
            return None
        return Wan(
            datacenter=settings.config.datacenter,
            own=self._own_datacenter,
            join=settings.config.start_join_wan,
            retry_join=settings.config.retry_join_wan,
            default_port=port,
            path=self._told.directory / "wan.json",
            key=self._told.secret() or b"",
            clock=self._clock,
            rng=self._rng,
        )

    def _own_datacenter(self) -> Datacenter | None:
        authority = self.cluster.trust.authority
        if not self.cluster.is_ready or authority is None:
            return None
        # Other servers of this datacenter are taken to use the same port as this one.
        port = self._settings.config.ports.serf_wan
        servers = [
            WanServer(one.node, one.id, one.address, port, one.status, one.server_port)
            for one in members(self._state.view)
            if one.server_port
        ]
        if not servers:
            return None
        servers.sort(key=lambda one: one.status == "left")
        return Datacenter(authority.pem.decode("ascii"), tuple(servers[:MAX_SERVERS]))

    def around(self, app: App) -> App:
        """Return what answers this machine's clients: what belongs elsewhere is passed on."""
        datacenter = self._settings.config.datacenter
        if self._told.is_server:
            return app if self.wan is None else Elsewhere(app, self.wan, datacenter=datacenter)
        return Forwarding(
            app,
            servers=self._servers,
            transport=self._transport,
            node=self._settings.node_name,
            datacenter=datacenter,
            has_kv=lambda: self._remote is not None and self._remote.shows_kv,
            clock=self._clock,
        )

    # -- the cluster port --------------------------------------------------------------------------------------------

    def serve(
        self, app: App, *, review: Review | None, is_protected: bool, answer_dns: AnswerDns
    ) -> None:
        """Say what answers requests that other machines pass on. Before `async with`."""
        routes = [
            *ClusterRoutes(self.cluster).routes(),
            *LivenessRoutes(self.liveness, self.cluster).routes(),
        ]
        self._tls = TlsEndpoint(self._serving())
        address = (self._settings.config.bind_addr or "0.0.0.0").strip("[]")
        if self._told.is_server:
            self._store_routes = StoreRoutes(
                self.engine,
                self._state.view,
                node_of=members_of(self.cluster),
                may_read_kv=self._may_read_kv,
            )
            forwarding = ForwardRoutes(
                app,
                node_of=members_of(self.cluster),
                is_protected=is_protected,
                review=review,
                clock=self._clock,
            )
            routes += [*self._store_routes.routes(), *forwarding.routes()]
        self._ports = [
            self._port(Router(routes), address, self._told.ports.cluster, name="cluster")
        ]
        if self.wan is not None:
            wan = WanApp(WanRoutes(self.wan, answer_dns=answer_dns), app)
            port = self._settings.config.ports.serf_wan
            self._ports.append(self._port(wan, address, port, name="wan"))

    def _port(self, app: App, address: str, port: int, *, name: str) -> Server:
        return Server(
            app,
            [TcpEndpoint(address, port, name=name, tls=self._tls)],
            limits=Limits(connections_per_address=_CONNECTIONS),
            clock=self._clock,
        )

    async def __aenter__(self) -> Self:
        """Read what is on disk. Raises Malformed, Unavailable."""
        await self.cluster.open()
        self._stack.push_async_callback(self.cluster.close)
        self._stack.push_async_callback(self._transport.close)
        return self

    async def listen(self) -> None:
        """Listen on the ports for other machines. Raises Malformed, Unavailable."""
        for server in self._ports:
            await self._stack.enter_async_context(server)
            log.info("port for other machines: %s", ", ".join(server.addresses))

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
        async with asyncio.TaskGroup() as group:
            for server in self._ports:
                group.create_task(server.run(), name="port for other machines")
            if self.wan is not None:
                group.create_task(self.wan.run(), name="wan")
            if self._store_routes is not None:
                group.create_task(self._serve_store(self._store_routes), name="store")
            group.create_task(self.cluster.run(), name="cluster")
            group.create_task(self._keep_space(), name="space")
            group.create_task(self._beat(), name="beats")

    async def resign(self) -> None:
        """Let another server lead, where that is written in the store; before the engine is closed."""
        if isinstance(self.cluster, ExternalCluster):
            await self.cluster.resign()

    async def _keep_space(self) -> None:
        """See to it that the store of the servers has space, once it is open."""
        await self._entered.wait()
        if self._space is not None:
            await self._space.run()

    async def _serve_store(self, routes: StoreRoutes) -> None:
        """Follow the store for the machines without one, once there is one."""
        await self._entered.wait()
        await routes.run()

    async def _beat(self) -> None:
        await self.cluster.ready()
        await self.liveness.run()

    def remember(self) -> bool:
        """Show the state that this machine saw before it was started; return whether it belongs to a cluster already.

        That state is shown until `enter` has loaded another one. Call once, after `async with`.
        """
        if isinstance(self.cluster, Cluster) and self.cluster.phase is not Phase.MEMBER:
            return False
        self.last_state.restore()
        return True

    async def enter(self, engine: Engine, state: State) -> None:
        """Wait until this machine is a member, open the store and fill the view from it."""
        if isinstance(self.cluster, ExternalCluster):
            await patiently(engine.open, what="opening the store")
            await patiently(self.cluster.meet, what="meeting the other servers in the store")
        else:
            await self.cluster.ready()
        if self._posture is not None:
            self._posture.check()
        if not isinstance(self.cluster, ExternalCluster):
            await patiently(engine.open, what="opening the store")
        await patiently(state.load, what="reading the store")
        self._entered.set()


def is_alive(view: View, node: str) -> bool:
    """Tell whether a machine was heard of lately, as the leader has written it down."""
    health = view.check(node, SERF_HEALTH_ID)
    return health is not None and health.status != CRITICAL


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
        quota_bytes=cluster.quota_bytes,
        heartbeat_ms=_milliseconds("cluster.heartbeat", cluster.heartbeat),
        election_ms=_milliseconds("cluster.election_timeout", cluster.election_timeout),
    )
    if cluster.quota_bytes < _LEAST_QUOTA_BYTES:
        msg = f"cluster.quota_bytes: {cluster.quota_bytes} is too little; at least {_LEAST_QUOTA_BYTES}"
        raise Malformed(msg)
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
