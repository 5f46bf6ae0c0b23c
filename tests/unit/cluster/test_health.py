"""How the members of the store are: limits, and since when."""

from __future__ import annotations

import msgspec
import pytest

from waypost.cluster.health import Judge, Sight, complaint
from waypost.cluster.reconcile import StoreMember
from waypost.cluster.store_members import StoreStatus
from waypost.domain.cluster import Autopilot

POLICY = Autopilot()
LEADER = StoreStatus(
    member_id=1, cluster_id=9, leader_id=1, raft_term=4, raft_index=1000, is_learner=False, version="3.4.23",
)  # fmt: skip
FOLLOWER = msgspec.structs.replace(LEADER, member_id=2)
A, B = (
    StoreMember(id=n, name=name, peer_url=f"https://10.0.0.{n}:8300") for n, name in ((1, "a"), (2, "b"))
)  # fmt: skip


class HandClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return self.now_s + 1_700_000_000


@pytest.mark.parametrize(
    ("changes", "contact_s", "policy", "text"),
    [
        ({}, 0.2, {}, ""),
        ({}, 0.201, {}, "allowed are 0.2 s"),
        ({}, 0.9, {"last_contact_threshold_ns": 10**9}, ""),
        ({"raft_index": 750}, 0.0, {}, ""),
        ({"raft_index": 749}, 0.0, {}, "251 entries behind, allowed are 250"),
        ({"raft_index": 749}, 0.0, {"max_trailing_logs": 251}, ""),
        ({"raft_index": 1001}, 0.0, {"max_trailing_logs": 0}, ""),
        ({"raft_term": 3}, 0.0, {}, "term 3"),
        ({"leader_id": 0}, 0.0, {}, "does not follow"),
        ({"leader_id": 2}, 0.0, {}, "does not follow"),
    ],
)
def test_limits(
    changes: dict[str, int], contact_s: float, policy: dict[str, int], text: str
) -> None:
    status = msgspec.structs.replace(FOLLOWER, **changes)
    limits = msgspec.structs.replace(POLICY, **policy)
    found = complaint(status, contact_s=contact_s, leader=LEADER, policy=limits)
    assert text in found
    assert bool(found) is bool(text)


def test_since_when_and_for_how_long() -> None:
    clock = HandClock()
    judge = Judge(clock=clock)

    def look(second: StoreStatus | None) -> dict[str, tuple[bool, float | None, float]]:
        sights = [
            Sight(member=A, status=LEADER),
            Sight(member=B, status=second, took_s=0.01, why="" if second else "refused"),
        ]
        judge.judge(sights, leader=LEADER, policy=POLICY)
        return {
            one.id: (one.is_healthy, one.contact_s, one.since_s - 1_700_000_000)
            for one in judge.verdicts()
        }

    assert judge.healthy_for_s() == {}
    # One that never answered is not healthy, and nobody knows when it was.
    assert look(None) == {"a": (True, 0.0, 100.0), "b": (False, None, 100.0)}
    assert judge.verdicts()[1].why == "refused"
    clock.now_s = 101
    assert look(FOLLOWER)["b"] == (True, 0.01, 101.0)
    clock.now_s = 105
    assert look(FOLLOWER)["b"] == (True, 0.01, 101.0)
    assert judge.healthy_for_s() == {1: 5.0, 2: 4.0}
    # It falls silent: how old the knowledge is grows from its last answer.
    clock.now_s = 107
    assert look(None)["b"] == (False, 2.0, 107.0)
    clock.now_s = 109
    assert look(None)["b"] == (False, 4.0, 107.0)
    assert judge.healthy_for_s() == {1: 9.0}
    # An answer that names no leader is no contact with it.
    assert look(msgspec.structs.replace(FOLLOWER, leader_id=0))["b"] == (False, 4.0, 107.0)
    clock.now_s = 110
    assert look(FOLLOWER)["b"] == (True, 0.01, 110.0)


def test_who_is_out_is_forgotten() -> None:
    clock = HandClock()
    judge = Judge(clock=clock)
    both = [Sight(member=A, status=LEADER), Sight(member=B, status=FOLLOWER)]
    judge.judge(both, leader=LEADER, policy=POLICY)
    clock.now_s += 60
    judge.judge(both[:1], leader=LEADER, policy=POLICY)
    assert judge.healthy_for_s() == {1: 60.0}
    judge.judge(both, leader=LEADER, policy=POLICY)
    assert judge.healthy_for_s() == {1: 60.0, 2: 0.0}
    judge.forget()
    assert judge.verdicts() == ()
    assert judge.healthy_for_s() == {}
