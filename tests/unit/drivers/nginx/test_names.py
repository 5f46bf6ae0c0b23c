"""The DNS for nginx, judged by dnspython."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.drivers.nginx.backends import Endpoint
from waypost.drivers.nginx.names import Names


def ask(names: Names, name: str, kind: str, *, max_bytes: int = 4096) -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=False)
    wire = names.answer(query.to_wire(), max_bytes=max_bytes)
    assert wire is not None
    answer = dns.message.from_wire(wire)
    assert query.is_response(answer)
    return answer


def srv(answer: dns.message.Message) -> set[tuple[int, int, int, str]]:
    [rrset] = answer.answer
    assert rrset.ttl == 0
    return {(one.priority, one.weight, one.port, str(one.target)) for one in rrset}


def test_srv_then_addresses():
    names = Names()
    endpoints = (
        Endpoint(address="10.0.0.5", port=8080, weight=3),
        Endpoint(address="2001:db8::1", port=81),
    )
    names.put("wp-web", endpoints=endpoints, sentinel_port=8654)
    v4 = "h0a000005-8080.ip.wp."
    v6 = "h20010db8000000000000000000000001-81.ip.wp."
    assert srv(ask(names, "_wp._tcp.wp-web.svc.wp", "SRV")) == {(1, 3, 8080, v4), (1, 1, 81, v6)}
    [rrset] = ask(names, v4, "A").answer
    assert [str(one) for one in rrset] == ["10.0.0.5"]
    [rrset] = ask(names, v6.upper(), "AAAA").answer
    assert [str(one) for one in rrset] == ["2001:db8::1"]
    assert ask(names, v4, "AAAA").rcode() == dns.rcode.NOERROR


def test_what_is_unknown_is_never_denied():
    names = Names()
    assert ask(names, "_wp._tcp.wp-web.svc.wp", "SRV").rcode() == dns.rcode.SERVFAIL
    names.put("wp-web", endpoints=(), sentinel_port=8654)
    assert srv(ask(names, "_wp._tcp.wp-web.svc.wp", "SRV")) == {
        (1, 1, 8654, "h7f000001-8654.ip.wp.")
    }
    names.remove("wp-web")
    assert ask(names, "_wp._tcp.wp-web.svc.wp", "SRV").rcode() == dns.rcode.SERVFAIL
    assert ask(names, "example.com", "A").rcode() == dns.rcode.REFUSED


def test_only_another_answer_is_another_version():
    names = Names()
    one, two = Endpoint(address="10.0.0.1", port=1), Endpoint(address="10.0.0.2", port=2)
    first = names.put("a", endpoints=(one,), sentinel_port=9)
    assert names.put("a", endpoints=(one,), sentinel_port=9) == first
    assert names.put("a", endpoints=(one, two), sentinel_port=9) > first


def test_who_asks_is_reported_with_the_version():
    seen: list[tuple[str, int]] = []
    names = Names(on_answer=lambda label, version: seen.append((label, version)))
    version = names.put("a", endpoints=(), sentinel_port=9)
    ask(names, "_wp._tcp.a.svc.wp", "SRV")
    ask(names, "h0a000005-8080.ip.wp.", "A")
    assert seen == [("a", version)]


def test_too_long_for_a_datagram_is_truncated():
    names = Names()
    many = [Endpoint(address="10.0.0.1", port=one + 1) for one in range(200)]
    names.put("a", endpoints=many, sentinel_port=9)
    short = ask(names, "_wp._tcp.a.svc.wp", "SRV")
    assert short.flags & dns.flags.TC
    assert not short.answer
    assert len(srv(ask(names, "_wp._tcp.a.svc.wp", "SRV", max_bytes=65535))) == 200
    names.put("a", endpoints=many[:80], sentinel_port=9)
    assert len(srv(ask(names, "_wp._tcp.a.svc.wp", "SRV"))) == 80


@pytest.mark.parametrize(
    "wire", [b"", b"\0" * 11, b"\0" * 12, b"\0\0\x81\0" + b"\0\1" + b"\0" * 20]
)
def test_what_is_no_query_gets_no_answer(wire: bytes):
    assert Names().answer(wire, max_bytes=4096) is None


@given(st.binary(max_size=80))
def test_no_message_breaks_it(wire: bytes):
    Names().answer(wire, max_bytes=4096)
    Names().answer(b"\0\1\1\0\0\1\0\0\0\0\0\0" + wire, max_bytes=4096)
