"""Messages against dnspython, which is an implementation of its own, and against arbitrary bytes."""

import contextlib
import struct

import dns.flags
import dns.message
import dns.rdatatype
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from waypost.base.errors import Malformed
from waypost.wire.dns import message as wire
from waypost.wire.dns.message import Edns, Question, Record, Sections
from waypost.wire.dns.name import fold, is_below, name_text, parse_name

LABELS = st.binary(min_size=1, max_size=63)
NAMES = st.lists(LABELS, max_size=5).map(tuple).filter(lambda n: sum(len(x) + 1 for x in n) < 255)
HOSTS = st.lists(
    st.sampled_from([b"a", b"B", b"api", b"node", b"consul", b"x" * 63]), max_size=3
).map(tuple)
U16 = st.integers(0, 65535)
U32 = st.integers(0, 2**32 - 1)

RECORDS = st.one_of(
    st.builds(Record, HOSTS, st.just(wire.A), U32, st.binary(min_size=4, max_size=4)),
    st.builds(Record, HOSTS, st.just(wire.AAAA), U32, st.binary(min_size=16, max_size=16)),
    st.builds(Record, HOSTS, st.just(wire.TXT), U32, st.binary(max_size=600).map(wire.txt_data)),
    st.builds(Record, HOSTS, st.sampled_from([wire.CNAME, wire.NS, wire.PTR]), U32, HOSTS),
    st.builds(Record, HOSTS, st.just(wire.SRV), U32, st.builds(wire.Srv, U16, U16, U16, HOSTS)),
    st.builds(
        Record,
        HOSTS,
        st.just(wire.SOA),
        U32,
        st.builds(wire.Soa, HOSTS, HOSTS, U32, U32, U32, U32, U32),
    ),
)
SECTION = st.lists(RECORDS, max_size=6)


def labels_of(name):
    return tuple(name.labels[:-1])


def rdata_of(kind, rdata):
    """Return the data as ours of what dnspython decoded."""
    if kind in (wire.CNAME, wire.NS, wire.PTR):
        return labels_of(rdata.target)
    if kind == wire.SRV:
        return wire.Srv(rdata.priority, rdata.weight, rdata.port, labels_of(rdata.target))
    if kind == wire.SOA:
        return wire.Soa(
            labels_of(rdata.mname),
            labels_of(rdata.rname),
            rdata.serial,
            rdata.refresh,
            rdata.retry,
            rdata.expire,
            rdata.minimum,
        )
    return rdata.to_wire()


def as_records(section):
    # dnspython caps TTLs at 2^31 - 1 (RFC 2181), so times are compared below it.
    return [
        (labels_of(rrset.name), int(rrset.rdtype), rdata_of(rrset.rdtype, rdata))
        for rrset in section
        for rdata in rrset
    ]


@given(U16, NAMES, SECTION, SECTION, SECTION, st.booleans(), st.none() | st.integers(512, 65535))
def test_what_is_encoded_is_what_dnspython_reads(number, name, an, ns, ar, compress, payload):
    edns = None if payload is None else Edns(payload, options=((10, b"12345678"),))
    data = wire.encode_message(
        number,
        wire.QR | wire.AA,
        Question(name, wire.SRV),
        Sections(an, ns, ar),
        edns=edns,
        compress=compress,
    )
    read = dns.message.from_wire(data, one_rr_per_rrset=True)
    assert read.id == number
    assert labels_of(read.question[0].name) == name
    assert read.edns == (-1 if payload is None else 0)
    for ours, theirs in zip(
        (an, ns, ar), (read.answer, read.authority, read.additional), strict=True
    ):
        assert as_records(theirs) == [(r.name, r.type, r.data) for r in ours]


@given(SECTION)
def test_compression_never_makes_it_longer(section):
    question = Question((b"api", b"node", b"consul"), wire.A)
    lengths = [
        len(wire.encode_message(1, 0, question, Sections(section), compress=compress))
        for compress in (True, False)
    ]
    assert lengths[0] <= lengths[1]


def test_srv_target_is_written_out_and_then_pointed_at():
    target = (b"d1", b"node", b"dc1", b"consul")
    data = wire.encode_message(
        7,
        0,
        Question((b"api", b"service", b"consul"), wire.SRV),
        Sections(
            [Record((b"api", b"service", b"consul"), wire.SRV, 0, wire.Srv(1, 1, 80, target))],
            (),
            [Record(target, wire.A, 0, bytes(4))],
        ),
    )
    assert data.count(b"\x02d1\x04node\x03dc1\x06consul\x00") == 1
    assert data.endswith(b"\xc0\x36" + struct.pack("!2HIH", 1, 1, 0, 4) + bytes(4))


QUERY = bytes.fromhex("123401000001000000000000") + b"\x02d1\x04Node\x06consul\0\0\x01\0\x01"


def with_opt(*opts, additionals=None):
    count = len(opts) if additionals is None else additionals
    return QUERY[:10] + count.to_bytes(2, "big") + QUERY[12:] + b"".join(opts)


def opt(payload=1232, version=0, options=b""):
    return b"\0" + struct.pack("!2HIH", 41, payload, version << 16, len(options)) + options


