"""Queries in, replies out: what gets which error, how replies are cached and how they take turns."""

from collections import Counter

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from waypost.base.errors import Forbidden, Malformed
from waypost.model.catalog import Node
from waypost.surfaces.dns.cache import Entry, ReplyCache, orders_for
from waypost.surfaces.dns.lookup import Turn
from waypost.surfaces.dns.responder import Deferred
from waypost.surfaces.dns.settings import DnsSettings, Upstream, parse_upstream
from waypost.wire.dns.message import decode_reply

PEER = "127.0.0.1"


def query(name, kind="A", *, edns=None, options=(), number=0x1234):
    message = dns.message.make_query(name, kind)
    message.id = number
    if edns is not None:
        message.use_edns(0, payload=edns, options=list(options))
    return message.to_wire()


def read(reply):
    assert isinstance(reply, bytes)
    return dns.message.from_wire(reply, one_rr_per_rrset=True)


def addresses(reply):
    return [rrset[0].to_text() for rrset in read(reply).answer]


@pytest.mark.parametrize(
    ("count", "tcp"), [(1, False), (2, False), (3, False), (12, False), (12, True)]
)
def test_every_instance_gets_its_even_share(feed, responder, count, tcp):
    for number in range(count):
        feed.web(number)
    answering = responder()
    cycle = orders_for(count, reply_bytes=100)
    for rounds in (1, 3, 80):
        # 80 rounds are past the point where new orders are drawn.
        firsts, shown = Counter(), Counter()
        for _ in range(rounds * cycle):
            reply = answering.respond(query("web.service.consul"), PEER, tcp)
            order = [record.data for record in decode_reply(reply).answer]
            firsts[order[0]] += 1
            shown.update(order)
        assert set(firsts.values()) == {rounds * cycle // count}
        taken = count if tcp else min(count, 3)
        assert set(shown.values()) == {rounds * cycle * taken // count}


def test_clients_with_cookies_take_turns_too(feed, responder):
    for number in range(3):
        feed.web(number)
    answering = responder()
    firsts = Counter()
    for number in range(9):
        cookie = dns.edns.GenericOption(10, number.to_bytes(8, "big"))
        ask = query("web.service.consul", edns=1232, options=[cookie], number=number)
        reply = read(answering.respond(ask, PEER))
        assert reply.id == number
        assert reply.payload == 1232
        firsts[reply.answer[0][0].to_text()] += 1
    assert set(firsts.values()) == {3}
    assert len(answering._peers[PEER].udp.entries) == 1


def test_second_choice_is_not_always_the_same(feed, responder):
    for number in range(6):
        feed.web(number)
    answering = responder()
    after = {}
    for _ in range(600):
        first, second, _ = addresses(answering.respond(query("web.service.consul"), PEER))
        after.setdefault(first, set()).add(second)
    assert all(len(seconds) >= 2 for seconds in after.values())


def test_a_change_shows_at_once_and_only_what_depends_on_it_is_made_anew(feed, responder):
    feed.web(1)
    feed.web(1, name="other")
    answering = responder()
    ask = query("web.service.consul")
    assert addresses(answering.respond(ask, PEER)) == ["10.0.0.1"]
    zone = answering._peers[PEER]
    entry = zone.udp.entries[ask[2:]]
    feed.web(2, name="other")
    assert addresses(answering.respond(ask, PEER)) == ["10.0.0.1"]
    assert zone.udp.entries[ask[2:]] is entry
    feed.web(2)
    assert sorted(addresses(answering.respond(ask, PEER))) == ["10.0.0.1", "10.0.0.2"]
    feed.web(1, status="critical")
    assert addresses(answering.respond(ask, PEER)) == ["10.0.0.2"]
    feed.delete(feed.view.node("web-n2"))
    assert read(answering.respond(ask, PEER)).rcode() == dns.rcode.NXDOMAIN
    feed.put(Node(node="web-n2", address="10.9.9.9"))
    assert addresses(answering.respond(ask, PEER)) == ["10.9.9.9"]


def test_what_is_not_there_yet_appears(feed, responder):
    answering = responder()
    for _ in range(3):
        assert read(answering.respond(query("web.service.consul"), PEER)).rcode() == 3
        assert read(answering.respond(query("n.node.consul"), PEER)).rcode() == 3
    feed.web(1)
    feed.put(Node(node="n", address="10.0.0.7"))
    assert addresses(answering.respond(query("web.service.consul"), PEER)) == ["10.0.0.1"]
    assert addresses(answering.respond(query("n.node.consul"), PEER)) == ["10.0.0.7"]


def test_serial_goes_with_the_time(responder, clock):
    answering = responder()
    serials = []
    for _ in range(3):
        for _ in range(2):
            reply = read(answering.respond(query("nope.service.consul"), PEER))
            serials.append(reply.authority[0][0].serial)
        clock.time_s += 1
    assert serials == [1000, 1000, 1001, 1001, 1002, 1002]


def test_id_and_case_are_the_askers(feed, responder):
    feed.web(1)
    answering = responder()
    for number, name in (
        (1, "web.service.consul"),
        (2, "WEB.service.consul"),
        (3, "web.service.consul"),
    ):
        reply = read(answering.respond(query(name, number=number), PEER))
        assert reply.id == number
        assert reply.question[0].name.to_text() == f"{name}."


def test_the_cache_is_bounded():
    cache = ReplyCache(entries=3, size_bytes=100)
    for number in range(10):
        entry = Entry(moment=1, index=0, topics=(), turn=Turn(1))
        entry.add(b"x" * 20, width=1)
        cache.put(bytes([number]), entry)
    assert list(cache.entries) == [b"\x07", b"\x08", b"\x09"]
    assert cache.bytes == 60
    big = Entry(moment=1, index=0, topics=(), turn=Turn(1))
    big.add(b"x" * 90, width=1)
    cache.put(b"big", big)
    assert list(cache.entries) == [b"big"]
    assert cache.bytes == 90


def test_random_names_do_not_fill_the_memory(feed, responder):
    feed.web(1)
    answering = responder()
    answering.respond(query("x.service.consul"), PEER)
    cache = answering._peers[PEER].udp = ReplyCache(entries=50)
    for number in range(200):
        answering.respond(query(f"x{number}.service.consul"), PEER)
    assert len(cache.entries) == 50
    assert cache.bytes == sum(entry.bytes for entry in cache.entries.values())


@pytest.mark.parametrize(
    ("width", "size", "kept"),
    [
        (0, 10, 1),
        (1, 10, 1),
        (2, 10, 32),
        (3, 10, 30),
        (60, 100, 60),
        (500, 100, 128),
        (60, 1 << 20, 2),
    ],
)
def test_orders_kept(width, size, kept):
    assert orders_for(width, reply_bytes=size) == kept


Q = b"\x02d1\x04node\x06consul\0\0\x01\0\x01"
HEADER = bytes.fromhex("123401000001000000000000")


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"", None),
        (HEADER[:11], None),
        (b"\x12\x34\x81\x00" + HEADER[4:] + Q, None),
        (HEADER, "123481010000000000000000"),
        (HEADER + Q[:-1], "123481010000000000000000"),
        (HEADER[:4] + b"\0\0" + HEADER[6:], "123481010000000000000000"),
        (HEADER[:4] + b"\0\2" + HEADER[6:] + Q + Q, "123481010000000000000000"),
        (HEADER[:10] + b"\0\3" + Q, "123481010000000000000000"),
        (b"\x12\x34\x29\x00" + HEADER[4:] + Q, "1234a9040000000000000000"),
        (b"\x12\x34\x11\x00" + HEADER[4:] + Q, "123491040000000000000000"),
    ],
    ids=[
        "empty",
        "short",
        "answer",
        "no question",
        "cut",
        "0 questions",
        "2 questions",
        "3 extra",
        "update",
        "status",
    ],
)
def test_broken_packets_as_consul_answers_them(responder, data, reply):
    # Bytes as Consul 1.8.7 sent them.
    got = responder().respond(data, PEER)
    assert got == (None if reply is None else bytes.fromhex(reply))


