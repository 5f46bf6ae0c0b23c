"""Our transactions as etcd's, and etcd's answers as ours. Pure.

Where the two differ: our reads see the transaction's start whatever their place (etcd's see earlier puts), so they go
first; a missing key has the value b"" (in etcd a value compare of a missing key is false); the keys that the engine
keeps for itself do not exist for callers; the empty key and the end b"" mean what they say.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from waypost.base.errors import Malformed
from waypost.store.engine import Compare, Delete, Get, KeyValue, Operation, Put, Txn
from waypost.store.etcd.footprint import Footprint
from waypost.store.etcd.messages import (
    ResponseOp,
    TxnResponse,
    compare_json,
    delete_json,
    get_json,
    put_json,
    txn_json,
    vacant_json,
)
from waypost.store.evaluate import holds, validate

LANES = b"_\0lane\0"
"""Where the engine keeps the marks of its batches."""
LANES_END = b"_\0lane\1"

_MAX = 2**63 - 1

Results = tuple[int | tuple[KeyValue, ...] | None, ...]


class Branch(msgspec.Struct, frozen=True):
    """One branch in etcd's order, and where the answers to our operations are."""

    json: bytes
    """The operations, joined with commas."""
    slots: tuple[tuple[Operation, tuple[int, ...]], ...]
    """Each of our operations, in our order, with the places of its answers."""
    count: int
    puts: bool
    vacant: bytes
    """Conditions, joined with commas, that all hold if and only if the deletions find nothing to delete."""
    skip: int
    """Bytes of the prefix before each of our keys."""


class Compiled(msgspec.Struct, frozen=True):
    """A transaction that is ready to be sent, alone or among others."""

    txn: Txn
    compares: bytes
    denials: tuple[bytes, ...]
    """Conditions that must each not hold, tried one after the other before `compares`."""
    impossible: bool
    """A condition can never hold: `otherwise` it is."""
    then: Branch
    otherwise: Branch
    footprint: Footprint
    json: bytes
    """The whole as a TxnRequest."""
    operations: int
    """What it counts against etcd's --max-txn-ops."""

    def read(self, response: TxnResponse) -> tuple[bool, Results]:
        """Return whether the compares held, and the results of the branch taken."""
        for _ in self.denials:
            if response.succeeded:
                return False, _results(self.otherwise, response.responses)
            nested = response.responses[0].response_txn
            assert nested is not None
            response = nested
        if response.succeeded and not self.impossible:
            return True, _results(self.then, response.responses)
        return False, _results(self.otherwise, response.responses)

    def wrote(self, succeeded: bool, results: Results) -> bool:  # noqa: FBT001  # as `read` returns them
        """Return whether it has changed anything, given its results."""
        branch = self.then if succeeded else self.otherwise
        return branch.puts or any(isinstance(r, int) and r > 0 for r in results)


def pieces(key: bytes, end: bytes | None) -> tuple[tuple[bytes, bytes | None], ...]:
    """Return the spans that etcd has to be asked for: none for what cannot exist, two around the engine's own keys."""
    if end is None:
        return () if not key or LANES <= key < LANES_END else ((key, None),)
    key = key or b"\0"
    left, right = (key, min(end, LANES)), (max(key, LANES_END), end)
    return tuple(span for span in (left, right) if span[0] < span[1])


def below(prefix: bytes, span: tuple[bytes, bytes | None]) -> tuple[bytes, bytes | None]:
    """Return a span of ours as it is in etcd, where all our keys begin with `prefix`."""
    start, end = span
    return prefix + start, None if end is None else prefix + end


