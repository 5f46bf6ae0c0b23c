"""Changes of the store's membership: made by the server beside the store's leader, one at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Conflict, NoLeader, NotFound, Unavailable, WaypostError
from waypost.cluster.health import Judge, Sight
from waypost.cluster.messages import Done, Join, MemberHealth
from waypost.cluster.peers import Peers
from waypost.cluster.reconcile import (
    Add,
    Admit,
    Change,
    Pace,
    Promote,
    Refuse,
    Remove,
    Roster,
    StoreMember,
    Update,
    can_lose,
    next_change,
    next_join,
)
from waypost.cluster.store_members import StoreMembers
from waypost.domain.cluster import Autopilot
from waypost.store.etcd.members import NotInSync

log = logging.getLogger(__name__)

_EVERY_S = 0.25
_HEALTH_EVERY_S = 1.0
_QUEUE_S = 3.0
_FRESH_S = 1.0
_STEPS = 6


class Local(Protocol):
    """The store on this machine, as the cluster knows it."""

    @property
    def members(self) -> StoreMembers | None:
        """How to ask the store; None before there is one."""
        ...

    @property
    def endpoint(self) -> str:
        """The URL of this machine's member."""
        ...

    @property
    def is_leader(self) -> bool:
        """Whether the store's leader is on this machine."""
        ...


class Admitted(msgspec.Struct, frozen=True):
    """How a new member has to start."""

    member_id: str
    initial_cluster: str


