"""The reference of the command line, made from the commands themselves (`python -m waypost.cli.reference`)."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final

from waypost.cli.agent_flags import AgentFlags, DatacenterFlags
from waypost.cli.flags import Command, FlagSpec, Group, Settings
from waypost.cli.main import COMMANDS

ELSEWHERE: Final = ("agent", "demo", "registrator", "template")
"""Commands with pages of their own."""

_HEAD: Final = """\
# Command line

<!-- Made by `python -m waypost.cli.reference > docs/reference/cli.md`; a test compares the two. -->

`waypost <command> [options] [arguments]`. Commands, flags, output and exit status are those of Consul 1.8, so that
scripts work after replacing the program's name; what differs is told below.

- Flags take one dash or two: `-f v`, `-f=v`, `--f v`, `--f=v`. They stand before the arguments; `--` ends them.
  A boolean is `-f` or `-f=false`. Numbers may be written `0x1f`, durations as `1m30s`.
- Results go to standard output, everything else to standard error. There is no colour.
- Exit status: 0 done (and for `-h`); 1 any error; 2 where a command says so; 127 no such command; 130 Ctrl-C.
- An error is one line. `WAYPOST_DEBUG=1` shows where in the program it came from.
- `waypost completion bash|zsh` prints a completion script.

## What differs from Consul

| Where | Consul | waypost |
|---|---|---|
| `kv put -base64` with data that is no base64 | prints an error, writes all the same, status 0 | prints the error, status 1 |
| errors of `kv get` and `kv export` | the status code only | with the reason |
| `kv get -detailed` of a value with tabs | blanks | the value as it is |
| a definition file without any service | silence | says so on standard error |
| service definition keys | snake_case only | the API's spelling as well |
| `members`, `catalog`, `info`, `operator raft list-peers` | text | also `-format=json` |
| an unknown flag | all flags of the command | the nearest flag, and the command's own flags unless they are many |
| an attempt at a semaphore that times out | leaves its key | removes it |
"""


def markdown() -> str:
    """Return the whole page."""
    parts = [_HEAD, "## Commands\n", *_table(), "", *_shared()]
    for name in sorted(COMMANDS):
        if name not in ELSEWHERE:
            module = import_module("waypost.cli." + name.replace("-", "_"))
            parts += _entry(module.COMMAND)
    return "\n".join(parts).rstrip("\n") + "\n"


def _table() -> list[str]:
    rows = [f"| `{name}` | {COMMANDS[name]} |" for name in sorted(COMMANDS)]
    return ["| Command | |", "|---|---|", *rows]


def _shared() -> list[str]:
    return [
        "## Flags of every command that asks an agent\n",
        *_flags(list(DatacenterFlags.declared.values())),
        "",
        "`-datacenter` and `-stale` exist where the question goes to the cluster, not to the agent itself.",
        "CONSUL_HTTP_AUTH=user:password sends basic credentials; CONSUL_HTTP_SSL_VERIFY=false trusts any certificate.\n",
    ]


def _entry(entry: Command[Any] | Group) -> list[str]:
    title = entry.usage.split(" [", 1)[0].split(" <", 1)[0]
    if isinstance(entry, Group):
        out = [f"## {title}\n", entry.about.rstrip("\n"), ""] if " " not in title else []
        for name in sorted(entry.commands):
            out += _entry(entry.commands[name][1])
        return out
    level = "###" if " " in title else "##"
    out = [f"{level} {title}\n", f"`waypost {entry.usage}`\n"]
    if entry.about:
        out += [entry.about.rstrip("\n"), ""]
    own = [spec for spec in entry.settings.declared.values() if spec.section == Settings.section]
    if own:
        out += [*_flags(own), ""]
    if issubclass(entry.settings, AgentFlags):
        kind = "agent and datacenter" if issubclass(entry.settings, DatacenterFlags) else "agent"
        out += [f"And the {kind} flags above.\n"]
    return out


def _flags(specs: list[FlagSpec]) -> list[str]:
    rows = []
    for spec in sorted(specs, key=lambda spec: spec.name):
        value = f"=<{spec.value}>" if not spec.is_boolean else ""
        text = spec.help.replace("|", "\\|")
        rows.append(f"| `-{spec.name}{value}` | {text} |".replace("true|false", "true\\|false"))
    return ["| Flag | |", "|---|---|", *rows]


if __name__ == "__main__":
    sys.stdout.write(markdown())
