"""`waypost keygen`."""

from __future__ import annotations

import base64
import secrets

from waypost.cli.agent_flags import no_arguments
from waypost.cli.flags import Command, Settings

SUMMARY = "Make a key by which the first servers know each other"
_KEY_BYTES = 32


def _keygen(_settings: Settings, args: list[str]) -> int:
    no_arguments(args)
    print(base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode("ascii"))
    return 0


COMMAND = Command(
    "keygen",
    "Prints a new key for -encrypt, the same for all servers.",
    settings=Settings,
    action=_keygen,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
