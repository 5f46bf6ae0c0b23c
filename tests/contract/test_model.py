"""Every engine against a plain model: any sequence of calls leaves both in the same state."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from waypost.base.errors import NotFound
from waypost.store.engine import (
    Batch,
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

from .conftest import ENGINES, GROUPED, NAMES, HandClock

KEYS = st.sampled_from([b"a", b"a\0", b"aa", b"b", b"b\xff", b"c", b"\xff"])
VALUES = st.sampled_from([b"", b"1", b"2"])
BOUNDS = st.sampled_from([b"", b"a", b"a\0", b"b", b"c", b"\xff\xff"])

compares = st.one_of(
    st.builds(
        Compare,
        key=KEYS,
        field=st.sampled_from(["modify", "create", "version"]),
        op=st.sampled_from(["==", "!=", "<", ">"]),
        want=st.integers(0, 12),
    ),
    st.builds(Compare, key=KEYS, field=st.just("value"), op=st.sampled_from(["==", "!=", "<", ">"]), want=VALUES),
)  # fmt: skip
gets = st.builds(Get, key=BOUNDS, end=st.none() | BOUNDS)
one_key = st.one_of(
    st.builds(Put, key=KEYS, value=VALUES, lease=st.integers(0, 3)), st.builds(Delete, key=KEYS)
)


@st.composite
def branches(draw: st.DrawFn) -> tuple[Operation, ...]:
    """Operations that write no key twice, in any order, with reads between."""
    spans = draw(st.lists(st.builds(Delete, key=BOUNDS, end=BOUNDS), max_size=2))
    writes = draw(st.lists(one_key, max_size=3, unique_by=lambda w: w.key))
    kept = [
        w
        for w in writes
        if not (isinstance(w, Put) and any(s.key <= w.key < (s.end or b"") for s in spans))
    ]
    return tuple(draw(st.permutations([*kept, *spans, *draw(st.lists(gets, max_size=2))])))


txns = st.builds(
    Txn, when=st.lists(compares, max_size=2).map(tuple), then=branches(), otherwise=branches()
)


class Model:
    """The contract in the fewest words: a dict that is copied."""

    def __init__(self, revision: int) -> None:
        self.rows: dict[bytes, KeyValue] = {}
        self.revision = revision
        self.batches: list[Batch] = []
        self.leases: set[int] = set()

    def find(self, key: bytes, end: bytes | None) -> tuple[KeyValue, ...]:
        wanted = (lambda k: k == key) if end is None else (lambda k: key <= k < end)
        return tuple(self.rows[k] for k in sorted(self.rows) if wanted(k))

    def commit(self, txn: Txn, *, at: int = 0) -> TxnResult:
        """`at`: the revision that the engine gave it, among others; 0 = the next, if it changes anything."""
        succeeded = all(map(self.holds, txn.when))
        operations = txn.then if succeeded else txn.otherwise
        for operation in operations:
            if (
                isinstance(operation, Put)
                and operation.lease
                and operation.lease not in self.leases
            ):
                raise NotFound("lease")
        rows = dict(self.rows)
        events: list[Event] = []
        results: list[Any] = []
        new = at or self.revision + 1
        for operation in operations:
            if isinstance(operation, Get):
                results.append(self.find(operation.key, operation.end))
            elif isinstance(operation, Delete):
                found = [r for r in self.find(operation.key, operation.end) if r.key in rows]
                for r in found:
                    del rows[r.key]
                    events.append(Event("delete", KeyValue(r.key, b"", 0, new, 0)))
                results.append(len(found))
            else:
                old = self.rows.get(operation.key)
                created, version = (old.create_revision, old.version + 1) if old else (new, 1)
                row = KeyValue(
                    operation.key, operation.value, created, new, version, operation.lease
                )
                rows[row.key] = row
                events.append(Event("put", row))
                results.append(None)
        self.rows = rows
        if at:
            self.join(at, events)
            return TxnResult(succeeded, at, tuple(results))
        self.take(events)
        return TxnResult(succeeded, self.revision, tuple(results))

    def join(self, revision: int, events: list[Event]) -> None:
        """Add to a revision that others may share, or that nothing changed in."""
        found = {batch.revision: batch for batch in self.batches}
        for missing in range(self.revision + 1, revision + 1):
            found[missing] = Batch(missing, ())
        self.revision = max(self.revision, revision)
        if events:
            found[revision] = Batch(revision, (*found[revision].events, *events))
        self.batches = [found[r] for r in sorted(found)]

    def holds(self, compare: Compare) -> bool:
        row = self.rows.get(compare.key) or KeyValue(compare.key, b"", 0, 0, 0)
        have: Any = {
            "modify": row.modify_revision,
            "create": row.create_revision,
            "version": row.version,
            "value": row.value,
        }[compare.field]
        want: Any = compare.want
        return {"==": have == want, "!=": have != want, "<": have < want, ">": have > want}[compare.op]  # fmt: skip

    def end(self, lease: int) -> None:
        gone = [k for k in sorted(self.rows) if self.rows[k].lease == lease]
        self.leases.discard(lease)
        new = self.revision + 1
        for key in gone:
            del self.rows[key]
        self.take([Event("delete", KeyValue(key, b"", 0, new, 0)) for key in gone])

    def take(self, events: list[Event]) -> None:
        if events:
            self.revision += 1
            self.batches.append(Batch(self.revision, tuple(events)))


class EngineMachine(RuleBasedStateMachine):
    name: str

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.mkdtemp(prefix="waypost-test-")
        self.engine = ENGINES[self.name](Path(self.directory) / "store", HandClock(), 10_000)
        self.run(self.engine.open())
        self.model = Model(self.run(self.engine.read_index()))
        self.first = self.base = self.model.revision
        self.ids: dict[int, int] = {}
        """The engine's lease for each of the model's."""

    def teardown(self) -> None:
        self.run(self.engine.close())
        self.loop.close()
        shutil.rmtree(self.directory)

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def theirs(self, txn: Txn) -> Txn:
        def branch(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
            return tuple(
                Put(o.key, o.value, self.ids.get(o.lease, 999_000 + o.lease))
                if isinstance(o, Put) and o.lease
                else o
                for o in operations
            )

        return Txn(txn.when, branch(txn.then), branch(txn.otherwise))

    def later(self, txn: Txn) -> Txn:
        """The same for an engine whose revisions are far from 1."""
        when = [
            msgspec.structs.replace(c, want=c.want + self.base - 1)
            if isinstance(c.want, int) and c.want and c.field in ("modify", "create")
            else c
            for c in txn.when
        ]
        return Txn(tuple(when), txn.then, txn.otherwise)

    def ours(self, value: Any) -> Any:
        """The engine's answer with the model's lease numbers."""
        back = {theirs: mine for mine, theirs in self.ids.items()}
        if isinstance(value, KeyValue):
            lease = back[value.lease] if value.lease else 0
            return KeyValue(value.key, value.value, value.create_revision, value.modify_revision, value.version, lease)  # fmt: skip
        if isinstance(value, tuple):
            return tuple(map(self.ours, value))
        if isinstance(value, TxnResult):
            return TxnResult(value.succeeded, value.revision, self.ours(value.results))
        if isinstance(value, Batch):
            return Batch(
                value.revision, tuple(Event(e.kind, self.ours(e.kv)) for e in value.events)
            )
        return value

    @rule(batch=st.lists(txns, min_size=1, max_size=6))
    def commit(self, batch: list[Txn]) -> None:
        """Several at once: the engine may make them one group, the outcome is as if one came after the other."""

        async def all_at_once() -> list[Any]:
            calls = [self.engine.commit(self.theirs(txn)) for txn in batch]
            return await asyncio.gather(*calls, return_exceptions=True)

        if grouped := self.name in GROUPED:
            batch = [self.later(txn) for txn in batch]
        before = self.model.revision
        for txn, answer in zip(batch, self.run(all_at_once()), strict=True):
            at = answer.revision if grouped and isinstance(answer, TxnResult) else 0
            assert not at or before <= at <= before + len(batch)
            try:
                expected = self.model.commit(txn, at=at)
            except NotFound:
                assert isinstance(answer, NotFound)
            else:
                assert self.ours(answer) == expected

    @rule(lease=st.integers(1, 3))
    def grant(self, lease: int) -> None:
        if lease not in self.model.leases and not any(
            r.lease == lease for r in self.model.rows.values()
        ):
            if lease in self.ids:
                return  # the history still names its first life
            self.ids[lease] = self.run(self.engine.grant(ttl_s=1000))
            self.model.leases.add(lease)

    @rule(lease=st.integers(1, 3))
    def revoke(self, lease: int) -> None:
        if lease in self.ids:
            self.run(self.engine.revoke(self.ids[lease]))
            self.model.end(lease)

    @rule(key=BOUNDS, end=st.none() | BOUNDS, limit=st.integers(0, 3))
    def read(self, key: bytes, end: bytes | None, limit: int) -> None:
        page = self.run(self.engine.range(key, end, limit=limit))
        expected = self.model.find(key, end)
        assert self.ours(page.items) == (expected[:limit] if limit else expected)
        assert page.more == bool(limit and len(expected) > limit)
        assert page.revision == self.model.revision

    @rule(after=st.integers(0, 30))
    def watch(self, after: int) -> None:
        after = min(after + self.first, self.model.revision)

        async def all_there_is() -> list[Batch]:
            watch = self.engine.watch(after=after)
            return [await anext(watch) for _ in range(self.model.revision - after)]

        got = [self.ours(batch) for batch in self.run(all_there_is())]
        assert got == [b for b in self.model.batches if b.revision > after]

    @rule()
    def reopen(self) -> None:
        if not self.run(self.engine.status()).durable:
            return
        self.run(self.engine.close())
        self.run(self.engine.open())
        if self.name in GROUPED:  # opening may move the revision
            self.model.join(self.run(self.engine.read_index()), [])
        self.first = self.model.revision

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "model"):
            status = self.run(self.engine.status())
            assert (status.revision, status.keys) == (self.model.revision, len(self.model.rows))


@pytest.mark.parametrize("name", NAMES, indirect=True)
def test_engine_behaves_like_the_model(name: str) -> None:
    machine = type(f"Machine_{name}", (EngineMachine,), {"name": name})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
