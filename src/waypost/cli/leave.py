"""`waypost leave`."""

from __future__ import annotations

from waypost.cli.agent_flags import AgentFlags, connect, worded
from waypost.cli.flags import Command, UsageError

SUMMARY = "Have the agent leave the cluster and end"


def _leave(settings: AgentFlags, args: list[str]) -> int:
    if args:
        raise UsageError(f"Unexpected extra arguments: [{' '.join(args)}]")
    from waypost.client import api

    with connect(settings) as client, worded("Error leaving"):
        client.do(api.leave())
    print("Graceful leave complete")
    return 0


COMMAND = Command(
    "leave [options]",
    "Has the agent leave the cluster and end. Its node and services leave the catalog.",
    settings=AgentFlags,
    action=_leave,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
