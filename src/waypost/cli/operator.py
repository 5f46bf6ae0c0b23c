"""`waypost operator`: the group of servers (raft), and how it looks after itself (autopilot)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from waypost.cli.agent_flags import (
    CommandFailed,
    DatacenterFlags,
    connect,
    no_arguments,
    worded,
)
from waypost.cli.flags import Command, Group, Settings, boolean, flag, integer
from waypost.cli.output import is_json, print_json, table

if TYPE_CHECKING:
    from waypost.client import api as api_types

SUMMARY = "Look after the servers of a cluster"


class ListPeersFlags(DatacenterFlags):
    """Flags of `waypost operator raft list-peers`."""

    format: str = flag("pretty", "Output format {pretty|json}")


def _list_peers(settings: ListPeersFlags, _args: list[str]) -> int:
    as_json = is_json(settings.format)
    from waypost.client import api

    what = "Error getting peers: Failed to retrieve raft configuration"
    with connect(settings) as client, worded(what):
        servers = client.do(api.raft_configuration()).servers
    facts = [
        {
            "Node": server.node,
            "ID": server.id,
            "Address": server.address,
            "State": "leader" if server.leader else "follower",
            "Voter": server.voter,
            "RaftProtocol": server.protocol_version or "<=1",
        }
        for server in servers
    ]
    if as_json:
        print_json(facts)
        return 0
    header = ("Node", "ID", "Address", "State", "Voter", "RaftProtocol")
    rows = [[_cell(server[column]) for column in header] for server in facts]
    print(table([header, *rows]))
    return 0


def _cell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class RemovePeerFlags(DatacenterFlags):
    """Flags of `waypost operator raft remove-peer`."""

    address: str = flag("", "Address of the server to remove, with port.")
    id: str = flag("", "Id of the server to remove.")


def _remove_peer(settings: RemovePeerFlags, _args: list[str]) -> int:
    if not settings.address and not settings.id:
        raise CommandFailed(
            "Error removing peer: an address or id is required for the peer to remove"
        )
    if settings.address and settings.id:
        raise CommandFailed("Error removing peer: cannot give both an address and id")
    from waypost.client import api

    with connect(settings) as client, worded("Error removing peer"):
        client.do(api.raft_remove_peer(address=settings.address, id=settings.id))
    which = f'address "{settings.address}"' if settings.address else f'id "{settings.id}"'
    print(f"Removed peer with {which}")
    return 0


class TransferFlags(DatacenterFlags):
    """Flags of `waypost operator raft transfer-leader`."""

    id: str = flag("", "Id of the server that shall lead; any other one by default.")


def _transfer(settings: TransferFlags, args: list[str]) -> int:
    no_arguments(args)
    from waypost.client import api

    with connect(settings) as client, worded("Error transferring leadership"):
        done = client.do(api.raft_transfer_leader(id=settings.id))
    if not done:
        raise CommandFailed("Error transferring leadership: the leader is the same as before")
    print("Success")
    return 0


# Autopilot.


class GetConfigFlags(DatacenterFlags):
    """Flags of `waypost operator autopilot get-config`."""

    format: str = flag("pretty", "Output format {pretty|json}")


def _get_config(settings: GetConfigFlags, args: list[str]) -> int:
    as_json = is_json(settings.format)
    no_arguments(args)
    from waypost.client import api

    with connect(settings) as client, worded("Error querying Autopilot configuration"):
        found = client.do(api.autopilot_configuration())
    facts = {name: getattr(found, member) for name, member in _MEMBERS}
    if as_json:
        print_json(facts)
        return 0
    for name, value in facts.items():
        print(f"{name} = {_shown(name, value)}")
    return 0


_MEMBERS = (
    ("CleanupDeadServers", "cleanup_dead_servers"),
    ("LastContactThreshold", "last_contact_threshold"),
    ("MaxTrailingLogs", "max_trailing_logs"),
    ("MinQuorum", "min_quorum"),
    ("ServerStabilizationTime", "server_stabilization_time"),
    ("RedundancyZoneTag", "redundancy_zone_tag"),
    ("DisableUpgradeMigration", "disable_upgrade_migration"),
    ("UpgradeVersionTag", "upgrade_version_tag"),
)


def _shown(name: str, value: object) -> str:
    return f'"{value}"' if name.endswith("Tag") else _cell(value)


class SetConfigFlags(DatacenterFlags):
    """Flags of `waypost operator autopilot set-config`; what is not given stays."""

    cleanup_dead_servers: bool | None = flag(
        None, "Take servers that failed out once others take their place.", parse=boolean
    )
    last_contact_threshold: str = flag(
        "", "How long a healthy server may not have heard the leader, such as 200ms."
    )
    max_trailing_logs: int | None = flag(
        None, "How many revisions a healthy server may be behind.", parse=integer
    )
    min_quorum: int | None = flag(
        None, "Servers below which no dead ones are taken out.", parse=integer
    )
    server_stabilization_time: str = flag(
        "", "How long a new server is healthy before it votes, such as 10s."
    )
    redundancy_zone_tag: str | None = flag(None, "Kept, and not used.", parse=str)
    disable_upgrade_migration: bool | None = flag(None, "Kept, and not used.", parse=boolean)
    upgrade_version_tag: str | None = flag(None, "Kept, and not used.", parse=str)


def _set_config(settings: SetConfigFlags, args: list[str]) -> int:
    no_arguments(args)
    import msgspec

    from waypost.client import api

    given: dict[str, Any] = {
        member: value
        for _, member in _MEMBERS
        if (value := getattr(settings, member)) is not None and value != ""
    }
    with connect(settings) as client:
        with worded("Error querying Autopilot configuration"):
            found = client.do(api.autopilot_configuration())
        with worded("Error setting Autopilot configuration"):
            wanted = msgspec.structs.replace(found, **given)
            done = client.do(api.set_autopilot_configuration(wanted))
    if not done:
        raise CommandFailed("Configuration could not be atomically updated, please try again")
    print("Configuration updated!")
    return 0


class StateFlags(DatacenterFlags):
    """Flags of `waypost operator autopilot state`."""

    format: str = flag("pretty", "Output format {pretty|json}")


def _state(settings: StateFlags, args: list[str]) -> int:
    as_json = is_json(settings.format)
    no_arguments(args)
    from waypost.client import api

    with connect(settings) as client, worded("Error getting Autopilot state"):
        found = client.do(api.autopilot_health())
    leader = next((one.id for one in found.servers if one.leader), "")
    voters = [one.id for one in found.servers if one.voter]
    if as_json:
        print_json(
            {
                "Healthy": found.healthy,
                "FailureTolerance": found.failure_tolerance,
                "Leader": leader,
                "Voters": voters,
                "Servers": {one.id: dict(_server(one)) for one in found.servers},
            }
        )
        return 0
    print(f"{'Healthy:':<23}{_cell(found.healthy)}")
    print(f"{'Failure Tolerance:':<23}{found.failure_tolerance}")
    print(f"{'Leader:':<23}{leader}")
    print("Voters:", *voters, sep="\n   ")
    print("Servers:")
    for one in found.servers:
        print(f"   {one.id}")
        for name, value in _server(one):
            print(f"      {name + ':':<17}{_cell(value)}")
    return 0


def _server(server: api_types.ServerHealth) -> tuple[tuple[str, object], ...]:
    status = "leader" if server.leader else "voter" if server.voter else "non-voter"
    return (
        ("Name", server.name),
        ("Address", server.address),
        ("Version", server.version),
        ("Status", status),
        ("Node Status", server.serf_status),
        ("Healthy", server.healthy),
        ("Last Contact", server.last_contact),
        ("Last Term", server.last_term),
        ("Last Index", server.last_index),
    )


_AUTOPILOT = Group(
    "operator autopilot <subcommand> [options]",
    "Shows and changes how the servers look after themselves.",
    commands={
        "get-config": (
            "Show the configuration",
            Command(
                "operator autopilot get-config [options]",
                "Shows how the servers look after themselves.",
                settings=GetConfigFlags,
                action=_get_config,
            ),
        ),
        "set-config": (
            "Change the configuration",
            Command(
                "operator autopilot set-config [options]",
                "Changes what is given; the rest stays.",
                settings=SetConfigFlags,
                action=_set_config,
            ),
        ),
        "state": (
            "Show how the servers are",
            Command(
                "operator autopilot state [options]",
                "Shows how the servers are, and how many may fail before writes stop.",
                settings=StateFlags,
                action=_state,
            ),
        ),
    },
)


class RecoverFlags(Settings):
    """Flags of `waypost operator recover`."""

    section = Settings.section

    data_dir: str = flag("", "Data directory of the server that survived.", value="dir")
    server_port: int = flag(8300, "The server's own -server-port.")
    store_port: int = flag(8303, "The server's own -store-port.")
    etcd: str = flag("etcd", "The etcd program.", value="path")


def _recover(settings: RecoverFlags, args: list[str]) -> int:
    no_arguments(args)
    if not settings.data_dir:
        raise CommandFailed("-data-dir says which server goes on")
    import asyncio
    import random
    from pathlib import Path

    from waypost.base.clock import SystemClock
    from waypost.base.errors import WaypostError
    from waypost.cluster.recover import recover, settings_of

    ports = {"server": settings.server_port, "store": settings.store_port}
    try:
        told = settings_of(Path(settings.data_dir), ports=ports, etcd=settings.etcd)
        done = asyncio.run(recover(told, clock=SystemClock(), rng=random.SystemRandom()))
    except WaypostError as exc:
        raise CommandFailed(f"Error recovering the cluster: {exc}") from exc
    print(
        f"This server is the whole cluster now (raft index {done.raft_index}, {done.removed} other servers removed).\n"
        "Start its agent as always. The others may be started as they are: they delete their store and join."
    )
    return 0


COMMAND = Group(
    "operator <subcommand> [options]",
    "Looks after the servers of a cluster. Use it with care: removing a server that is needed stops writes.",
    commands={
        "autopilot": ("Show and change how the servers look after themselves", _AUTOPILOT),
        "recover": (
            "Go on with the one server that is left",
            Command(
                "operator recover -data-dir DIR",
                """
