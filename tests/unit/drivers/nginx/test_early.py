from __future__ import annotations

from pathlib import Path

import pytest

from waypost.drivers.nginx.backends import Backend
from waypost.drivers.nginx.early import HOSTS_MAX, early_hosts, hosts_of, news
from waypost.drivers.nginx.routing import Routes, ident, plan_routes
from waypost.drivers.nginx.settings import Settings

SETTINGS = Settings(prefix=Path("/srv/nginx"), max_body_bytes=1000)


def routes(*backends: Backend) -> Routes:
    return plan_routes(backends, settings=SETTINGS)


def http(service: str, **meta: str) -> Backend:
    return Backend(service=service, tags=("http",), meta=meta)


def early(wanted: Routes, *, served: Routes | None = None) -> dict[str, str]:
    known = hosts_of(served or Routes())
    return early_hosts(wanted, served=known, body_bytes=SETTINGS.max_body_bytes)


def test_only_hosts_without_a_server_are_told():
    old, new = http("old"), http("new")
    found = early(routes(old, new), served=routes(old))
    assert found == {"new": ident("new"), "new.*": ident("new")}
    assert early(routes(old, new), served=routes(old, new)) == {}


def test_a_new_host_of_a_served_service_is_told():
    found = early(routes(http("web", http_host="b.test")), served=routes(http("web")))
    assert found == {"b.test": ident("web")}


@pytest.mark.parametrize(
    "meta",
    [
        {"http_path": "/api"},
        {"lb_method": "hash-ip"},
        {"http_connect_timeout": "1s"},
        {"http_read_timeout": "5s"},
        {"http_tries": "1"},
        {"http_max_body": "2k"},
        {"http_rate": "5"},
    ],
)
def test_what_is_a_directive_waits(meta: dict[str, str]):
    assert early(routes(http("web", http_host="a.test", **meta))) == {"a.test": ""}


def test_how_long_instances_keep_connections_is_no_reason_to_wait():
    assert early(routes(http("web", http_host="a.test", http_keepalive="1s")))["a.test"]


def test_hosts_shared_by_path_and_bases_of_canaries_wait():
    shared = routes(
        http("front", http_host="a.test,b.test"), http("api", http_host="a.test", http_path="/api")
    )
    assert early(shared) == {"a.test": "", "b.test": ident("front")}
    canary = http("next", http_canary_of="web", http_canary_percent="10")
    assert early(routes(http("web", http_host="a.test"), canary)) == {"a.test": ""}


def test_the_operators_directives_wait():
    settings = Settings(prefix=Path("/srv/nginx"), snippets={"web": "gzip on;"})
    wanted = plan_routes([http("web", http_host="a.test")], settings=settings)
    assert early_hosts(wanted, served=(), body_bytes=settings.max_body_bytes) == {"a.test": ""}


def test_a_flood_is_cut():
    many = routes(*(http(f"web{number}") for number in range(HOSTS_MAX)))
    assert len(early(many)) == HOSTS_MAX


@pytest.mark.parametrize(
    ("told", "served", "tells"),
    [
        ({}, (), {"a": "wp_a", "b": ""}),
        ({"a": "wp_a", "b": ""}, (), {}),
        ({"a": "wp_x", "b": ""}, (), {"a": "wp_a"}),
        # Taken back when nobody wants it, but not when its server has come.
        ({"a": "wp_a", "b": "", "c": "wp_c"}, (), {"c": ""}),
        ({"a": "wp_a", "b": "", "c": "wp_c"}, ("c",), {}),
        ({"a": "wp_a", "b": "", "c": ""}, (), {}),
    ],
)
def test_news(told: dict[str, str], served: tuple[str, ...], tells: dict[str, str]):
    assert news({"a": "wp_a", "b": ""}, told=told, served=served) == tells
