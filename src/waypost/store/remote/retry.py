"""When a transaction whose answer was lost may be sent again.

Nothing is written beside a transaction to tell whether it was applied: its own conditions do. Every decision of
`state.State.commit` compares what it read and writes some of that, so that after it was applied its conditions no
longer hold, and sending it again changes nothing:

    if modify(k) == 7 then put k      applied: modify(k) is now larger than 7 and never 7 again

A repeated transaction that had been applied is therefore answered with `succeeded=False`, at a revision that has the
first application; `State.commit` decides again on a view of at least that revision, finds its own write and answers
as if nothing had happened. One case is left: a transaction that creates a key (`modify(k) == 0`) is applied again when
somebody else deleted the key within the seconds between the two attempts; then the key is there once more, as if the
deletion had come first.

A marker key in the same transaction would close that gap, at the price of one more key and event in each write and of
reads that have to hide them. Whoever wants a bare compare-and-set to be exact to the letter uses a server's engine.
"""

from __future__ import annotations

from waypost.store.engine import Compare, Delete, Get, Operation, Put, Txn


def is_repeatable(txn: Txn) -> bool:
    """Return whether a transaction that may have been applied already can be sent again without being applied twice."""
    if _writes(txn.otherwise):
        return False
    writes = _writes(txn.then)
    return not writes or any(_is_spent(compare, writes) for compare in txn.when)


def _writes(operations: tuple[Operation, ...]) -> list[Put | Delete]:
    return [one for one in operations if not isinstance(one, Get)]


def _is_spent(compare: Compare, writes: list[Put | Delete]) -> bool:
    """Return whether the condition no longer holds once `writes` are done."""
    if compare.field != "modify" or compare.op != "==" or not isinstance(compare.want, int):
        return False
    return any(
        write.key == compare.key
        and (isinstance(write, Put) or (write.end is None and compare.want != 0))
        for write in writes
    )
