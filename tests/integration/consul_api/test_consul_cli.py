"""The real `consul` command, unmodified, against our agent."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.needs("consul")


@pytest.fixture
def consul(agent):
    def run(*words, stdin=None, status=0):
        done = subprocess.run(
            ["consul", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "CONSUL_HTTP_ADDR": agent.address},
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    return run


def test_members(consul):
    header, row = consul("members").splitlines()
    assert header.split() == [
        "Node",
        "Address",
        "Status",
        "Type",
        "Build",
        "Protocol",
        "DC",
        "Segment",
    ]
    assert row.split() == ["n1", "127.0.0.1:8301", "alive", "server", "1.8.7", "2", "dc1", "<all>"]


def test_catalog(consul):
    assert consul("catalog", "services").split() == ["consul"]
    assert consul("catalog", "datacenters").split() == ["dc1"]
    assert "n1" in consul("catalog", "nodes", "-service=consul")


def test_kv(consul):
    assert consul("kv", "put", "app/x", "1") == "Success! Data written to: app/x\n"
    assert consul("kv", "get", "app/x") == "1\n"
    consul("kv", "put", "app/y/z", "-", stdin="from stdin")
    assert consul("kv", "get", "-keys", "app/") == "app/x\napp/y/\n"
    assert consul("kv", "get", "-recurse", "app") == "app/x:1\napp/y/z:from stdin\n"
    assert "Flags" in consul("kv", "get", "-detailed", "app/x")
    exported = consul("kv", "export", "app/")
    consul("kv", "delete", "-recurse", "app/")
    consul("kv", "get", "app/x", status=1)
    assert "Imported: app/x" in consul("kv", "import", exported)
    assert consul("kv", "get", "app/y/z") == "from stdin\n"


def test_services(consul, agent, tmp_path):
    definition = tmp_path / "web.hcl"
    definition.write_text(
        'service { name = "web" port = 80 check { ttl = "1m" status = "passing" } }'
    )
    assert consul("services", "register", str(definition)) == "Registered service: web\n"
    assert agent.json("/v1/catalog/service/web")[0]["ServicePort"] == 80
    consul("services", "deregister", "-id=web")
    assert agent.json("/v1/catalog/service/web") == []


def test_maint_info_operator_and_event(consul):
    consul("maint", "-enable", "-reason=night")
    assert "night" in consul("maint")
    consul("maint", "-disable")
    assert "server = true" in consul("info")
    assert "leader" in consul("operator", "raft", "list-peers")
    assert "CleanupDeadServers = true" in consul("operator", "autopilot", "get-config")
    assert consul("event", "-name=deploy", "now").startswith("Event ID: ")


def test_lock_runs_its_child_alone(consul, agent):
    assert "locked" in consul("lock", "locks/build", "echo locked")
    assert agent.json("/v1/kv/?keys") is not None
    assert agent.send("GET", "/v1/kv/locks/build/.lock")[0] == 404


def test_watch_sees_a_change(agent, tmp_path):
    seen = tmp_path / "seen"
    watch = subprocess.Popen(
        [
            "consul",
            "watch",
            f"-http-addr={agent.address}",
            "-type=key",
            "-key=watched",
            f"cat >> {seen}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.5)
        agent.put("/v1/kv/watched", b"hello")
        deadline = time.monotonic() + 10
        while not (seen.exists() and "aGVsbG8=" in seen.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        watch.send_signal(signal.SIGINT)
        watch.wait(10)
