"""The `waypost` program: finds the command, runs it, and turns whatever happens into text and an exit status.

Exit status: what the command returns; 0 for help; 1 for every error; 127 for an unknown command, or none;
130 after Ctrl-C. Nothing ends in a traceback unless `WAYPOST_DEBUG=1` asks for it.

Command modules are imported only when they are called. Each has `run(argv) -> int`, where `argv` is what follows
the command's name, and a one-line `SUMMARY` (repeated here, so that the list of commands imports none of them; a
test compares the two). Those built on `cli.flags` also have `COMMAND`, a `Command` or `Group`, from which the
completion and the reference are made.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

from waypost.base.errors import WaypostError
from waypost.cli.flags import PROGRAM, HelpRequested, UsageError

COMMANDS: Final[Mapping[str, str]] = {
    "agent": "Run an agent: registry, DNS, containers, templates, load balancer",
    "auth": "Ask about access control: who am I, may I, why, who can",
    "catalog": "Look into the catalog: datacenters, nodes, services",
    "certs": "Check and renew the certificates of access control",
    "completion": "Print the completion script of a shell",
    "config": "View and change kubeconfig files",
    "demo": "Show the whole platform at work on this machine",
    "event": "Fire a user event",
    "force-leave": 'Put a member that has failed into the state "left"',
    "info": "Show figures of the agent for its operator",
    "init": "Set up access control: certificate authority, certificates, keys, kubeconfig files",
    "join": "Have the agent join a cluster",
    "keygen": "Make a key by which the first servers know each other",
    "kv": "Read and write the key/value store",
    "leave": "Have the agent leave the cluster and end",
    "lock": "Run a command while holding a lock",
    "maint": "Put a node or an instance into maintenance, and take it out",
    "members": "List the members of the cluster",
    "monitor": "Follow the log of an agent",
    "operator": "Look after the servers of a cluster",
    "registrator": "Register the containers of this machine (Registrator's flags)",
    "reload": "Have the agent read its configuration again",
    "services": "Register and deregister services",
    "setup": "Have this machine and its containers resolve names through the agent",
    "snapshot": "Save, restore and inspect snapshots of everything that is stored",
    "template": "Render templates from the registry (consul-template's flags)",
    "token": "Make and manage bootstrap tokens",
    "validate": "Check configuration files",
    "version": "Print the version",
    "watch": "Watch for changes and run a command on each",
}
"""Name → one-line summary. The module of `force-leave` is `waypost.cli.force_leave`."""

EXIT_ERROR: Final = 1
EXIT_UNKNOWN_COMMAND: Final = 127
EXIT_INTERRUPTED: Final = 130
_VERSION_FLAGS: Final = ("-v", "-version", "--version")
_HELP_FLAGS: Final = ("-h", "-help", "--help")


def program_help() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"    {name:<{width}}    {COMMANDS[name]}" for name in sorted(COMMANDS)]
    return "\n".join(
        [
            f"Usage: {PROGRAM} [-version] [-help] <command> [<args>]",
            "",
            "Available commands are:",
            *lines,
            "",
        ]
    )


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that `argv` (without the program's name) calls and return its exit status.

    Raises whatever the command does; `main` turns that into text.
    """
    name, rest = (argv[0], list(argv[1:])) if argv else ("", [])
    if name in _VERSION_FLAGS:
        name = "version"
    elif name in _HELP_FLAGS:
        if not rest or rest[0] not in COMMANDS:
            raise HelpRequested(program_help())
        name, rest = rest[0], ["-h"]
    if name not in COMMANDS:
        _complain_unknown(name)
        return EXIT_UNKNOWN_COMMAND
    module = import_module("waypost.cli." + name.replace("-", "_"))
    status: int = module.run(rest)
    return status


def _complain_unknown(name: str) -> None:
    if name:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        print(f'Unknown command: "{name}".{hint}\n', file=sys.stderr)
    sys.stderr.write(program_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status; `argv` is without the program's name."""
    args = sys.argv[1:] if argv is None else list(argv)
    debug = os.environ.get("WAYPOST_DEBUG", "") not in ("", "0")
    try:
        status = dispatch(args)
        sys.stdout.flush()
    except HelpRequested as exc:
        return _write_help(exc.text)
    except UsageError as exc:
        _say("\n".join(part for part in (str(exc), exc.suggestion, exc.usage.rstrip("\n")) if part))
        return EXIT_ERROR
    except BrokenPipeError:
        return _reader_gone()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except WaypostError as exc:
        if debug:
            raise
        _say(str(exc))
        return EXIT_ERROR
    except Exception as exc:
        if debug:
            raise
        _say(f"Error: {_one_line(exc)} (WAYPOST_DEBUG=1 shows where)")
        return EXIT_ERROR
    return status


def _write_help(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_gone()
    return 0


def _reader_gone() -> int:
    # `waypost … | head` is no failure of ours. What is left in the buffer goes nowhere, so that the interpreter's
    # own flush at exit does not complain.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _one_line(exc: BaseException) -> str:
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


if __name__ == "__main__":
    sys.exit(main())
