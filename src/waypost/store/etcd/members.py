"""Membership and maintenance of etcd, in its own terms."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, TypeVar

import msgspec

from waypost.base.errors import Conflict, NoLeader, NotFound, Unavailable, WaypostError
from waypost.store.etcd.failure import NOT_FOUND, Failure, explain, maybe_done, parse_failure
from waypost.store.etcd.gateway import Gateway, decode
from waypost.store.etcd.messages import RANGE, STATUS, header_decoder, status_decoder

T = TypeVar("T")

LIST = "/v3/cluster/member/list"
ADD = "/v3/cluster/member/add"
PROMOTE = "/v3/cluster/member/promote"
REMOVE = "/v3/cluster/member/remove"
UPDATE = "/v3/cluster/member/update"
MOVE_LEADER = "/v3/maintenance/transfer-leadership"
ALARM = "/v3/maintenance/alarm"
DEFRAGMENT = "/v3/maintenance/defragment"
SNAPSHOT = "/v3/maintenance/snapshot"

CHANGE_TIMEOUT_S = 5.0
DEFRAGMENT_TIMEOUT_S = 60.0


class NotInSync(Conflict):
    """A learner that is behind cannot be promoted yet."""

    code = "not_in_sync"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One member as the cluster knows it. `is_started`: it has been up once and has told its name."""

    id: int
    name: str = ""
    peer_urls: tuple[str, ...] = ()
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False

    @property
    def is_started(self) -> bool:
        """Whether the member has joined: one that was only added has no name yet."""
        return bool(self.name)


class EndpointStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What one member says of itself. `leader_id` 0: it knows no leader."""

    member_id: int
    cluster_id: int
    leader_id: int
    raft_term: int
    raft_index: int
    raft_applied_index: int
    revision: int
    version: str
    db_size_bytes: int
    db_in_use_bytes: int
    is_learner: bool
    errors: tuple[str, ...] = ()


class Alarm(msgspec.Struct, frozen=True):
    """Something that is wrong with a member: NOSPACE (writes are refused) or CORRUPT."""

    member_id: int
    kind: Literal["NOSPACE", "CORRUPT"]


class _WireMember(msgspec.Struct, frozen=True):
    id: int = msgspec.field(name="ID", default=0)
    name: str = ""
    peer_urls: tuple[str, ...] = msgspec.field(name="peerURLs", default=())
    client_urls: tuple[str, ...] = msgspec.field(name="clientURLs", default=())
    is_learner: bool = msgspec.field(name="isLearner", default=False)

    def ours(self) -> Member:
        return Member(
            id=self.id,
            name=self.name,
            peer_urls=self.peer_urls,
            client_urls=self.client_urls,
            is_learner=self.is_learner,
        )


class _ListResponse(msgspec.Struct):
    members: list[_WireMember] = []


class _AddResponse(msgspec.Struct):
    member: _WireMember = _WireMember()
    members: list[_WireMember] = []


class _WireAlarm(msgspec.Struct):
    member_id: int = msgspec.field(name="memberID", default=0)
    alarm: Literal["NONE", "NOSPACE", "CORRUPT"] = "NONE"


class _AlarmResponse(msgspec.Struct):
    alarms: list[_WireAlarm] = []


class _Blob(msgspec.Struct):
    remaining_bytes: int = 0
    blob: bytes = b""


class _SnapshotMessage(msgspec.Struct):
    result: _Blob | None = None


_list = msgspec.json.Decoder(_ListResponse, strict=False)
_add = msgspec.json.Decoder(_AddResponse, strict=False)
_alarms = msgspec.json.Decoder(_AlarmResponse, strict=False)
_snapshot = msgspec.json.Decoder(_SnapshotMessage, strict=False)


class Members:
    """Changes are sent once: after Unknown look at `list()` before trying again.

    With an `endpoint` that member alone is asked, once; without, whichever answers. All may raise NoLeader or Unavailable (nothing was changed), Unknown, NotFound (no such member), Conflict (etcd
    refuses it now, with its reason).
    """

    def __init__(self, gateway: Gateway, *, timeout_s: float = CHANGE_TIMEOUT_S) -> None:
        self._gateway = gateway
        self._timeout_s = timeout_s

    async def list(self, *, endpoint: str = "") -> tuple[Member, ...]:
        """Return the members, by id. It may be a moment old: any member answers from what it has."""
        try:
            answer = (
                await self._once(LIST, b"{}", into=_list, endpoint=endpoint)
                if endpoint
                else await self._gateway.ask(LIST, b"{}", into=_list, at_most_s=self._timeout_s)
            )
        except Failure as failure:
            raise _unread(failure) from failure
        members = [wire.ours() for wire in answer.members]
        return tuple(sorted(members, key=lambda member: member.id))

    async def confirm(self, *, endpoint: str) -> None:
        """Return when the member at `endpoint` has read with the agreement of a quorum."""
        body = b'{"key":"AA==","count_only":true}'
        try:
            await self._once(RANGE, body, into=header_decoder, endpoint=endpoint)
        except Failure as failure:
            raise _unread(failure) from failure

    async def add_learner(self, peer_url: str, *, endpoint: str = "") -> Member:
        """Add a member that does not vote yet. etcd allows one learner at a time."""
        body = msgspec.json.encode({"peerURLs": [peer_url], "isLearner": True})
        return (await self._change(ADD, body, into=_add, endpoint=endpoint)).member.ours()

    async def promote(self, member_id: int, *, endpoint: str = "") -> None:
        """Make a learner a voter. Raises NotInSync while it has not caught up."""
        await self._change(
            PROMOTE, _id_body("ID", member_id), into=header_decoder, endpoint=endpoint
        )

    async def remove(self, member_id: int, *, endpoint: str = "") -> None:
        """Remove a member for good; its data must not be used again."""
        await self._change(
            REMOVE, _id_body("ID", member_id), into=header_decoder, endpoint=endpoint
        )

    async def update(self, member_id: int, peer_url: str, *, endpoint: str = "") -> None:
        """Give a member another peer URL."""
        body = msgspec.json.encode({"ID": str(member_id), "peerURLs": [peer_url]})
        await self._change(UPDATE, body, into=header_decoder, endpoint=endpoint)

    async def move_leader(self, member_id: int, *, endpoint: str = "") -> None:
        """Let another voter lead. `endpoint` must be the leader's; empty: it is looked up first."""
        leader = endpoint or await self._leader_endpoint()
        body = _id_body("targetID", member_id)
        await self._change(MOVE_LEADER, body, into=header_decoder, endpoint=leader)

    async def endpoint_status(
        self, endpoint: str, *, timeout_s: float | None = None
    ) -> EndpointStatus:
        """Return what the member at `endpoint` says of itself; needs no quorum. Raises Unavailable."""
        limit_s = self._gateway.attempt_timeout_s if timeout_s is None else timeout_s
        try:
            answer = await self._gateway.post(
                STATUS, b"{}", endpoint=endpoint, timeout_s=limit_s, needs_leader=False
            )
            wire = decode(answer, status_decoder, endpoint)
        except Failure as failure:
            raise Unavailable(explain(failure)) from failure
        return EndpointStatus(
            member_id=wire.header.member_id,
            cluster_id=wire.header.cluster_id,
            leader_id=wire.leader,
            raft_term=wire.raft_term,
            raft_index=wire.raft_index,
            raft_applied_index=wire.raft_applied_index,
            revision=wire.header.revision,
            version=wire.version,
            db_size_bytes=wire.db_size,
            db_in_use_bytes=wire.db_size_in_use,
            is_learner=wire.is_learner,
            errors=tuple(wire.errors),
        )

    async def alarms(self) -> tuple[Alarm, ...]:
        """Return the alarms that are raised."""
        answer = await self._change(ALARM, b'{"action":"GET"}', into=_alarms)
        return tuple(
            Alarm(wire.member_id, wire.alarm) for wire in answer.alarms if wire.alarm != "NONE"
        )

    async def disarm(self, alarm: Alarm) -> None:
        """Tell etcd that the cause of an alarm is gone."""
        body = {"action": "DEACTIVATE", "memberID": str(alarm.member_id), "alarm": alarm.kind}
        await self._change(ALARM, msgspec.json.encode(body), into=_alarms)

    async def defragment(self, endpoint: str) -> None:
        """Give free space of one member's file back. The member answers nothing meanwhile: the leader last."""
        await self._change(
            DEFRAGMENT,
            b"{}",
            into=header_decoder,
            endpoint=endpoint,
            timeout_s=DEFRAGMENT_TIMEOUT_S,
            needs_leader=False,
        )

    async def snapshot(self, endpoint: str) -> AsyncIterator[bytes]:
        """Yield a consistent image of one member's data, as `etcdctl snapshot restore` takes it.

        Raises Unavailable when it breaks off: what came is useless then.
        """
        complete = False
        try:
            async with self._gateway.lines(
                SNAPSHOT, b"{}", endpoint=endpoint, needs_leader=False
            ) as lines:
                async for line in lines:
                    message = decode(line, _snapshot, endpoint).result
                    if message is None:
                        raise parse_failure(line, status=200, endpoint=endpoint)
                    complete = message.remaining_bytes == 0
                    yield message.blob
        except Failure as failure:
            msg = f"the snapshot broke off: {explain(failure)}"
            raise Unavailable(msg) from failure
        if not complete:
            msg = f"{endpoint}: the snapshot ended before it was complete"
            raise Unavailable(msg)

    async def _leader_endpoint(self) -> str:
        for endpoint in self._gateway.endpoints.all():
            try:
                status = await self.endpoint_status(endpoint)
            except Unavailable:
                continue
            if status.leader_id == status.member_id:
                return endpoint
            if status.leader_id:
                for member in await self.list():
                    if member.id == status.leader_id and member.client_urls:
                        return _like(endpoint, member.client_urls)
        msg = "no member of etcd knows a leader"
        raise NoLeader(msg)

    async def _change(
        self,
        path: str,
        body: bytes,
        *,
        into: msgspec.json.Decoder[T],
        endpoint: str = "",
        timeout_s: float | None = None,
        needs_leader: bool = True,
    ) -> T:
        try:
            if not endpoint:
                limit_s = timeout_s or self._timeout_s
                return await self._gateway.attempt(path, body, into=into, timeout_s=limit_s)
            return await self._once(
                path,
                body,
                into=into,
                endpoint=endpoint,
                timeout_s=timeout_s,
                needs_leader=needs_leader,
            )
        except Failure as failure:
            raise _error(failure) from failure

    async def _once(
        self,
        path: str,
        body: bytes,
        *,
        into: msgspec.json.Decoder[T],
        endpoint: str,
        timeout_s: float | None = None,
        needs_leader: bool = True,
    ) -> T:
        """One attempt at one member. Raises Failure."""
        answer = await self._gateway.post(
            path,
            body,
            endpoint=endpoint,
            timeout_s=timeout_s or self._timeout_s,
            needs_leader=needs_leader,
        )
        return decode(answer, into, endpoint)


def _like(endpoint: str, urls: tuple[str, ...]) -> str:
    """Return the first of `urls` with the scheme we use, not on loopback if there is another."""
    scheme = endpoint.partition("://")[0]
    same = [url.rstrip("/") for url in urls if url.startswith(scheme + "://")]
    remote = [url for url in same if "//127." not in url and "//localhost" not in url]
    return (remote or same or list(urls))[0]


def _id_body(name: str, member_id: int) -> bytes:
    return b'{"%b":"%d"}' % (name.encode(), member_id)


def _unread(failure: Failure) -> Unavailable:
    kind = NoLeader if failure.outcome == "not_applied" else Unavailable
    return kind(explain(failure))


def _error(failure: Failure) -> WaypostError:
    if failure.outcome == "unknown":
        return maybe_done(failure, at_most_s=CHANGE_TIMEOUT_S)
    if failure.outcome == "not_applied" or "not leader" in failure.text:
        return NoLeader(explain(failure))
    if failure.code == NOT_FOUND:
        return NotFound(explain(failure))
    if "in sync with leader" in failure.text:
        return NotInSync(explain(failure))
    return Conflict(explain(failure))
