"""Who gets which name, path and port; and that nothing foreign gets through."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import Malformed
from waypost.drivers.nginx.backends import Backend, Endpoint
from waypost.drivers.nginx.config import Facts, Ports, Site, make_plan, render
from waypost.drivers.nginx.routing import (
    Routes,
    even_weights,
    host_name,
    ident,
    plan_routes,
    usable_endpoints,
)
from waypost.drivers.nginx.settings import Listen, Settings

SETTINGS = Settings(prefix=Path("/srv/nginx"), listen=(Listen("0.0.0.0", 80),))


def http(service: str, *, since: int = 0, **meta: str) -> Backend:
    return Backend(service=service, tags=("http",), meta=meta, since=since)


def tcp(service: str, *, since: int = 0, **meta: str) -> Backend:
    return Backend(service=service, tags=("v1", "tcp"), meta=meta, since=since)


def plan(*backends: Backend, settings: Settings = SETTINGS, previous: Routes | None = None):
    return plan_routes(backends, settings=settings, previous=previous)


def test_untagged_services_get_nothing():
    routes = plan(Backend(service="web"), Backend(service="db", tags=("primary",)))
    assert routes == Routes()


def test_default_hosts_without_a_domain_take_every_domain():
    [route] = plan(http("HttpFront")).http
    assert route.hosts == ("httpfront", "httpfront.*")
    assert route.path == "/"


def test_default_host_in_the_domain():
    settings = Settings(prefix=Path("/srv"), domain="apps.example.com")
    [route] = plan(http("web"), settings=settings).http
    assert route.hosts == ("web.apps.example.com",)


def test_metadata_sets_the_options():
    [route] = plan(
        http(
            "web",
            http_host="A.example, *.b.example,a.example",
            http_path="/api/v1/",
            lb_method="least_conn",
            http_connect_timeout="1s",
            http_read_timeout="2m",
            http_tries="2",
            http_keepalive="0",
            http_max_body="512k",
            http_rate="50",
        )
    ).http
    assert route.hosts == ("a.example", "*.b.example")
    assert (route.path, route.method) == ("/api/v1", "least-conn")
    assert (route.connect_ms, route.read_ms, route.tries) == (1000, 120_000, 2)
    assert (route.keepalive_ms, route.body_bytes, route.rate) == (0, 512 << 10, 50)


@pytest.mark.parametrize(
    ("service", "meta", "port"),
    [
        ("tcpfront-9999", {}, 9999),
        ("my-own-tcp-22000", {}, 22000),
        ("plain", {"tcp_port": "5432"}, 5432),
        ("odd-1", {"tcp_port": "5432"}, 5432),
    ],
)
def test_tcp_ports(service: str, meta: dict[str, str], port: int):
    routes = plan(tcp(service, **meta))
    assert [(one.port, one.method) for one in routes.stream] == [(port, "least-conn")]
    assert routes.problems == ()


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        (tcp("plain"), "no port: name it NAME-PORT"),
        (tcp("x-0"), "'0' is not a port"),
        (tcp("x-65536"), "'65536' is not a port"),
        (tcp("x-80"), "port 80 is used by waypost itself"),
        (tcp("x-8500"), "port 8500 is used by waypost itself"),
        (tcp("x-700"), "port 700 is outside what TCP services may have (1000-9999)"),
        (tcp("x", tcp_port="99 99"), "'99 99' is not a port"),
        (tcp("x", tcp_port="٣٣"), "is not a port"),
        (tcp("x-9000", lb_method="sticky-cookie"), "for HTTP services only"),
        (http("my_app"), "its name is no host label"),
        (http("web", http_host=""), "must hold 1 to 16 host names"),
        (http("web", http_host="~^evil$"), "'~^evil$' is not a host name"),
        (http("web", http_host="_"), "'_' is not a host name"),
        (http("web", http_host="$hostname"), "'$hostname' is not a host name"),
        (http("web", http_host="a.example;}"), "'a.example;}' is not a host name"),
        (http("web", http_host="a.example\n"), r"'a.example\n' is not a host name"),
        (http("web", http_host="a..example"), "is not a host name"),
        (http("web", http_host="*"), "is not a host name"),
        (http("web", http_host="a.*"), "is not a host name"),
        (http("web", http_host=",".join(f"h{i}.test" for i in range(17))), "1 to 16 host names"),
        (http("web", http_path="api"), "'api' is not a path"),
        (http("web", http_path="/a b"), "'/a b' is not a path"),
        (http("web", http_path="/a/../b"), "is not a path"),
        (http("web", http_path="/a{"), "'/a{' is not a path"),
        (http("web", http_path="/a\n"), "is not a path"),
        (http("web", http_path="/$uri"), "is not a path"),
        (http("web", lb_method="fastest"), "is none of round-robin, least-conn"),
        (http("web", http_tries="99"), "'99' is not a number from 1 to 5"),
        (http("web", http_tries="-1"), "'-1' is not a number"),
        (http("web", http_rate="0"), "is not a number from 1"),
        (http("web", http_connect_timeout="1h"), "is not between 50ms and 5000ms"),
        (http("web", http_read_timeout="soon"), "'soon' is not a duration"),
        (http("web", http_canary_of="nobody"), "there is no HTTP service 'nobody' to try out"),
        (http("web", http_canary_of="good", http_canary_percent="101"), "from 0 to 100"),
        (
            http("web", http_canary_of="good", http_canary_header="X;"),
            "'X;' is not the name of a header",
        ),
        (
            http("web", http_canary_of="good", http_canary_cookie="a-b"),
            "is not the name of a cookie",
        ),
        (http("web", http_max_body="0"), "is not between 1 byte"),
        (http("web", http_max_body="10m;"), "is not a size"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(backend: Backend, says: str):
    settings = Settings(
        prefix=Path("/srv"),
        listen=(Listen("0.0.0.0", 80),),
        reserved_ports=frozenset({8500}),
        tcp_ports=((1000, 9999),),
    )
    routes = plan(backend, http("good"), settings=settings)
    assert routes.services() == {"good"}
    [problem] = routes.problems
    assert problem.service == backend.service
    assert says in problem.text
    assert problem.text.startswith(f"service {backend.service!r}: ")
    assert problem.text.isprintable()


def test_the_first_registered_wins_and_the_other_is_told():
    late = http("late", since=9, http_host="x.test,y.test")
    early = http("early", since=5, http_host="x.test")
    routes = plan(late, early)
    assert {one.service: one.hosts for one in routes.http} == {
        "early": ("x.test",),
        "late": ("y.test",),
    }
    [problem] = routes.problems
    assert problem.text == "service 'late': host x.test path / belongs to service 'early'"


def test_ownership_outlives_a_redeployment_of_the_owner():
    first = plan(http("a", since=5, http_host="x.test"), http("b", since=7, http_host="x.test"))
    again = plan(
        http("a", since=20, http_host="x.test"),
        http("b", since=7, http_host="x.test"),
        previous=first,
    )
    assert [one.service for one in again.http] == ["a"]


def test_a_path_of_another_service_is_no_conflict_but_a_slash_more_is():
    routes = plan(
        http("a", http_host="x.test"),
        http("b", since=1, http_host="x.test", http_path="/b"),
        http("c", since=2, http_host="x.test", http_path="/b/"),
    )
    assert [one.service for one in routes.http] == ["a", "b"]
    assert "host x.test path /b belongs to service 'b'" in routes.problems[0].text


def test_two_services_on_one_port():
    routes = plan(tcp("a-9000", since=2), tcp("b-9000", since=1))
    assert [one.service for one in routes.stream] == ["b-9000"]
    assert routes.problems[0].text == "service 'a-9000': port 9000 belongs to service 'b-9000'"


def test_tls_by_server_name():
    def tls(service: str, **meta: str) -> Backend:
        return Backend(service=service, tags=("https",), meta=meta)

    settings = msgspec.structs.replace(SETTINGS, tls_listen=(Listen("0.0.0.0", 443),))
    routes = plan(
        tls("a", tls_host="x.test,*.x.test"),
        tls("b", tls_host="x.test"),
        tls("c"),
        tls("d", tls_host="x.test;"),
        tls("e", lb_method="sticky-cookie"),
        tcp("old-443"),
        settings=settings,
    )
    assert {one.service: one.hosts for one in routes.tls} == {
        "a": ("x.test", "*.x.test"),
        "c": ("c", "c.*"),
    }
    assert routes.stream == ()
    assert [one.text for one in routes.problems] == [
        "service 'b': TLS server name x.test belongs to service 'a'",
        "service 'd': metadata tls_host 'x.test;': 'x.test;' is not a host name "
        "(labels of a-z, 0-9 and '-', optionally '*.' in front); it gets no route",
        "service 'e': metadata lb_method 'sticky-cookie' needs HTTP, TLS is not opened here; it gets no route",
        "service 'old-443': port 443 is shared by the services tagged 'https'",
    ]
    assert [one.port for one in plan(tcp("old-443"), settings=settings).stream] == [443]


def test_one_canary_a_service():
    routes = plan(
        http("web"),
        http("next", since=1, http_canary_of="Web", http_canary_percent="10"),
        http("other", since=2, http_canary_of="web"),
    )
    [canary] = routes.canary
    assert (canary.service, canary.canary_of, canary.percent, canary.hosts) == (
        "next",
        "web",
        10,
        (),
    )
    assert [one.service for one in routes.http] == ["web"]
    assert (
        routes.problems[0].text
        == "service 'other': service 'web' is tried out already by service 'next'"
    )


def test_a_bad_label_does_not_take_a_served_service_down():
    good = plan(http("web", http_host="x.test"))
    bad = plan(http("web", http_host="x.test {"), previous=good)
    assert bad.http == good.http
    assert "its last good route stays" in bad.problems[0].text


def test_idents_are_safe_and_differ():
    assert ident("web") == "wp_web_8eb3a17b" or ident("web").startswith("wp_web_")
    assert ident("Web") == ident("web")
    assert ident("a-b") != ident("a_b")
    assert ident("; }").startswith("wp_")
    assert len(ident("x" * 300)) < 60


def test_international_host_names():
    assert host_name("bücher.example") == "xn--bcher-kva.example"
    with pytest.raises(Malformed):
        host_name("x" * 64 + ".example")
    with pytest.raises(Malformed):
        host_name(".".join(["abcdefgh"] * 32))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("unix:/var/run/docker.sock", "is not an IP address"),
        ("example.com", "is not an IP address"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "not a plain IP address"),
        ("fe80::1%eth0", "not a plain IP address"),
        ("169.254.169.254", "link-local"),
        ("224.0.0.1", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("255.255.255.255", "reserved"),
        ("192.168.1.1", "outside the networks 10.0.0.0/8"),
        ("", "is not an IP address"),
    ],
)
def test_endpoints_nginx_must_not_reach(address: str, says: str):
    settings = Settings(prefix=Path("/srv"), networks=("10.0.0.0/8", "::/0"))
    good = Endpoint(address="10.0.0.5", port=80)
    bad = Endpoint(address=address, port=80, instance_id="i1")
    backend = Backend(service="web", endpoints=(bad, good))
    endpoints, problems = usable_endpoints(backend, settings=settings)
    assert endpoints == (good,)
    assert says in problems[0].text
    assert "service 'web': instance 'i1'" in problems[0].text


def test_endpoints_are_reprinted_sorted_and_single():
    backend = Backend(
        service="web",
        endpoints=(
            Endpoint(address="2001:DB8:0::1", port=80, weight=0),
            Endpoint(address="10.0.0.9", port=1),
            Endpoint(address="10.0.0.9", port=1, weight=5),
            Endpoint(address="10.0.0.9", port=0),
        ),
    )
    endpoints, problems = usable_endpoints(backend, settings=SETTINGS)
    assert [(one.address, one.port, one.weight) for one in endpoints] == [
        ("10.0.0.9", 1, 1),
        ("2001:db8::1", 80, 1),
    ]
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("weights", "method", "even"),
    [
        ((1, 1), "round-robin", (1, 1)),
        ((100, 300), "round-robin", (1, 3)),
        ((65535, 1), "round-robin", (100, 1)),
        ((65535, 1), "hash-ip", (10, 1)),
        ((), "round-robin", ()),
    ],
)
def test_weights_are_reduced(weights: tuple[int, ...], method, even: tuple[int, ...]):
    endpoints = [Endpoint(address="10.0.0.1", port=i + 1, weight=w) for i, w in enumerate(weights)]
    assert tuple(one.weight for one in even_weights(endpoints, method=method)) == even


META_KEYS = (
    "http_host", "http_path", "lb_method", "tcp_port", "http_tries", "http_rate", "http_max_body",
    "http_read_timeout", "http_keepalive", "tls_host", "http_canary_header", "http_canary_cookie",
)  # fmt: skip
NASTY = st.one_of(st.text(max_size=40), st.text(alphabet="a.-/;{}\n\"'\\$*~ 0", max_size=20))


@given(
    name=NASTY,
    meta=st.dictionaries(st.sampled_from(META_KEYS), NASTY, max_size=4),
    address=st.one_of(NASTY, st.ip_addresses().map(str)),
    live=st.booleans(),
)
def test_nothing_foreign_reaches_the_configuration(name, meta, address, live):
    backend = Backend(
        service=name,
        tags=("http", "tcp", "https"),
        meta=meta,
        endpoints=(Endpoint(address=address, port=80),),
    )
    routes = plan(backend)
    endpoints, _ = usable_endpoints(backend, settings=SETTINGS)
    facts = Facts(binary=Path("/n"), version=(1, 31, 3), stream=True, live=live, fast=live)
    site = Site(
        prefix=Path("/srv"),
        temp=Path("/srv/temp"),
        listen=SETTINGS.listen,
        tcp_addresses=("0.0.0.0",),
        tls_listen=(Listen("0.0.0.0", 443),),
        ports=Ports(dns=1, http_sentinel=2, stream_sentinel=3),
        workers=1,
        open_files=1024,
    )
    empty = render(
        make_plan(Routes(), site=site, endpoints={}, facts=facts), facts=facts, generation=1
    )
    full = render(
        make_plan(routes, site=site, endpoints={name: endpoints}, facts=facts),
        facts=facts,
        generation=1,
    )
    assert full.text.isascii()
    # What the service added is balanced in itself: it closed nothing that it did not open.
    depth = 0
    for span in full.spans:
        for line in full.text.splitlines()[span.first - 1 : span.last]:
            for char in line:
                depth += (char == "{") - (char == "}")
                assert depth >= 0
        assert depth == 0
    if not routes.services():
        assert full.text == empty.text
