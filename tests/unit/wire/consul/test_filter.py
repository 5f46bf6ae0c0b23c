"""Filter expressions against the answers of a real Consul."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from waypost.base.errors import Rejected
from waypost.model.catalog import Check, Node, Service, TaggedAddress, Weights
from waypost.wire.consul import filter as filters
from waypost.wire.consul.filter import PREFIX, select

ROWS = json.loads((Path(__file__).parent / "data" / "filter.json").read_text())["rows"]
NODE = Node(
    node="rec1",
    address="127.0.0.1",
    id="e8724eae-7f29-4e10-81d5-d05356643dcc",
    datacenter="dc1",
    tagged_addresses={"lan": "127.0.0.1", "wan": "127.0.0.1"},
    meta={"consul-network-segment": ""},
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["expression"])
def test_as_recorded(row):
    try:
        matches, error = bool(select([NODE], row["expression"], filters.NODE)), None
    except Rejected as raised:
        matches, error = None, str(raised).removeprefix(PREFIX)
    assert (matches, error) == (row["matches"], row["error"])


SERVICE = Service(
    node="n",
    id="web1",
    name="web",
    tags=("v1", "Prod"),
    port=80,
    meta={"env": "prod", "a.b": "1"},
    weights=Weights(10, 1),
    tagged_addresses={"lan": TaggedAddress("10.0.0.1", 81)},
    proxy={"Upstreams": [{"DestinationName": "db"}], "LocalServicePort": 9},
    connect={"Native": True},
)
CHECKS = (
    Check(node="n", check_id="a", name="a", status="passing"),
    Check(node="n", check_id="b", name="b", status="warning", service_tags=("v1",)),
)
INSTANCE = SimpleNamespace(node=NODE, service=SERVICE, checks=CHECKS)


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("Service.Port == 80", True),
        ("Service.Port == 0x50", None),
        ('Service.Port == "0x50"', True),
        ("Service.Port != 80", False),
        ("v1 in Service.Tags", True),
        ("prod in Service.Tags", False),
        ("Service.Tags contains Prod and Service.Tags is not empty", True),
        ('Service.Meta["a.b"] == 1', True),
        ("env in Service.Meta", True),
        ("Service.Meta.none != x", True),
        ("Service.Meta.none not contains x", True),
        ("Service.Meta.none contains x", False),
        ("Service.TaggedAddresses.lan.Port == 81", True),
        ("Service.TaggedAddresses.wan.Port == 81", False),
        ("Service.TaggedAddresses.wan.Port != 81", True),
        ("lan in Service.TaggedAddresses", True),
        ("Service.Weights.Passing == 10", True),
        ("Service.EnableTagOverride == false", True),
        ("Service.EnableTagOverride == T", False),
        ("Service.Connect.Native == true", True),
        ("Service.Proxy.LocalServicePort == 9", True),
        ("Service.Proxy.Upstreams.DestinationName == db", True),
        ("Service.Proxy.Upstreams is empty", False),
        ('Service.Proxy.MeshGateway.Mode == ""', True),
        ("Checks.Status == warning", True),
        ("Checks.Status != warning", True),
        ("Checks.Status == critical", False),
        ("not Checks.Status == warning", False),
        ("Checks is empty", False),
        ("v1 in Checks.ServiceTags", True),
        ("Node.Meta.x == 1 or Node.Node matches `^rec[0-9]$`", True),
    ],
)
def test_over_an_instance(expression, wanted):
    if wanted is None:
        with pytest.raises(Rejected):
            select([INSTANCE], expression, filters.INSTANCE)
    else:
        assert bool(select([INSTANCE], expression, filters.INSTANCE)) is wanted


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("Service.Bogus == x", 'Selector "Service.Bogus" is not valid'),
        ("Service.Tags == x", 'Invalid match operator "Equal" for selector "Service.Tags"'),
        ("x in Checks", 'Invalid match operator "In" for selector "Checks"'),
        ("Service.Port in Service.Port", 'Invalid match operator "In" for selector "Service.Port"'),
        (
            "Service.Port == abc",
            'Failed to coerce value "abc" for selector "Service.Port": '
            'strconv.ParseInt: parsing "abc": invalid syntax',
        ),
        (
            "Service.Port == 99999999999999999999",
            'Failed to coerce value "99999999999999999999" for selector "Service.Port": '
            'strconv.ParseInt: parsing "99999999999999999999": value out of range',
        ),
        (
            "Service.EnableTagOverride == maybe",
            'Failed to coerce value "maybe" for selector "Service.EnableTagOverride": '
            'strconv.ParseBool: parsing "maybe": invalid syntax',
        ),
    ],
)
def test_errors_over_an_instance(expression, error):
    with pytest.raises(Rejected) as raised:
        select([], expression, filters.INSTANCE)
    assert str(raised.value) == PREFIX + error


def test_no_filter_lets_everything_through():
    assert select([NODE], "", filters.NODE) == [NODE]


def test_nested_parentheses_take_linear_time():
    deep = "(" * 40 + "Node == rec1" + ")" * 40
    assert select([NODE], deep, filters.NODE) == [NODE]


def test_depth_and_length_are_bounded():
    with pytest.raises(Rejected, match="nests too deeply"):
        select([NODE], "(" * 5000 + "a", filters.NODE)
    with pytest.raises(Rejected, match="at most 16384"):
        select([NODE], "a" * 20_000, filters.NODE)


def test_long_chains_are_fine():
    assert select([NODE], " or ".join(["Node == x"] * 500 + ["Node == rec1"]), filters.NODE)
    assert select([NODE], "not " * 500 + "Node == rec1", filters.NODE) == [NODE]
    assert select([NODE], "not " * 501 + "Node == rec1", filters.NODE) == []
