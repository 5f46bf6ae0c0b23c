"""`waypost force-leave`."""

from __future__ import annotations

from waypost.cli.agent_flags import AgentFlags, connect, worded
from waypost.cli.flags import Command, UsageError, flag

SUMMARY = 'Put a member that has failed into the state "left"'


class ForceLeaveFlags(AgentFlags):
    """Flags of `waypost force-leave`."""

    prune: bool = flag(False, "Forget the member altogether.")


def _force_leave(settings: ForceLeaveFlags, args: list[str]) -> int:
    if len(args) != 1:
        raise UsageError("A single node name must be specified to force leave.\n")
    from waypost.client import api

    with connect(settings) as client, worded("Error force leaving"):
        client.do(api.force_leave(args[0], prune=settings.prune))
    return 0


COMMAND = Command(
    "force-leave [options] name",
    'Puts a member that has failed into the state "left", instead of waiting for it to come back. A member\n'
    "that still runs will join again.",
    settings=ForceLeaveFlags,
    action=_force_leave,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
