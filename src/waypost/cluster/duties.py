"""What only the leader does: judge who is alive, end sessions, forget what is old, keep the policy, take snapshots.

Each duty runs by itself: one that fails is logged and starts again after a pause, the others go on. All of them are
cancelled together when the term ends, and what they write goes through the term's `commit`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import WaypostError
from waypost.cluster.leadership import Deposed, Term
from waypost.cluster.liveness import Liveness
from waypost.cluster.snapshots import Schedule, interrupted
from waypost.domain.event import SHARED_S, plan_forget, shared_events
from waypost.domain.session import Sessions
from waypost.state.state import State
from waypost.store.engine import Engine

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.5
_MOST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
_EVENTS_EVERY_S: Final = 10.0
_RESTORE_SUSPECT_S: Final = 60.0


class Duty(msgspec.Struct, frozen=True):
    """One thing that the leader does. `run` goes on until it is cancelled, or ends when it is done for this term."""

    name: str
    run: Callable[[Term], Awaitable[None]]


class Duties:
    """All of them, for `Leadership.run`."""

    def __init__(self, duties: tuple[Duty, ...], *, clock: Clock, rng: random.Random) -> None:
        self._duties = duties
        self._clock = clock
        self._rng = rng

    async def run(self, term: Term) -> None:
        """Do everything until cancelled."""
        async with asyncio.TaskGroup() as group:
            for duty in self._duties:
                group.create_task(self._keep(duty, term), name=f"duty {duty.name}")
            # Duties may all be of the kind that ends; a term does not end with them.
            await asyncio.Event().wait()

    async def _keep(self, duty: Duty, term: Term) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            started_s = self._clock.now()
            try:
                await duty.run(term)
            except Deposed as error:
                # Leadership ends the term as soon as it sees this itself.
                log.debug("duty %s: %s", duty.name, error)
            except WaypostError as error:
                log.warning("duty %s: %s", duty.name, error)
            except Exception:
                log.exception("duty %s failed", duty.name)
            else:
                return
            if self._clock.now() - started_s > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s * self._rng.uniform(0.75, 1.25))
            pause_s = min(pause_s * 2, _MOST_PAUSE_S)


def liveness(part: Liveness) -> Duty:
    """Judge who is alive."""
    return Duty("liveness", part.judge)


def sessions(verbs: Sessions) -> Duty:
    """End sessions whose time has come."""

    async def run(term: Term) -> None:
        await verbs.run(commit=term.commit)

    return Duty("sessions", run)


def compaction(engine: Engine, *, keep: int = 10_000, every_s: float = 60.0) -> Duty:
    """Forget the store's history but for the last `keep` revisions, so that it does not grow for ever.

    A watcher that was away for longer loads everything again, which it can.
    """

    async def run(_term: Term) -> None:
        while True:
            await asyncio.sleep(every_s)
            status = await engine.status()
            before = status.revision - keep
            if before > status.compacted + keep // 10:
                await engine.compact(before=before)
                log.debug("history before revision %d is forgotten", before)

    return Duty("compaction", run)


def periodic_compaction(engine: Engine, *, every_s: float) -> Duty:
    """Have an etcd that others may use too forget what is older than `every_s`, as a kube-apiserver does; 0 = never."""

    async def run(_term: Term) -> None:
        before = 0
        while every_s > 0:
            await asyncio.sleep(every_s)
            if before:
                await engine.compact(before=before)
                log.debug("history before revision %d is forgotten", before)
            before = (await engine.status()).revision

    return Duty("compaction", run)


def events(state: State, *, clock: Clock, kept_s: float = SHARED_S) -> Duty:
    """Remove user events that every agent has had the time to take."""

    async def run(term: Term) -> None:
        seen: dict[str, float] = {}
        while True:
            now_s = clock.now()
            seen = {name: seen.get(name, now_s) for name in shared_events(state.view)}
            old = [name for name, at_s in seen.items() if now_s - at_s >= kept_s]
            if old:
                await term.commit(functools.partial(plan_forget, names=old))
            await asyncio.sleep(_EVENTS_EVERY_S)

    return Duty("events", run)


def reconcile(ensure: Callable[[], Awaitable[None]]) -> Duty:
    """Bring in order once a term what every cluster has: namespaces, the default policy."""

    async def run(_term: Term) -> None:
        await ensure()

    return Duty("reconcile", run)


def snapshots(schedule: Schedule) -> Duty:
    """Take snapshots on schedule."""
    return Duty("snapshots", schedule.run)


def watch_restores(state: State, *, clock: Clock) -> Duty:
    """Say it when a restore was cut off, once a term."""

    async def run(_term: Term) -> None:
        first = interrupted(state.view)
        if not first:
            return
        started_s = clock.now()
        while interrupted(state.view) == first:
            if clock.now() - started_s > _RESTORE_SUSPECT_S:
                log.error(
                    "the restore of snapshot %s was cut off: the store holds parts of two states; restore it again",
                    first,
                )
                return
            await asyncio.sleep(1.0)

    return Duty("restores", run)
