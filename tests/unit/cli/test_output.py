"""Tables, service definitions, watches: what commands make of what they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from waypost.base.errors import Malformed
from waypost.cli.agent_flags import CommandFailed
from waypost.cli.flags import UsageError
from waypost.cli.output import is_json, table
from waypost.cli.watch import WatchFlags, event_index, new_events, view_of
from waypost.wire.definitions import definitions, read_definitions


def test_tables_are_left_aligned_and_the_last_column_is_not_padded():
    rows = [("Node", "Address", "DC"), ("a-long-name", "1.2.3.4:1", "d"), ("b", "", "")]
    assert table(rows).split("\n") == [
        "Node         Address    DC",
        "a-long-name  1.2.3.4:1  d",
        "b                       ",
    ]
    assert table([]) == ""


def test_formats():
    assert (is_json("pretty"), is_json("json")) == (False, True)
    with pytest.raises(UsageError, match="Unknown format: xml"):
        is_json("xml")


@pytest.mark.parametrize(
    ("values", "bodies"),
    [
        ({}, []),
        ({"node_name": "x", "ports": {"http": 1}}, []),
        ({"service": {"name": "a"}, "services": [{"name": "b"}]}, [{"Name": "b"}, {"Name": "a"}]),
        ({"service": [{"name": "a"}, {"id": "b"}]}, [{"Name": "a"}, {"ID": "b"}]),
        ({"Service": {"Name": "a", "EnableTagOverride": True}}, [{"Name": "a", "EnableTagOverride": True}]),
        (
            {"service": {"name": "a", "meta": {"snake_key": "v"}, "weights": [{"passing": 2}]}},
            [{"Name": "a", "Meta": {"snake_key": "v"}, "Weights": {"Passing": 2}}],
        ),
        (
            {"service": {"name": "a", "check": [{"ttl": "1s"}, {"tcp": "x"}], "checks": [{"grpc": "y"}]}},
            [{"Name": "a", "Checks": [{"GRPC": "y"}, {"TTL": "1s"}, {"TCP": "x"}]}],
        ),
        (
            {"service": {"name": "a", "proxy": {"config": {"k_k": 1}, "upstreams": [{"local_bind_port": 1}]}}},
            [{"Name": "a", "Proxy": {"Config": {"k_k": 1}, "Upstreams": [{"LocalBindPort": 1}]}}],
        ),
    ],
)  # fmt: skip
def test_definitions_become_bodies(values, bodies):
    assert definitions(values, name="f.json") == bodies


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"service": {"name": "a", "bogus": 1, "check": {"scrpt": 1}}},
            "failed to parse f.json: 2 errors occurred:\n\t* invalid config key service.bogus\n"
            "\t* invalid config key service.check.scrpt\n",
        ),
        (
            {"services": [{"name": "a"}, {"port": "x", "tags": 3}]},
            "failed to parse f.json: 2 error(s) decoding:\n\n"
            "* 'services[1].port' expected type 'int', got unconvertible type 'string'\n"
            "* 'services[1].tags' expected type '[]string', got unconvertible type 'float64'",
        ),
        (
            {"service": {"port": True}},
            "failed to parse f.json: 1 error(s) decoding:\n\n"
            "* 'service.port' expected type 'int', got unconvertible type 'bool'",
        ),
        (
            {"service": 3},
            "failed to parse f.json: 1 error(s) decoding:\n\n* 'service' expected type 'map', got unconvertible type 'float64'",
        ),
    ],
)
def test_wrong_definitions_name_every_fault(values, text):
    with pytest.raises(Malformed) as caught:
        definitions(values, name="f.json")
    assert str(caught.value) == text


def test_directories_are_read_by_name(tmp_path: Path):
    (tmp_path / "b.hcl").write_text('service { name = "from-hcl" }')
    (tmp_path / "a.json").write_text('{"service": {"name": "from-json"}}')
    (tmp_path / "c.txt").write_text("no definition")
    found = [(path.name, bodies) for path, bodies in read_definitions(tmp_path)]
    assert found == [("a.json", [{"Name": "from-json"}]), ("b.hcl", [{"Name": "from-hcl"}])]


@pytest.mark.parametrize(
    ("flags", "path", "query"),
    [
        ({"type": "key", "key": "a/b"}, "/v1/kv/a/b", ()),
        ({"type": "keyprefix", "prefix": "a/"}, "/v1/kv/a/", (("recurse", ""),)),
        ({"type": "services"}, "/v1/catalog/services", ()),
        ({"type": "nodes"}, "/v1/catalog/nodes", ()),
        (
            {"type": "service", "service": "w", "tag": ("a", "b"), "passingonly": "t"},
            "/v1/health/service/w",
            (("tag", "a"), ("tag", "b"), ("passing", "1")),
        ),
        ({"type": "checks"}, "/v1/health/state/any", ()),
        ({"type": "checks", "state": "critical"}, "/v1/health/state/critical", ()),
        ({"type": "checks", "service": "w"}, "/v1/health/checks/w", ()),
        ({"type": "event", "name": "deploy"}, "/v1/event/list", (("name", "deploy"),)),
    ],
)
def test_watches_ask_for(flags, path, query):
    view = view_of(WatchFlags(**flags))
    assert (view.path, view.query) == (path, query)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"type": "bogus"}, "Unsupported watch type: bogus"),
        ({"type": "key"}, "Must specify a single key to watch"),
        ({"type": "key", "key": "a", "name": "x", "tag": ("t",)}, "Invalid parameters: [name tag]"),
        ({"type": "checks", "service": "a", "state": "b"}, "Cannot specify service and state"),
    ],
)
def test_watches_that_cannot_be(flags, text):
    with pytest.raises(CommandFailed) as caught:
        view_of(WatchFlags(**flags))
    assert str(caught.value) == text


def test_events_after_one():
    events = [{"ID": f"00000000-0000-000{n}-0000-000000000000"} for n in (1, 2, 3)]
    assert [event_index(event["ID"]) for event in events] == [1, 2, 3]
    assert new_events(events, after=2) == events[2:]
    assert new_events(events, after=3) == []
    assert new_events(events, after=9) == events
