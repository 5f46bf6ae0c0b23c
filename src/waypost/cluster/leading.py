"""What only the leader can do, asked for on any machine of the cluster: members leave, are removed, lead."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Forbidden, NoLeader, NotFound, Unavailable
from waypost.cluster.directory import Directory
from waypost.cluster.local_store import LocalStore
from waypost.cluster.membership import Membership
from waypost.cluster.messages import (
    AboutMember,
    Done,
    HealthAnswer,
    MemberHealth,
    Path,
    RaftAnswer,
    decode,
    encode,
)
from waypost.cluster.records import Phase, RaftMember
from waypost.cluster.transport import PeerClient
from waypost.cluster.trust import Caller, ServerCaller, Stranger

T = TypeVar("T")
A = TypeVar("A", Done, HealthAnswer)

_TIMEOUT_S: Final = 10.0
_WITHIN_S: Final = 15.0
_AGAIN_S: Final = 0.2


class Leading:
    """Asks the leader, and is asked when it is here."""

    def __init__(
        self,
        directory: Directory,
        store: LocalStore,
        membership: Membership,
        client: PeerClient,
        *,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._store = store
        self._membership = membership
        self._client = client
        self._clock = clock

    # -- asking

    async def raft(self) -> tuple[RaftMember, ...]:
        """Return the members of the store. Raises Unavailable when no server can tell."""
        members = self._store.members
        if self._store.status is None or members is None:
            return (await self.ask_any(Path.RAFT, AboutMember(), RaftAnswer)).members
        return self._directory.raft(await members.list(self._store.endpoint))

    async def insist(self, path: Path, message: AboutMember) -> None:
        """Have the leader do something, also while the leadership moves. Raises as the leader does, Unavailable."""
        deadline_s, tries = self._clock.now() + _WITHIN_S, 0
        while True:
            try:
                await self.ask_leader(path, message)
            except NotFound:
                if tries:  # done, but the answer was lost
                    return
                raise
            except Unavailable:
                if self._clock.now() > deadline_s:
                    raise
                tries += 1
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def ask_leader(self, path: Path, message: AboutMember) -> Done:
        """Have the leader do something, once. Raises as the leader does, Unavailable."""
        if self._store.is_leader:
            return await self._change(path, message)
        return await self._ask_through(path, message, Done)

    async def health(self) -> tuple[MemberHealth, ...]:
        """Return how the members of the store are, as the leader saw them last. Raises NoLeader, Unavailable."""
        if self._store.is_leader:
            return self._membership.health()
        return (await self._ask_through(Path.HEALTH, AboutMember(), HealthAnswer)).members

    async def _ask_through(self, path: Path, message: msgspec.Struct, kind: type[A]) -> A:
        """Ask any server, and then the leader that it names."""
        found = await self.ask_any(path, message, kind)
        if found.leader:
            found = await self._ask(found.leader, path, message, kind)
            if found.leader:
                raise NoLeader("the cluster's leader is just changing")
        return found

    async def ask_any(self, path: Path, message: msgspec.Struct, kind: type[T]) -> T:
        """Ask the leader if it is known, else others, until one answers. Raises as the server does, Unavailable."""
        leader = self._directory.leader()
        ordered = sorted(
            (
                one
                for one in self._directory.servers()
                if not one.is_self and one.phase is Phase.MEMBER
            ),
            key=lambda one: (leader is None or one.id != leader.id, not one.is_live),
        )
        failure: Unavailable = NoLeader("no server of the cluster is known")
        for one in ordered:
            try:
                return await self._ask(one.contact, path, message, kind)
            except Unavailable as exc:
                failure = exc
        raise failure

    async def _ask(self, address: str, path: Path, message: msgspec.Struct, kind: type[T]) -> T:
        data = await self._client.call(address, path, encode(message), timeout_s=_TIMEOUT_S)
        return decode(data, kind, what=path)

    # -- answering

    async def answer_raft(self, caller: Caller) -> RaftAnswer:
        """Answer a member. Raises Forbidden to others, Unavailable."""
        if isinstance(caller, Stranger):
            raise Forbidden("only members of the cluster may ask this")
        return RaftAnswer(members=await self.raft())

    def answer_health(self, caller: Caller) -> HealthAnswer:
        """Answer a member, or name the leader. Raises Forbidden to others, NoLeader."""
        if isinstance(caller, Stranger):
            raise Forbidden("only members of the cluster may ask this")
        if self._store.is_leader:
            return HealthAnswer(members=self._membership.health())
        return HealthAnswer(leader=self._leader())

    def _leader(self) -> str:
        leader = self._directory.leader()
        if leader is None:
            raise NoLeader("No cluster leader")
        return leader.contact

    async def answer_change(self, path: Path, message: AboutMember, caller: Caller) -> Done:
        """Do what a server asks, or name the leader. Raises Forbidden, NotFound, Conflict, Unavailable."""
        if not isinstance(caller, ServerCaller):
            raise Forbidden("only servers of the cluster may change its members")
        if path is Path.LEAVE and caller.id != message.member:
            raise Forbidden("a server leaves by itself; another one is removed")
        if not self._store.is_leader:
            return Done(leader=self._leader())
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
