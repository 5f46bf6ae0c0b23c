"""Hosts that nginx is told early: pure.

A host name is a `server` of nginx's configuration, and a new one takes a reload, which may have to wait for its turn.
Until then requests for it arrive at the default server, and that looks them up in what the control socket was told.
Only services that ask for nothing out of the ordinary can be served there: timeouts, limits and paths are directives.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import islice
from typing import Final

from waypost.drivers.nginx.routing import HttpRoute, Routes

HOSTS_MAX: Final = 1000
"""More new hosts at once are not told: they wait for the reload that is due anyway."""


def hosts_of(routes: Routes) -> frozenset[str]:
    """Return the hosts that get a `server`."""
    return frozenset(host for route in routes.http for host in route.hosts)


def early_hosts(routes: Routes, *, served: Container[str], body_bytes: int) -> dict[str, str]:
    """Return the hosts of `routes` that are not `served` yet, with the ident of the service each leads to.

    It is "" for a host that has to wait, because its service asks for more than the default server does or shares
    it by path. Such a host is told as well: the wildcard of another service must not take it meanwhile.

    Args:
        routes: What is wanted.
        served: Hosts that have a `server` already.
        body_bytes: Largest request body that the default server takes.
    """
    fresh: dict[str, HttpRoute | None] = {}
    for route in routes.http:
        for host in route.hosts:
            if host not in served:
                fresh[host] = None if host in fresh else route
    if not fresh:
        return {}
    divided = {one.canary_of for one in routes.canary}
    return {
        host: route.ident
        if route is not None
        and route.service not in divided
        and _is_plain(route, body_bytes=body_bytes)
        else ""
        for host, route in islice(fresh.items(), HOSTS_MAX)
    }


def news(
    early: Mapping[str, str], *, told: Mapping[str, str], served: Container[str]
) -> dict[str, str]:
    """Return what to tell nginx, so that after `told` it knows `early`.

    What has become `served` is not taken back: old workers finish their connections with it.
    """
    fresh = {host: ident for host, ident in early.items() if told.get(host) != ident}
    for host, ident in told.items():
        if ident and host not in early and host not in served:
            fresh[host] = ""
    return fresh


def _is_plain(route: HttpRoute, *, body_bytes: int) -> bool:
    plain = HttpRoute(
        service=route.service,
        ident=route.ident,
        hosts=route.hosts,
        keepalive_ms=route.keepalive_ms,
        body_bytes=body_bytes,
    )
    return route == plain
