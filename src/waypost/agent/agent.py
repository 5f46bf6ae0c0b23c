"""The composition root: builds every part from the settings, runs them, and ends them in order."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec

from waypost import __version__
from waypost.access.actor import Actor, node_actor
from waypost.access.admission import Admission, WebhookClient, service_addresses
from waypost.access.authn import anonymous
from waypost.access.authz.bootstrap import default_policy
from waypost.access.gate import ExposureAuthorizer
from waypost.agent import definitions
from waypost.agent.access import AccessControl, load_pki
from waypost.agent.access_config import AccessConfig
from waypost.agent.balance import BalancerFeed
from waypost.agent.certificates import sign_waiting
from waypost.agent.config import AgentSettings, DockerConfig
from waypost.agent.posture import Posture, access_config, complete
from waypost.agent.supervise import patiently, supervise
from waypost.agent.wiring import GatedCatalog, LocalRegistry
from waypost.base.clock import Clock, SystemClock
from waypost.base.duration import parse_s
from waypost.base.errors import Conflict, Malformed, Unavailable, WaypostError
from waypost.cluster import duties
from waypost.cluster.duties import Duties, Duty
from waypost.cluster.leadership import Leadership
from waypost.cluster.snapshots import Schedule, ScheduleSettings, Snapshots
from waypost.domain.agent import LocalAgent, LocalNode
from waypost.domain.catalog import Catalog
from waypost.domain.cluster import host_port
from waypost.domain.event import Events
from waypost.domain.kv import KV
from waypost.domain.member import depart
from waypost.domain.object import Objects
from waypost.domain.provisional import plan_settle
from waypost.domain.session import Sessions
from waypost.domain.txn import Transactions
from waypost.drivers.checks.runner import CheckRunner, Scripts
from waypost.drivers.docker.api import Docker, Endpoint, endpoint
from waypost.drivers.docker.mapping import HostFacts, MappingSettings, parse_address
from waypost.drivers.docker.registrator import Registrator, TagsTemplate
from waypost.drivers.docker.registrator import Settings as RegistratorSettings
from waypost.drivers.nginx.backends import Feed
from waypost.drivers.nginx.driver import Balancer
from waypost.drivers.nginx.settings import Listen
from waypost.drivers.nginx.settings import Settings as BalancerSettings
from waypost.state.state import State
from waypost.store.open import make_engine
from waypost.surfaces.access.impersonating import Impersonator
from waypost.surfaces.access.routes import AccessRoutes, asked_of
from waypost.surfaces.consul.context import Domain, Network
from waypost.surfaces.consul.reading import Settings as ApiSettings
from waypost.surfaces.consul.routes import ConsulApi
from waypost.surfaces.dns.server import DnsServer
from waypost.surfaces.dns.settings import DnsSettings, SoaSettings
from waypost.surfaces.http.audit import Auditor
from waypost.surfaces.http.guard import Guard
from waypost.surfaces.http.message import Peer
from waypost.surfaces.http.router import App, Route, Router
from waypost.surfaces.http.server import Limits, Server, TcpEndpoint, UnixEndpoint
from waypost.surfaces.kube.api import KubeApi, is_kube
from waypost.surfaces.metrics.routes import MetricsRoutes
from waypost.surfaces.ui.routes import Interface

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from waypost.agent.membership import Member
    from waypost.drivers.render.settings import TemplateSpec

log = logging.getLogger(__name__)


_ALONE_AFTER_S = 5.0
"""A member that has not reached its store after this time starts its own work without it."""
_ENGINE_POLL_S = 2.0
_LEAVE_S = 5.0


_ALONE = frozenset({"node", "checks", "registrator"})
"""Drivers that work for this machine, whatever the rest of the catalog is."""
_ALONE_KNOWING = frozenset({"access control", "balancer", "balancer feed", "templates"})
"""Drivers that need a catalog, be it an old one."""


class Part(msgspec.Struct, frozen=True):
    """One long-running part of the agent."""

    name: str
    run: Callable[[], Any]


class Agent:
    """One agent. `run` once."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self._clock = clock or SystemClock()
        self._rng = rng or random.SystemRandom()
        self._environment = environment or {}
        config = settings.config
        # Without a data directory nothing is kept, but nginx needs a place for its files while it runs.
        self._temporary = None if settings.data_dir else TemporaryDirectory(prefix="waypost-")
        self._folder = settings.data_dir or Path(self._temporary.name if self._temporary else "")
        self.member: Member | None = None
        """This machine's part in a cluster; None where it runs alone."""
        if settings.role == "single":
            location = (
                "memory" if settings.data_dir is None else f"sqlite:{settings.data_dir}/store"
            )
            self.engine = make_engine(location, clock=self._clock)
        else:
            # Whoever runs alone does not pay for the imports.
            from waypost.agent.membership import Member

            self.member = Member(
                settings, environment=self._environment, clock=self._clock, rng=self._rng
            )
            self.engine = self.member.engine
        local = LocalNode(
            node=settings.node_name,
            id=settings.node_id,
            address=settings.address,
            datacenter=config.datacenter,
            meta=config.node_meta,
            server=settings.role != "client",
            server_port=config.ports.server,
        )
        self.state = State(
            self.engine,
            authoritative=self.member is None,
            settle=partial(plan_settle, local=local) if self.member is not None else None,
        )
        self.view = self.state.view
        if self.member is not None:
            complete(settings, now_s=self._clock.wall())
        self.access = AccessControl(
            self.view,
            exposure=ExposureAuthorizer(write_networks=settings.write_networks),
            keys=load_pki(settings.data_dir),
            clock=self._clock,
            rng=self._rng,
            config=self._access_config(settings),
            servers=self.member.tokens if self.member is not None else None,
            external_address=host_port(settings.address, settings.https_port),
        )
        self.posture: Posture | None = None
        if self.member is not None:
            self.posture = self.member.follow(self.access)
        self.gate = self.access.gate
        self.actor = node_actor(settings.node_name)
        self.webhooks = WebhookClient(service_addresses(self.view), rng=self._rng)
        self.admission = Admission(self.view, caller=self.webhooks, rng=self._rng)
        self.catalog = Catalog(
            self.state, self.gate, datacenter=config.datacenter, admission=self.admission
        )
        self.agent = LocalAgent(
            self.state,
            self.gate,
            local=local,
            clock=self._clock,
            admission=self.admission,
            judged=self.member is not None,
        )
        self.sessions = Sessions(
            self.state,
            self.gate,
            clock=self._clock,
            admission=self.admission,
            is_clustered=self.member is not None,
        )
        if self.member is not None:
            self.member.attach(self.state, self.sessions, self.gate)
        self.leadership = Leadership(
            self.state,
            self.member.cluster if self.member is not None else None,
            server_id=settings.node_id,
            node=settings.node_name,
        )
        leadership = self.leadership
        self.snapshots = Snapshots(
            self.state,
            clock=self._clock,
            term=lambda: leadership.term.number if leadership.term is not None else 1,
        )
        self.kv = KV(
            self.state,
            self.gate,
            max_value_bytes=config.limits.kv_max_value_size,
            locked_out=self.sessions.locked_out,
            admission=self.admission,
        )
        self.objects = Objects(
            self.state,
            self.gate,
            clock=self._clock,
            rng=self._rng,
            held=self.access.held,
            admission=self.admission,
        )
        self.objects.sign = self.access.sign
        self.objects.token_data = self.access.token_data
        self.access.when_read = lambda: sign_waiting(self.objects, self.view)
        self.api = self._make_api()
        self.feed = Feed()
        self.balancer = self._make_balancer()
        self.definitions = definitions.parse(config)
        self.templates = template_specs(config.template)
        self.on_reload: Callable[[], None] = lambda: None
        """Called by `agent/reload`: read the configuration again."""
        self.on_leave: Callable[[], None] = lambda: None
        """Called by `agent/leave`: end, as after SIGTERM."""
        self._compare_containers: Callable[[], None] = lambda: None
        self._started: set[str] = set()
        """Names of the drivers that run."""
        self._app: App | None = None
        self._auditor: Auditor | None = None
        self.http: Server | None = None
        self.dns: DnsServer | None = None

    # -- making the parts ------------------------------------------------------------------------------------------------

    def _make_balancer(self) -> Balancer | None:
        config = self.settings.config.balancer
        if config.enabled is False:
            return None
        ports = self.settings.config.ports
        loopback = config.allow_loopback
        if loopback is None:
            # On a node that has no other address its services cannot have one either.
            loopback = self.settings.address.startswith("127.")
        return Balancer(
            settings=BalancerSettings(
                prefix=self._folder / "nginx",
                binary=Path(config.nginx) if config.nginx else None,
                listen=tuple(_listen(text) for text in config.listen),
                domain=config.domain,
                tls_listen=tuple(_listen(text) for text in config.tls_listen),
                tcp_addresses=config.tcp_addresses,
                tcp_ports=tuple(_port_range(text) for text in config.tcp_ports),
                snippets=config.snippets,
                linger_s=parse_s(config.linger),
                reserved_ports=frozenset(
                    port
                    for port in (
                        ports.http,
                        ports.https,
                        ports.dns,
                        ports.server,
                        ports.serf_lan,
                        ports.serf_wan,
                        ports.store,
                    )
                    if port > 0
                ),
                networks=config.networks,
                allow_loopback=loopback,
                leave_running=config.leave_running,
                workers=config.workers,
                access_log=Path(config.access_log) if config.access_log else None,
            ),
            feed=self.feed,
            clock=self._clock,
        )

    def _make_api(self) -> ConsulApi:
        config = self.settings.config
        datacenter = config.datacenter
        domain = Domain(
            state=self.state,
            gate=self.gate,
            catalog=self.catalog,
            agent=self.agent,
            kv=self.kv,
            sessions=self.sessions,
            transactions=Transactions(
                self.state,
                self.gate,
                datacenter=datacenter,
                locked_out=self.sessions.locked_out,
                admission=self.admission,
            ),
            events=Events(
                self.state,
                self.gate,
                node=self.settings.node_name,
                admission=self.admission,
                is_clustered=self.member is not None,
            ),
        )
        self.events = domain.events
        return ConsulApi(
            domain,
            settings=ApiSettings(
                indent=self.settings.dev,
                script_checks=config.enable_script_checks,
                max_value_bytes=config.limits.kv_max_value_size,
                max_txn_bytes=config.limits.txn_max_req_len,
                default_wait_s=self.settings.default_wait_s,
                max_wait_s=self.settings.max_wait_s,
            ),
            network=Network(
                server_port=config.ports.server,
                serf_lan_port=config.ports.serf_lan,
                serf_wan_port=config.ports.serf_wan,
            ),
            identify=self.identify,
            clock=self._clock,
            rng=self._rng,
            confirms=self.member is not None,
            cluster=self.member.view if self.member is not None else None,
            snapshots=self.snapshots,
            elsewhere=self.member.wan if self.member is not None else None,
            reload=self._reload,
            leave=self._leave,
        )

    async def _reload(self) -> None:
        self.on_reload()

    async def _leave(self) -> None:
        self.on_leave()

    def _http_endpoints(self) -> list[TcpEndpoint | UnixEndpoint]:
        port = self.settings.config.ports.http
        endpoints: list[TcpEndpoint | UnixEndpoint] = []
        if port >= 0:
            endpoints += [
                TcpEndpoint(address.strip("[]"), port)
                for address in self.settings.http_addresses
                if not address.startswith("unix://")
            ]
        if self.access.tls is not None and self.settings.https_port >= 0:
            endpoints += [
                TcpEndpoint(
                    address.strip("[]"),
                    self.settings.https_port,
                    name="https",
                    tls=self.access.tls,
                )
                for address in self.settings.https_addresses
            ]
        if self.settings.unix_socket is not None:
            endpoints.append(UnixEndpoint(str(self.settings.unix_socket)))
        return endpoints

    def identify(self, peer: Peer) -> Actor:
        """Return who is at the other end of a connection."""
        return self.access.of_peer(peer).actor or anonymous(peer.address)

    def _routes(self) -> list[Route]:
        config = self.settings.config
        routes = self.api.routes()
        routes += KubeApi(
            self.objects,
            self.access.for_kube(),
            version=__version__,
            clock=self._clock,
            rng=self._rng,
        ).routes()
        routes += AccessRoutes(
            self.access.questions(), identify=self.identify, clock=self._clock
        ).routes()
        routes += MetricsRoutes(
            self.gate, make_collector=self._make_vitals, identify=self.identify
        ).routes()
        if config.ui:
            routes += Interface(
                self.view,
                self.gate,
                node=self.settings.node_name,
                datacenter=config.datacenter,
                version=__version__,
                identify=self.identify,
                cluster=self.member.view if self.member is not None else None,
            ).routes()
        return routes

    def _make_vitals(self) -> Collector:
        # The library is loaded by agents that Prometheus looks at.
        from waypost.agent.vitals import Traffic, Vitals

        def traffic() -> Traffic:
            http = self.http
            return Traffic({}, 0) if http is None else Traffic(http.answers, http.connection_count)

        return Vitals(
            self.view,
            node=self.settings.node_name,
            datacenter=self.settings.config.datacenter,
            version=__version__,
            cluster=self.member.view if self.member is not None else None,
            traffic=traffic,
            balancer=lambda: self.balancer.status if self.balancer is not None else None,
        )

    def _dns_settings(self) -> DnsSettings:
        settings, config = self.settings, self.settings.config
        dns = config.dns_config
        return DnsSettings(
            domain=config.domain,
            alt_domain=config.alt_domain,
            datacenter=config.datacenter,
            recursors=settings.recursors,
            recursor_timeout_s=settings.recursor_timeout_s,
            node_ttl_s=settings.node_ttl_s,
            service_ttl_s=settings.service_ttl_s,
            soa=SoaSettings(
                refresh_s=dns.soa.refresh,
                retry_s=dns.soa.retry,
                expire_s=dns.soa.expire,
                min_ttl_s=dns.soa.min_ttl,
            ),
            only_passing=dns.only_passing,
            enable_truncate=dns.enable_truncate,
            udp_answer_limit=dns.udp_answer_limit,
            a_record_limit=dns.a_record_limit,
            disable_compression=dns.disable_compression,
            enable_additional_node_meta_txt=dns.enable_additional_node_meta_txt,
        )

    def _make_dns(self) -> DnsServer:
        settings = self.settings
        return DnsServer(
            self._dns_settings(),
            GatedCatalog(self.view, self.gate),
            settings.dns_addresses if settings.config.ports.dns >= 0 else (),
            datacenters=self.member.wan if self.member is not None else None,
            clock=self._clock,
            rng=self._rng,
        )

    async def _run_templates(self) -> None:
        """Render the templates of the configuration until cancelled."""
        # The template language is loaded by agents that have templates.
        from waypost.agent.view_source import ViewSource
        from waypost.drivers.render.runner import Runner as TemplateRunner
        from waypost.drivers.render.settings import RunnerSettings

        runner = TemplateRunner(
            RunnerSettings(templates=self.templates),
            source=ViewSource(
                self.view,
                node=self.settings.node_name,
                datacenter=self.settings.config.datacenter,
                clock=self._clock,
            ),
            clock=self._clock,
            env=self._environment,
            rng=self._rng,
            show=_print,
        )
        await runner.run()

    def _drivers(self) -> list[Part]:
        parts = [
            Part("node", self.agent.run),
            Part("checks", self._make_checks().run),
            Part("access control", self.access.run),
        ]
        if self.settings.role != "client":
            parts.append(Part("leader", self._lead))
        if self.member is not None:
            parts.append(Part("events", self.events.run))
        if self.balancer is not None:
            parts.append(Part("balancer", self.balancer.run))
            feeder = BalancerFeed(self.view, self.feed, node=self.settings.node_name)
            parts.append(Part("balancer feed", feeder.run))
        if self.templates:
            parts.append(Part("templates", self._run_templates))
        if self.settings.config.docker.enabled is not False:
            parts.append(Part("registrator", self._run_registrator))
        return parts

    async def _lead(self) -> None:
        """Do what only the leader does, whenever this agent is it."""
        await self.leadership.run(self._duties().run)

    def _duties(self) -> Duties:
        found = [
            duties.sessions(self.sessions),
            self._compaction(),
            duties.watch_restores(self.state, clock=self._clock),
        ]
        if self.member is not None:
            found += [
                duties.liveness(self.member.liveness),
                duties.events(self.state, clock=self._clock),
                duties.reconcile(self._ensure_objects),
            ]
        every_s = parse_s(self.settings.config.cluster.snapshot_interval)
        if every_s > 0 and self.settings.data_dir is not None:
            schedule = Schedule(
                self.snapshots,
                ScheduleSettings(
                    folder=self.settings.data_dir / "snapshots",
                    every_s=every_s,
                    keep=self.settings.config.cluster.snapshot_keep,
                ),
                clock=self._clock,
            )
            found.append(duties.snapshots(schedule))
        return Duties(tuple(found), clock=self._clock, rng=self._rng)

    def _compaction(self) -> Duty:
        etcd = self.settings.etcd
        if etcd is None:
            return duties.compaction(self.engine)
        return duties.periodic_compaction(self.engine, every_s=etcd.compaction_s)

    def _make_checks(self) -> CheckRunner:
        config = self.settings.config
        return CheckRunner(
            self.agent,
            self.view,
            actor=self.actor,
            clock=self._clock,
            rng=self._rng,
            scripts=Scripts(
                everywhere=config.enable_script_checks, files=config.enable_local_script_checks
            ),
        )

    async def _run_registrator(self) -> None:
        """Wait for an engine unless told that there is one, then follow it."""
        config = self.settings.config.docker
        at = endpoint(self._environment, host=config.host)
        if config.enabled is None and not _is_there(at):
            log.info(
                "no Docker engine at %s; containers are registered as soon as there is one", at
            )
            while not _is_there(at):
                await asyncio.sleep(_ENGINE_POLL_S)
                at = endpoint(self._environment, host=config.host)
        registrator = self._make_registrator(config)
        self._compare_containers = registrator.poke
        if self.state.provisional is not None:
            self.state.provisional.when_settled = registrator.poke
        await registrator.run()

    def _make_registrator(self, config: DockerConfig) -> Registrator:
        at = endpoint(self._environment, host=config.host)
        return Registrator(
            Docker(at),
            LocalRegistry(self.agent, self.view, actor=self.actor),
            facts=HostFacts(
                node=self.settings.node_name,
                hostname=config.hostname or socket.gethostname(),
                ip=self.settings.address,
            ),
            settings=RegistratorSettings(
                mapping=MappingSettings(
                    internal=config.internal,
                    explicit=config.explicit,
                    ip=parse_address(config.ip) if config.ip else "",
                    network=config.network,
                    suffix=config.suffix,
                    name_source=config.name_source,
                    ip_label=config.use_ip_from_label,
                    wait_healthy=config.wait_for_healthy,
                ),
                resync_s=self.settings.resync_s,
                deregister=config.deregister,
            ),
            tags=_tags(config.tags),
            clock=self._clock,
            rng=self._rng,
        )

    # -- life --------------------------------------------------------------------------------------------------------------

    async def run(self, *, ready: Callable[[], None], reloads: asyncio.Event) -> None:
        """Serve until cancelled; call `ready` once everything answers. `reloads` asks for the definitions again.

        Raises Unavailable with the reason when it cannot start.
        """
        async with AsyncExitStack() as stack:
            if self._temporary is not None:
                stack.callback(self._temporary.cleanup)
            self.access.open()
            stack.push_async_callback(self.access.close)
            stack.push_async_callback(self.webhooks.close)
            if self.member is not None:
                await self._run_member(self.member, ready=ready, reloads=reloads)
                return
            await self.engine.open()
            stack.push_async_callback(self.engine.close)
            await self.state.load()
            async with asyncio.TaskGroup() as core:
                watching = core.create_task(self.state.run(), name="state")
                try:
                    await self._prepare()
                    await self._serve(ready=ready, reloads=reloads)
                finally:
                    watching.cancel()

    async def _run_member(
        self, member: Member, *, ready: Callable[[], None], reloads: asyncio.Event
    ) -> None:
        """Serve while the cluster is still to be found: what needs a leader is refused until there is one."""
        async with member, asyncio.TaskGroup() as core:
            member.serve(
                self._application(),
                review=self.access.review if self.access.is_protected else None,
                is_protected=self.access.is_protected,
                answer_dns=self._answer_dns,
            )
            await member.listen()
            part = core.create_task(member.run(), name="cluster")
            if self.posture is not None:
                core.create_task(self.posture.run(), name="posture")
            try:
                await self._serve(ready=ready, reloads=reloads)
            finally:
                await member.resign()
                # Writes that were accepted are finished before the store of this machine is stopped.
                await self.engine.close()
                part.cancel()

    async def sign_off(self, *, interrupted: bool) -> None:
        """Leave the cluster before ending, if that is what this signal means for this machine.

        As in Consul: clients leave on SIGTERM and SIGINT, servers on neither, unless the settings say otherwise.
        """
        config = self.settings.config
        is_client = self.settings.role == "client"
        leaves = config.leave_on_terminate
        if interrupted:
            skips = config.skip_leave_on_interrupt
            leaves = None if skips is None else not skips
        if self.member is None or not (is_client if leaves is None else leaves):
            return
        if self.agent.is_leaving or not self.member.cluster.is_ready:
            return
        try:
            async with asyncio.timeout(_LEAVE_S):
                await depart(self.state, self.agent, self.member.view)
        except (WaypostError, TimeoutError) as error:
            log.warning("this machine ends without having left the cluster: %s", error)

    def take_over(self, settings: AgentSettings) -> None:
        """Take over what may change while the agent runs: definitions, DNS settings, and every file of access control.

        Raises Malformed or Unavailable with the file that is wrong, changing nothing.
        """
        found = definitions.parse(settings.config)
        access = self.access.read_again(self._access_config(settings), data_dir=settings.data_dir)
        before, self.settings = self.settings, settings
        try:
            if self.dns is not None:
                self.dns.configure(self._dns_settings())
        except Malformed:
            self.settings = before
            raise
        self.definitions = found
        self.access.take_over(access)

    def _access_config(self, settings: AgentSettings) -> AccessConfig:
        is_protected = self.member is not None and self.member.was_protected
        return access_config(settings.config.access, is_protected=is_protected)

    def _application(self) -> App:
        """Return what answers HTTP on every port: the same for this machine's clients and for those of others."""
        if self._app is None:
            self._auditor = self.access.auditor(asked_of=asked_of)
            self._app = Guard(
                Router(self._routes(), blocked=self.settings.config.http_config.block_endpoints),
                self.access.authenticate,
                auditor=self._auditor,
                resolve=self.access.authorizers.resolve if self.access.asks_others else None,
                impersonate=Impersonator(self.access.authorizers, sees_to_it=is_kube).become,
            )
        return self._app

    async def _answer_dns(self, query: bytes, peer: str, tcp: bool) -> bytes | None:  # noqa: FBT001
        if self.dns is None:
            msg = "DNS does not answer yet"
            raise Unavailable(msg)
        return await self.dns.answer(query, peer, tcp)

    async def _prepare(self) -> None:
        """Make the store hold what every agent needs there."""
        try:
            await self.agent.ensure_self()
        except Conflict as error:
            # Its part of the agent tries again until the other machine is gone or called otherwise.
            log.error("this machine is not in the catalog: %s", error)
        if self.member is None:
            await self._ensure_objects()

    async def _enter(self, member: Member, group: asyncio.TaskGroup) -> None:
        """Wait for the cluster, then follow its store."""
        await member.enter(self.engine, self.state)
        group.create_task(self.state.run(), name="state")
        group.create_task(member.last_state.run(), name="last state")
        await patiently(self._prepare, what="preparing the store")
        log.info("this %s is a member of the cluster", self.settings.role)

    async def _serve(self, *, ready: Callable[[], None], reloads: asyncio.Event) -> None:
        config = self.settings.config
        for warning in self.access.warnings(
            http_addresses=self.settings.http_addresses,
            ports=(config.ports.http, self.settings.https_port),
        ):
            log.warning("%s", warning)
        app = self._application()
        self.http = Server(
            app if self.member is None else self.member.around(app),
            self._http_endpoints(),
            fast=self.access.fast(self.api.kept, self._auditor),
            limits=Limits(connections_per_address=config.limits.http_max_conns_per_client),
            headers=tuple(config.http_config.response_headers.items()),
            clock=self._clock,
        )
        self.dns = self._make_dns()
        knows = self.member is not None and self.member.remember()
        async with self.http, self.dns, asyncio.TaskGroup() as group:
            group.create_task(self.http.run(), name="http")
            group.create_task(self.dns.run(), name="dns")
            if self.member is not None:
                alone = group.create_task(self._go_alone(group), name="alone") if knows else None
                await self._enter(self.member, group)
                if alone is not None:
                    alone.cancel()
            self._start(group, self._drivers())
            await self._apply_definitions()

            def register_again() -> None:
                self._compare_containers()
                reloads.set()

            self.agent.when_forgotten = register_again
            ready()
            while True:
                await reloads.wait()
                reloads.clear()
                await self._apply_definitions()

    def _start(self, group: asyncio.TaskGroup, parts: Iterable[Part]) -> None:
        """Start those drivers that do not run yet."""
        for part in parts:
            if part.name in self._started:
                continue
            self._started.add(part.name)
            group.create_task(
                supervise(part.name, part.run, clock=self._clock, rng=self._rng), name=part.name
            )

    async def _go_alone(self, group: asyncio.TaskGroup) -> None:
        """When the store stays away, begin this machine's own work on the state of before the restart.

        Without such a state nothing is rendered and balanced: what nginx has and what was rendered before is better than
        a catalog of one machine.
        """
        await asyncio.sleep(_ALONE_AFTER_S)
        wanted = _ALONE | _ALONE_KNOWING if self.view.revision else _ALONE
        log.warning(
            "the store is out of reach: this machine goes on with its own services and checks%s",
            "" if self.view.revision else ", which is all it knows of",
        )
        self._start(group, [part for part in self._drivers() if part.name in wanted])
        await self._apply_definitions()

    async def _ensure_objects(self) -> None:
        """Create what every cluster has: namespaces with their accounts, and with access control the default policy."""
        await self.objects.ensure_namespaces()
        if self.access.is_protected:
            await self.objects.reconcile(default_policy())

    async def _apply_definitions(self) -> None:
        try:
            await definitions.apply(
                self.agent, self.view, actor=self.actor, definitions=self.definitions
            )
        except WaypostError as error:
            log.error("definitions of the configuration: %s", error)


