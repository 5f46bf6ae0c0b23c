"""Whom a machine has heard of, where it says hello and when; which of two machines with one id goes on."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from waypost.cluster.messages import MAX_SERVERS
from waypost.cluster.peers import Peers, contact_of, outranks
from waypost.cluster.records import Phase, ServerFacts


def server(key: str, address: str = "", **changes: object) -> ServerFacts:
    facts = ServerFacts(
        id=key,
        node=key,
        datacenter="dc1",
        address=address or f"192.0.2.{ord(key[0])}",
        cluster_port=8301,
        server_port=8300,
        store_port=8303,
    )
    return msgspec.structs.replace(facts, **changes)


OWN = "192.0.2.1:8301"


def peers() -> Peers:
    return Peers(own_id="me", own_contact=OWN, failed_after_s=2.5)


def test_who_was_heard_of_is_live_for_a_while() -> None:
    found = peers()
    assert found.heard(server("a"), now_s=10.0)
    assert not found.heard(server("a"), now_s=11.0)
    assert found.heard(server("a", phase=Phase.MEMBER), now_s=12.0)
    assert not found.heard(server("me"), now_s=12.0)
    assert [one.id for one in found.live(now_s=14.4)] == ["a"]
    assert found.live(now_s=14.5) == ()
    assert found.silent_s(now_s=14.5) == {"a": 2.5}


def test_whether_words_are_proved_is_as_of_the_last_ones() -> None:
    found = peers()
    found.heard(server("a"), now_s=1.0, is_verified=True)
    assert [one.is_verified for one in found.all()] == [True]
    found.heard(server("a"), now_s=2.0)
    assert [one.is_verified for one in found.all()] == [False]


def test_addresses_are_learned_but_not_this_machines_nor_without_end() -> None:
    found = peers()
    found.give([OWN, "192.0.2.9:8301"])
    found.learn([server("me", "192.0.2.8"), server("a"), server("c", is_server=False)], now_s=0.0)
    assert set(found.contacts) == {"192.0.2.9:8301", server("a").contact}
    found.learn([server(f"x{n}", f"198.51.100.{n}") for n in range(200)], now_s=0.0)
    assert len(found.contacts) == MAX_SERVERS
    found.is_me("192.0.2.9:8301")
    assert "192.0.2.9:8301" not in found.contacts
    found.learn([server("z", "192.0.2.9")], now_s=0.0)
    assert "192.0.2.9:8301" not in found.contacts


def test_pauses_grow_only_where_nobody_ever_answered() -> None:
    found = peers()
    found.give(["192.0.2.9:8301"])
    found.learn([server("a")], now_s=0.0)
    given, learned = found.contacts.values()
    pauses: list[list[float]] = []
    for contact in (given, learned):
        pauses.append([])
        for _ in range(8):
            found.silent(contact, now_s=0.0, pause_s=0.25, most_s=5.0)
            pauses[-1].append(contact.due_s)
    assert pauses[0] == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert pauses[1] == [0.25] * 8
    found.answered(given, server("b"), now_s=10.0, pause_s=1.0)
    assert (given.tries, given.due_s, given.server_id) == (0, 11.0, "b")
    found.hurry(now_s=10.5)
    assert found.due(now_s=10.5) == [given, learned]


def test_a_second_name_of_a_server_is_asked_seldom() -> None:
    found = peers()
    found.give(["name.example:8301"])
    found.learn([server("a")], now_s=0.0)
    alias = found.contacts["name.example:8301"]
    found.answered(alias, server("a"), now_s=0.0, pause_s=1.0)
    assert alias.due_s == 30.0


def test_who_is_gone_for_long_and_no_member_is_forgotten() -> None:
    found = peers()
    found.give(["192.0.2.9:8301"])
    found.heard(server("a"), now_s=0.0)
    found.heard(server("b"), now_s=0.0)
    found.keep(["a"], now_s=600.0)
    assert [one.facts.id for one in found.all()] == ["a", "b"]
    found.keep(["a"], now_s=601.0)
    assert [one.facts.id for one in found.all()] == ["a"]
    assert set(found.contacts) == {"192.0.2.9:8301", server("a").contact}


def test_of_two_with_one_id_both_name_the_same() -> None:
    kinds = [
        server("a", address, phase=phase, is_moved=is_moved)
        for address in ("192.0.2.5", "192.0.2.6")
        for phase in Phase
        for is_moved in (False, True)
    ]
    for one, two in itertools.permutations(kinds, 2):
        if one.address != two.address:
            assert outranks(one, two) is not outranks(two, one)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({}, {"is_moved": True, "phase": Phase.MEMBER}, id="at the old address"),
        pytest.param({"phase": Phase.MEMBER}, {"phase": Phase.NONE}, id="the one further"),
    ],
)
def test_outranks(first: dict[str, object], second: dict[str, object]) -> None:
    assert outranks(server("a", "192.0.2.9", **first), server("a", "192.0.2.5", **second))


def test_addresses_are_compared_without_case() -> None:
    assert contact_of("FE80::1", 8301) == "[fe80::1]:8301"
