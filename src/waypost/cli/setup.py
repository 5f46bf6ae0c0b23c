"""`waypost setup`: has this machine and its containers use the agent."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from waypost.base.errors import Forbidden
from waypost.cli.agent_flags import no_arguments
from waypost.cli.flags import Command, Group, Settings, UsageError, flag

if TYPE_CHECKING:
    from waypost.drivers.host.records import Facts, Part, Step, Wanted
    from waypost.drivers.host.setup import Change
    from waypost.drivers.host.undo import Record

SUMMARY = "Have this machine and its containers resolve names through the agent"

DEFAULT_RECORD: Final = "/var/lib/waypost/setup/dns.json"
DEFAULT_DOCKER_CONFIG: Final = "/etc/docker/daemon.json"
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)


class SetupDnsFlags(Settings):
    """Flags of `waypost setup dns`."""

    address: str = flag(
        "",
        "Address at which this machine asks the agent. By default the first of 127.0.0.1, Docker's bridge and the "
        "machine's own address where one answers.",
        value="ip",
    )
    docker_address: str = flag(
        "",
        "Address at which containers ask the agent, on port 53. By default that of Docker's bridge, else the "
        "machine's own, whichever answers.",
        value="ip",
    )
    docker_config: str = flag(
        "",
        f"Settings file of the Docker engine. By default that of the engine that runs, else {DEFAULT_DOCKER_CONFIG}.",
        value="path",
    )
    domain: str = flag("consul", "DNS domain of the agent.", value="domain")
    dry_run: bool = flag(False, "Print what would be changed and run, and why, and change nothing.")
    force: bool = flag(
        False,
        "Set up although containers will not resolve names of other domains. Where somebody has since changed the "
        "very lines that waypost wrote, put back what was there before it wrote them.",
    )
    only: str = flag("", 'Only this part: "host" or "docker".', value="part")
    port: int = flag(0, "Port on which the agent answers DNS. By default 53, else 8600.")
    record: str = flag(
        DEFAULT_RECORD, "File that keeps what was there before, for -undo.", value="path"
    )
    restart: bool = flag(
        False,
        "Restart Docker, which reads the setting only then. Containers stop meanwhile, unless live-restore is on.",
    )
    undo: bool = flag(
        False, "Take back what was set up. What others have changed in the same files since stays."
    )


def _dns(settings: SetupDnsFlags, args: list[str]) -> int:
    no_arguments(args)
    _check(settings)
    if os.geteuid() != 0 and not settings.dry_run:
        raise Forbidden(
            "This changes files of the system: run it as root, or with -dry-run to see what it would do."
        )
    from waypost.drivers.host import files

    record_path = Path(settings.record).absolute()
    if settings.dry_run:
        return _run(settings, record_path)
    with files.locked(record_path.parent):
        return _run(settings, record_path)


def _run(settings: SetupDnsFlags, record_path: Path) -> int:
    from waypost.agent.config import default_route_address
    from waypost.drivers.host import files, look, setup

    record = files.read_record(record_path)
    wanted = _wanted(settings)
    facts = look.look(
        wanted,
        node_address=default_route_address() or "",
        also=[one.path for one in record.files],
    )
    parts = _parts(settings, facts, wanted, record)
    if settings.undo:
        if not any(one.part in parts for one in record.files):
            print(f"Nothing to undo: {record_path} holds no change.")
            return 0
        change = setup.wants_undo(facts, record, parts=parts, force=settings.force)
    else:
        change = setup.wants_setup(facts, wanted, record, parts=parts)
    for note in change.notes:
        print(note)
    if settings.dry_run:
        _show(settings, change)
        return 0
    succeeded, is_host_done = _do(settings, change, record_path)
    if not settings.undo and "host" in parts and is_host_done:
        resolves = _resolves(facts, wanted)
        steps = [one for one in change.record.steps if one.part == "host"]
        if not resolves and change.is_empty and steps:
            # An earlier run has changed the files, but nobody has read them.
            succeeded, is_host_done = _take(steps, settings)
            resolves = is_host_done and _resolves(facts, wanted)
        succeeded = resolves and succeeded
    return 0 if succeeded else 1


def _check(settings: SetupDnsFlags) -> None:
    for name, text in (("address", settings.address), ("docker-address", settings.docker_address)):
        if not text:
            continue
        try:
            address = ip_address(text)
        except ValueError as exc:
            raise UsageError(f'-{name}: "{text}" is no IP address') from exc
        if address.is_unspecified:
            raise UsageError(f"-{name}: {text} is no address that can be asked")
    if not 0 <= settings.port < 65536:
        raise UsageError(f"-port: {settings.port} is no port")
    if settings.only not in ("", "host", "docker"):
        raise UsageError(f'-only: "{settings.only}" is neither "host" nor "docker"')
    if not all(map(_LABEL.fullmatch, settings.domain.removesuffix(".").split("."))):
        raise UsageError(f'-domain: "{settings.domain}" is no domain name')


def _wanted(settings: SetupDnsFlags) -> Wanted:
    from waypost.drivers.host import look
    from waypost.drivers.host.records import Wanted

    config = settings.docker_config or look.docker_config_of(look.running_dockerd())
    return Wanted(
        domain=settings.domain.removesuffix(".").lower(),
        address=settings.address,
        port=settings.port,
        docker_address=settings.docker_address,
        docker_config=os.path.abspath(config or DEFAULT_DOCKER_CONFIG),  # noqa: PTH100  (keeps links)
        force=settings.force,
    )


def _parts(
    settings: SetupDnsFlags, facts: Facts, wanted: Wanted, record: Record
) -> tuple[Part, ...]:
    from waypost.drivers.host.engine import has_docker

    if settings.only == "host":
        return ("host",)
    if settings.only == "docker":
        return ("docker",)
    if settings.undo or has_docker(facts, wanted) or any(o.part == "docker" for o in record.files):
        return ("host", "docker")
    print("There is no Docker engine on this machine: only the host is set up.")
    return ("host",)


def _show(settings: SetupDnsFlags, change: Change) -> None:
    from waypost.drivers.host import setup

    for edit in change.edits:
        sys.stdout.write(setup.diff(edit))
    for step in change.steps:
        if _is_run(step, settings):
            print(f"Would run: {' '.join(step.argv)} ({step.why})")
        else:
            print(_left_to_do(step))
    print("Nothing to change." if change.is_empty else "Nothing was changed (-dry-run).")


def _do(settings: SetupDnsFlags, change: Change, record_path: Path) -> tuple[bool, bool]:
    """Do it and say so; return whether every command succeeded, and whether the host's are all done."""
    from waypost.drivers.host import setup

    setup.perform(change, record_path=record_path)
    for edit in change.edits:
        verb = "Removed" if edit.after is None else "Made" if edit.before is None else "Changed"
        print(f"{verb} {edit.path}")
    if change.is_empty:
        print("Nothing to change.")
    return _take(change.steps, settings)


