"""What was changed, kept so that it can be taken back exactly, also when somebody has changed the file since. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Final

import msgspec

from waypost.base.errors import Conflict, Malformed
from waypost.drivers.host import daemon_json
from waypost.drivers.host.engine import KEY
from waypost.drivers.host.records import Edit, Part, Step


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One file: what was there (None: nothing), and what was written in its place."""

    part: Part
    path: str
    before: bytes | None
    after: bytes | None
    made_directories: tuple[str, ...] = ()
    """Directories made for it, the innermost first."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All that `waypost setup dns` has changed on this machine and not taken back."""

    version: int = 1
    files: tuple[Kept, ...] = ()
    steps: tuple[Step, ...] = ()
    """Commands that make the programs read their files again."""

    def of(self, path: str) -> Kept | None:
        """Return what is kept of a file."""
        return next((one for one in self.files if one.path == path), None)


FORMAT: Final = 1


def taken_back(kept: Kept, current: bytes | None, *, force: bool = False) -> bytes | None:
    """Return what a file shall hold (None: be gone) once our change is out of it.

    If nobody has touched it since, that is what was there before. Otherwise only our lines go, and the others' stay.
    Raises Conflict when the two cannot be told apart, Malformed when the file cannot be read any more; `force` takes what was
    there before then.
    """
    try:
        return _without_ours(kept, current)
    except (Conflict, Malformed):
        if not force:
            raise
        return kept.before


def _without_ours(kept: Kept, current: bytes | None) -> bytes | None:
    if current == kept.after:
        return kept.before
    if current is None or current == kept.before:
        return current
    if kept.part == "docker":
        return _without_dns(kept, current)
    if kept.before is None:
        raise Conflict(
            f"{kept.path} was changed since waypost made it; remove it yourself, or use -force"
        )
    return _reversed(kept, kept.before, current)


def _without_dns(kept: Kept, current: bytes) -> bytes:
    name = kept.path
    text, ours = _text(current), _text(kept.after)
    wanted = daemon_json.value_of(ours, KEY, name=name)
    if daemon_json.value_of(text, KEY, name=name) != wanted:
        return current  # somebody has set it to something else: it is theirs
    old = daemon_json.value_of(_text(kept.before), KEY, name=name)
    if old is None:
        return daemon_json.without(text, KEY, name=name).encode("utf-8", "surrogateescape")
    return daemon_json.with_value(text, KEY, old, name=name).encode("utf-8", "surrogateescape")


def _reversed(kept: Kept, before: bytes, current: bytes) -> bytes:
    """Take each block of lines we put in out of the current lines, and put in what it replaced."""
    old, new = _lines(before), _lines(kept.after or b"")
    lines = _lines(current)
    for tag, old_from, old_to, new_from, new_to in SequenceMatcher(
        None, old, new, autojunk=False
    ).get_opcodes():
        if tag == "equal":
            continue
        ours, theirs = new[new_from:new_to], old[old_from:old_to]
        at = _find(lines, ours) if ours else None
        if at is not None:
            lines[at : at + len(ours)] = theirs
        elif any(line in lines for line in ours if line not in old):
            raise Conflict(
                f"{kept.path} was changed in the same place since; take the line"
                f" {ours[-1].decode(errors='replace').strip()!r} out yourself, or use -force to have back what was there before"
            )
        # Otherwise nothing of it is left: whoever wrote the file anew has taken it out.
    return b"".join(lines)


def _find(lines: Sequence[bytes], block: Sequence[bytes]) -> int | None:
    places = [
        at
        for at in range(len(lines) - len(block) + 1)
        if list(lines[at : at + len(block)]) == list(block)
    ]
    return places[0] if len(places) == 1 else None


def recorded(
    record: Record, edits: Iterable[Edit], steps: Iterable[Step], *, parts: Iterable[Part]
) -> Record:
    """Return the record once `edits` are done: of `parts` it holds these alone, of others what it held.

    `before` of an edit is what undoing gives, so setting up again keeps the original.
    """
    chosen = set(parts)
    files = [one for one in record.files if one.part not in chosen]
    files += [
        Kept(part=one.part, path=one.path, before=one.before, after=one.after)
        for one in edits
        if one.before != one.after
    ]
    kept_steps = [one for one in record.steps if one.part not in chosen]
    changed = {one.part for one in files}
    return Record(
        files=tuple(files),
        steps=tuple(one for one in (*kept_steps, *steps) if one.part in changed),
    )


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)
