"""What may go together, against a serial model; and what it looks like to etcd."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from waypost.base.clock import SystemClock
from waypost.base.errors import Malformed
from waypost.store.engine import Compare, Delete, Get, KeyValue, Operation, Put, Txn, TxnResult
from waypost.store.etcd.compile import LANES, LANES_END, compile_txn, pieces
from waypost.store.etcd.footprint import Footprint, Touched
from waypost.store.etcd.gateway import Gateway
from waypost.store.etcd.lanes import Item, Lane, Lanes
from waypost.store.etcd.messages import TxnResponse, txn_decoder
from waypost.store.etcd.rebuild import Past, decide, spans
from waypost.store.evaluate import evaluate

KEYS = st.sampled_from([b"a", b"aa", b"b", b"b\0", b"c", b"\xff"])
BOUNDS = st.sampled_from([b"", b"a", b"b", b"b\0", b"c", b"_\0lane\0x", b"\xff\xff"])
VALUES = st.sampled_from([b"", b"1", b"2"])
OPS = st.sampled_from(["==", "!=", "<", ">"])
COMPARES = st.builds(
    Compare, KEYS, st.sampled_from(["modify", "create", "version"]), OPS, st.integers(0, 6)
) | st.builds(Compare, KEYS | st.just(b""), st.just("value"), OPS, VALUES)


@st.composite
def branches(draw: st.DrawFn) -> tuple[Operation, ...]:
    spans_ = draw(st.lists(st.builds(Delete, BOUNDS, BOUNDS), max_size=1))
    writes = draw(
        st.lists(
            st.builds(Put, KEYS, VALUES) | st.builds(Delete, KEYS),
            max_size=2,
            unique_by=lambda w: w.key,
        )
    )
    kept = [w for w in writes if not any(s.key <= w.key < (s.end or b"") for s in spans_)]
    gets = draw(st.lists(st.builds(Get, BOUNDS, st.none() | BOUNDS), max_size=2))
    return tuple(draw(st.permutations([*kept, *spans_, *gets])))


TXNS = st.builds(Txn, st.lists(COMPARES, max_size=2).map(tuple), branches(), branches())


class Store:
    """Rows, and transactions one after the other."""

    def __init__(self, rows: dict[bytes, KeyValue], revision: int) -> None:
        self.rows = dict(rows)
        self.revision = revision

    def get(self, key: bytes) -> KeyValue | None:
        return self.rows.get(key)

    def span(self, key: bytes, end: bytes) -> list[KeyValue]:
        return [self.rows[k] for k in sorted(self.rows) if key <= k < end]

    def commit(self, txn: Txn, revision: int) -> TxnResult:
        result, events = evaluate(txn, self, revision=revision - 1, leases=())
        for event in events:
            self.rows.pop(event.kv.key, None)
            if event.kind == "put":
                self.rows[event.kv.key] = event.kv
        return TxnResult(result.succeeded, revision, result.results)


class Etcd(Store):
    """etcd's own rules for nested transactions, from its description: all compares first, then operations in order."""

    def run(self, body: bytes, revision: int) -> TxnResponse:
        paths: dict[int, bool] = {}
        request = json.loads(body)
        self._decide(request, paths)
        self.written: list[bytes] = []
        return txn_decoder.decode(json.dumps(self._apply(request, paths, revision)))

    def _decide(self, txn: dict[str, Any], paths: dict[int, bool]) -> None:
        ok = all(map(self._holds, txn["compare"]))
        paths[id(txn)] = ok
        for op in txn["success" if ok else "failure"]:
            if "request_txn" in op:
                self._decide(op["request_txn"], paths)

    def _found(self, request: dict[str, Any]) -> list[KeyValue]:
        key = b64decode(request["key"])
        assert key
        end = b64decode(request.get("range_end", ""))
        if not end:
            return [self.rows[key]] if key in self.rows else []
        return [self.rows[k] for k in sorted(self.rows) if key <= k and (k < end or end == b"\0")]

    def _holds(self, compare: dict[str, Any]) -> bool:
        rows = self._found(compare)
        target = compare["target"]
        if not rows:
            if target == "VALUE":
                return False
            rows = [KeyValue(b"", b"", 0, 0, 0)]
        name, field = {
            "MOD": ("mod_revision", "modify_revision"),
            "CREATE": ("create_revision", "create_revision"),
            "VERSION": ("version", "version"),
            "VALUE": ("value", "value"),
        }[target]
        want = b64decode(compare[name]) if target == "VALUE" else int(compare[name])
        holds = {
            "EQUAL": lambda have: have == want,
            "NOT_EQUAL": lambda have: have != want,
            "LESS": lambda have: have < want,
            "GREATER": lambda have: have > want,
        }[compare["result"]]
        return all(holds(getattr(row, field)) for row in rows)

    def _apply(self, txn: dict[str, Any], paths: dict[int, bool], revision: int) -> dict[str, Any]:
        ok = paths[id(txn)]
        responses: list[dict[str, Any]] = []
        for op in txn["success" if ok else "failure"]:
            ((kind, request),) = op.items()
            if kind == "request_txn":
                responses.append({"response_txn": self._apply(request, paths, revision)})
            elif kind == "request_put":
                key = b64decode(request["key"])
                assert key not in self.written, "etcd refuses a key that is put twice"
                self.written.append(key)
                old = self.rows.get(key)
                created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
                self.rows[key] = KeyValue(
                    key, b64decode(request["value"]), created, revision, version
                )
                responses.append({"response_put": {}})
            elif kind == "request_delete_range":
                found = self._found(request)
                for row in found:
                    del self.rows[row.key]
                responses.append({"response_delete_range": {"deleted": str(len(found))}})
            else:
                kvs = [
                    {
                        "key": _text(r.key),
                        "value": _text(r.value),
                        "create_revision": str(r.create_revision),
                        "mod_revision": str(r.modify_revision),
                        "version": str(r.version),
                    }
                    for r in self._found(request)
                ]
                responses.append({"response_range": {"kvs": kvs}})
        return {"succeeded": ok, "responses": responses}


