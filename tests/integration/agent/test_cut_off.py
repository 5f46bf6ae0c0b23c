"""A server whose two peers are gone: what its own machine does reaches its own DNS at once, and everybody afterwards."""

import contextlib
import http.client
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.integration.agent.conftest import load
from tests.integration.agent.process import AgentProcess, Answer, environment, free_ports

pytestmark = [pytest.mark.needs("etcd", "dig"), pytest.mark.timeout(300)]

CLUSTER = {"cluster": {"heartbeat": "50ms", "election_timeout": "500ms", "failure_timeout": "3s"}}
AT_ONCE_S = 4.0
"""For a check of one second's interval to run, and for its result to be seen."""


class Site:
    """Machines with ports of their own."""

    def __init__(self, stack):
        self.stack = stack

    def make(self, node, *flags, **more):
        lan, wan, store = free_ports(3)
        ports = {"ports": {"serf_lan": lan, "serf_wan": wan, "store": store}}
        agent = AgentProcess(*flags, config={**CLUSTER, **ports}, node=node, **more)
        self.stack.callback(agent.close)
        agent.lan = f"127.0.0.1:{lan}"
        return agent

    def three(self, **first_more):
        first = self.make("s1", "-server", "-bootstrap-expect=3", **first_more)
        others = [
            self.make(node, "-server", "-bootstrap-expect=3", f"-join={first.lan}")
            for node in ("s2", "s3")
        ]
        for one in (first, *others):
            one.spawn()
        for one in (first, *others):
            one.wait_ready(within_s=90)
        return [first, *others]


@pytest.fixture
def site():
    with contextlib.ExitStack() as stack:
        yield Site(stack)


@pytest.fixture
def engine():
    docker = load(Path(__file__).parents[1] / "docker" / "engine.py", "docker_engine")
    with docker.running_engine() as found:
        yield found


class Program:
    """Something with a port that is alive as long as it is told to be."""

    def __init__(self):
        program = self
        self.is_well = True

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if program.is_well else 503)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def program():
    found = Program()
    yield found
    found.server.shutdown()
    found.server.server_close()


class Watcher:
    """A client with a blocking query, which remembers what it sees."""

    def __init__(self, agent, service):
        self.agent, self.service = agent, service
        self.indexes, self.seen, self.errors = [], [], []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        index = 0
        while not self._ends.is_set():
            try:
                index, found = self._ask(index)
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(error)
                time.sleep(0.1)
                continue
            self.indexes.append(index)
            self.seen.append(found)

    def _ask(self, index):
        connection = http.client.HTTPConnection("127.0.0.1", self.agent.http, timeout=30)
        try:
            path = f"/v1/health/service/{self.service}?passing&stale&wait=3s&index={index}"
            connection.request("GET", path)
            answer = connection.getresponse()
            body = json.loads(answer.read())
            return int(answer.headers["X-Consul-Index"]), [one["Service"]["ID"] for one in body]
        finally:
            connection.close()

    def end(self):
        self._ends.set()
        self._thread.join(10)


def define(agent, program, *names):
    services = [
        {
            "id": f"{name}-1",
            "name": name,
            "address": "127.0.0.1",
            "port": program.port,
            "check": {"http": f"http://127.0.0.1:{program.port}/", "interval": "1s"},
        }
        for name in names
    ]
    (agent.config_dir / "services.json").write_text(json.dumps({"services": services}))


def passing(agent, service, more="&stale"):
    found = agent.get(f"/v1/health/service/{service}?passing{more}")
    return [one["Service"]["ID"] for one in found]


def known_leader(agent):
    connection = http.client.HTTPConnection("127.0.0.1", agent.http, timeout=10)
    try:
        connection.request("GET", "/v1/catalog/services?stale")
        answer = connection.getresponse()
        answer.read()
        return answer.headers["X-Consul-KnownLeader"]
    finally:
        connection.close()


