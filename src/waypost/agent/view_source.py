"""The data of templates straight from this agent's view: no request, no copy, woken by exactly what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from waypost.base.clock import Clock
from waypost.base.errors import NotFound, Rejected
from waypost.domain.blocking import wait_past
from waypost.drivers.render import dependency as ask
from waypost.drivers.render import records
from waypost.drivers.render.dependency import Dependency
from waypost.drivers.render.file_source import FileSource
from waypost.drivers.render.source import Fetched
from waypost.model.catalog import fold
from waypost.state.topics import Topic
from waypost.state.view import View


class ViewSource:
    """Answers dependencies from the view, and files from this machine."""

    def __init__(self, view: View, *, node: str, datacenter: str, clock: Clock) -> None:
        self._view = view
        self._node = node
        self._datacenter = datacenter
        self._clock = clock
        self._files = FileSource(clock=clock)

    async def fetch(self, dependency: Dependency, *, index: int, wait_s: float) -> Fetched:
        """Return the value past `index`. Raises NotFound, Rejected for another datacenter."""
        if isinstance(dependency, ask.FileDependency):
            return await self._files.fetch(dependency, index=index, wait_s=wait_s)
        if dependency.datacenter not in ("", self._datacenter):
            raise Rejected("No path to datacenter")
        topics, read = self._question(dependency)
        now: Callable[[], float] = self._clock.now
        if index:
            await wait_past(self._view, topics, index=index, at_most_s=wait_s, now=now)
        # No await between the two: index and value are of one moment.
        return Fetched(max(self._view.index(topic) for topic in topics), read())

    def _question(self, dependency: Dependency) -> tuple[Sequence[Topic], Callable[[], Any]]:
        view = self._view
        match dependency:
            case ask.ServiceDependency(name=name):
                return [("health", fold(name))], lambda: self._service(dependency)
            case ask.ServicesDependency():
                return [("services",)], lambda: records.snippets(view.services())
            case ask.NodesDependency():
                return [("nodes",)], self._nodes
            case ask.NodeDependency(name=name):
                wanted = name or self._node
                return [("node", fold(wanted))], lambda: self._catalog_node(wanted)
            case ask.KeyDependency(key=key):
                return [("kv", key)], lambda: self._value(key)
            case ask.KeyExistsDependency(key=key):
                return [("kv", key)], lambda: view.kv(key) is not None
            case ask.PrefixDependency(prefix=prefix):
                return [("prefix", prefix)], lambda: tuple(
                    records.key_pair(entry, prefix=prefix) for entry in view.kv_below(prefix)
                )
            case ask.DatacentersDependency():
                # Never changes while the agent runs.
                return [("datacenters",)], lambda: (self._datacenter,)
            case _:
                msg = f"{dependency} cannot be had"
                raise NotFound(msg)

    def _service(self, dependency: ask.ServiceDependency) -> Any:
        found = (
            records.health_service(instance.node, instance.service, list(instance.checks))
            for instance in self._view.instances(dependency.name)
            if not dependency.tag
            or dependency.tag.lower() in (tag.lower() for tag in instance.service.tags)
        )
        return records.select(found, filters=dependency.filters, keep_order=False)

    def _nodes(self) -> Any:
        found = [records.node_record(node) for node in self._view.nodes()]
        return tuple(sorted(found, key=lambda each: (each.node, each.address)))

    def _catalog_node(self, name: str) -> Any:
        services = self._view.node_services(name).values()
        return records.catalog_node(self._view.node(name), services)

    def _value(self, key: str) -> str | None:
        entry = self._view.kv(key)
        return None if entry is None else entry.value.decode("utf-8", "surrogateescape")
