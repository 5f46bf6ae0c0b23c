"""How the first N servers agree on one cluster, and how each of them goes on from any point: decisions, no effects.

`step(state, seen)` says what to do next; the other functions answer messages and judge answers. Each returns the state
that must be on disk *before* anything is said or done that follows from it. Whoever calls these has one task for it.

Why there is never more than one cluster among servers that expect N of each other and of which fewer than 2N exist:

- A plan is committed first by its proposer, and only on the votes of all its N members.
- A vote is for one plan. It ends only when the plan's proposer has written down that it gave the plan up (and plans
  have tokens that are never used again), or when every other member has written down that it will not commit it.
- Two sets of N out of fewer than 2N servers share a server, and it voted once.
- Whoever sees a machine that belongs to a cluster forms none: it joins.
- Whoever was a member once never forms a cluster again, so lost data cannot make a second one.

The proposer is the first by id of those who are there (those who bring an authority along come first), which only
avoids useless rounds: agreement does not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from waypost.cluster.records import FORMED, Phase, Plan, ServerFacts, State

# -- what is seen and done -----------------------------------------------------------------------------------------


class StoreFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the store's process on this machine."""

    is_running: bool = False
    has_exited: bool = False
    """It was started in this phase and ended by itself."""
    answers: bool = False
    """Its status can be read."""
    has_leader: bool = False
    was_led: bool = False
    """It had a leader at some time since it was made."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision rests on, besides the state."""

    me: ServerFacts
    peers: tuple[ServerFacts, ...] = ()
    """The servers of the same datacenter that were heard of lately, without this one."""
    has_data: bool = False
    """The store has its log on this machine."""
    store: StoreFacts = StoreFacts()
    is_busy: bool = False
    """A question to other servers is under way; its answer comes as a message."""
    may_propose: bool = True
    """The pause after a proposal that was not accepted is over."""
    may_join: bool = True
    """The pause after a refused request to join is over."""
    may_ask: bool = True
    """The pause between two questions about a plan is over."""
    voted_for_s: float = 0.0
    """Seconds since this machine voted, or started with its vote."""
    abandon_after_s: float = 30.0
    is_removed: bool = False
    """The cluster's leader does not list this member any more."""


class Wait(msgspec.Struct, frozen=True):
    """Nothing to do. `why` is for the log; empty when all is well."""

    why: str = ""
    is_error: bool = False


class Settle(msgspec.Struct, frozen=True):
    """Write this state down; nothing else."""

    state: State
    why: str


class Wipe(msgspec.Struct, frozen=True):
    """Stop the store, write this state down, delete the store's data."""

    state: State
    why: str
    forgets_keys: bool = False
    """The keys and certificates as well: they are of a cluster that never came to be."""


class StartStore(msgspec.Struct, frozen=True):
    """Start the store's process, as a founding member or not."""

    is_new: bool
    initial_cluster: str
    cluster: str


class Propose(msgspec.Struct, frozen=True):
    """Ask for votes: make the plan, write the own vote down, ask the others."""

    members: tuple[ServerFacts, ...]


class AskPlan(msgspec.Struct, frozen=True):
    """Ask the plan's members what became of it."""

    plan: Plan


class Abandon(msgspec.Struct, frozen=True):
    """Promise never to commit the plan, and ask the other voters to do the same."""

    plan: Plan


class Join(msgspec.Struct, frozen=True):
    """Ask one of these servers to be taken in."""

    targets: tuple[ServerFacts, ...]


Action = Wait | Settle | Wipe | StartStore | Propose | AskPlan | Abandon | Join


def step(state: State, seen: Seen) -> Action:
    """Return the next thing that a server does. Called again and again: nothing is done twice that must not be."""
    match state.phase:
        case Phase.MEMBER:
            return _member(state, seen)
        case Phase.COMMITTED:
            return _committed(state, seen)
        case Phase.VOTED:
            return _voted(state, seen)
        case Phase.JOINING:
            return _joining(state, seen)
        case Phase.NONE | Phase.LEFT:
            return _outside(state, seen)


