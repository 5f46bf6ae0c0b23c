from __future__ import annotations

from typing import Any

import pytest

from waypost.drivers.docker.probes import Target, authority, checks
from waypost.model.catalog import CheckDefinition

TARGET = Target(
    node="n1",
    service_id="h1:c:80",
    service_name="web",
    service_tags=("a",),
    address="10.0.0.1",
    port=8000,
    exposed_port=80,
    container_id="bcf697c09736873fe5bc",
)
S = 10**9


def made(values: dict[str, str], **changes: Any) -> tuple[list[Any], list[str]]:
    import msgspec

    said: list[str] = []
    target = msgspec.structs.replace(TARGET, **changes)
    found = checks({f"check_{key}": value for key, value in values.items()}, target, said.append)
    return list(found), said


@pytest.mark.parametrize(
    ("values", "definition"),
    [
        ({"http": "/h"}, CheckDefinition(http="http://10.0.0.1:8000/h", interval_ns=10 * S)),
        (
            {"http": "h", "http_method": "head", "timeout": "1s", "interval": "2s"},
            CheckDefinition(
                http="http://10.0.0.1:8000/h", method="HEAD", interval_ns=2 * S, timeout_ns=S
            ),
        ),
        (
            {
                "https": "/h",
                "https_method": "PUT",
                "tls_skip_verify": "1",
                "header": r"A: 1, B: x\,y, A: 2",
            },
            CheckDefinition(
                http="https://10.0.0.1:8000/h",
                method="PUT",
                tls_skip_verify=True,
                header={"A": ("1", "2"), "B": ("x,y",)},
                interval_ns=10 * S,
            ),
        ),
        (
            {"cmd": "curl -s"},
            CheckDefinition(
                args=("check-cmd", "bcf697c09736", "80", "curl -s"), interval_ns=10 * S
            ),
        ),
        (
            {"script": "nc $SERVICE_IP $SERVICE_PORT"},
            CheckDefinition(args=("/bin/sh", "-c", "nc 10.0.0.1 8000"), interval_ns=10 * S),
        ),
        ({"ttl": "30s", "interval": "5s"}, CheckDefinition(ttl_ns=30 * S)),
        ({"tcp": "yes"}, CheckDefinition(tcp="10.0.0.1:8000", interval_ns=10 * S)),
        (
            {"grpc": "yes", "grpc_use_tls": "y", "tls_skip_verify": "y", "timeout": "3s"},
            CheckDefinition(
                grpc="10.0.0.1:8000",
                grpc_use_tls=True,
                tls_skip_verify=True,
                interval_ns=10 * S,
                timeout_ns=3 * S,
            ),
        ),
        (
            {"grpc": "yes", "tls_skip_verify": "y"},
            CheckDefinition(grpc="10.0.0.1:8000", interval_ns=10 * S),
        ),
        ({"args": '["a","b c"]'}, CheckDefinition(args=("a", "b c"), interval_ns=10 * S)),
        (
            {"docker": "pg_isready"},
            CheckDefinition(
                docker_container_id="bcf697c09736873fe5bc",
                args=("/bin/sh", "-c", "pg_isready"),
                interval_ns=10 * S,
            ),
        ),
        (
            {"tcp": "y", "deregister_after": "1m", "failures_before_critical": "3"},
            CheckDefinition(
                tcp="10.0.0.1:8000",
                interval_ns=10 * S,
                deregister_critical_service_after_ns=60 * S,
                failures_before_critical=3,
            ),
        ),
        # The order of the rows decides, not the order of the labels.
        (
            {"tcp": "y", "ttl": "9s", "http": "/"},
            CheckDefinition(http="http://10.0.0.1:8000/", interval_ns=10 * S),
        ),
        ({"http": "", "tcp": "y"}, CheckDefinition(tcp="10.0.0.1:8000", interval_ns=10 * S)),
    ],
)
def test_rows(values: dict[str, str], definition: CheckDefinition) -> None:
    (check,), said = made(values)
    assert check.definition == definition
    assert (check.check_id, check.status, check.service_name) == (
        "service:h1:c:80",
        "critical",
        "web",
    )
    assert said == []


def test_none() -> None:
    assert made({}) == ([], [])
    assert made({"interval": "5s", "initial_status": "passing"}) == ([], [])


def test_several() -> None:
    found, said = made({"http": "/", "1_tcp": "y", "1_interval": "2s", "2_ttl": "5s"})
    assert [c.check_id for c in found] == [
        "service:h1:c:80",
        "service:h1:c:80:1",
        "service:h1:c:80:2",
    ]
    assert found[1].definition.interval_ns == 2 * S
    assert said == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tcp": "y", "interval": "often"}, "CHECK_INTERVAL ignored"),
        ({"tcp": "y", "interval": "-1s"}, "not more than zero"),
        ({"tcp": "y", "initial_status": "green"}, "'green' is not passing"),
        ({"tcp": "y", "failures_before_critical": "x"}, "'x' is not a number"),
        ({"http": "/a\nb"}, "no URL may have"),
        ({"http": "/", "header": "A"}, "not Name: value"),
        ({"http": "/", "header": "A: b\r\nX: y"}, "no header may have"),
        ({"http": "/", "http_method": "GET /"}, "method"),
        ({"args": "ls"}, "JSON list"),
        ({"args": "[]"}, "empty"),
        ({"ttl": "0s"}, "not more than zero"),
    ],
)
def test_bad_values_are_told(values: dict[str, str], words: str) -> None:
    found, said = made(values)
    assert words in said[0]
    assert len(found) == ("tcp" in values)


def test_ipv6() -> None:
    (check,), _ = made({"http": "/x"}, address="fd00::1")
    assert check.definition.http == "http://[fd00::1]:8000/x"
    assert authority("fd00::1", 5) == "[fd00::1]:5"
