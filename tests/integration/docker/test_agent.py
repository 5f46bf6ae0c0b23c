"""The whole way on one machine: `docker run` … the agent … HTTP API and DNS."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rdatatype
import pytest

pytestmark = [pytest.mark.needs("docker", "busybox")]


class Agent:
    """A `waypost agent` with a data directory, on free loopback ports, that follows one engine."""

    def __init__(self, engine: Any, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self.http, self.dns = _free_port(), _free_port()
        self._config = folder / "agent.json"
        self._config.write_text(
            json.dumps(
                {
                    "data_dir": str(folder / "data"),
                    "bind_addr": "127.0.0.1",
                    "node_name": "n1",
                    "ports": {"http": self.http, "dns": self.dns},
                    "docker": {"resync": "1s"},
                    "balancer": {"enabled": False},
                }
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "import sys; from waypost.cli.main import main; sys.exit(main())",
                 "agent", "-config-file", str(self._config)],
                env=self._engine.env, stdout=log, stderr=log,
            )  # fmt: skip
        self.until(lambda: self.get("/v1/status/leader"))

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def get(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self.http}{path}"
        with urllib.request.urlopen(url, timeout=5) as got:
            return json.loads(got.read())

    def ports(self, name: str) -> list[int]:
        return [one["ServicePort"] for one in self.get(f"/v1/catalog/service/{name}")]

    def ask(self, name: str, kind: str) -> list[str]:
        answer = dns.query.udp(
            dns.message.make_query(name, kind), "127.0.0.1", port=self.dns, timeout=2
        )
        return [
            str(record)
            for rrset in answer.answer
            for record in rrset
            if rrset.rdtype == dns.rdatatype.from_text(kind)
        ]

    def until(self, condition: Callable[[], Any], within_s: float = 10) -> float:
        """Wait until the condition is true and return after how many seconds it was."""
        began = time.perf_counter()
        while True:
            with contextlib.suppress(OSError, ValueError, dns.exception.DNSException):
                if condition():
                    return time.perf_counter() - began
            if time.perf_counter() - began > within_s:
                raise AssertionError((self._folder / "log").read_text()[-4000:])
            time.sleep(0.002)


def _free_port() -> int:
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        return int(tcp.getsockname()[1])


@pytest.fixture
def agent(engine: Any, tmp_path: Path) -> Iterator[Agent]:
    one = Agent(engine, tmp_path)
    yield one
    one.stop()


def test_containers_become_services(engine: Any, agent: Agent) -> None:
    engine.run("--name", "early", "-p", f"{engine.port(0)}:80", "-l", "SERVICE_NAME=early")
    agent.start()
    agent.until(lambda: agent.ports("early") == [engine.port(0)])
    engine.run("--name", "unpublished", "-l", "SERVICE_NAME=unpublished")
    engine.run("--name", "back", "-p", f"{engine.port(1)}:80", "-l", "SERVICE_NAME=httpbackend")
    assert agent.until(lambda: agent.ports("httpbackend") == [engine.port(1)]) < 1
    agent.until(lambda: agent.ask("httpbackend.service.consul", "A") == ["127.0.0.1"])
    (srv,) = agent.ask("httpbackend.service.dc1.consul", "SRV")
    assert srv.split()[2] == str(engine.port(1))
    assert agent.ports("unpublished") == []
    engine.docker("stop", "-t", "0", "back")
    assert agent.until(lambda: agent.ports("httpbackend") == []) < 1
    agent.until(lambda: agent.ask("httpbackend.service.consul", "A") == [])

    # What happens while the agent is dead is found when it is back, and nothing else is touched.
    before = agent.get("/v1/catalog/service/early")[0]["CreateIndex"]
    engine.run("--name", "gone", "-p", f"{engine.port(2)}:80", "-l", "SERVICE_NAME=gone")
    agent.until(lambda: agent.ports("gone"))
    agent.stop()
    engine.docker("rm", "-f", "gone")
    engine.run("--name", "fresh", "-p", f"{engine.port(3)}:80", "-l", "SERVICE_NAME=fresh")
    agent.start()
    agent.until(lambda: agent.ports("fresh") and not agent.ports("gone"))
    assert agent.get("/v1/catalog/service/early")[0]["CreateIndex"] == before


def test_a_quiet_machine_writes_nothing(engine: Any, agent: Agent) -> None:
    """Resync is every second here; the index must not move."""
    engine.run(
        "--name", "web", "-p", f"{engine.port(0)}:80", "--health-cmd", "true", "--health-interval", "200ms",
        "-l", "SERVICE_TAGS=a,b", "-l", "SERVICE_REGION=eu",
    )  # fmt: skip
    agent.start()

    def state() -> Any:
        return agent.get("/v1/health/service/box?passing")

    agent.until(state)
    time.sleep(0.3)
    first = state()
    time.sleep(2.5)
    assert state() == first
    (check,) = [c for c in first[0]["Checks"] if c["ServiceID"]]
    assert check["CheckID"].startswith("docker-health:")
