"""A real Consul agent, and the two programs to ask it with.

`agent_address` is parametrised by what runs behind the address, so that another agent is compared by adding a line.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Result(NamedTuple):
    """What a program did."""

    status: int
    out: bytes
    err: str


class Agent(NamedTuple):
    """A running agent."""

    address: str
    serf_port: int
    kind: str


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that were free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return ports


def start_consul(directory: Path) -> tuple[subprocess.Popen[bytes], Agent]:
    """Start `consul agent -dev` on free ports and wait until it has a leader and its own catalog entry."""
    http, server, lan, wan = free_ports(4)
    command = [
        "consul", "agent", "-dev", "-node=n1", "-bind=127.0.0.1", f"-http-port={http}", "-dns-port=-1",
        "-grpc-port=-1", f"-server-port={server}", f"-serf-lan-port={lan}", f"-serf-wan-port={wan}",
        "-log-level=WARN",
    ]  # fmt: skip
    return _start(command, Agent(f"127.0.0.1:{http}", lan, "consul"), directory)


def start_waypost(directory: Path) -> tuple[subprocess.Popen[bytes], Agent]:
    """Start our own agent in the same way, so that both programs are compared against it as well."""
    http, server, lan, wan = free_ports(4)
    command = [
        sys.executable, "-m", "waypost", "agent", "-dev", "-node=n1", "-bind=127.0.0.1", f"-http-port={http}",
        "-dns-port=-1", f"-server-port={server}", "-docker=off", "-balancer=off", "-log-level=WARN",
        "-hcl", f"ports {{ serf_lan = {lan} serf_wan = {wan} }}",
    ]  # fmt: skip
    return _start(command, Agent(f"127.0.0.1:{http}", lan, "waypost"), directory)


def _start(
    command: list[str], agent: Agent, directory: Path
) -> tuple[subprocess.Popen[bytes], Agent]:
    path = directory / "agent.log"
    log = path.open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    log.close()
    address = agent.address
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(
                f"http://{address}/v1/catalog/node/n1", timeout=2
            ) as answer:
                if b'"consul"' in answer.read():
                    return process, agent
        except OSError:
            pass
        time.sleep(0.1)
    process.kill()
    process.wait()
    pytest.fail(path.read_text())


@pytest.fixture(scope="module", params=["consul", "waypost"])
def agent(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Agent]:
    """An agent to compare the two programs against."""
    if shutil.which("consul") is None:
        pytest.skip("consul is not installed")
    start = {"consul": start_consul, "waypost": start_waypost}[request.param]
    process, running = start(tmp_path_factory.mktemp(request.param))
    yield running
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


Ask = Callable[..., Result]


def _asker(program: list[str], agent: Agent, directory: Path) -> Ask:
    def ask(
        *args: str, stdin: bytes = b"", env: dict[str, str] | None = None, timeout: float = 20
    ) -> Result:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("CONSUL_", "WAYPOST_"))}
        done = subprocess.run(
            [*program, *args],
            input=stdin,
            capture_output=True,
            env={**clean, "CONSUL_HTTP_ADDR": agent.address, **(env or {})},
            cwd=directory,
            timeout=timeout,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    return ask


@pytest.fixture
def waypost(agent: Agent, tmp_path: Path) -> Ask:
    """Run our program against the agent."""
    return _asker([sys.executable, "-m", "waypost.cli.main"], agent, tmp_path)


@pytest.fixture
def consul(agent: Agent, tmp_path: Path) -> Ask:
    """Run Consul's program against the agent."""
    return _asker(["consul"], agent, tmp_path)


_CHANGING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|(?<=goroutines = )\d+|(?<=_index = )\d+|(?<=_time = )\d+|(?<=event_queue = )\d+"
    r"|(?<=CreateIndex      )\d+|(?<=ModifyIndex      )\d+|(?<=Index\": )\d+"
)


def settled(text: bytes | str) -> str:
    """Return a text without what differs from one call to the next: ids, indexes, counters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return _CHANGING.sub("#", text)
