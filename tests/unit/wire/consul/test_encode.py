"""Encoding against the bytes of a real Consul."""

from __future__ import annotations

import json

import pytest

from waypost.model.catalog import Check, Node, Service, TaggedAddress, Weights
from waypost.model.kv import KVEntry
from waypost.model.session import Session
from waypost.wire.consul import encode
from waypost.wire.consul.encode import dump

NODE = Node(
    node="n1", address="10.0.0.1", id="e8", datacenter="dc1", meta={"b": "2", "a": "1"},
    create_index=11, modify_index=12,
)  # fmt: skip
SERVICE = Service(
    node="n1", id="web1", name="web", tags=("v1", "Prod"), address="10.0.0.9", port=80, meta={"env": "prod"},
    tagged_addresses={"wan": TaggedAddress("9.9.9.9", 8080), "lan": TaggedAddress("10.0.0.9", 80)},
    weights=Weights(10, 2), create_index=15, modify_index=16,
)  # fmt: skip
PLAIN = Service(node="n1", id="p", name="plain", create_index=3, modify_index=4)


def text(value, *, indent=False):
    return dump(value, indent=indent).decode()


def test_go_escapes_markup_and_line_separators():
    assert text("<&>\u2028\u2029é\\") == r'"\u003c\u0026\u003e\u2028\u2029é\\"'


def test_indented_form():
    assert text({"b": [], "a": {}, "c": [1, {"x": None}]}, indent=True) == (
        '{\n    "a": {},\n    "b": [],\n    "c": [\n        1,\n        {\n            "x": null\n        }\n    ]\n}\n'
    )


def test_node():
    assert text(encode.node_object(NODE)) == (
        '{"ID":"e8","Node":"n1","Address":"10.0.0.1","Datacenter":"dc1","TaggedAddresses":null,'
        '"Meta":{"a":"1","b":"2"},"CreateIndex":11,"ModifyIndex":12}'
    )


def test_service_node():
    assert text(encode.service_node_object(NODE, SERVICE)) == (
        '{"ID":"e8","Node":"n1","Address":"10.0.0.1","Datacenter":"dc1","TaggedAddresses":null,'
        '"NodeMeta":{"a":"1","b":"2"},"ServiceKind":"","ServiceID":"web1","ServiceName":"web",'
        '"ServiceTags":["v1","Prod"],"ServiceAddress":"10.0.0.9","ServiceTaggedAddresses":'
        '{"lan":{"Address":"10.0.0.9","Port":80},"wan":{"Address":"9.9.9.9","Port":8080}},'
        '"ServiceWeights":{"Passing":10,"Warning":2},"ServiceMeta":{"env":"prod"},"ServicePort":80,'
        '"ServiceEnableTagOverride":false,"ServiceProxy":{"MeshGateway":{},"Expose":{}},"ServiceConnect":{},'
        '"CreateIndex":15,"ModifyIndex":16}'
    )


def test_node_service_leaves_out_kind_and_addresses():
    assert text(encode.node_service_object(PLAIN)) == (
        '{"ID":"p","Service":"plain","Tags":[],"Address":"","Meta":null,"Port":0,'
        '"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,'
        '"Proxy":{"MeshGateway":{},"Expose":{}},"Connect":{},"CreateIndex":3,"ModifyIndex":4}'
    )
    assert json.loads(text(encode.node_service_object(PLAIN, null_tags=True)))["Tags"] is None


def test_agent_service():
    assert text(encode.agent_service_object(PLAIN)) == (
        '{"ID":"p","Service":"plain","Tags":[],"Meta":{},"Port":0,"Address":"",'
        '"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false}'
    )


def test_content_hash_follows_the_definition():
    def hashed(service):
        return encode.agent_service_object(service, with_hash=True).ContentHash

    assert len(hashed(PLAIN)) == 16
    assert hashed(PLAIN) == hashed(Service(node="n1", id="p", name="plain"))
    assert hashed(PLAIN) != hashed(Service(node="n1", id="p", name="plain", port=1))


def test_proxy_keeps_consuls_order():
    proxy = Service(
        node="n1",
        id="x",
        name="x",
        kind="connect-proxy",
        proxy={
            "Upstreams": [{"DestinationName": "db"}],
            "LocalServicePort": 9,
            "DestinationServiceName": "web",
        },
        connect={"Native": False},
    )
    shown = encode.agent_service_object(proxy)
    assert text(shown.Proxy) == (
        '{"DestinationServiceName":"web","LocalServicePort":9,"Upstreams":[{"DestinationName":"db"}],'
        '"MeshGateway":{},"Expose":{}}'
    )
    assert '"Kind":"connect-proxy"' in text(shown)


CHECK = Check(
    node="n1",
    check_id="c",
    name="C",
    status="passing",
    type="http",
    shown_definition={"HTTP": "http://x", "Interval": 10 * 10**9, "Timeout": 90 * 10**9},
    create_index=1,
    modify_index=2,
)


def test_check():
    assert text(encode.check_object(CHECK)) == (
        '{"Node":"n1","CheckID":"c","Name":"C","Status":"passing","Notes":"","Output":"","ServiceID":"",'
        '"ServiceName":"","ServiceTags":[],"Type":"http","Definition":{"Interval":"10s","Timeout":"1m30s",'
        '"HTTP":"http://x"},"CreateIndex":1,"ModifyIndex":2}'
    )


def test_check_of_an_agent():
    shown = encode.agent_check_object(CHECK)
    assert (shown.CreateIndex, shown.ModifyIndex, text(shown.Definition)) == (0, 0, "{}")
    health = encode.agent_health_check_object(CHECK)
    assert (health.Type, health.ServiceTags) == ("", None)
    assert text(health.Definition) == (
        '{"Interval":"0s","Timeout":"0s","DeregisterCriticalServiceAfter":"0s","HTTP":"","Header":null,'
        '"Method":"","Body":"","TLSSkipVerify":false,"TCP":""}'
    )


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (
            KVEntry(key="a", value=b"bar", flags=42, create_index=1, modify_index=2),
            '{"LockIndex":0,"Key":"a","Flags":42,"Value":"YmFy","CreateIndex":1,"ModifyIndex":2}',
        ),
        (
            KVEntry(key="a", session="s", lock_index=3),
            '{"LockIndex":3,"Key":"a","Flags":0,"Value":null,"Session":"s","CreateIndex":0,"ModifyIndex":0}',
        ),
        (
            KVEntry(key="a\udcff", flags=2**64 - 1),
            '{"LockIndex":0,"Key":"a\ufffd","Flags":18446744073709551615,"Value":null,"CreateIndex":0,"ModifyIndex":0}',
        ),
    ],
)
def test_kv(entry, wanted):
    assert text(encode.kv_object(entry)) == wanted


def test_session():
    session = Session(
        id="i", node="n1", node_checks=("serfHealth",), create_index=1, modify_index=1
    )
    assert text(encode.session_object(session)) == (
        '{"ID":"i","Name":"","Node":"n1","LockDelay":15000000000,"Behavior":"release","TTL":"",'
        '"NodeChecks":["serfHealth"],"ServiceChecks":null,"CreateIndex":1,"ModifyIndex":1}'
    )
    more = Session(id="i", node="n1", checks=("a",), service_checks=("b",))
    shown = text(encode.session_object(more))
    assert '"ServiceChecks":[{"ID":"b","Namespace":""}],"Checks":["a"]' in shown
