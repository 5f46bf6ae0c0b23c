"""The election among servers with nothing but a store in common, by hand-moved clocks."""

import random

import pytest

from waypost.cluster.election import COURTESY_S, EXPIRE_S, HOLD_S, RENEW_S, Claim, Election


class Key:
    """The store's one key, written only where it is as it was seen."""

    def __init__(self):
        self.claim, self.revision = None, 0

    def write(self, claim, *, at):
        if at != self.revision:
            return 0
        self.claim, self.revision = claim, self.revision + 1
        return self.revision


def server(name):
    return Election(server_id=name, session=f"session of {name}")


def turn(election, key, *, now_s, answers_s=0.0):
    """One look and one try; the store's answer takes `answers_s`."""
    election.saw(key.claim, revision=key.revision, now_s=now_s)
    claim = election.wants(now_s=now_s)
    if claim is None:
        return False
    revision = key.write(claim, at=election.revision)
    if revision:
        election.succeeded(claim, revision=revision, began_s=now_s, now_s=now_s + answers_s)
    return bool(revision)


def test_the_first_takes_it_and_keeps_it():
    key, a, b = Key(), server("a"), server("b")
    assert turn(a, key, now_s=0)
    for at in range(1, 20):
        assert turn(a, key, now_s=at)
        assert not turn(b, key, now_s=at + 0.5)
        assert a.leads(now_s=at)
        assert not b.leads(now_s=at)
        assert b.leader(now_s=at + 0.5) == "a"


def test_a_silent_leader_stops_before_another_one_begins():
    key, a, b = Key(), server("a"), server("b")
    turn(a, key, now_s=0)
    turn(b, key, now_s=0)
    assert a.leads(now_s=HOLD_S - 0.01)
    assert not a.leads(now_s=HOLD_S)
    assert not turn(b, key, now_s=EXPIRE_S - 0.01)
    assert turn(b, key, now_s=EXPIRE_S)
    a.saw(key.claim, revision=key.revision, now_s=EXPIRE_S + 1)
    assert a.leader(now_s=EXPIRE_S + 1) == "b"
    assert a.wants(now_s=EXPIRE_S + 1) is None


def test_an_answer_that_comes_late_counts_from_when_it_was_asked_for():
    key, a = Key(), server("a")
    turn(a, key, now_s=0, answers_s=HOLD_S + 1)
    assert not a.leads(now_s=HOLD_S)


def test_only_one_of_two_that_try_at_once():
    key, a, b = Key(), server("a"), server("b")
    for one in (a, b):
        one.saw(key.claim, revision=key.revision, now_s=0)
    claims = {one: one.wants(now_s=0) for one in (a, b)}
    assert key.write(claims[a], at=a.revision)
    assert not key.write(claims[b], at=b.revision)


def test_a_copied_server_is_another_one():
    key, a = Key(), server("a")
    copy = Election(server_id="a", session="of the copy")
    turn(a, key, now_s=0)
    assert not turn(copy, key, now_s=1)
    assert not copy.leads(now_s=1)


@pytest.mark.parametrize(
    ("to", "taker", "after_s", "takes"),
    [
        ("", "b", 0.0, True),
        ("b", "b", 0.0, True),
        ("c", "b", COURTESY_S - 0.01, False),
        ("c", "b", COURTESY_S, True),
        ("c", "a", 0.0, False),
    ],
)
def test_a_leader_that_hands_over(to, taker, after_s, takes):
    key, servers = Key(), {name: server(name) for name in ("a", "b")}
    a = servers["a"]
    turn(a, key, now_s=0)
    claim = a.given_up(to=to)
    revision = key.write(claim, at=a.revision)
    a.succeeded(claim, revision=revision, began_s=1, now_s=1)
    assert not a.leads(now_s=1)
    assert a.leader(now_s=1) == ""
    other = servers[taker]
    other.saw(key.claim, revision=key.revision, now_s=1)
    assert turn(other, key, now_s=1 + after_s) is takes


def test_a_claim_that_cannot_be_read_is_written_over():
    a = server("a")
    a.saw(None, revision=7, now_s=0)
    assert a.wants(now_s=0) is not None
    assert a.revision == 7


def test_never_two_at_once_whatever_stops_whom():
    """Servers that stand still at random, and stores that answer late."""
    rng = random.Random(7)
    for _ in range(200):
        key, servers = Key(), {name: server(name) for name in "abc"}
        due = dict.fromkeys(servers, 0.0)
        led = set()
        for _ in range(300):
            name = min(due, key=due.__getitem__)
            now_s = due[name]
            turn(servers[name], key, now_s=now_s, answers_s=rng.choice((0, 0, 0.5)))
            leading = [one for one, part in servers.items() if part.leads(now_s=now_s)]
            assert len(leading) <= 1
            led.update(leading)
            due[name] = now_s + rng.choice((RENEW_S, RENEW_S, RENEW_S, 3.0, 9.0))
        assert led == set(servers)


def test_a_claim_of_a_later_version_is_still_a_claim():
    import msgspec

    later = msgspec.msgpack.encode({"id": "a", "session": "s", "count": 3, "term": 9})
    assert msgspec.msgpack.decode(later, type=Claim).count == 3