def outside(state: State, *, joins_only: bool) -> State:
    """Return the state of a machine that belongs to no cluster; who was a member once only ever joins again."""
    return State(
        is_server=state.is_server,
        ballot=state.ballot,
        epoch=0,
        joins_only=joins_only or state.joins_only,
        member_id=state.member_id,
        abandoned=state.abandoned,
        is_protected=state.is_protected,
        servers=state.servers,
    )


def _member(state: State, seen: Seen) -> Action:
    later = [one for one in seen.peers if _is_later(one, state)]
    if later:
        return Wipe(
            outside(state, joins_only=True),
            f"{later[0].node} says that the cluster was recovered without this server; its store is of the past",
        )
    if seen.is_removed and not seen.store.answers:
        return Wipe(outside(state, joins_only=True), "this server was removed from the cluster")
    if seen.store.is_running:
        return Wait("" if seen.store.has_leader else "the store has no leader")
    if not seen.has_data:
        return Settle(
            outside(state, joins_only=True), "the store's data is gone; joining as a new member"
        )
    return StartStore(is_new=False, initial_cluster=state.initial_cluster, cluster=state.cluster)


def _is_later(peer: ServerFacts, state: State) -> bool:
    return peer.phase is Phase.MEMBER and peer.cluster == state.cluster and peer.epoch > state.epoch


def _committed(state: State, seen: Seen) -> Action:
    assert state.plan is not None
    if seen.store.has_leader:
        return Settle(_replace(state, phase=Phase.MEMBER), "the cluster has formed")
    others = [
        one for one in seen.peers if one.phase is Phase.MEMBER and one.cluster != state.cluster
    ]
    if others and not seen.store.was_led:
        return Wipe(
            outside(state, joins_only=True),
            f"the others formed a cluster without this server ({others[0].node} is a member of it)",
            forgets_keys=True,
        )
    if not seen.store.is_running:
        return StartStore(
            is_new=True, initial_cluster=state.plan.initial_cluster, cluster=state.cluster
        )
    return Wait("waiting for the other founding members")


def _voted(state: State, seen: Seen) -> Action:
    plan = state.plan
    assert plan is not None
    if seen.is_busy:
        return Wait()
    if plan.proposer == seen.me.id:
        # No round is under way, so this is left over from before a crash.
        return Settle(given_up(state), "a proposal of this server was not finished; it is given up")
    if not seen.may_ask:
        return Wait()
    if seen.voted_for_s >= seen.abandon_after_s:
        proposer = plan.member(plan.proposer)
        is_live = any(
            one.id == plan.proposer
            and proposer is not None
            and one.fingerprint == proposer.fingerprint
            for one in seen.peers
        )
        if not is_live:
            return Abandon(plan)
    return AskPlan(plan)


def _joining(state: State, seen: Seen) -> Action:
    if seen.store.answers and seen.store.has_leader:
        return Settle(_replace(state, phase=Phase.MEMBER), "joined the cluster")
    if seen.store.has_exited or (seen.is_removed and not seen.store.answers):
        return Wipe(outside(state, joins_only=True), "the store ended while joining; starting over")
    if not seen.store.is_running:
        return StartStore(
            is_new=False, initial_cluster=state.initial_cluster, cluster=state.cluster
        )
    return Wait()


def _outside(state: State, seen: Seen) -> Action:
    if seen.has_data:
        return Wipe(
            outside(state, joins_only=state.joins_only), "store data of an earlier life is deleted"
        )
    if seen.is_busy:
        return Wait()
    members = tuple(one for one in seen.peers if one.phase is Phase.MEMBER)
    if members:
        # Any of them can name the leader, who decides; who leads is asked first.
        targets = tuple(sorted(members, key=lambda one: (not one.is_leader, one.id)))
        return Join(targets) if seen.may_join else Wait()
    if any(one.phase in FORMED for one in seen.peers):
        return Wait("a cluster is forming without this server; it joins when it stands")
    if state.joins_only or state.phase is Phase.LEFT:
        return Wait("this server was a member before: it waits for a server of the cluster to join")
    if seen.me.expect == 0:
        return Wait("waiting for a server of the cluster to join")
    return _form(seen)


