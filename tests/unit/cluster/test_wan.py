"""What servers of several datacenters believe each other."""

import math
import random

import msgspec
import pytest

from waypost.base.errors import Forbidden, Malformed, Unavailable
from waypost.cluster.wan import (
    MAX_DATACENTERS,
    MAX_SERVERS,
    Datacenter,
    Hello,
    Wan,
    WanServer,
    _address,
    check,
    decode_hello,
    distance_s,
    mac,
    merged,
)

KEY = bytes(range(32))


def server(number):
    return WanServer(node=f"n{number}", id=f"id{number}", address=f"192.0.2.{number}", port=8302)


def left(number):
    return msgspec.structs.replace(server(number), status="left")


def datacenter(*numbers, ca="CA"):
    return Datacenter(ca, tuple(map(server, numbers)))


def test_servers_of_a_known_authority_are_added():
    known = {"dc2": datacenter(1)}
    after = merged(known, {"dc2": datacenter(2), "dc3": datacenter(3)}, own="dc1")
    assert [one.id for one in after["dc2"].servers] == ["id1", "id2"]
    assert after["dc3"] == datacenter(3)


def test_another_authority_is_never_believed_and_nobody_tells_us_of_ourselves():
    known = {"dc2": datacenter(1)}
    told = {"dc2": datacenter(2, ca="OTHER"), "dc1": datacenter(3), "": datacenter(4)}
    assert merged(known, told, own="dc1") == known


def test_a_server_that_moved_is_known_once():
    moved = msgspec.structs.replace(server(1), address="198.51.100.1")
    after = merged({"dc2": datacenter(1)}, {"dc2": Datacenter("CA", (moved,))}, own="dc1")
    assert after["dc2"].servers == (moved,)


def test_who_its_servers_are_and_how_is_known_from_a_datacenter_itself():
    known = {"dc2": datacenter(1, 2), "dc3": datacenter(5)}
    told = {
        "dc2": Datacenter("CA", (left(2), server(3))),
        "dc3": Datacenter("CA", (left(5), left(6))),
    }
    # From others: who is there as well, and where; not that somebody left.
    after = merged(known, told, own="dc1")
    assert after["dc2"].servers == (server(1), server(2), server(3))
    assert after["dc3"].servers == (server(5), left(6))
    # From itself: everything. A list without anybody says nothing.
    after = merged(known, told, own="dc1", proven="dc2")
    assert after["dc2"].servers == (left(2), server(3))
    assert after["dc3"].servers == (server(5), left(6))
    assert merged(known, {"dc2": datacenter()}, own="dc1", proven="dc2") == known
    other = {"dc2": datacenter(7, ca="OTHER")}
    assert merged(known, other, own="dc1", proven="dc2") == known


def test_how_far_a_datacenter_is():
    assert distance_s([]) == math.inf
    assert distance_s([0.3]) == 0.3
    assert distance_s([0.3, 0.1, 0.2]) == 0.2
    assert distance_s([0.1, 0.3]) == pytest.approx(0.2)


class HandClock:
    now_s = 1000.0

    def now(self):
        return self.now_s


class Told(Wan):
    """Whose questions are answered from a table: seconds until the answer, or None."""

    def __init__(self, tmp_path, clock, answers):
        super().__init__(
            datacenter="dc1", own=lambda: datacenter(9), join=(), default_port=8302,
            path=tmp_path / "wan.json", clock=clock, rng=random.Random(1),
        )  # fmt: skip
        self.clock, self.answers = clock, answers

    async def _post(self, name, netloc, path, body, *, timeout_s=5.0):
        took_s = self.answers[netloc]
        if took_s is None:
            raise Unavailable("refused")
        self.clock.now_s += took_s
        return msgspec.json.encode(Hello(datacenter=name, datacenters=self.told))


