"""The agent's figures in Prometheus' words. Loaded by the first scrape.

Names and units follow Prometheus' conventions: `waypost_` in front, base units, `_total` for what only grows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from waypost.domain.cluster import ClusterView
from waypost.drivers.nginx.driver import Status as BalancerStatus
from waypost.state.view import View, aggregated_status

_STATUSES: Final = ("passing", "warning", "critical", "maintenance")


class Traffic(msgspec.Struct, frozen=True):
    """What the HTTP server did so far, on all its ports."""

    answers: Mapping[int, int]
    """Status code → number of answers."""
    connections: int
    """Open now."""


class Vitals(Collector):
    """Reads the parts of an agent when it is asked."""

    def __init__(
        self,
        view: View,
        *,
        node: str,
        datacenter: str,
        version: str,
        cluster: ClusterView | None,
        traffic: Callable[[], Traffic],
        balancer: Callable[[], BalancerStatus | None],
    ) -> None:
        """Without a `cluster` this agent is alone and always leads."""
        self._view = view
        self._info = {"version": version, "node": node, "datacenter": datacenter}
        self._cluster = cluster
        self._traffic = traffic
        self._balancer = balancer

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of this moment."""
        build = GaugeMetricFamily(
            "waypost_build_info",
            "Version, node and datacenter of this agent.",
            labels=list(self._info),
        )
        build.add_metric(list(self._info.values()), 1)
        yield build
        yield from self._leading()
        yield _gauge(
            "provisional_records",
            "Nodes, services and checks that are shown on this machine alone until the store takes writes.",
            len(self._view.covered),
        )
        yield from self._catalog()
        yield from self._http()
        balancer = self._balancer()
        if balancer is not None:
            yield from _balancing(balancer)

    def _leading(self) -> Iterator[Metric]:
        cluster = self._cluster
        knows, leads, heard_s = True, True, 0.0
        if cluster is not None:
            knows, leads, heard_s = (
                cluster.knows_leader,
                cluster.is_leader,
                cluster.last_contact_s(),
            )
        yield _gauge(
            "leader_known",
            "1 while the cluster has a leader; without one the last state is served.",
            knows,
        )
        yield _gauge("leader", "1 on the server that leads.", leads)
        if math.isfinite(heard_s):
            yield _gauge(
                "leader_last_contact_seconds",
                "Since this agent last heard of the leader; 0 on the leader.",
                heard_s,
            )
        yield _gauge(
            "store_revision", "Revision of the store that this agent has seen.", self._view.revision
        )

    def _catalog(self) -> Iterator[Metric]:
        view = self._view
        nodes = Counter(
            aggregated_status(
                check for check in view.node_checks(node.node).values() if not check.service_id
            )
            for node in view.nodes()
        )
        yield _labelled(
            "catalog_nodes", "Machines by the state of their own checks.", ("status",), _each(nodes)
        )
        instances = GaugeMetricFamily(
            "waypost_service_instances",
            "Instances of a service by state.",
            labels=("service", "status"),
        )
        for folded in view.service_names():
            found = view.instances(folded)
            counts = Counter(one.status for one in found)
            for status, count in _each(counts) if found else ():
                instances.add_metric([found[0].service.name, *status], count)
        yield instances
        yield _gauge("sessions", "Sessions that hold.", len(view.sessions()))
        yield _gauge(
            "topic_waiters",
            "Who waits for a change, once for each topic waited for.",
            view.topics.waiting,
        )

    def _http(self) -> Iterator[Metric]:
        traffic = self._traffic()
        answers = CounterMetricFamily(
            "waypost_http_responses", "Answers by status code.", labels=("code",)
        )
        for code, count in sorted(traffic.answers.items()):
            answers.add_metric([str(code)], count)
        yield answers
        yield _gauge("http_connections", "Open HTTP connections.", traffic.connections)


def _balancing(status: BalancerStatus) -> Iterator[Metric]:
    yield _labelled(
        "balancer_state",
        "1 for the state that the balancer is in.",
        ("state",),
        [((status.state,), 1)],
    )
    yield _gauge("balancer_services", "Services that nginx serves.", status.services)
    yield _gauge(
        "balancer_workers", "Worker processes of nginx that are there.", len(status.worker_pids)
    )
    yield _count("balancer_reloads", "Reloads of nginx.", status.reloads)
    yield _count("balancer_starts", "Starts of nginx.", status.starts)
    yield _labelled(
        "balancer_refused_services",
        "Services that did not get what they asked for, by who refused it.",
        ("by",),
        [(("waypost",), len(status.problems)), (("nginx",), len(status.quarantined))],
    )


def _each(counts: Mapping[str, int]) -> Iterable[tuple[tuple[str, ...], float]]:
    """Return all states, also those that nobody is in: an alert needs the zero."""
    return [((status,), counts.get(status, 0)) for status in _STATUSES]


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"waypost_{name}", words, value=float(value))


def _count(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(f"waypost_{name}", words, value=float(value))


def _labelled(
    name: str,
    words: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:
    family = GaugeMetricFamily(f"waypost_{name}", words, labels=labels)
    for values, value in samples:
        family.add_metric(list(values), value)
    return family
