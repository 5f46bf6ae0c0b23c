"""Decisions of a server on its way into a cluster, one by one."""

from __future__ import annotations

import msgspec
import pytest

from waypost.cluster import protocol
from waypost.cluster.protocol import (
    Abandon,
    AskPlan,
    Join,
    PlanStatus,
    Propose,
    Seen,
    Settle,
    StartStore,
    StoreFacts,
    Vote,
    Wait,
    Wipe,
    abandon,
    commit,
    committed,
    given_up,
    heard,
    make_plan,
    plan_status,
    propose,
    step,
    tally,
    vote,
)
from waypost.cluster.records import Phase, Plan, ServerFacts, State


def server(name: str, **changes: object) -> ServerFacts:
    facts = ServerFacts(
        id=name,
        node=f"node-{name}",
        datacenter="dc1",
        address=f"10.0.0.{ord(name[0]) - 96}",
        cluster_port=8301,
        server_port=8300,
        store_port=8303,
        expect=3,
        fingerprint=f"sha256:{name}",
    )
    return msgspec.structs.replace(facts, **changes)


A, B, C, D = (server(name) for name in "abcd")
NONE = State()
UP = StoreFacts(is_running=True, answers=True, has_leader=True, was_led=True)


def plan_of(*members: ServerFacts, proposer: str = "a", ballot: int = 1, token: str = "t1") -> Plan:
    return Plan(
        ballot=ballot,
        token=token,
        proposer=proposer,
        expect=len(members),
        members=members,
        authority="sha256:ca",
    )


PLAN = plan_of(A, B, C)
VOTED = propose(NONE, PLAN)


def member(facts: ServerFacts, **changes: object) -> ServerFacts:
    return msgspec.structs.replace(facts, phase=Phase.MEMBER, **changes)


# -- forming


def test_the_first_of_enough_proposes_and_the_others_wait() -> None:
    assert step(NONE, Seen(me=A, peers=(B, C))) == Propose((A, B, C))
    assert step(NONE, Seen(me=A, peers=(B,))) == Wait("waiting for servers: 2 of 3 are there")
    assert step(NONE, Seen(me=B, peers=(A, C))) == Wait("waiting for node-a to propose the cluster")
    assert step(NONE, Seen(me=A, peers=(D, C, B))) == Propose((A, B, C))
    assert step(NONE, Seen(me=D, peers=(A, B, C))) == Wait(
        "waiting for node-a to propose the cluster"
    )
    alone = server("a", expect=1)
    assert step(NONE, Seen(me=alone)) == Propose((alone,))


@pytest.mark.parametrize(
    "changes", [{"is_busy": True}, {"may_propose": False}], ids=["busy", "pause"]
)
def test_a_proposal_waits(changes: dict[str, bool]) -> None:
    assert step(NONE, Seen(me=A, peers=(B, C), **changes)) == Wait()


def test_who_brings_an_authority_proposes() -> None:
    rich = server("c", authority="sha256:mine")
    assert step(NONE, Seen(me=rich, peers=(A, B))) == Propose((A, B, rich))
    action = step(NONE, Seen(me=server("b", authority="sha256:other"), peers=(A, rich)))
    assert isinstance(action, Wait)
    assert action.is_error
    assert "node-b, node-c have different authorities" in action.why


def test_another_number_of_servers_is_said_and_nothing_is_formed() -> None:
    action = step(NONE, Seen(me=A, peers=(B, C, server("d", expect=5))))
    assert isinstance(action, Wait)
    assert action.is_error
    assert "node-d expects another number of servers than 3" in action.why
    # Whoever only joins does not count, and does not disturb.
    assert isinstance(step(NONE, Seen(me=A, peers=(B, C, server("d", expect=0)))), Propose)


def test_join_wins() -> None:
    there = member(D, is_leader=True)
    assert step(NONE, Seen(me=A, peers=(B, C, there))) == Join((there,))
    assert step(NONE, Seen(me=A, peers=(member(B), there))) == Join((there, member(B)))
    assert step(NONE, Seen(me=A, peers=(B, C, there), may_join=False)) == Wait()
    forming = msgspec.structs.replace(D, phase=Phase.COMMITTED)
    action = step(NONE, Seen(me=A, peers=(B, C, forming)))
    assert isinstance(action, Wait)
    assert "forming without this server" in action.why