def _text(raw: bytes) -> str:
    import base64

    return base64.b64encode(raw).decode()


async def collect(txns: list[Txn]) -> list[list[tuple[int, Item]]]:
    """All batches that a lane alone makes of these, each with the places of its members."""
    clock = SystemClock()
    gateway = Gateway([], tls=None, clock=clock, rng=Random(1))
    lanes = Lanes(gateway, process_id="p", rng=Random(1))
    loop = asyncio.get_running_loop()
    items = [Item(compile_txn(txn), loop.create_future()) for txn in txns]
    place = {id(item): i for i, item in enumerate(items)}
    lanes._queue.extend(items)
    made = []
    while lanes._queue:
        taken = lanes._collect(lanes._lanes[0])
        lanes._lanes[0].under_way = None
        assert taken, "the first of the queue can always go"
        made.append([(place[id(item)], item) for item in taken])
    return made


ROWS = {
    b"a": KeyValue(b"a", b"1", 2, 4, 2),
    b"b": KeyValue(b"b", b"", 3, 3, 1),
    b"\xff": KeyValue(b"\xff", b"2", 5, 5, 1),
}


@settings(max_examples=100, deadline=None)
@given(st.lists(TXNS, min_size=1, max_size=8))
def test_batches_are_as_if_one_came_after_the_other(txns: list[Txn]) -> None:
    """Every batch, run as etcd runs it, gives each member what it gets when all run alone in their order."""
    lane = Lane(LANES + b"p\0\x00")
    lane.incarnation = b"i"
    mark = KeyValue(lane.key, b"i:0", 1, 1, 1)
    etcd, serial = Etcd({**ROWS, lane.key: mark}, 10), Store(ROWS, 10)
    answers: dict[int, TxnResult] = {}
    revisions: dict[int, int] = {}
    for number, batch in enumerate(asyncio.run(collect(txns))):
        revision = 11 + number
        before = dict(etcd.rows)
        response = etcd.run(lane.full([item for _, item in batch]), revision)
        lane.count += 1
        assert response.succeeded
        members = [item.compiled.txn for _, item in batch]
        for (place, item), op in zip(batch, response.responses[1:], strict=True):
            assert op.response_txn is not None
            answers[place] = TxnResult(*_read(item, op.response_txn, revision))
            revisions[place] = revision
        # The answers can be had again from the state before, and only from the keys that are asked for.
        known: dict[bytes, KeyValue] = {}
        for key, end in spans(members):
            known |= {r.key: r for r in Store(before, 0).span(key, end if end is not None else key + b"\0")}  # fmt: skip
        again = decide(members, Past(known.values()), revision=revision)
        assert again == [answers[place] for place, _ in batch]
    for place, txn in enumerate(txns):
        assert answers[place] == serial.commit(txn, revisions[place])
    assert {k: v for k, v in etcd.rows.items() if k != lane.key} == serial.rows


