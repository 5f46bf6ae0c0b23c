"""The store for other machines, on the cluster port: what a remote engine asks.

A server may do everything. A node is held to `access.authz.node_scope`: it is shown what it may see, its transactions
are checked before they reach the engine, leases and compaction are not for it. Strangers get 403.

However many machines watch, the engine is watched once: its revisions go into one ring, each stream is a position in
it, and a revision is encoded once for all who are shown the same. Overflow rule: a client that is slower than the
ring is long gets `compacted` and loads again; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from waypost.access.authz.node_scope import (
    NodeScope,
    check_range,
    check_txn,
    own_prefix,
    shown,
    shown_batch,
)
from waypost.base.errors import Forbidden, Unavailable, WaypostError
from waypost.state.keys import CHECK
from waypost.state.view import View
from waypost.store.engine import Batch, Compacted, Engine, KeyValue, Page, Txn
from waypost.store.history import KEEP_BATCHES, KEEP_BYTES
from waypost.store.remote.protocol import (
    CONTENT_TYPE,
    ERROR_HEADER,
    PREFIX,
    Change,
    CompactAsk,
    End,
    Failure,
    GrantAsk,
    LeaseAsk,
    Outcome,
    Progress,
    RangeAsk,
    RangeStart,
    Rows,
    WatchAsk,
    decode,
    decode_txns,
    encode,
    frame,
)
from waypost.store.remote.ring import Ring
from waypost.surfaces.cluster.caller import Identifies, NodeCaller, ServerCaller, caller_of
from waypost.surfaces.http.message import Request, Response, text_response
from waypost.surfaces.http.router import BodyLimit, Route
from waypost.surfaces.http.status import status_of

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 1.0
PROBE_S: Final = 1.0
PROBE_TIMEOUT_S: Final = 2.0
MAX_BODY_BYTES: Final = 8 * 2**20
_MAX_TXNS: Final = 256
_PAGE_ROWS: Final = 1000
_TAKE: Final = 128
_FRAMES: Final = 2048
"""Encoded revisions kept for streams that are not there yet."""
_FRAME_MAX_BYTES: Final = 65536
"""Larger ones are encoded for each stream again rather than kept."""

NodeOf = Callable[[Request], str]
"""Returns the name of the node that calls, "" for a server. Raises Forbidden or Unauthenticated for anybody else."""

_Variant = tuple[int, bool, str]


def members_of(cluster: Identifies) -> NodeOf:
    """Return what tells the machines of a cluster apart by their certificates."""

    def node_of(request: Request) -> str:
        match caller_of(request, cluster):
            case ServerCaller():
                return ""
            case NodeCaller(node) if node:
                return node
        msg = "this is for machines of the cluster, with the certificate that they got when they joined"
        raise Forbidden(msg)

    return node_of


class StoreRoutes:
    """The routes below `/cluster/v1/store/`. `run` has to run while streams are served."""

    def __init__(
        self,
        engine: Engine,
        view: View,
        *,
        node_of: NodeOf,
        may_read_kv: Callable[[str], bool],
        keep_batches: int = KEEP_BATCHES,
        keep_bytes: int = KEEP_BYTES,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        """`view` is this server's own. `may_read_kv` says of a node whether it may read all keys, at any time anew."""
        self._engine = engine
        self._view = view
        self._node_of = node_of
        self._may_read_kv = may_read_kv
        self._heartbeat_s = heartbeat_s
        self._ring = Ring(keep_batches=keep_batches, keep_bytes=keep_bytes)
        self._frames: OrderedDict[_Variant, bytes] = OrderedDict()
        self._is_confirmed = True
        self.streams = 0
        """How many machines watch now."""

    def routes(self) -> list[Route]:
        """Return the routes."""
        table: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "range": self.range,
            "commit": self.commit,
            "read-index": self.read_index,
            "watch": self.watch,
            "status": self.status,
            "compact": self.compact,
            "grant": self.grant,
            "keep-alive": self.keep_alive,
            "revoke": self.revoke,
        }
        limit = BodyLimit(MAX_BODY_BYTES)
        return [
            Route(PREFIX + name, {"POST": handler}, limit=limit, on_error=store_error)
            for name, handler in table.items()
        ]

    # -- following the engine ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the ring current until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(), name="cluster.store.follow")
                group.create_task(self._probe(), name="cluster.store.probe")
        finally:
            self._ring.end()

    async def _follow(self) -> None:
        while True:
            try:
                revision = await self._engine.read_index()
                self._frames.clear()
                self._ring.start(revision=revision)
                async for batch in self._engine.watch(after=revision):
                    self._ring.publish(batch)
                return  # the engine was closed
            except Compacted as exc:
                log.warning("machines that watch have to load again: %s", exc)
            except Unavailable as exc:
                log.debug("the store cannot be followed yet: %s", exc)
                await asyncio.sleep(self._heartbeat_s)

    async def _probe(self) -> None:
        """Find out again and again whether this server reaches the quorum, for those who watch through it."""
        while True:
            await asyncio.sleep(PROBE_S)
            if not self.streams:
                continue
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await self._engine.read_index()
            except (Unavailable, TimeoutError):
                self._is_confirmed = False
            else:
                self._is_confirmed = True

    # -- callers -----------------------------------------------------------------------------------------------------------

    def _scope(self, request: Request) -> NodeScope | None:
        """Return what the caller is held to; None for a server. Raises Forbidden for a stranger."""
        node = self._node_of(request)
        return NodeScope(node, reads_kv=self._may_read_kv(node)) if node else None

    def _server_only(self, request: Request, what: str) -> None:
        node = self._node_of(request)
        if node:
            msg = f"node '{node}' cannot {what}"
            raise Forbidden(msg)

    # -- reading -----------------------------------------------------------------------------------------------------------

    async def range(self, request: Request) -> Response:
        """Answer a range as a stream of rows."""
        scope = self._scope(request)
        ask = decode(request.body, RangeAsk)
        if scope is not None:
            check_range(scope, ask.key, ask.end)
        # A limit counts what is shown.
        page = await self._engine.range(ask.key, ask.end, limit=0 if scope else ask.limit)
        return _stream(_page_frames(page, scope, limit=ask.limit))

    async def read_index(self, request: Request) -> Response:
        """Answer a revision that covers every write acknowledged before the request."""
        self._node_of(request)
        return _message(await self._engine.read_index())

    async def status(self, request: Request) -> Response:
        """Answer the engine's status."""
        self._node_of(request)
        return _message(await self._engine.status())

    async def watch(self, request: Request) -> Response:
        """Answer every revision after one, as it comes, and at least once a second how far the store is."""
        scope = self._scope(request)
        after = decode(request.body, WatchAsk).after
        ring = self._ring
        if not ring.is_open:
            msg = "this server does not follow the store yet"
            raise Unavailable(msg)
        if after > ring.revision and await self._engine.read_index() < after:
            # The store was restored from an older image.
            msg = f"revision {after} is ahead of the store"
            raise Compacted(msg)
        ring.take(after=after, at_most=0)
        request.may_interrupt = True
        return _stream(self._watch_frames(request, scope, after=after, epoch=ring.epoch))

    async def _watch_frames(
        self, request: Request, scope: NodeScope | None, *, after: int, epoch: int
    ) -> AsyncIterator[bytes]:
        ring = self._ring
        self.streams += 1
        try:
            yield self._progress(scope, after)
            while True:
                if epoch != ring.epoch or (
                    scope is not None and self._may_read_kv(scope.node) != scope.reads_kv
                ):
                    # What the caller holds has a gap, or is more or less than it may see from now on.
                    yield frame(Failure(Compacted.code, "load again"))
                    return
                batches = ring.take(after=after, at_most=_TAKE)
                if batches:
                    after = batches[-1].revision
                    yield self._encoded(batches, scope)
                elif not ring.is_open:
                    return
                elif not await self._changed(after):
                    yield self._progress(scope, after)
        except Compacted as exc:
            log.info("%s reads too slowly: %s", self._caller(request), exc)
            yield frame(Failure(exc.code, str(exc)))
        finally:
            self.streams -= 1

    async def _changed(self, after: int) -> bool:
        """Wait for a newer revision; return False after the time of a heartbeat."""
        try:
            async with asyncio.timeout(self._heartbeat_s):
                await self._ring.wait(after=after)
        except TimeoutError:
            return False
        return True

    def _progress(self, scope: NodeScope | None, revision: int) -> bytes:
        return frame(Progress(revision, self._is_confirmed, scope is None or scope.reads_kv))

    def _encoded(self, batches: list[Batch], scope: NodeScope | None) -> bytes:
        """Return the frames of several revisions; how far they go if all at the end are hidden."""
        parts: list[bytes] = []
        hidden = 0
        for batch in batches:
            part = self._change(batch, scope)
            if part:
                parts.append(part)
            hidden = 0 if part else batch.revision
        if hidden:
            parts.append(self._progress(scope, hidden))
        return b"".join(parts)

    def _change(self, batch: Batch, scope: NodeScope | None) -> bytes:
        """Return the frame of a revision as a caller is shown it, empty when all of it is hidden."""
        if scope is None:
            variant = (batch.revision, True, "\0")
        else:
            own = own_prefix(scope, CHECK)
            mine = any(event.kv.key.startswith(own) for event in batch.events)
            variant = (batch.revision, scope.reads_kv, scope.node if mine else "")
        known = self._frames.get(variant)
        if known is not None:
            return known
        seen = batch if scope is None else shown_batch(scope, batch)
        made = frame(Change(seen)) if seen.events or scope is None else b""
        if len(made) <= _FRAME_MAX_BYTES:
            self._frames[variant] = made
            if len(self._frames) > _FRAMES:
                self._frames.popitem(last=False)
        return made

    def _caller(self, request: Request) -> str:
        return f"node {self._node_of(request) or '(a server)'} at {request.peer.address}"

    # -- writing -----------------------------------------------------------------------------------------------------------

    async def commit(self, request: Request) -> Response:
        """Apply transactions in order and answer what became of each; 403 when none of them is allowed."""
        scope = self._scope(request)
        txns = decode_txns(request.body)
        if len(txns) > _MAX_TXNS:
            msg = f"{len(txns)} transactions in one message, at most {_MAX_TXNS}"
            raise Forbidden(msg)
        checked = [self._checked(scope, txn) for txn in txns]
        refused = [one for one in checked if isinstance(one, Forbidden)]
        if refused and len(refused) == len(txns):
            raise refused[0]
        # All are begun in order before one is waited for, so the engine takes them in that order, in one group.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._outcome(one)) for one in checked]
        return _message([task.result() for task in tasks])

    def _checked(self, scope: NodeScope | None, txn: Txn) -> Txn | WaypostError:
        if scope is None:
            return txn
        try:
            return check_txn(scope, txn, session_of=self._view.session)
        except WaypostError as error:
            if isinstance(error, Forbidden):
                log.warning("refused: %s", error)
            return error

    async def _outcome(self, txn: Txn | WaypostError) -> Outcome:
        try:
            if isinstance(txn, WaypostError):
                raise txn
            return Outcome(await self._engine.commit(txn))
        except WaypostError as error:
            return Outcome(None, error.code, str(error))

    async def compact(self, request: Request) -> Response:
        """Forget revisions; for servers."""
        self._server_only(request, "compact the store")
        before = decode(request.body, CompactAsk).before
        await self._engine.compact(before=before)
        self._ring.compact(before=before)
        return _message(None)

    async def grant(self, request: Request) -> Response:
        """Answer a new lease; for servers."""
        self._server_only(request, "have leases")
        return _message(await self._engine.grant(ttl_s=decode(request.body, GrantAsk).ttl_s))

    async def keep_alive(self, request: Request) -> Response:
        """Renew a lease; for servers."""
        self._server_only(request, "have leases")
        return _message(await self._engine.keep_alive(decode(request.body, LeaseAsk).lease))

    async def revoke(self, request: Request) -> Response:
        """End a lease; for servers."""
        self._server_only(request, "have leases")
        await self._engine.revoke(decode(request.body, LeaseAsk).lease)
        return _message(None)


