"""`waypost setup dns`: looks, decides, changes, checks; and takes it back. Blocking."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Final

import msgspec

from waypost.drivers.host import files, look
from waypost.drivers.host.engine import plan_docker
from waypost.drivers.host.records import Edit, Facts, Part, Plan, Step, Wanted
from waypost.drivers.host.resolver import plan_host
from waypost.drivers.host.undo import Kept, Record, recorded, taken_back

PARTS: Final[tuple[Part, ...]] = ("host", "docker")
_STEP_S: Final = 120.0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """All that is to be done now: `edits` go from what is there to what shall be."""

    edits: tuple[Edit, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    record: Record
    """What is kept once it is done."""

    @property
    def is_empty(self) -> bool:
        """Tell whether all is as it shall be."""
        return not self.edits


def wants_setup(facts: Facts, wanted: Wanted, record: Record, *, parts: Sequence[Part]) -> Change:
    """Return what sets the parts up: as if what an earlier run changed were taken back first. Pure.

    Raises Rejected, Conflict, Malformed; then nothing of it shall be done.
    """
    bases = _bases(facts, record, parts, force=wanted.force)
    undone = msgspec.structs.replace(facts, files={**facts.files, **bases})
    plans: list[Plan] = []
    if "host" in parts:
        plans.append(plan_host(undone, wanted))
    if "docker" in parts:
        plans.append(plan_docker(undone, wanted))
    planned = {edit.path: edit for plan in plans for edit in plan.edits}
    left = {
        path: Edit(part=_part(record, path), path=path, before=base, after=base)
        for path, base in bases.items()
        if path not in planned
    }
    edits = tuple(
        edit
        for one in (*planned.values(), *left.values())
        if (edit := _from_now(one, facts)).before != edit.after
    )
    steps = tuple(step for plan in plans for step in plan.steps)
    changed = {edit.part for edit in edits}
    # A file that an earlier run changed and this one does not is read by whom the earlier one told.
    readers = (*steps, *(record.steps if any(one.path in left for one in edits) else ()))
    return Change(
        edits=edits,
        steps=tuple(step for step in dict.fromkeys(readers) if step.part in changed),
        notes=tuple(note for plan in plans for note in plan.notes),
        record=_with_directories(recorded(record, planned.values(), steps, parts=parts), record),
    )


def wants_undo(
    facts: Facts, record: Record, *, parts: Sequence[Part], force: bool = False
) -> Change:
    """Return what takes the parts back. Pure. Raises Conflict where our lines cannot be told from others'."""
    bases = _bases(facts, record, parts, force=force)
    edits = [
        Edit(part=_part(record, path), path=path, before=facts.files.get(path), after=base)
        for path, base in bases.items()
    ]
    changed = tuple(one for one in edits if one.before != one.after)
    notes = tuple(
        f"{kept.path} was changed since: "
        + (
            "it gets back what was there before."
            if bases[kept.path] == kept.before
            else "only what waypost put there goes."
        )
        for kept in record.files
        if kept.part in parts and facts.files.get(kept.path) not in (kept.after, kept.before)
    )
    return Change(
        edits=changed,
        steps=tuple(step for step in record.steps if step.part in {one.part for one in changed}),
        notes=notes,
        record=recorded(record, (), (), parts=parts),
    )


def perform(change: Change, *, record_path: Path, root: Path = Path("/")) -> None:
    """Change the files, all or none, and keep the record. Raises Forbidden, Unavailable.

    The record is on disk first: whatever ends this in the middle, `-undo` knows what was there.
    """
    before = files.read_record(record_path)
    known = {one.path: one for one in before.files}
    both = (
        *change.record.files,
        *(one for path, one in known.items() if not change.record.of(path)),
    )
    files.write_record(record_path, msgspec.structs.replace(change.record, files=both))
    try:
        made = files.apply(change.edits, root=root)
    except BaseException:
        # What could not be put back is still known for -undo.
        if all(files.holds(one.before, files.below(root, one.path)) for one in change.edits):
            files.write_record(record_path, before)
        raise
    for one in known.values():
        if change.record.of(one.path) is None:
            files.remove_directories(one.made_directories)
    files.write_record(record_path, _with_made(change.record, made))


def run(step: Step) -> str:
    """Run the command of a step; return why it failed, "" when it did not."""
    argv = [look.program(step.argv[0]) or step.argv[0], *step.argv[1:]]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_STEP_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    if done.returncode:
        return (done.stderr or done.stdout).strip() or f"status {done.returncode}"
    return ""


def diff(edit: Edit) -> str:
    """Return the change of a file as a unified diff."""
    old = (edit.before or b"").decode("utf-8", "replace").splitlines(keepends=True)
    new = (edit.after or b"").decode("utf-8", "replace").splitlines(keepends=True)
    lines = unified_diff(
        old,
        new,
        "/dev/null" if edit.before is None else edit.path,
        "/dev/null" if edit.after is None else edit.path,
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _bases(
    facts: Facts, record: Record, parts: Sequence[Part], *, force: bool
) -> Mapping[str, bytes | None]:
    return {
        kept.path: taken_back(kept, facts.files.get(kept.path), force=force)
        for kept in record.files
        if kept.part in parts
    }


def _from_now(edit: Edit, facts: Facts) -> Edit:
    return msgspec.structs.replace(edit, before=facts.files.get(edit.path))


def _part(record: Record, path: str) -> Part:
    kept = record.of(path)
    assert kept is not None
    return kept.part


def _with_directories(record: Record, old: Record) -> Record:
    kept = {one.path: one.made_directories for one in old.files}
    return _with_made(record, kept)


def _with_made(record: Record, made: Mapping[str, tuple[str, ...]]) -> Record:
    def with_made(one: Kept) -> Kept:
        return msgspec.structs.replace(
            one, made_directories=made.get(one.path) or one.made_directories
        )

    return msgspec.structs.replace(record, files=tuple(map(with_made, record.files)))