def _read(item: Item, response: TxnResponse, revision: int) -> tuple[bool, int, Any]:
    succeeded, results = item.compiled.read(response)
    return succeeded, revision, results


@settings(max_examples=80, deadline=None)
@given(TXNS)
def test_one_alone_moves_the_lane_only_if_it_changes_something(txn: Txn) -> None:
    lane = Lane(LANES + b"p\0\x00")
    lane.incarnation = b"i"
    etcd = Etcd({**ROWS, lane.key: KeyValue(lane.key, b"i:0", 1, 1, 1)}, 10)
    serial = Store(ROWS, 10)
    expected = serial.commit(txn, 11)
    item = Item(compile_txn(txn), None)  # type: ignore[arg-type]
    body = lane.light(item)
    if body is None:
        return
    response = etcd.run(body, 11)
    nested = response.responses[0].response_txn
    assert nested is not None
    succeeded, results = item.compiled.read(nested)
    assert (succeeded, results) == (expected.succeeded, expected.results)
    changed = serial.rows != ROWS
    assert item.compiled.wrote(succeeded, results) is changed
    assert etcd.rows[lane.key].value == (b"i:1" if changed else b"i:0")


@settings(max_examples=80, deadline=None)
@given(TXNS, TXNS)
def test_transactions_that_do_not_concern_each_other_may_change_places(a: Txn, b: Txn) -> None:
    first = Touched()
    first.add(Footprint.of(a))
    if first.concerns(Footprint.of(b)):
        return
    one, other = Store(ROWS, 10), Store(ROWS, 10)
    results = [one.commit(a, 11), one.commit(b, 11)]
    assert [other.commit(b, 11), other.commit(a, 11)] == results[::-1]
    assert one.rows == other.rows


def test_readers_of_one_key_go_together_and_writers_wait_in_order() -> None:
    fence = Compare(b"leader", "modify", "==", 5)
    txns = [Txn(when=(fence,), then=(Put(b"%d" % i, b""),)) for i in range(5)]
    txns.insert(2, Txn(then=(Put(b"leader", b""),)))
    made = asyncio.run(collect(txns))
    assert [[place for place, _ in batch] for batch in made] == [[0, 1, 2], [3, 4, 5]]
    same = [Txn(then=(Put(b"a", b"%d" % i),)) for i in range(3)]
    made = asyncio.run(collect([*same, Txn(then=(Put(b"b", b""),))]))
    assert [[place for place, _ in batch] for batch in made] == [[0, 3], [1], [2]]


@pytest.mark.parametrize(
    ("key", "end", "expected"),
    [
        (b"a", None, ((b"a", None),)),
        (b"", None, ()),
        (LANES + b"x", None, ()),
        (b"a", b"b", ((b"a", b"b"),)),
        (b"b", b"a", ()),
        (b"", b"", ()),
        (b"a", b"", ()),
        (b"", b"\0", ()),
        (b"", b"\xff", ((b"\0", LANES), (LANES_END, b"\xff"))),
        (b"_\0", b"_\1", ((b"_\0", LANES), (LANES_END, b"_\1"))),
        (LANES + b"a", LANES + b"b", ()),
        (LANES + b"a", b"z", ((LANES_END, b"z"),)),
        (b"z", b"zz", ((b"z", b"zz"),)),
    ],
)
def test_pieces(key: bytes, end: bytes | None, expected: tuple[Any, ...]) -> None:
    assert pieces(key, end) == expected


def test_the_engines_own_keys_cannot_be_written() -> None:
    with pytest.raises(Malformed, match="the store's own"):
        compile_txn(Txn(then=(Put(LANES + b"p", b""),)))
    with pytest.raises(Malformed, match="cannot be a modify"):
        compile_txn(Txn(when=(Compare(b"a", "modify", "==", 2**64),)))
