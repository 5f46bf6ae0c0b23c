"""Who leads among the agents, and that only who leads writes what only the leader may.

The leading agent is the one beside the store's leader. It writes its name and a number that only grows, the *term*, under
one key before it does anything, and every transaction of its duties compares that key: however long a former leader
sleeps before it notices, none of its writes is taken any more.

An agent with a store of its own always leads, and nothing is written about it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeVar

import msgspec

from waypost.base.errors import Unavailable, WaypostError
from waypost.domain.planning import Draft
from waypost.state.keys import system_key
from waypost.state.state import Plan, State
from waypost.state.view import View
from waypost.store.engine import Compare

log = logging.getLogger(__name__)

T = TypeVar("T")

LEADER: Final = "leader"
"""Name of the key under which the leader is written, among the view's system entries."""
BEAT_S: Final = 0.1
"""How often the store is asked who leads: a duty goes on for at most as long after that has changed."""
PATIENCE_S: Final = 2.0
"""How long duties go on while nobody knows who leads, as when the store is too busy to say it. A new leader would
start all timers afresh, and whatever this one writes meanwhile is fenced."""
_RETRY_S: Final = 1.0


class LeaderSource(Protocol):
    """Whoever knows where the store's leader is; `Cluster` is one."""

    @property
    def is_leader(self) -> bool:
        """Whether it is beside this agent, as far as is known without asking anybody."""
        ...

    @property
    def knows_leader(self) -> bool:
        """Whether the store has a leader anywhere, as far as is known."""
        ...


class Deposed(Unavailable):
    """Another agent leads by now; nothing was written."""

    code = "deposed"


class LeaderRecord(msgspec.Struct, frozen=True, array_like=True):
    """What is written about the leader: its node id, its node, its term."""

    id: str
    node: str
    term: int


def leader_of(view: View) -> LeaderRecord | None:
    """Return who wrote himself down last; he may have gone since."""
    entry = view.system(LEADER)
    return None if entry is None else msgspec.msgpack.decode(entry.value, type=LeaderRecord)


def plan_claim(view: View, *, server_id: str, node: str) -> Plan[LeaderRecord]:
    """Decide that this agent leads from now on, in a new term."""
    entry, before = view.system(LEADER), leader_of(view)
    record = LeaderRecord(server_id, node, before.term + 1 if before is not None else 1)
    draft = Draft()
    value = msgspec.msgpack.encode(record)
    draft.write(system_key(LEADER), value, revision=entry.modify_index if entry else 0)
    return draft.plan(record)


class Term:
    """One time of leading. `commit` is how everything is written that only the leader may write."""

    def __init__(self, state: State, record: LeaderRecord | None) -> None:
        """`record` None: nobody else could lead, so nothing is compared."""
        self._state = state
        self._record = record
        value = msgspec.msgpack.encode(record) if record is not None else b""
        self._fence = Compare(system_key(LEADER), "value", "==", value)

    @property
    def number(self) -> int:
        """The term; 0 for an agent with a store of its own."""
        return self._record.term if self._record is not None else 0

    @property
    def is_over(self) -> bool:
        """Whether somebody else wrote himself down since, as far as this agent's view goes."""
        return self._record is not None and leader_of(self._state.view) != self._record

    async def commit(self, decide: Callable[[View], Plan[T]]) -> T:
        """Do as `State.commit`, unless this term is over. Raises Deposed then, and what `State.commit` raises."""
        if self._record is None:
            return await self._state.commit(decide)

        def fenced(view: View) -> Plan[T]:
            if self.is_over:
                msg = f"term {self.number} is over, {_who(view)} leads"
                raise Deposed(msg)
            plan = decide(view)
            if plan.txn is None:
                return plan
            when = (*plan.txn.when, self._fence)
            return Plan(plan.answer, msgspec.structs.replace(plan.txn, when=when))

        return await self._state.commit(fenced)


def _who(view: View) -> str:
    record = leader_of(view)
    return record.node if record is not None else "nobody"


class _Lost(Exception):
    """Ends the duties of a term."""


class Leadership:
    """Runs the duties of the leader while this agent is it."""

    def __init__(
        self,
        state: State,
        source: LeaderSource | None,
        *,
        server_id: str = "",
        node: str = "",
        beat_s: float = BEAT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`source` None: an agent with a store of its own. `server_id` is the node id."""
        self._state = state
        self._source = source
        self._server_id = server_id
        self._node = node
        self._beat_s = beat_s
        self._patience_s = patience_s
        self.term: Term | None = None
        """The term that goes on; None while somebody else leads."""

    async def run(self, duties: Callable[[Term], Awaitable[None]]) -> None:
        """Run `duties` in each term of this agent, until cancelled; they are cancelled when the term ends.

        Duties that end or fail start again in a new term.
        """
        while True:
            pause_s = 0.0
            try:
                async with self.lead() as term:
                    await duties(term)
                    log.warning("the duties of term %d ended by themselves", term.number)
                    pause_s = _RETRY_S
            except* WaypostError as errors:
                log.warning("cannot lead now: %s", "; ".join(map(str, errors.exceptions)))
                pause_s = _RETRY_S
            except* Exception:
                log.exception("the duties of the leader failed")
                pause_s = _RETRY_S
            await asyncio.sleep(pause_s)

    @asynccontextmanager
    async def lead(self) -> AsyncGenerator[Term, None]:
        """Wait until this agent leads; what is done inside is cancelled, and left quietly, when it leads no more.

        Raises what writing the leader down raises.
        """
        await self._until(lambda: self._is_leader)
        term = await self._begin()
        self.term = term
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(term), name="leadership")
                yield term
                watching.cancel()
        except* _Lost:
            log.info("term %d of this server is over", term.number)
        finally:
            self.term = None

    @property
    def _is_leader(self) -> bool:
        return self._source is None or self._source.is_leader

    async def _begin(self) -> Term:
        if self._source is None:
            return Term(self._state, None)
        record = await self._state.commit(
            lambda view: plan_claim(view, server_id=self._server_id, node=self._node)
        )
        log.info("this server leads, term %d", record.term)
        return Term(self._state, record)

    async def _watch(self, term: Term) -> None:
        if self._source is None:
            return
        doubt_s = 0.0
        while not term.is_over and doubt_s < self._patience_s:
            await asyncio.sleep(self._beat_s)
            if self._source.is_leader:
                doubt_s = 0.0
            elif self._source.knows_leader:
                break
            else:
                doubt_s += self._beat_s
        raise _Lost

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - who leads is a fact of another process, asked for by its keeper
            await asyncio.sleep(self._beat_s)
