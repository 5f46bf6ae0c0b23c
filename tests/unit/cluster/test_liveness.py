"""Who is alive: judged by a clock that the test moves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from waypost.base.errors import Malformed, NoLeader, Rejected, Unavailable
from waypost.cluster.leadership import Leadership
from waypost.cluster.liveness import (
    Answer,
    Beat,
    Heard,
    Liveness,
    LivenessSettings,
    Timers,
    Transition,
    examine,
    judge,
    plan_transition,
)
from waypost.domain.agent import LocalNode, plan_self
from waypost.domain.member import members, plan_health, plan_leave
from waypost.model.catalog import CRITICAL, PASSING, SERF_HEALTH_ID, Check, Node
from waypost.state.keys import put
from waypost.state.state import State
from waypost.store.engine import Txn
from waypost.store.memory import MemoryEngine

SETTINGS = LivenessSettings()
ID = "11111111-1111-1111-1111-111111111111"
OTHER_ID = "22222222-2222-2222-2222-222222222222"


class HandClock:
    def __init__(self):
        self.time = 1000.0

    def now(self):
        return self.time

    def wall(self):
        return 1.8e9


@asynccontextmanager
async def store(clock=None):
    engine = MemoryEngine(clock or HandClock())
    await engine.open()
    state = State(engine)
    await state.load()
    task = asyncio.create_task(state.run())
    try:
        yield state
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await engine.close()


@pytest.fixture
async def state():
    async with store() as opened:
        yield opened


def local(name="n1", node_id=ID, address="10.0.0.1", *, server=False):
    return LocalNode(node=name, id=node_id, address=address, datacenter="dc1", server=server)


async def join(state, **facts):
    who = local(**facts)
    await state.commit(lambda view: plan_self(view, who, judged=True))


def health(state, node="n1"):
    return state.view.check(node, SERF_HEALTH_ID)


def beat(**changes):
    return msgspec.structs.replace(Beat(node="n1", id=ID, address="10.0.0.1", session=1), **changes)


def heard(*beats, at_s=1000.0):
    return {one.node.lower(): Heard(one, at_s) for one in beats}


# -- judging -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "since_s", "heard_s", "now_s", "kinds"),
    [
        (PASSING, 0, 1000, 1004.9, []),
        (PASSING, 0, 1000, 1005, ["fail"]),
        (CRITICAL, 0, 1000, 1005, []),
        (CRITICAL, 0, 1000, 1001, ["revive"]),
        (PASSING, 1000, None, 1004, []),  # a new leader has heard nobody yet
        (CRITICAL, 1000, None, 1004, []),  # and gives no life to whom it did not hear
        (PASSING, 1000, None, 1005, ["fail"]),
        (PASSING, 1003, 1000, 1006, []),  # silence of before its term does not count
        (CRITICAL, 0, 1000, 1000 + 72 * 3600 - 1, []),
        (CRITICAL, 0, 1000, 1000 + 72 * 3600, ["reap"]),
        (CRITICAL, 300, None, 300 + 72 * 3600, ["reap"]),
    ],
)
async def test_silence(state, status, since_s, heard_s, now_s, kinds):
    await join(state)
    if status == CRITICAL:
        await state.commit(lambda view: plan_health(view, "n1", alive=False))
    known = {} if heard_s is None else heard(beat(), at_s=heard_s)
    found = judge(now_s, Timers(since_s, known), state.view, SETTINGS)
    assert [one.kind for one in found] == kinds


async def test_a_beat_of_another_machine_of_that_name_is_no_life(state):
    await join(state)
    known = heard(beat(id=OTHER_ID), at_s=1010.0)
    found = judge(1010.0, Timers(1000.0, known), state.view, SETTINGS)
    assert [one.kind for one in found] == ["fail"]


async def test_nodes_without_an_agent_are_nobodys_business(state):
    outside = Node(node="ext", address="192.0.2.1")
    check = Check(node="ext", check_id=SERF_HEALTH_ID, name="said by somebody", status=PASSING)
    await state.engine.commit(Txn(then=(put(outside), put(check))))
    await asyncio.sleep(0)
    assert state.view.node("ext") is not None
    assert judge(1e9, Timers(0.0, {}), state.view, SETTINGS) == ()


async def test_texts_are_consuls_and_a_reaped_node_goes_with_everything(state):
    await join(state)
    before = health(state)
    assert before.output == "Agent alive and reachable"
    await state.commit(lambda view: plan_transition(view, Transition("fail", "n1")))
    failed = health(state)
    assert (failed.status, failed.output) == (CRITICAL, "Agent not live or unreachable")
    assert failed.name == "Serf Health Status"
    await state.commit(lambda view: plan_transition(view, Transition("revive", "n1")))
    assert (health(state).status, health(state).output) == (PASSING, before.output)
    await state.commit(lambda view: plan_transition(view, Transition("reap", "n1")))
    assert state.view.node("n1") is None
    assert members(state.view) == []


async def test_who_left_is_forgotten_after_a_day(state):
    await join(state)
    await state.commit(lambda view: plan_leave(view, "n1"))
    assert [one.status for one in members(state.view)] == ["left"]
    day_s = SETTINGS.forget_after_s
    timers = Timers(0.0, {}, {"n1": 1000.0})
    assert judge(1000.0 + day_s - 1, timers, state.view, SETTINGS) == ()
    assert judge(1000.0 + day_s, Timers(0.0, {}), state.view, SETTINGS) == ()
    (found,) = judge(1000.0 + day_s, timers, state.view, SETTINGS)
    await state.commit(lambda view: plan_transition(view, found))
    assert members(state.view) == []


async def test_a_leader_takes_out_who_leaves_and_takes_him_back(state):
    clock, wire = HandClock(), Wire()
    leader = agent(state, wire, clock, node="s1", id=OTHER_ID)
    wire.agents = {"s1": leader}
    client = agent(state, wire, clock, contacts=Contacts(["s1"]))
    await join(state)
    with pytest.raises(NoLeader, match="No cluster leader"):
        await client.sign_off()
    async with leading(leader, state):
        await client.sign_off()
        assert state.view.node("n1") is None
        assert [(one.node, one.status) for one in members(state.view)] == [("n1", "left")]
        await join(state)
        (found,) = judge(1000.0, Timers(1000.0, {}), state.view, SETTINGS)
        assert found == Transition("return", "n1")
        await state.commit(lambda view: plan_transition(view, found))
        assert [one.status for one in members(state.view)] == ["alive"]
        assert state.view.system_below("left") == []
        copy = agent(state, wire, clock, contacts=Contacts(["s1"]), session=2, address="10.0.0.2")
        await client._say()
        with pytest.raises(Rejected, match="two machines say that they are n1"):
            await copy.sign_off()
        assert state.view.node("n1") is not None


# -- identity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newcomer", "silent_s", "refusal", "note"),
    [
        ({}, 1, "", ""),
        ({"session": 2}, 0.1, "", "started again"),
        ({"session": 2, "address": "10.0.0.9"}, 2.9, "a data directory of its own", ""),
        ({"session": 2, "address": "10.0.0.9"}, 3.0, "", "n1 moved from 10.0.0.1 to 10.0.0.9"),
        ({"session": 2, "id": OTHER_ID}, 2.9, "needs another name", ""),
        ({"session": 2, "id": OTHER_ID}, 3.0, "", "n1 is another machine now"),
        (
            {"session": 2, "node": "n2", "address": "10.0.0.2"},
            2.9,
            "held by n1 at 10.0.0.1, which is alive; if n2 at 10.0.0.2 was copied",
            "",
        ),
        ({"session": 2, "node": "n2", "address": "10.0.0.1"}, 3.0, "", "n1 is called n2 now"),
        ({"session": 2, "node": "N1", "id": ID.upper()}, 0.1, "", "started again"),
        ({"session": 2, "node": "n2", "id": OTHER_ID, "address": "10.0.0.2"}, 0.1, "", ""),
    ],
)
def test_identity(newcomer, silent_s, refusal, note):
    verdict = examine(1000.0 + silent_s, beat(**newcomer), heard(beat()), SETTINGS)
    assert refusal in verdict.refusal
    assert bool(refusal) == bool(verdict.refusal)
    assert note in verdict.note
    assert bool(note) == bool(verdict.note)


async def test_a_machine_does_not_take_a_living_ones_name_from_the_catalog(state):
    await join(state)
    stranger = local(node_id=OTHER_ID, address="10.0.0.7")
    with pytest.raises(Exception, match="held by another machine that is alive"):
        await state.commit(lambda view: plan_self(view, stranger, judged=True))
    assert state.view.node("n1").id == ID
    await state.commit(lambda view: plan_health(view, "n1", alive=False))
    await state.commit(lambda view: plan_self(view, stranger, judged=True))
    assert state.view.node("n1").id == OTHER_ID
    assert health(state).status == CRITICAL  # until the leader hears it


async def test_a_copy_under_another_name_does_not_take_the_original_out(state):
    await join(state)
    copied = local(name="n2", address="10.0.0.2")
    with pytest.raises(Exception, match=r"in use by n1 at 10\.0\.0\.1, which is alive"):
        await state.commit(lambda view: plan_self(view, copied, judged=True))
    assert state.view.node("n1") is not None
    await state.commit(lambda view: plan_health(view, "n1", alive=False))
    await state.commit(lambda view: plan_self(view, copied, judged=True))
    assert [one.node for one in state.view.nodes()] == ["n2"]


# -- beats -------------------------------------------------------------------------------------------------------------


class Wire:
    """Carries messages between agents of a test; `down` are addresses that do not answer."""

    def __init__(self):
        self.agents = {}
        self.down = set()

    def caller(self):
        async def call(address, path, message, *, timeout_s=5.0):
            if address in self.down:
                raise Unavailable(f"{address}: connection refused")
            return await self.agents[address].receive(message, node=None)

        return call


class Contacts:
    def __init__(self, servers, leader=""):
        self._servers = servers
        self.known = leader

    def servers(self):
        return self._servers

    def leader(self):
        return self.known


class Renewed:
    def __init__(self, *ids):
        self.waiting = list(ids)
        self.heard = []

    def take_renewals(self):
        taken, self.waiting = tuple(self.waiting), []
        return taken

    def heard_renewals(self, session_ids):
        self.heard += session_ids

    def renewed_again(self, session_ids):
        self.waiting = [*session_ids, *self.waiting]


def agent(state, wire, clock, *, contacts=None, renewals=None, settings=None, **changes):
    return Liveness(
        state,
        beat(**changes),
        call=wire.caller(),
        contacts=contacts or Contacts([]),
        renewals=renewals or Renewed(),
        clock=clock,
        settings=settings,
    )


@asynccontextmanager
async def leading(liveness, state):
    leadership = Leadership(state, None)
    task = asyncio.create_task(leadership.run(liveness.judge))
    try:
        while liveness._term is None:
            await asyncio.sleep(0)
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_client_reaches_the_leader_through_any_server(state):
    clock, wire = HandClock(), Wire()
    leader = agent(state, wire, clock, node="s1", id=OTHER_ID, renewals=Renewed())
    follower = agent(state, wire, clock, node="s2", contacts=Contacts(["s1"], leader="s1"))
    wire.agents = {"s1": leader, "s2": follower}
    renewed = Renewed("a", "b")
    client = agent(state, wire, clock, contacts=Contacts(["gone", "s2"]), renewals=renewed)
    wire.down = {"gone"}
    async with leading(leader, state):
        assert client.last_contact_s() == float("inf")
        await client._say()
        assert client.last_contact_s() == 0.0
        assert leader._renewals.heard == ["a", "b"]
        assert renewed.waiting == []
        assert leader._heard["n1"].beat.renewed == ()
        clock.time += 2
        assert client.last_contact_s() == 2.0
        assert leader.last_contact_s() == 0.0
        assert client._best == "s2"


async def test_renewals_wait_while_nobody_leads(state, caplog):
    clock, wire = HandClock(), Wire()
    wire.agents = {"s2": agent(state, wire, clock, node="s2")}
    renewed = Renewed("a")
    client = agent(state, wire, clock, contacts=Contacts(["s2"]), renewals=renewed)
    for _ in range(3):
        await client._say()
    assert renewed.waiting == ["a"]
    assert caplog.text.count("s2 knows no leader") == 1
    assert client.last_contact_s() == float("inf")


async def test_a_beat_goes_on_once_only(state):
    clock, wire = HandClock(), Wire()
    one = agent(state, wire, clock, node="s1", contacts=Contacts(["s2"], leader="s2"))
    two = agent(state, wire, clock, node="s2", contacts=Contacts(["s1"], leader="s1"))
    wire.agents = {"s1": one, "s2": two}
    answer = await one.receive(msgspec.msgpack.encode(beat()), node="n1")
    assert msgspec.msgpack.decode(answer, type=Answer).is_led is False


@pytest.mark.parametrize(
    ("message", "node"),
    [
        (b"garbage", None),
        (msgspec.msgpack.encode({"node": "n1"}), None),
        (msgspec.msgpack.encode(beat()), "n2"),
        (msgspec.msgpack.encode(beat(is_relayed=True)), "n1"),
    ],
)
async def test_beats_that_are_refused(state, message, node):
    with pytest.raises(Malformed):
        await agent(state, Wire(), HandClock()).receive(message, node=node)


async def test_a_refused_machine_is_told_why(state, caplog):
    clock, wire = HandClock(), Wire()
    leader = agent(state, wire, clock, node="s1", id=OTHER_ID)
    wire.agents = {"s1": leader}
    original = agent(state, wire, clock, contacts=Contacts(["s1"]))
    copy = agent(state, wire, clock, contacts=Contacts(["s1"]), session=2, address="10.0.0.2")
    async with leading(leader, state):
        await original._say()
        for _ in range(3):
            await copy._say()
        assert leader._heard["n1"].beat.address == "10.0.0.1"
    told = [one for one in caplog.messages if one.startswith("the leader, s1, does not count")]
    assert len(told) == 1
    assert "one at 10.0.0.1, which goes on, and one at 10.0.0.2" in told[0]


async def test_a_leader_keeps_the_catalog_by_what_it_hears(state):
    wire = Wire()
    fast = LivenessSettings(beat_s=0.02, failed_after_s=0.1, moved_after_s=0.06)
    clock = asyncio.get_running_loop()

    class LoopClock:
        def now(self):
            return clock.time()

    leader = agent(state, wire, LoopClock(), node="s1", id=OTHER_ID, settings=fast)
    wire.agents = {"s1": leader}
    other = agent(state, wire, LoopClock(), contacts=Contacts(["s1"]), settings=fast)
    await join(state)
    async with leading(leader, state):
        task = asyncio.create_task(other.run())
        await asyncio.sleep(0.3)
        assert health(state).status == PASSING
        task.cancel()
        async with asyncio.timeout(2):
            while health(state).status == PASSING:
                await asyncio.sleep(0.01)
        task = asyncio.create_task(other.run())
        async with asyncio.timeout(2):
            while health(state).status == CRITICAL:
                await asyncio.sleep(0.01)
        task.cancel()


async def test_a_leader_that_was_stopped_counts_anew(state, caplog):
    clock, wire = HandClock(), Wire()
    fast = LivenessSettings(beat_s=0.02)
    leader = agent(state, wire, clock, node="s1", id=OTHER_ID, settings=fast)
    await join(state)
    async with leading(leader, state):
        await asyncio.sleep(0.03)
        clock.time += 30
        await asyncio.sleep(0.05)
        assert health(state).status == PASSING
    assert "was held up for 30.0 s" in caplog.text
