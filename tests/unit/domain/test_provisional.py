"""A machine that is cut off from the store: what it finds out itself is shown there, and stored afterwards."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from waypost.access.actor import node_actor
from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.base.clock import SystemClock
from waypost.base.errors import Forbidden, NoLeader, Unavailable, Unknown
from waypost.domain.agent import LocalAgent, LocalNode, RegisterService
from waypost.domain.blocking import wait_past
from waypost.domain.catalog import Deregister, plan_deregister
from waypost.domain.planning import Draft
from waypost.domain.provisional import MAX_OPERATIONS, plan_settle
from waypost.model.catalog import CRITICAL, PASSING, Check, CheckDefinition, Node, Service
from waypost.state import provisional
from waypost.state.keys import check_key, put, service_key
from waypost.state.state import Plan, State
from waypost.state.view import View
from waypost.store.engine import Txn
from waypost.store.memory import MemoryEngine

LOCAL = LocalNode(
    node="n1",
    id="11111111-2222-3333-4444-555555555555",
    address="10.0.0.1",
    datacenter="dc1",
)
ACTOR = node_actor("n1")
TCP = CheckDefinition(tcp="127.0.0.1:80", interval_ns=10**10)


class Faulty:
    """A store that can be cut off from one machine: its writes and reads fail, its watch stands still."""

    def __init__(self, engine):
        self._engine = engine
        self._up = asyncio.Event()
        self.how = "up"
        self.heal()

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def cut(self, how="down"):
        """`down`: refuses at once; `silent`: answers nothing; `deaf`: does what is asked, and its answers are lost;
        `full`: answers reads and refuses writes.
        """
        self.how = how
        self._up.clear()

    def heal(self):
        self.how = "up"
        self._up.set()

    async def _fail(self):
        if self.how == "silent":
            await self._up.wait()
            raise Unknown("the answer came too late")
        if self.how == "down":
            raise NoLeader("No cluster leader")

    async def commit(self, txn):
        await self._fail()
        if self.how == "full":
            raise Unavailable("etcd's quota is used up")
        result = await self._engine.commit(txn)
        if self.how == "deaf":
            raise Unknown("the answer was lost")
        return result

    async def read_index(self):
        await self._fail()
        if self.how == "deaf":
            raise NoLeader("the answer was lost")
        return await self._engine.read_index()

    async def watch(self, *, after):
        async for batch in self._engine.watch(after=after):
            if self.how != "full":
                await self._up.wait()
            yield batch


class Machine:
    """An agent's own part over a store that others write as well."""

    def __init__(self, state, store, faults):
        self.state, self.view = state, state.view
        self.store, self.faults = store, faults
        gate = Gate(ExposureAuthorizer())
        self.agent = LocalAgent(state, gate, local=LOCAL, clock=SystemClock(), judged=True)

    async def register(self, service_id, *, port=80, owner="docker", status=CRITICAL, is_own=True):
        service = Service(node="n1", id=service_id, name="web", port=port, owner=owner)
        check = Check(
            node="n1",
            check_id=f"{service_id}-alive",
            name="alive",
            status=status,
            definition=TCP,
            owner=owner,
        )
        command = RegisterService(service=service, checks=(check,), replace_existing_checks=True)
        await self.agent.register_service(ACTOR, command, is_own=is_own)

    async def deregister(self, service_id):
        await self.agent.deregister_service(ACTOR, service_id, is_own=True)

    async def report(self, service_id, status):
        await self.agent.report(ACTOR, f"{service_id}-alive", status=status, output=status)

    async def settled(self):
        async with asyncio.timeout(5):
            while True:
                with suppress(NoLeader):
                    await self.state.confirm()
                    if not self.view.covered:
                        return
                await asyncio.sleep(0.01)