def _form(seen: Seen) -> Action:
    me = seen.me
    strangers = [
        one.node for one in seen.peers if one.expect not in (0, me.expect) and not one.joins_only
    ]
    if strangers:
        return Wait(
            f"{', '.join(sorted(strangers))} expects another number of servers than {me.expect}: "
            "-bootstrap-expect must be the same everywhere",
            is_error=True,
        )
    found = candidates(me, seen.peers)
    if len(found) < me.expect:
        return Wait(f"waiting for servers: {len(found)} of {me.expect} are there")
    chosen = found[: me.expect]
    authorities = {one.authority for one in chosen if one.authority}
    if len(authorities) > 1:
        names = ", ".join(one.node for one in chosen if one.authority)
        return Wait(
            f"{names} have different authorities (waypost init); a cluster has one: "
            "move the pki directory of all but one away",
            is_error=True,
        )
    if chosen[0].id != me.id:
        return Wait(f"waiting for {chosen[0].node} to propose the cluster")
    if not seen.may_propose:
        return Wait()
    return Propose(tuple(sorted(chosen, key=lambda one: one.id)))


def candidates(me: ServerFacts, peers: Sequence[ServerFacts]) -> list[ServerFacts]:
    """Return who could form a cluster with `me`, the one that proposes first."""
    found = [
        one
        for one in (me, *peers)
        if one.is_server
        and one.phase in (Phase.NONE, Phase.VOTED)
        and one.expect == me.expect
        and not one.joins_only
    ]
    return sorted(found, key=lambda one: (not one.authority, one.id))


# -- voting ----------------------------------------------------------------------------------------------------------


class Vote(msgspec.Struct, frozen=True):
    """The answer to a proposal; `why` is the reason of a refusal."""

    is_accepted: bool
    why: str = ""


def make_plan(
    state: State, members: Sequence[ServerFacts], *, token: str, proposer: str, authority: str
) -> Plan:
    """Return the next proposal of `proposer`, with a ballot above all its earlier ones."""
    return Plan(
        ballot=state.ballot + 1,
        token=token,
        proposer=proposer,
        expect=len(members),
        members=tuple(members),
        authority=authority,
    )


def propose(state: State, plan: Plan) -> State:
    """Return the state of the proposer: it has voted for its own plan."""
    return _replace(state, phase=Phase.VOTED, plan=plan, ballot=plan.ballot, cluster=plan.token)


def vote(
    state: State, plan: Plan, *, me: ServerFacts, has_data: bool, knows_cluster: bool
) -> tuple[State, Vote]:
    """Answer a proposal. The new state must be on disk before the vote leaves.

    `knows_cluster`: a live server that belongs to a cluster was heard of.
    """
    if state.plan is not None and state.plan.token == plan.token and state.phase is Phase.VOTED:
        taken_back = plan.token in state.abandoned
        return state, Vote(is_accepted=not taken_back, why="taken back" if taken_back else "")
    why = _refusal(state, plan, me=me, has_data=has_data, knows_cluster=knows_cluster)
    if why:
        return state, Vote(is_accepted=False, why=why)
    voted = _replace(state, phase=Phase.VOTED, plan=plan, cluster=plan.token)
    return voted, Vote(is_accepted=True)


def _refusal(
    state: State, plan: Plan, *, me: ServerFacts, has_data: bool, knows_cluster: bool
) -> str:
    mine = plan.member(me.id)
    if state.phase is Phase.VOTED:
        voted = state.plan
        assert voted is not None
        before, after = voted.member(voted.proposer), plan.member(plan.proposer)
        is_successor = (
            voted.proposer == plan.proposer != me.id
            and before is not None
            and after is not None
            and before.fingerprint == after.fingerprint
            and voted.ballot < plan.ballot
        )
        if not is_successor:
            return "it voted for another plan"
    elif state.phase is not Phase.NONE:
        return f"it is {state.phase} already"
    if plan.token in state.abandoned:
        return "the plan was taken back by those who voted"
    if state.joins_only or has_data:
        return "it was a member of a cluster before and only joins one"
    if knows_cluster:
        return "it knows of a cluster that stands already"
    if plan.expect != me.expect or len(plan.members) != plan.expect:
        return f"it expects {me.expect} servers, the plan has {plan.expect}"
    if mine is None or (mine.address, mine.fingerprint) != (me.address, me.fingerprint):
        return "the plan does not name it, or not as it is"
    if me.authority and me.authority != plan.authority:
        return f"it has an authority of its own ({me.authority}); move its pki directory away"
    return ""


