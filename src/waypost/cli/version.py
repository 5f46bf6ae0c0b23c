"""`waypost version`."""

from __future__ import annotations

import sys
from typing import Final

from waypost.cli.flags import Command, Settings, UsageError, flag

SUMMARY = "Print the version"

CONSUL_API_LEVEL: Final = "1.8.7"
"""The Consul release whose HTTP API and DNS answers ours were compared with."""


class VersionSettings(Settings):
    """Flags of `waypost version`."""

    format: str = flag("pretty", "Output format {pretty|json}")


def _version(settings: VersionSettings, _args: list[str]) -> int:
    from waypost import __version__

    if settings.format == "pretty":
        print(f"waypost v{__version__}\nSpeaks the HTTP API and DNS of Consul {CONSUL_API_LEVEL}")
    elif settings.format == "json":
        import json

        facts = {
            "Version": __version__,
            "ConsulAPI": CONSUL_API_LEVEL,
            "Python": sys.version.split()[0],
        }
        print(json.dumps(facts, indent=4))
    else:
        raise UsageError(f"Unknown format: {settings.format}")
    return 0


COMMAND = Command(
    "version [options]",
    "Prints the version, and which version of Consul's API the agent speaks.",
    settings=VersionSettings,
    action=_version,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