@asynccontextmanager
async def machine(*, is_member=True):
    store = MemoryEngine(SystemClock())
    await store.open()
    faults = Faulty(store)
    state = State(
        faults,
        authoritative=not is_member,
        settle=functools.partial(plan_settle, local=LOCAL) if is_member else None,
        own_patience_s=0.05,
    )
    await state.load()
    running = asyncio.create_task(state.run())
    try:
        found = Machine(state, store, faults)
        await found.agent.ensure_self()
        yield found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()


@pytest.fixture
async def cut_off():
    async with machine() as found:
        await found.register("web-1", status=PASSING)
        found.faults.cut()
        yield found


def contents(view):
    """Return what a view shows, without indexes."""

    def plain(record):
        return msgspec.structs.replace(record, create_index=0, modify_index=0)

    services = [one for node in view.nodes() for one in view.node_services(node.node).values()]
    return (
        [plain(node) for node in view.nodes()],
        sorted((plain(one) for one in services), key=lambda one: one.id),
        [plain(check) for check in view.checks()],
    )


async def stored(store):
    view = View()
    page = await store.range(b"\0", b"\xff")
    view.load(page.items, revision=page.revision)
    return view


def serving(view):
    return [one.service.id for one in view.instances("web") if one.status == PASSING]


# -- while it is cut off -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["down", "silent", "deaf"])
async def test_a_check_that_turns_critical_leaves_at_once_and_is_stored_later(how):
    async with machine() as found:
        await found.register("web-1", status=PASSING)
        found.faults.cut(how)
        index = found.view.index(("health", "web"))
        began = asyncio.get_running_loop().time()
        await found.report("web-1", CRITICAL)
        assert asyncio.get_running_loop().time() - began < 0.5
        assert serving(found.view) == []
        assert found.view.index(("health", "web")) > index
        found.faults.heal()
        await found.settled()
        assert contents(found.view) == contents(await stored(found.store))
        assert serving(found.view) == []
        check = found.view.check("n1", "web-1-alive")
        assert check.modify_index > 0


async def test_after_the_first_change_nothing_waits_for_the_store(cut_off):
    cut_off.faults.cut("silent")
    await cut_off.report("web-1", CRITICAL)
    async with asyncio.timeout(0.04):  # less than one patience
        for n in range(20):
            await cut_off.register(f"new-{n}", status=PASSING)
    assert len(serving(cut_off.view)) == 20


async def test_a_container_comes_and_goes(cut_off):
    await cut_off.register("web-2", status=PASSING)
    assert serving(cut_off.view) == ["web-1", "web-2"]
    await cut_off.deregister("web-1")
    assert serving(cut_off.view) == ["web-2"]
    await cut_off.deregister("web-2")
    assert cut_off.view.node_checks("n1").keys() == {"serfHealth"}
    cut_off.faults.heal()
    await cut_off.settled()
    assert contents(cut_off.view) == contents(await stored(cut_off.store))
    assert (await stored(cut_off.store)).instances("web") == ()


async def test_what_somebody_asked_for_is_refused(cut_off):
    await cut_off.report("web-1", CRITICAL)
    with pytest.raises(NoLeader):
        await cut_off.register("api-1", owner="api", is_own=False)
    with pytest.raises(NoLeader):
        await cut_off.agent.deregister_service(ACTOR, "web-1")
    with pytest.raises(NoLeader):
        await cut_off.agent.set_node_maintenance(ACTOR, enable=True)
    assert cut_off.view.service("n1", "web-1") is not None


async def test_nothing_provisional_is_answered_as_if_it_were_stored(cut_off):
    await cut_off.report("web-1", CRITICAL)
    with pytest.raises(NoLeader):
        await cut_off.state.confirm()
    cut_off.faults.heal()
    seen = []

    def look(view):
        seen.append(view.check("n1", "web-1-alive"))
        return Plan(None)

    await cut_off.state.commit(look)
    first, *_, last = seen
    assert first.status == PASSING
    same = (await stored(cut_off.store)).check("n1", "web-1-alive")
    assert (last.status, last.modify_index) == (CRITICAL, same.modify_index)