def test_without_a_quorum_a_machine_goes_on_with_its_own(site, program):
    three = site.three()
    keeper, *gone = three
    define(keeper, program, "web", "old")
    keeper.signal(signal.SIGHUP)
    keeper.put("/v1/agent/service/register", {"Name": "job", "Check": {"TTL": "60s"}})
    keeper.put("/v1/agent/check/pass/service:job")
    for name in ("web", "old", "job"):
        for one in three:
            one.eventually(lambda one=one, name=name: len(passing(one, name)), 1)
    keeper.eventually(lambda: keeper.dig("web.service.consul"), ["127.0.0.1"])
    watcher = Watcher(keeper, "web")

    for one in gone:
        one.kill()
    keeper.eventually(lambda: keeper.call("PUT", "/v1/kv/x", b"y")[0], 500, within_s=30)
    assert known_leader(keeper) == "false"

    # A check turns critical.
    program.is_well = False
    keeper.eventually(lambda: passing(keeper, "web"), [], within_s=AT_ONCE_S)
    keeper.eventually(lambda: keeper.dig("web.service.consul"), [], within_s=1)
    keeper.eventually(lambda: watcher.seen[-1], [], within_s=1)
    # A program says that it fails.
    keeper.put("/v1/agent/check/fail/service:job")
    assert passing(keeper, "job") == []
    # A definition goes, another one comes.
    define(keeper, program, "web", "new")
    keeper.signal(signal.SIGHUP)
    keeper.eventually(lambda: sorted(keeper.get("/v1/catalog/services?stale")), ["consul", "job", "new", "web"], within_s=3)  # fmt: skip
    assert keeper.dig("old.service.consul") == []
    program.is_well = True
    keeper.eventually(lambda: passing(keeper, "new"), ["new-1"], within_s=AT_ONCE_S)
    keeper.eventually(lambda: keeper.dig("new.service.consul"), ["127.0.0.1"], within_s=1)
    # What somebody asks for is refused, and nothing is answered as if it were stored.
    with pytest.raises(Answer, match="500"):
        keeper.put("/v1/agent/service/register", {"Name": "asked"})
    with pytest.raises(Answer, match="No cluster leader"):
        keeper.get("/v1/health/service/web")
    [provisional] = [
        line
        for line in keeper.call("GET", "/metrics")[1].decode().splitlines()
        if line.startswith("waypost_provisional_records")
    ]
    assert float(provisional.split()[-1]) >= 4
    assert keeper.log().count("the store takes no writes") == 1

    program.is_well = False
    keeper.eventually(lambda: passing(keeper, "new"), [], within_s=AT_ONCE_S)
    for one in gone:
        one.start(within_s=60)
    for one in three:
        one.eventually(
            lambda one=one: sorted(one.get("/v1/catalog/services")),
            ["consul", "job", "new", "web"],
            within_s=30,
        )
        for name in ("web", "new", "job"):
            one.eventually(lambda one=one, name=name: passing(one, name, ""), [], within_s=10)
    keeper.eventually(lambda: keeper.log().count("the store takes writes again"), 1)
    program.is_well = True
    for one in three:
        one.eventually(lambda one=one: passing(one, "web", ""), ["web-1"], within_s=15)
    keeper.eventually(lambda: watcher.seen[-1], ["web-1"], within_s=10)
    watcher.end()
    assert watcher.indexes == sorted(watcher.indexes), watcher.indexes
    assert not watcher.errors


@pytest.mark.long
def test_a_machine_that_is_restarted_without_a_quorum_shows_what_it_saw_last(site, program):
    three = site.three()
    keeper, other, third = three
    define(other, program, "far")
    other.signal(signal.SIGHUP)
    define(keeper, program, "near")
    keeper.signal(signal.SIGHUP)
    for one in three:
        for name in ("far", "near"):
            one.eventually(lambda one=one, name=name: len(passing(one, name)), 1)
    before = (keeper.data / "cluster" / "last-state").stat().st_mtime_ns
    keeper.eventually(
        lambda: (keeper.data / "cluster" / "last-state").stat().st_mtime_ns > before,
        True,
        within_s=15,
    )
    time.sleep(6)  # kill -9 may cost the latest seconds
    for one in three:
        one.kill()
    keeper.spawn()
    keeper.eventually(lambda: reachable(keeper), True, within_s=40)
    assert keeper.dig("far.service.consul") == ["127.0.0.1"]
    assert passing(keeper, "far") == ["far-1"]
    assert known_leader(keeper) == "false"
    with pytest.raises(Answer, match="No cluster leader"):
        keeper.get("/v1/catalog/services")
    # After a while it takes up its own work.
    program.is_well = False
    keeper.eventually(lambda: passing(keeper, "near"), [], within_s=20)
    assert keeper.dig("near.service.consul") == []
    assert passing(keeper, "far") == ["far-1"]  # another machine's check
    other.start(within_s=60)
    third.start(within_s=60)
    keeper.wait_ready(within_s=30)
    for one in three:
        for name in ("near", "far"):
            one.eventually(lambda one=one, name=name: passing(one, name, ""), [], within_s=15)


def reachable(agent):
    try:
        return agent.call("GET", "/v1/status/leader")[0] > 0
    except OSError:
        return False


TOKEN = "abcdef.0123456789abcdef"


