"""What the page shows, as one JSON document. Pure: view → picture.

The page gets the whole picture at once and again whenever something changed; for the catalogs of a handful of machines
that is a few tens of kilobytes, and no page can be out of step with a lost difference.
"""

from __future__ import annotations

import msgspec

from waypost.domain.agent import CONSUL_SERVICE
from waypost.model.catalog import Check, Node
from waypost.state.view import Instance, View, aggregated_status


class CheckPicture(msgspec.Struct, frozen=True):
    """One check."""

    id: str
    name: str
    status: str
    output: str


class InstancePicture(msgspec.Struct, frozen=True):
    """One instance with its checks."""

    id: str
    node: str
    address: str
    port: int
    status: str
    owner: str
    tags: tuple[str, ...]
    meta: dict[str, str]
    checks: tuple[CheckPicture, ...]


class ServicePicture(msgspec.Struct, frozen=True):
    """One service: how many instances are in which state, and each of them."""

    name: str
    tags: tuple[str, ...]
    counts: dict[str, int]
    instances: tuple[InstancePicture, ...]


class NodePicture(msgspec.Struct, frozen=True):
    """One machine with its own checks, those of no service."""

    name: str
    address: str
    id: str
    status: str
    services: int
    is_server: bool
    meta: dict[str, str]
    checks: tuple[CheckPicture, ...]


class LeaderPicture(msgspec.Struct, frozen=True):
    """Who leads, as far as this agent knows. Nobody may change anything while `is_known` is false."""

    is_known: bool
    address: str
    """`host:port` of the leading server; empty when nobody leads, and on an agent that is alone."""


class Picture(msgspec.Struct, frozen=True):
    """The whole page."""

    revision: int
    node: str
    datacenter: str
    version: str
    leader: LeaderPicture
    services: tuple[ServicePicture, ...]
    nodes: tuple[NodePicture, ...]


_OUTPUT_CHARS = 500


def _check(check: Check) -> CheckPicture:
    return CheckPicture(
        id=check.check_id,
        name=check.name,
        status=check.status,
        output=(check.output or check.notes)[:_OUTPUT_CHARS],
    )


def _instance(instance: Instance) -> InstancePicture:
    service = instance.service
    return InstancePicture(
        id=service.id,
        node=instance.node.node,
        address=instance.address,
        port=service.port,
        status=instance.status,
        owner=service.owner,
        tags=service.tags,
        meta=service.meta or {},
        checks=tuple(_check(one) for one in instance.checks),
    )


def _service(view: View, folded: str) -> ServicePicture | None:
    found = view.instances(folded)
    if not found:
        return None
    instances = tuple(_instance(one) for one in found)
    counts = {"passing": 0, "warning": 0, "critical": 0, "maintenance": 0}
    for one in instances:
        counts[one.status] = counts.get(one.status, 0) + 1
    tags = sorted({tag for one in instances for tag in one.tags})
    return ServicePicture(found[0].service.name, tuple(tags), counts, instances)


def _node(view: View, node: Node) -> NodePicture:
    checks = [one for one in view.node_checks(node.node).values() if not one.service_id]
    services = view.node_services(node.node)
    return NodePicture(
        name=node.node,
        address=node.address,
        id=node.id,
        status=aggregated_status(checks),
        services=len(services),
        is_server=CONSUL_SERVICE in services,
        meta=node.meta or {},
        checks=tuple(_check(one) for one in checks),
    )


def draw(view: View, *, node: str, datacenter: str, version: str, leader: LeaderPicture) -> Picture:
    """Return the picture of this moment, services and nodes by name."""
    services = (_service(view, name) for name in view.service_names())
    return Picture(
        revision=view.revision,
        node=node,
        datacenter=datacenter,
        version=version,
        leader=leader,
        services=tuple(one for one in services if one is not None),
        nodes=tuple(_node(view, one) for one in view.nodes()),
    )
