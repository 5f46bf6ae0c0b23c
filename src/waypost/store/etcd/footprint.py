"""Which keys transactions touch, and so which of them may be sent together. Pure.

All compares of a batch see the state before the batch, so a transaction may join one only if nothing it reads or
writes is written by an earlier member. And callers are served in order: a transaction overtakes those that have to
wait, or are under way elsewhere, only if it has nothing to do with them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from waypost.store.engine import Delete, Get, Put, Txn

Span = tuple[bytes, bytes]
_NONE: frozenset[bytes] = frozenset()


class Footprint(msgspec.Struct, frozen=True):
    """The keys and spans key <= k < end that a transaction may read or write, whichever branch it takes."""

    reads: frozenset[bytes] = _NONE
    writes: frozenset[bytes] = _NONE
    read_spans: tuple[Span, ...] = ()
    write_spans: tuple[Span, ...] = ()

    @classmethod
    def of(cls, txn: Txn) -> Footprint:
        """Return what `txn` touches."""
        reads = [compare.key for compare in txn.when]
        writes: list[bytes] = []
        read_spans: list[Span] = []
        write_spans: list[Span] = []
        for operation in (*txn.then, *txn.otherwise):
            if isinstance(operation, Put):
                writes.append(operation.key)
            elif isinstance(operation, Get):
                if operation.end is None:
                    reads.append(operation.key)
                else:
                    read_spans.append((operation.key, operation.end))
            elif isinstance(operation, Delete):
                if operation.end is None:
                    writes.append(operation.key)
                else:
                    write_spans.append((operation.key, operation.end))
        return cls(frozenset(reads), frozenset(writes), tuple(read_spans), tuple(write_spans))


class Touched:
    """The union of footprints."""

    def __init__(self) -> None:
        self._reads: set[bytes] = set()
        self._writes: set[bytes] = set()
        self._read_spans: list[Span] = []
        self._write_spans: list[Span] = []

    def add(self, footprint: Footprint) -> None:
        """Take in one more transaction."""
        self._reads |= footprint.reads
        self._writes |= footprint.writes
        self._read_spans += footprint.read_spans
        self._write_spans += footprint.write_spans

    def add_all(self, other: Touched) -> None:
        """Take in all of another union."""
        self._reads |= other._reads
        self._writes |= other._writes
        self._read_spans += other._read_spans
        self._write_spans += other._write_spans

    def wrote(self, footprint: Footprint) -> bool:
        """Return whether something here writes what `footprint` reads or writes: it must not see the state before."""
        return _overlap(
            self._writes, self._write_spans, footprint.reads, footprint.read_spans
        ) or _overlap(self._writes, self._write_spans, footprint.writes, footprint.write_spans)

    def concerns(self, footprint: Footprint) -> bool:
        """Return whether the order of the two matters: one writes what the other reads or writes."""
        return self.wrote(footprint) or _overlap(
            self._reads, self._read_spans, footprint.writes, footprint.write_spans
        )


def _overlap(
    keys: set[bytes], spans: list[Span], others: frozenset[bytes], other_spans: tuple[Span, ...]
) -> bool:
    return (
        not keys.isdisjoint(others)
        or (bool(spans) and _within(others, spans))
        or (bool(other_spans) and _within(keys, other_spans))
        or any(a < d and c < b for a, b in spans for c, d in other_spans)
    )


def _within(keys: Iterable[bytes], spans: Iterable[Span]) -> bool:
    return any(start <= key < end for start, end in spans for key in keys)
