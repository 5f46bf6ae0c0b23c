"""The state that a machine saw last, kept on its disk: what it answers by after a restart until it reaches the store.

An etcd that starts answers nobody, not even from its own data, before it has met a quorum, and a client agent has no data
at all. So each member writes what its view has into one file, a few seconds after it changed, and loads it when it
starts. It is no source of truth: nothing is decided on it that the store would have to agree to, and the first load
from the store replaces it.

The file holds what the view holds: on a server every secret.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Final

import msgspec

from waypost.access.pki.files import FileWrite, ensure_directory, write_all
from waypost.base.clock import Clock
from waypost.base.errors import Malformed, Unavailable
from waypost.state.keys import SYSTEM, Record, encode, key_of
from waypost.state.view import SystemEntry, View
from waypost.store.engine import KeyValue

log = logging.getLogger(__name__)

EVERY_S: Final = 5.0
"""Between two writes; so much of the latest may be missing after `kill -9`."""
_SHARE: Final = 50
"""A large state is written more rarely: writing takes at most this part of the time."""
_FORMAT: Final = 1


class LastState(msgspec.Struct, frozen=True, array_like=True):
    """The content of the file."""

    format: int
    node_id: str
    revision: int
    written_s: float
    """Wall clock."""
    rows: tuple[KeyValue, ...]


class LastStateFile:
    """The file of one member. `run()` keeps it current."""

    def __init__(self, path: Path, view: View, *, node_id: str, clock: Clock) -> None:
        self.path = path
        self._view = view
        self._node_id = node_id
        self._clock = clock
        self._written = -1
        """`View.changes` of what is in the file."""
        self._complained = ""

    def restore(self) -> float | None:
        """Load the view from the file; return how many seconds ago it was written.

        None, and the view as it was, when there is no file, or none that can be used; the log says why.
        """
        began = self._clock.now()
        try:
            found = msgspec.msgpack.decode(self.path.read_bytes(), type=LastState)
            if (found.format, found.node_id) != (_FORMAT, self._node_id):
                msg = f"it is of node {found.node_id}, in format {found.format}"
                raise Malformed(msg)
            self._load(found)
        except FileNotFoundError:
            return None
        except (OSError, Malformed, msgspec.MsgspecError) as error:
            log.warning("the state before the restart cannot be used: %s: %s", self.path, error)
            return None
        age_s = max(0.0, self._clock.wall() - found.written_s)
        log.info(
            "until the store answers, what is shown is the state of %s, %.0f s ago (revision %d, loaded in %.2f s)",
            time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.written_s)),
            age_s,
            found.revision,
            self._clock.now() - began,
        )
        return age_s

    def _load(self, state: LastState) -> None:
        try:
            self._view.load(state.rows, revision=state.revision)
        except Malformed:
            self._view.load((), revision=0)
            raise

    async def run(self) -> None:
        """Write the file whenever the view has changed, until cancelled, and then once more."""
        try:
            while True:
                took_s = await self._write_aside()
                await asyncio.sleep(max(EVERY_S, _SHARE * took_s))
        finally:
            self.write()

    def write(self) -> None:
        """Write the file now, if the view has changed. A failure is logged."""
        if self._written == self._view.changes:
            return
        changes, state, records = self._view.changes, self._head(), self._records()
        if self._store(state, records):
            self._written = changes

    async def _write_aside(self) -> float:
        """Write the file if the view has changed, without holding up the loop; return the seconds that it took."""
        if self._written == self._view.changes:
            return 0.0
        began = self._clock.now()
        # The records of one moment, which are frozen; turning them into bytes is what takes long.
        changes, state, records = self._view.changes, self._head(), self._records()
        if await asyncio.to_thread(self._store, state, records):
            self._written = changes
        return self._clock.now() - began

    def _head(self) -> LastState:
        return LastState(_FORMAT, self._node_id, self._view.revision, self._clock.wall(), ())

    def _records(self) -> list[Record | SystemEntry]:
        with self._view.as_stored():
            return list(self._view.records())

    def _store(self, head: LastState, records: list[Record | SystemEntry]) -> bool:
        state = msgspec.structs.replace(head, rows=tuple(map(_row, records)))
        try:
            ensure_directory(self.path.parent)
            write_all([FileWrite(self.path, msgspec.msgpack.encode(state), 0o600)])
        except Unavailable as error:
            if str(error) != self._complained:
                log.warning("the state of now cannot be kept for the next start: %s", error)
            self._complained = str(error)
            return False
        self._complained = ""
        return True


def _row(record: Record | SystemEntry) -> KeyValue:
    if isinstance(record, SystemEntry):
        key = SYSTEM + record.name.encode("utf-8", "surrogateescape")
        return KeyValue(key, record.value, record.create_index, record.modify_index)
    return KeyValue(key_of(record), encode(record), record.create_index, record.modify_index)
