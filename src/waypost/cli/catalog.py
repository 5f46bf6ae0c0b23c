"""`waypost catalog`: datacenters, nodes, services."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from waypost.cli.agent_flags import DatacenterFlags, connect, no_arguments, worded
from waypost.cli.flags import Command, Group, flag, key_value, repeated
from waypost.cli.output import is_json, print_json, table

if TYPE_CHECKING:
    from waypost.client.api import CatalogNode

SUMMARY = "Look into the catalog: datacenters, nodes, services"

_SHORT_ID = 8


class CatalogFlags(DatacenterFlags):
    """Flags of every `waypost catalog` command."""

    format: str = flag("pretty", "Output format {pretty|json}")


def _datacenters(settings: CatalogFlags, args: list[str]) -> int:
    no_arguments(args)
    as_json = is_json(settings.format)
    from waypost.client import api

    with connect(settings) as client, worded("Error listing datacenters"):
        found = client.do(api.datacenters())
    if as_json:
        print_json(found)
    else:
        print("\n".join(found))
    return 0


class NodesFlags(CatalogFlags):
    """Flags of `waypost catalog nodes`."""

    detailed: bool = flag(False, "Show whole ids, tagged addresses and metadata.")
    filter: str = flag("", "Filter expression for the request.", value="expression")
    near: str = flag(
        "", 'Nearest to this node first; "_agent" means the agent\'s own.', value="node"
    )
    node_meta: tuple[tuple[str, str], ...] = repeated(
        key_value, "Only nodes with this metadata; may be given several times.", value="key=value"
    )
    service: str = flag("", "Only nodes that have an instance of this service.", value="name")


def _nodes(settings: NodesFlags, args: list[str]) -> int:
    no_arguments(args)
    as_json = is_json(settings.format)
    from waypost.client import api

    narrowed = {"near": settings.near, "filter": settings.filter}
    if settings.service:
        call = api.service_nodes(settings.service, node_meta=settings.node_meta, **narrowed)
    else:
        call = api.nodes(node_meta=settings.node_meta, **narrowed)
    with connect(settings) as client, worded("Error listing nodes"):
        found = client.do(call)
    nodes = list({(node.node, node.address): node for node in found}.values())
    if not settings.near:
        nodes.sort(key=lambda node: node.node)
    if as_json:
        print_json([_facts(node) for node in nodes])
    elif not nodes:
        print("No nodes match the given query - try expanding your search.", file=sys.stderr)
    elif settings.detailed:
        header = ("Node", "ID", "Address", "DC", "TaggedAddresses", "Meta")
        print(table([header, *map(_detailed, nodes)]))
    else:
        rows = [(node.node, node.id[:_SHORT_ID], node.address, node.datacenter) for node in nodes]
        print(table([("Node", "ID", "Address", "DC"), *rows]))
    return 0


def _detailed(node: CatalogNode) -> tuple[str, ...]:
    tagged, meta = _pairs(node.tagged_addresses), _pairs(node.meta)
    return node.node, node.id, node.address, node.datacenter, tagged, meta


def _pairs(values: dict[str, str] | None) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted((values or {}).items()))


def _facts(node: CatalogNode) -> dict[str, object]:
    return {
        "Node": node.node,
        "ID": node.id,
        "Address": node.address,
        "Datacenter": node.datacenter,
        "TaggedAddresses": node.tagged_addresses or {},
        "Meta": node.meta or {},
    }


class ServicesFlags(CatalogFlags):
    """Flags of `waypost catalog services`."""

    node: str = flag("", "Only services with an instance on this node (name or id).", value="node")
    node_meta: tuple[tuple[str, str], ...] = repeated(
        key_value,
        "Only services on nodes with this metadata; may be given several times.",
        value="key=value",
    )
    tags: bool = flag(False, "Show the tags of each service.")


def _services(settings: ServicesFlags, args: list[str]) -> int:
    no_arguments(args)
    as_json = is_json(settings.format)
    from waypost.client import api

    with connect(settings) as client, worded("Error listing services"):
        if settings.node:
            answer = client.do(api.services_of_node(settings.node, node_meta=settings.node_meta))
            found: dict[str, list[str]] = {}
            for instance in (answer.services or {}).values():
                found.setdefault(instance.service, []).extend(instance.tags or [])
        else:
            found = client.do(api.services(node_meta=settings.node_meta))
    names = sorted(found)
    if as_json:
        print_json({name: sorted(set(found[name])) for name in names})
    elif not names:
        print("No services match the given query - try expanding your search.", file=sys.stderr)
    elif settings.tags:
        width = max(map(len, names))
        # Six blanks between, as Consul puts there.
        for name in names:
            print(f"{name:<{width}}      {','.join(sorted(set(found[name])))}")
    else:
        print("\n".join(names))
    return 0


COMMAND = Group(
    "catalog <subcommand> [options] [args]",
    "Looks into the catalog: what the whole cluster knows, not one agent.",
    commands={
        "datacenters": (
            "List the datacenters",
            Command(
                "catalog datacenters [options]",
                "Lists the names of all known datacenters, nearest first.",
                settings=CatalogFlags,
                action=_datacenters,
            ),
        ),
        "nodes": (
            "List the nodes",
            Command(
                "catalog nodes [options]",
                "Lists the nodes of the catalog.\n\n"
                "    $ waypost catalog nodes -service=web\n"
                '    $ waypost catalog nodes -node-meta="rack=r1" -detailed',
                settings=NodesFlags,
                action=_nodes,
            ),
        ),
        "services": (
            "List the services",
            Command(
                "catalog services [options]",
                "Lists the names of the services of the catalog.\n\n"
                "    $ waypost catalog services -tags\n"
                "    $ waypost catalog services -node=web-1",
                settings=ServicesFlags,
                action=_services,
            ),
        ),
    },
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