async def test_servers_are_alive_failed_or_left_and_datacenters_near_or_far(tmp_path):
    known = {
        "a": datacenter(1, 2),
        "b": datacenter(3),
        "c": datacenter(4),
        "d": Datacenter("CA", (left(5),)),
    }
    (tmp_path / "wan.json").write_bytes(msgspec.json.encode(known))
    answers = {
        f"192.0.2.{n}:8302": took_s for n, took_s in ((1, 0.5), (2, None), (3, 0.25), (4, None))
    }
    clock = HandClock()
    wan = Told(tmp_path, clock, answers)
    wan.told = known

    def statuses():
        return {one.id: one.status for one in wan.far_servers()}

    # Before anybody was asked: as their datacenters said.
    assert statuses() == {
        "id1": "alive",
        "id2": "alive",
        "id3": "alive",
        "id4": "alive",
        "id5": "left",
    }
    assert wan.names() == ("a", "b", "c", "d")
    await wan._round()
    assert statuses() == {
        "id1": "alive",
        "id2": "failed",
        "id3": "alive",
        "id4": "failed",
        "id5": "left",
    }
    assert wan.names() == ("b", "a", "c", "d")
    assert wan.servers("d") == ()
    # The shortest of the last trips counts.
    answers["192.0.2.1:8302"] = 0.125
    await wan._round()
    answers["192.0.2.1:8302"] = 2.0
    await wan._round()
    assert wan.names() == ("a", "b", "c", "d")
    clock.now_s += 60
    assert statuses()["id1"] == "failed"
    answers["192.0.2.4:8302"] = 0.01
    await wan._round()
    assert wan.names()[0] == "c"
    assert statuses() == {
        "id1": "alive",
        "id2": "failed",
        "id3": "alive",
        "id4": "alive",
        "id5": "left",
    }
    # The datacenter itself says that one left: it is asked no more.
    wan.told = {"a": Datacenter("CA", (server(1), left(2)))}
    await wan._round()
    assert statuses()["id2"] == "left"
    assert [one.id for one in wan.servers("a")] == ["id1"]


def test_knowledge_is_bounded():
    told = {f"d{n}": datacenter(1) for n in range(MAX_DATACENTERS + 5)}
    assert len(merged({}, told, own="dc1")) == MAX_DATACENTERS
    with pytest.raises(Malformed, match="at most"):
        check(Hello(datacenter="x", datacenters=told), b"")
    many = {"dc2": Datacenter("CA", tuple(map(server, range(MAX_SERVERS + 1))))}
    with pytest.raises(Malformed, match="servers of dc2"):
        check(Hello(datacenter="x", datacenters=many), b"")


def signed(key, **changes):
    plain = Hello(datacenter="dc2", datacenters={"dc2": datacenter(1)})
    return msgspec.structs.replace(plain, mac=mac(plain, key), **changes)


def test_with_a_shared_key_only_its_holders_are_believed():
    check(signed(KEY), KEY)
    check(signed(b""), b"")
    for hello, key in (
        (signed(b""), KEY),
        (signed(KEY[::-1]), KEY),
        (signed(KEY, datacenters={"dc2": datacenter(2)}), KEY),
        (signed(KEY), b""),
    ):
        with pytest.raises(Forbidden):
            check(hello, key)


def test_what_is_no_hello_is_refused():
    for data in (b"", b"[]", b'{"datacenter":1}', b"\xff"):
        with pytest.raises(Malformed, match="no hello"):
            decode_hello(data)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1:8302"),
        ("192.0.2.1:9000", "192.0.2.1:9000"),
        ("host.example", "host.example:8302"),
        ("2001:db8::1", "[2001:db8::1]:8302"),
        ("[2001:db8::1]:9000", "[2001:db8::1]:9000"),
    ],
)
def test_addresses(text, address):
    assert _address(text, 8302) == address


@pytest.mark.parametrize("text", ["", ":8302", "host:port"])
def test_addresses_that_are_none(text):
    with pytest.raises(Malformed, match="join_wan"):
        _address(text, 8302)
