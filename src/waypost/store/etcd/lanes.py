"""Group commit: waiting transactions become one transaction of etcd, and each is done exactly once.

A batch is one etcd transaction with every member nested in it, each with its own compares and its own answer. It is
sent in a lane: a key of this process that counts the batches. A batch applies only if the lane stands at the one before
it, and moves it on. So a batch may be sent again whenever its outcome is not known, to any member: the second of two
copies changes nothing, whenever it arrives. Two lanes are two batches under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from random import Random

from waypost.base.errors import (
    Malformed,
    NoLeader,
    NotFound,
    TooLarge,
    Unavailable,
    Unknown,
    WaypostError,
)
from waypost.store.engine import Put, Txn, TxnResult
from waypost.store.etcd.compile import LANES, LANES_END, Branch, Compiled, compile_txn
from waypost.store.etcd.failure import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    Failure,
    explain,
    maybe_done,
    not_done,
)
from waypost.store.etcd.footprint import Touched
from waypost.store.etcd.gateway import Gateway
from waypost.store.etcd.messages import (
    RANGE,
    TXN,
    TxnResponse,
    WireKeyValue,
    compare_json,
    get_json,
    newest_json,
    put_json,
    range_decoder,
    range_json,
    txn_decoder,
    txn_json,
)
from waypost.store.etcd.rebuild import rebuild

log = logging.getLogger(__name__)

LANE_COUNT = 2
MAX_TRANSACTIONS = 512
MAX_BYTES = 2**20
"""Of JSON. etcd refuses requests of more than 1.5 MiB."""
MAX_SCANNED = 2048
"""How many that wait are looked at to fill a batch, when those at the head have to wait for others."""
MAX_OPERATIONS = 4096
"""What waypost starts etcd with (--max-txn-ops). etcd's own default, 128, is noticed and respected."""
MIN_OPERATIONS = 128

MAX_REMEMBERED = 4096
"""Keys. When there are more all are forgotten: they only save questions."""

MAX_WAITING = 16_384
"""Transactions that may wait, about a second of etcd's work. Overflow rule: one more is refused with Unavailable."""

TIMEOUT_S = 10.0
"""How long a caller waits for his transaction, over all attempts."""


class Item:
    """One transaction on its way."""

    __slots__ = ("compiled", "future", "maybe")

    def __init__(self, compiled: Compiled, future: asyncio.Future[TxnResult]) -> None:
        self.compiled = compiled
        self.future = future
        self.maybe = False
        """It was sent and may have been applied."""

    def answer(self, result: TxnResult) -> None:
        """Give the caller his answer, if he still waits."""
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: WaypostError) -> None:
        """Give the caller an error, if he still waits."""
        if not self.future.done():
            self.future.set_exception(error)


class Lane:
    """One counter in etcd. Its value is `incarnation:count`, so a batch of an earlier process never applies."""

    def __init__(self, key: bytes, *, prefix: bytes = b"") -> None:
        self.key = key
        self._newest = newest_operation(prefix) if prefix else b""
        self.incarnation = b""
        self.count = 0
        self.fenced = False
        """Nothing that is still on its way can be applied."""
        self.wake = asyncio.Event()
        self.under_way: Touched | None = None

    def value(self, count: int) -> bytes:
        """Return what the key holds after `count` batches."""
        return b"%b:%d" % (self.incarnation, count)

    def full(self, items: Sequence[Item]) -> bytes:
        """Return the next batch. Its answer has the members' answers after one for the lane."""
        nested = [b'{"request_txn":%b}' % item.compiled.json for item in items]
        mark = put_json(self.key, self.value(self.count + 1))
        return self._txn(b",".join((mark, *nested)))

    def light(self, item: Item) -> bytes | None:
        """Return a batch of one that moves the lane, and so the store's revision, only if the member changes something.

        Only for the first attempt: one that leaves the lane alone does not stop a late copy of itself. None when the
        transaction is not of the plain shape.
        """
        compiled = item.compiled
        if compiled.denials or compiled.impossible:
            return None
        mark = put_json(self.key, self.value(self.count + 1))
        then, otherwise = (_marked(branch, mark) for branch in (compiled.then, compiled.otherwise))
        return self._txn(
            b'%b{"request_txn":%b}' % (self._newest, txn_json(compiled.compares, then, otherwise))
        )

    def _txn(self, success: bytes) -> bytes:
        stands = compare_json(self.key, "value", "==", self.value(self.count))
        return txn_json(stands, success, get_json(self.key, None))


