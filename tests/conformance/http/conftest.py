"""A real agent process, as it was recorded: `agent -dev -node rec1`."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest


def free_ports(count):
    """Return ports of the loopback that were free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def answers(port):
    """Return whether an agent on `port` has its own node in the catalog."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/catalog/service/consul") as answer:
            return bool(json.load(answer))
    except OSError:
        return False


@pytest.fixture(scope="session")
def dev_api(tmp_path_factory):
    """Port of an agent in dev mode: indented JSON, nothing kept."""
    folder = tmp_path_factory.mktemp("agent")
    http, server = free_ports(2)
    config = {
        "ports": {"http": http, "dns": -1, "server": server},
        "balancer": {"enabled": False},
        "docker": {"enabled": False},
    }
    (folder / "agent.json").write_text(json.dumps(config))
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "waypost", "agent", "-dev", "-node=rec1", "-datacenter=dc1",
                "-bind=127.0.0.1", f"-config-file={folder / 'agent.json'}",
            ],
            stdout=out,
            stderr=out,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not answers(http):
            if time.monotonic() > deadline or process.poll() is not None:
                pytest.fail("the agent did not start:\n" + log.read_text(errors="replace"))
            time.sleep(0.05)
        yield http
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