def _take(steps: Sequence[Step], settings: SetupDnsFlags) -> tuple[bool, bool]:
    from waypost.drivers.host import setup

    succeeded = is_host_done = True
    for step in steps:
        failure = ""
        if _is_run(step, settings):
            failure = setup.run(step)
            command = " ".join(step.argv)
            if failure:
                print(f"{command} failed: {failure}", file=sys.stderr)
            else:
                print(f"Ran {command}")
        else:
            print(_left_to_do(step))
        succeeded = succeeded and not failure
        if step.part == "host" and (failure or not step.argv):
            is_host_done = False
    return succeeded, is_host_done


def _is_run(step: Step, settings: SetupDnsFlags) -> bool:
    return bool(step.argv) and (settings.restart or not step.is_asked)


def _left_to_do(step: Step) -> str:
    command = f": {' '.join(step.argv)}" if step.argv else ""
    return f"Left to you: {step.what}{command} ({step.why})"


def _resolves(facts: Facts, wanted: Wanted) -> bool:
    """Ask this machine's resolver for the servers, and say what came of it."""
    from waypost.drivers.host import look

    if not facts.answers:
        print("No agent answers DNS yet: whether names resolve was not tried.")
        return True
    datacenter = facts.answers[0].datacenter
    name = ".".join(filter(None, ("consul.service", datacenter, wanted.domain)))
    addresses, reason = look.resolve(name)
    if addresses:
        print(f"{name} is {', '.join(addresses)} through this machine's resolver.")
        return True
    print(f"{name} does not resolve through this machine's resolver: {reason}", file=sys.stderr)
    return False


COMMAND = Group(
    "setup <subcommand> [options]",
    """
Changes settings of this machine so that it uses the agent, and takes them back.
""",
    commands={
        "dns": (
            SUMMARY,
            Command(
                "setup dns [options]",
                """
Has the programs of this machine, and its containers, resolve the names of the domain (such as
web.service.consul) through the agent, and checks that they do. It finds out by itself where the
agent answers, who keeps /etc/resolv.conf, and which settings the Docker engine reads.

Host: systemd-resolved and dnsmasq are told to send the domain's names to the agent, on any port.
NetworkManager, resolvconf, openresolv, dhcpcd, dhclient and a plain resolv.conf are told to ask it
before the other name servers; for that it must answer on port 53 (-dns-port=53), and it asks the
others itself for other names.

Docker: the key "dns" of daemon.json names the agent; everything else in the file stays as it is.
The agent must answer on port 53 at an address that containers reach (-client=0.0.0.0). Docker
reads the key when it is restarted (-restart).

Run again, it changes nothing but what has become different. -undo restores every file exactly.

    $ waypost setup dns -dry-run
    $ waypost setup dns
    $ waypost setup dns -undo
""",
                settings=SetupDnsFlags,
                action=_dns,
            ),
        )
    },
)


def run(argv: list[str]) -> int:
    """Run the command."""
    return COMMAND.run(argv)
