"""Who is a member of the store: decisions of the server beside the leader, one change at a time. Pure.

etcd would refuse useful changes (`--strict-reconfig-check`), so these guards are the only ones: no change may leave the
cluster without a quorum of live voters, and nobody votes whose store is not up to date.

A replacement goes learner → dead voter removed → promoted (3 → 2 → 3 voters, and 4 with a dead one only if the operator
forbade the removal). What the operator decides (`domain.cluster.Autopilot`) comes in as the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from waypost.cluster.records import Phase, ServerFacts
from waypost.domain.cluster import Autopilot

_DEFAULT = Autopilot()
_BEGINNING = 1.1
"""For so many stabilization times a leader cannot know yet who has been stable: being healthy is enough meanwhile.
Source: Consul, raft-autopilot, which has the same factor."""


class StoreMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member as the store lists it."""

    id: int
    name: str
    """The node id; empty until the member has started."""
    peer_url: str
    client_url: str = ""
    is_learner: bool = False

    @property
    def is_started(self) -> bool:
        """Whether it ever started."""
        return bool(self.name)


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Times, in seconds."""

    failed_after_s: float = 2.5
    fresh_s: float = 1.6
    """Heard of within this, a server is alive beyond doubt; in between it may just have died."""
    surplus_after_s: float = 30.0
    """A dead voter among an even number only makes the quorum larger; it is removed after this long."""
    dead_after_s: float = 72 * 3600.0
    unstarted_after_s: float = 60.0
    second_voter_after_s: float = 10.0


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision rests on."""

    me: str
    """The node id of the server that decides; it is alive."""
    members: tuple[StoreMember, ...]
    silent_s: Mapping[str, float]
    """By node id: seconds since the server was heard of. One that never was is missing."""
    facts: Mapping[str, ServerFacts] = {}
    """By node id: what servers say about themselves."""
    known_for_s: Mapping[int, float] = {}
    """By member id: seconds since it was first seen in the list as it is now (learner or voter)."""
    healthy_for_s: Mapping[int, float] = {}
    """By member id: seconds for which the member has been healthy without a break. One that is not is missing."""
    led_for_s: float = 0.0
    """Seconds since this server leads: nobody is judged before it had time to be heard."""
    is_third_waiting: bool = False
    """Another server asked to join lately and had to wait."""


class Remove(msgspec.Struct, frozen=True):
    """Take a member out."""

    member: StoreMember
    why: str


class Promote(msgspec.Struct, frozen=True):
    """Make a learner a voter; the store refuses while it is not up to date."""

    member: StoreMember


class Update(msgspec.Struct, frozen=True):
    """Tell the store another peer URL."""

    member: StoreMember
    peer_url: str


Change = Remove | Promote | Update


def quorum(voters: int) -> int:
    """Return how many of `voters` must be alive."""
    return voters // 2 + 1


def next_change(roster: Roster, pace: Pace, policy: Autopilot = _DEFAULT) -> Change | None:
    """Return the next change, or None."""
    voters = [one for one in roster.members if not one.is_learner]
    learner = next((one for one in roster.members if one.is_learner), None)
    has_successor = _is_ready(roster, pace, policy, learner)
    removed = _dead_voter(roster, pace, policy, voters, has_successor=has_successor)
    if removed is not None:
        return removed
    moved = _moved(roster, pace)
    if moved is not None:
        return moved
    if learner is None:
        return None
    if not learner.is_started:
        if roster.known_for_s.get(learner.id, 0.0) >= pace.unstarted_after_s:
            why = f"its store did not start within {pace.unstarted_after_s:g} s"
            return Remove(learner, why)
        return None
    silent_s = _silent_s(roster, learner)
    if silent_s >= max(pace.unstarted_after_s, pace.failed_after_s):
        return Remove(learner, "it is gone before it was promoted")
    return _promotion(roster, pace, policy, voters, learner)


def _silent_s(roster: Roster, member: StoreMember) -> float:
    if member.name == roster.me:
        return 0.0
    # Never heard of since this server leads counts from there.
    return roster.silent_s.get(member.name, roster.led_for_s)


def _is_live(roster: Roster, pace: Pace, member: StoreMember) -> bool:
    return _silent_s(roster, member) < pace.failed_after_s


def _is_ready(roster: Roster, pace: Pace, policy: Autopilot, learner: StoreMember | None) -> bool:
    return (
        learner is not None
        and learner.is_started
        and _is_live(roster, pace, learner)
        and _is_stable(roster, policy, learner)
    )


def _is_stable(roster: Roster, policy: Autopilot, learner: StoreMember) -> bool:
    healthy_for_s = roster.healthy_for_s.get(learner.id)
    if healthy_for_s is None:
        return False
    wanted_s = policy.server_stabilization_time_ns / 1e9
    return healthy_for_s >= wanted_s or roster.led_for_s < _BEGINNING * wanted_s


def _may_clean(policy: Autopilot, voters: Sequence[StoreMember]) -> bool:
    """Tell whether the operator lets a dead voter be removed before its time is over."""
    return policy.cleanup_dead_servers and len(voters) - 1 >= policy.min_quorum


