"""What is refused of a registration, and with which words."""

from __future__ import annotations

import pytest

from waypost.base.errors import Malformed, Rejected
from waypost.model.catalog import Check, CheckDefinition, Service, TaggedAddress, Weights
from waypost.wire.consul import validate

SECOND = 10**9


def service(**more):
    return Service(node="", id="", name=more.pop("name", "x"), **more)


def checked(**definition):
    status = definition.pop("status", "")
    return Check(
        node="", check_id="", name="c", status=status, definition=CheckDefinition(**definition)
    )


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (service(name=""), "Missing service name"),
        (service(address="0.0.0.0"), "Invalid service address"),
        (service(address="[::]"), "Invalid service address"),
        (service(weights=Weights(0, 1)), "Invalid Weights: Passing must be greater than 0"),
        (
            service(weights=Weights(1, -1)),
            "Invalid Weights: Warning must be greater or equal than 0",
        ),
        (
            service(weights=Weights(1, 65536)),
            "Invalid Weights: DNS Weight must be between 0 and 65535",
        ),
        (
            service(meta={"": "x"}),
            "Invalid Service Meta: Couldn't load metadata pair ('', 'x'): Key cannot be blank",
        ),
        (
            service(meta={"a b": "x"}),
            "Invalid Service Meta: Couldn't load metadata pair ('a b', 'x'): Key contains invalid characters",
        ),
        (
            service(meta={"k\n": "x"}),
            "Invalid Service Meta: Couldn't load metadata pair ('k\n', 'x'): Key contains invalid characters",
        ),
        (
            service(meta={"consul-x": "y"}),
            "Invalid Service Meta: Couldn't load metadata pair ('consul-x', 'y'): "
            "Key prefix 'consul-' is reserved for internal use",
        ),
        (
            service(meta={str(n): "" for n in range(65)}),
            "Invalid Service Meta: Node metadata cannot contain more than 64 key/value pairs",
        ),
        (
            service(kind="connect-proxy", port=1),
            "1 error occurred:\n\t* Proxy.DestinationServiceName must be non-empty for Connect proxy services\n\n",
        ),
    ],
)
def test_services(made, error):
    with pytest.raises(Malformed) as raised:
        validate.check_agent_service(made, ())
    assert str(raised.value) == error


def test_what_is_accepted():
    fine = service(
        name="bad_name.for dns", port=-1, meta={"k" * 128: "v" * 512}, weights=Weights(65535, 0)
    )
    validate.check_agent_service(fine, [checked(ttl_ns=SECOND, status="warning")])
    validate.check_agent_service(service(kind="mesh-gateway", meta={"consul-x": "1"}), ())


@pytest.mark.parametrize(
    ("definition", "problem"),
    [
        ({}, "TTL must be > 0 for TTL checks"),
        ({"ttl_ns": -1}, "TTL must be > 0 for TTL checks"),
        ({"http": "x"}, "Interval must be > 0 for Script, HTTP, or TCP checks"),
        ({"args": ("x",)}, "Interval must be > 0 for Script, HTTP, or TCP checks"),
        ({"interval_ns": 1, "ttl_ns": 1}, "Interval and TTL cannot both be specified"),
        (
            {"alias_service": "x", "http": "x", "interval_ns": 1},
            "Interval cannot be set for Alias checks",
        ),
        ({"alias_service": "x", "ttl_ns": 1}, "TTL must be not be set for Alias checks"),
        ({"ttl_ns": 1, "output_max_size": -1}, "MaxOutputMaxSize must be positive"),
        ({"alias_service": "x", "interval_ns": 1}, ""),
        ({"http": "x", "tcp": "y", "interval_ns": 1}, ""),
        ({"ttl_ns": 1}, ""),
    ],
)
def test_definitions(definition, problem):
    assert validate.definition_problem(CheckDefinition(**definition)) == problem


def test_a_check_alone():
    with pytest.raises(Malformed, match="Missing check name"):
        validate.check_agent_check(Check(node="", check_id="c", name=""))
    with pytest.raises(Malformed, match="Bad check status"):
        validate.check_agent_check(checked(ttl_ns=1, status="x"))
    with pytest.raises(Malformed, match="Status for checks must 'passing', 'warning', 'critical'"):
        validate.check_agent_service(service(), [checked(ttl_ns=1, status="x")])


@pytest.mark.parametrize(
    ("name", "address", "refused"),
    [
        ("lan_ipv4", "zz", True),
        ("lan_ipv4", "::1", True),
        ("wan_ipv6", "::1", False),
        ("lan_ipv4", "10.0.0.1", False),
        ("lan", "anything", False),
    ],
)
def test_tagged_addresses(name, address, refused):
    made = service(tagged_addresses={name: TaggedAddress(address, 1)})
    if not refused:
        validate.check_addresses(made)
        return
    with pytest.raises(
        Rejected, match=f'Service tagged address "{name}" must be a valid ipv4 address'
    ):
        validate.check_addresses(made)


def test_catalog_services():
    with pytest.raises(Rejected, match="object missing primary index"):
        validate.check_catalog_service(service(name=""), node="n")
    with pytest.raises(Rejected) as raised:
        validate.check_catalog_service(service(meta={"a b": "1"}), node="n")
    assert str(raised.value) == (
        "failed inserting service: Invalid Service Meta for node n and serviceID x: "
        "Couldn't load metadata pair ('a b', '1'): Key contains invalid characters"
    )
    validate.check_catalog_service(service(weights=Weights(-1, 0)), node="n")
