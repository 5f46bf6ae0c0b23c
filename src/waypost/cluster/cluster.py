"""One machine's part in its cluster.

    cluster = Cluster(settings, token_facts=check)
    await cluster.open()                        # reads the disk; asks nobody
    async with asyncio.TaskGroup() as group:
        group.create_task(cluster.run())        # meets, forms, joins, keeps etcd running, until cancelled
        await cluster.ready()                   # now the engine can be opened on cluster.endpoints()
    await cluster.close()

`Cluster` puts the parts together and is all that others see of them. Each part uses those above it in this list only:

    Trust, PeerClient     keys and certificates; calls to other machines
    Standing              this machine's state on disk, and what it says about itself
    Peers, LocalStore     whom it has heard of; its etcd
    Directory             who the servers are, from all of these
    Membership, Leading   changes of the store's members, made by the leader, asked for anywhere
    Copies, Greeting      two machines with one identity; hello
    Certificates          taken into use, renewed
    Forming, Joining      how this machine gets into a cluster; Admission: how others get into it
    Sharing               access control reaches the whole cluster
    ServerLife            the one task that makes every transition of a server, by the rules of `protocol`; ClientLife
    Answers               what others ask, handed to the part that answers
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from waypost.base.clock import Clock, SystemClock
from waypost.base.errors import Unavailable, WaypostError
from waypost.cluster.admission import Admission, TokenCheck
from waypost.cluster.answers import Answers, Reply
from waypost.cluster.certificates import Certificates
from waypost.cluster.copies import Copies
from waypost.cluster.directory import Directory
from waypost.cluster.forming import Forming
from waypost.cluster.greeting import Greeting, InVain
from waypost.cluster.joining import Joining
from waypost.cluster.leading import Leading
from waypost.cluster.life import ClientLife, ServerLife, at_once
from waypost.cluster.local_store import LocalStore
from waypost.cluster.membership import Membership
from waypost.cluster.messages import AboutMember, JoinAnswer, MemberHealth, Path, Renew
from waypost.cluster.peers import Peers, contact_of
from waypost.cluster.reconcile import Pace
from waypost.cluster.records import Phase, RaftMember, ServerInfo
from waypost.cluster.report import Report
from waypost.cluster.settings import ClusterSettings, join_host, split_address
from waypost.cluster.sharing import Sharing
from waypost.cluster.standing import Standing
from waypost.cluster.transport import PeerClient, import_http_client
from waypost.cluster.trust import Caller, ServingFiles, Trust
from waypost.cluster.turns import Turns
from waypost.domain.cluster import Autopilot
from waypost.store.etcd.tls import EtcdTls

log = logging.getLogger(__name__)

_GREET_TIMEOUT_S = 2.0


class Cluster:
    """One machine's part in its cluster; see the module's text. For one event loop.

    `token_facts` judges the tokens of those who join; without it no token is good. `on_serving_changed` is called when
    the files of `serving()` have another content.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        token_facts: TokenCheck | None = None,
        on_serving_changed: Callable[[], None] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock = clock or SystemClock()
        rng = rng or random.SystemRandom()
        secret = settings.secret()
        self.trust = Trust(settings, clock=clock)
        self.client = PeerClient(self.trust, datacenter=settings.datacenter, secret=secret)
        self.report = Report(clock=clock)
        self._ready = asyncio.Event()
        self._turns = Turns()
        self.peers = Peers(
            own_id=settings.node_id,
            own_contact=join_host(settings.address, settings.ports.cluster),
            failed_after_s=settings.failed_after_s,
        )
        self.standing = Standing(
            settings, trust=self.trust, clock=clock, rng=rng, on_news=self._hurry
        )
        self.store = LocalStore(settings, trust=self.trust, clock=clock, rng=rng)
        self.autopilot: Callable[[], Autopilot] = Autopilot
        """What the operator decided about the membership, as of now."""
        self._directory = Directory(self.standing, self.peers, self.store, clock=clock, rng=rng)
        self._membership = Membership(
            self.store,
            self.peers,
            own_id=settings.node_id,
            pace=_pace(settings),
            policy=lambda: self.autopilot(),  # noqa: PLW0108 - it is set later
            on_list=self._directory.listed,
            clock=clock,
        )
        self._leading = Leading(
            self._directory, self.store, self._membership, self.client, clock=clock
        )
        copies = Copies(self.standing, self._directory, self.peers, self.report, clock=clock)
        self._greeting = Greeting(
            self.standing,
            self._directory,
            self.peers,
            copies,
            self.client,
            self.report,
            clock=clock,
            roster=self._membership.roster,
            is_ready=self._ready.is_set,
            is_store_running=lambda: self.store.is_running,
            on_news=self._turns.wake,
        )
        self._certificates = Certificates(
            settings,
            trust=self.trust,
            client=self.client,
            store=self.store,
            clock=clock,
            ask_servers=self._ask_renewal,
        )
        self._certificates.on_serving_changed = on_serving_changed
        forming = Forming(
            self.standing,
            self._directory,
            self.peers,
            self.client,
            self._certificates,
            self._turns,
            clock=clock,
            rng=rng,
            has_data=lambda: self.store.has_data,
            is_able=lambda: copies.may_go_on,
        )
        joining = Joining(
            self.standing,
            self._directory,
            self.peers,
            self.client,
            self._certificates,
            self._greeting,
            self.report,
            clock=clock,
            rng=rng,
        )
        self._admission = Admission(
            self.standing,
            self._directory,
            self.store,
            self._membership,
            clock=clock,
            token_facts=token_facts,
        )
        self._server = ServerLife(
            self.standing,
            self._directory,
            self.peers,
            self.store,
            copies,
            self._turns,
            self.report,
            forming,
            joining,
            self._greeting,
            certificates=self._certificates,
            clock=clock,
            on_ready=self._ready.set,
        )
        self._client = ClientLife(
            self.standing,
            self._directory,
            self.client,
            self._turns,
            self.report,
            joining,
            clock=clock,
            on_ready=self._ready.set,
        )
        self._sharing = Sharing(
            self.standing,
            self.peers,
            self.client,
            self.report,
            clock=clock,
            in_turn=self._turns.take if settings.is_server else at_once,
        )
        self._answers = Answers(
            self._greeting,
            forming,
            self._admission,
            self._leading,
            self._sharing,
            trust=self.trust,
            secret=secret,
        )

    def _hurry(self) -> None:
        self.peers.hurry(now_s=self._clock.now())

    async def _ask_renewal(self, message: Renew) -> JoinAnswer:
        return await self._leading.ask_any(Path.RENEW, message, JoinAnswer)

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read what is on disk and make what is missing. Never waits for others.

        Raises Malformed (files that cannot be used, no etcd), Unavailable (cannot be written).
        """
        settings, standing = self._settings, self.standing
        import_http_client()
        standing.open()
        if settings.is_server:
            if self.trust.refresh(now_s=self._clock.wall()):
                log.info("certificates of this server were made anew")
            await self.store.open()
        self.peers.give(dict.fromkeys(self._contacts((*settings.join, *settings.retry_join))))
        self.peers.learn(standing.state.servers, now_s=self._clock.now())
        if standing.is_moved:
            # Either the machine moved, or its disk was copied: then the other one answers there.
            self.peers.give([standing.state.contact])
        if settings.open_join:
            log.warning("cluster.open_join: any machine that reaches the cluster port may join")
        log.info(
            "cluster: %s, phase %s, fingerprint %s", settings.node, standing.phase, self.trust.fingerprint
        )  # fmt: skip

    def _contacts(self, addresses: tuple[str, ...]) -> list[str]:
        port = self._settings.ports.cluster
        return [contact_of(*split_address(one, port=port)) for one in addresses]

    async def run(self) -> None:
        """Be part of the cluster until cancelled; then stop etcd. Raises Unavailable after `retry_max` vain rounds."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._greeting.run(), name="cluster.meet")
                if self._settings.is_server:
                    group.create_task(self._server.run(), name="cluster.server")
                    group.create_task(self._membership.run(), name="cluster.membership")
                else:
                    group.create_task(self._client.run(), name="cluster.client")
                group.create_task(self._certificates.run(), name="cluster.certificates")
                group.create_task(self._sharing.run(), name="cluster.sharing")
        except BaseExceptionGroup as exc:
            vain = exc.subgroup(InVain)
            if vain is not None:
                raise Unavailable(str(_first(vain))) from exc
            raise

    async def close(self) -> None:
        """Close connections; `run` has ended."""
        await self.store.close()
        await self.client.close()

    async def ready(self) -> None:
        """Return when this machine may open its engine: a quorum answered, or (a client) it is known to a server."""
        await self._ready.wait()

    @property
    def is_ready(self) -> bool:
        """Whether `ready` has returned, or would."""
        return self._ready.is_set()

    @property
    def phase(self) -> Phase:
        """How far this machine is."""
        return self.standing.phase

    # -- certificates ------------------------------------------------------------------------------------------------

    @property
    def on_serving_changed(self) -> Callable[[], None] | None:
        """Called when the files of `serving()` have another content."""
        return self._certificates.on_serving_changed

    @on_serving_changed.setter
    def on_serving_changed(self, call: Callable[[], None] | None) -> None:
        self._certificates.on_serving_changed = call

    @property
    def token_facts(self) -> TokenCheck | None:
        """What judges the tokens of those who join."""
        return self._admission.token_facts

    @token_facts.setter
    def token_facts(self, check: TokenCheck | None) -> None:
        self._admission.token_facts = check

    def authority_pem(self) -> bytes:
        """Return the certificate of the cluster's authority. Raises NotFound before there is one."""
        return self.trust.authority_pem()

    def serving(self) -> ServingFiles:
        """Return the certificate and key for the cluster port; the paths stay, their content changes."""
        return self.trust.serving

    def identify(self, chain_der: tuple[bytes, ...]) -> Caller:
        """Return who a caller of the cluster port is."""
        return self.trust.identify(chain_der)

    def etcd_tls(self) -> EtcdTls | None:
        """Return how the engine is known to the store, None before this server has a certificate."""
        return self.trust.store_tls

    async def renew_certificates(self) -> bool:
        """Renew what needs it now; return whether anything did. Raises Unavailable, and what servers refuse with."""
        return await self._certificates.renew()

    # -- access control ----------------------------------------------------------------------------------------------

    @property
    def is_protected(self) -> bool:
        """Whether the cluster is known to ask callers who they are, so that this machine has to as well."""
        return self.standing.state.is_protected

    def asks_callers(self) -> None:
        """Tell others that this agent asks callers who they are."""
        self.standing.asks_callers = True

    async def protected(self) -> None:
        """Return when this machine has what it needs to be protected as its cluster is, and it is its turn to begin."""
        await self._sharing.protected()

    # -- servers -----------------------------------------------------------------------------------------------------

    def endpoints(self) -> tuple[str, ...]:
        """Return the store's URLs, the best first: this server's own if it votes, then live ones, then the rest."""
        return self._directory.endpoints()

    def servers(self) -> tuple[ServerInfo, ...]:
        """Return the known servers: for a client the one that it prefers first, then live ones, then by node name."""
        return self._directory.servers()

    def suspect(self, server_id: str) -> None:
        """Prefer another server than this one for now: a call to it failed."""
        self._directory.suspect(server_id)

    def leader(self) -> ServerInfo | None:
        """Return the server beside the store's leader, None when none is known."""
        return self._directory.leader()

    @property
    def is_leader(self) -> bool:
        """Whether the store's leader is on this machine."""
        return self.store.is_leader

    @property
    def knows_leader(self) -> bool:
        """Whether the store has a leader, as far as this machine knows."""
        return self._directory.knows_leader

    async def raft(self) -> tuple[RaftMember, ...]:
        """Return the members of the store. Raises Unavailable when no server can tell."""
        return await self._leading.raft()

    async def health(self) -> tuple[MemberHealth, ...]:
        """Return how the members of the store are, as the leader saw them last. Raises NoLeader, Unavailable."""
        return await self._leading.health()

    # -- changes -----------------------------------------------------------------------------------------------------

    async def join(self, addresses: tuple[str, ...]) -> int:
        """Say hello to more machines; return how many answered. Raises Malformed for a bad address, Unavailable for 0."""
        wanted = self._contacts(addresses)
        self.peers.give(one for one in wanted if one not in self.peers.contacts)
        answered, why = 0, ""
        for address in wanted:
            try:
                await self._greeting.greet(address, timeout_s=_GREET_TIMEOUT_S)
                answered += 1
            except WaypostError as exc:
                why = str(exc)
        if not answered:
            raise Unavailable(why or "no address given")
        self._turns.wake()
        return answered

    async def leave(self) -> None:
        """Leave for good: hand the leadership over, leave the store, stop etcd, delete its data.

        The last server only stops: its data is the cluster. Raises Conflict when the others could not accept writes
        without this server, Unavailable.
        """
        if self._settings.is_server:
            await self._server.leave(self._leading)

    async def remove_peer(self, member: str) -> None:
        """Remove a server: node id, store id or `IP:PORT` of its store. Raises NotFound, Conflict, Unavailable."""
        await self._leading.insist(Path.REMOVE, AboutMember(member=member))

    async def transfer_leader(self, member: str = "") -> None:
        """Let another server lead; empty: any live one. Raises NotFound, Conflict, Unavailable."""
        await self._leading.ask_leader(Path.TRANSFER, AboutMember(member=member))

    # -- others ------------------------------------------------------------------------------------------------------

    async def answer(self, path: str, body: bytes, *, caller: Caller, shown_mac: str) -> Reply:
        """Answer a message of another machine. Raises errors of the tree, which go back to it."""
        return await self._answers.answer(path, body, caller=caller, shown_mac=shown_mac)


def _pace(settings: ClusterSettings) -> Pace:
    return Pace(
        failed_after_s=settings.failed_after_s,
        dead_after_s=settings.dead_after_s,
        unstarted_after_s=settings.unstarted_after_s,
        second_voter_after_s=settings.second_voter_after_s,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
