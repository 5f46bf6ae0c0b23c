"""`waypost members`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from waypost.cli.agent_flags import AgentFlags, CommandFailed, connect, worded
from waypost.cli.flags import Command, flag
from waypost.cli.output import is_json, print_json, table

if TYPE_CHECKING:
    from waypost.client import api

SUMMARY = "List the members of the cluster"

EXIT_NOBODY = 2


class MembersFlags(AgentFlags):
    """Flags of `waypost members`."""

    detailed: bool = flag(False, "Show every tag of each member.")
    format: str = flag("pretty", "Output format {pretty|json}")
    segment: str = flag("_all", "Show only the members of this network segment.")
    status: str = flag(".*", "Show only members whose status matches this regular expression.")
    wan: bool = flag(False, "Show the servers of all joined datacenters (the WAN pool).")


def _members(settings: MembersFlags, _args: list[str]) -> int:
    from waypost.client.api import members

    as_json = is_json(settings.format)
    try:
        wanted = re.compile(settings.status)
    except re.error as exc:
        raise CommandFailed(f"Failed to compile status regexp: {exc}") from exc
    with connect(settings) as client, worded("Error retrieving members"):
        found = client.do(members(wan=settings.wan, segment=settings.segment))
    shown = [member for member in found if wanted.search(_status(member))]
    if not shown:
        return EXIT_NOBODY
    shown.sort(
        key=lambda member: (member.tags.get("role") != "consul", _segment(member), member.name)
    )
    if as_json:
        print_json([_facts(member) for member in shown])
    elif settings.detailed:
        print(table([("Node", "Address", "Status", "Tags"), *map(_detailed, shown)]))
    else:
        header = ("Node", "Address", "Status", "Type", "Build", "Protocol", "DC", "Segment")
        print(table([header, *map(_standard, shown)]))
    return 0


def _status(member: api.Member) -> str:
    from waypost.client.api import MEMBER_STATUS

    known = 0 <= member.status < len(MEMBER_STATUS)
    return MEMBER_STATUS[member.status] if known else "unknown"


def _address(member: api.Member) -> str:
    host = f"[{member.addr}]" if ":" in member.addr else member.addr
    return f"{host}:{member.port}"


def _segment(member: api.Member) -> str:
    if member.tags.get("role") == "consul":
        return "<all>"
    return member.tags.get("segment") or "<default>"


def _tags(member: api.Member) -> dict[str, str]:
    """Return the tags with the segment in words, as Consul prints it for servers."""
    shown = dict(member.tags)
    if "segment" in shown or shown.get("role") == "consul":
        shown["segment"] = _segment(member)
    return shown


def _standard(member: api.Member) -> tuple[str, ...]:
    tags = member.tags
    build = tags.get("build", "").partition(":")[0] or "< 0.3"
    kind = {"consul": "server", "node": "client"}.get(tags.get("role", ""), "unknown")
    return (
        member.name,
        _address(member),
        _status(member),
        kind,
        build,
        tags.get("vsn", ""),
        tags.get("dc", ""),
        _segment(member),
    )


def _detailed(member: api.Member) -> tuple[str, ...]:
    tags = ",".join(f"{key}={value}" for key, value in sorted(_tags(member).items()))
    return member.name, _address(member), _status(member), tags


def _facts(member: api.Member) -> dict[str, object]:
    name, address, status, kind, build, protocol, datacenter, segment = _standard(member)
    return {
        "Node": name,
        "Address": address,
        "Status": status,
        "Type": kind,
        "Build": build,
        "Protocol": protocol,
        "DC": datacenter,
        "Segment": segment,
        "Tags": _tags(member),
    }


COMMAND = Command(
    "members [options]",
    "Lists the members of the cluster that the agent is in.\n\nExit status 2 if no member matches.",
    settings=MembersFlags,
    action=_members,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
