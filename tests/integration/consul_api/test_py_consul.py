"""py-consul, unmodified, against our agent."""

from __future__ import annotations

import threading
import time

import consul
import pytest


@pytest.fixture
def client(agent):
    client = consul.Consul(host="127.0.0.1", port=agent.port)
    yield client
    client.http.session.close()


def test_kv(client):
    assert client.kv.put("app/name", "waypost", flags=3)
    _, entry = client.kv.get("app/name")
    assert (entry["Value"], entry["Flags"]) == (b"waypost", 3)
    assert not client.kv.put("app/name", "late", cas=0)
    assert client.kv.put("app/name", "newer", cas=entry["ModifyIndex"])
    client.kv.put("app/other", "x")
    _, keys = client.kv.get("app/", keys=True)
    assert keys == ["app/name", "app/other"]
    _, below = client.kv.get("app/", recurse=True)
    assert [one["Key"] for one in below] == keys
    assert client.kv.delete("app/", recurse=True)
    index, gone = client.kv.get("app/name")
    assert gone is None
    assert int(index) > 0


def test_a_blocking_read_wakes_up(client, agent):
    client.kv.put("watched", "1")
    index, _ = client.kv.get("watched")

    def change():
        time.sleep(0.3)
        agent.put("/v1/kv/watched", b"2")

    other = threading.Thread(target=change)
    other.start()
    began = time.monotonic()
    _, entry = client.kv.get("watched", index=index, wait="10s")
    other.join()
    assert entry["Value"] == b"2"
    assert 0.2 < time.monotonic() - began < 2


def test_agent_service_and_checks(client):
    assert client.agent.service.register(
        "web",
        service_id="web-1",
        address="10.0.0.9",
        port=80,
        tags=["v1"],
        check=consul.Check.ttl("30s"),
    )
    assert client.agent.services()["web-1"]["Port"] == 80
    assert client.agent.checks()["service:web-1"]["Status"] == "critical"
    _, passing = client.health.service("web", passing=True)
    assert passing == []
    assert client.agent.check.ttl_pass("service:web-1", "fine")
    _, passing = client.health.service("web", passing=True)
    assert passing[0]["Service"]["Address"] == "10.0.0.9"
    assert {c["CheckID"] for c in passing[0]["Checks"]} == {"serfHealth", "service:web-1"}
    _, nodes = client.catalog.service("web", tag="v1")
    assert nodes[0]["ServiceID"] == "web-1"
    assert client.agent.service.maintenance("web-1", "true", "upgrade")
    _, passing = client.health.service("web", passing=True)
    assert passing == []
    assert client.agent.service.maintenance("web-1", "false")
    assert client.agent.service.deregister("web-1")
    _, nodes = client.catalog.service("web")
    assert nodes == []


def test_catalog(client):
    assert client.catalog.register(
        "outside", "10.9.9.9", service={"Service": "db", "Port": 5432, "Tags": ["primary"]}
    )
    _, services = client.catalog.services()
    assert services["db"] == ["primary"]
    _, nodes = client.catalog.nodes()
    assert {node["Node"] for node in nodes} >= {"n1", "outside"}
    _, node = client.catalog.node("outside")
    assert node["Services"]["db"]["Port"] == 5432
    assert client.catalog.datacenters() == ["dc1"]
    assert client.catalog.deregister("outside")
    _, node = client.catalog.node("outside")
    assert node is None


def test_sessions_and_locks(client):
    first = client.session.create("first", ttl=10, lock_delay=0)
    second = client.session.create("second", behavior="delete", lock_delay=0)
    assert client.kv.put("lock", "a", acquire=first)
    assert not client.kv.put("lock", "b", acquire=second)
    _, entry = client.kv.get("lock")
    assert (entry["Session"], entry["LockIndex"]) == (first, 1)
    assert client.session.renew(first)["ID"] == first
    assert client.session.destroy(first)
    _, entry = client.kv.get("lock")
    assert "Session" not in entry
    assert client.kv.put("lock", "b", acquire=second)
    assert client.session.destroy(second)
    _, entry = client.kv.get("lock")
    assert entry is None
    _, sessions = client.session.list()
    assert sessions == []


def test_txn(client):
    result = client.txn.put(
        [
            {"KV": {"Verb": "set", "Key": "t/a", "Value": "MQ=="}},
            {"KV": {"Verb": "get", "Key": "t/a"}},
        ]
    )
    assert [one["KV"]["Key"] for one in result["Results"]] == ["t/a", "t/a"]


def test_events_status_and_members(client):
    event = client.event.fire("deploy", "now")
    _, events = client.event.list("deploy")
    assert events[-1]["ID"] == event["ID"]
    assert client.status.leader() == client.status.peers()[0]
    assert client.agent.members()[0]["Name"] == "n1"
    assert client.agent.self()["Config"]["NodeName"] == "n1"
    assert client.operator.raft_config()["Servers"][0]["Leader"]


def test_node_maintenance_and_checks(client):
    assert client.agent.check.register("disk", consul.Check.ttl("1m"), notes="space")
    assert client.agent.check.ttl_warn("disk", "90 %")
    _, checks = client.health.state("warning")
    assert [(c["CheckID"], c["Output"]) for c in checks] == [("disk", "90 %")]
    assert client.agent.check.deregister("disk")
    assert client.agent.maintenance("true", "night")
    _, checks = client.health.node("n1")
    assert [c["Notes"] for c in checks if c["CheckID"] == "_node_maintenance"] == ["night"]
    assert client.agent.maintenance("false")