def tally(state: State, plan: Plan, votes: Mapping[str, Vote | None]) -> State:
    """Return what becomes of a proposal: committed on the votes of all, given up otherwise.

    `votes` holds the answers of the other members by id; None, or none, is no answer.
    """
    if state.phase is not Phase.VOTED or state.plan is None or state.plan.token != plan.token:
        return state
    if plan.token in state.abandoned:
        return given_up(state)
    for one in plan.members:
        if one.id == plan.proposer:
            continue
        answer = votes.get(one.id)
        if answer is None or not answer.is_accepted:
            return given_up(state)
    return committed(state, plan)


def committed(state: State, plan: Plan) -> State:
    """Return the state of a founding member."""
    return _replace(
        state,
        phase=Phase.COMMITTED,
        plan=plan,
        cluster=plan.token,
        initial_cluster=plan.initial_cluster,
    )


def given_up(state: State) -> State:
    """Return the state without the vote. For a proposer this is the promise never to commit that plan."""
    return _replace(state, phase=Phase.NONE, plan=None, cluster="")


def commit(state: State, plan: Plan) -> tuple[State, Vote]:
    """Answer the proposer's message that all have voted."""
    has_it = state.plan is not None and state.plan.token == plan.token
    if has_it and state.phase in FORMED:
        return state, Vote(is_accepted=True)
    if not has_it or state.phase is not Phase.VOTED:
        return state, Vote(is_accepted=False, why="it has not voted for this plan")
    if plan.token in state.abandoned:
        return state, Vote(is_accepted=False, why="the plan was taken back by those who voted")
    return committed(state, plan), Vote(is_accepted=True)


# -- what became of a plan -------------------------------------------------------------------------------------------


class PlanStatus(StrEnum):
    """What a member of a plan says about it."""

    COMMITTED = "committed"
    PENDING = "pending"
    """Voted for; not committed."""
    ABANDONED = "abandoned"
    """Voted for, and never to be committed unless another voter has."""
    DEAD = "dead"
    """Neither committed nor voted for: from its proposer that means that it never will be."""


def plan_status(state: State, token: str) -> PlanStatus:
    """Return what this server knows of a plan."""
    if state.cluster == token and state.phase in FORMED:
        return PlanStatus.COMMITTED
    if token in state.abandoned:
        return PlanStatus.ABANDONED
    if state.plan is not None and state.plan.token == token and state.phase is Phase.VOTED:
        return PlanStatus.PENDING
    return PlanStatus.DEAD


def heard(state: State, plan: Plan, answers: Mapping[str, PlanStatus], *, me: str) -> State:
    """Return what follows from what the plan's other members said; ids that did not answer are missing."""
    if state.phase is not Phase.VOTED or state.plan is None or state.plan.token != plan.token:
        return state
    voters = [one.id for one in plan.members if one.id not in (plan.proposer, me)]
    proposer = answers.get(plan.proposer)
    is_abandoned = plan.token in state.abandoned
    if any(answers.get(one) is PlanStatus.COMMITTED for one in voters):
        # A voter that committed never took its vote back, so nobody could count on that.
        return committed(state, plan)
    if proposer is PlanStatus.COMMITTED and not is_abandoned:
        return committed(state, plan)
    if proposer in (PlanStatus.DEAD, PlanStatus.ABANDONED):
        return given_up(state)
    if is_abandoned and all(answers.get(one) is PlanStatus.ABANDONED for one in voters):
        return given_up(state)
    return state


def abandon(state: State, token: str) -> tuple[State, PlanStatus]:
    """Promise never to vote for a plan, nor to commit it unless another voter has; return what there is to say."""
    if plan_status(state, token) is PlanStatus.COMMITTED or token in state.abandoned:
        return state, plan_status(state, token)
    promised = _replace(state, abandoned=(*state.abandoned, token)[-_PROMISES:])
    return promised, PlanStatus.ABANDONED


_PROMISES: Final = 8


def _replace(state: State, **changes: object) -> State:
    return msgspec.structs.replace(state, **changes)