def test_who_was_a_member_never_forms_a_cluster() -> None:
    for state in (State(joins_only=True), State(phase=Phase.LEFT)):
        assert isinstance(step(state, Seen(me=A, peers=(B, C))), Wait)
        assert isinstance(step(state, Seen(me=A, peers=(member(B),))), Join)
    assert isinstance(step(NONE, Seen(me=server("a", expect=0), peers=(B, C))), Wait)


def test_data_of_an_earlier_life_is_deleted_before_anything_else() -> None:
    action = step(NONE, Seen(me=A, peers=(B, C), has_data=True))
    assert isinstance(action, Wipe)
    assert action.state.phase is Phase.NONE


# -- votes


def test_a_vote_is_for_one_plan() -> None:
    state, answer = vote(NONE, PLAN, me=B, has_data=False, knows_cluster=False)
    assert answer == Vote(is_accepted=True)
    assert (state.phase, state.plan) == (Phase.VOTED, PLAN)
    # The same question again has the same answer.
    assert vote(state, PLAN, me=B, has_data=False, knows_cluster=False) == (state, answer)
    other = plan_of(B, C, D, proposer="d", token="t2")
    after, refused = vote(state, other, me=B, has_data=False, knows_cluster=False)
    assert after is state
    assert (refused.is_accepted, refused.why) == (False, "it voted for another plan")


def test_a_later_ballot_of_the_same_proposer_replaces_the_vote() -> None:
    state, _ = vote(NONE, PLAN, me=B, has_data=False, knows_cluster=False)
    later = plan_of(A, B, D, ballot=2, token="t2")
    after, answer = vote(state, later, me=B, has_data=False, knows_cluster=False)
    assert answer.is_accepted
    assert after.plan == later
    earlier, answer = vote(after, PLAN, me=B, has_data=False, knows_cluster=False)
    assert earlier is after
    assert not answer.is_accepted
    # A machine that lost its memory has another key, and is not the same proposer.
    forged = plan_of(server("a", fingerprint="sha256:x"), B, C, ballot=9, token="t3")
    assert not vote(after, forged, me=B, has_data=False, knows_cluster=False)[1].is_accepted
    # The proposer itself does not vote for anybody's plan while its own is open.
    mine = propose(NONE, PLAN)
    stolen = plan_of(A, B, C, ballot=7, token="t4")
    assert not vote(mine, stolen, me=A, has_data=False, knows_cluster=False)[1].is_accepted


@pytest.mark.parametrize(
    ("state", "me", "has_data", "knows_cluster", "why"),
    [
        (State(phase=Phase.MEMBER), B, False, False, "it is member already"),
        (State(phase=Phase.LEFT), B, False, False, "it is left already"),
        (State(joins_only=True), B, False, False, "only joins one"),
        (NONE, B, True, False, "only joins one"),
        (NONE, B, False, True, "knows of a cluster"),
        (NONE, server("b", expect=5), False, False, "expects 5 servers, the plan has 3"),
        (NONE, D, False, False, "does not name it"),
        (NONE, server("b", address="10.9.9.9"), False, False, "not as it is"),
        (NONE, server("b", fingerprint="sha256:z"), False, False, "not as it is"),
        (NONE, server("b", authority="sha256:own"), False, False, "authority of its own"),
        (State(abandoned=("t1",)), B, False, False, "taken back"),
    ],
)
def test_votes_that_are_refused(
    state: State, me: ServerFacts, has_data: bool, knows_cluster: bool, why: str
) -> None:
    after, answer = vote(state, PLAN, me=me, has_data=has_data, knows_cluster=knows_cluster)
    assert after is state
    assert not answer.is_accepted
    assert why in answer.why


YES, NO = Vote(is_accepted=True), Vote(is_accepted=False, why="no")


@pytest.mark.parametrize(
    ("votes", "phase"),
    [
        ({"b": YES, "c": YES}, Phase.COMMITTED),
        ({"b": YES}, Phase.NONE),
        ({"b": YES, "c": NO}, Phase.NONE),
        ({"b": YES, "c": None}, Phase.NONE),
        ({}, Phase.NONE),
    ],
)
def test_only_all_votes_commit(votes: dict[str, Vote | None], phase: Phase) -> None:
    after = tally(VOTED, PLAN, votes)
    assert after.phase is phase
    assert after.ballot == 1
    assert (after.plan == PLAN) is (phase is Phase.COMMITTED)


