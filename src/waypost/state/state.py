"""The state as the domain holds it: the view, kept current by the store's watch, and the way to change it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec

from waypost.base.errors import Conflict, NoLeader, Unavailable, Unknown, WaypostError
from waypost.state.provisional import Provisional, Settle
from waypost.state.view import View
from waypost.store.engine import Compacted, Engine, Txn

log = logging.getLogger(__name__)

T = TypeVar("T")

_ATTEMPTS = 32

CONFIRM_S = 2.0
"""How long a reader waits for this agent's view beside the store's own time. Consul's clients get "No cluster leader"."""

CATCH_UP_S = 10.0
"""How long a writer waits for this agent's view after the store has answered."""

OWN_PATIENCE_S = 0.5
"""How long a change that this machine found out about itself waits for the store before it is shown here alone."""

PAUSE_S = (0.1, 2.0)
"""First and longest pause while the store cannot be followed."""


class Plan(msgspec.Struct, Generic[T], frozen=True):
    """What a decision came to: the answer for the caller, and the transaction that makes it true (None: nothing to do).

    The transaction must compare everything the decision read, so that it fails when the view was behind.
    """

    answer: T
    txn: Txn | None = None
    is_own: bool = False
    """Without a transaction: nothing was read that others write, so the view need not be confirmed for the answer."""


class Commit(Protocol):
    """How a decision is made true: `State.commit`, or the leader's own that fails once it leads no more."""

    async def __call__(self, decide: Callable[[View], Plan[T]]) -> T:
        """See `State.commit`."""
        ...