def command(agent, *words):
    return subprocess.run(
        [sys.executable, "-m", "waypost", *words],
        env=environment()
        | {"CONSUL_HTTP_ADDR": f"127.0.0.1:{agent.http}", "HOME": str(agent.folder)},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.long
def test_a_client_goes_on_without_any_server(site, program):
    server = site.make("s1", "-server", "-bootstrap-expect=1")
    define(server, program, "far")
    server.start(within_s=40)
    assert command(server, "token", "create", TOKEN).stdout.strip() == TOKEN
    client = site.make("c1", f"-join={server.lan}", f"-join-token={TOKEN}")
    define(client, program, "near")
    client.start(within_s=40)
    for one in (server, client):
        for name in ("near", "far"):
            one.eventually(lambda one=one, name=name: len(passing(one, name)), 1)
    server.kill()
    program.is_well = False
    client.eventually(lambda: passing(client, "near"), [], within_s=AT_ONCE_S + 2)
    assert passing(client, "far") == ["far-1"]
    program.is_well = True
    client.eventually(lambda: passing(client, "near"), ["near-1"], within_s=AT_ONCE_S)

    # Restarted, it shows what it saw last …
    client.terminate()
    client.spawn()
    client.eventually(lambda: client.dig("far.service.consul"), ["127.0.0.1"], within_s=40)
    assert client.dig("near.service.consul") == ["127.0.0.1"]
    # … and without that its own, of which alone it is sure.
    client.kill()
    (client.data / "cluster" / "last-state").unlink()
    client.spawn()
    client.eventually(lambda: client.dig("near.service.consul"), ["127.0.0.1"], within_s=40)
    assert "SERVFAIL" in "\n".join(client.dig("far.service.consul", "A", "+noshort", "+comments"))
    program.is_well = False
    client.eventually(lambda: passing(client, "near"), [], within_s=AT_ONCE_S)
    server.start(within_s=40)
    client.wait_ready(within_s=30)
    for one in (server, client):
        for name in ("near", "far"):
            one.eventually(lambda one=one, name=name: passing(one, name, ""), [], within_s=15)
    assert len(server.get("/v1/catalog/service/near")) == 1


@pytest.mark.needs("docker")
@pytest.mark.long
def test_containers_come_and_go_without_a_quorum(site, engine):
    three = site.three(docker=engine.host)
    keeper, *gone = three
    keeper.eventually(lambda: "Listening for Docker events" in keeper.log())
    first = engine.run("-d", "-l", "SERVICE_NAME=web", "-p", f"{engine.port(1)}:80")
    for one in three:
        one.eventually(lambda one=one: len(one.get("/v1/catalog/service/web?stale")), 1)
    for one in gone:
        one.kill()
    keeper.eventually(lambda: keeper.call("PUT", "/v1/kv/x", b"y")[0], 500, within_s=30)

    engine.docker("rm", "-f", first)
    keeper.eventually(lambda: keeper.get("/v1/catalog/service/web?stale"), [], within_s=2)
    assert keeper.dig("web.service.consul") == []
    second = engine.run("-d", "-l", "SERVICE_NAME=web", "-p", f"{engine.port(2)}:80")
    keeper.eventually(lambda: keeper.dig("web.service.consul"), ["127.0.0.1"], within_s=2)
    [one] = keeper.get("/v1/catalog/service/web?stale")
    assert (one["ServicePort"], one["ModifyIndex"]) == (engine.port(2), 0)

    # A restart finds out again what was on no disk.
    keeper.kill()
    third = engine.run("-d", "-l", "SERVICE_NAME=late", "-p", f"{engine.port(3)}:80")
    keeper.spawn()
    keeper.eventually(lambda: keeper.dig("late.service.consul"), ["127.0.0.1"], within_s=40)
    keeper.eventually(
        lambda: [one["ServicePort"] for one in keeper.get("/v1/catalog/service/web?stale")],
        [engine.port(2)],
    )
    engine.docker("rm", "-f", third)
    keeper.eventually(lambda: keeper.dig("late.service.consul"), [], within_s=3)

    for one in gone:
        one.start(within_s=60)
    for one in three:
        one.eventually(
            lambda one=one: [
                (web["ServicePort"], web["ModifyIndex"] > 0)
                for web in one.get("/v1/catalog/service/web")
            ],
            [(engine.port(2), True)],
            within_s=20,
        )
        assert one.get("/v1/catalog/service/late") == []
    engine.docker("rm", "-f", second)
    for one in three:
        one.eventually(lambda one=one: one.get("/v1/catalog/service/web"), [])
