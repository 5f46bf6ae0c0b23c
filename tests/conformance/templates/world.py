"""The catalog the cases were recorded with, as a Source: what the registrations in catalog.json amount to."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from waypost.base.errors import Rejected
from waypost.drivers.render import dependency as ask
from waypost.drivers.render import records
from waypost.drivers.render.dependency import Dependency
from waypost.drivers.render.source import Fetched
from waypost.model.catalog import Check, Node, Service, Weights
from waypost.model.kv import KVEntry

DATA = Path(__file__).parent / "data"


class World:
    """A fixed catalog. Every index is 1; asking past it waits."""

    def __init__(self, catalog: dict[str, Any]) -> None:
        own = catalog["consul"]
        self.own = own["node"]
        self.datacenter = own["datacenter"]
        self.nodes: dict[str, Node] = {}
        self.services: list[Service] = []
        self.checks: list[Check] = []
        self._add_own(own)
        for each in catalog["nodes"]:
            self._add(each)
        self.kv = [
            KVEntry(
                key=item["key"],
                value=item["value"].encode(),
                flags=item.get("flags", 0),
                create_index=10 + place,
                modify_index=10 + place,
            )
            for place, item in enumerate(catalog["kv"])
        ]
        self.kv.sort(key=lambda entry: entry.key)

    def _add_own(self, own: dict[str, Any]) -> None:
        addresses = {"lan": "127.0.0.1", "wan": "127.0.0.1"}
        name = own["node"]
        self.nodes[name] = Node(
            node=name,
            address="127.0.0.1",
            id=own["node_id"],
            datacenter=self.datacenter,
            tagged_addresses=addresses,
            meta={"consul-network-segment": ""},
        )
        self.services.append(
            Service(node=name, id="consul", name="consul", port=own["server_port"])
        )
        self.checks.append(
            Check(node=name, check_id="serfHealth", name="Serf Health Status", status="passing")
        )

    def _add(self, each: dict[str, Any]) -> None:
        name = each["Node"]
        self.nodes[name] = Node(
            node=name,
            address=each["Address"],
            id=each["ID"],
            datacenter=self.datacenter,
            tagged_addresses=each.get("TaggedAddresses"),
            meta=each.get("Meta"),
        )
        for check in each.get("Checks", []):
            self._check(name, check, None)
        for service in each.get("Services", []):
            weights = service.get("Weights", {"Passing": 1, "Warning": 1})
            record = Service(
                node=name,
                id=service["ID"],
                name=service["Service"],
                tags=tuple(service["Tags"]),
                address=service["Address"],
                port=service["Port"],
                meta=service.get("Meta"),
                weights=Weights(passing=weights["Passing"], warning=weights["Warning"]),
            )
            self.services.append(record)
            for check in service["Checks"]:
                self._check(name, check, record)

    def _check(self, node: str, check: dict[str, Any], service: Service | None) -> None:
        self.checks.append(
            Check(
                node=node,
                check_id=check["CheckID"],
                name=check["Name"],
                status=check["Status"],
                notes=check.get("Notes", ""),
                output=check.get("Output", ""),
                service_id=service.id if service else "",
                service_name=service.name if service else "",
            )
        )

    async def fetch(self, dependency: Dependency, *, index: int, wait_s: float) -> Fetched:
        if index >= 1:
            await asyncio.sleep(wait_s)
        return Fetched(1, self.value(dependency))

    def value(self, wanted: Dependency) -> Any:
        if wanted.datacenter not in ("", self.datacenter):
            reason = "" if isinstance(wanted, ask.KeyDependency) else " (No path to datacenter)"
            raise Rejected(f"Unexpected response code: 500{reason}")
        match wanted:
            case ask.ServiceDependency():
                return self._instances(wanted)
            case ask.ServicesDependency():
                tags: dict[str, set[str]] = {}
                for service in self.services:
                    tags.setdefault(service.name, set()).update(service.tags)
                return records.snippets(tags)
            case ask.NodesDependency():
                return tuple(records.node_record(self.nodes[name]) for name in sorted(self.nodes))
            case ask.NodeDependency():
                name = wanted.name or self.own
                return records.catalog_node(
                    self.nodes.get(name), [each for each in self.services if each.node == name]
                )
            case ask.KeyDependency():
                found = [entry for entry in self.kv if entry.key == wanted.key]
                return found[0].value.decode() if found else None
            case ask.KeyExistsDependency():
                return any(entry.key == wanted.key for entry in self.kv)
            case ask.PrefixDependency():
                return tuple(
                    records.key_pair(entry, prefix=wanted.prefix)
                    for entry in self.kv
                    if entry.key.startswith(wanted.prefix)
                )
            case ask.DatacentersDependency():
                return (self.datacenter,)
            case _:
                raise AssertionError(wanted)

    def _instances(self, wanted: ask.ServiceDependency) -> tuple[records.HealthService, ...]:
        found = []
        for service in self.services:
            if service.name != wanted.name or (wanted.tag and wanted.tag not in service.tags):
                continue
            checks = [
                check
                for check in self.checks
                if check.node == service.node and check.service_id in ("", service.id)
            ]
            found.append(records.health_service(self.nodes[service.node], service, checks))
        return records.select(found, filters=wanted.filters, keep_order=bool(wanted.near))


def load() -> tuple[dict[str, Any], World]:
    catalog = json.loads((DATA / "catalog.json").read_text(encoding="utf-8"))
    return catalog, World(catalog)
