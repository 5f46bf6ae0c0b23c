"""`waypost services`: register, deregister."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waypost.base.errors import Malformed
from waypost.cli.agent_flags import CommandFailed, DatacenterFlags, connect, worded
from waypost.cli.flags import Command, Group, flag, key_value, repeated

if TYPE_CHECKING:
    from waypost.wire.definitions import Definition

SUMMARY = "Register and deregister services"


class RegisterFlags(DatacenterFlags):
    """Flags of `waypost services register`."""

    address: str = flag("", "Address of the instance; the node's by default.")
    id: str = flag("", "Id of the instance; its name by default.")
    kind: str = flag("", "Kind of the service, for proxies.")
    meta: tuple[tuple[str, str], ...] = repeated(
        key_value, "Metadata; may be given several times.", value="key=value"
    )
    name: str = flag("", "Name of the service.")
    port: int = flag(0, "Port of the instance.")
    tag: tuple[str, ...] = repeated(str, "A tag; may be given several times.")
    tagged_address: tuple[tuple[str, str], ...] = repeated(
        key_value,
        "A further address, as name=host:port; may be given several times.",
        value="name=host:port",
    )


def _register(settings: RegisterFlags, args: list[str]) -> int:
    if not args and not settings.name:
        raise CommandFailed("Service registration requires at least one argument or flags.")
    if args and (settings.id or settings.name):
        raise CommandFailed("Service registration requires arguments or -id, not both.")
    wanted = _from_files(args) if args else [_from_flags(settings)]
    from waypost.client import api

    with connect(settings) as client:
        for definition in wanted:
            name = definition.get("Name", "")
            with worded(f'Error registering service "{name}"'):
                client.do(api.register_service(definition))
            print(f"Registered service: {name}")
    return 0


def _from_flags(settings: RegisterFlags) -> Definition:
    definition: dict[str, Any] = {
        "ID": settings.id,
        "Name": settings.name,
        "Kind": settings.kind,
        "Address": settings.address,
        "Port": settings.port,
        "Tags": list(settings.tag),
        "Meta": dict(settings.meta),
        "TaggedAddresses": {name: _tagged(text) for name, text in settings.tagged_address},
    }
    return {key: value for key, value in definition.items() if value}


def _tagged(text: str) -> dict[str, Any]:
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        raise CommandFailed(f"Invalid Tagged Address: address {text}: missing port in address")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise CommandFailed(f'Invalid Tagged Address: address {text}: invalid port "{port}"')
    return {"Address": host.strip("[]"), "Port": int(port)}


def _from_files(args: list[str]) -> list[Definition]:
    """Return the definitions of all files, all read before the first is used."""
    from waypost.wire.definitions import read_definitions

    found: list[Definition] = []
    for arg in args:
        path = Path(arg)
        if path.is_file() and path.suffix not in (".json", ".hcl"):
            print(f"skipping file {arg}, extension must be .hcl or .json", file=sys.stderr)
            continue
        try:
            for file, definitions in read_definitions(path):
                if not definitions:
                    print(f"{file} defines no service", file=sys.stderr)
                found.extend(definitions)
        except Malformed as exc:
            raise CommandFailed(f"Error: {exc}") from exc
    return found


class DeregisterFlags(DatacenterFlags):
    """Flags of `waypost services deregister`."""

    id: str = flag("", "Id of the instance.")


def _deregister(settings: DeregisterFlags, args: list[str]) -> int:
    if not args and not settings.id:
        raise CommandFailed("Service deregistration requires at least one argument or -id.")
    if args and settings.id:
        raise CommandFailed("Service deregistration requires arguments or -id, not both.")
    if args:
        ids = [found.get("ID") or found.get("Name", "") for found in _from_files(args)]
    else:
        ids = [settings.id]
    from waypost.client import api

    with connect(settings) as client:
        for service_id in filter(None, ids):
            with worded(f'Error deregistering service "{service_id}"'):
                client.do(api.deregister_service(service_id))
            print(f"Deregistered service: {service_id}")
    return 0


COMMAND = Group(
    "services <subcommand> [options] [args]",
    "Registers and deregisters instances with the agent that is asked. The whole catalog is shown by\n"
    '"waypost catalog".',
    commands={
        "register": (
            "Register services with the agent",
            Command(
                "services register [options] [FILE...]",
                "Registers the services that files (HCL or JSON, or directories of them) define, or one that flags say.\n"
                "They stay until they are deregistered.\n\n"
                "    $ waypost services register web.json\n"
                "    $ waypost services register -name=web -port=80 -tag=v1",
                settings=RegisterFlags,
                action=_register,
            ),
        ),
        "deregister": (
            "Deregister services from the agent",
            Command(
                "services deregister [options] [FILE...]",
                "Takes out the services that files define, or the one with the id given.\n\n"
                "    $ waypost services deregister web.json\n"
                "    $ waypost services deregister -id=web",
                settings=DeregisterFlags,
                action=_deregister,
            ),
        ),
    },
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
