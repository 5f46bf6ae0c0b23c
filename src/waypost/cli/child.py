"""Runs the command that `watch` and `lock` are given, in a shell or as it is."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from waypost.cli.agent_flags import CommandFailed


def command_line(args: Sequence[str], *, shell: bool) -> list[str]:
    """Return what to execute: the arguments, or joined by blanks for `$SHELL -c` (`/bin/sh` if unset)."""
    if not shell:
        return list(args)
    return [os.environ.get("SHELL") or "/bin/sh", "-c", " ".join(args)]


def start(
    args: Sequence[str], *, shell: bool, env: Mapping[str, str], stdin: int | None
) -> subprocess.Popen[bytes]:
    """Start it. Raises CommandFailed in the words of Go's `exec`."""
    command = command_line(args, shell=shell)
    try:
        return subprocess.Popen(command, stdin=stdin, env={**os.environ, **env})
    except FileNotFoundError as exc:
        raise CommandFailed(
            f'Error starting handler: exec: "{command[0]}": executable file not found in $PATH'
        ) from exc
    except OSError as exc:
        raise CommandFailed(
            f"Error starting handler: {shlex.quote(command[0])}: {exc.strerror}"
        ) from exc


def outcome(status: int) -> str:
    """Return how a process ended, in Go's words; "" for success. `status` is negative for a signal."""
    if status == 0:
        return ""
    if status > 0:
        return f"exit status {status}"
    import signal

    return f"signal: {(signal.strsignal(-status) or str(-status)).lower()}"
