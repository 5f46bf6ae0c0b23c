"""One machine's part in its cluster.

    cluster = Cluster(settings, token_facts=check)
    await cluster.open()                        # reads the disk; asks nobody
    async with asyncio.TaskGroup() as group:
        group.create_task(cluster.run())        # meets, forms, joins, keeps etcd running, until cancelled
        await cluster.ready()                   # now the engine can be opened on cluster.endpoints()
    await cluster.close()

Everything that changes what this machine is (its phase, its vote, etcd's start and end) happens in one task, `_own`, which
asks `protocol.step` what to do, writes that down, then does it. Questions to other machines are *errands*: one at a time,
in a task of their own, whose answer comes back to the owner. What others ask comes in by `answer` and, where it changes
something, waits for its turn in the owner as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec

from waypost.access.pki.setup import RENEW_AT
from waypost.base.clock import Clock, SystemClock
from waypost.base.errors import (
    Conflict,
    Forbidden,
    Malformed,
    NoLeader,
    NotFound,
    Rejected,
    Unauthenticated,
    Unavailable,
    WaypostError,
)
from waypost.cluster import protocol
from waypost.cluster.child import (
    EtcdChild,
    arguments,
    find_binary,
    has_data,
    remove_data,
)
from waypost.cluster.files import StateFiles
from waypost.cluster.membership import Admitted, Membership
from waypost.cluster.messages import (
    AboutMember,
    AskPlan,
    Commit,
    Done,
    HealthAnswer,
    Hello,
    Join,
    JoinAnswer,
    MemberHealth,
    Path,
    PlanAnswer,
    Prepare,
    RaftAnswer,
    Renew,
    Secrets,
    VoteAnswer,
    decode,
    encode,
)
from waypost.cluster.peers import Contact, Peers, contact_of, outranks
from waypost.cluster.protocol import PlanStatus, Seen, StoreFacts, Vote
from waypost.cluster.reconcile import Pace, StoreMember
from waypost.cluster.records import (
    FORMED,
    Phase,
    Plan,
    RaftMember,
    ServerFacts,
    ServerInfo,
    State,
)
from waypost.cluster.settings import ClusterSettings, join_host, split_address
from waypost.cluster.store_members import StoreMembers, StoreStatus
from waypost.cluster.transport import (
    OtherAuthority,
    PeerClient,
    answer_parts,
    import_http_client,
    request_parts,
)
from waypost.cluster.trust import (
    Caller,
    NodeCaller,
    ServerCaller,
    ServingFiles,
    Stranger,
    Trust,
    check_mac,
    mac,
)
from waypost.domain.cluster import Autopilot
from waypost.store.etcd.tls import EtcdTls

log = logging.getLogger(__name__)

T = TypeVar("T")

_TICK_S: Final = 0.1
_FORMING_HELLO_S: Final = 0.25
_HELLO_S: Final = 1.0
_CLIENT_HELLO_S: Final = 2.0
_HELLO_TIMEOUT_S: Final = 1.0
_MOST_PAUSE_S: Final = 5.0
_ROUND_TIMEOUT_S: Final = 2.0
_STATUS_EVERY_S: Final = 0.2
_STATUS_FRESH_S: Final = 2.0
_ASK_EVERY_S: Final = 0.5
_JOIN_AGAIN_S: Final = 0.5
_JOIN_REFUSED_S: Final = 5.0
_JOIN_TIMEOUT_S: Final = 10.0
_REMOVED_FRESH_S: Final = 3.0
_SAY_AGAIN_S: Final = 60.0
_RENEW_LOOK_S: Final = 600.0
_LEAVE_WITHIN_S: Final = 15.0
_INBOX: Final = 64
"""Transitions that wait; a 65th is refused with Unavailable, and whoever asked asks again."""


class _InVain(Unavailable):
    """Nobody was there to join, as often as the operator wanted it tried."""


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


class TokenFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A bootstrap token that is good now."""

    id: str
    """The public half."""
    groups: tuple[str, ...] = ()


TokenCheck = Callable[[str], TokenFacts | None]
"""Returns what is known of a token, None for one that is not good."""