def template_specs(stanzas: Iterable[dict[str, Any]]) -> tuple[TemplateSpec, ...]:
    """Return the templates of the configuration; a stanza of the one key `spec` is a flag's text. Raises Malformed."""
    specs: list[TemplateSpec] = []
    for n, stanza in enumerate(stanzas):
        from waypost.drivers.render.settings import TemplateSpec

        place = f"template[{n}]"
        if set(stanza) == {"spec"}:
            specs.append(TemplateSpec.parse(stanza["spec"]))
            continue
        spec = TemplateSpec.of(stanza, place=place)
        if bool(spec.source) == bool(spec.contents):
            msg = f"{place}: exactly one of source and contents must be given"
            raise Malformed(msg)
        specs.append(spec)
    return tuple(specs)


def _tags(text: str) -> TagsTemplate | str:
    if "{{" not in text:
        return text
    from waypost.drivers.docker.tags import compile_tags

    return compile_tags(text)


def _print(text: bytes) -> None:
    sys.stdout.buffer.write(text)


def _port_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        low, high = 0, 0
    if not 0 < low <= high <= 65535:
        msg = f"balancer.tcp_ports: {text!r} is not a port or a range such as 9000-9999"
        raise Malformed(msg)
    return low, high


def _is_there(at: Endpoint) -> bool:
    return not at.socket or Path(at.socket).exists()


def _listen(text: str) -> Listen:
    address, _, port = text.rpartition(":")
    address = address.strip("[]") or "0.0.0.0"
    try:
        ipaddress.ip_address(address)
        number = int(port)
    except ValueError as error:
        msg = f"balancer listen {text!r}: expected ADDRESS:PORT"
        raise Malformed(msg) from error
    return Listen(address=address, port=number)