def test_a_count_comes_too_late() -> None:
    given = given_up(VOTED)
    assert tally(given, PLAN, {"b": YES, "c": YES}) is given
    taken_back, _ = abandon(VOTED, "t1")
    assert tally(taken_back, PLAN, {"b": YES, "c": YES}).phase is Phase.NONE


def test_ballots_only_grow() -> None:
    state = given_up(VOTED)
    plan = make_plan(state, (A, B, D), token="t2", proposer="a", authority="sha256:ca")
    assert plan.ballot == 2
    assert protocol.outside(propose(state, plan), joins_only=False).ballot == 2


# -- what became of it


def voter() -> State:
    return vote(NONE, PLAN, me=B, has_data=False, knows_cluster=False)[0]


def test_commit_needs_the_vote_for_that_plan() -> None:
    after, answer = commit(voter(), PLAN)
    assert answer.is_accepted
    assert after.phase is Phase.COMMITTED
    assert after.initial_cluster == (
        "a=https://10.0.0.1:8300,b=https://10.0.0.2:8300,c=https://10.0.0.3:8300"
    )
    assert commit(after, PLAN) == (after, answer)
    assert not commit(NONE, PLAN)[1].is_accepted
    assert not commit(voter(), plan_of(A, B, C, token="t9"))[1].is_accepted
    assert not commit(abandon(voter(), "t1")[0], PLAN)[1].is_accepted


@pytest.mark.parametrize(
    ("is_abandoned", "answers", "phase"),
    [
        (False, {}, Phase.VOTED),
        (False, {"a": "pending", "c": "pending"}, Phase.VOTED),
        (False, {"a": "committed"}, Phase.COMMITTED),
        (False, {"c": "committed"}, Phase.COMMITTED),
        (False, {"a": "dead"}, Phase.NONE),
        (False, {"a": "abandoned"}, Phase.NONE),
        # Another voter that does not know the plan says nothing about it.
        (False, {"c": "dead"}, Phase.VOTED),
        # Once taken back, the proposer's word is not enough, another voter's is.
        (True, {"a": "committed"}, Phase.VOTED),
        (True, {"a": "committed", "c": "committed"}, Phase.COMMITTED),
        (True, {"c": "abandoned"}, Phase.NONE),
        (True, {"c": "pending"}, Phase.VOTED),
        (True, {}, Phase.VOTED),
        (True, {"a": "dead"}, Phase.NONE),
    ],
)
def test_what_a_voter_hears(is_abandoned: bool, answers: dict[str, str], phase: Phase) -> None:
    state = voter()
    if is_abandoned:
        state, status = abandon(state, "t1")
        assert status is PlanStatus.ABANDONED
    found = heard(state, PLAN, {key: PlanStatus(one) for key, one in answers.items()}, me="b")
    assert found.phase is phase


def test_what_is_said_about_a_plan() -> None:
    assert plan_status(NONE, "t1") is PlanStatus.DEAD
    assert plan_status(voter(), "t1") is PlanStatus.PENDING
    assert plan_status(voter(), "t2") is PlanStatus.DEAD
    assert plan_status(committed(VOTED, PLAN), "t1") is PlanStatus.COMMITTED
    formed = msgspec.structs.replace(committed(VOTED, PLAN), phase=Phase.MEMBER)
    assert plan_status(formed, "t1") is PlanStatus.COMMITTED


def test_a_committed_plan_is_not_taken_back() -> None:
    state = committed(voter(), PLAN)
    assert abandon(state, "t1") == (state, PlanStatus.COMMITTED)


def test_promises_outlive_a_vote_and_are_bounded() -> None:
    state = NONE
    for number in range(12):
        state, _ = abandon(state, f"t{number}")
    assert state.abandoned == tuple(f"t{number}" for number in range(4, 12))
    assert abandon(state, "t7")[0] is state