async def test_a_store_that_is_full_goes_on_answering(cut_off):
    cut_off.faults.cut("full")
    await cut_off.report("web-1", CRITICAL)
    async with asyncio.timeout(0.5):
        await cut_off.state.confirm()
    assert serving(cut_off.view) == []
    cut_off.faults.cut("down")
    await asyncio.sleep(2 * provisional.PAUSE_S)
    healed = asyncio.create_task(cut_off.state.confirm())
    cut_off.faults.heal()
    await healed
    assert not cut_off.view.covered
    assert serving(await stored(cut_off.store)) == []


async def test_others_decide_on_what_is_stored(cut_off):
    """They compare and set what is stored, though something else is shown."""
    await cut_off.report("web-1", CRITICAL)

    def decide(view):
        old = view.check("n1", "web-1-alive")
        assert old.status == PASSING
        draft = Draft()
        draft.replace(old, msgspec.structs.replace(old, notes="by hand"))
        return draft.plan(None)

    cut_off.faults.heal()
    await cut_off.state.commit(decide)
    await cut_off.settled()
    check = (await stored(cut_off.store)).check("n1", "web-1-alive")
    assert check.status == CRITICAL


async def test_it_is_said_once_at_the_beginning_and_once_at_the_end(cut_off, caplog):
    caplog.set_level(logging.INFO, logger="waypost.state")
    for status in (CRITICAL, PASSING, CRITICAL):
        await cut_off.report("web-1", status)
    cut_off.faults.heal()
    await cut_off.settled()
    first, last = [r for r in caplog.records if r.name == "waypost.state.provisional"]
    assert first.levelno == logging.WARNING
    assert "No cluster leader" in first.getMessage()
    assert last.levelno == logging.INFO
    assert "1 records" in last.getMessage()


async def test_a_full_table_refuses_more(cut_off, monkeypatch):
    monkeypatch.setattr(provisional, "MAX_RECORDS", 3)
    await cut_off.report("web-1", CRITICAL)
    await cut_off.register("web-2")
    with pytest.raises(NoLeader, match="3 records of this machine wait"):
        await cut_off.register("web-3")
    await cut_off.report("web-1", PASSING)
    assert serving(cut_off.view) == ["web-1"]


async def test_a_store_in_this_process_is_never_run_ahead_of():
    async with machine(is_member=False) as found:
        await found.register("web-1", status=PASSING)
        found.faults.cut()
        with pytest.raises(NoLeader):
            await found.report("web-1", CRITICAL)
        assert not found.view.covered


# -- when the store is back --------------------------------------------------------------------------------------------


async def test_what_the_store_never_takes_is_given_up(cut_off, caplog):
    await cut_off.report("web-1", CRITICAL)

    async def refuse(_txn):
        raise Forbidden("node 'n1' cannot write that")

    cut_off.faults.commit = refuse
    cut_off.faults.heal()
    await cut_off.settled()
    assert serving(cut_off.view) == ["web-1"]
    assert "cannot write that" in caplog.text


async def test_what_others_removed_meanwhile(cut_off):
    """Its owner still wants a container's service; a service that somebody registered is gone for good."""
    cut_off.faults.heal()
    await cut_off.register("api-1", owner="api", status=PASSING, is_own=False)
    cut_off.faults.cut()
    await cut_off.register("web-1", port=81)
    await cut_off.report("web-1", CRITICAL)
    await cut_off.report("api-1", CRITICAL)
    for service_id in ("web-1", "api-1"):
        view = await stored(cut_off.store)
        plan = plan_deregister(view, Deregister(node="n1", service_id=service_id))
        assert (await cut_off.store.commit(plan.txn)).succeeded
    cut_off.faults.heal()
    await cut_off.settled()
    view = await stored(cut_off.store)
    assert view.node_services("n1").keys() == {"consul", "web-1"}
    assert view.service("n1", "web-1").port == 81
    assert view.node_checks("n1").keys() == {"serfHealth", "web-1-alive"}


