"""`waypost monitor`."""

from __future__ import annotations

import sys

from waypost.cli.agent_flags import AgentFlags, CommandFailed, connect, worded
from waypost.cli.flags import Command, flag
from waypost.cli.output import write_bytes

SUMMARY = "Follow the log of an agent"


class MonitorFlags(AgentFlags):
    """Flags of `waypost monitor`."""

    log_json: bool = flag(False, "Log lines as JSON.")
    log_level: str = flag("INFO", "Least level to show, also below the agent's own.", value="level")


def _monitor(settings: MonitorFlags, _args: list[str]) -> int:
    from waypost.client import api

    with connect(settings) as client, worded("Error starting monitor"):
        for chunk in client.stream(api.monitor(level=settings.log_level, json=settings.log_json)):
            write_bytes(chunk)
            sys.stdout.buffer.flush()
    raise CommandFailed(
        "Remote side ended the monitor! This usually means that the\n"
        "remote side has exited or crashed."
    )


COMMAND = Command(
    "monitor [options]",
    "Prints the agent's log as it is written, until Ctrl-C.",
    settings=MonitorFlags,
    action=_monitor,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
