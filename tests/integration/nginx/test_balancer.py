"""The balancer with a real nginx, of the wheel and of the system."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from waypost.drivers.nginx.backends import Backend, Endpoint

pytestmark = pytest.mark.needs("nginx")


def web(*endpoints: Endpoint, service: str = "web", **meta: str) -> Backend:
    return Backend(service=service, tags=("http",), meta=meta, endpoints=endpoints)


def tcp(*endpoints: Endpoint, service: str, **meta: str) -> Backend:
    return Backend(service=service, tags=("tcp",), meta=meta, endpoints=endpoints)


async def test_http_by_host_spreads_over_all_instances(lab, upstreams):
    a, b, c = [await upstreams.http(name) for name in "abc"]
    await lab.start(web(a, b, c, service="httpfront"))
    await lab.settled("httpfront")
    seen = Counter(await lab.names("httpfront.example.com", count=60))
    assert set(seen) == {"a", "b", "c"}
    assert min(seen.values()) >= 5
    assert (await lab.get("other.example.com"))[0] == 404
    assert lab.balancer.status.state == "serving"


async def test_tcp_by_port_spreads_over_all_instances(lab, upstreams, unused_port):
    a, b = [await upstreams.tcp(name) for name in "ab"]
    await lab.start(tcp(a, b, service=f"tcpfront-{unused_port}"))
    await lab.settled(f"tcpfront-{unused_port}")
    seen = Counter()
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
        writer.write(b"hello\n")
        name, word = (await asyncio.wait_for(reader.readline(), 5)).split()
        assert word == b"hello"
        seen[name] += 1
        writer.close()
    assert set(seen) == {b"a", b"b"}
