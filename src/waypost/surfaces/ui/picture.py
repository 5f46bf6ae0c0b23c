"""What the page shows, as one JSON document. Pure: view → picture.

The page gets the whole picture at once and again whenever something changed; for the catalogs of a handful of machines
that is a few tens of kilobytes, and no page can be out of step with a lost difference.
"""

from __future__ import annotations

import msgspec

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
    """One machine."""

    name: str
    address: str
    id: str
    status: str
    services: int


class Picture(msgspec.Struct, frozen=True):
    """The whole page."""

    revision: int
    node: str
    datacenter: str
    version: str
    services: tuple[ServicePicture, ...]
    nodes: tuple[NodePicture, ...]


_OUTPUT_CHARS = 500


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
        checks=tuple(
            CheckPicture(
                id=check.check_id,
                name=check.name,
                status=check.status,
                output=(check.output or check.notes)[:_OUTPUT_CHARS],
            )
            for check in instance.checks
        ),
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


def draw(view: View, *, node: str, datacenter: str, version: str) -> Picture:
    """Return the picture of this moment, services and nodes by name."""
    services = (_service(view, name) for name in view.service_names())
    nodes = (
        NodePicture(
            name=one.node,
            address=one.address,
            id=one.id,
            status=aggregated_status(
                check for check in view.node_checks(one.node).values() if not check.service_id
            ),
            services=len(view.node_services(one.node)),
        )
        for one in view.nodes()
    )
    return Picture(
        revision=view.revision,
        node=node,
        datacenter=datacenter,
        version=version,
        services=tuple(one for one in services if one is not None),
        nodes=tuple(nodes),
    )
