"""`waypost maint`."""

from __future__ import annotations

from typing import Final

from waypost.cli.agent_flags import AgentFlags, CommandFailed, connect, worded
from waypost.cli.flags import Command, flag

SUMMARY = "Put a node or an instance into maintenance, and take it out"

_NODE: Final = "_node_maintenance"
_SERVICE: Final = "_service_maintenance:"


class MaintFlags(AgentFlags):
    """Flags of `waypost maint`."""

    disable: bool = flag(False, "Take it out of maintenance.")
    enable: bool = flag(False, "Put it into maintenance.")
    reason: str = flag("", "Why, for those who look at it.", value="text")
    service: str = flag("", "The instance with this id, not the whole node.", value="id")


def _maint(settings: MaintFlags, _args: list[str]) -> int:
    if settings.enable and settings.disable:
        raise CommandFailed("Only one of -enable or -disable may be provided")
    if not settings.enable and settings.reason:
        raise CommandFailed("Reason may only be provided with -enable")
    if not settings.enable and not settings.disable:
        if settings.service:
            raise CommandFailed("Service requires either -enable or -disable")
        return _show(settings)
    from waypost.client import api

    doing = "enabling" if settings.enable else "disabling"
    done = "enabled" if settings.enable else "disabled"
    with connect(settings) as client:
        if settings.service:
            call = api.service_maintenance(
                settings.service, enable=settings.enable, reason=settings.reason
            )
            with worded(f"Error {doing} service maintenance"):
                client.do(call)
            print(f'Service maintenance is now {done} for "{settings.service}"')
        else:
            with worded(f"Error {doing} node maintenance"):
                client.do(api.node_maintenance(enable=settings.enable, reason=settings.reason))
            print(f"Node maintenance is now {done}")
    return 0


def _show(settings: MaintFlags) -> int:
    from waypost.client import api

    with connect(settings) as client, worded("Error getting checks"):
        checks = client.do(api.agent_checks())
    for check in sorted(checks.values(), key=lambda check: check.check_id):
        if check.check_id == _NODE:
            print(f"Node:\n  Name:   {check.node}\n  Reason: {check.notes}\n")
        elif check.check_id.startswith(_SERVICE):
            print(f"Service:\n  ID:     {check.service_id}\n  Reason: {check.notes}\n")
    return 0


COMMAND = Command(
    "maint [options]",
    "Puts a node or one instance into maintenance: it gets a critical check, so that neither DNS nor the\n"
    "load balancer send anybody to it, until it is taken out again, also over a restart of the agent.\n\n"
    "Without options, shows what is in maintenance; nothing if nothing is.",
    settings=MaintFlags,
    action=_maint,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