def test_a_voter_asks_and_takes_its_vote_back_when_the_proposer_is_gone() -> None:
    state = voter()
    gone = Seen(me=B, peers=(C,), voted_for_s=31)
    assert step(state, Seen(me=B, peers=(A, C), voted_for_s=1)) == AskPlan(PLAN)
    assert step(state, Seen(me=B, may_ask=False)) == Wait()
    assert step(state, gone) == Abandon(PLAN)
    assert step(state, msgspec.structs.replace(gone, peers=(A, C))) == AskPlan(PLAN)
    stranger = server("a", fingerprint="sha256:new")
    assert step(state, msgspec.structs.replace(gone, peers=(stranger, C))) == Abandon(PLAN)


# -- after a crash, and on


def test_a_proposer_that_restarts_gives_its_plan_up() -> None:
    action = step(VOTED, Seen(me=A, peers=(B, C)))
    assert isinstance(action, Settle)
    assert (action.state.phase, action.state.ballot) == (Phase.NONE, 1)
    assert step(VOTED, Seen(me=A, peers=(B, C), is_busy=True)) == Wait()


def test_a_founder_starts_the_store_and_becomes_a_member() -> None:
    state = committed(VOTED, PLAN)
    start = StartStore(is_new=True, initial_cluster=PLAN.initial_cluster, cluster="t1")
    assert step(state, Seen(me=A)) == start
    assert step(state, Seen(me=A, has_data=True)) == start
    waits = Seen(me=A, store=StoreFacts(is_running=True, answers=True))
    assert isinstance(step(state, waits), Wait)
    action = step(state, Seen(me=A, store=UP))
    assert isinstance(action, Settle)
    assert action.state.phase is Phase.MEMBER


def test_a_founder_that_the_others_did_without_joins_them() -> None:
    state = committed(VOTED, PLAN)
    others = (member(B, cluster="t2"),)
    action = step(state, Seen(me=A, peers=others, store=StoreFacts(is_running=True)))
    assert isinstance(action, Wipe)
    assert action.state.joins_only
    assert action.forgets_keys, "of a cluster that never came to be"
    led = StoreFacts(is_running=True, was_led=True)
    assert isinstance(step(state, Seen(me=A, peers=others, store=led)), Wait)


MEMBER = State(phase=Phase.MEMBER, cluster="t1", member_id="1a", initial_cluster="x")


def test_a_member_starts_at_once_and_asks_nobody() -> None:
    assert step(MEMBER, Seen(me=A, has_data=True)) == StartStore(
        is_new=False, initial_cluster="x", cluster="t1"
    )
    assert step(MEMBER, Seen(me=A, has_data=True, store=UP)) == Wait()


def test_a_member_without_data_joins_and_remembers_who_it_was() -> None:
    action = step(MEMBER, Seen(me=A, has_data=False))
    assert isinstance(action, Settle)
    assert (action.state.phase, action.state.joins_only) == (Phase.NONE, True)
    assert action.state.member_id == "1a"


def test_a_member_that_was_removed_or_is_of_the_past() -> None:
    removed = Seen(me=A, has_data=True, is_removed=True)
    assert isinstance(step(MEMBER, removed), Wipe)
    # While its store answers, the list may just be older than the member.
    assert step(MEMBER, msgspec.structs.replace(removed, store=UP)) == Wait()
    later = member(B, cluster="t1", epoch=1)
    action = step(MEMBER, Seen(me=A, has_data=True, store=UP, peers=(later,)))
    assert isinstance(action, Wipe)
    assert "recovered" in action.why
    for harmless in (member(B, cluster="t2", epoch=1), member(B, cluster="t1", epoch=0)):
        assert step(MEMBER, Seen(me=A, has_data=True, store=UP, peers=(harmless,))) == Wait()


def test_joining() -> None:
    state = State(phase=Phase.JOINING, cluster="t1", initial_cluster="x", joins_only=True)
    start = StartStore(is_new=False, initial_cluster="x", cluster="t1")
    assert step(state, Seen(me=A)) == start
    running = StoreFacts(is_running=True, answers=True)
    assert step(state, Seen(me=A, store=running)) == Wait()
    done = step(state, Seen(me=A, store=UP))
    assert isinstance(done, Settle)
    assert done.state.phase is Phase.MEMBER
    for failed in (
        Seen(me=A, has_data=True, store=StoreFacts(has_exited=True)),
        Seen(me=A, has_data=True, is_removed=True, store=StoreFacts(is_running=True)),
    ):
        assert isinstance(step(state, failed), Wipe)
