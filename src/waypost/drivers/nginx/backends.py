"""What the balancer is fed with: every service with its healthy instances.

`Feed` carries the newest picture from whoever watches the catalog to the balancer. It holds one picture, not a
queue: a slow reader skips the ones in between, because only the newest matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from waypost.model.catalog import Service, fold

WEIGHT_KEY: Final = "weight"
"""Metadata key of an instance that overrides its Consul weight."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One healthy instance as nginx sees it."""

    address: str
    """An IP address; anything else is refused later, with the service named."""
    port: int
    weight: int = 1
    """Share of the requests, relative to the other instances of the service."""
    instance_id: str = ""
    node: str = ""


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """One service. With no endpoint it is known, but nobody can answer: clients get 503, not 404."""

    service: str
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = msgspec.field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()
    since: int = 0
    """When it was first registered (a create index): who is first owns a contested host name."""


class Feed:
    """Hands the newest picture of all backends to one reader.

    `publish` never blocks and keeps nothing but the newest picture. Until the first call the balancer
    touches nothing: an agent that has no catalog yet must not take an nginx that serves from under its clients.
    """

    def __init__(self) -> None:
        self._backends: tuple[Backend, ...] | None = None
        self._version = 0
        self._changed = asyncio.Event()

    @property
    def version(self) -> int:
        """Return how many pictures were published."""
        return self._version

    @property
    def backends(self) -> tuple[Backend, ...] | None:
        """Return the newest picture, or None while there was none."""
        return self._backends

    def publish(self, backends: Iterable[Backend]) -> None:
        """Replace the picture and wake the reader. An equal picture wakes nobody."""
        fresh = tuple(backends)
        if fresh == self._backends:
            return
        self._backends = fresh
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_past(self, version: int) -> int:
        """Return the version of the newest picture as soon as it is newer than `version`. Cancel-safe."""
        while self._version <= version:
            await self._changed.wait()
        return self._version


def from_catalog(
    services: Iterable[Service],
    *,
    healthy: Mapping[tuple[str, str], bool],
    node_addresses: Mapping[str, str],
) -> tuple[Backend, ...]:
    """Return the backends of catalog records, sorted by name.

    Args:
        services: All instances.
        healthy: (node, service id) → may it get requests; an instance that is missing here may not.
        node_addresses: Folded node name → its address, used where an instance has none of its own.

    A service has the tags of all its instances and the metadata of the newest one (so a redeployment with
    other labels takes effect); its age is that of its oldest instance. Instances of one address and port count once.
    """
    groups: dict[str, list[Service]] = {}
    for service in services:
        groups.setdefault(fold(service.name), []).append(service)
    return tuple(
        _backend(members, healthy=healthy, node_addresses=node_addresses)
        for _, members in sorted(groups.items())
    )


def _backend(
    members: list[Service],
    *,
    healthy: Mapping[tuple[str, str], bool],
    node_addresses: Mapping[str, str],
) -> Backend:
    members = sorted(members, key=lambda one: (one.create_index, one.node, one.id))
    usable = [one for one in members if healthy.get((one.node, one.id), False)]
    endpoints: dict[tuple[str, int], Endpoint] = {}
    for one in usable:
        address = one.address or node_addresses.get(fold(one.node), "")
        endpoints.setdefault(
            (address, one.port),
            Endpoint(
                address=address,
                port=one.port,
                weight=_weight(one),
                instance_id=one.id,
                node=one.node,
            ),
        )
    return Backend(
        service=fold(members[0].name),
        tags=tuple(dict.fromkeys(tag for one in members for tag in one.tags)),
        meta=dict((usable or members)[-1].meta or {}),
        endpoints=tuple(endpoints[key] for key in sorted(endpoints)),
        since=members[0].create_index,
    )


def _weight(service: Service) -> int:
    text = (service.meta or {}).get(WEIGHT_KEY, "")
    if text.isascii() and text.isdigit() and len(text) <= 5:
        return int(text)
    return service.weights.passing
