"""The registrator against a real engine and an in-memory registry."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from waypost.drivers.docker.api import Docker, Endpoint
from waypost.drivers.docker.mapping import HostFacts, MappingSettings, map_container
from waypost.drivers.docker.registrator import Registrator, Settings

pytestmark = [pytest.mark.needs("docker", "busybox")]

FACTS = HostFacts(node="n1", hostname="h1", ip="192.0.2.1")


def docker(engine: Any) -> Docker:
    return Docker(Endpoint(socket=str(engine.socket)), timeout_s=5)


@contextlib.asynccontextmanager
async def registrator(
    engine: Any, registry: Any, *, mapping: MappingSettings | None = None, **settings: Any
) -> AsyncIterator[Registrator]:
    settings.setdefault("resync_s", 0)
    one = Registrator(
        docker(engine),
        registry,
        facts=FACTS,
        settings=Settings(mapping=mapping or MappingSettings(), **settings),
        rng=random.Random(1),
    )
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def sh(engine: Any, *args: str, **options: Any) -> str:
    return await asyncio.to_thread(engine.docker, *args, **options)


async def run(engine: Any, *args: str, **options: Any) -> str:
    return await asyncio.to_thread(engine.run, *args, **options)


async def test_start_and_stop(engine, registry):
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(engine, "--name", "web1", "-p", f"{engine.port(0)}:80", "-l", "SERVICE_NAME=web")
        await registry.until(lambda r: r.names() == ["web"])
        service = registry.named("web").service
        assert (service.id, service.address, service.port) == (
            "h1:web1:80",
            "192.0.2.1",
            engine.port(0),
        )
        assert service.owner == "docker"
        await sh(engine, "stop", "-t", "0", "web1")
        await registry.until(lambda r: not r.instances)
        await sh(engine, "start", "web1")
        await registry.until(lambda r: r.names() == ["web"])


async def test_time_from_start_to_registered(engine, registry):
    async with registrator(engine, registry) as one:
        await one.ready()
        late: list[float] = []
        for number in range(8):
            path = f"/containers/create?name=t{number}"
            body = {
                "Image": "waypost-test/box",
                "Cmd": ["sleep", "600"],
                "HostConfig": {
                    "PortBindings": {"80/tcp": [{"HostPort": str(engine.port(number))}]}
                },
                "Labels": {"SERVICE_NAME": f"s{number}"},
            }
            made = await asyncio.to_thread(engine.request, "POST", path, body=body)
            await asyncio.to_thread(engine.request, "POST", f"/containers/{made['Id']}/start")
            returned = time.perf_counter()
            await registry.until(lambda r, name=f"s{number}": name in r.names())
            late.append((registry.writes[-1][0] - returned) * 1000)
        print(
            f"start returned -> registered, ms: median {statistics.median(late):.1f} max {max(late):.1f}"
        )
        assert statistics.median(late) < 50


async def test_leaves_at_the_stop_signal(engine, registry):
    # The shell ignores TERM, so the process lives on until docker kills it.
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(
            engine, "--name", "slow", "-p", f"{engine.port(0)}:80",
            command=["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"],
        )  # fmt: skip
        await registry.until(lambda r: len(r.instances) == 1)
        began = time.perf_counter()
        stopping = asyncio.create_task(sh(engine, "stop", "-t", "2", "slow"))
        gone = await registry.until(lambda r: not r.instances)
        assert gone - began < 1.0
        assert engine.request("GET", "/containers/slow/json")["State"]["Running"] is True
        await stopping
        await registry.never(lambda r: bool(r.instances), 0.3)


async def test_other_signals_are_no_goodbye(engine, registry):
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(
            engine, "--name", "hup", "-p", f"{engine.port(0)}:80", "--stop-signal", "SIGUSR2",
            command=["sh", "-c", "trap '' HUP TERM USR1 USR2; while true; do sleep 0.1; done"],
        )  # fmt: skip
        await registry.until(lambda r: len(r.instances) == 1)
        for name in ("HUP", "USR1", "TERM"):
            await sh(engine, "kill", "-s", name, "hup")
        await registry.never(lambda r: not r.instances)
        await sh(engine, "kill", "-s", "USR2", "hup")
        await registry.until(lambda r: not r.instances)


async def test_comes_back_when_it_ignores_its_stop_signal(engine, registry):
    async with registrator(engine, registry, drain_s=0.5) as one:
        await one.ready()
        await run(
            engine, "--name", "deaf", "-p", f"{engine.port(0)}:80",
            command=["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"],
        )  # fmt: skip
        await registry.until(lambda r: len(r.instances) == 1)
        await sh(engine, "kill", "-s", "TERM", "deaf")
        await registry.until(lambda r: not r.instances)
        await registry.until(lambda r: len(r.instances) == 1, 2)


async def test_restart_pause_and_kill(engine, registry):
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(engine, "--name", "web", "-p", f"{engine.port(0)}:80")
        await registry.until(lambda r: len(r.instances) == 1)
        await sh(engine, "restart", "-t", "0", "web")
        await registry.until(lambda r: [w[1] for w in r.writes[-2:]] == ["deregister", "register"])
        await sh(engine, "pause", "web")
        await registry.until(lambda r: not r.instances)
        await sh(engine, "unpause", "web")
        await registry.until(lambda r: len(r.instances) == 1)
        await sh(engine, "kill", "web")
        await registry.until(lambda r: not r.instances)


async def test_rename(engine, registry):
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(engine, "--name", "old", "-p", f"{engine.port(0)}:80")
        await registry.until(lambda r: list(r.instances) == ["h1:old:80"])
        await sh(engine, "rename", "old", "new")
        await registry.until(lambda r: list(r.instances) == ["h1:new:80"])


async def test_before_the_start_and_vanished_while_down(engine, registry):
    await run(engine, "--name", "early", "-p", f"{engine.port(0)}:80", "-l", "SERVICE_NAME=early")
    await run(engine, "--name", "gone", "-p", f"{engine.port(1)}:80", "-l", "SERVICE_NAME=gone")
    async with registrator(engine, registry):
        await registry.until(lambda r: r.names() == ["early", "gone"])
    assert registry.names() == ["early", "gone"]
    await sh(engine, "rm", "-f", "gone")
    await run(engine, "--name", "late", "-p", f"{engine.port(2)}:80", "-l", "SERVICE_NAME=late")
    async with registrator(engine, registry):
        await registry.until(lambda r: r.names() == ["early", "late"])
    verbs = [(verb, service_id) for _, verb, service_id in registry.writes[2:]]
    assert verbs == [("register", "h1:late:80"), ("deregister", "h1:gone:80")]


async def test_nothing_is_written_twice(engine, registry):
    await run(engine, "--name", "one", "-p", f"{engine.port(0)}:80")
    async with registrator(engine, registry, resync_s=0.1) as one:
        await one.ready()
        await asyncio.sleep(0.6)
    assert [verb for _, verb, _ in registry.writes] == ["register"]


async def test_all_ports_networks_and_modes(engine, registry, caplog):
    caplog.set_level(logging.INFO)
    await sh(engine, "network", "create", "inner")
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(engine, "--name", "all", "-P", "--expose", "53/udp", "-l", "SERVICE_NAME=all")
        await run(
            engine,
            "--name",
            "net",
            "--network",
            "inner",
            "-p",
            f"{engine.port(0)}:80",
            "-l",
            "SERVICE_NAME=net",
        )
        await run(engine, "--name", "host", "--network", "host", "-l", "SERVICE_NAME=host")
        await run(engine, "--name", "none", "--network", "none", "-l", "SERVICE_NAME=none")
        await run(engine, "--name", "plain", "-l", "SERVICE_NAME=plain")
        await run(engine, "--name", "side", "--network", "container:net", "-l", "SERVICE_NAME=side")
        await registry.until(lambda r: len(r.instances) == 5)
        found = {
            one.service.id: (one.service.name, one.service.address)
            for one in registry.instances.values()
        }
        inner = await sh(
            engine, "inspect", "-f", "{{.NetworkSettings.Networks.inner.IPAddress}}", "net"
        )
        assert found == {
            "h1:all:53:udp": ("all-53", "192.0.2.1"),
            "h1:all:80": ("all-80", "192.0.2.1"),
            "h1:net:80": ("net", "192.0.2.1"),
            "h1:host:80": ("host", "192.0.2.1"),
            "h1:side:80": ("side", inner),
        }
        assert registry.named("host").service.port == 80
        assert "no network" in caplog.text
        assert "port 80 not published on host" in caplog.text
        await sh(engine, "stop", "-t", "0", "net")
        await registry.until(lambda r: not {"net", "side"} & set(r.names()))


async def test_internal_follows_the_networks(engine, registry):
    await sh(engine, "network", "create", "blue")
    mapping = MappingSettings(internal=True)
    async with registrator(engine, registry, mapping=mapping) as one:
        await one.ready()
        await run(engine, "--name", "in", "-l", "SERVICE_NAME=in", "-l", "SERVICE_NETWORK=blue")
        await registry.never(lambda r: bool(r.instances), 0.3)
        await sh(engine, "network", "connect", "blue", "in")
        await registry.until(lambda r: len(r.instances) == 1)
        blue = await sh(
            engine, "inspect", "-f", "{{.NetworkSettings.Networks.blue.IPAddress}}", "in"
        )
        assert registry.named("in").service.address == blue
        await sh(engine, "network", "disconnect", "blue", "in")
        await registry.until(lambda r: not r.instances)


async def test_healthcheck(engine, registry):
    flags = [
        "--health-cmd", "test -e /tmp/ok && echo fine", "--health-interval", "200ms",
        "--health-retries", "1", "--health-timeout", "5s",
    ]  # fmt: skip
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(
            engine,
            "--name",
            "hc",
            "-p",
            f"{engine.port(0)}:80",
            *flags,
            command=["sh", "-c", "touch /tmp/ok; sleep 600"],
        )

        def status(r: Any) -> str:
            return r.instances["h1:hc:80"].checks[0].status if r.instances else ""

        await registry.until(lambda r: status(r) == "critical")
        await registry.until(lambda r: status(r) == "passing")
        check = registry.instances["h1:hc:80"].checks[0]
        assert (check.check_id, check.output) == ("docker-health:h1:hc:80", "fine\n")
        await sh(engine, "exec", "hc", "busybox", "rm", "/tmp/ok")
        await registry.until(lambda r: status(r) == "critical")
        await sh(engine, "exec", "hc", "busybox", "touch", "/tmp/ok")
        await registry.until(lambda r: status(r) == "passing")
        assert [verb for _, verb, _ in registry.writes].count("register") == 1


async def test_wait_for_healthy(engine, registry):
    flags = [
        "--health-cmd",
        "test -e /tmp/ok",
        "--health-interval",
        "200ms",
        "--health-retries",
        "50",
    ]
    mapping = MappingSettings(wait_healthy=True)
    async with registrator(engine, registry, mapping=mapping) as one:
        await one.ready()
        await run(engine, "--name", "hc", "-p", f"{engine.port(0)}:80", *flags)
        await registry.never(lambda r: bool(r.instances), 0.6)
        await sh(engine, "exec", "hc", "busybox", "touch", "/tmp/ok")
        await registry.until(lambda r: len(r.instances) == 1)
        assert registry.instances["h1:hc:80"].checks[0].status == "passing"


async def test_on_success(engine, registry):
    async with registrator(engine, registry, deregister="on-success") as one:
        await one.ready()
        for name, code, port in (("bad", 3, 0), ("good", 0, 1)):
            await run(
                engine,
                "--name",
                name,
                "-p",
                f"{engine.port(port)}:80",
                command=["sh", "-c", f"sleep 0.4; exit {code}"],
            )
        await registry.until(lambda r: list(r.instances) == ["h1:bad:80"])
        await registry.never(lambda r: not r.instances)
    # Another process that never saw it alive keeps it as well, until the container is removed.
    async with registrator(engine, registry, deregister="on-success") as one:
        await one.ready()
        assert list(registry.instances) == ["h1:bad:80"]
        await sh(engine, "rm", "bad")
        await registry.until(lambda r: not r.instances)


async def test_registry_away(engine, registry):
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(engine, "--name", "aa", "-p", f"{engine.port(0)}:80")
        await registry.until(lambda r: len(r.instances) == 1)
        registry.away = True
        await run(engine, "--name", "bb", "-p", f"{engine.port(1)}:80")
        await sh(engine, "rm", "-f", "aa")
        await asyncio.sleep(0.5)
        registry.away = False
        await registry.until(lambda r: list(r.instances) == ["h1:bb:80"])


async def test_one_that_is_refused_disturbs_nobody(engine, registry):
    registry.refuses.add("bad")
    async with registrator(engine, registry, resync_s=0.3) as one:
        await one.ready()
        await run(engine, "--name", "aa", "-p", f"{engine.port(0)}:80", "-l", "SERVICE_NAME=bad")
        await run(engine, "--name", "bb", "-p", f"{engine.port(1)}:80", "-l", "SERVICE_NAME=good")
        await registry.until(lambda r: r.names() == ["good"])
        registry.refuses.clear()
        await registry.until(lambda r: r.names() == ["bad", "good"])


async def test_same_id_twice_goes_to_the_younger_and_back(engine, registry):
    async with registrator(engine, registry) as one:
        await one.ready()
        for name, port in (("aa", 0), ("bb", 1)):
            await run(
                engine, "--name", name, "-p", f"{engine.port(port)}:80", "-l", "SERVICE_ID=the-one"
            )
        await registry.until(
            lambda r: [i.service.port for i in r.instances.values()] == [engine.port(1)]
        )
        await sh(engine, "rm", "-f", "bb")
        await registry.until(
            lambda r: [i.service.port for i in r.instances.values()] == [engine.port(0)]
        )


async def test_churn_ends_right(engine, registry):
    """Many starts and stops at once; what is registered at the end is what runs."""
    async with registrator(engine, registry) as one:
        await one.ready()
        await asyncio.gather(
            *(run(engine, "--name", f"c{n}", "-p", f"{engine.port(n)}:80") for n in range(8))
        )
        await asyncio.gather(
            *(sh(engine, "restart", "-t", "0", f"c{n}") for n in range(4)),
            *(sh(engine, "rm", "-f", f"c{n}") for n in range(4, 8)),
        )
        await registry.until(lambda r: sorted(r.instances) == [f"h1:c{n}:80" for n in range(4)])
        await registry.never(lambda r: sorted(r.instances) != [f"h1:c{n}:80" for n in range(4)])


async def test_inspect_says_what_docker_says(engine):
    made = await run(
        engine, "--name", "all", "--stop-signal", "QUIT", "--stop-timeout", "3",
        "-p", f"127.0.0.1:{engine.port(1)}:80", "-p", f"{engine.port(2)}:80", "-e", "A=b=c", "-l", "x=y", "-h", "me",
    )  # fmt: skip
    async with docker(engine) as client:
        assert (await client.version()).api_version
        found = await client.inspect(made)
        assert [one.id for one in await client.containers()] == [made]
    assert (found.id, found.name, found.hostname, found.stop_signal) == (made, "all", "me", "QUIT")
    assert found.stop_timeout_s == 3
    assert "A=b=c" in found.env
    assert dict(found.labels) == {"x": "y"}
    assert found.serving
    (registration,) = map_container(found, facts=FACTS, settings=MappingSettings()).registrations
    assert registration.service.port == engine.port(2)  # not the one that only this machine reaches


async def test_docker_is_stopped_and_started(fresh_engine, registry):
    engine = fresh_engine
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(
            engine,
            "--name",
            "stays",
            "-p",
            f"{engine.port(0)}:80",
            "--stop-timeout",
            "1",
            "--restart",
            "always",
            "-l",
            "SERVICE_NAME=stays",
        )
        await run(
            engine,
            "--name",
            "ends",
            "-p",
            f"{engine.port(1)}:80",
            "--stop-timeout",
            "1",
            "-l",
            "SERVICE_NAME=ends",
        )
        await registry.until(lambda r: r.names() == ["ends", "stays"])
        await asyncio.to_thread(engine.stop)
        await registry.until(lambda r: not r.instances)  # its last words were the containers' ends
        await asyncio.to_thread(engine.start)
        await registry.until(lambda r: r.names() == ["stays"], 10)


async def test_docker_is_killed(fresh_engine, registry):
    engine = fresh_engine
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(
            engine,
            "--name",
            "stays",
            "-p",
            f"{engine.port(0)}:80",
            "--stop-timeout",
            "1",
            "--restart",
            "always",
            "-l",
            "SERVICE_NAME=stays",
        )
        await run(
            engine,
            "--name",
            "ends",
            "-p",
            f"{engine.port(1)}:80",
            "--stop-timeout",
            "1",
            "-l",
            "SERVICE_NAME=ends",
        )
        await registry.until(lambda r: r.names() == ["ends", "stays"])
        engine.kill()
        await registry.never(lambda r: len(r.instances) != 2)  # nobody knows yet, so nobody leaves
        await asyncio.to_thread(engine.start)
        await registry.until(lambda r: r.names() == ["stays"], 10)


async def test_docker_restarts_and_its_containers_do_not_notice(live_restore_engine, registry):
    engine = live_restore_engine
    async with registrator(engine, registry) as one:
        await one.ready()
        await run(engine, "--name", "lives", "-p", f"{engine.port(0)}:80")
        await run(engine, "--name", "dies", "-p", f"{engine.port(1)}:80")
        await registry.until(lambda r: len(r.instances) == 2)
        pid = await sh(engine, "inspect", "-f", "{{.State.Pid}}", "dies")
        await asyncio.to_thread(engine.stop)
        await registry.never(lambda r: len(r.instances) != 2)
        os.kill(int(pid), signal.SIGKILL)  # while nobody looks
        await asyncio.to_thread(engine.start)
        await registry.until(lambda r: list(r.instances) == ["h1:lives:80"], 10)
        assert [w[1:] for w in registry.writes[2:]] == [("deregister", "h1:dies:80")]


async def test_docker_hangs(fresh_engine, registry):
    engine = fresh_engine
    async with registrator(engine, registry, resync_s=0.2) as one:
        await one.ready()
        await run(engine, "--name", "aa", "-p", f"{engine.port(0)}:80")
        await registry.until(lambda r: len(r.instances) == 1)
        engine.freeze()
        await registry.never(lambda r: not r.instances, 1)
        engine.thaw()
        await run(engine, "--name", "bb", "-p", f"{engine.port(1)}:80")
        await registry.until(lambda r: len(r.instances) == 2, 10)


async def test_docker_comes_late(fresh_engine, registry):
    engine = fresh_engine
    await run(
        engine,
        "--name",
        "aa",
        "-p",
        f"{engine.port(0)}:80",
        "--restart",
        "always",
        "--stop-timeout",
        "1",
    )
    await asyncio.to_thread(engine.stop)
    async with registrator(engine, registry) as one:
        await registry.never(lambda r: bool(r.instances), 0.3)
        await asyncio.to_thread(engine.start)
        await registry.until(lambda r: len(r.instances) == 1, 10)
        await one.ready()
