"""The configuration's text, against golden files. `WAYPOST_WRITE_GOLDEN=1` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from waypost.base.errors import Malformed
from waypost.drivers.nginx.backends import Backend, Endpoint
from waypost.drivers.nginx.config import Facts, Plan, Ports, Site, make_plan, render, script
from waypost.drivers.nginx.routing import plan_routes
from waypost.drivers.nginx.settings import Listen, Settings

GOLDEN = Path(__file__).parent / "golden"
SITE = Site(
    prefix=Path("/srv/nginx"),
    temp=Path("/srv/nginx/temp"),
    listen=(Listen("0.0.0.0", 80), Listen("::", 80)),
    tcp_addresses=("0.0.0.0",),
    tls_listen=(Listen("0.0.0.0", 443),),
    ports=Ports(dns=8653, http_sentinel=8654, stream_sentinel=8655),
    workers=2,
    open_files=65536,
    user="nobody nogroup",
)
WHEEL = Facts(binary=Path("/w"), version=(1, 31, 3), stream=True, live=True, fast=True)
NO_NJS = msgspec.structs.replace(WHEEL, fast=False)
DEBIAN = Facts(
    binary=Path("/usr/sbin/nginx"),
    version=(1, 22, 1),
    stream=True,
    stream_module=Path("/usr/lib/nginx/modules/ngx_stream_module.so"),
)
BACKENDS = (
    Backend(service="httpfront", tags=("http",)),
    Backend(service="api", tags=("http",), meta={"http_host": "x.test", "http_path": "/api"}),
    Backend(service="site", tags=("http",), meta={"http_host": "x.test,y.test", "http_rate": "9"}),
    Backend(service="hashed", tags=("http",), meta={"lb_method": "hash-ip", "http_keepalive": "0"}),
    Backend(
        service="site-next",
        tags=("http",),
        meta={
            "http_canary_of": "site",
            "http_canary_percent": "10",
            "http_canary_header": "X-Canary",
            "http_canary_cookie": "canary",
        },
    ),
    Backend(service="tcpfront-9999", tags=("tcp",)),
    Backend(service="default", tags=("https",), meta={"lb_method": "hash-ip"}),
    Backend(service="safe", tags=("https",), meta={"tls_host": "*.safe.test,safe.test"}),
    Backend(service="empty-9998", tags=("tcp", "http")),
)
ENDPOINTS = {
    one: (Endpoint(address="10.0.0.5", port=80), Endpoint(address="10.0.0.6", port=81, weight=3))
    for one in ("httpfront", "api", "site", "tcpfront-9999", "default", "site-next")
} | {"hashed": (Endpoint(address="2001:db8::1", port=80),)}


def made(facts: Facts) -> Plan:
    settings = Settings(prefix=SITE.prefix, listen=SITE.listen, snippets={"api": "gzip on;"})
    routes = plan_routes(BACKENDS, settings=settings)
    assert routes.problems == ()
    return make_plan(routes, site=SITE, endpoints=ENDPOINTS, facts=facts)


@pytest.mark.parametrize(("name", "facts"), [("fast", WHEEL), ("live", NO_NJS), ("reload", DEBIAN)])
def test_golden(name: str, facts: Facts):
    text = render(made(facts), facts=facts, generation=7).text
    path = GOLDEN / f"{name}.conf"
    if os.environ.get("WAYPOST_WRITE_GOLDEN"):
        path.write_text(text, encoding="ascii")
    assert text == path.read_text(encoding="ascii")


def test_endpoints_are_no_part_of_a_live_plan():
    plan = made(WHEEL)
    fewer = {**ENDPOINTS, "site": ()}
    assert plan == make_plan(plan.routes, site=SITE, endpoints=fewer, facts=WHEEL)
    assert plan != make_plan(plan.routes, site=SITE, endpoints={}, facts=WHEEL), "IPv6 is asked for"
    many = tuple(Endpoint(address="10.0.0.1", port=one + 1) for one in range(151))
    assert "zone wp_site_" in (
        text := render(
            make_plan(plan.routes, site=SITE, endpoints={"site": many}, facts=WHEEL),
            facts=WHEEL,
            generation=1,
        ).text
    )
    assert text.count(" 1m;") == 1


def test_a_canary_without_instances_is_no_part_of_a_file_with_endpoints():
    routes = made(DEBIAN).routes
    assert [one.service for one in routes.canary] == ["site-next"]
    empty = {**ENDPOINTS, "site-next": ()}
    bare = make_plan(routes, site=SITE, endpoints=empty, facts=DEBIAN)
    assert "split_clients" not in render(bare, facts=DEBIAN, generation=1).text
    assert made(WHEEL) == make_plan(made(WHEEL).routes, site=SITE, endpoints=empty, facts=WHEEL)


def test_a_canary_goes_with_its_base():
    routes = made(WHEEL).routes.without(["site"])
    assert routes.canary != ()
    assert make_plan(routes, site=SITE, endpoints=ENDPOINTS, facts=WHEEL).routes.canary == ()


def test_each_line_knows_its_service():
    rendered = render(made(DEBIAN), facts=DEBIAN, generation=1)
    lines = rendered.text.splitlines()
    assert rendered.service_at(lines.index("gzip on;") + 1) == "api"
    assert rendered.service_at(1) is None


def test_without_stream_there_is_no_stream_block():
    facts = msgspec.structs.replace(DEBIAN, stream=False, stream_module=None)
    assert "stream {" not in render(made(facts), facts=facts, generation=1).text


def test_a_path_that_could_break_out_is_refused():
    site = msgspec.structs.replace(SITE, temp=Path('/srv/"; }'))
    plan = msgspec.structs.replace(made(DEBIAN), site=site)
    with pytest.raises(Malformed, match="may not stand"):
        render(plan, facts=DEBIAN, generation=1)


def test_the_script_names_the_sentinel():
    assert "'127.0.0.1:8654'" in script(8654)
