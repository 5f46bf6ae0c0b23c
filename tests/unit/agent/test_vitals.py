"""What Prometheus is told of a view, of who leads, of the traffic and of the balancer."""

import math

import pytest
from prometheus_client import CollectorRegistry

from waypost.agent.vitals import Traffic, Vitals
from waypost.drivers.nginx.driver import Problem, Status
from waypost.model.catalog import Check, Node, Service
from waypost.state.keys import put
from waypost.state.view import View
from waypost.store.engine import KeyValue

RECORDS = (
    Node(node="a", address="192.0.2.1"),
    Node(node="b", address="192.0.2.2"),
    Service(node="a", id="1", name="Web", port=80),
    Service(node="b", id="2", name="Web", port=80),
    Check(node="b", check_id="serfHealth", name="Serf Health Status", status="critical"),
)


class Leaderless:
    knows_leader = False
    is_leader = False

    def last_contact_s(self):
        return math.inf


QUIET = Traffic({}, 0)


def registry(*, cluster=None, balancer=None, traffic=QUIET):
    view = View()
    operations = [put(record) for record in RECORDS]
    view.load([KeyValue(one.key, one.value, 2, 2) for one in operations], revision=7)
    found = CollectorRegistry()
    found.register(
        Vitals(
            view, node="a", datacenter="dc1", version="1", cluster=cluster,
            traffic=lambda: traffic, balancer=lambda: balancer,
        )
    )  # fmt: skip
    return found


def value(registry, name, **labels):
    return registry.get_sample_value(f"waypost_{name}", labels)


def test_the_catalog():
    found = registry()
    assert value(found, "catalog_nodes", status="critical") == 1
    assert value(found, "catalog_nodes", status="passing") == 1
    assert value(found, "service_instances", service="Web", status="critical") == 1
    assert value(found, "service_instances", service="Web", status="passing") == 1
    assert value(found, "service_instances", service="Web", status="warning") == 0
    assert value(found, "store_revision") == 7


@pytest.mark.parametrize(("cluster", "knows", "heard"), [(None, 1, 0), (Leaderless(), 0, None)])
def test_who_leads(cluster, knows, heard):
    found = registry(cluster=cluster)
    assert value(found, "leader_known") == knows
    assert value(found, "leader") == knows
    assert value(found, "leader_last_contact_seconds") == heard


def test_traffic():
    found = registry(traffic=Traffic({200: 5, 404: 1}, 2))
    assert value(found, "http_responses_total", code="200") == 5
    assert value(found, "http_responses_total", code="404") == 1
    assert value(found, "http_connections") == 2


def test_the_balancer():
    assert value(registry(), "balancer_services") is None
    status = Status(
        state="degraded",
        services=3,
        reloads=4,
        worker_pids=(1, 2),
        quarantined=(Problem("x", "y"),),
    )
    found = registry(balancer=status)
    assert value(found, "balancer_state", state="degraded") == 1
    assert value(found, "balancer_reloads_total") == 4
    assert value(found, "balancer_workers") == 2
    assert value(found, "balancer_refused_services", by="nginx") == 1
    assert value(found, "balancer_refused_services", by="waypost") == 0
