"""The cluster as the surfaces and the liveness see it: `Cluster` in their words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from waypost.base.errors import Conflict, Malformed, NotFound, Rejected, Unavailable
from waypost.cluster.messages import MemberHealth
from waypost.cluster.records import RaftMember, ServerInfo
from waypost.cluster.settings import join_host
from waypost.domain.cluster import Server, ServerHealth


class Group(Protocol):
    """What is needed of `Cluster`."""

    @property
    def is_leader(self) -> bool:
        """Whether the store's leader is on this machine."""
        ...

    @property
    def knows_leader(self) -> bool:
        """Whether the store has a leader, as far as this machine knows."""
        ...

    def servers(self) -> tuple[ServerInfo, ...]:
        """Return the known servers."""
        ...

    def leader(self) -> ServerInfo | None:
        """Return the server beside the store's leader, None when none is known."""
        ...

    async def raft(self) -> tuple[RaftMember, ...]:
        """Return the members of the store. Raises Unavailable."""
        ...

    async def health(self) -> tuple[MemberHealth, ...]:
        """Return how the members of the store are. Raises NoLeader, Unavailable."""
        ...

    async def join(self, addresses: tuple[str, ...]) -> int:
        """Say hello to more machines; return how many answered. Raises Malformed, Unavailable."""
        ...

    async def leave(self) -> None:
        """Leave for good. Raises Conflict, Unavailable."""
        ...

    async def remove_peer(self, member: str) -> None:
        """Remove a server by its node id. Raises NotFound, Conflict, Unavailable."""
        ...

    async def transfer_leader(self, member: str = "") -> None:
        """Let another server lead. Raises NotFound, Conflict, Unavailable."""
        ...


class ClusterContacts:
    """Where beats go; a `liveness.Contacts`."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def servers(self) -> Sequence[str]:
        """Return the cluster ports of the other servers, those first that were heard of."""
        return [one.contact for one in self._group.servers() if not one.is_self]

    def leader(self) -> str:
        """Return the leader's cluster port; empty without one, and on the leader."""
        leader = self._group.leader()
        return leader.contact if leader is not None and not leader.is_self else ""


class ClusterFacade:
    """The group of servers for the surfaces; a `domain.cluster.ClusterView`."""

    def __init__(
        self,
        group: Group,
        *,
        last_contact_s: Callable[[], float],
        sign_off: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`last_contact_s` and `sign_off` are those of `Liveness`.

        Without `sign_off` an agent that leaves writes so itself, which only a server may.
        """
        self._group = group
        self._sign_off = sign_off
        self.last_contact_s = last_contact_s

    @property
    def is_leader(self) -> bool:
        """See ClusterView."""
        return self._group.is_leader

    @property
    def knows_leader(self) -> bool:
        """See ClusterView."""
        return self._group.knows_leader

    def leader_address(self) -> str:
        """See ClusterView."""
        leader = self._group.leader()
        return join_host(leader.address, leader.server_port) if leader is not None else ""

    async def servers(self) -> Sequence[Server]:
        """See ClusterView."""
        return [_server(one) for one in await self._group.raft()]

    async def health(self) -> Sequence[ServerHealth]:
        """See ClusterView."""
        seen = {one.id: one for one in await self._group.health()}
        return [_health(_server(one), seen.get(one.id)) for one in await self._group.raft()]

    async def join(self, address: str) -> None:
        """See ClusterView."""
        try:
            await self._group.join((address,))
        except (Malformed, Unavailable) as error:
            msg = f"Failed to join {address}: {error}"
            raise Rejected(msg) from error

    async def sign_off(self) -> bool:
        """See ClusterView."""
        if self._sign_off is None:
            return False
        await self._sign_off()
        return True

    async def leave(self) -> None:
        """See ClusterView."""
        try:
            await self._group.leave()
        except Conflict as error:
            raise Rejected(str(error)) from error

    async def remove_server(self, server_id: str) -> None:
        """See ClusterView."""
        try:
            await self._group.remove_peer(server_id)
        except (Conflict, NotFound) as error:
            raise Rejected(str(error)) from error

    async def transfer_leader(self, server_id: str) -> None:
        """See ClusterView."""
        try:
            await self._group.transfer_leader(server_id)
        except (Conflict, NotFound) as error:
            raise Rejected(str(error)) from error


def _server(member: RaftMember) -> Server:
    return Server(
        id=member.id,
        node=member.node,
        address=member.address,
        is_leader=member.is_leader,
        is_voter=member.is_voter,
    )


def _health(server: Server, seen: MemberHealth | None) -> ServerHealth:
    """Return how a server is; one that the leader has not looked at yet is not healthy."""
    return ServerHealth(
        server=server,
        is_healthy=seen is not None and seen.is_healthy,
        contact_s=seen.contact_s if seen is not None else None,
        term=seen.term if seen is not None else 0,
        index=seen.index if seen is not None else 0,
        since_s=seen.since_s if seen is not None else None,
    )
