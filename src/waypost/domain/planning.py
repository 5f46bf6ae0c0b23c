"""What every plan function needs: guards on what it read, and a bag that becomes one transaction."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from waypost.state.keys import Record, key_of, put, span_end
from waypost.state.state import Plan
from waypost.store.engine import Compare, Delete, Operation, Put, Txn

T = TypeVar("T")


class Draft:
    """Collects the guards and operations of one decision; the last word on a key wins."""

    def __init__(self) -> None:
        self._guards: dict[bytes, Compare] = {}
        self._operations: dict[bytes, Operation] = {}

    @property
    def size(self) -> int:
        """How many operations there are."""
        return len(self._operations)

    def guard(self, key: bytes, record: Record | None) -> None:
        """Demand that `key` is still as it was read: `record`, or absent."""
        revision = record.modify_index if record is not None else 0
        self._guards[key] = Compare(key, "modify", "==", revision)

    def put(self, record: Record) -> None:
        """Store `record`."""
        operation = put(record)
        self._operations[operation.key] = operation

    def replace(self, old: Record | None, new: Record) -> bool:
        """Store `new` in place of what was read, unless they are the same; return whether anything changes."""
        key = key_of(new)
        if old is not None and same(old, new):
            return False
        self.guard(key, old)
        self.put(new)
        return True

    def delete(self, record: Record) -> None:
        """Delete what was read."""
        key = key_of(record)
        self.guard(key, record)
        self._operations[key] = Delete(key)

    def write(self, key: bytes, value: bytes, *, revision: int) -> None:
        """Store what is no record under a key that was last changed at `revision`, 0 = was not there."""
        self._guards[key] = Compare(key, "modify", "==", revision)
        self._operations[key] = Put(key, value)

    def erase(self, key: bytes, *, revision: int) -> None:
        """Delete a key that was last changed at `revision`."""
        self._guards[key] = Compare(key, "modify", "==", revision)
        self._operations[key] = Delete(key)

    def delete_below(self, prefix: bytes) -> None:
        """Delete every key that starts with `prefix`."""
        self._operations[prefix] = Delete(prefix, span_end(prefix))

    def merge(self, plan: Plan[bool]) -> None:
        """Take in what another decision came to."""
        if plan.txn is None:
            return
        for guard in plan.txn.when:
            self._guards[guard.key] = guard
        for operation in plan.txn.then:
            self._operations[operation.key] = operation

    def plan(self, answer: T) -> Plan[T]:
        """Return the decision; without operations there is nothing to commit."""
        if not self._operations:
            return Plan(answer)
        return Plan(
            answer, Txn(when=tuple(self._guards.values()), then=tuple(self._operations.values()))
        )


def same(old: Record, new: Record) -> bool:
    """Return whether two records differ in nothing but their revisions."""
    if type(old) is not type(new):
        return False
    return bool(
        msgspec.structs.replace(new, create_index=old.create_index, modify_index=old.modify_index)
        == old
    )