For when most servers are lost for good: makes the server whose data directory is DIR a cluster of
one, with the data that it has. Run it on the server with the highest raft index, while no agent runs
there. Writes that this server had not yet written down as agreed are lost.

    $ waypost operator recover -data-dir=/var/lib/waypost
""",
                settings=RecoverFlags,
                action=_recover,
            ),
        ),
        "raft": (
            "Show and change the group of servers",
            Group(
                "operator raft <subcommand> [options]",
                "Shows the group of servers that agree on every write, and takes lost ones out of it.",
                commands={
                    "list-peers": (
                        "List the servers",
                        Command(
                            "operator raft list-peers [options]",
                            "Lists the servers, who leads, and who votes.",
                            settings=ListPeersFlags,
                            action=_list_peers,
                        ),
                    ),
                    "remove-peer": (
                        "Remove a server that will not come back",
                        Command(
                            "operator raft remove-peer [options]",
                            "Removes a server that has failed and will not come back from the group.",
                            settings=RemovePeerFlags,
                            action=_remove_peer,
                        ),
                    ),
                    "transfer-leader": (
                        "Make another server lead",
                        Command(
                            "operator raft transfer-leader [options]",
                            "Makes another server lead, for instance before this one is stopped.",
                            settings=TransferFlags,
                            action=_transfer,
                        ),
                    ),
                },
            ),
        ),
    },
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
