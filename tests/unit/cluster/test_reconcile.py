"""Who is removed, promoted, taken in: tables."""

from __future__ import annotations

import msgspec
import pytest

from waypost.cluster.reconcile import (
    Add,
    Admit,
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
    quorum,
)
from waypost.cluster.records import Phase, ServerFacts
from waypost.domain.cluster import Autopilot

PACE = Pace()
DAY_S = 86400.0


def one(
    number: int, name: str, *, is_learner: bool = False, is_started: bool = True
) -> StoreMember:
    return StoreMember(
        id=number,
        name=name if is_started else "",
        peer_url=f"https://10.0.0.{number}:8300",
        is_learner=is_learner,
    )


A, B, C, D = one(1, "a"), one(2, "b"), one(3, "c"), one(4, "d")
LEARNER = one(4, "d", is_learner=True)
NEW = one(4, "d", is_learner=True, is_started=False)


def roster(*members: StoreMember, **changes: object) -> Roster:
    """All alive and healthy, heard of half a second ago; the list has been like this for half a minute."""
    found = Roster(
        me="a",
        members=members,
        silent_s={m.name: 0.5 for m in members if m.name and m.name != "a"},
        known_for_s={m.id: 30.0 for m in members},
        healthy_for_s={m.id: 30.0 for m in members},
        led_for_s=1000 * DAY_S,
    )
    return msgspec.structs.replace(found, **changes)


def silent(found: Roster, **times_s: float) -> Roster:
    return msgspec.structs.replace(found, silent_s={**found.silent_s, **times_s})


def test_quorums() -> None:
    assert [quorum(n) for n in range(1, 8)] == [1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("found", "change"),
    [
        (roster(A), None),
        (roster(A, B, C), None),
        # A dead voter stays as long as nobody is there to replace it …
        (silent(roster(A, B, C), c=60.0), None),
        (silent(roster(A, B, C), c=3 * DAY_S), Remove),
        # … goes when somebody is, and before that one is promoted …
        (silent(roster(A, B, C, LEARNER), c=2.6), Remove),
        (silent(roster(A, B, C, NEW), c=2.6), None),
        # … unless the rest would not be enough.
        (silent(roster(A, B, C), b=3 * DAY_S, c=3 * DAY_S), None),
        (silent(roster(A, B, LEARNER), b=3 * DAY_S), None),
        # Among an even number it only makes the quorum larger.
        (silent(roster(A, B, C, D), d=20.0), None),
        (silent(roster(A, B, C, D), d=31.0), Remove),
        (silent(roster(A, B), b=31.0), None),
        # A leader that has just begun gives everybody time to be heard.
        (silent(roster(A, B, C, LEARNER, led_for_s=1.0), c=60.0), None),
        # Promotion: everybody has said that it lives since the learner started.
        (roster(A, B, C, LEARNER), Promote),
        (roster(A, B, C, LEARNER, known_for_s={4: 0.3}), None),
        (silent(roster(A, B, C, LEARNER), c=2.0), None),
        (silent(roster(A, B, C, LEARNER), d=3.0), None),
        (roster(A, B, C, LEARNER, silent_s={"b": 0.5, "d": 0.5}, led_for_s=1.0), None),
        (roster(A, B, C, NEW), None),
        # From one to two voters only for a third, or after a while.
        (roster(A, LEARNER, known_for_s={4: 5.0}), None),
        (roster(A, LEARNER, known_for_s={4: 5.0}, is_third_waiting=True), Promote),
        (roster(A, LEARNER, known_for_s={4: 11.0}), Promote),
        (roster(A, B, LEARNER, known_for_s={4: 1.0}), Promote),
        # A learner that does not come, or is gone, makes room.
        (roster(A, B, NEW, known_for_s={4: 59.0}), None),
        (roster(A, B, NEW, known_for_s={4: 60.0}), Remove),
        (silent(roster(A, B, LEARNER), d=61.0), Remove),
    ],
)
def test_changes(found: Roster, change: type | None) -> None:
    decided = next_change(found, PACE)
    assert (None if decided is None else type(decided)) == change


def policy(**changes: object) -> Autopilot:
    return msgspec.structs.replace(Autopilot(), **changes)


def healthy(found: Roster, **times_s: float | None) -> Roster:
    """Return the roster in which members (`m4`) are healthy for another time, or not at all (None)."""
    told = {int(key[1:]): value for key, value in times_s.items()}
    rest = {key: value for key, value in found.healthy_for_s.items() if key not in told}
    rest |= {key: value for key, value in told.items() if value is not None}
    return msgspec.structs.replace(found, healthy_for_s=rest)


FAILED = silent(roster(A, B, C), c=9.0)
REPLACED = silent(roster(A, B, C, LEARNER), c=9.0)
LONG_NS, NOT_NS = 60 * 10**9, 0


