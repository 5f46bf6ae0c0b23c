"""`waypost registrator` as a process: a real engine on one side, a real Consul on the other."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from waypost.base.errors import NotFound, Rejected, Unavailable
from waypost.drivers.docker.api import Binding, Container, Health, Port
from waypost.drivers.docker.consul import ConsulApi, ConsulRegistry, parse_uri
from waypost.drivers.docker.mapping import (
    HostFacts,
    MappingSettings,
    Registration,
    map_container,
    same,
)

pytestmark = [pytest.mark.needs("docker", "busybox", "consul")]


class Process:
    """One `waypost registrator`, with its log."""

    def __init__(self, engine: Any, *args: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", "import sys; from waypost.cli.main import main; sys.exit(main())",
             "registrator", "-hostname", "h1", "-ip", "192.0.2.1", *args],
            env=engine.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self.popen.stdout)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.popen.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        status = self.popen.wait(15)
        self._reader.join(5)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        return status


@contextlib.contextmanager
def registrator(engine: Any, *args: str) -> Iterator[Process]:
    process = Process(engine, *args)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.end()


def ids(wanted: set[str]) -> Any:
    return lambda consul: set(consul.services()) == wanted


def test_life_of_a_process(engine, consul):
    engine.run("--name", "early", "-p", f"{engine.port(0)}:80", "-l", "SERVICE_NAME=httpbackend")
    with registrator(engine, consul.uri) as process:
        consul.until(ids({"h1:early:80"}))
        engine.run(
            "--name", "late", "-P", "--expose", "53/udp", "-l", "SERVICE_TAGS=b,a", "-e", "SERVICE_REGION=us2",
            "-l", "SERVICE_80_CHECK_TCP=yes", "-l", "SERVICE_80_CHECK_INITIAL_STATUS=passing",
            "-l", "SERVICE_ODD.KEY=" + "x" * 600,
        )  # fmt: skip
        consul.until(ids({"h1:early:80", "h1:late:80", "h1:late:53:udp"}))
        services = consul.services()
        assert services["h1:late:80"]["Service"] == "box-80"
        assert services["h1:late:80"]["Address"] == "192.0.2.1"
        assert services["h1:late:53:udp"]["Tags"] == ["b", "a", "udp"]
        assert services["h1:late:80"]["Meta"] == {"region": "us2", "odd_key": "x" * 512}
        (check,) = consul.get("/v1/health/checks/box-80")
        assert (check["CheckID"], check["Status"]) == ("service:h1:late:80", "passing")
        engine.docker("stop", "-t", "0", "late")
        consul.until(ids({"h1:early:80"}))
        assert process.end() == 0
        assert ids({"h1:early:80"})(consul)  # what is registered stays
    text = process.log
    for words in (
        "Starting registrator",
        "Forcing host IP to 192.0.2.1",
        f"Using consul adapter: {consul.uri}",
        "Connecting to backend (0/0)",
        "consul: current leader  127.0.0.1:",
        "Listening for Docker events ...",
        "Syncing services on 1 containers",
        "h1:late:80",
        "metadata key 'odd.key' became 'odd_key'",
    ):
        assert words in text
    # Another one takes out what vanished in between, and leaves what is not ours.
    consul.put("/v1/agent/service/register", {"Name": "foreign"})
    consul.put("/v1/agent/service/register", {"Name": "other", "ID": "h2:x1:80"})
    engine.docker("rm", "-f", "early")
    with registrator(
        engine,
        "--resync=1",
        "-cleanup",
        consul.uri,
    ):
        consul.until(ids({"foreign", "h2:x1:80"}))


def test_deregister_on_exit(engine, consul):
    engine.run("--name", "web", "-p", f"{engine.port(0)}:80")
    consul.put("/v1/agent/service/register", {"Name": "foreign"})
    with registrator(engine, "-deregister-on-exit", consul.uri) as process:
        consul.until(ids({"foreign", "h1:web:80"}))
        assert process.end(signal.SIGINT) == 0
    assert set(consul.services()) == {"foreign"}


def test_healthcheck_and_tags_template(engine, consul):
    engine.run(
        "--name", "hc", "-p", f"{engine.port(0)}:80", "--health-cmd", "test -e /tmp/ok",
        "--health-interval", "200ms", "--health-retries", "1", "-l", "role=front",
    )  # fmt: skip
    with registrator(engine, "-tags", "{{.Config.Labels.role}},{{strSlice .ID 0 4}}", consul.uri):
        consul.until(ids({"h1:hc:80"}))
        short = engine.docker("inspect", "-f", "{{.Id}}", "hc")[:4]
        assert consul.services()["h1:hc:80"]["Tags"] == ["front", short]

        def status(wanted: str) -> Any:
            return lambda c: [
                one for one in c.get("/v1/health/checks/box") if one["Status"] == wanted
            ]

        (check,) = consul.until(status("critical"))
        assert check["CheckID"] == "docker-health:h1:hc:80"
        engine.docker("exec", "hc", "busybox", "touch", "/tmp/ok")
        consul.until(status("passing"))
        engine.docker("exec", "hc", "busybox", "rm", "/tmp/ok")
        consul.until(status("critical"))


def test_consul_goes_and_comes_back_empty(engine, fresh_consul):
    consul = fresh_consul
    with registrator(engine, "-resync", "1", consul.uri):
        engine.run("--name", "one", "-p", f"{engine.port(0)}:80")
        consul.until(ids({"h1:one:80"}))
        consul.stop()
        engine.run("--name", "two", "-p", f"{engine.port(1)}:80")
        engine.docker("rm", "-f", "one")
        consul.start()
        consul.until(ids({"h1:two:80"}))
        consul.put("/v1/agent/service/deregister/h1:two:80")  # somebody's hand
        time.sleep(0.1)
        consul.until(ids({"h1:two:80"}))


def test_kv_and_unix_socket(engine, consul):
    engine.run("--name", "web", "-p", f"{engine.port(0)}:80", "-l", "SERVICE_NAME=w")
    uri = consul.uri.replace("consul://", "consulkv://") + "/a/prefix"

    def keys(c: Any) -> Any:
        with contextlib.suppress(Exception):
            return {
                one["Key"]: base64.b64decode(one["Value"]).decode()
                for one in c.get("/v1/kv/a/prefix?recurse")
            }
        return {}

    with registrator(engine, uri):
        assert consul.until(keys) == {"a/prefix/w/h1:web:80": f"192.0.2.1:{engine.port(0)}"}
    engine.run("--name", "two", "-p", f"{engine.port(1)}:80", "-l", "SERVICE_NAME=w")
    engine.docker("rm", "-f", "web")
    with registrator(engine, uri):
        consul.until(lambda c: list(keys(c)) == ["a/prefix/w/h1:two:80"])
    with registrator(engine, f"consul-unix://{consul.socket}"):
        consul.until(ids({"h1:two:80"}))


def test_wrong_calls(engine, consul):
    for status, words, *args in (
        (2, "a registry URI is missing", "-internal"),
        (2, "extra argument", consul.uri, "-internal"),
        (2, "flag provided but not defined: -forceTags", "-forceTags", "x", consul.uri),
        (1, "-retry-interval must be greater than 0", "-retry-interval", "0", consul.uri),
        (2, "neither an address nor a host name", "-ip", "10.0.0.300", consul.uri),
        (1, "bad adapter uri", "127.0.0.1:8500"),
        (1, "-tags: template", "-tags", "{{nope}}", consul.uri),
        (
            1,
            "Connecting to backend (1/1)",
            "-retry-attempts=1",
            "-retry-interval=10",
            "consul://127.0.0.1:1",
        ),
    ):
        with registrator(engine, *args) as process:
            assert process.wait() == status
            assert words in process.log


# --- the registry by itself --------------------------------------------------------------------------------

FULL = Container(
    id="a" * 64,
    name="c1",
    image="web",
    exposed=(Port(80),),
    published={Port(80): (Binding("", 8000),)},
    labels={
        "SERVICE_TAGS": "x,y",
        "SERVICE_REGION": "eu",
        "SERVICE_CHECK_HTTP": "/health",
        "SERVICE_CHECK_HTTP_METHOD": "HEAD",
        "SERVICE_CHECK_HEADER": "Host: example.com",
        "SERVICE_CHECK_DEREGISTER_AFTER": "10m",
        "SERVICE_CHECK_1_TTL": "30s",
        "SERVICE_CHECK_2_SCRIPT": "true $SERVICE_IP",
        "SERVICE_CHECK_3_GRPC": "y",
        "SERVICE_CHECK_3_GRPC_USE_TLS": "y",
    },
    health=Health("healthy", "fine"),
)  # fmt: skip


def desired(container: Container = FULL) -> Registration:
    facts = HostFacts(node="consul1", hostname="h1", ip="127.0.0.1")
    (one,) = map_container(container, facts=facts, settings=MappingSettings()).registrations
    return one


async def test_registry_promises(consul):
    registry = ConsulRegistry(ConsulApi(parse_uri(consul.uri, {})), node="consul1", hostname="h1")
    try:
        want = desired()
        await registry.register(want)
        found = (await registry.registered())["h1:c1:80"]
        assert same(want, found)
        statuses = {check.check_id: check.status for check in found.checks}
        assert statuses["docker-health:h1:c1:80"] == "passing"
        assert len(statuses) == 5
        # Somebody changes it: it is seen as different, and put right.
        consul.put("/v1/agent/service/register", {"ID": "h1:c1:80", "Name": "web", "Port": 1})
        assert not same(want, (await registry.registered())["h1:c1:80"])
        await registry.register(want)
        assert same(want, (await registry.registered())["h1:c1:80"])
        # Checks that are not wanted any more go.
        less = desired(
            Container(**{**{k: getattr(FULL, k) for k in FULL.__struct_fields__}, "labels": {}})
        )
        await registry.register(less)
        assert same(less, (await registry.registered())["h1:c1:80"])
        unknown = msgspec.structs.replace(less.checks[0], check_id="nope")
        with pytest.raises(NotFound):
            await registry.set_health(unknown)
        await registry.deregister("h1:c1:80")
        await registry.deregister("h1:c1:80")
        assert await registry.registered() == {}
    finally:
        await registry.close()


async def test_refusals(consul):
    registry = ConsulRegistry(ConsulApi(parse_uri(consul.uri, {})), node="n", hostname="h1")
    away = ConsulRegistry(ConsulApi(parse_uri("consul://127.0.0.1:1", {})), node="n", hostname="h1")
    try:
        bad = desired()
        bad = msgspec.structs.replace(
            bad, service=msgspec.structs.replace(bad.service, meta={"a b": "x"})
        )
        with pytest.raises(Rejected, match="400: Invalid Service Meta"):
            await registry.register(bad)
        with pytest.raises(Unavailable):
            await away.registered()
    finally:
        await registry.close()
        await away.close()
    await asyncio.sleep(0)
