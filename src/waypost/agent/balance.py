"""From the catalog to the balancer's picture: which services, which instances, and from when on.

An instance gets requests unless a check of it or of its node is critical, or one of them is in maintenance. A container
that has just started is in the catalog at once, but its program is not listening yet, and Docker's own proxy takes
connections in its name only to drop them. So a container's instance without a check of its own is first asked whether
somebody is there: a connection that stays open for a moment. Who is in the picture stays until the catalog drops it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

import msgspec

from waypost.drivers.nginx.backends import Backend, Feed, from_catalog
from waypost.model.catalog import CRITICAL, MAINTENANCE, Service, fold
from waypost.state.view import Instance, View

log = logging.getLogger(__name__)

_BALANCED_TAGS = frozenset({"http", "https", "tcp"})
_BALANCED_META = ("http_", "tcp_", "lb_")
_PERIOD_S: Final = 0.02
_OPEN_S: Final = 0.02
"""Docker's proxy drops a connection that nobody takes within a few milliseconds."""
_PATIENCE_S: Final = 15.0
"""After that the instance is taken anyway: the balancer's own retries go around one that does not answer."""


def is_balanced(service: Service) -> bool:
    """Return whether the balancer may have something to do with an instance."""
    if not _BALANCED_TAGS.isdisjoint(service.tags):
        return True
    return any(key.startswith(_BALANCED_META) for key in service.meta or ())


class Endpoint(msgspec.Struct, frozen=True):
    """Where one instance is; a new address or port is another endpoint."""

    node: str
    service_id: str
    address: str
    port: int
    create_index: int


def endpoint(instance: Instance) -> Endpoint:
    """Return where an instance is."""
    service = instance.service
    return Endpoint(service.node, service.id, instance.address, service.port, service.create_index)


def wants_proof(instance: Instance, *, node: str) -> bool:
    """Return whether an instance has to show that somebody listens before it gets requests."""
    service = instance.service
    return (
        service.owner == "docker"
        and fold(service.node) == fold(node)
        and service.port > 0
        and not any(check.service_id for check in instance.checks)
    )


class BalancerFeed:
    """Publishes the picture whenever something that may concern it changes."""

    def __init__(self, view: View, feed: Feed, *, node: str) -> None:
        self._view = view
        self._feed = feed
        self._node = node
        self._proven: set[Endpoint] = set()
        self._asking: dict[Endpoint, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Feed the balancer until cancelled."""
        # What was balanced before this agent started is not taken out to be asked.
        self._proven.update(endpoint(one) for one in self._balanced())
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._ask(tasks)
                self._publish()
                await self._view.topics.wait(
                    [("services",), ("nodes",), ("checks", "any")], at_most_s=600.0
                )

    def _balanced(self) -> list[Instance]:
        found: list[Instance] = []
        for name in self._view.service_names():
            instances = self._view.instances(name)
            if any(is_balanced(instance.service) for instance in instances):
                found.extend(instances)
        return found

    def _ask(self, tasks: asyncio.TaskGroup) -> None:
        wanted = {endpoint(one) for one in self._balanced() if wants_proof(one, node=self._node)}
        # One that was shown before it was stored is the same once it is.
        self._proven.update(
            one for one in wanted if msgspec.structs.replace(one, create_index=0) in self._proven
        )
        self._proven &= wanted
        for gone in self._asking.keys() - wanted:
            self._asking.pop(gone).cancel()
        for new in wanted - self._proven - self._asking.keys():
            self._asking[new] = tasks.create_task(self._prove(new), name=f"ready {new.service_id}")

    async def _prove(self, wanted: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE_S
        while not await somebody_listens(wanted.address, wanted.port):
            if loop.time() > deadline:
                log.warning(
                    "%s does not answer on %s:%d; the balancer takes it all the same",
                    wanted.service_id,
                    wanted.address,
                    wanted.port,
                )
                break
            await asyncio.sleep(_PERIOD_S)
        self._asking.pop(wanted, None)
        self._proven.add(wanted)
        self._publish()

    def _publish(self) -> None:
        self._feed.publish(self.picture())

    def picture(self) -> tuple[Backend, ...]:
        """Return what the balancer has to serve now."""
        services: list[Service] = []
        usable: dict[tuple[str, str], bool] = {}
        addresses: dict[str, str] = {}
        for instance in self._balanced():
            service = instance.service
            services.append(service)
            usable[service.node, service.id] = instance.status not in (CRITICAL, MAINTENANCE) and (
                not wants_proof(instance, node=self._node) or endpoint(instance) in self._proven
            )
            addresses[fold(service.node)] = instance.node.address
        return from_catalog(services, healthy=usable, node_addresses=addresses)


async def somebody_listens(address: str, port: int) -> bool:
    """Return whether a connection is taken and stays open for a moment."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    try:
        async with asyncio.timeout(_OPEN_S):
            # A service that speaks first is there; an end means that nobody took the connection.
            return bool(await reader.read(1))
    except TimeoutError:
        return True
    except OSError:
        return False
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