@pytest.mark.parametrize(
    ("found", "decided", "change"),
    [
        # ServerStabilizationTime: a learner votes once it has been healthy for so long …
        (healthy(roster(A, B, LEARNER), m4=9.9), policy(), None),
        (healthy(roster(A, B, LEARNER), m4=10.0), policy(), Promote),
        (roster(A, B, LEARNER), policy(server_stabilization_time_ns=LONG_NS), None),
        (healthy(roster(A, B, LEARNER), m4=0.0), policy(server_stabilization_time_ns=NOT_NS), Promote),
        # … never while it is not, and a leader that has just begun does not wait.
        (healthy(roster(A, B, LEARNER), m4=None), policy(server_stabilization_time_ns=NOT_NS), None),
        (healthy(roster(A, B, LEARNER, led_for_s=10.9), m4=0.5), policy(), Promote),
        (healthy(roster(A, B, LEARNER, led_for_s=11.1), m4=0.5), policy(), None),
        (healthy(roster(A, B, LEARNER, led_for_s=10.9), m4=None), policy(), None),
        # A dead voter is replaced by a learner that is stable.
        (healthy(REPLACED, m4=9.9), policy(), None),
        (REPLACED, policy(), Remove),
        # CleanupDeadServers: without it only time removes a dead voter, and the learner votes beside it.
        (REPLACED, policy(cleanup_dead_servers=False), Promote),
        (silent(roster(A, B, C, D), d=60.0), policy(cleanup_dead_servers=False), None),
        (silent(roster(A, B, C, D), d=3 * DAY_S), policy(cleanup_dead_servers=False), Remove),
        # MinQuorum: not below so many voters.
        (REPLACED, policy(min_quorum=2), Remove),
        (REPLACED, policy(min_quorum=3), Promote),
        (silent(roster(A, B, C, D), d=60.0), policy(min_quorum=3), Remove),
        (silent(roster(A, B, C, D), d=60.0), policy(min_quorum=4), None),
        (silent(FAILED, c=3 * DAY_S), policy(min_quorum=3), Remove),
        # Nobody votes when the living could not outvote the dead.
        (silent(roster(A, B, C, LEARNER), b=9.0, c=9.0), policy(cleanup_dead_servers=False), None),
    ],
)  # fmt: skip
def test_what_the_operator_decides(found: Roster, decided: Autopilot, change: type | None) -> None:
    made = next_change(found, PACE, decided)
    assert (None if made is None else type(made)) == change


def test_who_is_removed() -> None:
    decided = next_change(silent(roster(A, B, C, LEARNER), b=9.0), PACE)
    assert isinstance(decided, Remove)
    assert decided.member == B
    assert "another server takes its place" in decided.why


def test_a_machine_that_moved_is_told_to_the_store() -> None:
    facts = ServerFacts(
        id="b", node="b", datacenter="dc1", address="10.0.0.99", cluster_port=8301,
        server_port=8300, store_port=8303, phase=Phase.MEMBER,
    )  # fmt: skip
    moved = roster(A, B, C, facts={"b": facts})
    assert next_change(moved, PACE) == Update(B, "https://10.0.0.99:8300")
    assert next_change(silent(moved, b=5.0), PACE) is None
    forming = msgspec.structs.replace(facts, phase=Phase.NONE)
    assert next_change(roster(A, B, C, facts={"b": forming}), PACE) is None


@pytest.mark.parametrize(
    ("found", "member", "may"),
    [
        (roster(A, B, C), B, True),
        (roster(A, B), B, True),
        (roster(A), A, False),
        (silent(roster(A, B), b=9.0), B, False),
        (silent(roster(A, B, C), c=9.0), C, True),
        (silent(roster(A, B, C), c=9.0), B, False),
        (roster(A, B, C, LEARNER), LEARNER, True),
    ],
)
def test_who_can_be_lost(found: Roster, member: StoreMember, may: bool) -> None:
    assert can_lose(found, PACE, member) is may


def joiner(name: str, number: int) -> ServerFacts:
    return ServerFacts(
        id=name, node=name, datacenter="dc1", address=f"10.0.0.{number}",
        cluster_port=8301, server_port=8300, store_port=8303,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "sender", "last", "answer"),
    [
        (roster(A, B, C), joiner("d", 4), "", Add("https://10.0.0.4:8300")),
        # Asked again before it started: the same answer.
        (roster(A, B, C, NEW), joiner("d", 4), "", Admit(NEW)),
        # Another one is first.
        (roster(A, B, NEW), joiner("e", 5), "", Refuse("another server is joining", is_queue=True)),
        # It lost its data: its former self goes first, known by name, address or the store's id.
        (roster(A, B, C), joiner("c", 3), "", Remove(C, "it lost its data and joins again")),
        (roster(A, B, C), joiner("x", 3), "", Remove(C, "it lost its data and joins again")),
        (roster(A, B, C), joiner("x", 9), "3", Remove(C, "it lost its data and joins again")),
        (roster(A, B, LEARNER), joiner("d", 4), "", Remove(LEARNER, "it lost its data and joins again")),
        # Two of three are left, but one of them is silent.
        (
            silent(roster(A, B, C), b=9.0),
            joiner("c", 3),
            "",
            Refuse("too few other servers are alive to take its former membership out"),
        ),
        (
            roster(A, B, C),
            joiner("a", 7),
            "",
            Refuse("this server has the same id or address as the one that asks"),
        ),
    ],
)  # fmt: skip
def test_joins(found: Roster, sender: ServerFacts, last: str, answer: object) -> None:
    assert next_join(found, PACE, sender, last_member_id=last) == answer