def _dead_voter(
    roster: Roster,
    pace: Pace,
    policy: Autopilot,
    voters: Sequence[StoreMember],
    *,
    has_successor: bool,
) -> Remove | None:
    may_clean = _may_clean(policy, voters)
    for one in voters:
        silent_s = min(_silent_s(roster, one), roster.led_for_s)
        limit_s = pace.dead_after_s
        if not may_clean:
            pass
        elif has_successor:
            limit_s = pace.failed_after_s
        elif len(voters) % 2 == 0:
            limit_s = min(limit_s, max(pace.surplus_after_s, pace.failed_after_s))
        if silent_s < limit_s:
            continue
        why = f"it was not heard of for {silent_s:.1f} s" + (
            " and another server takes its place" if has_successor and may_clean else ""
        )
        if can_lose(roster, pace, one):
            return Remove(one, why)
    return None


def can_lose(roster: Roster, pace: Pace, member: StoreMember) -> bool:
    """Tell whether the others are a cluster that can write once `member` is out.

    Removing itself needs a quorum of all voters now; a live one that leaves still counts for that.
    """
    voters = [one for one in roster.members if not one.is_learner]
    rest = [one for one in voters if one.id != member.id]
    if not rest:
        return False
    live_rest = sum(_is_live(roster, pace, one) for one in rest)
    live_now = live_rest + (member in voters and _is_live(roster, pace, member))
    return live_rest >= quorum(len(rest)) and live_now >= quorum(len(voters))


def _moved(roster: Roster, pace: Pace) -> Update | None:
    for one in roster.members:
        facts = roster.facts.get(one.name)
        if facts is None or not one.is_started or not _is_live(roster, pace, one):
            continue
        if facts.peer_url != one.peer_url and facts.phase is Phase.MEMBER:
            return Update(one, facts.peer_url)
    return None


def _promotion(
    roster: Roster,
    pace: Pace,
    policy: Autopilot,
    voters: Sequence[StoreMember],
    learner: StoreMember,
) -> Promote | None:
    if not _is_ready(roster, pace, policy, learner):
        return None
    live = [one for one in voters if _is_live(roster, pace, one)]
    if len(live) < quorum(len(voters)) or len(live) + 1 < quorum(len(voters) + 1):
        return None
    age_s = roster.known_for_s.get(learner.id, 0.0)
    unheard = float("inf")  # not even once since this server leads: it may be dead as well
    limit_s = min(age_s, pace.fresh_s)
    if any(
        roster.silent_s.get(one.name, unheard) >= limit_s for one in live if one.name != roster.me
    ):
        # It may have died just before the learner came, perhaps to replace it: it has to say that it lives.
        return None
    if len(live) < len(voters) and len(voters) > 1 and _may_clean(policy, voters):
        # Someone is failed: it is removed first when that is possible; else the new voter would only raise the quorum.
        dead = [one for one in voters if one not in live]
        if any(can_lose(roster, pace, one) for one in dead):
            return None
    waits = age_s < pace.second_voter_after_s and not roster.is_third_waiting
    return None if len(voters) == 1 and waits else Promote(learner)


# -- joining ---------------------------------------------------------------------------------------------------------


class Admit(msgspec.Struct, frozen=True):
    """It is listed: tell it how to start."""

    member: StoreMember


class Add(msgspec.Struct, frozen=True):
    """Add it as a learner."""

    peer_url: str


class Refuse(msgspec.Struct, frozen=True):
    """Not now; asking again later may help."""

    why: str
    is_queue: bool = False
    """It waits for another one that is joining."""


def next_join(
    roster: Roster, pace: Pace, sender: ServerFacts, *, last_member_id: str
) -> Admit | Add | Remove | Refuse:
    """Return what to do for a server without data that asks to join. Called again after every change.

    `last_member_id`: its id in the store in its former life, hexadecimal; it must never come back under that.
    """
    known = [
        one
        for one in roster.members
        if one.name == sender.id
        or one.peer_url == sender.peer_url
        or (last_member_id and f"{one.id:x}" == last_member_id)
    ]
    for one in known:
        if one.is_started or not one.is_learner:
            # It ran before, and who asks has no data: an amnesiac must never vote under its old id.
            if one.name == roster.me:
                return Refuse("this server has the same id or address as the one that asks")
            if one.is_learner or can_lose(_without(roster, sender, one), pace, one):
                return Remove(one, "it lost its data and joins again")
            return Refuse("too few other servers are alive to take its former membership out")
    learners = [one for one in roster.members if one.is_learner]
    fresh = [one for one in known if one.peer_url == sender.peer_url]
    stale = [one for one in known if one not in fresh]
    if stale:
        return Remove(stale[0], "it joins with another address")
    if fresh:
        return Admit(fresh[0])
    if learners:
        return Refuse("another server is joining", is_queue=True)
    return Add(sender.peer_url)


def _without(roster: Roster, sender: ServerFacts, member: StoreMember) -> Roster:
    """Return the roster in which the former self of `sender` is silent: the machine lives, that member does not."""
    silent_s = dict(roster.silent_s)
    silent_s[member.name] = float("inf")
    silent_s[sender.id] = float("inf")
    return msgspec.structs.replace(roster, silent_s=silent_s)
