"""`waypost validate`."""

from __future__ import annotations

from pathlib import Path

from waypost.base.errors import Malformed
from waypost.cli.agent_flags import CommandFailed
from waypost.cli.flags import Command, Settings, flag

SUMMARY = "Check configuration files"


class ValidateFlags(Settings):
    """Flags of `waypost validate`."""

    config_format: str = flag(
        "", "Read all files as json or hcl, whatever their ending.", value="json|hcl"
    )
    quiet: bool = flag(False, "Print nothing when the configuration is valid.")


def _validate(settings: ValidateFlags, args: list[str]) -> int:
    if not args:
        raise CommandFailed("Must specify at least one config file or directory")
    # The agent's own loader, so that what passes here starts there.
    from waypost.agent import config, definitions

    try:
        values = config.read_files(map(Path, args), [], form=settings.config_format)
        found = config.resolve(values).config
        definitions.parse(found)
    except Malformed as exc:
        raise CommandFailed(f"Config validation failed: {exc}") from exc
    if not settings.quiet:
        print("Configuration is valid!")
    return 0


COMMAND = Command(
    "validate [options] FILE_OR_DIRECTORY...",
    "Checks configuration files as the agent reads them, all together.",
    settings=ValidateFlags,
    action=_validate,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
