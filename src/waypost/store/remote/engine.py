"""The store of a client agent: the engine protocol over HTTPS to the servers.

One stream brings every revision into a ring that all local watchers read; commits wait in one queue, are sent in order,
many in one message; read indexes are shared by all who asked before one was sent. A server that does not answer, falls
silent or has lost the quorum is left for the next one; the stream resumes after the last revision it brought.

What the server shows depends on the machine's certificate: a node gets no Secrets, and keys only if it may read them.
Revisions it may not see arrive without events.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Malformed, NoLeader, Unavailable, Unknown, WaypostError
from waypost.store.engine import (
    Batch,
    Compacted,
    EngineStatus,
    KeyValue,
    Page,
    Txn,
    TxnResult,
)
from waypost.store.evaluate import validate
from waypost.store.history import KEEP_BATCHES, KEEP_BYTES
from waypost.store.leases import check_ttl
from waypost.store.remote.protocol import (
    PREFIX,
    Change,
    CompactAsk,
    End,
    Failure,
    Frames,
    GrantAsk,
    LeaseAsk,
    Message,
    Outcome,
    Progress,
    RangeAsk,
    RangeStart,
    Rows,
    WatchAsk,
    decode,
    decode_outcomes,
    decode_status,
    encode,
    encode_txn,
    error_of,
    join_txns,
)
from waypost.store.remote.retry import is_repeatable
from waypost.store.remote.ring import Ring
from waypost.store.remote.servers import Servers, Tour
from waypost.store.remote.transport import Transport

log = logging.getLogger(__name__)

MAX_WAITING: Final = 4096
_BATCH_TXNS: Final = 128
_BATCH_BYTES: Final = 2**20
_CLOSE_S: Final = 5.0
_DRAIN_S: Final = 1.0
_KV_TABLE: Final = b"k\0"


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a remote engine waits for what, in seconds."""

    read_attempt_s: float = 2.0
    """For a server's answer to a small question."""
    read_total_s: float = 4.0
    """For a question, over all servers and attempts; then it is said that there is no leader."""
    attempt_s: float = 4.0
    """For a server's answer to a write, and between two pieces of a long answer."""
    total_s: float = 10.0
    """For a write, over all servers and attempts."""
    silence_s: float = 3.0
    """Without a frame of the watch, of which a server sends one a second; then it counts as dead."""
    unconfirmed_s: float = 2.0
    """With a server that has lost the quorum, before another one is followed."""


class _Waiting(msgspec.Struct):
    """A transaction in the queue."""

    txn: Txn
    body: bytes
    future: asyncio.Future[TxnResult]
    is_unsure: bool = False
    """An earlier attempt may have been applied."""
    last: WaypostError | None = None


