"""`waypost join`."""

from __future__ import annotations

import sys

from waypost.cli.agent_flags import AgentFlags, CommandFailed, connect, worded
from waypost.cli.flags import Command, UsageError, flag

SUMMARY = "Have the agent join a cluster"


class JoinFlags(AgentFlags):
    """Flags of `waypost join`."""

    wan: bool = flag(False, "Join another datacenter's servers (the WAN pool).")


def _join(settings: JoinFlags, args: list[str]) -> int:
    if not args:
        raise UsageError("At least one address to join must be specified.\n")
    from waypost.client import api

    joined = 0
    with connect(settings) as client:
        for address in args:
            try:
                with worded(f"Error joining address '{address}'"):
                    client.do(api.join(address, wan=settings.wan))
            except CommandFailed as exc:
                print(exc, file=sys.stderr)
            else:
                joined += 1
    if not joined:
        raise CommandFailed("Failed to join any nodes.")
    print(f"Successfully joined cluster by contacting {joined} nodes.")
    return 0


COMMAND = Command(
    "join [options] address ...",
    "Has the agent join the cluster that the addresses are in. One that answers is enough.",
    settings=JoinFlags,
    action=_join,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
