"""The whole agent under faults: kill -9, a full disk, a dead nginx, a flood of changes, a Docker engine that restarts.

The number of kills is WAYPOST_AGENT_KILLS (3). The full proof is WAYPOST_AGENT_KILLS=100.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import os
import random
import signal
import subprocess
import threading
import time

import pytest

KILLS = int(os.environ.get("WAYPOST_AGENT_KILLS", "3"))
WRITERS = 4


class Writer(threading.Thread):
    """Puts keys, registers and deregisters services; keeps apart what was acknowledged and what was only sent."""

    def __init__(self, port, name):
        super().__init__(daemon=True)
        self.port, self.prefix = port, name
        self.stopping = threading.Event()
        self.kv, self.kv_open = {}, {}
        """key → value acknowledged; key → value whose answer never came."""
        self.there, self.gone, self.unsure = set(), set(), set()
        self.refused = []

    def _ask(self, connection, method, path, body):
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            self.refused.append((answer.status, text))
        return answer.status == 200

    def run(self):
        number = 0
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        while not self.stopping.is_set():
            number += 1
            key, value = f"{self.prefix}/{number % 50}", str(number)
            service = f"{self.prefix}-{number}"
            old = f"{self.prefix}-{number - 10}"
            try:
                self.kv_open[key] = value
                if self._ask(connection, "PUT", f"/v1/kv/{key}", value):
                    self.kv[key] = value
                    del self.kv_open[key]
                self.unsure.add(service)
                body = json.dumps(
                    {"Name": self.prefix, "ID": service, "Port": 80, "Check": {"TTL": "1h"}}
                )
                if self._ask(connection, "PUT", "/v1/agent/service/register", body):
                    self.there.add(service)
                    self.unsure.discard(service)
                if old in self.there:
                    self.there.discard(old)
                    self.unsure.add(old)
                    if self._ask(connection, "PUT", f"/v1/agent/service/deregister/{old}", b""):
                        self.unsure.discard(old)
                        self.gone.add(old)
            except (OSError, http.client.HTTPException):
                connection.close()
                time.sleep(0.02)
        connection.close()

    def check(self, agent):
        """Assert that the agent has everything that was acknowledged and nothing that was never sent."""
        assert self.refused == []
        kept = {
            one["Key"]: bytes(agent.call("GET", f"/v1/kv/{one['Key']}?raw")[1]).decode()
            for one in agent.get(f"/v1/kv/{self.prefix}/?recurse")
        }
        for key, value in self.kv.items():
            assert kept[key] in (value, self.kv_open.get(key)), key
        found = agent.get(f"/v1/health/service/{self.prefix}")
        ids = [one["Service"]["ID"] for one in found]
        assert len(ids) == len(set(ids)), "an instance is there twice"
        assert self.there <= set(ids), f"acknowledged and lost: {self.there - set(ids)}"
        assert set(ids) <= self.there | self.unsure, "deregistered and still there"
        for one in found:
            checks = [c["CheckID"] for c in one["Checks"] if c["ServiceID"]]
            assert checks == [f"service:{one['Service']['ID']}"]
        dangling = {
            c["ServiceID"]
            for c in agent.get("/v1/health/node/t1")
            if c["ServiceID"].startswith(f"{self.prefix}-")
        } - set(ids)
        assert not dangling, f"checks without their service: {dangling}"


class Visitor(threading.Thread):
    """Requests through nginx, one after the other; every answer that is not right is kept."""

    def __init__(self, agent, *, keep_alive):
        super().__init__(daemon=True)
        self._agent, self._keep_alive = agent, keep_alive
        self.stopping = threading.Event()
        self.good = 0
        self.bad = []
        self.slowest_s = 0.0

    def run(self):
        connection = None
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(
                        "127.0.0.1", self._agent.balancer, timeout=5
                    )
                connection.request("GET", "/", headers={"Host": "web.example.com"})
                answer = connection.getresponse()
                text = answer.read()
                if answer.status == 200 and text in (b"one", b"two"):
                    self.good += 1
                else:
                    self.bad.append((_now(), answer.status, text[:60]))
            except (OSError, http.client.HTTPException) as error:
                self.bad.append((_now(), repr(error)))
            if connection is not None and not self._keep_alive:
                connection.close()
                connection = None
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            time.sleep(0.003)
        if connection is not None:
            connection.close()


def _now():
    return f"{dt.datetime.now(dt.UTC):%H:%M:%S.%f}"


@contextlib.contextmanager
def at_work(*threads):
    for one in threads:
        one.start()
    try:
        yield
    finally:
        for one in threads:
            one.stopping.set()
        for one in threads:
            one.join(10)


@pytest.mark.needs("nginx")
@pytest.mark.timeout(60 + 6 * KILLS)
def test_kill_9_under_load_loses_nothing_and_nobody_notices(make_agent, upstream):
    agent = make_agent(balancer=True).start()
    for name in ("one", "two"):
        agent.register("web", ID=name, port=upstream(name).port, Tags=["http"])
    agent.eventually(lambda: agent.balanced("web.example.com")[0], 200)
    master = agent.nginx_master()
    writers = [Writer(agent.http, f"w{n}") for n in range(WRITERS)]
    visitors = [Visitor(agent, keep_alive=True), Visitor(agent, keep_alive=False)]
    rng = random.Random(7)
    with at_work(*visitors):
        for round_number in range(KILLS):
            with at_work(*writers):
                time.sleep(rng.uniform(0.3, 1.2))
                agent.kill()
                dead_at = {one: one.good for one in visitors}
                time.sleep(0.3)
                assert all(one.good > dead_at[one] for one in visitors)
            agent.start()
            for one in writers:
                one.check(agent)
            assert set(agent.health("web")) == {"one", "two"}
            # The dead can be written to no more; the next round goes on where it stopped.
            renewed = [Writer(agent.http, f"w{n}r{round_number}") for n in range(WRITERS)]
            writers = renewed
        agent.eventually(lambda: "adopt" in agent.this_log().decode(), within_s=10)
    assert agent.nginx_master() == master, "nginx was restarted instead of adopted"
    for one in visitors:
        assert one.bad == [], agent.tail() + _errors(agent)[-3000:]
        assert one.good > 100
        assert one.slowest_s < 2
    assert agent.this_log().count(b"Traceback") == 0


@pytest.mark.needs("nginx", "ip")
def test_a_full_disk_refuses_writes_and_nothing_else(make_agent, upstream, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0755", "none", str(disk)],
        check=True, timeout=10,
    )  # fmt: skip
    try:
        agent = make_agent(balancer=True, data=disk / "d").start()
        agent.register("web", ID="one", port=upstream("one").port, Tags=["http"])
        agent.eventually(lambda: agent.balanced("web.example.com"), (200, "one"))
        agent.put("/v1/kv/before", b"full")

        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        status, text = _until_refused(agent)
        assert status == 500
        assert b"full" in text or b"space" in text, text
        assert text.strip()
        # A second try says the same, and nothing of it is there.
        assert agent.call("PUT", "/v1/kv/never", b"x" * 100_000)[0] == 500
        assert agent.call("GET", "/v1/kv/never")[0] == 404
        assert agent.call("GET", "/v1/kv/before?raw") == (200, b"full")
        assert agent.dig("web.service.consul") == ["127.0.0.1"]
        assert agent.balanced("web.example.com") == (200, "one")
        pid = agent.pid

        (disk / "filler").unlink()
        agent.eventually(lambda: agent.call("PUT", "/v1/kv/after", b"x" * 100_000)[0], 200)
        agent.register("web", ID="two", port=upstream("two").port, Tags=["http"])
        agent.eventually(lambda: "two" in {agent.balanced("web.example.com")[1] for _ in range(4)})
        assert agent.pid == pid
        assert agent.alive
        assert agent.terminate() == 0
        agent.start()
        assert len(agent.call("GET", "/v1/kv/after?raw")[1]) == 100_000
        assert agent.terminate() == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=10)


def _until_refused(agent):
    for n in range(200):
        status, text = agent.call("PUT", f"/v1/kv/fill/{n}", b"x" * 200_000)
        if status != 200:
            return status, text
    raise AssertionError("the disk never got full")


@pytest.mark.needs("nginx")
def test_a_dead_nginx_is_started_again(make_agent, upstream):
    agent = make_agent(balancer=True).start()
    agent.register("web", port=upstream("one").port, Tags=["http"])
    agent.eventually(lambda: agent.balanced("web.example.com"), (200, "one"))
    for number in (signal.SIGKILL, signal.SIGTERM):
        master = agent.nginx_master()
        os.kill(master, number)
        agent.eventually(lambda before=master: agent.nginx_master() not in (0, before), within_s=15)
        agent.eventually(lambda: agent.balanced("web.example.com"), (200, "one"))
    assert agent.get("/v1/catalog/services")["web"] == ["http"]


@pytest.mark.needs("nginx")
def test_a_flood_of_changes_costs_few_reloads(make_agent, upstream):
    agent = make_agent(balancer=True).start()
    servers = [upstream(f"u{n}") for n in range(4)]
    names = [f"svc{n}" for n in range(10)]
    agent.register("web", port=servers[0].port, Tags=["http"])
    agent.eventually(lambda: agent.balanced("web.example.com"), (200, "u0"))
    before = agent.log().count("nginx reloaded")
    rng = random.Random(11)
    wanted = {}
    began = time.monotonic()
    for change in range(100):
        name, number = rng.choice(names), rng.randrange(4)
        ident = f"{name}-{number}"
        if (name, number) in wanted:
            agent.put(f"/v1/agent/service/deregister/{ident}")
            del wanted[name, number]
        else:
            agent.register(name, ID=ident, port=servers[number].port, Tags=["http"])
            wanted[name, number] = True
        time.sleep(max(0.0, began + change * 0.02 - time.monotonic()))
    took_s = time.monotonic() - began
    assert took_s < 10

    def served(name):
        return {agent.balanced(f"{name}.example.com")[1] for _ in range(12)}

    for name in names:
        right = {f"u{number}" for of, number in wanted if of == name}
        if right:
            agent.eventually(lambda n=name: served(n), right)
    reloads = agent.log().count("nginx reloaded") - before
    assert reloads >= 1
    assert reloads <= took_s + 3, f"{reloads} reloads in {took_s:.1f} s"


def _errors(agent):
    log = agent.data / "nginx/logs/error.log"
    return log.read_text(errors="replace") if log.exists() else ""


@pytest.mark.needs("docker", "nginx")
@pytest.mark.timeout(120)
def test_the_docker_engine_restarts(make_agent, engine):
    agent = make_agent(balancer=True, docker=engine.host).start()
    start = [
        "run", "-d", "-P", "--restart=always", "-l", "SERVICE_NAME=tcp", "-l", "SERVICE_TAGS=x",
        "waypost/tcpfront:v1.0.0",
    ]  # fmt: skip
    engine.docker(*start)
    agent.eventually(lambda: len(agent.health("tcp")), 1)
    engine.stop()
    agent.eventually(lambda: "tcp" not in agent.get("/v1/catalog/services"), within_s=20)
    engine.start()
    engine.docker(*start)
    agent.eventually(lambda: len(agent.health("tcp")), 2, within_s=20)
    engine.kill()
    time.sleep(0.5)
    assert agent.get("/v1/status/leader")
    engine.start()
    engine.remove_all()
    agent.eventually(lambda: agent.get("/v1/catalog/services"), {"consul": []}, within_s=20)
    assert agent.alive
