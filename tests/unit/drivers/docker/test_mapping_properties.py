"""Whatever a container says about itself, the mapping answers with registrations that a catalog takes."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from waypost.drivers.docker.api import Binding, Container, Health, Network, Port
from waypost.drivers.docker.mapping import HostFacts, MappingSettings, map_container
from waypost.model.catalog import CRITICAL, PASSING, WARNING

KEYS = [
    "NAME", "ID", "TAGS", "IGNORE", "IP", "INTERNAL", "NETWORK", "PORTS", "REGION", "CONSUL-X", "", "80", "A.B",
    "CHECK_HTTP", "CHECK_HTTPS", "CHECK_CMD", "CHECK_SCRIPT", "CHECK_TTL", "CHECK_TCP", "CHECK_GRPC", "CHECK_ARGS",
    "CHECK_DOCKER", "CHECK_INTERVAL", "CHECK_TIMEOUT", "CHECK_INITIAL_STATUS", "CHECK_HEADER", "CHECK_HTTP_METHOD",
    "CHECK_DEREGISTER_AFTER", "CHECK_FAILURES_BEFORE_CRITICAL", "CHECK_1_TCP", "CHECK_99999999999_TCP", "CHECK_",
    "CHECK_1_", "CHECK_x_TCP", "CHECK_GRPC_USE_TLS",
]  # fmt: skip
VALUES = [
    "", "web", "a,b", "true", "false", "80", "0", "80,81/udp,x", "10.0.0.9", "fd00::9", "[fd00::9]", "10.0.0.999",
    "example.com", "/health", "10s", "-1s", "1h1h", "9" * 5000 + "s", "9" * 5000, "passing", "green", '["a"]', "[[[",
    "{", '{"A": "b"}', "A: b", "A: b\r\nC: d", "x\ny", "\x00", "\u2028", "é", "\U0001f600" * 300, "x" * 2000, "blue",
    "../..", "$(id)", "'; DROP", "{{", "\\,", ",,,",
]  # fmt: skip


def some_container(rng: random.Random) -> Container:
    def key() -> str:
        prefix = rng.choice(["SERVICE_", "SERVICE_80_", "SERVICE_81_", "service_", ""])
        return prefix + rng.choice(KEYS)

    ports = [Port(n, p) for n in (80, 81) for p in ("tcp", "udp", "sctp") if rng.random() < 0.4]
    bindings = [Binding(ip, 8000) for ip in ("", "0.0.0.0", "::", "127.0.0.1", "nonsense")]
    return Container(
        id="a" * 64,
        name="c1",
        image=rng.choice(["", "nginx", "reg:5000/team/web:1", "sha256:ab", "x\ny", "/", ":"]),
        hostname=rng.choice(["", "h"]),
        env=tuple(f"{key()}={rng.choice(VALUES)}" for _ in range(rng.randrange(6))),
        labels={key(): rng.choice(VALUES) for _ in range(rng.randrange(8))},
        exposed=tuple(ports),
        published={
            port: tuple(rng.sample(bindings, rng.randrange(3)))
            for port in ports
            if rng.random() < 0.8
        },
        network_mode=rng.choice(["default", "bridge", "host", "none", "container:x", "blue", ""]),
        networks=tuple(
            Network(name, rng.choice(["", "172.17.0.2"]), rng.choice(["", "fd01::2"]))
            for name in ("blue", "bridge")
            if rng.random() < 0.7
        ),
        health=rng.choice([None, Health("starting"), Health("healthy", "x" * 99), Health("odd")]),
    )


def some_settings(rng: random.Random) -> MappingSettings:
    choices: dict[str, list[Any]] = {
        "internal": [False, True],
        "ip": ["", "192.0.2.1"],
        "explicit": [False, True],
        "ip_label": ["", "SERVICE_IP", "none"],
        "network": ["", "blue"],
        "suffix": ["many", "never", "always", "registrator"],
        "name_source": ["image", "container", "compose", "swarm", "hostname"],
        "prefer": ["ipv4", "ipv6"],
        "user_network_ip": [False, True],
        "wait_healthy": [False, True],
    }
    return MappingSettings(**{name: rng.choice(values) for name, values in choices.items()})


@pytest.mark.parametrize("seed", range(20))
def test_always_acceptable(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        container, settings = some_container(rng), some_settings(rng)
        linked = some_container(rng) if rng.random() < 0.5 else None
        facts = HostFacts(node="n1", hostname=rng.choice(["h1", ""]), ip="10.0.0.1")
        given = {"facts": facts, "settings": settings, "linked_to": linked}
        mapped = map_container(container, **given)
        assert mapped == map_container(container, **given)  # nothing depends on chance
        ids = [one.service.id for one in mapped.registrations]
        assert len(ids) == len(set(ids))
        for one in mapped.registrations:
            service = one.service
            assert service.name.strip()
            assert service.id
            assert 0 <= service.port < 65536
            shown = (service.name, service.id, service.address, *service.tags)
            assert not any(re.search(r"[\x00-\x1f\x7f]", text) for text in shown)
            meta = service.meta or {}
            assert len(meta) <= 64
            for key, value in meta.items():
                assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}", key)
                assert not key.startswith("consul-")
                assert len(value.encode()) <= 512
            check_ids = [check.check_id for check in one.checks]
            assert len(check_ids) == len(set(check_ids))
            for check in one.checks:
                assert check.status in (PASSING, WARNING, CRITICAL)
                if check.definition is not None:
                    assert check.definition.interval_ns > 0 or check.definition.ttl_ns > 0
        for note in mapped.notes:
            assert "\n" not in note.text
