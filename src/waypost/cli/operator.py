"""`waypost operator`: raft list-peers, raft remove-peer."""

from __future__ import annotations

from waypost.cli.agent_flags import CommandFailed, DatacenterFlags, connect, worded
from waypost.cli.flags import Command, Group, flag
from waypost.cli.output import is_json, print_json, table

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


COMMAND = Group(
    "operator <subcommand> [options]",
    "Looks after the servers of a cluster. Use it with care: removing a server that is needed stops writes.",
    commands={
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
                },
            ),
        )
    },
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
