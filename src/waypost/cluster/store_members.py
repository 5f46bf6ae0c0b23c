"""etcd's membership as the cluster needs it: typed, one attempt a call, each at a named endpoint.

Source: https://etcd.io/docs/v3.4/dev-guide/api_reference_v3/ (Cluster, Maintenance) by way of the JSON gateway.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Conflict, NoLeader, Unavailable, WaypostError
from waypost.cluster.reconcile import StoreMember
from waypost.store.etcd.failure import Failure
from waypost.store.etcd.gateway import Gateway
from waypost.store.etcd.tls import EtcdTls

_TIMEOUT_S = 3.0
_STATUS_TIMEOUT_S = 1.0


class NotInSync(Unavailable):
    """A learner that is behind cannot be promoted yet."""

    code = "not_in_sync"


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


class _Header(msgspec.Struct):
    cluster_id: int = 0
    member_id: int = 0
    revision: int = 0


class _Status(msgspec.Struct, rename="camel"):
    header: _Header = msgspec.field(default_factory=_Header)
    version: str = ""
    leader: int = 0
    raft_index: int = 0
    raft_term: int = 0
    is_learner: bool = False


class _Member(msgspec.Struct, rename={"id": "ID", "peer_urls": "peerURLs", "client_urls": "clientURLs", "is_learner": "isLearner"}):  # fmt: skip
    id: int = 0
    name: str = ""
    peer_urls: list[str] = []
    client_urls: list[str] = []
    is_learner: bool = False

    def ours(self) -> StoreMember:
        return StoreMember(
            id=self.id,
            name=self.name,
            peer_url=self.peer_urls[0] if self.peer_urls else "",
            client_url=self.client_urls[0] if self.client_urls else "",
            is_learner=self.is_learner,
        )


class _List(msgspec.Struct):
    members: list[_Member] = []


_status = msgspec.json.Decoder(_Status, strict=False)
_list = msgspec.json.Decoder(_List, strict=False)


class StoreMembers:
    """Asks etcd about its members and changes them. Open it before use, close it after."""

    def __init__(self, tls: EtcdTls, *, clock: Clock, rng: Random) -> None:
        self._gateway = Gateway(
            (),
            tls=tls,
            clock=clock,
            rng=rng,
        )

    async def open(self) -> None:
        """Make the HTTP client; connects to nobody."""
        await self._gateway.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._gateway.close()

    async def _post(
        self, endpoint: str, path: str, body: object, *, timeout_s: float, needs_leader: bool = True
    ) -> bytes:
        try:
            return await self._gateway.post(
                path,
                msgspec.json.encode(body),
                endpoint=endpoint,
                timeout_s=timeout_s,
                needs_leader=needs_leader,
            )
        except Failure as exc:
            raise _translated(exc) from exc

    async def status(self, endpoint: str) -> StoreStatus:
        """Return what the member at `endpoint` says about itself. Raises Unavailable."""
        data = await self._post(
            endpoint,
            "/v3/maintenance/status",
            {},
            timeout_s=_STATUS_TIMEOUT_S,
            needs_leader=False,
        )
        found = _status.decode(data)
        return StoreStatus(
            member_id=found.header.member_id,
            cluster_id=found.header.cluster_id,
            leader_id=found.leader,
            raft_term=found.raft_term,
            raft_index=found.raft_index,
            is_learner=found.is_learner,
            version=found.version,
        )

    async def confirm(self, endpoint: str) -> None:
        """Return when a quorum confirmed that the store answers. Raises Unavailable."""
        await self._post(
            endpoint, "/v3/kv/range", {"key": "AA==", "count_only": True}, timeout_s=_TIMEOUT_S
        )

    async def list(self, endpoint: str) -> tuple[StoreMember, ...]:
        """Return the members as the one at `endpoint` knows them. Raises Unavailable."""
        data = await self._post(endpoint, "/v3/cluster/member/list", {}, timeout_s=_TIMEOUT_S)
        return tuple(one.ours() for one in _list.decode(data).members)

    async def add_learner(self, endpoint: str, peer_url: str) -> None:
        """Add a member that does not vote yet. Raises Conflict when there is one already, Unavailable."""
        body = {"peerURLs": [peer_url], "isLearner": True}
        await self._post(endpoint, "/v3/cluster/member/add", body, timeout_s=_TIMEOUT_S)

    async def promote(self, endpoint: str, member: StoreMember) -> None:
        """Let a learner vote. Raises NotInSync while it is behind, Unavailable."""
        body = {"ID": str(member.id)}
        await self._post(endpoint, "/v3/cluster/member/promote", body, timeout_s=_TIMEOUT_S)

    async def remove(self, endpoint: str, member: StoreMember) -> None:
        """Take a member out; one that is out already is no error. Raises Unavailable."""
        body = {"ID": str(member.id)}
        try:
            await self._post(endpoint, "/v3/cluster/member/remove", body, timeout_s=_TIMEOUT_S)
        except Conflict as exc:
            if "member not found" not in str(exc):
                raise

    async def update(self, endpoint: str, member: StoreMember, peer_url: str) -> None:
        """Give a member another peer URL. Raises Conflict, Unavailable."""
        body = {"ID": str(member.id), "peerURLs": [peer_url]}
        await self._post(endpoint, "/v3/cluster/member/update", body, timeout_s=_TIMEOUT_S)

    async def move_leader(self, endpoint: str, member: StoreMember) -> None:
        """Let a voter lead; `endpoint` must be the leader's. Raises Conflict, Unavailable."""
        body = {"targetID": str(member.id)}
        await self._post(
            endpoint, "/v3/maintenance/transfer-leadership", body, timeout_s=_TIMEOUT_S
        )


def _translated(failure: Failure) -> WaypostError:
    if "in sync with leader" in failure.text:
        return NotInSync(failure.text)
    if "no leader" in failure.text or "not leader" in failure.text:
        return NoLeader(str(failure))
    if failure.outcome == "refused":
        return Conflict(str(failure))
    return Unavailable(str(failure))


def voters(members: Sequence[StoreMember]) -> tuple[StoreMember, ...]:
    """Return those that vote."""
    return tuple(one for one in members if not one.is_learner)
