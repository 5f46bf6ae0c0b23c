"""One group of requests as one SQLite transaction. Synchronous; belongs to the writer thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from waypost.base.errors import WaypostError
from waypost.store.engine import Batch, Event, KeyValue, Txn, TxnResult
from waypost.store.evaluate import deletion, evaluate

# The columns are the fields of KeyValue in order.
_GET = "SELECT k, v, crev, mrev, ver, lease FROM kv WHERE k = ?"
_SPAN = "SELECT k, v, crev, mrev, ver, lease FROM kv WHERE k >= ? AND k < ? ORDER BY k LIMIT ?"
_PUT = """INSERT INTO kv (k, v, crev, mrev, ver, lease) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (k) DO UPDATE SET
    v = excluded.v, crev = excluded.crev, mrev = excluded.mrev, ver = excluded.ver, lease = excluded.lease"""
_LEASED = "SELECT k FROM kv WHERE lease = ? AND lease != 0 ORDER BY k"  # the second term lets it use the partial index


def read_row(db: sqlite3.Connection, key: bytes) -> KeyValue | None:
    """Return the row of one key."""
    found = db.execute(_GET, (key,)).fetchone()
    return None if found is None else KeyValue(*found)


def read_span(db: sqlite3.Connection, key: bytes, end: bytes, *, limit: int = -1) -> list[KeyValue]:
    """Return the rows with key <= k < end in order; a negative limit is none."""
    return [KeyValue(*row) for row in db.execute(_SPAN, (key, end, limit))]


class Grant(msgspec.Struct, frozen=True):
    """Make a lease."""

    ttl_s: float


class Revoke(msgspec.Struct, frozen=True):
    """End a lease with its keys."""

    lease: int


Request = Txn | Grant | Revoke
Answer = TxnResult | int | None | WaypostError


class Group:
    """Requests carried out one after the other, each seeing what the earlier ones did; all or none become durable.

    Writes are kept here and go to the database when a range is read and at the end, so a key that many transactions
    of one group write is written once.
    """

    def __init__(self, db: sqlite3.Connection, *, revision: int, leases: frozenset[int]) -> None:
        self._db = db
        self.revision = revision
        self.leases = leases
        self.keys = 0
        """By how many the number of keys grows."""
        self.batches: list[Batch] = []
        self.changed = False
        self._seen: dict[bytes, KeyValue | None] = {}
        self._unwritten: set[bytes] = set()

    def run(self, request: Request) -> Answer:
        """Return the answer to a request; an error of that request alone is an answer. Raises sqlite3.Error."""
        if isinstance(request, Txn):
            try:
                result, events = evaluate(request, self, revision=self.revision, leases=self.leases)
            except WaypostError as error:
                return error
            if events:
                self._apply(events)
            return result
        if isinstance(request, Grant):
            self.changed = True
            lease = self._db.execute(
                "INSERT INTO lease (ttl_s) VALUES (?)", (request.ttl_s,)
            ).lastrowid
            assert lease is not None
            self.leases |= {lease}
            return lease
        self._revoke(request.lease)
        return None

    def get(self, key: bytes) -> KeyValue | None:
        """Return the row of one key."""
        seen = self._seen
        if key in seen:
            return seen[key]
        row = seen[key] = read_row(self._db, key)
        return row

    def span(self, key: bytes, end: bytes) -> Iterable[KeyValue]:
        """Return the rows with key <= k < end in order."""
        self._write()
        return read_span(self._db, key, end)

    def finish(self) -> None:
        """Write everything; only COMMIT is left."""
        self._write()
        if self.batches:
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (self.revision,))

    def _revoke(self, lease: int) -> None:
        if lease not in self.leases:
            return
        self._write()
        keys = [row[0] for row in self._db.execute(_LEASED, (lease,))]
        if keys:
            revision = self.revision + 1
            self._apply(tuple(deletion(key, revision=revision) for key in keys))
        self.changed = True
        self._db.execute("DELETE FROM lease WHERE id = ?", (lease,))
        self.leases -= {lease}

    def _apply(self, events: tuple[Event, ...]) -> None:
        self.changed = True
        self.revision += 1
        self.batches.append(Batch(self.revision, events))
        for event in events:
            row = event.kv
            if event.kind == "delete":
                self.keys -= 1
                self._seen[row.key] = None
            else:
                if row.version == 1:
                    self.keys += 1
                self._seen[row.key] = row
            self._unwritten.add(row.key)

    def _write(self) -> None:
        if not self._unwritten:
            return
        puts: list[tuple[bytes, bytes, int, int, int, int]] = []
        deletes: list[tuple[bytes]] = []
        for key in self._unwritten:
            row = self._seen[key]
            if row is None:
                deletes.append((key,))
            else:
                puts.append(
                    (
                        key,
                        row.value,
                        row.create_revision,
                        row.modify_revision,
                        row.version,
                        row.lease,
                    )
                )
        if deletes:
            self._db.executemany("DELETE FROM kv WHERE k = ?", deletes)
        if puts:
            self._db.executemany(_PUT, puts)
        self._unwritten.clear()
