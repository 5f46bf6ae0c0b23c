"""What this machine found out about itself and the store does not have yet.

While the store takes no writes, a container of this machine that ends and a check that turns critical have to leave
this machine's DNS and balancer all the same. Such changes *cover* the view (`View.cover`): they are shown here, and
nowhere else. Once the store answers, what is covered is decided again on what the store has by then, and written;
then the view shows the store again.

Only what the agent would find out again after `kill -9` is taken: nothing of it is on disk. Kept is the last word on
each record, at most `MAX_RECORDS`; overflow rule: records that are not among them are refused, as without all this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from waypost.base.errors import NoLeader, Unavailable, Unknown, WaypostError
from waypost.state.keys import CHECK, SERVICE, Record, check_key, decode, service_key
from waypost.state.view import COVERABLE, View
from waypost.store.engine import Delete, Engine, KeyValue, Put, Txn

log = logging.getLogger(__name__)

MAX_RECORDS: Final = 8192
"""Nodes, services and checks that may be provisional at a time: those of one machine."""

PAUSE_S: Final = 0.2
"""Between two questions whether the store is back; it takes its own time to say no."""

Wanted = Mapping[bytes, Record | None]
"""Provisional records by key; None: it is gone."""


class Step(msgspec.Struct, frozen=True):
    """One transaction, and the provisional records that are settled when it is done. None: nothing has to be written."""

    keys: tuple[bytes, ...]
    txn: Txn | None


Settle = Callable[[View, Wanted], Sequence[Step]]
"""Decides, on a view of what is stored, how provisional records come to be stored. Every key is in one step."""


class Provisional:
    """The provisional records of one view. `run()` must be running for them to get into the store."""

    def __init__(
        self,
        view: View,
        engine: Engine,
        *,
        settle: Settle,
        reached: Callable[[int], Awaitable[None]],
    ) -> None:
        """`reached` returns when the view has a revision; it may raise Unavailable."""
        self._view = view
        self._engine = engine
        self._settle = settle
        self._reached = reached
        self.when_settled: Callable[[], None] = lambda: None
        """Called when everything is stored again: a good moment to compare with what should be."""
        self._begun = asyncio.Event()
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self._since_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._view.covered)

    def take(self, txn: Txn, *, why: Unavailable) -> None:
        """Show what `txn` would write, because the store does not take it. Raises `why` when that cannot be shown,
        NoLeader when there is too much.
        """
        changes = dict(_changes(self._view, txn, why))
        if len(self._view.covered.keys() | changes.keys()) > MAX_RECORDS:
            msg = f"{MAX_RECORDS} records of this machine wait for the store already"
            raise NoLeader(msg) from why
        if not self:
            self._since_s = asyncio.get_running_loop().time()
            log.warning(
                "the store takes no writes (%s): changes of this machine's own services and checks are shown on this "
                "machine alone until it does",
                why,
            )
            self._may_answer.clear()
        self._view.cover(changes)
        self._begun.set()

    async def settled(self) -> None:
        """Return when the view shows what is stored and nothing else; at once while the store answers and refuses all
        writes, as one whose disk is full: then reads have to go on.
        """
        await self._may_answer.wait()

    async def run(self) -> None:
        """Bring what is provisional into the store whenever it answers, until cancelled."""
        while True:
            await self._begun.wait()
            settled = 0
            while self:
                try:
                    await self._reached(await self._engine.read_index())
                    settled += await self._write()
                except (NoLeader, Unknown) as error:
                    log.debug("provisional records wait for the store: %s", error)
                    self._may_answer.clear()
                    await asyncio.sleep(PAUSE_S)
                except Unavailable as error:
                    log.debug("the store refuses provisional records: %s", error)
                    self._may_answer.set()
                    await asyncio.sleep(PAUSE_S)
            # No await since the last look: nothing was covered in between.
            self._begun.clear()
            self._may_answer.set()
            log.info(
                "the store takes writes again and has this machine's changes: %d records, %.1f s after the first",
                settled,
                asyncio.get_running_loop().time() - self._since_s,
            )
            self.when_settled()

    async def _write(self) -> int:
        """Write what is provisional now; return how many records were settled. Raises Unavailable."""
        wanted = dict(self._view.covered)
        with self._view.as_stored():
            steps = self._settle(self._view, wanted)
        settled = 0
        for step in steps:
            if step.txn is not None and not await self._is_written(step.txn):
                continue
            # What has changed again since is for the next look.
            done = [key for key in step.keys if self._view.covered.get(key, ...) is wanted[key]]
            if done:
                self._view.uncover(done)
            settled += len(done)
        return settled

    async def _is_written(self, txn: Txn) -> bool:
        """Return False when somebody else wrote meanwhile, so that it has to be decided again. Raises Unavailable."""
        try:
            result = await self._engine.commit(txn)
        except Unavailable:
            raise
        except WaypostError as error:
            # The store will not do it later either; what found the change out will find it out again.
            log.error("the store refuses changes of this machine: %s", error)
            return True
        await self._reached(result.revision)
        return result.succeeded


def _changes(view: View, txn: Txn, why: Unavailable) -> Iterator[tuple[bytes, Record | None]]:
    """Yield what `txn` makes of which record. Raises `why` for what cannot be shown provisionally."""
    for operation in txn.then:
        if operation.key[:2] not in COVERABLE:
            raise why
        match operation:
            case Put(key, value):
                yield key, decode(KeyValue(key, value, 0, 0))
            case Delete(key, None):
                yield key, None
            case Delete(key):
                for one in _span(view, key, why):
                    yield one, None
            case _:
                raise why


def _span(view: View, prefix: bytes, why: Unavailable) -> list[bytes]:
    """Return the keys of all services, or all checks, of the node that `prefix` names."""
    node = prefix[2:-1].decode("utf-8", "surrogateescape")
    if prefix.startswith(SERVICE):
        return [service_key(node, one) for one in view.node_services(node)]
    if prefix.startswith(CHECK):
        return [check_key(node, one) for one in view.node_checks(node)]
    raise why