async def test_what_others_changed_of_a_check_stays_beside_its_result(cut_off):
    cut_off.faults.heal()
    await cut_off.register("api-1", owner="api", status=PASSING, is_own=False)
    cut_off.faults.cut()
    await cut_off.report("api-1", CRITICAL)
    check = (await stored(cut_off.store)).check("n1", "api-1-alive")
    noted = msgspec.structs.replace(check, notes="of others")
    await cut_off.store.commit(Txn(then=(put(noted),)))
    cut_off.faults.heal()
    await cut_off.settled()
    check = (await stored(cut_off.store)).check("n1", "api-1-alive")
    assert (check.status, check.notes) == (CRITICAL, "of others")


async def test_a_service_that_somebody_else_took_over_is_not_removed(cut_off):
    await cut_off.deregister("web-1")
    other = Service(node="n1", id="web-1", name="web", port=99, owner="api")
    await cut_off.store.commit(Txn(then=(put(other),)))
    cut_off.faults.heal()
    await cut_off.settled()
    assert (await stored(cut_off.store)).service("n1", "web-1").port == 99


async def test_what_changes_while_it_is_being_written_is_written_next(cut_off):
    await cut_off.report("web-1", CRITICAL)
    commit, written = cut_off.faults.commit, []

    async def slow(txn):
        if not written:
            await cut_off.report("web-1", PASSING)
        written.append(txn)
        return await commit(txn)

    cut_off.faults.commit = slow
    cut_off.faults.heal()
    await cut_off.settled()
    assert len(written) == 2
    assert serving(await stored(cut_off.store)) == ["web-1"]


async def test_once_all_is_stored_containers_are_compared_again(cut_off):
    settled = []
    cut_off.state.provisional.when_settled = lambda: settled.append(dict(cut_off.view.covered))
    await cut_off.report("web-1", CRITICAL)
    assert settled == []
    cut_off.faults.heal()
    await cut_off.settled()
    await asyncio.sleep(0)
    assert settled == [{}]


async def test_a_node_that_was_forgotten_says_so_when_it_is_back(cut_off):
    cut_off.faults.heal()
    told = asyncio.Event()
    cut_off.agent.when_forgotten = told.set
    running = asyncio.create_task(cut_off.agent.run())
    await asyncio.sleep(0.02)
    assert not told.is_set()
    plan = plan_deregister(await stored(cut_off.store), Deregister(node="n1"))
    await cut_off.store.commit(plan.txn)
    async with asyncio.timeout(2):
        await told.wait()
    assert cut_off.view.node("n1") is not None
    assert cut_off.view.service("n1", "web-1") is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_who_loses_the_race_decides_again(cut_off):
    await cut_off.report("web-1", CRITICAL)
    commit, raced = cut_off.faults.commit, []

    async def race(txn):
        if not raced:
            raced.append(txn)
            check = (await stored(cut_off.store)).check("n1", "web-1-alive")
            noted = msgspec.structs.replace(check, output="of others")
            await cut_off.store.commit(Txn(then=(put(noted),)))
        return await commit(txn)

    cut_off.faults.commit = race
    cut_off.faults.heal()
    await cut_off.settled()
    check = (await stored(cut_off.store)).check("n1", "web-1-alive")
    assert (check.status, check.output) == (CRITICAL, CRITICAL)


def test_a_check_is_not_stored_without_its_service():
    check = Check(
        node="n1", check_id="c", name="c", service_id="gone", status=PASSING, owner="docker"
    )
    [step] = plan_settle(View(), {check_key("n1", "c"): check}, local=LOCAL)
    assert step.txn is None


async def test_the_leader_has_the_last_word_on_a_nodes_health():
    store_view = View()
    old = Check(node="n1", check_id="serfHealth", name="Serf", status=CRITICAL, owner="self")
    new = msgspec.structs.replace(old, status=PASSING)
    mine = Node(node="n1", address="10.0.0.1", id=LOCAL.id)
    apply(store_view, mine, old)
    key = check_key("n1", "serfHealth")
    [step] = plan_settle(store_view, {key: new}, local=LOCAL)
    assert step.keys == (key,)
    assert key not in [operation.key for operation in step.txn.then]