async def _page_frames(page: Page, scope: NodeScope | None, *, limit: int) -> AsyncIterator[bytes]:
    """Yield a page in pieces, so that neither side encodes 100,000 rows in one turn of its loop."""
    items, more = page.items, page.more
    shows_kv = scope is None or scope.reads_kv
    if scope is not None and limit:
        items = _shown_rows(scope, items)
        items, more, scope = items[:limit], len(items) > limit, None
    yield frame(RangeStart(page.revision, more, shows_kv))
    for at in range(0, len(items), _PAGE_ROWS):
        rows = items[at : at + _PAGE_ROWS]
        yield frame(Rows(rows if scope is None else _shown_rows(scope, rows)))
        await asyncio.sleep(0)
    yield frame(End())


def _shown_rows(scope: NodeScope, rows: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
    return tuple([row for row in [shown(scope, one) for one in rows] if row is not None])


def _message(answer: object) -> Response:
    return Response(body=encode(answer), content_type=CONTENT_TYPE, vary=False)


def _stream(frames: AsyncIterator[bytes]) -> Response:
    return Response(stream=frames, content_type=CONTENT_TYPE, vary=False)


def store_error(_request: Request, error: WaypostError) -> Response:
    """Return an error with its code, so that the caller can raise the same."""
    status = 410 if isinstance(error, Compacted) else status_of(error)
    return text_response(status, str(error), headers=((ERROR_HEADER, error.code),))