def test_flags_come_back(responder, feed):
    feed.put(Node(node="d1", address="10.1.0.1"))
    got = responder().respond(b"\x12\x34\x01\xf0" + HEADER[4:] + Q, PEER)
    assert got[2:4] == b"\x85\x10"


def test_unknown_edns_version(responder):
    data = bytearray(query("d1.node.consul", edns=1232))
    data[-5] = 1
    reply = read(responder().respond(bytes(data), PEER))
    assert reply.rcode() == dns.rcode.BADVERS
    assert reply.edns == 0


def test_bad_client_subnet_is_a_format_error(responder):
    data = query("d1.node.consul", edns=1232, options=[dns.edns.GenericOption(8, b"\0\1\x63\0")])
    assert responder().respond(data, PEER) == bytes.fromhex("123481010000000000000000")


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_get_a_reply_or_silence(responder, data, tcp):
    reply = responder().respond(data, PEER, tcp)
    assert reply is None or reply[:2] == data[:2]


class Doors:
    """Admits nobody but loopback, until it is opened."""

    def __init__(self, view):
        self.view = view
        self.generation = 0
        self.open = False

    def catalog(self, peer, /):
        if not self.open and peer != PEER:
            raise Forbidden("no")
        return self.view


def test_who_may_not_read_is_refused(feed, responder):
    feed.web(1)
    doors = Doors(feed.view)
    answering = responder(admission=doors)
    ask = query("web.service.consul")
    assert addresses(answering.respond(ask, PEER)) == ["10.0.0.1"]
    refused = read(answering.respond(ask, "192.0.2.1"))
    assert refused.rcode() == dns.rcode.REFUSED
    assert not refused.answer
    doors.open = True
    doors.generation += 1
    answering.begin()
    assert addresses(answering.respond(ask, "192.0.2.1")) == ["10.0.0.1"]


