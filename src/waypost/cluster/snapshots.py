"""Snapshots: everything the store holds at one revision as a file, and back, whatever the engine.

Saving reads all keys as of one revision. What belongs to the moment is left out: who leads, user events, lock-delays,
keys under a lease.

Restoring replaces everything by what the file holds: differing keys are written, others deleted, those that belong to the
moment stay. Revisions go on from the present one, never back: whoever waits for a change sees one, and a client that
remembers an index is never ahead of the store. Promise: with an engine of this process (memory, sqlite) it is one
transaction, so readers see the old or the new state and nothing between, and a crash leaves one of them. With etcd it is
one transaction while it fits into one (about a MiB); else several: first the policy, namely all objects, as one if it fits,
then the rest, additions before removals. Meanwhile readers see parts of both; a note in the store says that a restore is
under way, so that one that was cut off is told to the operator (`interrupted`), and restoring again completes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from waypost.access.pki.files import SECRET_MODE, FileWrite, ensure_directory, write_all
from waypost.base.clock import Clock
from waypost.base.errors import Malformed, Rejected, TooLarge, Unavailable, WaypostError
from waypost.cluster.leadership import LEADER, Term
from waypost.state.keys import (
    CHECK,
    KV,
    NODE,
    OBJECT,
    SERVICE,
    SESSION,
    SYSTEM,
    decode,
    system_key,
)
from waypost.state.state import State
from waypost.state.view import View
from waypost.store.engine import Delete, Engine, KeyValue, Operation, Put, Txn
from waypost.wire.snapshot import (
    Archive,
    Meta,
    decode_state,
    encode_state,
    make_meta,
    pack,
    unpack,
)

log = logging.getLogger(__name__)

_FIRST: Final = b"\0"
_END: Final = b"\xff"
_TABLES: Final = (NODE, SERVICE, CHECK, KV, SESSION, OBJECT, SYSTEM)
_RESTORE: Final = "restore"
"""Name of the note that a restore is under way, among the view's system entries."""
_OF_THE_MOMENT: Final = frozenset({LEADER, "event", "lock-delay", _RESTORE})
_ONE_PROCESS: Final = frozenset({"memory", "sqlite"})
_CHUNK_OPERATIONS: Final = 1024
_CHUNK_BYTES: Final = 768 * 1024
_OPERATION_BYTES: Final = 64
SUFFIX: Final = ".snap"


def is_kept(kv: KeyValue) -> bool:
    """Return whether a key is part of snapshots: not the engine's own, and not of the moment."""
    if kv.lease or kv.key[:2] not in _TABLES:
        return False
    if not kv.key.startswith(SYSTEM):
        return True
    owner = kv.key[len(SYSTEM) :].partition(b"\0")[0]
    return owner.decode("utf-8", "replace") not in _OF_THE_MOMENT


# -- saving ------------------------------------------------------------------------------------------------------------


async def read_snapshot(engine: Engine, *, term: int, wall_s: float) -> tuple[Meta, bytes]:
    """Return the description and the file of everything the engine holds now. Raises NoLeader, Unavailable."""
    page = await engine.range(_FIRST, _END)
    return await asyncio.to_thread(
        _pack, page.items, revision=page.revision, term=term, wall_s=wall_s
    )


def _pack(
    items: Sequence[KeyValue], *, revision: int, term: int, wall_s: float
) -> tuple[Meta, bytes]:
    state = encode_state((kv.key, kv.value) for kv in items if is_kept(kv))
    meta = make_meta(index=revision, term=term, wall_s=wall_s, size=len(state))
    return meta, pack(meta, state, wall_s=wall_s)


# -- restoring ---------------------------------------------------------------------------------------------------------


