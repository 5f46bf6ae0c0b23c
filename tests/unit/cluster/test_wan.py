"""What servers of several datacenters believe each other."""

import msgspec
import pytest

from waypost.base.errors import Forbidden, Malformed
from waypost.cluster.wan import (
    MAX_DATACENTERS,
    MAX_SERVERS,
    Datacenter,
    Hello,
    WanServer,
    _address,
    check,
    decode_hello,
    mac,
    merged,
)

KEY = bytes(range(32))


def server(number):
    return WanServer(node=f"n{number}", id=f"id{number}", address=f"192.0.2.{number}", port=8302)


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