def test_query_is_read_in_its_own_case():
    query = wire.decode_query(QUERY)
    assert query.header.id == 0x1234
    assert query.question == Question((b"d1", b"Node", b"consul"), wire.A, wire.IN)
    assert query.edns is None


@pytest.mark.parametrize(
    ("data", "edns"),
    [
        (with_opt(opt()), Edns(1232)),
        (with_opt(opt(payload=0)), Edns(0)),
        (with_opt(opt(version=3)), Edns(1232, 3)),
        (with_opt(opt(options=b"\0\x0a\0\x02hi")), Edns(1232, 0, ((10, b"hi"),))),
        (with_opt(opt(payload=600), opt(payload=700)), Edns(600)),
        (with_opt(additionals=1), None),
        (QUERY + b"left over", None),
    ],
    ids=["plain", "payload 0", "version", "option", "two", "missing", "trailing bytes"],
)
def test_edns_and_what_is_tolerated(data, edns):
    assert wire.decode_query(data).edns == edns


@pytest.mark.parametrize(
    "data",
    [
        b"",
        QUERY[:11],
        QUERY[:12],
        QUERY[:-1],
        QUERY[:4] + b"\0\0" + QUERY[6:],
        QUERY[:4] + b"\0\2" + QUERY[6:],
        QUERY[:6] + b"\0\2" + QUERY[8:],
        QUERY[:8] + b"\0\2" + QUERY[10:],
        QUERY[:10] + b"\0\3" + QUERY[12:],
        QUERY[:12] + b"\xc0\x0c\0\1\0\1",
        QUERY[:12] + b"\xc0\xff\0\1\0\1",
        QUERY[:12] + b"\xc0",
        QUERY[:12] + b"\x40abc\0\0\1\0\1",
        QUERY[:12] + b"\x05ab",
        QUERY[:12] + (b"\x3f" + b"x" * 63) * 4 + b"\0\0\1\0\1",
        with_opt(opt()[:-1]),
        with_opt(opt(options=b"\0\x0a\0")),
        with_opt(opt(options=b"\0\x0a\0\x09hi")),
    ],
)
def test_broken_queries_are_malformed(data):
    with pytest.raises(Malformed):
        wire.decode_query(data)


@given(st.binary(max_size=200))
@example(bytes.fromhex("000080000000000100000000") + b"\0\0\x05\0\x01\0\0\0\0\0\x02\xc0\x0c")
def test_decoders_raise_only_malformed(data):
    for decode in (
        wire.decode_header,
        wire.decode_query,
        wire.decode_reply,
        wire.check_client_subnet,
    ):
        with contextlib.suppress(Malformed):
            decode(data)


@given(st.data())
def test_damaged_messages_raise_only_malformed(data):
    section = data.draw(SECTION)
    whole = bytearray(
        wire.encode_message(1, wire.QR, Question((b"a", b"consul"), wire.A), Sections(section))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(0, len(whole))) :]
    for decode in (wire.decode_query, wire.decode_reply):
        with contextlib.suppress(Malformed):
            decode(bytes(whole))


@given(NAMES, NAMES)
def test_names_are_read_as_written(name, other):
    data = wire.encode_query(5, Question(name, wire.A))
    assert wire.decode_query(data).question.name == name
    assert wire.is_same_question(
        Question(name, 1), Question(tuple(x.upper() for x in name), 1)
    ) == (fold(name) == fold(tuple(x.upper() for x in name)))
    assert wire.is_same_question(Question(name, 1), Question(other, 1)) == (
        fold(name) == fold(other)
    )


@given(SECTION)
def test_replies_give_addresses_and_aliases(section):
    data = wire.encode_message(9, wire.QR, Question((b"a",), wire.A), Sections(section))
    reply = wire.decode_reply(data)
    assert list(reply.answer) == [r for r in section if r.type in (wire.A, wire.AAAA, wire.CNAME)]


@pytest.mark.parametrize(
    ("data", "good"),
    [
        ("00011800c63364", True),
        ("00011800", False),
        ("0001", False),
        ("00012100c633640000", False),
        ("00033000c63364", False),
        ("0002380020010db8000000", True),
        ("00010000", True),
    ],
)
def test_client_subnets(data, good):
    raw = bytes.fromhex(data)
    if good:
        wire.check_client_subnet(raw)
    else:
        with pytest.raises(Malformed):
            wire.check_client_subnet(raw)


@pytest.mark.parametrize("text", ["a..b", ".a", "x" * 64, ".".join(["x" * 63] * 4)])
def test_bad_names(text):
    with pytest.raises(Malformed):
        parse_name(text)


def test_names_in_text():
    assert parse_name("") == parse_name(".") == ()
    assert parse_name("Api.Consul.") == (b"Api", b"Consul")
    assert name_text((b"Api", b"Consul")) == "Api.Consul."
    assert parse_name("ä.b") == ("ä".encode(), b"b")
    assert is_below((b"a", b"b"), (b"b",))
    assert is_below((b"b",), (b"b",))
    assert not is_below((b"b",), (b"a", b"b"))


def test_long_texts_are_split():
    assert wire.txt_data(b"") == b"\0"
    assert wire.txt_data(b"x" * 300) == b"\xff" + b"x" * 255 + b"\x2d" + b"x" * 45
