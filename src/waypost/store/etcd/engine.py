"""The engine of a cluster: etcd, through its JSON gateway."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from random import Random

from waypost.base.clock import Clock
from waypost.base.errors import NoLeader, NotFound, Unavailable, WaypostError
from waypost.store.engine import (
    Batch,
    Compare,
    Delete,
    EngineStatus,
    Get,
    KeyValue,
    Page,
    Txn,
    TxnResult,
)
from waypost.store.etcd.auth import EtcdAuth
from waypost.store.etcd.compile import LANES, LANES_END, below, pieces
from waypost.store.etcd.failure import NOT_FOUND, Failure, explain, not_done
from waypost.store.etcd.feed import Feed, span_of
from waypost.store.etcd.gateway import Gateway
from waypost.store.etcd.index import ReadIndex
from waypost.store.etcd.lanes import TIMEOUT_S, Lanes
from waypost.store.etcd.members import EndpointStatus, Members
from waypost.store.etcd.messages import (
    COMPACT,
    GRANT,
    KEEP_ALIVE,
    RANGE,
    REVOKE,
    TIME_TO_LIVE,
    TXN,
    RangeResponse,
    grant_decoder,
    header_decoder,
    keep_alive_decoder,
    range_decoder,
    range_json,
    time_to_live_decoder,
    txn_decoder,
    txn_json,
)
from waypost.store.etcd.tls import EtcdTls
from waypost.store.etcd.versions import check_version
from waypost.store.history import KEEP_BATCHES, KEEP_BYTES, History
from waypost.store.leases import check_ttl

log = logging.getLogger(__name__)

PAGE_BYTES = 8 * 2**20
"""About what one answer of a long range should have."""
PAGE_KEYS = (500, 10_000)
"""Keys in the first page, and at most."""

_KEY_BYTES = 150
"""About what a key costs in JSON beside itself and its value."""

CLOSE_S = 12.0
"""Longer than any caller waits."""
CLOSE_WATCH_S = 2.0


class EtcdEngine:
    """The whole key space of one etcd, which belongs to waypost.

    Keys that somebody else put there are neither hidden nor touched: waypost's tables do not have them. Only the keys
    below `_ NUL lane NUL` are the engine's own and do not exist for callers. Transactions of callers that ask at the same time
    become one transaction of etcd (see `lanes`), so several may share a revision.
    """

    def __init__(
        self,
        endpoints: Sequence[str] | Callable[[], Sequence[str]],
        *,
        tls: EtcdTls | None = None,
        process_id: str,
        clock: Clock,
        rng: Random,
        prefix: bytes = b"",
        auth: EtcdAuth | None = None,
        attempt_timeout_s: float = 1.5,
        keep_batches: int = KEEP_BATCHES,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        """`endpoints`: base URLs, this machine's own first; a callable is asked whenever one is needed.

        `process_id` names the writer, and no two processes that run may share it: a node's id. One that stays the same
        over restarts leaves nothing behind in etcd. `attempt_timeout_s` should be etcd's election timeout + 0.5 s.

        `prefix` is put before every key, so that an etcd can be shared; neither b"" nor one that another user's keys
        begin with may be shared. `auth` is for an etcd with its authentication switched on.
        """
        self.gateway = Gateway(
            endpoints, tls=tls, auth=auth, clock=clock, rng=rng, attempt_timeout_s=attempt_timeout_s
        )
        self._prefix = prefix
        self.members = Members(self.gateway)
        self._clock = clock
        self._history = History(keep_batches=keep_batches, keep_bytes=keep_bytes)
        self._index = ReadIndex(self.gateway, prefix=prefix)
        self._lanes = Lanes(self.gateway, process_id=process_id, rng=rng, prefix=prefix)
        self._feed = Feed(
            self.gateway,
            self._history,
            self._index,
            clock=clock,
            acknowledged=lambda: self._lanes.revision,
            on_restart=self._lanes.forget,
            prefix=prefix,
        )
        self._changing = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._keys = 0
        self._open = False

    @property
    def heard_s(self) -> float:
        """Seconds since the history was last known to be current (Consul's LastContact)."""
        return max(0.0, self._clock.now() - self._feed.heard_at)

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect. Needs a leader: raises NoLeader when there is none within 10 s, Unavailable with the reason."""
        async with self._changing:
            if self._open:
                msg = "the store is open already"
                raise Unavailable(msg)
            await self.gateway.open()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await self._lanes.fence()
                    revision = max(await self._index.ask(), self._index.store_revision)
                await self._check_versions()
            except TimeoutError as error:
                await self.gateway.close()
                raise not_done(self._lanes.last_failure, at_most_s=TIMEOUT_S) from error
            except BaseException:
                await self.gateway.close()
                raise
            self._history.start(revision=revision)
            self._running = asyncio.create_task(self._run(), name="store.etcd")
            self._writing = asyncio.create_task(self._lanes.run(), name="store.etcd.lanes")
            self._open = True

    async def close(self) -> None:
        """Finish what was accepted, then stop; watches end after the last revision. Safe to call twice."""
        async with self._changing:
            if not self._open:
                return
            self._open = False
            self._lanes.close()
            try:
                await self._drain()
            finally:
                for task in (self._writing, self._running):
                    if task is not None:
                        task.cancel()
                        with suppress(asyncio.CancelledError):
                            await task
                self._index.close()
                self._history.end()
                await self.gateway.close()

    async def _drain(self) -> None:
        assert self._writing is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(self._writing)
            async with asyncio.timeout(CLOSE_WATCH_S):
                await self._feed.reached(self._lanes.revision)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tg:
            tg.create_task(self._index.run(), name="store.etcd.index")
            tg.create_task(self._feed.run(), name="store.etcd.feed")

    async def _check_versions(self) -> None:
        for endpoint in self.gateway.endpoints.all():
            try:
                status = await self.members.endpoint_status(endpoint)
            except Unavailable:
                continue
            check_version(status.version, endpoint=endpoint)

    def _check_open(self) -> None:
        if not self._open:
            msg = "the store is not open"
            raise NoLeader(msg)

    # -- data ----------------------------------------------------------------------------------------------------

    async def commit(self, txn: Txn) -> TxnResult:
        """Apply atomically, exactly once; on the disks of a majority when it returns.

        Raises Malformed, NotFound (unknown lease), TooLarge; NoLeader or Unavailable (not applied) and Unknown after
        10 s. When the caller is cancelled the transaction may be applied or not.
        """
        self._check_open()
        return await self._lanes.commit(txn)

    async def range(self, key: bytes, end: bytes | None = None, *, limit: int = 0) -> Page:
        """Return the key, or key <= k < end, as of one revision confirmed by a quorum. `limit` 0 = all."""
        self._check_open()
        spans = tuple(below(self._prefix, span) for span in pieces(key, end))
        if not spans:
            return Page(await self.read_index(), ())
        for _ in range(3):
            try:
                return await self._pages(spans, limit)
            except Failure as failure:
                if not failure.compacted:
                    msg = f"the store refused to read: {explain(failure)}"
                    raise Unavailable(msg) from failure
        msg = "etcd is compacted faster than it can be read"
        raise Unavailable(msg)

    async def _pages(self, spans: Sequence[tuple[bytes, bytes | None]], limit: int) -> Page:
        revision = 0
        items: list[KeyValue] = []
        more = False
        size, most = PAGE_KEYS
        for start, end in spans:
            at: bytes | None = start
            while at is not None:
                left = limit + 1 - len(items) if limit else PAGE_KEYS[1]
                want, found = await self._page(
                    at, end, want=min(size, most, left), revision=revision
                )
                if want < min(size, most, left):
                    most = want
                revision = revision or found.header.revision
                items += [kv.ours(len(self._prefix)) for kv in found.kvs]
                if limit and len(items) > limit:
                    return Page(revision, tuple(items[:limit]), more=True)
                at = found.kvs[-1].key + b"\0" if found.more else None
                size = _next_page(found)
        return Page(revision, tuple(items), more)

    async def _page(
        self, at: bytes, end: bytes | None, *, want: int, revision: int
    ) -> tuple[int, RangeResponse]:
        """Return at most `want` keys, and how many were asked for in the end.

        Nobody knows beforehand how large values are: a page that is not sent in time is asked for again smaller.
        """
        until_s = self._clock.now() + TIMEOUT_S
        while True:
            body = range_json(at, end, limit=want, revision=revision)
            left_s = until_s - self._clock.now()
            tries_s = left_s if want == 1 else min(2 * self.gateway.attempt_timeout_s, left_s)
            try:
                return want, await self.gateway.ask(
                    RANGE, body, into=range_decoder, at_most_s=tries_s
                )
            except NoLeader:
                if self._clock.now() >= until_s or want == 1:
                    raise
                want = max(1, want // 8)

    def watch(self, *, after: int) -> AsyncIterator[Batch]:
        """Yield every revision > `after`; one in which only the engine's own keys changed is an empty batch.

        Survives the loss of etcd's members. Raises Compacted, also when the watcher fell out of the kept history or
        etcd was restored from a backup.
        """
        return self._history.watch(after=after)

    async def read_index(self) -> int:
        """Return a revision confirmed by a quorum after the call. Raises NoLeader after 5 s."""
        self._check_open()
        return await self._index.get()

    async def compact(self, *, before: int) -> None:
        """Forget the revisions < `before`, in etcd and so for everybody."""
        self._check_open()
        current = await self._index.get()
        with suppress(TimeoutError):  # or the watch would have to start over
            async with asyncio.timeout(CLOSE_WATCH_S):
                await self._feed.reached(current)
        revision = min(before - 1, current)
        if revision > 0:
            try:
                body = b'{"revision":"%d"}' % revision
                await self.gateway.ask(COMPACT, body, into=header_decoder, at_most_s=TIMEOUT_S)
            except Failure as failure:
                if not failure.compacted:
                    raise Unavailable(explain(failure)) from failure
        self._history.compact(before=before)

    # -- leases --------------------------------------------------------------------------------------------------

    async def grant(self, *, ttl_s: float) -> int:
        """Return a lease. etcd counts whole seconds and at least 1.5 election timeouts; shorter TTLs become that.

        A new leader of etcd starts every lease at its full TTL. A grant whose answer was lost leaves a lease without
        keys behind, which ends by itself.
        """
        self._check_open()
        check_ttl(ttl_s)
        body = b'{"TTL":"%d"}' % math.ceil(ttl_s)
        try:
            answer = await self.gateway.ask(GRANT, body, into=grant_decoder, at_most_s=TIMEOUT_S)
        except Failure as failure:
            raise Unavailable(explain(failure)) from failure
        return answer.id

    async def keep_alive(self, lease: int) -> float:
        """Renew; return the new remaining seconds. Raises NotFound when the lease is gone."""
        self._check_open()
        body = b'{"ID":"%d"}' % lease
        try:
            answer = await self.gateway.ask(
                KEEP_ALIVE, body, into=keep_alive_decoder, at_most_s=TIMEOUT_S
            )
        except Failure as failure:
            raise Unavailable(explain(failure)) from failure
        result = answer.result
        if result is None or result.ttl_s <= 0:
            msg = f"lease {lease} does not exist"
            raise NotFound(msg)
        return float(result.ttl_s)

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys in one revision. Unknown leases are ignored."""
        self._check_open()
        body = b'{"ID":"%d"}' % lease
        try:
            if self._prefix:
                await self._delete_leased(lease)
            await self.gateway.ask(REVOKE, body, into=header_decoder, at_most_s=TIMEOUT_S)
        except Failure as failure:
            if failure.code != NOT_FOUND:
                raise Unavailable(explain(failure)) from failure

    async def _delete_leased(self, lease: int) -> None:
        """Delete a lease's keys by a transaction, which moves a lane: so a read afterwards waits for the deletions."""
        body = b'{"ID":"%d","keys":true}' % lease
        while True:
            held = await self.gateway.ask(
                TIME_TO_LIVE, body, into=time_to_live_decoder, at_most_s=TIMEOUT_S
            )
            skip = len(self._prefix)
            gets = tuple(Get(key[skip:]) for key in held.keys if key.startswith(self._prefix))
            found = (await self.commit(Txn(then=gets))).results if gets else ()
            rows = [row for one in found if isinstance(one, tuple) for row in one]
            rows = [row for row in rows if row.lease == lease]
            txn = Txn(
                when=tuple(Compare(row.key, "modify", "==", row.modify_revision) for row in rows),
                then=tuple(Delete(row.key) for row in rows),
            )
            if not rows or (await self.commit(txn)).succeeded:
                return

    # -- people --------------------------------------------------------------------------------------------------

    async def status(self) -> EngineStatus:
        """Return facts for people and metrics; answers without a quorum too, then from what was known last.

        `leader`: the member asked first leads. Raises nothing.
        """
        revision, has_quorum = self._history.revision, False
        local: EndpointStatus | None = None
        if self._open:
            with suppress(WaypostError):
                revision, self._keys = await self._count()
                has_quorum = True
            if (endpoint := self.gateway.endpoints.pick()) is not None:
                with suppress(WaypostError):
                    local = await self.members.endpoint_status(endpoint)
        return EngineStatus(
            engine="etcd",
            revision=revision,
            compacted=self._history.compacted,
            keys=self._keys,
            size_bytes=local.db_size_bytes if local else 0,
            durable=True,
            leader=local is not None and local.leader_id == local.member_id,
            has_quorum=has_quorum,
        )

    async def _count(self) -> tuple[int, int]:
        """Return revision and number of keys. Raises NoLeader."""
        first, last = span_of(self._prefix)
        reads = b",".join(
            b'{"request_range":%b}' % range_json(start, end, count_only=True)
            for start, end in (
                (first, self._prefix + LANES),
                (self._prefix + LANES_END, last),
            )
        )
        try:
            answer = await self.gateway.ask(
                TXN, txn_json(b"", reads, b""), into=txn_decoder, at_most_s=2.0
            )
        except Failure as failure:
            raise NoLeader(explain(failure)) from failure
        counts = [r.response_range.count for r in answer.responses if r.response_range]
        return answer.header.revision, sum(counts)


def _next_page(found: RangeResponse) -> int:
    """Return how many keys to ask for next, from how large these were."""
    size_bytes = sum(len(kv.key) + len(kv.value) + _KEY_BYTES for kv in found.kvs)
    per_key = size_bytes / max(1, len(found.kvs))
    return max(1, min(PAGE_KEYS[1], int(PAGE_BYTES / max(per_key, 1))))