def compile_txn(txn: Txn, *, prefix: bytes = b"") -> Compiled:
    """Return `txn` ready to be sent to an etcd in which all our keys begin with `prefix`. Raises Malformed."""
    validate(txn)
    compares, denials, impossible = _conditions(txn.when, prefix)
    then, otherwise = _branch(txn.then, prefix), _branch(txn.otherwise, prefix)
    count = max(len(txn.when), then.count, otherwise.count)
    if impossible:
        json = txn_json(b"", otherwise.json, b"")
    else:
        json = txn_json(compares, then.json, otherwise.json)
        for denial in reversed(denials):
            json = txn_json(denial, otherwise.json, b'{"request_txn":%b}' % json)
    return Compiled(
        txn=txn,
        compares=compares,
        denials=denials,
        impossible=impossible,
        then=then,
        otherwise=otherwise,
        footprint=Footprint.of(txn),
        json=json,
        operations=count + len(denials) * max(1, otherwise.count),
    )


def _conditions(when: Sequence[Compare], prefix: bytes) -> tuple[bytes, tuple[bytes, ...], bool]:
    native: list[bytes] = []
    denials: list[bytes] = []
    for compare in when:
        key, field, op, want = compare.key, compare.field, compare.op, compare.want
        if isinstance(want, int) and not -_MAX <= want <= _MAX:
            msg = f"compare of key {key!r}: {want} cannot be a {field}"
            raise Malformed(msg)
        for_missing = holds(compare, None)
        if not pieces(key, None):
            if not for_missing:
                return b"", (), True
        elif field != "value" or not for_missing:
            native.append(compare_json(prefix + key, field, op, want))
        else:
            # It holds for a missing key, where etcd says no: refuse instead what contradicts it, for a
            # contradiction is false for a missing key both here and there.
            denials += [
                compare_json(prefix + key, field, against, want) for against in _CONTRADICTIONS[op]
            ]
    return b",".join(native), tuple(denials), False


_CONTRADICTIONS = {"==": ("!=",), "!=": ("==",), "<": ("==", ">"), ">": ("==", "<")}


def _branch(operations: Sequence[Operation], prefix: bytes) -> Branch:
    places: dict[int, tuple[int, ...]] = {}
    sent: list[bytes] = []
    vacant: list[bytes] = []
    puts = False
    gets = [i for i, operation in enumerate(operations) if isinstance(operation, Get)]
    others = [i for i, operation in enumerate(operations) if not isinstance(operation, Get)]
    for i in (*gets, *others):
        operation = operations[i]
        if isinstance(operation, Put):
            if LANES <= operation.key < LANES_END:
                msg = f"key {operation.key!r} is the store's own"
                raise Malformed(msg)
            here = [put_json(prefix + operation.key, operation.value, operation.lease)]
            puts = True
        elif isinstance(operation, Get):
            spans = pieces(operation.key, operation.end)
            here = [get_json(*below(prefix, span)) for span in spans]
        else:
            spans = tuple(below(prefix, span) for span in pieces(operation.key, operation.end))
            here = [delete_json(*span) for span in spans]
            vacant += [vacant_json(*span) for span in spans]
        places[i] = tuple(range(len(sent), len(sent) + len(here)))
        sent += here
    slots = tuple((operation, places[i]) for i, operation in enumerate(operations))
    return Branch(b",".join(sent), slots, len(sent), puts, b",".join(vacant), len(prefix))


def _results(branch: Branch, responses: Sequence[ResponseOp]) -> Results:
    results: list[int | tuple[KeyValue, ...] | None] = []
    for operation, at in branch.slots:
        if isinstance(operation, Put):
            results.append(None)
        elif isinstance(operation, Delete):
            results.append(sum(_deleted(responses[i]) for i in at))
        else:
            results.append(tuple(kv for i in at for kv in _found(responses[i], branch.skip)))
    return tuple(results)


def _deleted(response: ResponseOp) -> int:
    return 0 if response.response_delete_range is None else response.response_delete_range.deleted


def _found(response: ResponseOp, skip: int) -> list[KeyValue]:
    found = response.response_range
    return [] if found is None else [kv.ours(skip) for kv in found.kvs]
