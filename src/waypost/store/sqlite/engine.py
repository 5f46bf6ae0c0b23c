"""The durable engine of a single machine: SQLite with group commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

from waypost.base.clock import Clock
from waypost.base.errors import NoLeader, Unavailable, WaypostError
from waypost.store.engine import Batch, EngineStatus, KeyValue, Page, Txn, TxnResult
from waypost.store.evaluate import validate
from waypost.store.history import KEEP_BATCHES, KEEP_BYTES, History
from waypost.store.leases import Leases, check_ttl
from waypost.store.sqlite.database import Database, SqliteSettings, translated
from waypost.store.sqlite.group import Answer, Grant, Request, Revoke, read_row, read_span
from waypost.store.sqlite.writer import Done, Writer

log = logging.getLogger(__name__)

MAX_WAITING = 16_384
"""Requests that may wait for the disk, half a second of its work. Overflow rule: one more is refused at once with
Unavailable."""

_Token = tuple[Request, "asyncio.Future[Answer]"]


class SqliteEngine:
    """Current rows in one SQLite file (WAL, every commit synced), the recent revisions in memory.

    Callers on the event loop hand their transactions to one writer thread, which commits all that wait as one SQLite
    transaction and then, in one turn of the loop, feeds the watchers and answers the callers. So neither a watcher
    nor a caller ever sees what a power cut could take back. Ranges are read by a second connection from a snapshot.
    History does not survive a restart: watch(after < revision at open) raises Compacted. Leases do, at full TTL.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        settings: SqliteSettings | None = None,
        keep_batches: int = KEEP_BATCHES,
        keep_bytes: int = KEEP_BYTES,
        sweep_s: float = 0.5,
    ) -> None:
        self._database = Database(directory, settings or SqliteSettings())
        self._history = History(keep_batches=keep_batches, keep_bytes=keep_bytes)
        self._leases = Leases(clock)
        self._over: set[int] = set()
        """Leases that are over but could not be ended yet."""
        self._sweep_s = sweep_s
        self._granted = asyncio.Event()
        self._changing = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None
        self._writer: Writer | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._waiting = 0
        self._keys = 0
        self._failing = False

    async def open(self) -> None:
        """Create or open the files. Safe after a crash.

        Raises Unavailable with the reason: no access, in use by another process, damaged, written by a newer program.
        A store that cannot be read is never replaced.
        """
        async with self._changing:
            if self._writer is not None:
                msg = f"{self._database.path} is open already"
                raise Unavailable(msg)
            opening = asyncio.ensure_future(asyncio.to_thread(self._database.open))
            try:
                loaded = await asyncio.shield(opening)
            except asyncio.CancelledError:
                with suppress(
                    Unavailable
                ):  # a thread cannot be stopped half-way; it takes milliseconds
                    await opening
                self._database.close()
                raise
            self._loop = asyncio.get_running_loop()
            self._keys = loaded.keys
            self._failing = False
            self._history.start(revision=loaded.revision)
            self._over.clear()
            self._leases.clear()
            for lease, ttl_s in loaded.leases.items():
                self._leases.start(lease, ttl_s=ttl_s)
            self._readers = ThreadPoolExecutor(1, thread_name_prefix="waypost-store-read")
            self._writer = Writer(self._database, loaded, self._deliver)
            self._writer.start()
            self._sweeper = asyncio.create_task(self._sweep(), name="store.sqlite.sweep")

    async def close(self) -> None:
        """Commit and answer what was accepted, then stop; watches end. Safe to call twice."""
        async with self._changing:
            writer, self._writer = self._writer, None
            readers, self._readers = self._readers, None
            sweeper, self._sweeper = self._sweeper, None
            if writer is None or readers is None or sweeper is None:
                return
            sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await sweeper
            try:
                # The last answers are handed to the loop before the thread ends, so they are delivered after this.
                await asyncio.to_thread(self._stop, writer, readers)
            finally:
                self._history.end()

    def _stop(self, writer: Writer, readers: ThreadPoolExecutor) -> None:
        writer.stop()
        readers.shutdown()
        self._database.close()

    async def commit(self, txn: Txn) -> TxnResult:
        """Apply atomically; on disk when it returns.

        Raises Malformed or NotFound (unknown lease); Unavailable with the reason (closed, disk full, I/O error, too
        many waiting), nothing was changed then; Unknown when the disk failed at the very end. When the caller is
        cancelled the transaction may be applied or not.
        """
        validate(txn)
        return cast("TxnResult", await self._submit(txn))

    async def range(self, key: bytes, end: bytes | None = None, *, limit: int = 0) -> Page:
        """Return the key, or key <= k < end, as of one durable revision. `limit` 0 = all.

        The revision covers every write acknowledged before the call, and may be ahead of what watchers have seen.
        """
        if self._readers is None:
            raise self._not_open()
        return await self._loop.run_in_executor(self._readers, self._read, key, end, limit)

    def watch(self, *, after: int) -> AsyncIterator[Batch]:
        """Yield every revision > `after`, each after it is on disk.

        Raises Compacted, also when the watcher fell out of the kept history.
        """
        return self._history.watch(after=after)

    async def read_index(self) -> int:
        """Return the current revision. Raises NoLeader once closed."""
        if self._writer is None:
            raise self._not_open()
        return self._history.revision

    async def compact(self, *, before: int) -> None:
        """Forget the revisions < `before`. On disk there is no history to forget."""
        if self._writer is None:
            raise self._not_open()
        self._history.compact(before=before)

    async def grant(self, *, ttl_s: float) -> int:
        """Return a lease; it survives a restart, at its full TTL. Raises Malformed when the TTL is not above 0."""
        check_ttl(ttl_s)
        return cast("int", await self._submit(Grant(ttl_s)))

    async def keep_alive(self, lease: int) -> float:
        """Renew; return the new remaining seconds. Costs no write. Raises NotFound when the lease is gone."""
        if self._writer is None:
            raise self._not_open()
        return self._leases.renew(lease)

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys in one revision. Unknown leases are ignored."""
        await self._submit(Revoke(lease))

    async def status(self) -> EngineStatus:
        """Return facts for people and metrics. Answers when closed, too. `has_quorum`: the last write worked."""
        size_bytes = await asyncio.to_thread(self._database.size_bytes)
        return EngineStatus(
            engine="sqlite",
            revision=self._history.revision,
            compacted=self._history.compacted,
            keys=self._keys,
            size_bytes=size_bytes,
            durable=True,
            leader=self._writer is not None,
            has_quorum=self._writer is not None and not self._failing,
        )

    def _not_open(self) -> NoLeader:
        return NoLeader(f"{self._database.path} is not open")

    async def _submit(self, request: Request) -> Answer:
        if self._writer is None:
            raise self._not_open()
        if self._waiting >= MAX_WAITING:
            msg = f"{self._waiting} transactions wait for the disk"
            raise Unavailable(msg)
        self._waiting += 1
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._writer.submit(request, (request, future))
        return await future

    def _deliver(self, tokens: Sequence[object], done: Done) -> None:
        """Called in the writer's thread."""
        try:
            self._loop.call_soon_threadsafe(self._answer, cast("Sequence[_Token]", tokens), done)
        except RuntimeError as error:  # the loop was closed under us: nobody waits any more
            log.warning("%d answers have nobody to go to: %s", len(tokens), error)

    def _answer(self, tokens: Sequence[_Token], done: Done) -> None:
        self._waiting -= len(tokens)
        self._keys = done.keys
        self._failing = done.failing
        if done.batches:
            self._history.publish(done.batches)
        for (request, future), answer in zip(tokens, done.answers, strict=True):
            if isinstance(request, Txn):
                pass
            elif isinstance(request, Grant):
                if isinstance(answer, int):
                    self._leases.start(answer, ttl_s=request.ttl_s)
                    self._granted.set()
            elif answer is None:
                self._leases.end(request.lease)
            if future.done():
                continue
            if isinstance(answer, WaypostError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _read(self, key: bytes, end: bytes | None, limit: int) -> Page:
        """Runs in the reading thread: one read transaction, so revision and rows are of one snapshot."""
        db = self._database.reader
        items: Sequence[KeyValue]
        with translated(self._database.path):
            db.execute("BEGIN")
            try:
                (revision,) = db.execute(
                    "SELECT value FROM meta WHERE name = 'revision'"
                ).fetchone()
                if end is None:
                    row = read_row(db, key)
                    items = () if row is None else (row,)
                else:
                    items = read_span(db, key, end, limit=limit + 1 if limit else -1)
            finally:
                db.execute("ROLLBACK")
        if limit and len(items) > limit:
            return Page(revision, tuple(items[:limit]), more=True)
        return Page(revision, tuple(items))

    async def _sweep(self) -> None:
        while True:
            if not self._leases and not self._over:
                self._granted.clear()
                await self._granted.wait()
            await asyncio.sleep(self._leases.pause_s(at_most_s=self._sweep_s))
            for lease in self._leases.expired():
                self._leases.end(lease)
                self._over.add(lease)
            for lease in sorted(self._over):
                try:
                    await self._submit(Revoke(lease))
                except (
                    Unavailable
                ):  # the writer has logged why; the lease stays over and is tried again
                    break
                self._over.discard(lease)
