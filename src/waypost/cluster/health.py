"""How the members of the store are: asked each second by the server beside the leader, judged by the operator's limits.

Nobody is told by etcd how long ago a follower heard its leader. What stands for it is how old the leader's knowledge is
that the member follows: the time that its last answer took, and from then on the time since that answer.

Source: Consul, autopilot: a server is healthy while it is alive, heard the leader lately, is in the leader's term and not
too far behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from waypost.base.clock import Clock
from waypost.cluster.messages import MemberHealth
from waypost.cluster.reconcile import StoreMember
from waypost.cluster.store_members import StoreStatus
from waypost.domain.cluster import Autopilot


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What came of asking one member: what it said and how long that took, or why it did not."""

    member: StoreMember
    status: StoreStatus | None = None
    took_s: float = 0.0
    why: str = ""


def complaint(
    status: StoreStatus, *, contact_s: float, leader: StoreStatus, policy: Autopilot
) -> str:
    """Return why a member that answered is not healthy; empty if it is."""
    if status.leader_id != leader.member_id:
        return "it does not follow the leader"
    if status.raft_term != leader.raft_term:
        return f"it is in term {status.raft_term}, the leader in {leader.raft_term}"
    limit_s = policy.last_contact_threshold_ns / 1e9
    if contact_s > limit_s:
        return f"its answer took {contact_s:.3f} s, allowed are {limit_s:g} s"
    behind = leader.raft_index - status.raft_index
    if behind > policy.max_trailing_logs:
        return f"it is {behind} entries behind, allowed are {policy.max_trailing_logs}"
    return ""


class Judge:
    """Remembers since when each member is as it is. No I/O."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._verdicts: dict[int, MemberHealth] = {}
        self._since_s: dict[int, float] = {}
        """Member id → monotonic time of the last change between healthy and not."""
        self._answered_s: dict[int, float] = {}

    def verdicts(self) -> tuple[MemberHealth, ...]:
        """Return how each member was at the last look."""
        return tuple(self._verdicts.values())

    def healthy_for_s(self) -> Mapping[int, float]:
        """Return for each healthy member, by its id, for how many seconds it has been that."""
        now_s = self._clock.now()
        return {
            key: now_s - self._since_s[key] for key, one in self._verdicts.items() if one.is_healthy
        }

    def forget(self) -> None:
        """Forget everything: somebody else looks after the members."""
        self._verdicts, self._since_s, self._answered_s = {}, {}, {}

    def judge(self, sights: Sequence[Sight], *, leader: StoreStatus, policy: Autopilot) -> None:
        """Take in a look at all members; whoever is not among them is forgotten."""
        now_s = self._clock.now()
        found: dict[int, MemberHealth] = {}
        for sight in sights:
            found[sight.member.id] = self._verdict(sight, leader=leader, policy=policy, now_s=now_s)
        self._verdicts = found
        self._since_s = {key: self._since_s[key] for key in found}
        self._answered_s = {key: at for key, at in self._answered_s.items() if key in found}

    def _verdict(
        self, sight: Sight, *, leader: StoreStatus, policy: Autopilot, now_s: float
    ) -> MemberHealth:
        key, status = sight.member.id, sight.status
        before = self._verdicts.get(key)
        if status is not None and status.leader_id == leader.member_id:
            self._answered_s[key] = now_s
            contact_s: float | None = sight.took_s
        else:
            contact_s = now_s - self._answered_s[key] if key in self._answered_s else None
        why = (
            sight.why or "it does not answer"
            if status is None
            else complaint(status, contact_s=contact_s or 0.0, leader=leader, policy=policy)
        )
        is_changed = before is None or before.is_healthy is bool(why)
        if is_changed:
            self._since_s[key] = now_s
        return MemberHealth(
            id=sight.member.name,
            is_healthy=not why,
            why=why,
            contact_s=contact_s,
            term=status.raft_term if status is not None else 0,
            index=status.raft_index if status is not None else 0,
            since_s=self._clock.wall() if before is None or is_changed else before.since_s,
        )
