"""etcd's membership as the cluster needs it: `store.etcd.Members`, one attempt a call, each at a named endpoint."""

from __future__ import annotations

import contextlib
from random import Random

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import NotFound
from waypost.cluster.reconcile import StoreMember
from waypost.store.etcd.gateway import Gateway
from waypost.store.etcd.members import Member, Members
from waypost.store.etcd.tls import EtcdTls

_TIMEOUT_S = 3.0
_STATUS_TIMEOUT_S = 1.0


class StoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What one member says about itself."""

    member_id: int
    cluster_id: int
    leader_id: int
    """0: it knows none."""
    raft_term: int
    raft_index: int
    is_learner: bool
    version: str


class StoreMembers:
    """Asks etcd about its members and changes them. Open it before use, close it after."""

    def __init__(self, tls: EtcdTls, *, clock: Clock, rng: Random) -> None:
        self._gateway = Gateway((), tls=tls, clock=clock, rng=rng)
        self._members = Members(self._gateway, timeout_s=_TIMEOUT_S)

    async def open(self) -> None:
        """Make the HTTP client; connects to nobody."""
        await self._gateway.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._gateway.close()

    async def status(self, endpoint: str) -> StoreStatus:
        """Return what the member at `endpoint` says about itself. Raises Unavailable."""
        found = await self._members.endpoint_status(endpoint, timeout_s=_STATUS_TIMEOUT_S)
        return StoreStatus(
            member_id=found.member_id,
            cluster_id=found.cluster_id,
            leader_id=found.leader_id,
            raft_term=found.raft_term,
            raft_index=found.raft_index,
            is_learner=found.is_learner,
            version=found.version,
        )

    async def confirm(self, endpoint: str) -> None:
        """Return when a quorum confirmed that the store answers. Raises Unavailable."""
        await self._members.confirm(endpoint=endpoint)

    async def list(self, endpoint: str) -> tuple[StoreMember, ...]:
        """Return the members as the one at `endpoint` knows them. Raises Unavailable."""
        return tuple(_ours(one) for one in await self._members.list(endpoint=endpoint))

    async def add_learner(self, endpoint: str, peer_url: str) -> None:
        """Add a member that does not vote yet. Raises Conflict when there is one already, Unavailable."""
        await self._members.add_learner(peer_url, endpoint=endpoint)

    async def promote(self, endpoint: str, member: StoreMember) -> None:
        """Let a learner vote. Raises NotInSync while it is behind, Conflict, NotFound, Unavailable."""
        await self._members.promote(member.id, endpoint=endpoint)

    async def remove(self, endpoint: str, member: StoreMember) -> None:
        """Take a member out; one that is out already is no error. Raises Conflict, Unavailable."""
        with contextlib.suppress(NotFound):
            await self._members.remove(member.id, endpoint=endpoint)

    async def update(self, endpoint: str, member: StoreMember, peer_url: str) -> None:
        """Give a member another peer URL. Raises Conflict, NotFound, Unavailable."""
        await self._members.update(member.id, peer_url, endpoint=endpoint)

    async def move_leader(self, endpoint: str, member: StoreMember) -> None:
        """Let a voter lead; `endpoint` must be the leader's. Raises Conflict, NotFound, Unavailable."""
        await self._members.move_leader(member.id, endpoint=endpoint)


def _ours(member: Member) -> StoreMember:
    return StoreMember(
        id=member.id,
        name=member.name,
        peer_url=member.peer_urls[0] if member.peer_urls else "",
        client_url=member.client_urls[0] if member.client_urls else "",
        is_learner=member.is_learner,
    )
