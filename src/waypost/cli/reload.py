"""`waypost reload`."""

from __future__ import annotations

from waypost.cli.agent_flags import AgentFlags, connect, worded
from waypost.cli.flags import Command

SUMMARY = "Have the agent read its configuration again"


def _reload(settings: AgentFlags, _args: list[str]) -> int:
    from waypost.client import api

    with connect(settings) as client, worded("Error reloading"):
        client.do(api.reload())
    print("Configuration reload triggered")
    return 0


COMMAND = Command(
    "reload [options]",
    "Has the agent read its configuration files again, as SIGHUP does.",
    settings=AgentFlags,
    action=_reload,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
