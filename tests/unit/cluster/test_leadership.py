"""Who leads: written down, fenced, and over at once when somebody else does."""

from __future__ import annotations

import asyncio
import random

import pytest

from waypost.base.clock import SystemClock
from waypost.cluster.duties import Duties, Duty, compaction, events, reconcile
from waypost.cluster.leadership import Deposed, Leadership, leader_of, plan_claim
from waypost.domain.event import Events, plan_share, shared_events
from waypost.domain.planning import Draft
from waypost.model.event import UserEvent
from waypost.model.kv import KVEntry
from waypost.state.state import Plan

from .test_liveness import HandClock, store

BEAT_S = 0.005


class Source:
    def __init__(self, *, leads=False):
        self.is_leader = leads
        self.knows_leader = True


def write(key, value):
    def decide(view):
        draft = Draft()
        draft.replace(view.kv(key), KVEntry(key=key, value=value))
        return draft.plan(value)

    return decide


class Work:
    """Duties that say what they do."""

    def __init__(self):
        self.terms = []
        self.running = 0

    async def run(self, term):
        self.terms.append(term)
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1


async def until(condition):
    async with asyncio.timeout(2):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
async def state():
    async with store() as opened:
        yield opened


async def test_an_agent_of_its_own_leads_and_writes_nothing(state):
    work, before = Work(), state.view.revision
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Leadership(state, None).run(work.run))
        await until(lambda: work.running)
        assert work.terms[0].number == 0
        assert await work.terms[0].commit(write("a", b"1")) == b"1"
        task.cancel()
    assert state.view.revision == before + 1
    assert work.running == 0
    assert leader_of(state.view) is None


async def test_duties_run_while_one_leads(state):
    source, work = Source(), Work()
    leadership = Leadership(state, source, server_id="id1", node="s1", beat_s=BEAT_S)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(leadership.run(work.run))
        await asyncio.sleep(0.03)
        assert work.running == 0
        assert leadership.term is None
        source.is_leader = True
        await until(lambda: work.running)
        found = leader_of(state.view)
        assert (found.id, found.node, found.term) == ("id1", "s1", 1)
        assert leadership.term is work.terms[0]
        source.is_leader = False
        await until(lambda: not work.running)
        assert leadership.term is None
        source.is_leader = True
        await until(lambda: work.running)
        assert [one.number for one in work.terms] == [1, 2]
        task.cancel()
    assert work.running == 0