class Membership:
    """The reconciler, and the answers to those who join, leave or are removed."""

    def __init__(
        self,
        local: Local,
        peers: Peers,
        *,
        own_id: str,
        pace: Pace,
        policy: Callable[[], Autopilot] = Autopilot,
        on_list: Callable[[tuple[StoreMember, ...]], None],
        clock: Clock,
    ) -> None:
        """`policy` is what the operator decided, as of now; `on_list` is called with the members as often as listed."""
        self._policy = policy
        self._judge = Judge(clock=clock)
        self._local = local
        self._peers = peers
        self._own_id = own_id
        self._pace = pace
        self._clock = clock
        self._lock = asyncio.Lock()
        self._since: dict[tuple[int, bool, str], float] = {}
        self._led_since_s: float | None = None
        self._waiting: dict[str, float] = {}
        self._members: tuple[StoreMember, ...] = ()
        self._confirmed_s = float("-inf")
        self._on_list = on_list

    def roster(self) -> tuple[StoreMember, ...] | None:
        """Return the members, if this server leads and a quorum confirmed it within the last second."""
        if not self._local.is_leader or self._clock.now() - self._confirmed_s > _FRESH_S:
            return None
        return self._members

    def health(self) -> tuple[MemberHealth, ...]:
        """Return how the members were at the last look. Raises NoLeader: only the leader looks."""
        if not self._local.is_leader:
            raise NoLeader("this server does not lead the cluster")
        return self._judge.verdicts()

    async def run(self) -> None:
        """Look every 250 ms, and change what has to change, until cancelled. Each second look how the members are."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_changes(), name="cluster.membership.changes")
            group.create_task(self._run_health(), name="cluster.membership.health")

    async def _run_health(self) -> None:
        while True:
            if self._local.is_leader and self._members:
                try:
                    await self._see()
                except WaypostError as exc:
                    log.debug("how the members are could not be looked at: %s", exc)
            elif not self._local.is_leader:
                self._judge.forget()
            # While nothing was seen yet the list of the members is awaited.
            await asyncio.sleep(_HEALTH_EVERY_S if self._judge.verdicts() else _EVERY_S)

    async def _see(self) -> None:
        """Ask the own member first and then all others how far they are, so that those seem rather ahead than behind."""
        store, endpoint = self._store()
        members = self._members
        leader = await store.status(endpoint)
        facts = self._peers.facts()

        async def sight(member: StoreMember) -> Sight:
            if member.name == self._own_id:
                return Sight(member=member, status=leader, took_s=0.0)
            known = facts.get(member.name)
            url = known.client_url if known is not None else member.client_url
            if not url:
                return Sight(member=member, why="its store has not started")
            started_s = self._clock.now()
            try:
                status = await store.status(url)
            except WaypostError as exc:
                return Sight(member=member, why=str(exc))
            return Sight(member=member, status=status, took_s=self._clock.now() - started_s)

        async with asyncio.TaskGroup() as group:
            sights = [group.create_task(sight(one), name="cluster.health") for one in members]
        self._judge.judge([one.result() for one in sights], leader=leader, policy=self._policy())

    async def _run_changes(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            if not self._local.is_leader:
                self._led_since_s = None
                self._waiting.clear()
                continue
            if self._led_since_s is None:
                self._led_since_s = self._clock.now()
            try:
                async with self._lock:
                    await self._reconcile()
            except WaypostError as exc:
                log.debug("the membership could not be looked at: %s", exc)

    async def _reconcile(self) -> None:
        roster = await self._look()
        change = next_change(roster, self._pace, self._policy())
        if change is not None:
            await self._apply(change)

    def _store(self) -> tuple[StoreMembers, str]:
        store = self._local.members
        if store is None or not self._local.is_leader:
            raise NoLeader("this server does not lead the cluster")
        return store, self._local.endpoint

    async def _look(self) -> Roster:
        store, endpoint = self._store()
        # The list alone is answered without asking anybody, even by a leader that was deposed.
        await store.confirm(endpoint)
        members = await store.list(endpoint)
        now_s = self._clock.now()
        self._members, self._confirmed_s = members, now_s
        self._on_list(members)
        kinds = {(one.id, one.is_learner, one.name) for one in members}
        self._since = {key: self._since.get(key, now_s) for key in kinds}
        self._waiting = {key: at for key, at in self._waiting.items() if now_s - at < _QUEUE_S}
        learners = {one.name for one in members if one.is_learner}
        led_since_s = self._led_since_s
        return Roster(
            me=self._own_id,
            members=members,
            silent_s=self._peers.silent_s(now_s=now_s),
            facts=self._peers.facts(),
            known_for_s={key[0]: now_s - at for key, at in self._since.items()},
            healthy_for_s=self._judge.healthy_for_s(),
            led_for_s=0.0 if led_since_s is None else now_s - led_since_s,
            is_third_waiting=bool(self._waiting.keys() - learners),
        )

    def _name(self, member: StoreMember) -> str:
        peer = self._peers.find(member.name)
        return f"{peer.facts.node} ({member.peer_url})" if peer else member.peer_url

    async def _apply(self, change: Change) -> None:
        store, endpoint = self._store()
        match change:
            case Remove(member, why):
                log.warning("%s is removed from the cluster: %s", self._name(member), why)
                await store.remove(endpoint, member)
            case Promote(member):
                try:
                    await store.promote(endpoint, member)
                except NotInSync:
                    return
                log.info("%s votes from now on", self._name(member))
            case Update(member, peer_url):
                log.info("%s moved to %s", self._name(member), peer_url)
                await store.update(endpoint, member, peer_url)

    # -- for others

    async def admit(self, join: Join) -> Admitted | Refuse:
        """Take a server in as a learner, or say why not now. Idempotent. Raises NoLeader, Conflict, Unavailable."""
        async with self._lock:
            for _ in range(_STEPS):
                roster = await self._look()
                found = next_join(
                    roster, self._pace, join.sender, last_member_id=join.last_member_id
                )
                store, endpoint = self._store()
                match found:
                    case Refuse(_, is_queue):
                        if is_queue:
                            self._waiting[join.sender.id] = self._clock.now()
                        return found
                    case Remove():
                        await self._apply(found)
                    case Add(peer_url):
                        log.info("%s joins at %s", join.sender.node, peer_url)
                        await store.add_learner(endpoint, peer_url)
                    case Admit(member):
                        return Admitted(
                            member_id=f"{member.id:x}",
                            initial_cluster=_initial_cluster(roster, member, join.sender.id),
                        )
            return Refuse("the membership keeps changing")

    async def remove(self, wanted: str, *, why: str) -> Done:
        """Remove a member by node id, store id or address. Raises NotFound, Conflict, NoLeader, Unavailable."""
        async with self._lock:
            roster = await self._look()
            member = self._find(roster, wanted)
            if member.name == self._own_id:
                raise Conflict(
                    "this server leads the cluster; the leadership has to be transferred first"
                )
            if not member.is_learner and not can_lose(roster, self._pace, member):
                raise Conflict(
                    f"without {self._name(member)} too few live servers would be left to accept writes"
                )
            await self._apply(Remove(member, why))
            return Done(detail=f"{member.id:x}")

    async def leads_as(self, wanted: str) -> bool:
        """Tell whether `wanted` is this server. Raises NotFound, NoLeader, Unavailable."""
        async with self._lock:
            return self._find(await self._look(), wanted).name == self._own_id

    async def transfer(self, wanted: str) -> Done:
        """Let another voter lead; empty: one that is alive. Raises NotFound, Conflict, NoLeader, Unavailable."""
        async with self._lock:
            roster = await self._look()
            if wanted:
                member = self._find(roster, wanted)
                if member.name == self._own_id:
                    return Done(detail=member.name)
                if member.is_learner:
                    raise Conflict(f"{self._name(member)} does not vote")
            else:
                silent = roster.silent_s
                others = [
                    one
                    for one in roster.members
                    if not one.is_learner
                    and one.name != self._own_id
                    and silent.get(one.name, float("inf")) < self._pace.failed_after_s
                ]
                if not others:
                    raise Unavailable("no other server is alive that could lead")
                member = min(others, key=lambda one: silent[one.name])
            store, endpoint = self._store()
            await store.move_leader(endpoint, member)
            log.info("%s leads the cluster now", self._name(member))
            return Done(detail=member.name)

    def _find(self, roster: Roster, wanted: str) -> StoreMember:
        for one in roster.members:
            address = one.peer_url.partition("://")[2]
            if wanted in (one.name, f"{one.id:x}", address):
                return one
        raise NotFound(f'no member "{wanted}" in the cluster')


def _initial_cluster(roster: Roster, member: StoreMember, own_id: str) -> str:
    """Return etcd's flag for a member that joins: it compares the URLs of all members, names only of the own."""
    return ",".join(
        f"{own_id if one.id == member.id else one.name or f'{one.id:x}'}={one.peer_url}"
        for one in roster.members
    )
