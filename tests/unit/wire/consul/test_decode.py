"""Decoding of request bodies against the error texts of a real Consul."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waypost.base.errors import Malformed
from waypost.model.catalog import TaggedAddress, Weights
from waypost.wire.consul import decode
from waypost.wire.consul.gojson import parse, quote

ROWS = json.loads((Path(__file__).parent / "data" / "decode.json").read_text())["rows"]
DECODERS = {
    "/v1/agent/service/register": decode.service_registration,
    "/v1/agent/check/register": decode.check_registration,
    "/v1/agent/check/update/c": decode.check_result,
    "/v1/catalog/register": decode.catalog_registration,
    "/v1/catalog/deregister": decode.catalog_deregistration,
    "/v1/session/create": decode.session_creation,
    "/v1/txn": decode.transaction,
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['path']} {row['body'][:60]}")
def test_as_recorded(row):
    try:
        DECODERS[row["path"]](row["body"].encode())
        error = None
    except Malformed as raised:
        error = str(raised)
    assert error == row["error"]


def test_spellings_of_a_service():
    found = decode.service_registration(
        b'{"name":"web","ID":"w1","tags":["a"],"tagged_addresses":{"lan":{"address":"10.0.0.1","port":8}},'
        b'"weights":{"passing":3},"enable_tag_override":true,"port":80,"Check":{"TTL":"10s"},'
        b'"Checks":[{"CheckID":"c","http":"http://x","interval":1000000000,"Header":{"A":["b"]},'
        b'"deregister_critical_service_after":"90m"}]}'
    )
    service = found.service
    assert (service.name, service.id, service.tags, service.port) == ("web", "w1", ("a",), 80)
    assert service.tagged_addresses == {"lan": TaggedAddress("10.0.0.1", 8)}
    assert service.weights == Weights(3, 0)
    assert service.enable_tag_override
    http, ttl = found.checks
    assert (http.check_id, http.type, http.definition.interval_ns) == ("c", "http", 10**9)
    assert http.definition.header == {"A": ("b",)}
    assert http.definition.deregister_critical_service_after_ns == 90 * 60 * 10**9
    assert (ttl.type, ttl.definition.ttl_ns) == ("ttl", 10 * 10**9)


def test_absent_weights_are_one_each():
    assert decode.service_registration(b'{"Name":"x"}').service.weights == Weights(1, 1)


@pytest.mark.parametrize("check", ["{}", '{"Name":""}', '{"TTL":0}', "null"])
def test_an_empty_check_is_no_check(check):
    body = b'{"Name":"x","Check":%s}' % check.encode()
    assert decode.service_registration(body).checks == ()


def test_last_spelling_of_a_duplicate_key_counts():
    assert decode.service_registration(b'{"Name":"a","name":"b"}').service.name == "b"


def test_text_after_the_value_is_ignored():
    assert decode.check_result(b'{"Status":"passing"} and more').status == "passing"


def test_lenient_mode_ignores_unknown_fields_and_knows_every_check_id():
    found = decode.check_registration(b'{"Name":"c","CheckID":"x","Bogus":1}', strict=False)
    assert found.check.check_id == "x"
    found = decode.service_registration(
        b'{"Name":"s","Check":{"check_id":"y","TTL":"1s"}}', strict=False
    )
    assert found.checks[0].check_id == "y"


def test_catalog_check_definition():
    found = decode.catalog_registration(
        b'{"Node":"n","Address":"a","Check":{"Name":"c","Definition":{"HTTP":"http://x","Interval":"10s"}},'
        b'"Checks":[{"Name":"d","Definition":{"TCP":"x:1"}}]}'
    )
    first, second = found.checks
    assert (first.name, first.type) == ("d", "tcp")
    assert second.type == "http"
    assert second.shown_definition == {"HTTP": "http://x", "Interval": 10 * 10**9}


@pytest.mark.parametrize(
    ("delay", "wanted"),
    [("5", 5 * 10**9), ("999", 999 * 10**9), ("1000", 1000), ('"2s"', 2 * 10**9)],
)
def test_small_lock_delays_are_seconds(delay, wanted):
    found = decode.session_creation(b'{"LockDelay":%s,"Bogus":1}' % delay.encode())
    assert found.lock_delay_ns == wanted


def test_transaction():
    kv, node, service, check = decode.transaction(
        b'[{"KV":{"Verb":"cas","Key":"a","Value":"MQ==","Index":7}},'
        b'{"Node":{"Verb":"set","Node":{"Node":"n","Address":"x","ModifyIndex":3}}},'
        b'{"Service":{"Verb":"set","Node":"n","Service":{"Service":"s","ModifyIndex":4}}},'
        b'{"Check":{"Verb":"set","Check":{"CheckID":"c","ModifyIndex":5}}}]'
    )
    assert (kv.verb, kv.key, kv.value, kv.index) == ("cas", "a", b"1", 7)
    assert (node.node, node.address, node.index) == ("n", "x", 3)
    assert (service.node, service.service.name, service.service.modify_index) == ("n", "s", 4)
    assert (check.check.check_id, check.check.modify_index) == ("c", 5)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'"\xff\xfe"', "\ufffd\ufffd"),
        (rb'"\ud800"', "\ufffd"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (b"[1.50]", [1.5]),
    ],
)
def test_values_that_go_accepts(body, wanted):
    assert parse(body) == wanted


def test_depth_is_bounded():
    with pytest.raises(Malformed, match="exceeded max depth"):
        parse(b"[" * 100_000)


def test_quote_is_gos():
    assert quote('a"\\\n\x01é\u200b') == r'"a\"\\\n\x01é\u200b"'


# Bodies near the border of the short way: it must read exactly what the long way reads, or refuse.
TEXT = st.sampled_from(['""', '"x"', '"a b"', "null", "5", '"\\u00e9"', "true"])
PORT = st.sampled_from(
    ["80", "80.0", "1e3", "-1", '"80"', "null", str(2**63), str(-(2**63)), "8.5"]
)
TEXTS = st.sampled_from(["[]", '["a","b"]', "[null]", "null", '"a"', "[1]"])
MAP = st.sampled_from(["{}", '{"a":"b"}', '{"a":null}', "null", '{"a":1}', "[]"])
BOOL = st.sampled_from(["true", "false", "null", "1"])
SPAN = st.sampled_from(
    ['"10s"', '"1.5h"', "1000000000", '"x"', '"10"', "null", "1.5", "0", "[]", "true"]
)


def _object(fields):
    def build(chosen):
        return "{" + ",".join(f'"{name}":{value}' for name, value in chosen) + "}"

    pair = st.sampled_from(sorted(fields)).flatmap(
        lambda name: st.tuples(st.just(name), fields[name])
    )
    return st.lists(pair, max_size=6).map(build)


PROBE = {
    **dict.fromkeys(("CheckID", "Name", "Status", "HTTP", "TCP", "Notes", "name", "Bogus"), TEXT),
    **dict.fromkeys(("TTL", "Interval", "Timeout", "DeregisterCriticalServiceAfter"), SPAN),
}
SERVICE = {
    **dict.fromkeys(("ID", "Address", "id", "Kind"), TEXT),
    "Tags": TEXTS,
    "Meta": MAP,
    "Port": PORT,
    "EnableTagOverride": BOOL,
}
HEALTH = dict.fromkeys(("Node", "CheckID", "Name", "Status", "Output", "ServiceID", "Type"), TEXT)
AGENT = _object(
    {
        **SERVICE,
        "Name": TEXT,
        "Check": _object(PROBE),
        "Checks": st.lists(_object(PROBE), max_size=2).map(
            lambda items: "[" + ",".join(items) + "]"
        ),
    }
)
CATALOG = _object(
    {
        **dict.fromkeys(("Node", "Address", "ID", "Datacenter"), TEXT),
        "NodeMeta": MAP,
        "TaggedAddresses": MAP,
        "SkipNodeUpdate": BOOL,
        "Service": _object({**SERVICE, "Service": TEXT}),
        "Check": _object(HEALTH),
        "Checks": st.lists(_object(HEALTH), max_size=2).map(
            lambda items: "[" + ",".join(items) + "]"
        ),
    }
)


def _outcome(decoder, body):
    try:
        return decoder(body)
    except Malformed as error:
        return str(error)


@pytest.mark.parametrize(
    ("decoder", "short", "bodies"),
    [
        (decode.service_registration, "agent_body", AGENT),
        (decode.catalog_registration, "catalog_body", CATALOG),
    ],
)
def test_the_short_way_reads_what_the_long_way_reads(monkeypatch, decoder, short, bodies):
    taken = 0

    @settings(max_examples=400, deadline=None)
    @given(bodies, st.sampled_from(["", "", " trailing", "{"]))
    def compare(text, tail):
        nonlocal taken
        body = (text + tail).encode()
        with monkeypatch.context() as patch:
            both = _outcome(decoder, body)
            taken += getattr(decode, short)(body) is not None
            patch.setattr(decode, short, lambda _: None)
            assert both == _outcome(decoder, body)

    compare()
    assert taken > 20


@pytest.mark.parametrize(
    "delay", ["9223372036854775808", "-9223372036854775809", "1e300", "9" * 400]
)
def test_durations_of_more_nanoseconds_than_there_are(delay: str):
    with pytest.raises(Malformed, match="invalid duration"):
        decode.session_creation(b'{"LockDelay":%s}' % delay.encode())
    with pytest.raises(Malformed, match="invalid duration"):
        decode.service_registration(b'{"Name":"web","Check":{"TTL":%s}}' % delay.encode())