def open_snapshot(archive: bytes) -> tuple[Archive, dict[bytes, bytes]]:
    """Return a snapshot and its values by key, all of which this program can read. Raises Malformed."""
    opened = unpack(archive)
    values = decode_state(opened.state)
    for key, value in values.items():
        one = KeyValue(key, value, 0, 0)
        if not is_kept(one):
            msg = f"failed to read snapshot: key {key!r} is not part of snapshots"
            raise Malformed(msg)
        try:
            decode(one)
        except Malformed as error:
            msg = f"failed to read snapshot: {error}"
            raise Malformed(msg) from error
    return opened, values


def differences(
    present: Iterable[KeyValue], wanted: Mapping[bytes, bytes]
) -> tuple[list[Put], list[Delete]]:
    """Return what turns the present keys into the wanted ones."""
    values = {kv.key: kv.value for kv in present if is_kept(kv)}
    puts = [Put(key, value) for key, value in wanted.items() if values.get(key) != value]
    deletes = [Delete(key) for key in values if key not in wanted]
    return puts, deletes


def chunks(
    puts: Sequence[Put], deletes: Sequence[Delete], *, note: Put
) -> list[tuple[Operation, ...]]:
    """Return the operations in transactions of bounded size: objects first, additions before removals.

    The first writes `note`, the last deletes it.
    """
    every: list[Put | Delete] = [*puts, *deletes]
    policy = [one for one in every if one.key.startswith(OBJECT)]
    rest = [one for one in every if not one.key.startswith(OBJECT)]
    found: list[list[Operation]] = [[note]]
    for group in (policy, rest):
        parts = list(_cut(group))
        if parts and len(found) == 1 and len(found[0]) == 1:
            found[0] += parts.pop(0)
        found += [[*part] for part in parts]
    found.append([Delete(note.key)])
    return [tuple(one) for one in found]


def _cut(operations: Iterable[Put | Delete]) -> Iterator[list[Put | Delete]]:
    part: list[Put | Delete] = []
    size = 0
    for one in operations:
        cost = _cost(one)
        if part and (len(part) >= _CHUNK_OPERATIONS or size + cost > _CHUNK_BYTES):
            yield part
            part, size = [], 0
        part.append(one)
        size += cost
    if part:
        yield part


def _cost(operation: Operation) -> int:
    value = len(operation.value) if isinstance(operation, Put) else 0
    return len(operation.key) + value + _OPERATION_BYTES


async def write_snapshot(engine: Engine, archive: bytes, *, wall_s: float) -> int:
    """Replace everything by what a file holds; return the revision after it.

    See this module for what is promised. Raises Malformed for a bad file (nothing was changed), NoLeader, Unavailable,
    Unknown.
    """
    opened, wanted = await asyncio.to_thread(open_snapshot, archive)
    page = await engine.range(_FIRST, _END)
    puts, deletes = differences(page.items, wanted)
    if not puts and not deletes and not _is_noted(page.items):
        return page.revision
    facts = {"id": opened.meta.id, "index": opened.meta.index, "started": wall_s}
    note = Put(system_key(_RESTORE), msgspec.msgpack.encode(facts))
    status = await engine.status()
    size = sum(map(_cost, puts)) + sum(map(_cost, deletes))
    fits = len(puts) + len(deletes) <= _CHUNK_OPERATIONS and size <= _CHUNK_BYTES
    if status.engine in _ONE_PROCESS or fits:
        try:
            cleared = (Delete(note.key),) if _is_noted(page.items) else ()
            return (await engine.commit(Txn(then=(*puts, *deletes, *cleared)))).revision
        except TooLarge:
            log.debug("the restore does not fit into one transaction")
    revision = page.revision
    for part in chunks(puts, deletes, note=note):
        revision = (await engine.commit(Txn(then=part))).revision
    return revision


def _is_noted(items: Iterable[KeyValue]) -> bool:
    key = system_key(_RESTORE)
    return any(kv.key == key for kv in items)


def interrupted(view: View) -> str:
    """Return the id of the snapshot whose restore is under way or was cut off; empty without one."""
    entry = view.system(_RESTORE)
    if entry is None:
        return ""
    facts = msgspec.msgpack.decode(entry.value, type=dict[str, int | float | str])
    return str(facts.get("id", "unknown"))


