"""A real agent process for unmodified clients of Consul."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest


def free_ports(count):
    """Return ports of the loopback that were free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Agent:
    """A running agent."""

    def __init__(self, port, process, log):
        self.port = port
        self.process = process
        self.log = log
        self.address = f"127.0.0.1:{port}"

    def send(self, method, path, body=None, timeout_s=20):
        """Send a request; return status, headers, body."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def json(self, path, timeout_s=20):
        """Return what a GET answers."""
        status, _, body = self.send("GET", path, timeout_s=timeout_s)
        assert status == 200, (status, body)
        return json.loads(body)

    def put(self, path, body=None):
        """Send a PUT that must succeed; return its body."""
        status, _, answer = self.send("PUT", path, body if body is not None else b"")
        assert status == 200, (status, answer)
        return answer


@contextmanager
def running_agent(folder, *flags, port=None):
    """Start `waypost agent` in `folder` and yield it once it answers."""
    http, server = free_ports(2)
    port = port or http
    config = folder / "agent.json"
    config.write_text(
        json.dumps(
            {
                "ports": {"http": port, "dns": -1, "server": server},
                "balancer": {"enabled": False},
                "docker": {"enabled": False},
            }
        )
    )
    command = [sys.executable, "-m", "waypost", "agent", f"-config-file={config}", "-node=n1"]
    log = folder / "log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, "-bind=127.0.0.1", *flags], stdout=out, stderr=out, env=dict(os.environ)
        )
    agent = Agent(port, process, log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                if agent.json("/v1/catalog/service/consul"):
                    break
            except (OSError, AssertionError):
                pass
            if time.monotonic() > deadline or process.poll() is not None:
                pytest.fail("the agent did not start:\n" + log.read_text(errors="replace"))
            time.sleep(0.05)
        yield agent
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """An agent in dev mode, one a module."""
    with running_agent(tmp_path_factory.mktemp("agent"), "-dev") as running:
        yield running
