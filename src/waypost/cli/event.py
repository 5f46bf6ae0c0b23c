"""`waypost event`."""

from __future__ import annotations

import re

from waypost.cli.agent_flags import CommandFailed, DatacenterFlags, connect, worded
from waypost.cli.flags import Command, UsageError, flag

SUMMARY = "Fire a user event"


class EventFlags(DatacenterFlags):
    """Flags of `waypost event`."""

    name: str = flag("", "Name of the event.")
    node: str = flag("", "Only for nodes whose name matches.", value="regexp")
    service: str = flag(
        "", "Only for nodes with an instance of a matching service.", value="regexp"
    )
    tag: str = flag("", "Only for instances with a matching tag; needs -service.", value="regexp")


def _event(settings: EventFlags, args: list[str]) -> int:
    if not settings.name:
        raise UsageError("Event name must be specified\n")
    if len(args) > 1:
        raise UsageError("Too many command line arguments.\n")
    for kind in ("node", "service", "tag"):
        try:
            re.compile(getattr(settings, kind))
        except re.error as exc:
            raise CommandFailed(f"Failed to compile {kind} filter regexp: {exc}") from exc
    if settings.tag and not settings.service:
        raise CommandFailed("Cannot provide tag filter without service filter.")
    from waypost.client import api

    call = api.event_fire(
        settings.name,
        args[0].encode("utf-8", "surrogateescape") if args else b"",
        node=settings.node,
        service=settings.service,
        tag=settings.tag,
    )
    with connect(settings) as client, worded("Error firing event"):
        print(f"Event ID: {client.do(call)}")
    return 0


COMMAND = Command(
    "event [options] [payload]",
    "Fires a user event, which every agent that watches for it gets.",
    settings=EventFlags,
    action=_event,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
