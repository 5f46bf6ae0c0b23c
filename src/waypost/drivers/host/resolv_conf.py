"""The text of resolv.conf(5): whom it names, and another name server put first. Pure.

Only what glibc reads counts: a keyword in the first column, then blanks; `#` and `;` begin a comment line.
"""

from __future__ import annotations

import re
from typing import Final

MAX_NAMESERVERS: Final = 3
"""glibc asks no more of them (MAXNS)."""
MARK: Final = '# From "waypost setup dns"; "waypost setup dns -undo" takes it out.\n'

_NAMESERVER: Final = re.compile(r"nameserver[ \t]+(\S+)")
_ROTATE: Final = re.compile(r"[ \t]+rotate(?=\s|$)")


def nameservers(text: str) -> tuple[str, ...]:
    """Return the addresses in the order they are asked."""
    return tuple(found.group(1) for line in text.splitlines() if (found := _NAMESERVER.match(line)))


def searched(text: str) -> tuple[str, ...]:
    """Return the search list: the last `search` or `domain` line counts."""
    found: tuple[str, ...] = ()
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword in ("search", "domain") and line.startswith(keyword):
            found = tuple(values)
    return found


def rotates(text: str) -> bool:
    """Tell whether the servers are asked in turns instead of in order."""
    return any(line.startswith("options") and _ROTATE.search(line) for line in text.splitlines())


def put_first(text: str, address: str) -> str:
    """Return the text with `address` as the first name server; everything else stays, in its order.

    With other servers beside it, `options rotate` goes: glibc would ask one that does not know our names every other
    time, and take its "no such name" for the answer.
    """
    servers = nameservers(text)
    is_first = servers[:1] == (address,)
    if is_first and not (rotates(text) and len(servers) > 1):
        return text
    lines: list[str] = []
    placed = is_first
    for line in text.splitlines(keepends=True):
        found = _NAMESERVER.match(line)
        if found and not placed:
            lines += [MARK, f"nameserver {address}\n"]
            placed = True
        if found and not is_first and found.group(1) == address:
            continue
        kept = _without_rotate(line)
        if kept:
            lines.append(kept)
    if not placed:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        lines += [MARK, f"nameserver {address}\n"]
    return "".join(lines)


def _without_rotate(line: str) -> str:
    """Return an options line without `rotate`, "" when nothing else stood in it."""
    if not line.startswith("options"):
        return line
    kept = _ROTATE.sub("", line)
    return "" if kept.strip() == "options" and kept != line else kept
