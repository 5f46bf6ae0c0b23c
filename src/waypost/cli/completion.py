"""`waypost completion`: the completion script of a shell.

The script asks the program itself what may come next (`waypost completion -words …`), so it knows exactly the
commands and flags of the installed version.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

from waypost.cli.agent_flags import CommandFailed
from waypost.cli.flags import Command, Group, Settings, UsageError, flag

SUMMARY = "Print the completion script of a shell"

_BASH: Final = """\
# waypost completion for bash: source <(waypost completion bash)
_waypost() {
    local IFS=$'\\n'
    COMPREPLY=($(waypost completion -words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
    return 0
}
# "=" must not split a word: -format=json is one.
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -o default -F _waypost waypost
"""
_ZSH: Final = """\
#compdef waypost
# waypost completion for zsh: source <(waypost completion zsh)
_waypost() {
    local -a found
    found=("${(@f)$(waypost completion -words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    [[ -n ${found[1]} ]] && compadd -S '' -- ${(M)found:#*=} && compadd -- ${found:#*=} && return
    compadd -- ${found:#} || _files
}
compdef _waypost waypost
"""
_SCRIPTS: Final = {"bash": _BASH, "zsh": _ZSH}


class CompletionFlags(Settings):
    """Flags of `waypost completion`."""

    words: bool = flag(False, "Print what may stand for the last of the words given, one a line.")


def _completion(settings: CompletionFlags, args: list[str]) -> int:
    if settings.words:
        sys.stdout.writelines(f"{word}\n" for word in candidates(args))
        return 0
    if len(args) != 1 or args[0] not in _SCRIPTS:
        raise UsageError(f"Name one shell: {' or '.join(_SCRIPTS)}")
    sys.stdout.write(_SCRIPTS[args[0]])
    return 0


def candidates(words: list[str]) -> list[str]:
    """Return what may stand for the last of `words` (which may be empty), given those before it."""
    from waypost.cli.main import COMMANDS

    *before, last = words or [""]
    if not before:
        return [name for name in sorted(COMMANDS) if name.startswith(last)]
    if before[0] not in COMMANDS:
        return []
    try:
        module = import_module("waypost.cli." + before[0].replace("-", "_"))
    except ImportError as exc:
        raise CommandFailed(f"{before[0]} cannot be completed: {exc}") from exc
    entry = getattr(module, "COMMAND", None)
    for word in before[1:]:
        if not isinstance(entry, Group):
            break
        entry = entry.commands[word][1] if word in entry.commands else None
    if isinstance(entry, Group):
        return [name for name in sorted(entry.commands) if name.startswith(last)]
    if not isinstance(entry, Command) or not last.startswith("-"):
        return []
    dashes = "--" if last.startswith("--") else "-"
    specs = sorted(entry.settings.declared.values())
    flags = [f"{dashes}{spec.name}{'' if spec.is_boolean else '='}" for spec in specs]
    return [word for word in flags if word.startswith(last)]


COMMAND = Command(
    "completion [options] bash|zsh",
    "Prints a script that completes commands and flags.\n\n"
    "    $ source <(waypost completion bash)\n"
    "    $ waypost completion zsh > ~/.zfunc/_waypost",
    settings=CompletionFlags,
    action=_completion,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
