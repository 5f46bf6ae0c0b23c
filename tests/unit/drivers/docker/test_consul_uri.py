from __future__ import annotations

from typing import Any

import pytest

from waypost.base.errors import Malformed
from waypost.drivers.docker.consul import Address, consul_check, parse_uri
from waypost.drivers.docker.registrator import container_name, failed
from waypost.model.catalog import Check, CheckDefinition


@pytest.mark.parametrize(
    ("uri", "env", "expected"),
    [
        ("consul://h:1", {}, {"base_url": "http://h:1"}),
        ("consul://h", {}, {"base_url": "http://h:8500"}),
        ("consul://", {}, {"base_url": "http://127.0.0.1:8500"}),
        ("consul://", {"CONSUL_HTTP_ADDR": "x:9"}, {"base_url": "http://x:9"}),
        ("consul://h:1", {"CONSUL_HTTP_ADDR": "x:9"}, {"base_url": "http://h:1"}),
        ("consul:", {}, None),
        ("consul://", {"CONSUL_HTTP_ADDR": "https://x"}, {"base_url": "https://x:8501"}),
        (
            "consul://",
            {"CONSUL_HTTP_ADDR": "unix:///s"},
            {"base_url": "http://consul", "socket": "/s"},
        ),
        ("consul://h:1", {"CONSUL_HTTP_SSL": "true"}, {"base_url": "https://h:1"}),
        (
            "consul://h:1",
            {"CONSUL_HTTP_SSL": "1", "CONSUL_HTTP_SSL_VERIFY": "false"},
            {"base_url": "https://h:1", "verify": False},
        ),
        ("consul-tls://h:1", {"CONSUL_HTTP_SSL_VERIFY": "0"}, {"base_url": "https://h:1"}),
        (
            "consul-tls://h:1",
            {"CONSUL_CACERT": "a", "CONSUL_CLIENT_CERT": "b", "CONSUL_CLIENT_KEY": "c"},
            {"base_url": "https://h:1", "ca_file": "a", "cert_file": "b", "key_file": "c"},
        ),
        ("consul-unix:///run/c.sock", {}, {"base_url": "http://consul", "socket": "/run/c.sock"}),
        ("consulkv://h:1/a/b", {}, {"base_url": "http://h:1", "prefix": "a/b"}),
        ("consulkv-unix:///s:/p", {}, {"base_url": "http://consul", "socket": "/s", "prefix": "p"}),
        ("consul://[fd00::1]:9", {}, {"base_url": "http://[fd00::1]:9"}),
        ("consul://h:99999", {}, None),
        ("consul://user@h:1", {}, None),
        ("consul-unix://x", {}, None),
        ("zookeeper://h", {}, None),
        ("nonsense", {}, None),
    ],
)
def test_uri(uri: str, env: dict[str, str], expected: dict[str, Any] | None) -> None:
    if expected is None:
        with pytest.raises(Malformed):
            parse_uri(uri, env)
    else:
        assert parse_uri(uri, env) == Address(scheme=uri.partition("://")[0], **expected)


def test_secrets_stay_secret() -> None:
    found = parse_uri("consul://h:1", {"CONSUL_HTTP_TOKEN": "s3cret", "CONSUL_HTTP_AUTH": "u:pass"})
    assert (found.token, found.auth) == ("s3cret", "u:pass")
    assert "s3cret" not in repr(found)
    assert "pass" not in repr(found)


def test_check_form() -> None:
    check = Check(
        node="n",
        check_id="k",
        name="K",
        definition=CheckDefinition(http="http://x/", interval_ns=10**10),
    )
    assert consul_check(check) == {
        "CheckID": "k",
        "Name": "K",
        "Status": "critical",
        "HTTP": "http://x/",
        "Interval": "10s",
    }
    health = consul_check(Check(node="n", check_id="k", name="K", status="passing"))
    assert (health["TTL"], health["Status"]) == ("87600h", "passing")


@pytest.mark.parametrize(
    ("service_id", "name"),
    [
        ("h1:web:80", "web"),
        ("h1:web.1_x-2:80:udp", "web.1_x-2"),
        ("h2:web:80", ""),
        ("h1:web", ""),
        ("h1:w:80", ""),
        ("custom", ""),
        ("h1:web:80:x:y", ""),
    ],
)
def test_container_name(service_id: str, name: str) -> None:
    assert container_name(service_id, hostname="h1") == name


@pytest.mark.parametrize(
    ("code", "kept"), [(0, False), (1, True), (127, True), (128, False), (255, False)]
)
def test_failed(code: int, kept: bool) -> None:
    assert failed(code) is kept