def test_outside_is_refused_without_and_deferred_with_recursors(responder):
    assert read(responder().respond(query("example.com"), PEER)).rcode() == dns.rcode.REFUSED
    deferred = responder(DnsSettings(recursors=("192.0.2.53",))).respond(query("example.com"), PEER)
    assert isinstance(deferred, Deferred)
    assert deferred.names == ()


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (3, 3), (8, 8), (20, 8), (0, 0), (-1, 0)])
def test_udp_answer_limit(feed, responder, limit, count):
    for number in range(12):
        feed.web(number)
    answering = responder(DnsSettings(udp_answer_limit=limit, enable_truncate=True))
    reply = read(answering.respond(query("web.service.consul"), PEER))
    assert len(reply.answer) == count
    assert reply.flags & dns.flags.TC
    assert len(reply.authority) == (0 if count else 1)
    assert len(addresses(answering.respond(query("web.service.consul", edns=1232), PEER))) == 12
    assert len(addresses(answering.respond(query("web.service.consul"), PEER, True))) == 12


def test_a_record_limit(feed, responder):
    for number in range(12):
        feed.web(number)
    answering = responder(DnsSettings(a_record_limit=5))
    seen = set()
    for _ in range(12):
        got = addresses(answering.respond(query("web.service.consul"), PEER, True))
        assert len(got) == 5
        seen.update(got)
    assert len(seen) == 12
    assert len(addresses(answering.respond(query("web.service.consul", "SRV"), PEER, True))) == 12


@pytest.mark.parametrize("payload", [None, 512, 700, 1232, 4096])
@pytest.mark.parametrize("compress", [True, False])
def test_replies_fit_what_the_client_takes(feed, responder, payload, compress):
    for number in range(60):
        feed.web(number, name="w" * 40)
    answering = responder(DnsSettings(disable_compression=not compress, udp_answer_limit=8))
    for kind in ("A", "SRV"):
        reply = answering.respond(query(f"{'w' * 40}.service.consul", kind, edns=payload), PEER)
        assert len(reply) <= (payload or 512)
        assert read(reply).answer


def test_much_metadata_gives_way_to_the_answer(feed, responder):
    feed.put(Node(node="d1", address="10.1.0.1", meta={f"key{i}": "v" * 60 for i in range(12)}))
    reply = responder().respond(query("d1.node.consul"), PEER)
    assert len(reply) <= 512
    assert addresses(reply) == ["10.1.0.1"]
    assert len(read(responder().respond(query("d1.node.consul"), PEER, True)).additional) == 12


def test_settings_change_while_running(feed, responder):
    feed.web(1)
    answering = responder()
    answering.respond(query("web.service.consul"), PEER)
    answering.configure(DnsSettings(service_ttl_s={"*": 30}))
    assert read(answering.respond(query("web.service.consul"), PEER)).answer[0].ttl == 30
    with pytest.raises(Malformed, match="recursor"):
        answering.configure(DnsSettings(recursors=("nowhere",)))
    assert read(answering.respond(query("web.service.consul"), PEER)).answer[0].ttl == 30


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        ("1.1.1.1", Upstream("1.1.1.1", 53)),
        ("1.1.1.1:5353", Upstream("1.1.1.1", 5353)),
        ("2001:db8::1", Upstream("2001:db8::1", 53)),
        ("[2001:db8::1]:54", Upstream("2001:db8::1", 54)),
        ("[2001:db8::1]", Upstream("2001:db8::1", 53)),
    ],
)
def test_upstreams(text, upstream):
    assert parse_upstream(text) == upstream


@pytest.mark.parametrize(
    "text",
    ["", "dns.example", "1.1.1.1:", "1.1.1.1:0", "1.1.1.1:x", "[::1", "[::1]x", "1.1.1.1:70000"],
)
def test_bad_upstreams(text):
    with pytest.raises(Malformed, match="recursor"):
        parse_upstream(text)


@pytest.mark.parametrize(
    "settings",
    [{"domain": "."}, {"domain": "a..b"}, {"alt_domain": "x" * 64}, {"recursor_strategy": "best"}],
)
def test_bad_settings(responder, settings):
    with pytest.raises(Malformed):
        responder(DnsSettings(**settings))