def newest_operation(prefix: bytes) -> bytes:
    """Return the operation, with a comma, that tells which lane moved last: what was written last below `prefix`."""
    question = newest_json(prefix + LANES, prefix + LANES_END)
    return b'{"request_range":%b},' % question


def _marked(branch: Branch, mark: bytes) -> bytes:
    """Return the operations of `branch`, with `mark` among them if they change anything."""
    if branch.puts:
        return b"%b,%b" % (branch.json, mark)
    if branch.vacant:
        return b'%b,{"request_txn":%b}' % (branch.json, txn_json(branch.vacant, b"", mark))
    return branch.json


class Lanes:
    """The queue of transactions and the lanes that empty it. `run()` must be running, after `fence()`.

    Below a prefix the revisions of others are none of ours: what changed nothing is answered with the revision at which a
    lane moved last, which is the newest that anybody's view gets to.
    """

    def __init__(
        self, gateway: Gateway, *, process_id: str, rng: Random, prefix: bytes = b""
    ) -> None:
        self._gateway = gateway
        self._rng = rng
        self._process_id = process_id
        self._prefix = prefix
        self._lanes = [
            Lane(prefix + LANES + process_id.encode() + b"\0%d" % number, prefix=prefix)
            for number in range(LANE_COUNT)
        ]
        self._queue: deque[Item] = deque()
        self._max_operations = MAX_OPERATIONS
        self._closing = False
        self.last_failure: Failure | None = None
        """Why the latest attempt did not succeed, for texts."""
        self._latest: dict[bytes, int] = {}
        """Keys written lately and at which revision: an older compare of them cannot hold any more."""
        self.revision = 0
        """The newest revision that a batch was answered with."""

    # -- callers -------------------------------------------------------------------------------------------------

    async def commit(self, txn: Txn) -> TxnResult:
        """Do `txn` exactly once, or raise. See Engine.commit."""
        compiled = compile_txn(txn, prefix=self._prefix)
        if self._closing:
            msg = "the store is not open"
            raise NoLeader(msg)
        if len(self._queue) >= MAX_WAITING:
            msg = f"{len(self._queue)} transactions wait for etcd"
            raise Unavailable(msg)
        loop = asyncio.get_running_loop()
        item = Item(compiled, loop.create_future())
        self._queue.append(item)
        self._wake()
        timer = loop.call_later(TIMEOUT_S, self._expire, item)
        try:
            return await item.future
        finally:
            timer.cancel()

    def _expire(self, item: Item) -> None:
        if item.maybe:
            item.fail(maybe_done(self.last_failure, at_most_s=TIMEOUT_S))
        else:
            item.fail(not_done(self.last_failure, at_most_s=TIMEOUT_S))

    def _wake(self) -> None:
        for lane in self._lanes:
            lane.wake.set()

    # -- life ----------------------------------------------------------------------------------------------------

    async def fence(self) -> None:
        """Make every lane ours, so that nothing an earlier process sent can be applied any more. Raises NoLeader."""
        self._closing = False
        self.forget()
        async with asyncio.timeout(TIMEOUT_S):
            for lane in self._lanes:
                await self._fence(lane)

    async def run(self) -> None:
        """Send what waits, until `close()` was called and nothing waits any more."""
        try:
            async with asyncio.TaskGroup() as tg:
                for lane in self._lanes:
                    tg.create_task(self._work(lane), name=f"store.etcd.lane.{lane.key[-1:]!r}")
        finally:
            self._closing = True
            for item in self._queue:
                item.fail(NoLeader("the store is closing"))
            self._queue.clear()

    def close(self) -> None:
        """Take no more; `run()` ends when all that was taken is answered."""
        self._closing = True
        self._wake()

    async def _work(self, lane: Lane) -> None:
        while True:
            if not lane.fenced and not self._closing:
                await self._fence(lane)
            lane.wake.clear()
            await asyncio.sleep(0)  # all who are about to ask in this turn of the loop may join
            items = self._collect(lane) if lane.fenced else []
            if items:
                try:
                    await self._run(lane, items)
                except Exception:  # a fault of ours must not stop the other writers for good
                    log.exception("a batch of %d transactions was given up", len(items))
                    lane.fenced = False
                    for item in items:
                        item.fail(Unknown("the write may have been applied; the log says why"))
                finally:
                    lane.under_way = None
                    self._wake()  # what had to wait for these may go
            elif self._closing and (not self._queue or not lane.fenced):
                return
            else:
                await lane.wake.wait()

    def _collect(self, lane: Lane) -> list[Item]:
        """Take the next batch from the queue: as many as may go together, in order."""
        blocked = Touched()
        for other in self._lanes:
            if other.under_way is not None:
                blocked.add_all(other.under_way)
        touched = Touched()
        taken: list[Item] = []
        passed: list[Item] = []
        size_bytes = most_operations = 0
        queue = self._queue
        while queue and len(taken) < MAX_TRANSACTIONS and len(passed) < MAX_SCANNED:
            item = queue[0]
            compiled = item.compiled
            if item.future.done() or self._settled(item):
                queue.popleft()
                continue
            size_bytes += len(compiled.json)
            most_operations = max(most_operations, compiled.operations)
            if taken and (
                size_bytes > MAX_BYTES or len(taken) + 2 + most_operations > self._max_operations
            ):
                break
            queue.popleft()
            if blocked.concerns(compiled.footprint) or touched.wrote(compiled.footprint):
                blocked.add(compiled.footprint)
                passed.append(item)
                size_bytes -= len(compiled.json)
            else:
                touched.add(compiled.footprint)
                taken.append(item)
        queue.extendleft(reversed(passed))
        if taken:
            lane.under_way = touched
        return taken

    def _remember(self, txn: Txn, revision: int) -> None:
        if len(self._latest) > MAX_REMEMBERED:
            self._latest.clear()
        for operation in txn.then:
            if isinstance(operation, Put):
                self._latest[operation.key] = revision

    def _settled(self, item: Item) -> bool:
        """Answer a transaction that has lost already, as most of those do that wait for one busy key.

        A key's revision only grows, or the key goes: "modified at r" is false for ever once it was written after r.
        """
        txn = item.compiled.txn
        if txn.otherwise or not self._latest:
            return False
        for compare in txn.when:
            if compare.field == "modify" and compare.op == "==" and compare.want:
                latest = self._latest.get(compare.key, 0)
                if isinstance(compare.want, int) and compare.want < latest:
                    item.answer(TxnResult(succeeded=False, revision=latest))
                    return True
        return False

    def forget(self) -> None:
        """Forget what was written: etcd's data were replaced, revisions begin again."""
        self._latest.clear()
        self.revision = 0

    # -- one batch -------------------------------------------------------------------------------------------------

    async def _run(self, lane: Lane, items: list[Item]) -> None:
        """Do a batch. Every member has its answer or its error afterwards, or its caller is gone."""
        try:
            refused = await self._send(lane, items)
        except WaypostError as error:
            for item in items:
                item.fail(error)
            return
        if refused is None:
            return
        if len(items) == 1 or refused.no_space:
            for item in items:
                item.fail(_refusal(refused, item))
            return
        # One member that etcd refuses spoils the batch and nothing is applied: the guilty one is found by halving.
        if refused.too_many_operations:
            depth = len(items) + 1 + max(item.compiled.operations for item in items)
            self._max_operations = max(MIN_OPERATIONS, min(self._max_operations, depth) // 2)
            log.warning(
                "etcd refuses transactions of %d operations, batches are smaller from now on; "
                "start it with --max-txn-ops %d",
                depth,
                MAX_OPERATIONS,
            )
        middle = len(items) // 2
        await self._run(lane, items[:middle])
        await self._run(lane, items[middle:])

    async def _send(self, lane: Lane, items: list[Item]) -> Failure | None:
        """Send one batch until its outcome is known; return why etcd refuses it, or None when all is answered."""
        maybe = False
        tries = 0
        while any(not item.future.done() for item in items):
            light = lane.light(items[0]) if len(items) == 1 and not tries else None
            body = light or lane.full(items)
            for item in items:
                item.maybe = True
            try:
                response = await self._gateway.attempt(TXN, body, into=txn_decoder)
            except Failure as failure:
                self.last_failure = failure
                maybe = maybe or failure.outcome == "unknown"
                if failure.outcome == "refused" and not maybe:
                    return failure
                for item in items:
                    item.maybe = maybe
                await self._gateway.pause(tries, always=failure.outcome == "refused")
                tries += 1
                continue
            if not self._prefix:
                self.revision = max(self.revision, response.header.revision)
            if response.succeeded:
                self._deliver(lane, items, response, light=light is not None)
                return None
            found = response.responses[0].response_range
            mark = found.kvs[0] if found is not None and found.kvs else WireKeyValue()
            if mark.value == lane.value(lane.count + 1):
                lane.count += 1
                await self._deliver_again(items, revision=mark.mod_revision)
                return None
            self._taken_over(lane, mark, maybe=maybe)
            await self._fence(lane)
            tries += 1
        # Nobody waits any more, but a copy may still be on its way: it must not find the lane where it expects it.
        lane.fenced = lane.fenced and not maybe
        return None

    def _deliver(
        self, lane: Lane, items: list[Item], response: TxnResponse, *, light: bool
    ) -> None:
        revision = response.header.revision
        nested = response.responses[1:] if self._prefix or not light else response.responses
        wrote = True
        for item, operation in zip(items, nested, strict=True):
            assert operation.response_txn is not None
            succeeded, results = item.compiled.read(operation.response_txn)
            if light:
                wrote = item.compiled.wrote(succeeded, results)
            if self._prefix and not wrote:
                newest = response.responses[0].response_range
                revision = newest.kvs[0].mod_revision if newest is not None and newest.kvs else 0
            self.revision = max(self.revision, revision)
            item.answer(TxnResult(succeeded, revision, results))
            if succeeded:
                self._remember(item.compiled.txn, revision)
        lane.count += wrote

    async def _deliver_again(self, items: list[Item], *, revision: int) -> None:
        """Answer a batch that was applied at `revision` while nobody heard of it."""
        log.info("a batch of %d transactions was applied at revision %d without an answer", len(items), revision)  # fmt: skip
        try:
            results = await rebuild(
                self._gateway,
                [item.compiled.txn for item in items],
                revision=revision,
                prefix=self._prefix,
            )
        except (Failure, Unavailable) as failure:
            why = explain(failure) if isinstance(failure, Failure) else str(failure)
            for item in items:
                msg = f"the write was applied at revision {revision} or had nothing to do, but which cannot be learned any more ({why})"
                item.fail(Unknown(msg))
            return
        self.revision = max(self.revision, revision)
        for item, result in zip(items, results, strict=True):
            item.answer(result)

    def _taken_over(self, lane: Lane, mark: WireKeyValue, *, maybe: bool) -> None:
        log.error(
            "lane %r holds %r instead of %r: another process uses the id %r, or etcd's data were replaced",
            lane.key,
            mark.value,
            lane.value(lane.count),
            self._process_id,
        )
        lane.fenced = False
        self.forget()
        if maybe:
            msg = "the write was sent, but the mark that tells whether it was applied was overwritten by another process"
            raise Unknown(msg)

    async def _fence(self, lane: Lane) -> None:
        """Give the lane a new incarnation, whatever it holds; tries until it works.

        Conditional on what was read, so that a late copy of this request changes nothing either.
        """
        lane.fenced = False
        tries = 0
        while not lane.fenced and not self._closing:
            refused = False
            try:
                await self._fence_once(lane)
            except Failure as failure:
                self.last_failure = failure
                refused = failure.outcome == "refused"
                log.log(
                    logging.DEBUG if tries else logging.WARNING,
                    "etcd takes no writes of this process yet: %s",
                    explain(failure),
                )
            if not lane.fenced:
                await self._gateway.pause(tries, always=refused)
            tries += 1

    async def _fence_once(self, lane: Lane) -> None:
        body = range_json(lane.key, None)
        found = (await self._gateway.attempt(RANGE, body, into=range_decoder)).kvs
        seen = found[0].mod_revision if found else 0
        # Never the same twice: the key's revision grows with every fence, and chance tells restored data apart.
        incarnation = b"%016x.%d" % (self._rng.getrandbits(64), seen)
        body = txn_json(
            compare_json(lane.key, "modify", "==", seen),
            put_json(lane.key, b"%b:0" % incarnation),
            b"",
        )
        if (await self._gateway.attempt(TXN, body, into=txn_decoder)).succeeded:
            lane.incarnation, lane.count, lane.fenced = incarnation, 0, True


def _refusal(failure: Failure, item: Item) -> WaypostError:
    """Return what a definite error means for the one transaction it is about."""
    if failure.code == NOT_FOUND and "lease" in failure.text:
        txn = item.compiled.txn
        leases = sorted(
            {o.lease for o in (*txn.then, *txn.otherwise) if isinstance(o, Put) and o.lease}
        )
        if len(leases) == 1:
            return NotFound(f"lease {leases[0]} does not exist")
        return NotFound(f"one of the leases {', '.join(map(str, leases))} does not exist")
    if failure.too_many_operations:
        return TooLarge(
            f"a transaction of {item.compiled.operations} operations is more than etcd takes; start it with "
            f"--max-txn-ops {MAX_OPERATIONS} ({failure})"
        )
    if failure.too_large:
        return TooLarge(f"the transaction is larger than etcd takes in one request ({failure})")
    if failure.code == INVALID_ARGUMENT:
        return Malformed(str(failure))
    return not_done(failure, at_most_s=TIMEOUT_S)