class Snapshots:
    """Saves and restores for the surfaces of one agent that holds the store."""

    def __init__(self, state: State, *, clock: Clock, term: Callable[[], int] = lambda: 1) -> None:
        """`term` is what a file says about the leader's term."""
        self._state = state
        self._clock = clock
        self._term = term
        self._one_at_a_time = asyncio.Lock()

    async def save(self) -> tuple[int, bytes]:
        """Return the revision and the file. Raises NoLeader, Unavailable."""
        meta, archive = await read_snapshot(
            self._state.engine, term=max(1, self._term()), wall_s=self._clock.wall()
        )
        return meta.index, archive

    async def restore(self, archive: bytes) -> None:
        """Replace everything by what a file holds. Raises Rejected in Consul's words, NoLeader, Unavailable, Unknown.

        When it returns the view of this agent has it.
        """
        async with self._one_at_a_time:
            try:
                revision = await write_snapshot(
                    self._state.engine, archive, wall_s=self._clock.wall()
                )
            except Malformed as error:
                raise Rejected(str(error)) from error
            await self._state.reached(revision)
            log.warning("the store was replaced by a snapshot, revision %d", revision)


# -- on schedule -------------------------------------------------------------------------------------------------------


class ScheduleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshots that the leader takes by itself."""

    folder: Path
    """Made with mode 0700 when missing; the files have mode 0600, they hold every secret."""
    every_s: float = 3600.0
    keep: int = 24
    """How many files stay; the oldest go first."""


def surplus(names: Iterable[str], *, keep: int) -> list[str]:
    """Return the file names of snapshots on schedule that are too many, the oldest first."""
    ours = sorted(name for name in names if name.startswith("waypost-") and name.endswith(SUFFIX))
    return ours[: max(0, len(ours) - keep)]


class Schedule:
    """Takes a snapshot every so often while this agent leads. A duty of the leader."""

    def __init__(self, snapshots: Snapshots, settings: ScheduleSettings, *, clock: Clock) -> None:
        self._snapshots = snapshots
        self._settings = settings
        self._clock = clock

    async def run(self, _term: Term) -> None:
        """Take them until cancelled; what goes wrong is logged and tried again at the next time."""
        wait_s = await asyncio.to_thread(self._first_wait_s)
        while True:
            await asyncio.sleep(wait_s)
            try:
                path = await self.take()
                log.info("snapshot %s", path)
            except WaypostError as error:
                log.error("no snapshot was taken: %s", error)
            wait_s = self._settings.every_s

    async def take(self) -> Path:
        """Take one now, remove those that are too many, and return its path. Raises Unavailable."""
        revision, archive = await self._snapshots.save()
        when = datetime.fromtimestamp(self._clock.wall(), UTC)
        name = f"waypost-{when:%Y%m%dT%H%M%SZ}-{revision}{SUFFIX}"
        return await asyncio.to_thread(self._write, name, archive)

    def _write(self, name: str, archive: bytes) -> Path:
        folder = self._settings.folder
        ensure_directory(folder)
        path = folder / name
        write_all([FileWrite(path, archive, SECRET_MODE)])
        try:
            for old in surplus((one.name for one in folder.iterdir()), keep=self._settings.keep):
                (folder / old).unlink(missing_ok=True)
        except OSError as error:
            msg = f"{folder}: old snapshots cannot be removed: {error.strerror or error}"
            raise Unavailable(msg) from error
        return path

    def _first_wait_s(self) -> float:
        """Return when the next one is due by the newest file, so that a change of the leader does not put it off."""
        try:
            times = [one.stat().st_mtime for one in self._settings.folder.glob(f"*{SUFFIX}")]
        except OSError:
            times = []
        if not times:
            return min(60.0, self._settings.every_s)
        age_s = self._clock.wall() - max(times)
        return min(max(self._settings.every_s - age_s, 0.0), self._settings.every_s)