async def test_a_name_that_another_machine_holds_is_left_to_it():
    view = View()
    other = Node(node="n1", address="10.0.0.9", id="99999999-2222-3333-4444-555555555555")
    alive = Check(node="n1", check_id="serfHealth", name="Serf", status=PASSING, owner="self")
    apply(view, other, alive)
    key = check_key("n1", "serfHealth")
    [step] = plan_settle(view, {key: alive}, local=LOCAL)
    assert (step.keys, step.txn) == ((key,), None)


def apply(view, *records):
    from waypost.store.engine import Batch, Event, KeyValue

    operations = [put(record) for record in records]
    revision = view.revision + 1
    events = [Event("put", KeyValue(o.key, o.value, revision, revision)) for o in operations]
    view.apply(Batch(revision, tuple(events)))


def test_a_service_and_its_checks_are_never_torn_apart():
    wanted = {}
    for n in range(100):
        service = Service(node="n1", id=f"w{n}", name="web", owner="docker")
        check = Check(
            node="n1",
            check_id=f"c{n}",
            name="c",
            service_id=f"w{n}",
            status=PASSING,
            owner="docker",
        )
        wanted[service_key("n1", service.id)] = service
        wanted[check_key("n1", check.check_id)] = check
    steps = plan_settle(View(), wanted, local=LOCAL)
    assert sorted(key for step in steps for key in step.keys) == sorted(wanted)
    for step in steps:
        assert len(step.txn.then) <= MAX_OPERATIONS
        for n in range(100):
            pair = {service_key("n1", f"w{n}"), check_key("n1", f"c{n}")}
            assert len(pair & set(step.keys)) in (0, 2)


# -- any sequence ------------------------------------------------------------------------------------------------------


async def act(rng, found, twin):
    """Let something happen on both machines."""
    service_id = f"web-{rng.randrange(3)}"
    what = rng.choice(["register", "deregister", "report", "report", "report"])
    status = rng.choice([PASSING, CRITICAL])
    port = rng.choice([80, 81])
    for one in (found, twin):
        if what == "register":
            await one.register(service_id, port=port, status=status)
        elif what == "deregister":
            await one.deregister(service_id)
        else:
            await one.report(service_id, status)


async def watch(found, seen):
    """Do as a client with a blocking query does, and remember what it sees."""
    index, topics = 0, [("health", "web"), ("nodes",)]
    while True:
        now = await wait_past(
            found.view,
            topics,
            index=index,
            at_most_s=60,
            now=asyncio.get_running_loop().time,
        )
        assert now > index, "the index went back"
        index = now
        seen.append((index, [(one.service.id, one.status) for one in found.view.instances("web")]))


@pytest.mark.parametrize("seed", range(25))
async def test_the_store_has_in_the_end_what_happened(seed):
    """Cut off and healed at any time: nothing is lost, nothing is doubled, whoever watches sees it and no index goes
    back. The twin does the same over a store that never fails.
    """
    rng = random.Random(seed)
    async with machine() as found, machine() as twin:
        seen = []
        watching = asyncio.create_task(watch(found, seen))
        for _ in range(rng.randrange(5, 60)):
            if rng.random() < 0.15:
                found.faults.cut(rng.choice(["down", "silent", "deaf"]))
            elif rng.random() < 0.15:
                found.faults.heal()
            if rng.random() < 0.2:
                await asyncio.sleep(0.002)
            with suppress(Unavailable):
                await act(rng, found, twin)
            assert contents(found.view)[1:] == contents(twin.view)[1:]
        found.faults.heal()
        await found.settled()
        await asyncio.sleep(0)
        assert contents(found.view) == contents(twin.view)
        assert contents(await stored(found.store)) == contents(twin.view)
        assert not watching.done()
        assert seen[-1][1] == [(one.service.id, one.status) for one in twin.view.instances("web")]
        watching.cancel()
