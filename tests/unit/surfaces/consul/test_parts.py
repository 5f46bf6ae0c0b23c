"""The pure parts of the Consul surface."""

from __future__ import annotations

import pytest

from waypost.base.errors import Malformed, Rejected
from waypost.model.catalog import Check, CheckDefinition, Node, Service
from waypost.model.kv import KVEntry
from waypost.state.view import Instance
from waypost.surfaces.consul.agent import cut_output, enabled, within_limits
from waypost.surfaces.consul.catalog import has_meta, has_tags, takes_connect
from waypost.surfaces.consul.internal_ui import summarize
from waypost.surfaces.consul.kv import list_keys
from waypost.surfaces.consul.reading import Options, parse_options, parse_unsigned
from waypost.surfaces.http.message import Head, Headers, Peer, Request


def request(target, *, headers=()):
    head = Head(method="GET", target=target.encode(), headers=Headers(headers))
    return Request(head, body=b"", peer=Peer(listener="http", address="127.0.0.1"), arrived_s=0.0)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("/x", Options()),
        ("/x?index=7&wait=1m", Options(index=7, wait_s=60.0)),
        ("/x?stale", Options(mode="stale")),
        ("/x?consistent", Options(mode="consistent")),
        ("/x?max_stale=10s", Options(mode="stale")),
        ("/x?leader&max_stale=10s", Options(mode="leader")),
        ("/x?cached", Options(is_cached=True)),
        ("/x?wait=-5s", Options(wait_s=-5.0)),
        ("/x?index=&wait=", Options()),
    ],
)
def test_options(target, wanted):
    assert parse_options(request(target)) == wanted


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/x?index=-1", "Invalid index"),
        ("/x?index=1e3", "Invalid index"),
        ("/x?index=18446744073709551616", "Invalid index"),
        ("/x?wait=5", "Invalid wait time"),
        ("/x?max_stale=zz", 'Invalid max_stale value "zz"'),
        ("/x?stale&consistent", "Cannot specify ?stale with ?consistent, conflicting semantics."),
        ("/x?cached&consistent", "Cannot specify ?cached with ?consistent, conflicting semantics."),
    ],
)
def test_wrong_options(target, error):
    with pytest.raises(Malformed) as raised:
        parse_options(request(target))
    assert str(raised.value) == error


@pytest.mark.parametrize("value", ["max-age=abc", "must-revalidate, stale-if-error=x"])
def test_wrong_cache_control(value):
    with pytest.raises(Malformed, match="Invalid Cache-Control header"):
        parse_options(request("/x", headers=[(b"cache-control", value.encode())]))


def test_cache_control_of_browsers_is_fine():
    assert parse_options(request("/x", headers=[(b"cache-control", b"no-cache")])) == Options()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("abc", 'strconv.ParseUint: parsing "abc": invalid syntax'),
        ("", 'strconv.ParseUint: parsing "": invalid syntax'),
        ("+1", 'strconv.ParseUint: parsing "+1": invalid syntax'),
        ("٣", 'strconv.ParseUint: parsing "٣": invalid syntax'),
        (str(2**64), f'strconv.ParseUint: parsing "{2**64}": value out of range'),
        ("9" * 5000, "value out of range"),
    ],
)
def test_wrong_unsigned(text, error):
    with pytest.raises(Malformed) as raised:
        parse_unsigned(text)
    assert error in str(raised.value)


def entries(*keys):
    return [KVEntry(key=key) for key in keys]


@pytest.mark.parametrize(
    ("prefix", "separator", "wanted"),
    [
        ("", "", ["a/", "a/b/c", "a/b/d", "a/e", "f"]),
        ("", "/", ["a/", "f"]),
        ("a/", "/", ["a/", "a/b/", "a/e"]),
        ("a", "/", ["a/"]),
        ("a/b", "/", ["a/b/"]),
        ("", "b/", ["a/", "a/b/", "a/e", "f"]),
    ],
)
def test_list_keys(prefix, separator, wanted):
    below = [e for e in entries("a/", "a/b/c", "a/b/d", "a/e", "f") if e.key.startswith(prefix)]
    assert list_keys(below, prefix=prefix, separator=separator) == wanted


