"""`waypost info`."""

from __future__ import annotations

from waypost.cli.agent_flags import AgentFlags, connect, worded
from waypost.cli.flags import Command, flag
from waypost.cli.output import is_json, print_json

SUMMARY = "Show figures of the agent for its operator"


class InfoFlags(AgentFlags):
    """Flags of `waypost info`."""

    format: str = flag("pretty", "Output format {pretty|json}")


def _info(settings: InfoFlags, _args: list[str]) -> int:
    as_json = is_json(settings.format)
    from waypost.client import api

    with connect(settings) as client, worded("Error querying agent"):
        stats = client.do(api.agent_self()).stats
    if as_json:
        print_json(stats)
        return 0
    for group in sorted(stats):
        print(f"{group}:")
        for key, value in sorted(stats[group].items()):
            print(f"\t{key} = {value}")
    return 0


COMMAND = Command(
    "info [options]", "Shows figures of the agent, in groups.", settings=InfoFlags, action=_info
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