class Reply(msgspec.Struct, frozen=True):
    """The answer to a message, and its MAC (empty without a shared key)."""

    body: bytes
    mac: str = ""


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
        self._clock: Clock = clock or SystemClock()
        self._rng = rng or random.SystemRandom()
        self.token_facts = token_facts
        self.on_serving_changed = on_serving_changed
        self._secret = settings.secret()
        self._files = StateFiles(settings.directory)
        self._state = State(is_server=settings.is_server)
        self.trust = Trust(settings, clock=self._clock)
        self.client = PeerClient(self.trust, datacenter=settings.datacenter, secret=self._secret)
        own = join_host(settings.address, settings.ports.cluster)
        self._peers = Peers(
            own_id=settings.node_id, own_contact=own, failed_after_s=settings.failed_after_s
        )
        self._pace = Pace(
            failed_after_s=settings.failed_after_s,
            dead_after_s=settings.dead_after_s,
            unstarted_after_s=settings.unstarted_after_s,
            second_voter_after_s=settings.second_voter_after_s,
        )
        self.autopilot: Callable[[], Autopilot] = Autopilot
        """What the operator decided about the membership, as of now."""
        self._membership = Membership(
            self,
            self._peers,
            own_id=settings.node_id,
            pace=self._pace,
            policy=lambda: self.autopilot(),  # noqa: PLW0108 - it is set later
            clock=self._clock,
        )
        self._membership.on_list = self._listed
        self._incarnation = uuid.UUID(int=self._rng.getrandbits(128), version=4).hex
        self._child: EtcdChild | None = None
        self._store: StoreMembers | None = None
        self._status: StoreStatus | None = None
        self._status_s = float("-inf")
        self._was_led = False
        self._members: tuple[StoreMember, ...] = ()
        self._inbox: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = (
            asyncio.Queue(_INBOX)
        )
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._errand: asyncio.Task[None] | None = None
        self._has_left = False
        self._propose_at_s = self._join_at_s = self._ask_at_s = float("-inf")
        self._voted_at_s = 0.0
        self._removed_at_s = float("-inf")
        self._double: tuple[str, float] = ("", float("-inf"))
        self._said: dict[str, tuple[str, float]] = {}
        self._rounds = 0
        self._has_met = False
        self._preferred = ""

    # -- what others need --------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read what is on disk and make what is missing. Never waits for others.

        Raises Malformed (files that cannot be used, no etcd), Unavailable (cannot be written).
        """
        settings = self._settings
        import_http_client()
        self._files.claim(settings)
        self._state = self._files.load(is_server=settings.is_server)
        self.trust.open()
        if settings.is_server:
            binary = await find_binary(settings.etcd)
            self._child = EtcdChild(binary, settings.directory / "etcd", clock=self._clock)
            if self.trust.refresh(now_s=self._clock.wall()):
                log.info("certificates of this server were made anew")
            await self._open_store()
        port = settings.ports.cluster
        given = [contact_of(*split_address(one, port=port)) for one in settings.join]
        given += [contact_of(*split_address(one, port=port)) for one in settings.retry_join]
        self._peers.give(dict.fromkeys(given))
        self._peers.learn(self._state.servers, now_s=self._clock.now())
        if self._is_moved:
            # Either the machine moved, or its disk was copied: then the other one answers there.
            self._peers.give([self._state.contact])
        self._voted_at_s = self._clock.now()
        if settings.open_join:
            log.warning("cluster.open_join: any machine that reaches the cluster port may join")
        log.info(
            "cluster: %s, phase %s, fingerprint %s", settings.node, self._state.phase, self.trust.fingerprint
        )  # fmt: skip

    async def run(self) -> None:
        """Be part of the cluster until cancelled; then stop etcd. Raises Unavailable after `retry_max` vain rounds."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._meet(), name="cluster.meet")
                if self._settings.is_server:
                    group.create_task(self._own(), name="cluster.own")
                    group.create_task(self._watch_store(), name="cluster.store")
                    group.create_task(self._membership.run(), name="cluster.membership")
                else:
                    group.create_task(self._be_client(), name="cluster.client")
                group.create_task(self._keep_certificates(), name="cluster.certificates")
        except BaseExceptionGroup as exc:
            vain = exc.subgroup(_InVain)
            if vain is not None:
                raise Unavailable(str(_first(vain))) from exc
            raise
        finally:
            self._group = self._errand = None
            self._refuse_waiting()
            if self._child is not None:
                await self._child.stop()

    async def close(self) -> None:
        """Close connections; `run` has ended."""
        if self._child is not None:
            await self._child.stop()
        if self._store is not None:
            await self._store.close()
            self._store = None
        await self.client.close()

    async def ready(self) -> None:
        """Return when this machine may open its engine: a quorum answered, or (a client) it is known to a server."""
        await self._ready.wait()

    @property
    def phase(self) -> Phase:
        """How far this machine is."""
        return self._state.phase

    @property
    def is_ready(self) -> bool:
        """Whether `ready` has returned, or would."""
        return self._ready.is_set()

    def serving(self) -> ServingFiles:
        """Return the certificate and key for the cluster port; the paths stay, their content changes."""
        return self.trust.serving

    def identify(self, chain_der: tuple[bytes, ...]) -> Caller:
        """Return who a caller of the cluster port is."""
        return self.trust.identify(chain_der)

    def etcd_tls(self) -> EtcdTls | None:
        """Return how the engine is known to the store, None before this server has a certificate."""
        return self.trust.store_tls

    def endpoints(self) -> tuple[str, ...]:
        """Return the store's URLs, the best first: this server's own if it votes, then live ones, then the rest."""
        own = [self.local_endpoint] if self._settings.is_server else []
        now_s = self._clock.now()
        others = sorted(
            (one for one in self._peers.all() if one.facts.phase is Phase.MEMBER),
            key=lambda one: (
                now_s - one.last_seen_s >= self._settings.failed_after_s,
                one.facts.id,
            ),
        )
        urls = [one.facts.client_url for one in others]
        known = [one.client_url for one in self._members if one.client_url]
        urls += [
            one
            for one in (*known, *(facts.client_url for facts in self._state.servers))
            if one != self._facts().client_url
        ]
        status = self.status
        is_voter = status is not None and not status.is_learner
        ordered = (
            [*own, *urls]
            if is_voter or (self._state.phase is Phase.MEMBER and status is None)
            else [*urls, *own]
        )
        return tuple(dict.fromkeys(ordered))

    def servers(self) -> tuple[ServerInfo, ...]:
        """Return the known servers: for a client the one that it prefers first, then live ones, then by node name."""
        now_s = self._clock.now()
        found = [
            _info(
                one.facts,
                last_seen_s=one.last_seen_s,
                is_live=now_s - one.last_seen_s < self._settings.failed_after_s,
            )
            for one in self._peers.all()
        ]
        heard = {one.id for one in found}
        if self._settings.is_server:
            found.append(_info(self._facts(), last_seen_s=now_s, is_live=True, is_self=True))
            heard.add(self._settings.node_id)
        found += [
            _info(one, last_seen_s=float("-inf"), is_live=False)
            for one in self._state.servers
            if one.id not in heard
        ]
        found.sort(key=lambda one: (one.id != self._preferred, not one.is_live, one.node, one.id))
        return tuple(found)

    def leader(self) -> ServerInfo | None:
        """Return the server beside the store's leader, None when none is known."""
        leader_id = self._leader_member_id()
        for one in self.servers():
            if one.is_self and self.is_leader:
                return one
            if one.is_self or not one.is_live:
                continue
            peer = self._peers.find(one.id)
            if peer is None:
                continue
            if leader_id:
                if peer.facts.member_id == leader_id:
                    return one
            elif peer.facts.is_leader and not self._settings.is_server:
                return one
        return None

    def _leader_member_id(self) -> str:
        status = self.status
        return f"{status.leader_id:x}" if status is not None and status.leader_id else ""

    @property
    def is_leader(self) -> bool:
        """Whether the store's leader is on this machine."""
        return self._membership.is_leader

    @property
    def knows_leader(self) -> bool:
        """Whether the store has a leader, as far as this machine knows."""
        if self._settings.is_server and self.status is not None:
            return bool(self._leader_member_id())
        return self.leader() is not None

    async def raft(self) -> tuple[RaftMember, ...]:
        """Return the members of the store. Raises Unavailable when no server can tell."""
        status, store = self.status, self._store
        if status is None or store is None:
            answer = await self._ask_members(Path.RAFT, AboutMember(), RaftAnswer)
            return answer.members
        members = await store.list(self.local_endpoint)
        facts = self._peers.facts() | {self._settings.node_id: self._facts()}
        return tuple(
            RaftMember(
                id=one.name,
                node=facts[one.name].node if one.name in facts else one.name,
                address=one.peer_url.partition("://")[2],
                is_leader=one.id == status.leader_id,
                is_voter=not one.is_learner,
                member_id=f"{one.id:x}",
            )
            for one in members
        )

    async def health(self) -> tuple[MemberHealth, ...]:
        """Return how the members of the store are, as the leader saw them last. Raises NoLeader, Unavailable."""
        if self.is_leader:
            return self._membership.health()
        answer = await self._ask_members(Path.HEALTH, AboutMember(), HealthAnswer)
        if answer.leader:
            data = await self.client.call(
                answer.leader, Path.HEALTH, encode(AboutMember()), timeout_s=_JOIN_TIMEOUT_S
            )
            answer = decode(data, HealthAnswer, what=Path.HEALTH)
            if answer.leader:
                raise NoLeader("the cluster's leader is just changing")
        return answer.members

    async def join(self, addresses: tuple[str, ...]) -> int:
        """Say hello to more machines; return how many answered. Raises Malformed for a bad address, Unavailable for 0."""
        port = self._settings.ports.cluster
        wanted = [contact_of(*split_address(one, port=port)) for one in addresses]
        self._peers.give(one for one in wanted if one not in self._peers.contacts)
        answered, why = 0, ""
        for address in wanted:
            try:
                await self._greet(address, timeout_s=_ROUND_TIMEOUT_S)
                answered += 1
            except WaypostError as exc:
                why = str(exc)
        if not answered:
            raise Unavailable(why or "no address given")
        self._wake.set()
        return answered

    async def leave(self) -> None:
        """Leave for good: hand the leadership over, leave the store, stop etcd, delete its data.

        The last server only stops: its data is the cluster. Raises Conflict when the others could not accept writes
        without this server, Unavailable.
        """
        if not self._settings.is_server:
            return
        if self._state.phase is not Phase.MEMBER:
            await self._in_turn(self._be_gone)
            return
        store = self._store
        assert store is not None
        voters = [one for one in await store.list(self.local_endpoint) if not one.is_learner]
        if len(voters) <= 1:
            log.info("this is the last server: its data stays")
            return
        await self._insist(Path.LEAVE, AboutMember(member=self._settings.node_id))
        await self._in_turn(self._be_gone)
        log.info("this server has left the cluster")

    async def _be_gone(self) -> None:
        self._has_left = True
        if self._child is not None:
            await self._child.stop()
        state = protocol.outside(self._state, joins_only=self._state.phase in FORMED)
        self._save(_replace(state, phase=Phase.LEFT))
        remove_data(self._settings.directory / "etcd")

    async def remove_peer(self, member: str) -> None:
        """Remove a server: node id, store id or `IP:PORT` of its store. Raises NotFound, Conflict, Unavailable."""
        await self._insist(Path.REMOVE, AboutMember(member=member))

    async def _insist(self, path: Path, message: AboutMember) -> None:
        """Have the leader do something, also while the leadership moves. Raises as the leader does, Unavailable."""
        deadline_s, tries = self._clock.now() + _LEAVE_WITHIN_S, 0
        while True:
            try:
                await self._ask_leader(path, message)
            except NotFound:
                if tries:  # done, but the answer was lost
                    return
                raise
            except Unavailable:
                if self._clock.now() > deadline_s:
                    raise
                tries += 1
                await asyncio.sleep(_STATUS_EVERY_S)
            else:
                return

    async def transfer_leader(self, member: str = "") -> None:
        """Let another server lead; empty: any live one. Raises NotFound, Conflict, Unavailable."""
        await self._ask_leader(Path.TRANSFER, AboutMember(member=member))

    async def _ask_leader(self, path: Path, message: AboutMember) -> Done:
        if self.is_leader:
            return await self._change(path, message)
        found = await self._ask_members(path, message, Done)
        if found.leader:
            data = await self.client.call(
                found.leader, path, encode(message), timeout_s=_JOIN_TIMEOUT_S
            )
            found = decode(data, Done, what=path)
            if found.leader:
                raise NoLeader("the cluster's leader is just changing")
        return found

    async def _ask_members(self, path: Path, message: msgspec.Struct, kind: type[T]) -> T:
        """Ask the leader if it is known, else others, until one answers."""
        leader = self.leader()
        ordered = sorted(
            (one for one in self.servers() if not one.is_self and one.phase is Phase.MEMBER),
            key=lambda one: (leader is None or one.id != leader.id, not one.is_live),
        )
        failure: Unavailable = NoLeader("no server of the cluster is known")
        for one in ordered:
            try:
                data = await self.client.call(
                    one.contact, path, encode(message), timeout_s=_JOIN_TIMEOUT_S
                )
                return decode(data, kind, what=path)
            except Unavailable as exc:
                failure = exc
        raise failure

    # -- for the membership ------------------------------------------------------------------------------------------

    @property
    def store(self) -> StoreMembers | None:
        """How to ask the store about its members."""
        return self._store

    @property
    def local_endpoint(self) -> str:
        """The URL of this machine's member of the store."""
        return f"https://127.0.0.1:{self._settings.ports.store}"

    @property
    def status(self) -> StoreStatus | None:
        """What this machine's member said lately; None when it did not."""
        if self._clock.now() - self._status_s > _STATUS_FRESH_S:
            return None
        return self._status

    def _listed(self, members: tuple[StoreMember, ...]) -> None:
        self._members = members
        self._peers.keep((one.name for one in members), now_s=self._clock.now())

    # -- small things ------------------------------------------------------------------------------------------------

    def _facts(self) -> ServerFacts:
        settings, state = self._settings, self._state
        formed = state.phase in FORMED
        return ServerFacts(
            id=settings.node_id,
            node=settings.node,
            datacenter=settings.datacenter,
            address=settings.address,
            cluster_port=settings.ports.cluster,
            server_port=settings.ports.server,
            store_port=settings.ports.store,
            is_server=settings.is_server,
            phase=state.phase,
            expect=settings.bootstrap_expect,
            cluster=state.cluster,
            epoch=state.epoch,
            fingerprint=self.trust.fingerprint,
            authority=self.trust.pin if formed else self.trust.own_authority,
            incarnation=self._incarnation,
            member_id=state.member_id,
            is_leader=self.is_leader,
            is_moved=self._is_moved,
            joins_only=state.joins_only or settings.bootstrap_expect == 0,
        )

    def _save(self, state: State) -> None:
        if state.phase is not self._state.phase:
            log.info("cluster: phase %s → %s", self._state.phase, state.phase)
        if state.phase is Phase.VOTED and state.plan != self._state.plan:
            self._voted_at_s = self._clock.now()
        self._files.save(state)
        is_news = state.phase is not self._state.phase or state.member_id != self._state.member_id
        self._state = state
        if is_news:
            self._peers.hurry(now_s=self._clock.now())

    def _say(self, key: str, text: str, *, level: int = logging.INFO) -> None:
        """Log what goes on when it changes, and once a minute."""
        before, at_s = self._said.get(key, ("", float("-inf")))
        now_s = self._clock.now()
        if text and (text != before or now_s - at_s >= _SAY_AGAIN_S):
            log.log(level, "%s", text)
            self._said[key] = (text, now_s)
        elif not text:
            self._said.pop(key, None)

    @property
    def _is_trusting(self) -> bool:
        """Whether this machine talks as a member, to members only."""
        return self.trust.is_credible and self._state.phase not in (Phase.VOTED, Phase.COMMITTED)

    async def _open_store(self) -> None:
        tls = self.trust.store_tls
        if tls is None:
            return
        if self._store is not None:
            await self._store.close()
        self._store = StoreMembers(tls, clock=self._clock, rng=self._rng)
        await self._store.open()

    async def _certificates_changed(self) -> None:
        await self.client.renewed()
        await self._open_store()
        if self.on_serving_changed is not None:
            self.on_serving_changed()

    # -- the owner of every transition -------------------------------------------------------------------------------

    async def _in_turn(self, change: Callable[[], Awaitable[T]]) -> T:
        """Have the owner do something, and return what it returns. Raises Unavailable when too much waits."""
        if self._group is None:
            raise Unavailable("the cluster is not running on this machine")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            self._inbox.put_nowait((change, answer))
        except asyncio.QueueFull as exc:
            raise Unavailable("too many requests are waiting") from exc
        self._wake.set()
        return await answer

    def _refuse_waiting(self) -> None:
        while not self._inbox.empty():
            _, answer = self._inbox.get_nowait()
            if not answer.done():
                answer.set_exception(Unavailable("the agent is stopping"))

    async def _own(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()
            self._wake.clear()
            while not self._inbox.empty():
                change, answer = self._inbox.get_nowait()
                await _settle(change, answer)
            if self._has_left:
                continue
            try:
                self._remember_servers()
                await self._act(protocol.step(self._state, self._seen()))
                self._say("failure", "")
            except WaypostError as exc:
                self._say("failure", f"cluster: {exc}", level=logging.ERROR)

    def _seen(self) -> Seen:
        now_s = self._clock.now()
        status, child = self.status, self._child
        assert child is not None
        return Seen(
            me=self._facts(),
            peers=self._peers.live(now_s=now_s),
            has_data=has_data(self._settings.directory / "etcd"),
            store=StoreFacts(
                is_running=child.is_running,
                has_exited=child.exits > 0 and not child.is_running,
                answers=status is not None,
                has_leader=status is not None and status.leader_id != 0,
                was_led=self._was_led,
            ),
            is_busy=self._errand is not None,
            may_propose=now_s >= self._propose_at_s,
            may_join=now_s >= self._join_at_s,
            may_ask=now_s >= self._ask_at_s,
            voted_for_s=now_s - self._voted_at_s,
            abandon_after_s=self._settings.abandon_after_s,
            is_removed=now_s - self._removed_at_s < _REMOVED_FRESH_S,
        )

    def _remember_servers(self) -> None:
        """Keep on disk who the servers are, when that changes."""
        if self._state.phase is not Phase.MEMBER:
            return
        members = {one.name for one in self._members}
        known = {
            one.facts.id: one.facts
            for one in self._peers.all()
            if one.facts.phase is Phase.MEMBER and (not members or one.facts.id in members)
        }
        before = {one.id: one for one in self._state.servers}
        if not known or {key: one.contact for key, one in known.items()} == {
            key: one.contact for key, one in before.items()
        }:
            return
        if not members:  # somebody known from disk may only not have been heard of yet
            known = before | known
            if known.keys() == before.keys() and all(
                known[key].contact == before[key].contact for key in known
            ):
                return
        self._save(_replace(self._state, servers=tuple(known[key] for key in sorted(known))))

    async def _act(self, action: protocol.Action) -> None:
        problem = self._doubled()
        if problem and not isinstance(action, protocol.Wait | protocol.Settle | protocol.Wipe):
            is_sure = "looking" not in problem
            self._say("double", problem, level=logging.ERROR if is_sure else logging.INFO)
            return
        self._say("double", "")
        match action:
            case protocol.Wait(why, is_error):
                level = logging.ERROR if is_error else logging.INFO
                self._say("wait", f"cluster: {why}" if why else "", level=level)
            case protocol.Settle(state, why):
                log.info("cluster: %s", why)
                self._save(state)
                if state.phase is Phase.MEMBER:
                    self._log_membership()
            case protocol.Wipe(state, why):
                log.warning("cluster: %s", why)
                await self._wipe(state)
            case protocol.StartStore():
                await self._start_store(action)
            case protocol.Propose(members):
                await self._propose(members)
            case protocol.AskPlan(plan):
                self._ask_at_s = self._clock.now() + _ASK_EVERY_S
                self._send(self._ask_plan(plan, path=Path.PLAN))
            case protocol.Abandon(plan):
                self._ask_at_s = self._clock.now() + _MOST_PAUSE_S
                state, _ = protocol.abandon(self._state, plan.token)
                if state is not self._state:
                    log.warning(
                        "cluster: the server that proposed the cluster is gone; its plan is taken back"
                    )
                    self._save(state)
                self._send(self._ask_plan(plan, path=Path.ABANDON))
            case protocol.Join(targets):
                self._send(self._ask_join(targets))

    def _doubled(self) -> str:
        """Return why this machine must not go on because another one has its identity."""
        text, at_s = self._double
        if self._clock.now() - at_s < _MOST_PAUSE_S:
            return text
        if not self._is_moved or self._state.phase is not Phase.MEMBER:
            return ""
        old = self._state.contact
        contact = self._peers.contacts.get(old)
        if contact is not None and contact.tries == 0 and not contact.server_id:
            return f"cluster: this machine was at {old} before; looking whether it still is"
        return ""

    @property
    def _own_contact(self) -> str:
        return contact_of(self._settings.address, self._settings.ports.cluster)

    @property
    def _is_moved(self) -> bool:
        return self._state.contact not in ("", self._own_contact)

    def _log_membership(self) -> None:
        log.info(
            "cluster: this server is a member; the authority is %s (compare with the other servers)",
            self.trust.pin,
        )

    async def _wipe(self, state: State) -> None:
        assert self._child is not None
        await self._child.stop()
        self._save(state)
        remove_data(self._settings.directory / "etcd")
        self._status, self._was_led = None, False
        self._members = ()
        self._join_at_s = self._clock.now() + _JOIN_AGAIN_S

    async def _start_store(self, action: protocol.StartStore) -> None:
        assert self._child is not None
        tls = self.trust.store_tls
        if tls is None:
            raise Malformed(
                f"{self._settings.directory}: the store's certificate is missing, so etcd cannot be started"
            )
        flags = arguments(
            self._settings,
            version=self._child.version,
            tls=tls,
            initial_cluster=action.initial_cluster,
            is_new=action.is_new,
            token=action.cluster,
        )
        if await self._child.start(flags) and self._state.contact != self._own_contact:
            self._save(_replace(self._state, contact=self._own_contact))

    # -- errands -----------------------------------------------------------------------------------------------------

    def _send(self, errand: Any) -> None:
        """Start an errand; there is none when this is called."""
        assert self._group is not None
        assert self._errand is None
        self._errand = self._group.create_task(self._run_errand(errand), name="cluster.errand")

    async def _run_errand(self, errand: Awaitable[None]) -> None:
        try:
            await errand
        except WaypostError as exc:
            self._say("errand", f"cluster: {exc}", level=logging.WARNING)
        finally:
            self._errand = None
            self._wake.set()

    async def _propose(self, members: tuple[ServerFacts, ...]) -> None:
        secrets = self.trust.propose()
        authority = _pin_of(secrets)
        plan = protocol.make_plan(
            self._state,
            members,
            token=uuid.UUID(int=self._rng.getrandbits(128), version=4).hex,
            proposer=self._settings.node_id,
            authority=authority,
        )
        names = ", ".join(one.node for one in plan.members)
        log.info("cluster: proposing a cluster of %s (ballot %d)", names, plan.ballot)
        self._save(protocol.propose(self._state, plan))
        self._send(self._hold_round(plan, secrets))

    async def _hold_round(self, plan: Plan, secrets: Secrets) -> None:
        message = encode(Prepare(plan=plan))
        votes: dict[str, Vote | None] = {}

        async def ask(member: ServerFacts) -> None:
            try:
                answer = await self.client.first_contact(
                    member.contact,
                    Path.PREPARE,
                    message,
                    fingerprint=member.fingerprint,
                    timeout_s=_ROUND_TIMEOUT_S,
                )
                found = decode(answer.body, VoteAnswer, what=Path.PREPARE)
            except WaypostError as exc:
                log.info("cluster: no vote of %s: %s", member.node, exc)
                return
            if found.id == member.id:
                votes[member.id] = Vote(is_accepted=found.is_accepted, why=found.why)
                if not found.is_accepted:
                    log.info("cluster: %s does not vote for the plan: %s", member.node, found.why)

        async with asyncio.TaskGroup() as group:
            for member in plan.members:
                if member.id != plan.proposer:
                    group.create_task(ask(member))

        async def conclude() -> bool:
            state = protocol.tally(self._state, plan, votes)
            if state.phase is Phase.COMMITTED:
                await self._found(state, secrets)
                return True
            self._save(state)
            self._propose_at_s = self._clock.now() + self._rng.uniform(0.1, 0.6)
            return False

        if await self._in_turn(conclude):
            await self._tell(plan, secrets)

    async def _tell(self, plan: Plan, secrets: Secrets) -> None:
        """Tell the others that all have voted. Whoever is not reached asks by itself."""
        message = encode(Commit(plan=plan, secrets=secrets))

        async def tell(member: ServerFacts) -> None:
            with contextlib.suppress(WaypostError):
                await self.client.first_contact(
                    member.contact, Path.COMMIT, message, fingerprint=member.fingerprint
                )

        async with asyncio.TaskGroup() as group:
            for member in plan.members:
                if member.id != plan.proposer:
                    group.create_task(tell(member))

    async def _found(self, state: State, secrets: Secrets) -> None:
        """Become a founding member: keys first, then the phase that needs them."""
        self.trust.found(secrets, now_s=self._clock.wall())
        assert state.plan is not None
        names = ", ".join(one.node for one in state.plan.members)
        self._save(state)
        await self._certificates_changed()
        log.info(
            "cluster: all of %s agreed; its authority is %s (compare with the other servers)",
            names,
            self.trust.pin,
        )

    async def _ask_plan(self, plan: Plan, *, path: Path) -> None:
        message = encode(AskPlan(token=plan.token, id=self._settings.node_id))
        answers: dict[str, PlanStatus] = {}
        secrets: list[Secrets] = []

        async def ask(member: ServerFacts) -> None:
            try:
                answer = await self.client.first_contact(
                    member.contact,
                    path,
                    message,
                    fingerprint=member.fingerprint,
                    timeout_s=_ROUND_TIMEOUT_S,
                )
                found = decode(answer.body, PlanAnswer, what=path)
            except WaypostError as exc:
                log.debug("%s does not say what became of the plan: %s", member.node, exc)
                return
            if found.id == member.id:
                answers[member.id] = found.status
                if found.secrets is not None:
                    secrets.append(found.secrets)

        async with asyncio.TaskGroup() as group:
            for member in plan.members:
                is_asked = path is Path.PLAN or member.id != plan.proposer
                if member.id != self._settings.node_id and is_asked:
                    group.create_task(ask(member))

        async def conclude() -> None:
            state = protocol.heard(self._state, plan, answers, me=self._settings.node_id)
            if state is self._state:
                return
            if state.phase is Phase.COMMITTED:
                if secrets:
                    await self._found(state, secrets[0])
                return
            log.info("cluster: the plan that this server voted for came to nothing")
            self._save(state)

        await self._in_turn(conclude)

    # -- joining -----------------------------------------------------------------------------------------------------

    async def _ask_join(self, targets: tuple[ServerFacts, ...]) -> None:
        """Ask to be taken in; what comes of it is done by the owner."""
        self._join_at_s = self._clock.now() + _JOIN_AGAIN_S * self._rng.uniform(0.8, 1.4)
        message = Join(
            sender=self._facts(),
            token=self._settings.join_token,
            csr_pem=b"" if self._settings.is_server else self.trust.request(),
            last_member_id=self._state.member_id,
        )
        try:
            answer = await self._join_at(targets, message)
        except (Unauthenticated, Forbidden, Conflict, Malformed, Rejected) as exc:
            self._join_at_s = self._clock.now() + _JOIN_REFUSED_S
            self._say("join", f"cluster: joining was refused: {exc}", level=logging.ERROR)
            return
        except Unavailable as exc:
            self._say("join", f"cluster: joining was not possible: {exc}", level=logging.WARNING)
            return
        if answer.why:
            self._say("join", f"cluster: not taken in yet: {answer.why}")
            return
        self._say("join", "")

        async def conclude() -> None:
            await self._taken_in(answer)

        if self._settings.is_server:
            await self._in_turn(conclude)
        else:
            await conclude()

    async def _join_at(self, targets: tuple[ServerFacts, ...], message: Join) -> JoinAnswer:
        failure: Unavailable = Unavailable("no server of the cluster answers")
        for target in targets:
            try:
                answer = await self._join_one(target.contact, message)
                if answer.leader and answer.leader != target.contact:
                    answer = await self._join_one(answer.leader, message)
                if not answer.leader:
                    return answer
                failure = NoLeader("the cluster's leader is just changing")
            except Unavailable as exc:
                failure = exc
        raise failure

    async def _join_one(self, address: str, message: Join) -> JoinAnswer:
        if self.trust.is_credible:
            data = await self.client.call(
                address, Path.JOIN, encode(message), timeout_s=_JOIN_TIMEOUT_S
            )
            return decode(data, JoinAnswer, what=Path.JOIN)
        first = await self.client.first_contact(address, Path.HELLO, encode(self._hello()))
        hello = decode(first.body, Hello, what=Path.HELLO)
        if not hello.authority_pem:
            raise Unavailable(f"{address} is not a member of a cluster yet")
        pin = self.trust.check_server(first.certificate_der, hello.authority_pem)
        wanted = self._settings.ca_pin
        if wanted and pin != wanted:
            raise Unauthenticated(
                f"{address} belongs to a cluster with the authority {pin}, expected {wanted} "
                "(-discovery-token-ca-cert-hash); the token was not sent"
            )
        if not wanted:
            self._say(
                "pin",
                f"cluster: joining the cluster with the authority {pin}, which is not verified: "
                "-discovery-token-ca-cert-hash would",
                level=logging.WARNING,
            )
        answer = await self.client.first_contact(
            address,
            Path.JOIN,
            encode(message),
            fingerprint=first.fingerprint,
            timeout_s=_JOIN_TIMEOUT_S,
        )
        found = decode(answer.body, JoinAnswer, what=Path.JOIN)
        if found.authority_pem and found.authority_pem != hello.authority_pem:
            raise Unauthenticated(f"{address} changed its authority while this machine joined")
        return found

    async def _taken_in(self, answer: JoinAnswer) -> None:
        if self._state.phase not in (Phase.NONE, Phase.LEFT):
            return
        now_s = self._clock.wall()
        servers = tuple(one for one in answer.servers if one.id != self._settings.node_id)
        if self._settings.is_server:
            if answer.secrets is None:
                raise Malformed("the cluster's answer has no keys for a server")
            self.trust.found(answer.secrets, now_s=now_s)
            phase = Phase.JOINING
        else:
            self.trust.accept(
                authority_pem=answer.authority_pem, certificate_pem_=answer.certificate_pem
            )
            phase = Phase.MEMBER
        self._save(
            State(
                is_server=self._settings.is_server,
                phase=phase,
                ballot=self._state.ballot,
                cluster=answer.cluster,
                epoch=answer.epoch,
                initial_cluster=answer.initial_cluster,
                member_id=answer.member_id,
                joins_only=True,
                servers=servers,
            )
        )
        self._removed_at_s = float("-inf")
        self._peers.learn(servers, now_s=self._clock.now())
        await self._certificates_changed()
        log.info("cluster: taken in; its authority is %s", self.trust.pin)

    # -- the store's status ------------------------------------------------------------------------------------------

    async def _watch_store(self) -> None:
        """Know what this machine's member is doing; say when the engine can be opened."""
        while True:
            await asyncio.sleep(_STATUS_EVERY_S)
            store, child = self._store, self._child
            if store is None or child is None or not child.is_running:
                self._status = None
                continue
            try:
                status = await store.status(self.local_endpoint)
            except WaypostError as exc:
                log.debug("the store does not say how it is: %s", exc)
                continue
            had_leader = self._status is not None and self._status.leader_id != 0
            led = self.is_leader
            self._status, self._status_s = status, self._clock.now()
            if status.leader_id:
                self._was_led = True
            if (status.leader_id != 0) != had_leader:
                self._wake.set()
            if led != self.is_leader:
                self._peers.hurry(now_s=self._clock.now())
            if self._state.phase is Phase.MEMBER:
                if self._state.member_id != f"{status.member_id:x}":
                    await self._in_turn(self._note_member_id)
                if not self._ready.is_set():
                    await self._look_ready(store)

    async def _note_member_id(self) -> None:
        if self._status is not None:
            self._save(_replace(self._state, member_id=f"{self._status.member_id:x}"))

    async def _look_ready(self, store: StoreMembers) -> None:
        for endpoint in self.endpoints():
            try:
                await store.confirm(endpoint)
            except WaypostError as exc:
                log.debug("%s is not ready: %s", endpoint, exc)
                continue
            if not self._members:
                with contextlib.suppress(WaypostError):
                    self._listed(await store.list(endpoint))
            self._ready.set()
            return

    # -- certificates ------------------------------------------------------------------------------------------------

    async def _keep_certificates(self) -> None:
        """Renew certificates at two thirds of their lives (RENEW_AT); a client asks a server for it."""
        while True:
            await asyncio.sleep(_RENEW_LOOK_S)
            try:
                await self.renew_certificates()
            except WaypostError as exc:
                log.warning("certificates were not renewed, again in %g s: %s", _RENEW_LOOK_S, exc)

    async def renew_certificates(self) -> bool:
        """Renew what needs it now; return whether anything did. Raises Unavailable, and what servers refuse with."""
        now_s = self._clock.wall()
        if self._settings.is_server:
            if not self.trust.refresh(now_s=now_s):
                return False
        else:
            if not self.trust.node_needs_renewal(now_s=now_s):
                return False
            message = Renew(csr_pem=self.trust.request())
            answer = await self._ask_members(Path.RENEW, message, JoinAnswer)
            self.trust.accept(
                authority_pem=answer.authority_pem, certificate_pem_=answer.certificate_pem
            )
            log.info(
                "the certificate of this node was renewed after %.0f %% of its life", RENEW_AT * 100
            )
        await self._certificates_changed()
        return True

    # -- a client ----------------------------------------------------------------------------------------------------

    async def _be_client(self) -> None:
        """Have a certificate, know whom to talk to."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S * 2):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._client_turn()
                self._say("failure", "")
            except WaypostError as exc:
                self._say("failure", f"cluster: {exc}", level=logging.ERROR)

    async def _client_turn(self) -> None:
        now_s = self._clock.now()
        live = [one for one in self._peers.live(now_s=now_s) if one.phase is Phase.MEMBER]
        if not self.trust.node_is_usable(now_s=self._clock.wall()):
            if self._state.phase is Phase.MEMBER:
                log.warning(
                    "cluster: this node's certificate is not usable any more; joining again"
                )
                self._save(protocol.outside(self._state, joins_only=True))
                await self.client.renewed()
            if not live:
                self._say("wait", "cluster: waiting for a server to join")
            elif now_s >= self._join_at_s:
                await self._ask_join(tuple(live))
            return
        self._say("wait", "" if live else "cluster: no server of the cluster answers")
        if not live:
            return
        if all(one.id != self._preferred for one in live):
            # Spread the clients over the servers; each stays with its choice while that lives.
            self._preferred = self._rng.choice(live).id
        self._remember_servers()
        self._ready.set()

    def suspect(self, server_id: str) -> None:
        """Prefer another server than this one for now: a call to it failed."""
        if server_id == self._preferred:
            now_s = self._clock.now()
            others = [
                one.id
                for one in self._peers.live(now_s=now_s)
                if one.phase is Phase.MEMBER and one.id != server_id
            ]
            if others:
                self._preferred = self._rng.choice(others)

    # -- hello -------------------------------------------------------------------------------------------------------

    async def _meet(self) -> None:
        """Say hello to everybody known, again and again."""
        async with asyncio.TaskGroup() as group:
            while True:
                now_s = self._clock.now()
                for contact in self._peers.due(now_s=now_s):
                    contact.is_calling = True
                    group.create_task(self._visit(contact), name=f"cluster.hello {contact.address}")
                self._check_given()
                await asyncio.sleep(0.05)

    def _check_given(self) -> None:
        limit = self._settings.retry_max
        if not limit or self._has_met or self._state.phase is Phase.MEMBER:
            return
        given = [one for one in self._peers.contacts.values() if one.is_given]
        if given and all(one.tries > limit for one in given):
            raise _InVain(
                f"no machine to join answered in {limit} attempts: "
                f"{', '.join(one.address for one in given)}"
            )

    def _hello(self) -> Hello:
        servers = tuple(one.facts for one in self._peers.all()) or self._state.servers
        roster = self._membership.roster()
        authority = self.trust.authority if self._state.phase in FORMED else None
        return Hello(
            sender=self._facts(),
            servers=servers,
            authority_pem=authority.pem if authority else b"",
            roster=None if roster is None else tuple(f"{one.id:x}" for one in roster),
        )

    async def _visit(self, contact: Contact) -> None:
        pause_s = _HELLO_S
        if self._settings.is_server and self._state.phase is not Phase.MEMBER:
            pause_s = _FORMING_HELLO_S
        elif not self._settings.is_server and self._ready.is_set():
            pause_s = _CLIENT_HELLO_S
        most_s = min(self._settings.retry_interval_s, _MOST_PAUSE_S)
        try:
            facts = await self._greet(contact.address, timeout_s=_HELLO_TIMEOUT_S)
            self._peers.answered(contact, facts, now_s=self._clock.now(), pause_s=pause_s)
            self._has_met = True
            self._say(f"hello {contact.address}", "")
        except WaypostError as exc:
            is_running = self._child is not None and self._child.is_running
            if isinstance(exc, Conflict) and not is_running:
                self._double = (f"cluster: {exc}", self._clock.now())
            self._peers.silent(contact, now_s=self._clock.now(), pause_s=pause_s, most_s=most_s)
            if not isinstance(exc, Unavailable):
                text = f"cluster: {contact.address}: {exc}"
                self._say(f"hello {contact.address}", text, level=logging.WARNING)
            elif contact.is_given and contact.tries == 1:
                log.info("cluster: %s does not answer yet: %s", contact.address, exc)
            else:
                log.debug("no answer to hello: %s", exc)
        finally:
            contact.is_calling = False

    async def _greet(self, address: str, *, timeout_s: float) -> ServerFacts:
        """Say hello and learn from the answer. Raises what the other side refuses with, Unavailable."""
        message = encode(self._hello())
        if self._is_trusting:
            try:
                data = await self.client.call(address, Path.HELLO, message, timeout_s=timeout_s)
            except OtherAuthority as exc:
                raise await self._other_authority(address, exc) from exc
            answer = decode(data, Hello, what=Path.HELLO)
            fingerprint = answer.sender.fingerprint
        else:
            first = await self.client.first_contact(
                address, Path.HELLO, message, timeout_s=timeout_s
            )
            answer = decode(first.body, Hello, what=Path.HELLO)
            fingerprint = first.fingerprint
        self._learn(answer, address=address, fingerprint=fingerprint)
        return answer.sender

    async def _other_authority(self, address: str, error: OtherAuthority) -> WaypostError:
        """Return what is to be said of a machine that does not show a certificate of this cluster."""
        first = await self.client.first_contact(address, Path.HELLO, encode(self._hello()))
        answer = decode(first.body, Hello, what=Path.HELLO)
        sender = answer.sender
        if sender.id == self._settings.node_id:
            self._same_id(sender, address)
        if sender.phase is not Phase.MEMBER or not sender.is_server:
            return Unavailable(f"{sender.node} at {address} is not a member yet")
        return Rejected(
            f"{sender.node} belongs to another cluster (authority {sender.authority}, this one's is {self.trust.pin}); "
            f"two clusters cannot be merged ({error})"
        )

    def _learn(self, answer: Hello, *, address: str, fingerprint: str) -> None:
        sender, now_s = answer.sender, self._clock.now()
        if sender.datacenter != self._settings.datacenter:
            raise Rejected(
                f"it belongs to the datacenter {sender.datacenter}, this machine to {self._settings.datacenter}"
            )
        if sender.id == self._settings.node_id:
            self._same_id(sender, address)
            return
        if sender.fingerprint != fingerprint:
            raise Unauthenticated("it says that it has another key than it shows")
        self._peers.learn(answer.servers, now_s=now_s)
        if sender.is_server:
            self._heard(sender)
        if (
            answer.roster is not None
            and sender.is_leader
            and sender.cluster == self._state.cluster
            and self._state.member_id
            and self._state.member_id not in answer.roster
        ):
            self._removed_at_s = now_s

    def _heard(self, sender: ServerFacts) -> None:
        if self._peers.heard(sender, now_s=self._clock.now()):
            self._wake.set()

    def _same_id(self, other: ServerFacts, address: str) -> None:
        """Judge another machine, or this one, that answers with this machine's id. Raises Conflict for another."""
        if other.incarnation == self._incarnation:
            self._peers.is_me(address)
            return
        text = (
            f"cluster: the machine at {other.contact} ({other.node}) has the same node id as this one, "
            f"{self._settings.node_id}: its data directory is a copy. Stop one of the two, and delete the files "
            "node-id and cluster of the copy"
        )
        if outranks(self._facts(), other):
            self._say("copy", text, level=logging.ERROR)
        else:
            self._double = (text, self._clock.now())
        raise Conflict(
            f"the node id {self._settings.node_id} is that of {self._settings.node} at {self._own_contact}, which is "
            "alive: the data directory of one of the two is a copy"
        )

    # -- what others ask ---------------------------------------------------------------------------------------------

    async def answer(self, path: str, body: bytes, *, caller: Caller, shown_mac: str) -> Reply:
        """Answer a message of another machine. Raises errors of the tree, which go back to it."""
        if self._secret is None or not isinstance(caller, Stranger):
            return Reply(await self._answer(path, body, caller))
        parts = request_parts(
            path, client=caller.fingerprint, server=self.trust.fingerprint, body=body
        )
        check_mac(self._secret, parts, shown_mac, who="the caller")
        reply = await self._answer(path, body, caller)
        return Reply(reply, mac(self._secret, answer_parts(shown_mac, reply)))

    async def _answer(self, path: str, body: bytes, caller: Caller) -> bytes:
        match path:
            case Path.HELLO:
                return encode(self._on_hello(decode(body, Hello, what=path), caller))
            case Path.PREPARE:
                return encode(await self._on_prepare(decode(body, Prepare, what=path), caller))
            case Path.COMMIT:
                return encode(await self._on_commit(decode(body, Commit, what=path), caller))
            case Path.PLAN:
                return encode(self._on_plan(decode(body, AskPlan, what=path), caller))
            case Path.ABANDON:
                return encode(await self._on_abandon(decode(body, AskPlan, what=path), caller))
            case Path.JOIN:
                return encode(await self._on_join(decode(body, Join, what=path), caller))
            case Path.RENEW:
                return encode(self._on_renew(decode(body, Renew, what=path), caller))
            case Path.LEAVE | Path.REMOVE | Path.TRANSFER:
                return encode(await self._on_change(Path(path), body, caller))
            case Path.RAFT | Path.HEALTH:
                if isinstance(caller, Stranger):
                    raise Forbidden("only members of the cluster may ask this")
                is_raft = path == Path.RAFT
                return encode(
                    RaftAnswer(members=await self.raft()) if is_raft else self._on_health()
                )
        raise NotFound(f"no such message: {path}")

    def _on_hello(self, hello: Hello, caller: Caller) -> Hello:
        sender = hello.sender
        if sender.datacenter != self._settings.datacenter:
            raise Rejected(
                f"this machine belongs to the datacenter {self._settings.datacenter}, the caller to {sender.datacenter}"
            )
        if sender.id == self._settings.node_id:
            if sender.incarnation != self._incarnation:
                self._same_id(sender, sender.contact)
            return self._hello()
        if sender.is_server and self._is_believed(sender, caller):
            self._refuse_copy(sender)
            self._peers.learn(hello.servers, now_s=self._clock.now())
            self._heard(sender)
        return self._hello()

    def _is_believed(self, sender: ServerFacts, caller: Caller) -> bool:
        """Tell whether a hello is from whom it says, and counts."""
        if isinstance(caller, ServerCaller):
            return caller.id == sender.id
        if not isinstance(caller, Stranger) or caller.fingerprint != sender.fingerprint:
            return False
        if not self._is_trusting:
            return bool(caller.fingerprint)
        plan = self._state.plan
        founder = None if plan is None else plan.member(sender.id)
        return founder is not None and founder.fingerprint == caller.fingerprint

    def _refuse_copy(self, sender: ServerFacts) -> None:
        known = self._peers.find(sender.id)
        if known is None or known.facts.incarnation == sender.incarnation:
            return
        is_live = self._clock.now() - known.last_seen_s < self._settings.failed_after_s
        if is_live and known.facts.contact != sender.contact and outranks(known.facts, sender):
            raise Conflict(
                f"the node id {sender.id} is in use by {known.facts.node} at {known.facts.contact}, which is alive: "
                "the data directory of one of the two is a copy"
            )

    async def _on_prepare(self, message: Prepare, caller: Caller) -> VoteAnswer:
        plan = message.plan
        proposer = plan.member(plan.proposer)
        if proposer is None or not isinstance(caller, Stranger) or not caller.fingerprint:
            raise Forbidden("a proposal comes from a member of it")
        if proposer.fingerprint != caller.fingerprint:
            raise Forbidden("the caller is not the one that proposes")

        async def change() -> Vote:
            now_s = self._clock.now()
            state, answer = protocol.vote(
                self._state,
                plan,
                me=self._facts(),
                has_data=has_data(self._settings.directory / "etcd"),
                knows_cluster=any(
                    one.phase is Phase.MEMBER for one in self._peers.live(now_s=now_s)
                ),
            )
            if self._doubled() or self._has_left:
                return Vote(is_accepted=False, why="it is not able to take part")
            if state is not self._state:
                self._save(state)
                self._ask_at_s = now_s + _ROUND_TIMEOUT_S
                log.info(
                    "cluster: voted for the plan of %s (authority %s)",
                    proposer.node,
                    plan.authority,
                )
            return answer

        if not self._settings.is_server:
            raise Rejected("this machine is not a server")
        found = await self._in_turn(change)
        return VoteAnswer(id=self._settings.node_id, is_accepted=found.is_accepted, why=found.why)

    async def _on_commit(self, message: Commit, caller: Caller) -> VoteAnswer:
        self._check_founder(message.plan.proposer, message.plan.token, caller)
        if _pin_of(message.secrets) != message.plan.authority:
            raise Malformed("the keys are not those of the plan's authority")

        async def change() -> Vote:
            state, answer = protocol.commit(self._state, message.plan)
            if state is not self._state:
                await self._found(state, message.secrets)
            return answer

        found = await self._in_turn(change)
        return VoteAnswer(id=self._settings.node_id, is_accepted=found.is_accepted, why=found.why)

    def _check_founder(self, server_id: str, token: str, caller: Caller) -> None:
        """Raise Forbidden unless the caller is this member of the plan that was voted for here."""
        plan = self._state.plan
        member = plan.member(server_id) if plan is not None and plan.token == token else None
        if (
            member is None
            or not isinstance(caller, Stranger)
            or caller.fingerprint != member.fingerprint
        ):
            raise Forbidden("the caller is not a member of a plan that this server knows")

    def _on_plan(self, message: AskPlan, caller: Caller) -> PlanAnswer:
        status = protocol.plan_status(self._state, message.token)
        secrets = None
        if status is PlanStatus.COMMITTED:
            self._check_founder(message.id, message.token, caller)
            secrets = self.trust.secrets()
        return PlanAnswer(id=self._settings.node_id, status=status, secrets=secrets)

    async def _on_abandon(self, message: AskPlan, caller: Caller) -> PlanAnswer:
        known = self._peers.find(message.id)
        if (
            not isinstance(caller, Stranger)
            or known is None
            or known.facts.fingerprint != caller.fingerprint
        ):
            raise Forbidden("the caller is not a server that this one knows")

        async def change() -> PlanStatus:
            state, status = protocol.abandon(self._state, message.token)
            if state is not self._state:
                self._save(state)
            return status

        status = await self._in_turn(change)
        if status is PlanStatus.COMMITTED:
            return self._on_plan(message, caller)
        return PlanAnswer(id=self._settings.node_id, status=status)

    async def _on_join(self, message: Join, caller: Caller) -> JoinAnswer:
        sender = message.sender
        if self._state.phase is not Phase.MEMBER or not self._settings.is_server:
            raise NoLeader("this machine is not a member of a cluster")
        if sender.datacenter != self._settings.datacenter:
            raise Rejected(f"this cluster is the datacenter {self._settings.datacenter}")
        self._authorize(message, caller)
        assert self.trust.authority is not None
        if not sender.is_server:
            self._refuse_name(sender)
            return self._certify(message.csr_pem, node=sender.node)
        if not self.is_leader:
            leader = self.leader()
            if leader is None:
                raise NoLeader("No cluster leader")
            return JoinAnswer(leader=leader.contact)
        if sender.authority and sender.authority != self.trust.pin:
            raise Conflict(
                f"{sender.node} has an authority of its own ({sender.authority}), the cluster's is {self.trust.pin}: "
                "move its pki directory away"
            )
        found = await self._membership.admit(message)
        if not isinstance(found, Admitted):
            return JoinAnswer(why=found.why, retry_after_s=_JOIN_AGAIN_S)
        return JoinAnswer(
            authority_pem=self.trust.authority.pem,
            secrets=self.trust.secrets(),
            cluster=self._state.cluster,
            epoch=self._state.epoch,
            initial_cluster=found.initial_cluster,
            member_id=found.member_id,
            servers=self._known_servers(),
        )

    def _authorize(self, message: Join, caller: Caller) -> None:
        """Raise unless the caller may join: a member already, or with a token that is good."""
        sender = message.sender
        if isinstance(caller, ServerCaller) and caller.id == sender.id and sender.is_server:
            return
        if isinstance(caller, NodeCaller) and caller.node == sender.node and not sender.is_server:
            return
        if message.token:
            facts = self.token_facts(message.token) if self.token_facts is not None else None
            if facts is not None:
                log.info("cluster: %s joins with the token %s", sender.node, facts.id)
                return
            if not self._settings.open_join:
                raise Unauthenticated("the token is not good: it is unknown or has expired")
        if not self._settings.open_join:
            raise Unauthenticated(
                "joining this cluster needs a token: make one on a server with "
                '"waypost token create" and give it with -join-token'
            )

    def _refuse_name(self, sender: ServerFacts) -> None:
        servers = [one for one in self.servers() if one.node == sender.node and one.id != sender.id]
        if servers:
            raise Conflict(f"the node name {sender.node} is in use by a server of the cluster")

    def _certify(self, csr_pem: bytes, *, node: str) -> JoinAnswer:
        assert self.trust.authority is not None
        return JoinAnswer(
            authority_pem=self.trust.authority.pem,
            certificate_pem=self.trust.sign_node(csr_pem, node=node, now_s=self._clock.wall()),
            cluster=self._state.cluster,
            epoch=self._state.epoch,
            servers=self._known_servers(),
        )

    def _known_servers(self) -> tuple[ServerFacts, ...]:
        members = (one.facts for one in self._peers.all() if one.facts.phase is Phase.MEMBER)
        return (self._facts(), *members)

    def _on_renew(self, message: Renew, caller: Caller) -> JoinAnswer:
        if not isinstance(caller, NodeCaller):
            raise Forbidden("only a node with a certificate of this cluster renews it")
        return self._certify(message.csr_pem, node=caller.node)

    def _on_health(self) -> HealthAnswer:
        if self.is_leader:
            return HealthAnswer(members=self._membership.health())
        leader = self.leader()
        if leader is None:
            raise NoLeader("No cluster leader")
        return HealthAnswer(leader=leader.contact)

    async def _on_change(self, path: Path, body: bytes, caller: Caller) -> Done:
        message = decode(body, AboutMember, what=path)
        if not isinstance(caller, ServerCaller):
            raise Forbidden("only servers of the cluster may change its members")
        if path is Path.LEAVE and caller.id != message.member:
            raise Forbidden("a server leaves by itself; another one is removed")
        if not self.is_leader:
            leader = self.leader()
            if leader is None:
                raise NoLeader("No cluster leader")
            return Done(leader=leader.contact)
        return await self._change(path, message)

    async def _change(self, path: Path, message: AboutMember) -> Done:
        if path is Path.TRANSFER:
            return await self._membership.transfer(message.member)
        if await self._membership.leads_as(message.member):
            # Whoever leads cannot take itself out; the next leader is asked again.
            await self._membership.transfer("")
            raise NoLeader("the leadership is handed over first")
        why = "it leaves" if path is Path.LEAVE else "an operator removed it"
        return await self._membership.remove(message.member, why=why)


async def _settle(change: Callable[[], Awaitable[Any]], answer: asyncio.Future[Any]) -> None:
    """Do a change and hand its outcome to whoever waits for it."""
    try:
        found = await change()
    except WaypostError as exc:
        if not answer.done():
            answer.set_exception(exc)
    except BaseException as exc:
        if not answer.done():
            answer.set_exception(Unavailable(f"a fault of waypost's: {type(exc).__name__}"))
        raise
    else:
        if not answer.done():
            answer.set_result(found)


def _info(
    facts: ServerFacts, *, last_seen_s: float, is_live: bool, is_self: bool = False
) -> ServerInfo:
    return ServerInfo(
        id=facts.id,
        node=facts.node,
        datacenter=facts.datacenter,
        address=facts.address,
        cluster_port=facts.cluster_port,
        server_port=facts.server_port,
        store_port=facts.store_port,
        phase=facts.phase,
        is_leader=facts.is_leader and is_live,
        is_self=is_self,
        is_live=is_live,
        last_seen_s=last_seen_s,
    )


def _pin_of(secrets: Secrets) -> str:
    from waypost.access.pki.issue import ca_pin, load_certificate

    return ca_pin(load_certificate(secrets.authority_pem, name="the cluster's authority"))


def _replace(state: State, **changes: object) -> State:
    return msgspec.structs.replace(state, **changes)