@pytest.mark.parametrize(
    ("wanted", "has"),
    [((), True), (("V1",), True), (("v1", "prod"), True), (("v1", "x"), False), (("",), False)],
)
def test_tags(wanted, has):
    service = Service(node="n", id="s", name="s", tags=("v1", "Prod"))
    assert has_tags(service, wanted) is has


@pytest.mark.parametrize(
    ("wanted", "has"),
    [
        ((), True),
        (("a:1",), True),
        (("a:1", "b:"), True),
        (("b",), True),
        (("a",), False),
        (("c",), False),
    ],
)
def test_node_meta(wanted, has):
    assert has_meta({"a": "1", "b": ""}, wanted) is has


def test_node_meta_of_a_node_without_any():
    assert has_meta(None, ())
    assert not has_meta(None, ("a:1",))


def test_connect_takes_proxies_and_natives():
    proxy = Service(
        node="n",
        id="p",
        name="web-proxy",
        kind="connect-proxy",
        proxy={"DestinationServiceName": "Web"},
    )
    native = Service(node="n", id="w", name="web", connect={"Native": True})
    plain = Service(node="n", id="w", name="web")
    assert [takes_connect(s, name="web") for s in (proxy, native, plain)] == [True, True, False]


def test_output_is_cut_in_bytes():
    assert cut_output("short", max_bytes=5) == "short"
    assert (
        cut_output("x" * 5000, max_bytes=4096) == "x" * 4096 + " ... (captured 4096 of 5000 bytes)"
    )
    assert cut_output("é" * 3, max_bytes=5) == "éé ... (captured 5 of 6 bytes)"


def test_intervals_are_raised():
    check = Check(
        node="",
        check_id="c",
        name="c",
        definition=CheckDefinition(interval_ns=5, deregister_critical_service_after_ns=5),
    )
    definition = within_limits(check).definition
    assert definition.interval_ns == 10**9
    assert definition.deregister_critical_service_after_ns == 60 * 10**9
    unset = within_limits(Check(node="", check_id="c", name="c", definition=CheckDefinition()))
    assert (unset.definition.interval_ns, unset.definition.timeout_ns) == (0, 0)


@pytest.mark.parametrize(("text", "wanted"), [("true", True), ("T", True), ("0", False)])
def test_enable(text, wanted):
    assert enabled(request(f"/x?enable={text}")) is wanted


def test_enable_is_required():
    with pytest.raises(Malformed, match="Missing value for enable"):
        enabled(request("/x"))
    with pytest.raises(Malformed) as raised:
        enabled(request("/x?enable=may%22be"))
    assert str(raised.value) == r'Invalid value for enable: "may\"be"'


def test_summary_of_a_service():
    node = Node(node="n", address="a")
    checks = (
        Check(node="n", check_id="a", name="a", status="passing"),
        Check(node="n", check_id="b", name="b", status="critical", service_id="s"),
    )
    service = Service(
        node="n", id="s", name="s", tags=("b", "a"), meta={"external-source": "docker"}
    )
    found = summarize("s", (Instance(node, service, checks),))
    assert (found.Tags, found.Nodes, found.InstanceCount) == (["a", "b"], ["n"], 1)
    assert (found.ChecksPassing, found.ChecksWarning, found.ChecksCritical) == (1, 0, 1)
    assert found.ExternalSources == ["docker"]
    assert summarize("s", ()).Tags is None


def test_rejected_is_not_malformed():
    # The surface answers 400 for one and 500 for the other; a class between them would confuse both.
    assert not issubclass(Rejected, Malformed)
    assert not issubclass(Malformed, Rejected)