class State:
    """One view over one engine. `run()` must be running while anything is committed."""

    def __init__(
        self,
        engine: Engine,
        *,
        authoritative: bool = True,
        settle: Settle | None = None,
        own_patience_s: float = OWN_PATIENCE_S,
    ) -> None:
        """With `settle` this machine's own changes are shown while the store takes none (`commit_own`)."""
        self.engine = engine
        self.view = View()
        self.authoritative = authoritative
        """Every write anybody was told of is in this view already: true when the engine lives in this process,
        because a commit returns only after the view has it. Then no read has to be confirmed."""
        self._own_patience_s = own_patience_s
        self.provisional = (
            Provisional(self.view, engine, settle=settle, reached=self._catch_up)
            if settle is not None
            else None
        )
        """What this machine found out and the store does not have; None where the store is in this process."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._closed = False

    async def load(self) -> None:
        """Fill the view from the engine. Call once before `run`."""
        page = await self.engine.range(b"\0", b"\xff")
        self.view.load(page.items, revision=page.revision)
        self._notify()

    async def run(self) -> None:
        """Follow the engine until cancelled, or until the engine is closed."""
        if self.provisional is None:
            await self._follow()
            return
        async with asyncio.TaskGroup() as group:
            settling = group.create_task(self.provisional.run(), name="state.provisional")
            await self._follow()
            settling.cancel()

    async def _follow(self) -> None:
        """Keep the view current.

        A watch that was cut off by compaction, or whose store was replaced by an older one, starts over from a fresh
        load; one that the engine cannot keep up is begun again where it was.
        """
        try:
            pause_s = 0.0
            lost = False
            while True:
                try:
                    if lost:
                        await self.load()
                        lost = False
                    async for batch in self.engine.watch(after=self.view.revision):
                        pause_s = 0.0
                        self.view.apply(batch)
                        self._notify()
                except Compacted:
                    log.warning("watch fell behind revision %d, loading again", self.view.revision)
                    lost = True
                except Unavailable as error:
                    level = logging.DEBUG if pause_s else logging.WARNING
                    log.log(level, "the store cannot be followed: %s", error)
                    pause_s = min(max(2 * pause_s, PAUSE_S[0]), PAUSE_S[1])
                    await asyncio.sleep(pause_s)
                else:
                    return
        finally:
            self._closed = True
            for _, future in self._waiting:
                if not future.done():
                    future.set_exception(NoLeader("the agent is stopping"))
            self._waiting.clear()

    async def reached(self, revision: int) -> None:
        """Return when the view has `revision`. Raises NoLeader when the agent stops first."""
        if self.view.revision >= revision:
            return
        if self._closed:
            msg = "the agent is stopping"
            raise NoLeader(msg)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((revision, future))
        await future

    async def commit_own(self, decide: Callable[[View], Plan[T]]) -> T:
        """Do as `commit` with what this machine found out about itself: its containers, the results of its checks.

        When the store does not take it at once it is shown on this machine alone, and brought into the store when
        that is back (`state.provisional`). Until then it is lost with this process, which finds it out again: so never
        for what somebody else asked for. While the store is away `decide` sees what is shown, and its refusals count.
        """
        provisional = self.provisional
        if provisional is None:
            return await self.commit(decide)
        why = Unavailable("earlier changes wait for it")
        if not provisional:
            try:
                async with asyncio.timeout(self._own_patience_s):
                    return await self.commit(decide)
            except TimeoutError:
                why = Unavailable(f"no answer within {self._own_patience_s:g} s")
            except Unavailable as error:
                why = error
        plan = decide(self.view)
        if plan.txn is not None:
            provisional.take(plan.txn, why=why)
        return plan.answer

    async def commit(self, decide: Callable[[View], Plan[T]]) -> T:
        """Decide on the current view and make it true; decide again when somebody else was faster.

        When this returns the change is durable and this agent's view has it. `decide` is pure and may raise; then
        nothing happens. Raises Conflict when others won the race many times in a row, Unavailable or Unknown from
        the engine; Unknown as well when the change is durable but the view does not get there within 10 s.

        A transaction compares what was read, so a view that is behind does no harm to it. A refusal, or an answer that
        nothing has to be done, has no transaction: where others write too it is only given on a confirmed view.
        """
        is_confirmed = self.authoritative
        for _ in range(_ATTEMPTS):
            try:
                with self.view.as_stored():
                    plan = decide(self.view)
            except WaypostError:
                if is_confirmed:
                    raise
                plan = None
            if plan is None or plan.txn is None:
                if plan is not None and (is_confirmed or plan.is_own):
                    return plan.answer
                await self.confirm()
                is_confirmed = True
                continue
            is_confirmed = self.authoritative
            result = await self.engine.commit(plan.txn)
            await self._catch_up(result.revision)
            if result.succeeded:
                return plan.answer
        msg = "the state changes too fast: others won the race every time"
        raise Conflict(msg)

    async def confirm(self) -> None:
        """Return when the view holds every write acknowledged before the call (a linearizable read), and nothing that
        is not written. Raises NoLeader.
        """
        if self.authoritative:
            return
        revision = await self.engine.read_index()
        if self.view.revision >= revision and not self.provisional:
            return
        try:
            async with asyncio.timeout(CONFIRM_S):
                await self.reached(revision)
                if self.provisional is not None:
                    await self.provisional.settled()
        except TimeoutError as error:
            if self.view.revision >= revision:
                msg = "changes of this machine are not in the store yet"
                raise NoLeader(msg) from error
            msg = f"this agent's view is at revision {self.view.revision}, the store at {revision}"
            raise NoLeader(msg) from error

    async def _catch_up(self, revision: int) -> None:
        if self.view.revision >= revision:
            return
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self.reached(revision)
        except TimeoutError as error:
            msg = f"answered at revision {revision}, but this agent's view stays at {self.view.revision}"
            raise Unknown(msg) from error

    def _notify(self) -> None:
        if not self._waiting:
            return
        revision = self.view.revision
        still: list[tuple[int, asyncio.Future[None]]] = []
        for wanted, future in self._waiting:
            if wanted > revision:
                still.append((wanted, future))
            elif not future.done():
                future.set_result(None)
        self._waiting = still
