"""The watch of the whole key space, kept up over every failure, into the history that our watchers read.

Every revision has an event, because nothing is left out of the watch; so a revision that is missing has been lost, and
"seen up to here" is exact without etcd's progress messages.

Below a prefix the revisions of others are missing, and that is all right. "Seen up to here" is exact still: the read index is
that of our latest write then, and the watch shows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import NoLeader
from waypost.store.engine import Batch, Event, KeyValue
from waypost.store.etcd.compile import LANES, LANES_END
from waypost.store.etcd.failure import Failure, parse_failure
from waypost.store.etcd.gateway import Gateway
from waypost.store.etcd.index import ReadIndex
from waypost.store.etcd.messages import (
    WATCH,
    WatchResponse,
    WireEvent,
    span_json,
    watch_decoder,
)
from waypost.store.history import History

log = logging.getLogger(__name__)

WATCHDOG_S = 1.0
"""How often the view is compared with a read index, and how long it may take to get there."""


def span_of(prefix: bytes) -> tuple[bytes, bytes]:
    """Return the span key <= k < end of all keys that begin with `prefix`; an `end` of one NUL is the end of all."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return prefix or b"\0", b"\0"
    return prefix, stripped[:-1] + bytes([stripped[-1] + 1])


def batches(events: Iterable[WireEvent], *, after: int, skip: int = 0) -> Iterator[Batch]:
    """Group the events of a complete message by revision, without those up to `after`. Pure.

    The engine's own keys are left out; a revision that changed nothing else is an empty batch. `skip`: bytes of the
    prefix before our keys.
    """
    revision = 0
    found: list[Event] = []
    for event in events:
        kv = event.kv
        if kv.mod_revision <= after:
            continue
        if kv.mod_revision != revision:
            if revision:
                yield Batch(revision, tuple(found))
            revision, found = kv.mod_revision, []
        key = kv.key[skip:]
        if LANES <= key < LANES_END:
            continue
        if event.type == "DELETE":
            found.append(Event("delete", KeyValue(key, b"", 0, revision, 0)))
        else:
            found.append(Event("put", kv.ours(skip)))
    if revision:
        yield Batch(revision, tuple(found))


class _Lost(Exception):
    """Revisions are gone: those who watch have to load again."""


