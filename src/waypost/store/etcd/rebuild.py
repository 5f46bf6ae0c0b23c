"""The answers of a batch that was applied while its answer was lost.

The batch is the revision after R - 1, and all its members saw the state of R - 1. So that state is read back, and the
members are decided once more by the code that decides transactions for the other engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from waypost.store.engine import Compare, KeyValue, Put, Txn, TxnResult
from waypost.store.etcd.compile import below, pieces
from waypost.store.etcd.gateway import Gateway
from waypost.store.etcd.messages import TXN, range_json, txn_decoder, txn_json
from waypost.store.evaluate import evaluate

CHUNK = 100
"""Spans read in one request."""
AT_MOST_S = 10.0


class Past:
    """The rows of some spans as they were. Answers only questions about these spans."""

    def __init__(self, rows: Iterable[KeyValue]) -> None:
        self._rows = {row.key: row for row in rows}

    def get(self, key: bytes) -> KeyValue | None:
        """Return the row of one key."""
        return self._rows.get(key)

    def span(self, key: bytes, end: bytes) -> Iterable[KeyValue]:
        """Return the rows with key <= k < end in order."""
        return [self._rows[k] for k in sorted(self._rows) if key <= k < end]


class _Every:
    """A batch that was applied named no lease that did not exist."""

    def __contains__(self, _: object) -> bool:
        return True


def spans(txns: Iterable[Txn]) -> list[tuple[bytes, bytes | None]]:
    """Return what has to be known of the past to decide `txns` again. Pure."""
    wanted: dict[tuple[bytes, bytes | None], None] = {}
    for txn in txns:
        touched: list[tuple[bytes, bytes | None]] = [
            (compare.key, None) for compare in txn.when if isinstance(compare, Compare)
        ]
        touched += [
            (o.key, None if isinstance(o, Put) else o.end) for o in (*txn.then, *txn.otherwise)
        ]
        for key, end in touched:
            wanted.update(dict.fromkeys(pieces(key, end)))
    return list(wanted)


def decide(txns: Iterable[Txn], past: Past, *, revision: int) -> list[TxnResult]:
    """Return the answers of the members of the batch that made `revision` of `past`. Pure."""
    answers = [evaluate(txn, past, revision=revision - 1, leases=_Every())[0] for txn in txns]
    return [msgspec.structs.replace(answer, revision=revision) for answer in answers]


async def rebuild(
    gateway: Gateway, txns: Sequence[Txn], *, revision: int, prefix: bytes = b""
) -> list[TxnResult]:
    """Return the answers of the batch `txns` that was applied at `revision`, all our keys being below `prefix`.

    Raises Failure when the revision before it is no longer kept, NoLeader when nobody answers.
    """
    wanted = [below(prefix, span) for span in spans(txns)]
    rows: list[KeyValue] = []
    for at in range(0, len(wanted), CHUNK):
        reads = b",".join(
            b'{"request_range":%b}' % range_json(key, end, revision=revision - 1)
            for key, end in wanted[at : at + CHUNK]
        )
        answer = await gateway.ask(
            TXN, txn_json(b"", reads, b""), into=txn_decoder, at_most_s=AT_MOST_S
        )
        for response in answer.responses:
            if response.response_range is not None:
                rows += [kv.ours(len(prefix)) for kv in response.response_range.kvs]
    return decide(txns, Past(rows), revision=revision)
