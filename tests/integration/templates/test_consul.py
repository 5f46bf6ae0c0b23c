"""`waypost template` against a real Consul."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from waypost.drivers.render import dependency as ask
from waypost.drivers.render.consul_source import ConsulSettings, open_source

pytestmark = pytest.mark.needs("consul")

ARTICLE = Path(__file__).parent / "nginx.conf.tmpl"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Consul:
    def __init__(self, port):
        self.address = f"127.0.0.1:{port}"

    def call(self, method, path, body=None):
        data = (
            body
            if isinstance(body, bytes)
            else json.dumps(body).encode()
            if body is not None
            else None
        )
        request = urllib.request.Request(f"http://{self.address}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read()

    def register(self, node, name, port, tags, *, meta=None):
        self.call(
            "PUT",
            "/v1/catalog/register",
            {
                "Node": node,
                "Address": "10.0.0.1",
                "SkipNodeUpdate": False,
                "Service": {
                    "ID": f"{node}:{name}",
                    "Service": name,
                    "Port": port,
                    "Tags": tags,
                    "Address": "10.0.0.1",
                    "Meta": meta or {},
                },
                "Check": {
                    "CheckID": f"{name}-up",
                    "Name": "up",
                    "Status": "passing",
                    "ServiceID": f"{node}:{name}",
                },
            },
        )


@pytest.fixture(scope="module")
def consul(tmp_path_factory):
    http, lan, wan, server = free_ports(4)
    log = (tmp_path_factory.mktemp("consul") / "log").open("wb")
    process = subprocess.Popen(
        ["consul", "agent", "-dev", "-bind", "127.0.0.1", "-node", "n1", "-http-port", str(http), "-dns-port", "-1",
         "-grpc-port", "-1", "-serf-lan-port", str(lan), "-serf-wan-port", str(wan), "-server-port", str(server),
         "-log-level", "warn"],
        stdout=log, stderr=log,
    )  # fmt: skip
    api = Consul(http)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                if json.loads(api.call("GET", "/v1/health/service/consul?passing")):
                    break
            except OSError:
                pass
            assert time.monotonic() < end, "consul did not start"
            time.sleep(0.1)
        yield api
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def start(*argv):
    return subprocess.Popen(
        [sys.executable, "-m", "waypost.cli.main", "template", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def until(condition, *, at_most_s=10.0):
    end = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def text_of(path):
    return path.read_text() if path.exists() else None


def test_once(consul, tmp_path):
    consul.call("PUT", "/v1/kv/app/name", b"demo")
    consul.register("n2", "web", 8080, ["http", "a"], meta={"v": "2"})
    template = tmp_path / "in.tmpl"
    template.write_text(
        '{{ key "app/name" }} {{ range ls "app" }}{{ .Key }}={{ .Value }} {{ end }}{{ keyExists "no" }}'
        ' {{ range service "web" }}{{ .ID }} {{ .Address }}:{{ .Port }} {{ .Tags }} {{ .ServiceMeta.v }}{{ end }}'
        " {{ range services }}{{ .Name }} {{ end }}{{ range nodes }}{{ .Node }} {{ end }}"
        "{{ with node }}{{ .Node.Node }} {{ range .Services }}{{ .Service }}{{ end }}{{ end }} {{ datacenters }}"
    )
    process = start(
        "-consul-addr", consul.address, "-once", "-template", f"{template}:{tmp_path}/out"
    )
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert text_of(tmp_path / "out") == (
        "demo name=demo false n2:web 10.0.0.1:8080 [a http] 2 consul web n1 n2 n1 consul [dc1]"
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 12)])
def test_follows_changes_and_stops(consul, tmp_path, number, status):
    consul.call("PUT", "/v1/kv/follow", b"1")
    template = tmp_path / "in.tmpl"
    template.write_text('{{ key "follow" }}')
    command = f"cat {tmp_path}/out >> {tmp_path}/log"
    process = start(
        f"-consul-addr={consul.address}", f"-template={template}:{tmp_path}/out:{command}"
    )
    try:
        until(lambda: text_of(tmp_path / "log") == "1")
        began = time.monotonic()
        consul.call("PUT", "/v1/kv/follow", b"2")
        until(lambda: text_of(tmp_path / "log") == "12")
        assert time.monotonic() - began < 1.0
        template.write_text('new {{ key "follow" }}')
        process.send_signal(signal.SIGHUP)
        until(lambda: text_of(tmp_path / "out") == "new 2")
        process.send_signal(number)
        process.communicate(timeout=10)
        assert process.returncode == status
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


async def test_blocking_query_and_errors(consul):
    from waypost.base.errors import Rejected, Unavailable

    consul.call("PUT", "/v1/kv/block", b"1")
    async with open_source(ConsulSettings(address=consul.address)) as source:
        wanted = ask.key("block", blocks=True)
        first = await source.fetch(wanted, index=0, wait_s=10)
        assert first.value == "1"
        waiting = asyncio.create_task(source.fetch(wanted, index=first.index, wait_s=10))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await asyncio.to_thread(consul.call, "PUT", "/v1/kv/block", b"2")
        second = await waiting
        assert (second.value, second.index > first.index) == ("2", True)
        with pytest.raises(Rejected, match="No path to datacenter"):
            await source.fetch(ask.service("web@mars"), index=0, wait_s=1)
        missing = await source.fetch(ask.key("no/such", blocks=False), index=0, wait_s=1)
        assert missing.value is None
    async with open_source(ConsulSettings(address="127.0.0.1:1")) as source:
        with pytest.raises(Unavailable):
            await source.fetch(ask.services(""), index=0, wait_s=1)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (("-nosuch",), 13),
        (("-wait", "x"), 13),
        (("stray",), 13),
        (("-config", "/nosuch"), 15),
        (("-once", "-template", "/nosuch:/tmp/never"), 14),
        (("-version",), 0),
    ],
)
def test_exit_codes(argv, status):
    process = start(*argv)
    process.communicate(timeout=20)
    assert process.returncode == status