class Feed:
    """Keeps `history` current. `run()` never ends by itself."""

    def __init__(
        self,
        gateway: Gateway,
        history: History,
        index: ReadIndex,
        *,
        clock: Clock,
        acknowledged: Callable[[], int],
        on_restart: Callable[[], None],
        prefix: bytes = b"",
    ) -> None:
        """`acknowledged` returns the newest revision that a write was answered with.

        `on_restart` is called when the past does not count any more.
        """
        self._gateway = gateway
        self._history = history
        self._index = index
        self._clock = clock
        self._acknowledged = acknowledged
        self._on_restart = on_restart
        self._prefix = prefix
        self._span = span_json(*span_of(prefix))
        self._scope: asyncio.Timeout | None = None
        self._avoid = ""
        self._broken = False
        self._told = False
        self._moved = asyncio.Event()
        self.heard_at = clock.now()
        """When etcd was last known to be reachable and the history to be current, on the monotonic clock."""

    async def run(self) -> None:
        """Watch, and watch the watch, until cancelled."""
        async with asyncio.TaskGroup() as tg:
            tg.create_task(self._follow(), name="store.etcd.watch")
            tg.create_task(self._guard(), name="store.etcd.watchdog")

    async def reached(self, revision: int) -> None:
        """Return when the history has `revision`."""
        while self._history.revision < revision:
            self._moved.clear()
            await self._moved.wait()

    # -- the stream --------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        tries = 0
        while True:
            endpoint = self._gateway.endpoints.pick(but=self._avoid)
            before = self._history.revision
            if endpoint is not None:
                try:
                    async with asyncio.timeout(None) as self._scope:
                        await self._stream(endpoint)
                    self._interrupted(endpoint, "the watch ended")
                except TimeoutError:
                    self._interrupted(endpoint, "the watch was silent")
                except Failure as failure:
                    self._interrupted(endpoint, failure.text)
                except _Lost as lost:
                    if await self._start_over(str(lost)):
                        tries = 0
                        continue
                finally:
                    self._scope = None
            tries = 0 if self._history.revision != before else tries + 1
            await self._gateway.pause(tries)

    def _interrupted(self, endpoint: str, why: str) -> None:
        self._gateway.endpoints.failed(endpoint)
        self._avoid = endpoint
        level = logging.DEBUG if self._told else logging.WARNING
        log.log(level, "watch of %s interrupted at revision %d: %s", endpoint, self._history.revision, why)  # fmt: skip
        self._told = True

    async def _start_over(self, why: str) -> bool:
        """Forget the past, so that all who watch get Compacted. Returns whether that worked."""
        try:
            # All of etcd's, which nobody can have compacted.
            revision = max(await self._index.get(), self._index.store_revision)
        except NoLeader:
            return False
        log.warning("watch starts over at revision %d instead of %d: %s", revision, self._history.revision, why)  # fmt: skip
        self._restart(revision)
        return True

    def _restart(self, revision: int) -> None:
        self._on_restart()
        self._history.start(revision=revision)
        self._history.publish(())  # wakes those who wait
        self._moved.set()

    async def _stream(self, endpoint: str) -> None:
        # From the last revision that is known, not from the next: if etcd has compacted in between, the deletions
        # made in the very revision it was compacted at are gone, and a watch from there would not say so. What is
        # known already is dropped by `batches`.
        start = self._history.revision
        body = b'{"create_request":{%b,"start_revision":"%d","fragment":true}}' % (
            self._span,
            start,
        )
        async with self._gateway.lines(WATCH, body, endpoint=endpoint) as lines:
            async for response in messages(lines, endpoint):
                if response.compact_revision:
                    msg = f"revision {start} was compacted, at {response.compact_revision}"
                    raise _Lost(msg)
                if response.canceled:
                    text = response.cancel_reason or "etcd cancelled the watch"
                    raise Failure(text, outcome="unknown", endpoint=endpoint)
                if response.created:
                    self._created(endpoint)
                self._publish(response.events)

    def _created(self, endpoint: str) -> None:
        self._gateway.endpoints.works(endpoint)
        if self._told:
            log.info("watch goes on at revision %d, now of %s", self._history.revision, endpoint)
        self._avoid, self._told = "", False

    def _publish(self, events: list[WireEvent]) -> None:
        if not events:
            return
        known = self._history.revision
        found = list(batches(events, after=known, skip=len(self._prefix)))
        for batch in found if not self._prefix else ():
            known += 1
            if batch.revision != known:
                msg = f"revision {known} is missing before {batch.revision}"
                raise _Lost(msg)
        if found:
            self._history.publish(found)
            self._moved.set()

    # -- the watchdog --------------------------------------------------------------------------------------------

    async def _guard(self) -> None:
        while True:
            await asyncio.sleep(WATCHDOG_S)
            known = max(self._history.revision, self._acknowledged())
            try:
                revision = await self._index.get()
            except NoLeader:
                continue
            if self._index.store_revision < known:
                self._replaced(self._index.store_revision, known)
                continue
            try:
                async with asyncio.timeout(WATCHDOG_S):
                    await self.reached(revision)
                self.heard_at = self._clock.now()
            except TimeoutError:
                if self._scope is not None:
                    self._scope.reschedule(asyncio.get_running_loop().time())

    def _replaced(self, revision: int, known: int) -> None:
        log.error(
            "etcd is at revision %d, but %d was seen before: its data was replaced by older ones",
            revision,
            known,
        )
        self._restart(revision)
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())


async def messages(lines: AsyncIterator[bytes], endpoint: str) -> AsyncIterator[WatchResponse]:
    """Yield the messages of a watch, fragments joined. Raises Failure for an error within the stream."""
    begun: list[WireEvent] = []
    async for line in lines:
        try:
            response = watch_decoder.decode(line).result
        except msgspec.MsgspecError as error:
            text = f"a message that cannot be read: {error}"
            raise Failure(text, outcome="unknown", endpoint=endpoint) from error
        if response is None:
            raise parse_failure(line, status=200, endpoint=endpoint)
        if response.fragment:
            begun += response.events
            continue
        if begun:
            response.events = begun + response.events
            begun = []
        yield response