class RemoteEngine:
    """An engine whose data live elsewhere. See `store.engine.Engine` for what each method promises.

    `servers` returns the addresses of the servers' cluster ports as of now. The transport is closed with the engine.
    """

    def __init__(
        self,
        servers: Servers | Callable[[], Sequence[str]],
        *,
        transport: Transport,
        clock: Clock,
        rng: random.Random | None = None,
        patience: Patience | None = None,
        keep_batches: int = KEEP_BATCHES,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self.servers = (
            servers
            if isinstance(servers, Servers)
            else Servers(servers, clock=clock, rng=rng or random.SystemRandom())
        )
        self._transport = transport
        self._clock = clock
        self._patience = patience or Patience()
        self._ring = Ring(keep_batches=keep_batches, keep_bytes=keep_bytes)
        self._queue: deque[_Waiting] = deque()
        self._queued = asyncio.Event()
        self._idle = asyncio.Event()
        self._indexes: list[asyncio.Future[int]] = []
        self._index_wanted = asyncio.Event()
        self._committed = 0
        self._open = False
        self._task: asyncio.Task[None] | None = None
        self._unconfirmed_since: float | None = None
        self._loaded_kv: bool | None = None
        """Whether the last whole range had KV entries; None before there was one."""
        self.shows_kv = False
        """Whether KV entries are among what the servers show; until then reads of KV have to be forwarded."""
        self.heard_s: float | None = None
        """When a server last said that it reaches the quorum, in the clock's monotonic seconds."""

    # -- life --------------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect to a server. Raises Unavailable with the reason when none answers, or when it is open already."""
        if self._open:
            msg = "the remote engine is open already"
            raise Unavailable(msg)
        try:
            revision = decode(await self._ask("read-index", b""), int)
        except BaseException:
            await self._transport.close()
            raise
        self._ring.start(revision=revision)
        self._committed = 0
        self._loaded_kv = None
        self._open = True
        self._task = asyncio.create_task(self._run(), name="store.remote")
        self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Finish what was accepted, within a bound, then stop. Safe to call twice."""
        was_open, self._open = self._open, False
        task, self._task = self._task, None
        if was_open:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    while self._queue or not self._idle.is_set():
                        self._idle.clear()
                        self._queued.set()
                        await self._idle.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    await self._ring.reached(self._committed)
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._ring.end()
        self._refuse_all()
        await self._transport.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("the remote engine stopped", exc_info=task.exception())
            self._open = False
            self._ring.end()
            self._refuse_all()

    def _refuse_all(self) -> None:
        closed = "the store is not open"
        for waiting in self._queue:
            if not waiting.future.done():
                waiting.future.set_exception(NoLeader(closed))
        self._queue.clear()
        for future in self._indexes:
            if not future.done():
                future.set_exception(NoLeader(closed))
        self._indexes.clear()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="store.remote.watch")
            group.create_task(self._send_commits(), name="store.remote.commit")
            group.create_task(self._send_indexes(), name="store.remote.index")

    def _check_open(self) -> None:
        if not self._open:
            msg = "the store is not open"
            raise NoLeader(msg)

    # -- calls -------------------------------------------------------------------------------------------------------------

    async def _ask(self, what: str, body: bytes) -> bytes:
        """Ask for something that may be asked twice: every server in turn, until one answers."""
        patience = self._patience
        tour = Tour(self.servers, clock=self._clock, total_s=patience.read_total_s)
        while (address := await tour.next()) is not None:
            try:
                async with asyncio.timeout(patience.read_attempt_s):
                    answer = await self._transport.call(address, PREFIX + what, body)
            except (Unavailable, TimeoutError) as exc:
                tour.failed(address, exc)
            else:
                self.servers.worked(address)
                return answer
        raise tour.error()

    # -- reading -----------------------------------------------------------------------------------------------------------

    async def range(self, key: bytes, end: bytes | None = None, *, limit: int = 0) -> Page:
        """Return the key, or key <= k < end, as of one revision, without what this machine may not see."""
        self._check_open()
        body = encode(RangeAsk(key, end, limit))
        tour = Tour(self.servers, clock=self._clock, total_s=self._patience.read_total_s)
        while (address := await tour.next()) is not None:
            try:
                start, items = await self._read_page(address, body)
            except (Unavailable, TimeoutError) as exc:
                tour.failed(address, exc)
                continue
            self.servers.worked(address)
            if end is not None and key <= _KV_TABLE < end:
                self.shows_kv = self._loaded_kv = start.shows_kv
            return Page(start.revision, items, start.more)
        raise tour.error()

    async def _read_page(
        self, address: str, body: bytes
    ) -> tuple[RangeStart, tuple[KeyValue, ...]]:
        start: RangeStart | None = None
        rows: list[KeyValue] = []
        silence_s = self._patience.attempt_s
        async with aclosing(self._messages(address, "range", body, silence_s)) as messages:
            async for message in messages:
                match message:
                    case RangeStart():
                        start = message
                    case Rows(items):
                        rows += items
                    case End() if start is not None:
                        return start, tuple(rows)
                    case Failure(code, text):
                        raise error_of(code, text)
        raise Unknown(f"server {address}: the answer broke off")

    async def _messages(
        self, address: str, what: str, body: bytes, silence_s: float
    ) -> AsyncGenerator[Message, None]:
        """Yield the frames of a streamed answer. Raises TimeoutError when none comes for so long."""
        frames = Frames()
        stream = self._transport.stream(address, PREFIX + what, body)
        try:
            while True:
                async with asyncio.timeout(silence_s):
                    chunk = await anext(stream, None)
                if chunk is None:
                    return
                try:
                    for message in frames.feed(chunk):
                        yield message
                except Malformed as exc:
                    raise Unknown(f"server {address}: {exc}") from exc
        finally:
            await stream.aclose()

    async def read_index(self) -> int:
        """Return a revision that covers every write acknowledged before the call. Raises NoLeader."""
        self._check_open()
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._indexes.append(future)
        self._index_wanted.set()
        return await future

    async def _send_indexes(self) -> None:
        # Only who asked before a question is sent may have its answer; the others wait for the next one.
        while True:
            await self._index_wanted.wait()
            self._index_wanted.clear()
            waiting, self._indexes = self._indexes, []
            try:
                index = decode(await self._ask("read-index", b""), int)
            except WaypostError as error:
                for future in waiting:
                    if not future.done():
                        future.set_exception(NoLeader(str(error)))
            except asyncio.CancelledError:
                self._indexes += waiting
                raise
            else:
                for future in waiting:
                    if not future.done():
                        future.set_result(index)

    async def status(self) -> EngineStatus:
        """Return the facts of the servers' store as one server tells them; when none does, what is known here."""
        if self._open:
            with suppress(WaypostError):
                found = decode_status(await self._ask("status", b""))
                return msgspec.structs.replace(found, engine=f"remote ({found.engine})")
        return EngineStatus(
            engine="remote",
            revision=self._ring.revision,
            compacted=self._ring.compacted,
            leader=False,
            has_quorum=False,
        )

    # -- watching ----------------------------------------------------------------------------------------------------------

    def watch(self, *, after: int) -> AsyncIterator[Batch]:
        """Yield every revision > `after` that may be seen, in order, and how far the store is as batches without events.

        Raises Compacted when they are no longer kept here, or when the servers no longer had them after a loss of contact.
        """
        return self._ring.watch(after=after)

    async def _follow(self) -> None:
        told = ""
        while True:
            pause_s = self.servers.rest_s()
            if pause_s:
                await asyncio.sleep(pause_s)
            order = self.servers.order()
            if not order:
                continue
            address = order[0]
            try:
                await self._follow_server(address)
            except Compacted as exc:
                log.warning("server %s: %s; starting over", address, exc)
                await self._start_over()
            except (WaypostError, TimeoutError) as exc:
                if isinstance(exc, TimeoutError):
                    self.servers.lost(address)
                else:  # whoever else talks to it sees the broken connection himself
                    self.servers.failed(address)
                reason = str(exc) or f"silent for {self._patience.silence_s:g}s"
                if reason != told:
                    log.warning("the watch lost server %s: %s", address, reason)
                told = reason

    async def _follow_server(self, address: str) -> None:
        """Take in what one server sends. Raises why it cannot go on with that server."""
        self._unconfirmed_since = None
        body = encode(WatchAsk(self._ring.revision))
        is_first = True
        silence_s = self._patience.silence_s
        async with aclosing(self._messages(address, "watch", body, silence_s)) as messages:
            async for message in messages:
                if is_first:
                    is_first = False
                    self.servers.worked(address)
                    log.info("following server %s from revision %d", address, self._ring.revision)
                match message:
                    case Change(batch):
                        self._ring.publish(batch)
                    case Progress():
                        self._take_progress(address, message)
                    case Failure(code, text):
                        raise error_of(code, text)
        msg = "the server ended the watch"
        raise Unavailable(msg)

    def _take_progress(self, address: str, message: Progress) -> None:
        if message.revision > self._ring.revision:
            self._ring.publish(Batch(message.revision, ()))
        if not message.shows_kv:
            self.shows_kv = False
        if self._loaded_kv is not None and message.shows_kv != self._loaded_kv:
            # Between the load and this stream the node was let read keys, or no longer is.
            self._loaded_kv = None
            msg = f"KV entries are {'shown now' if message.shows_kv else 'hidden now'}"
            raise Compacted(msg)
        if message.is_confirmed:
            self._unconfirmed_since = None
            self.heard_s = self._clock.now()
            return
        if self._unconfirmed_since is None:
            self._unconfirmed_since = self._clock.now()
        elif (
            self._clock.now() - self._unconfirmed_since > self._patience.unconfirmed_s
            and len(self.servers.order()) > 1
        ):
            msg = f"server {address} has lost the quorum"
            raise Unavailable(msg)

    async def _start_over(self) -> None:
        while True:
            try:
                revision = decode(await self._ask("read-index", b""), int)
            except WaypostError as exc:
                log.debug("cannot start over yet: %s", exc)
                await asyncio.sleep(self._patience.silence_s / 3)
            else:
                self._ring.start(revision=revision)
                return

    # -- writing -----------------------------------------------------------------------------------------------------------

    async def commit(self, txn: Txn) -> TxnResult:
        """Apply atomically; see `Engine.commit`. Raises Forbidden for what this machine may not write.

        A transaction whose answer was lost is sent again, to any server, if its own conditions keep it from being
        applied twice (`retry`); else Unknown is raised.
        """
        self._check_open()
        validate(txn)
        if len(self._queue) >= MAX_WAITING:
            msg = f"{MAX_WAITING} writes are waiting already"
            raise Unavailable(msg)
        future: asyncio.Future[TxnResult] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(txn, encode_txn(txn), future))
        self._idle.clear()
        self._queued.set()
        return await future

    async def _send_commits(self) -> None:
        while True:
            if not self._queue:
                self._idle.set()
                self._queued.clear()
                await self._queued.wait()
                continue
            batch = self._next_batch()
            try:
                await self._send_batch(batch)
            finally:
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(Unknown("the store is closing"))

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._queue and len(batch) < _BATCH_TXNS:
            size += len(self._queue[0].body)
            if batch and size > _BATCH_BYTES:
                break
            waiting = self._queue.popleft()
            if not waiting.future.done():  # a caller that was cancelled before it was sent
                batch.append(waiting)
        return batch

    async def _send_batch(self, batch: list[_Waiting]) -> None:
        """Send the transactions in order until each has its outcome."""
        left = batch
        tour = Tour(self.servers, clock=self._clock, total_s=self._patience.total_s)
        while left and (address := await tour.next()) is not None:
            left = await self._attempt(tour, address, left)
        for waiting in left:
            if not waiting.future.done():
                waiting.future.set_exception(
                    Unknown(str(waiting.last)) if waiting.is_unsure else tour.error()
                )

    async def _attempt(self, tour: Tour, address: str, batch: list[_Waiting]) -> list[_Waiting]:
        """Send a batch to one server; return what has to be sent to another."""
        try:
            body = join_txns([waiting.body for waiting in batch])
            async with asyncio.timeout(self._patience.attempt_s):
                answer = await self._transport.call(address, PREFIX + "commit", body)
            outcomes = decode_outcomes(answer, count=len(batch))
        except (Unavailable, TimeoutError) as exc:
            outcomes = [_failure(tour.failed(address, exc))] * len(batch)
        except WaypostError as exc:
            outcomes = [_failure(exc)] * len(batch)
        else:
            self.servers.worked(address)
        left: list[_Waiting] = []
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if self._settle(waiting, outcome):
                left.append(waiting)
                if waiting.last is not None:
                    tour.failed(address, waiting.last)
        return left

    def _settle(self, waiting: _Waiting, outcome: Outcome) -> bool:
        """Tell the caller what became of its transaction; return whether it has to be sent again."""
        future = waiting.future
        if outcome.result is not None:
            self._committed = max(self._committed, outcome.result.revision)
            if not future.done():
                future.set_result(outcome.result)
            return False
        error = error_of(outcome.code, outcome.text)
        if not isinstance(error, Unavailable):
            if not future.done():
                future.set_exception(error)
            return False
        waiting.last = error
        if isinstance(error, Unknown):
            waiting.is_unsure = True
            if not is_repeatable(waiting.txn):
                if not future.done():
                    future.set_exception(error)
                return False
        return not future.done()

    async def compact(self, *, before: int) -> None:
        """Forget the revisions < `before`, on the servers and here. Raises Forbidden on a node."""
        self._check_open()
        await self._ask("compact", encode(CompactAsk(before)))
        newest = decode(await self._ask("read-index", b""), int)
        await self._ring.reached(min(before - 1, newest))
        self._ring.compact(before=before)

    # -- leases ------------------------------------------------------------------------------------------------------------

    async def grant(self, *, ttl_s: float) -> int:
        """Return a lease; see `Engine.grant`. Raises Forbidden on a node."""
        self._check_open()
        check_ttl(ttl_s)
        return decode(await self._ask("grant", encode(GrantAsk(ttl_s))), int)

    async def keep_alive(self, lease: int) -> float:
        """Renew a lease; see `Engine.keep_alive`. Raises Forbidden on a node."""
        self._check_open()
        return decode(await self._ask("keep-alive", encode(LeaseAsk(lease))), float)

    async def revoke(self, lease: int) -> None:
        """End a lease; see `Engine.revoke`. Raises Forbidden on a node."""
        self._check_open()
        await self._ask("revoke", encode(LeaseAsk(lease)))


def _failure(error: WaypostError) -> Outcome:
    return Outcome(None, error.code, str(error))
