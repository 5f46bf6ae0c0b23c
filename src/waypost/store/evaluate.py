"""What a transaction means, decided in one place for every engine that evaluates transactions itself.

Nothing here writes: an engine hands in its rows, gets the answer and the events, and stores the events.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Protocol

from waypost.base.errors import Malformed, NotFound
from waypost.store.engine import (
    Compare,
    Delete,
    Event,
    Get,
    KeyValue,
    Operation,
    Put,
    Txn,
    TxnResult,
)

_FIELDS = {"modify": "modify_revision", "create": "create_revision", "version": "version"}
_OPS = ("==", "!=", "<", ">")
_MAX_LEASE = 2**63 - 1


class Rows(Protocol):
    """The current rows, as the transaction finds them."""

    def get(self, key: bytes) -> KeyValue | None:
        """Return the row of one key."""
        ...

    def span(self, key: bytes, end: bytes) -> Iterable[KeyValue]:
        """Return the rows with key <= k < end in order."""
        ...


def validate(txn: Txn) -> None:
    """Raise Malformed when the transaction can be refused without looking at the store."""
    for compare in txn.when:
        _validate_compare(compare)
    for branch in (txn.then, txn.otherwise):
        if len(branch) == 1:
            operation = branch[0]
            if type(operation) is Put:
                _validate_put(operation)
        elif branch:
            _validate_branch(branch)


def _validate_compare(compare: Compare) -> None:
    if compare.op not in _OPS:
        msg = f"compare of key {compare.key!r}: unknown operator {compare.op!r}, expected one of {', '.join(_OPS)}"
        raise Malformed(msg)
    if compare.field == "value":
        if not isinstance(compare.want, bytes):
            msg = f"compare of key {compare.key!r}: a value is compared with bytes, not with {compare.want!r}"
            raise Malformed(msg)
    elif compare.field not in _FIELDS:
        msg = f"compare of key {compare.key!r}: unknown field {compare.field!r}"
        raise Malformed(msg)
    elif not isinstance(compare.want, int):
        msg = f"compare of key {compare.key!r}: {compare.field} is compared with a number, not with {compare.want!r}"
        raise Malformed(msg)


def _validate_put(put: Put) -> None:
    if not put.key:
        msg = "the empty key cannot be written"
        raise Malformed(msg)
    if not 0 <= put.lease <= _MAX_LEASE:
        msg = f"put of key {put.key!r}: {put.lease} cannot be a lease"
        raise Malformed(msg)


def _validate_branch(branch: tuple[Operation, ...]) -> None:
    written: set[bytes] = set()
    spans: list[tuple[bytes, bytes]] = []
    for operation in branch:
        if isinstance(operation, Put):
            _validate_put(operation)
            key = operation.key
        elif isinstance(operation, Delete):
            if operation.end is not None:
                spans.append((operation.key, operation.end))
                continue
            key = operation.key
        else:
            continue
        if key in written:
            msg = f"key {key!r} is written twice in one transaction"
            raise Malformed(msg)
        written.add(key)
    for start, end in spans:
        for operation in branch:
            if isinstance(operation, Put) and start <= operation.key < end:
                msg = f"key {operation.key!r} is put and deleted in one transaction"
                raise Malformed(msg)


def holds(compare: Compare, row: KeyValue | None) -> bool:
    """Return whether the row (None: missing) satisfies the condition."""
    have: int | bytes
    if compare.field == "value":
        have = b"" if row is None else row.value
    elif row is None:
        have = 0
    else:
        have = getattr(row, _FIELDS[compare.field])
    want = compare.want
    match compare.op:
        case "==":
            return have == want
        case "!=":
            return have != want
        case "<":
            return have < want  # type: ignore[operator]  # validate() saw to it that both are of one kind
        case ">":
            return have > want  # type: ignore[operator]


def evaluate(
    txn: Txn, rows: Rows, *, revision: int, leases: Container[int]
) -> tuple[TxnResult, tuple[Event, ...]]:
    """Return the answer to a validated transaction, and the events of revision + 1 that make it true.

    No events: nothing changes and the answer's revision is `revision`. Raises NotFound when a key is put under a
    lease that does not exist; nothing may be changed then.
    """
    get = rows.get
    succeeded = True
    for compare in txn.when:
        if not holds(compare, get(compare.key)):
            succeeded = False
            break
    events: list[Event] = []
    results: list[int | tuple[KeyValue, ...] | None] = []
    gone: set[bytes] = set()
    new = revision + 1
    for operation in txn.then if succeeded else txn.otherwise:
        if isinstance(operation, Put):
            events.append(_put(operation, get(operation.key), revision=new, leases=leases))
            results.append(None)
            continue
        found = _find(rows, operation)
        if isinstance(operation, Get):
            results.append(tuple(found))
            continue
        deleted = 0
        for row in found:
            if row.key not in gone:
                gone.add(row.key)
                deleted += 1
                events.append(deletion(row.key, revision=new))
        results.append(deleted)
    return TxnResult(succeeded, new if events else revision, tuple(results)), tuple(events)


def deletion(key: bytes, *, revision: int) -> Event:
    """Return the event of a key's deletion."""
    return Event("delete", KeyValue(key, b"", 0, revision, 0))


def _put(put: Put, row: KeyValue | None, *, revision: int, leases: Container[int]) -> Event:
    if put.lease and put.lease not in leases:
        msg = f"lease {put.lease} does not exist"
        raise NotFound(msg)
    if row is None:
        return Event("put", KeyValue(put.key, put.value, revision, revision, 1, put.lease))
    return Event(
        "put",
        KeyValue(put.key, put.value, row.create_revision, revision, row.version + 1, put.lease),
    )


def _find(rows: Rows, operation: Get | Delete) -> Iterable[KeyValue]:
    if operation.end is not None:
        return rows.span(operation.key, operation.end)
    row = rows.get(operation.key)
    return () if row is None else (row,)
