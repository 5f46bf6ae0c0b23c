from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from waypost.surfaces.dns.batch import IP_PKTINFO, SLOT_BYTES, Batch


def bound(family: socket.AddressFamily, host: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(2)
    return sock


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with bound(family, request.param) as server, bound(family, request.param) as client:
        yield server, client


def test_replies_go_back_to_their_senders(pair):
    server, client = pair
    with bound(server.family, client.getsockname()[0]) as other:
        batch = Batch(4, family=server.family)
        assert batch.receive(server.fileno()) == []
        for _ in range(3):  # the headers are used again and again
            client.sendto(b"one", server.getsockname())
            other.sendto(b"second", server.getsockname())
            client.sendto(b"", server.getsockname())
            host = socket.inet_pton(server.family, client.getsockname()[0])
            found = batch.receive(server.fileno())
            assert found == [(host, b"one"), (host, b"second"), (host, b"")]
            assert batch.sender(0) == client.getsockname()
            assert batch.sender(1) == other.getsockname()
            batch.put(0, b"reply to one")
            batch.put(1, b"2")
            batch.put(2, b"x" * SLOT_BYTES)
            assert batch.send(server.fileno(), 0, 3) == 0
            assert client.recv(100) == b"reply to one"
            assert client.recv(2 * SLOT_BYTES) == b"x" * SLOT_BYTES
            assert other.recv(100) == b"2"


def test_no_more_than_fits_is_taken_and_what_is_too_long_is_cut(pair):
    server, client = pair
    for number in range(5):
        client.sendto(bytes([number]) * (SLOT_BYTES + 9), server.getsockname())
    batch = Batch(3, family=server.family)
    sizes = [len(query) for _, query in batch.receive(server.fileno())]
    assert sizes == [SLOT_BYTES] * 3
    assert len(batch.receive(server.fileno())) == 2


def test_one_that_cannot_be_sent_does_not_keep_the_others(pair):
    server, client = pair
    unreachable = bound(server.family, client.getsockname()[0])
    for sock in (client, unreachable, client):
        sock.sendto(b"?", server.getsockname())
    batch = Batch(4, family=server.family)
    assert len(batch.receive(server.fileno())) == 3
    # A reply to port 0 is refused by the kernel.
    batch._name_view[batch._name_bytes + 2 : batch._name_bytes + 4] = b"\0\0"
    for index in range(3):
        batch.put(index, b"%d" % index)
    assert batch.send(server.fileno(), 0, 3) == 1
    assert client.recv(100) == b"0"
    assert client.recv(100) == b"2"
    unreachable.close()


@pytest.mark.parametrize(("any_host", "asked"), [("0.0.0.0", "127.0.7.9"), ("::", "::1")])
def test_a_reply_comes_from_the_address_that_was_asked(any_host: str, asked: str):
    family = socket.AF_INET6 if ":" in asked else socket.AF_INET
    with bound(family, any_host) as server, bound(family, any_host) as client:
        if family == socket.AF_INET:
            server.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        else:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        batch = Batch(2, family=family, ancillary=True)
        address = (asked, server.getsockname()[1])
        for _ in range(2):
            client.sendto(b"?", address)
            client.sendto(b"?", address)
            assert len(batch.receive(server.fileno())) == 2
            back = batch.sender(1), batch.ancillary(1)
            batch.put(0, b"at once")
            assert batch.send(server.fileno(), 0, 1) == 0
            server.sendmsg((b"later",), back[1], 0, back[0])
            for text in (b"at once", b"later"):
                data, sender = client.recvfrom(100)
                assert (data, sender[0]) == (text, asked)
