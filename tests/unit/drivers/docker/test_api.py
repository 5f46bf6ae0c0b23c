"""Parsing what the engine says. The data was recorded from Docker Engine 20.10.24."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from waypost.base.errors import Malformed
from waypost.drivers.docker.api import (
    Binding,
    Endpoint,
    Health,
    Network,
    Port,
    endpoint,
    parse_container,
    parse_event,
    parse_port,
)

DATA = Path(__file__).with_name("data")


def test_recorded_container() -> None:
    found = parse_container((DATA / "inspect-20.10.json").read_bytes())
    assert (found.id12, found.name, found.image, found.hostname) == (
        "bcf697c09736",
        "three",
        "bb",
        "bcf697c09736",
    )
    assert found.exposed == (Port(80),)
    assert found.published == {
        Port(80): (
            Binding("127.0.0.1", 18081),
            Binding("0.0.0.0", 18085),
            Binding("::", 18085),
            Binding("0.0.0.0", 18084),
            Binding("::", 18084),
        )
    }
    assert found.networks == (Network("bridge", "10.213.7.2"), Network("n1", "172.17.0.2"))
    assert (found.network_mode, found.stop_signal, found.linked_id) == ("default", "QUIT", "")
    assert found.labels == {"SERVICE_NAME": "a"}
    assert found.serving
    assert found.started_at == "2026-11-23T06:07:13.287506916Z"
    assert found.health is not None
    assert found.health.status == "starting"
    assert "no such file" in found.health.output


def test_recorded_events() -> None:
    lines = (DATA / "events-20.10.jsonl").read_bytes().splitlines()
    events = [parse_event(line) for line in lines]
    assert [(e.action, e.detail) for e in events if e.action == "health_status"] == [
        ("health_status", "unhealthy")
    ]
    kills = [event.attributes["signal"] for event in events if event.action == "kill"]
    assert kills == ["1", "3", "9", "9"]
    assert [e.attributes["exitCode"] for e in events if e.action == "die"] == ["137", "137"]
    connected = next(e for e in events if e.type == "network" and e.action == "connect")
    assert connected.attributes["container"].startswith("bcf697c09736")
    assert all(event.time_ns > 1_795_414_000 * 10**9 for event in events)
    # From API 1.52 on there is nothing but these.
    slim = json.loads(lines[2])
    for name in ("status", "id", "from"):
        del slim[name]
    assert parse_event(json.dumps(slim).encode()) == events[2]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"Name": "/x", "Config": None, "State": None, "HostConfig": None, "NetworkSettings": None},
        {
            "Config": {"Labels": None, "Env": None, "ExposedPorts": None, "StopTimeout": None},
            "NetworkSettings": {"Ports": None, "Networks": None},
            "State": {"Health": None},
        },
        {
            "NetworkSettings": {
                "Ports": {"x/y": None, "99999/tcp": [], "80": [{}]},
                "Networks": {"n": None},
            }
        },
        {"State": {"Health": {"Status": "none", "Log": None}}},
    ],
)
def test_gaps(given: dict[str, object]) -> None:
    found = parse_container(json.dumps({"Id": "x1"} | given).encode())
    assert found.id == "x1"
    assert not any(found.published.values())
    assert found.health is None


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"Id": 5}', b'{"Id":"x","Config":{"Labels":[]}}']
)
def test_not_a_container(body: bytes) -> None:
    with pytest.raises(Malformed, match="docker inspect: "):
        parse_container(body)


def test_health_log() -> None:
    state = {
        "Running": True,
        "Health": {"Status": "healthy", "Log": [{"Output": "old"}, {"Output": "x" * 9000}]},
    }
    found = parse_container(json.dumps({"Id": "x", "State": state}).encode())
    assert found.health == Health("healthy", "x" * 4096)


def test_times_compare_as_text() -> None:
    def at(text: str) -> str:
        body = json.dumps({"Id": "x", "State": {"StartedAt": text}}).encode()
        return parse_container(body).started_at

    times = [
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00.1Z",
        "2026-01-01T00:00:00.11Z",
        "2026-01-01T00:00:00.2Z",
    ]
    assert sorted(map(at, reversed(times))) == [at(text) for text in times]


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("80/tcp", Port(80)),
        ("80", Port(80)),
        ("53/udp", Port(53, "udp")),
        ("0/tcp", None),
        ("65536/tcp", None),
        ("-1", None),
        ("²/tcp", None),
        ("", None),
    ],
)
def test_port(text: str, port: Port | None) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"DOCKER_HOST": "unix:///x.sock"}, Endpoint(socket="/x.sock")),
        (
            {"DOCKER_HOST": "unix:///x.sock", "DOCKER_API_VERSION": "v1.41"},
            Endpoint(socket="/x.sock", api_version="1.41"),
        ),
        ({"DOCKER_HOST": "tcp://h:2375"}, Endpoint(base_url="http://h:2375")),
        (
            {"DOCKER_HOST": "tcp://h:2376", "DOCKER_TLS_VERIFY": "1", "HOME": "/me"},
            Endpoint(base_url="https://h:2376", cert_path="/me/.docker", tls_verify=True),
        ),
        (
            {"DOCKER_HOST": "tcp://h:2376", "DOCKER_CERT_PATH": "/c"},
            Endpoint(base_url="https://h:2376", cert_path="/c"),
        ),
        ({"DOCKER_HOST": "https://h:2376"}, Endpoint(base_url="https://h:2376", tls_verify=True)),
        ({"DOCKER_HOST": "http://h:1", "DOCKER_TLS_VERIFY": "1"}, Endpoint(base_url="http://h:1")),
    ],
)
def test_endpoint(env: dict[str, str], expected: Endpoint) -> None:
    assert endpoint(env) == expected


def test_endpoint_without_environment(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert endpoint({}, sockets=(str(first), str(second))).socket == str(first)
    second.touch()
    assert endpoint({}, sockets=(str(first), str(second))).socket == str(second)
    assert endpoint({"DOCKER_HOST": "unix:///e"}, host="tcp://given:1").base_url == "http://given:1"


@pytest.mark.parametrize(
    "address", ["ssh://h", "unix://", "npipe:////./pipe/x", "h:2375", "tcp://"]
)
def test_bad_endpoint(address: str) -> None:
    with pytest.raises(Malformed, match="DOCKER_HOST: cannot use"):
        endpoint({"DOCKER_HOST": address})
    with pytest.raises(Malformed, match="DOCKER_API_VERSION"):
        endpoint({"DOCKER_HOST": "unix:///x", "DOCKER_API_VERSION": "latest"})