async def test_doubt_ends_a_term_only_when_it_lasts(state):
    source, work = Source(leads=True), Work()
    leadership = Leadership(
        state, source, server_id="id1", node="s1", beat_s=BEAT_S, patience_s=0.1
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(leadership.run(work.run))
        await until(lambda: work.running)
        source.is_leader = source.knows_leader = False
        await asyncio.sleep(0.03)
        source.is_leader = True
        await asyncio.sleep(0.15)
        assert [one.number for one in work.terms] == [1]
        source.is_leader = False
        await until(lambda: not work.running)
        task.cancel()


async def test_somebody_else_ends_the_term_without_a_word_of_the_source(state):
    source, work = Source(leads=True), Work()
    leadership = Leadership(state, source, server_id="id1", node="s1", beat_s=BEAT_S)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(leadership.run(work.run))
        await until(lambda: work.running)
        await state.commit(lambda view: plan_claim(view, server_id="id2", node="s2"))
        source.is_leader = False
        await until(lambda: not work.running)
        task.cancel()


async def test_a_former_leader_writes_nothing_however_late_it_notices():
    """Two agents over one store; the view of the first is behind, as if it had slept."""
    async with store() as one:
        source, work = Source(leads=True), Work()
        leadership = Leadership(one, source, server_id="id1", node="s1", beat_s=60)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(leadership.run(work.run))
            await until(lambda: work.running)
            (term,) = work.terms
            await term.commit(write("a", b"first"))
            claim = plan_claim(one.view, server_id="id2", node="s2")
            # Straight into the engine: when the decision is made the view does not have it.
            await one.engine.commit(claim.txn)
            decided = []

            def decide(view):
                decided.append(leader_of(view).id)
                return write("a", b"stale")(view)

            with pytest.raises(Deposed, match="term 1 is over, s2 leads"):
                await term.commit(decide)
            assert decided == ["id1"]
            assert one.view.kv("a").value == b"first"
            task.cancel()


async def test_a_fence_lets_a_decision_without_a_write_pass(state):
    source, work = Source(leads=True), Work()
    leadership = Leadership(state, source, server_id="id1", node="s1", beat_s=BEAT_S)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(leadership.run(work.run))
        await until(lambda: work.running)
        before = state.view.revision
        assert await work.terms[0].commit(lambda _: Plan("nothing")) == "nothing"
        assert state.view.revision == before
        task.cancel()


# -- duties ------------------------------------------------------------------------------------------------------------


async def test_one_failing_duty_does_not_stop_the_others(state, caplog):
    ran = []

    async def fails(_term):
        ran.append("fails")
        msg = "broken on purpose"
        raise RuntimeError(msg)

    async def ends(_term):
        ran.append("ends")

    work = Work()
    duties = Duties(
        (Duty("fails", fails), reconcile(lambda: ends(None)), Duty("work", work.run)),
        clock=SystemClock(),
        rng=random.Random(1),
    )
    source = Source(leads=True)
    leadership = Leadership(state, source, server_id="id1", node="s1", beat_s=BEAT_S)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(leadership.run(duties.run))
        await until(lambda: work.running and ran.count("fails") == 2)
        assert ran.count("ends") == 1
        assert "duty fails failed" in caplog.text
        source.is_leader = False
        await until(lambda: not work.running)
        task.cancel()


async def test_history_is_forgotten_but_for_the_last_revisions(state):
    for number in range(50):
        await state.commit(write(f"k{number}", b""))
    task = asyncio.create_task(compaction(state.engine, keep=20, every_s=0.01).run(None))
    revision = state.view.revision
    await asyncio.sleep(0.05)
    compacted = (await state.engine.status()).compacted
    assert compacted == revision - 20 - 1
    await state.commit(write("one more", b""))
    await asyncio.sleep(0.03)
    assert (await state.engine.status()).compacted == compacted  # not for a single revision
    task.cancel()


async def test_events_reach_every_agent_once_and_go_after_a_while(state):
    from waypost.access.actor import node_actor
    from waypost.access.gate import ExposureAuthorizer, Gate

    gate = Gate(ExposureAuthorizer())
    one, two = (Events(state, gate, node=name, is_clustered=True) for name in ("n1", "n2"))
    actor, clock = node_actor("n1"), HandClock()
    await state.commit(lambda view: plan_share(view, UserEvent(id="0" * 36, name="before")))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in (one, two)]
        await asyncio.sleep(0.01)
        fired = [await one.fire(actor, UserEvent(id="", name=f"e{n}")) for n in range(3)]
        await until(lambda: len(two.list(actor)) == 3)
        assert [each.id for each in two.list(actor)] == [each.id for each in fired]
        assert one.list(actor) == two.list(actor)
        assert len(shared_events(state.view)) == 4
        source = Source(leads=True)
        leadership = Leadership(state, source, server_id="id1", node="s1", beat_s=BEAT_S)
        tasks.append(group.create_task(leadership.run(events(state, clock=clock, kept_s=0).run)))
        await until(lambda: not shared_events(state.view))
        await asyncio.sleep(0.01)
        assert len(two.list(actor)) == 3
        for task in tasks:
            task.cancel()


async def test_a_flood_of_events_is_bounded(state):
    for number in range(300):
        event = UserEvent(id=f"{number:036}", name="flood")
        await state.commit(lambda view, event=event: plan_share(view, event))
    names = shared_events(state.view)
    assert len(names) == 256
    assert names[-1].endswith("299")
