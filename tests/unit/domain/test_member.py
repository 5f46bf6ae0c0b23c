"""Members that leave and come back, and sessions of a cluster."""

from __future__ import annotations

import asyncio

import pytest

from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.base.errors import Malformed, Rejected, Unavailable
from waypost.domain.agent import LocalAgent, LocalNode, RegisterService, plan_self
from waypost.domain.cluster import (
    Autopilot,
    SingleServer,
    autopilot,
    parse_autopilot,
    plan_autopilot,
)
from waypost.domain.kv import KV, PutKey
from waypost.domain.member import (
    depart,
    members,
    plan_health,
    plan_leave,
    plan_return,
    returned,
)
from waypost.domain.session import CreateSession, Sessions
from waypost.model.catalog import Check, CheckDefinition, Service

SESSION = "00000000-0000-0000-0000-00000000000"


class Group(SingleServer):
    """A group that its server leaves, or may not."""

    def __init__(self, domain, *, refuses=""):
        super().__init__(domain.view, domain.agent.local, server_port=8300)
        self.refuses = refuses
        self.left = False

    async def leave(self):
        if self.refuses:
            raise Rejected(self.refuses)
        self.left = True


@pytest.fixture
def agent(domain):
    gate = Gate(ExposureAuthorizer())
    return LocalAgent(
        domain.state, gate, local=domain.agent.local, clock=domain.agent._clock, judged=True
    )


def service(name, *, owner="", checks=()):
    one = Service(node="", id="", name=name, owner=owner, port=80)
    return RegisterService(service=one, checks=tuple(checks))


TTL = Check(node="", check_id="", name="alive", definition=CheckDefinition(ttl_ns=10**10))


async def fill(domain, agent):
    await agent.ensure_self()
    await agent.register_service(domain.actor, service("web", checks=[TTL]))
    await agent.register_service(domain.actor, service("box", owner="docker"))
    await agent.register_service(domain.actor, service("file", owner="config"))
    await agent.register_check(domain.actor, Check(node="", check_id="disk", name="disk"))
    await agent.set_service_maintenance(domain.actor, "box", enable=True)
    await agent.set_node_maintenance(domain.actor, enable=True, reason="moving")


async def test_leaving_takes_the_node_out_and_coming_back_brings_what_programs_registered(
    domain, agent
):
    await fill(domain, agent)
    group = Group(domain)
    await depart(domain.state, agent, group)
    assert group.left
    assert domain.view.node("n1") is None
    assert domain.view.node_services("n1") == {}
    assert domain.view.node_checks("n1") == {}
    (left,) = members(domain.view)
    assert (left.node, left.status, left.server_port) == ("n1", "left", 8300)
    await agent.ensure_self()  # it is on its way out
    assert domain.view.node("n1") is None
    for write in (
        agent.register_service(domain.actor, service("late")),
        agent.report(domain.actor, "disk", status="passing", output=""),
    ):
        with pytest.raises(Unavailable, match="leaving"):
            await write

    agent.stay()
    await agent.ensure_self()
    assert [one.status for one in members(domain.view)] == ["alive"]
    assert returned(domain.view) == ["n1"]
    assert await domain.state.commit(lambda view: plan_return(view, "n1"))
    assert not await domain.state.commit(lambda view: plan_return(view, "n1"))
    # What drivers keep they register again themselves; nobody else knows what came by the API.
    assert set(domain.view.node_services("n1")) == {"consul", "web"}
    assert set(domain.view.node_checks("n1")) == {
        "serfHealth", "service:web", "disk", "_node_maintenance",
    }  # fmt: skip
    assert domain.view.check("n1", "_node_maintenance").notes == "moving"
    assert domain.view.system("left\0n1") is None


async def test_another_machine_under_the_name_gets_nothing_of_it(domain, agent):
    await fill(domain, agent)
    await domain.state.commit(lambda view: plan_leave(view, "N1"))
    stranger = LocalNode(node="n1", id="9" * 8, address="10.0.0.9", datacenter="dc1")
    await domain.state.commit(lambda view: plan_self(view, stranger, judged=True))
    assert await domain.state.commit(lambda view: plan_return(view, "N1"))
    assert set(domain.view.node_services("n1")) == {"consul"}
    assert domain.view.system("left\0n1") is None


async def test_a_machine_with_a_new_name_keeps_what_nobody_else_knows(domain, agent):
    await fill(domain, agent)
    before = domain.view.service("n1", "web"), domain.view.check("n1", "service:web")
    id_ = domain.view.node("n1").id
    await domain.state.commit(lambda view: plan_health(view, "n1", alive=False))
    renamed = LocalNode(node="n2", id=id_, address="10.0.0.1", datacenter="dc1")
    await domain.state.commit(lambda view: plan_self(view, renamed, judged=True))
    assert domain.view.node("n1") is None
    assert not domain.view.node_services("n1")
    assert not domain.view.node_checks("n1")
    assert set(domain.view.node_services("n2")) == {"consul", "web"}
    assert set(domain.view.node_checks("n2")) == {
        "serfHealth", "service:web", "disk", "_node_maintenance",
    }  # fmt: skip
    after = domain.view.service("n2", "web"), domain.view.check("n2", "service:web")
    assert [(one.name, one.owner) for one in after] == [(one.name, one.owner) for one in before]
    assert domain.view.check("n2", "serfHealth").status == "passing"


async def test_a_server_that_is_needed_stays_whole(domain, agent):
    await fill(domain, agent)
    services, checks = dict(domain.view.node_services("n1")), set(domain.view.node_checks("n1"))
    with pytest.raises(Rejected, match="no quorum"):
        await depart(domain.state, agent, Group(domain, refuses="no quorum without it"))
    assert {"consul", "web"} <= set(domain.view.node_services("n1")) <= set(services)
    assert set(domain.view.node_checks("n1")) <= checks
    await agent.register_service(domain.actor, service("late"))


async def test_pruning_leaves_no_note(domain, agent):
    await agent.ensure_self()
    commit = domain.state.commit
    assert await commit(lambda view: plan_leave(view, "n1", forget=True))
    assert members(domain.view) == []
    assert not await commit(lambda view: plan_leave(view, "n1", forget=True))
    await agent.ensure_self()
    assert await commit(lambda view: plan_leave(view, "n1"))
    assert not await commit(lambda view: plan_leave(view, "n1"))
    assert [one.status for one in members(domain.view)] == ["left"]
    assert await commit(lambda view: plan_leave(view, "n1", forget=True))
    assert members(domain.view) == []


async def test_the_agent_leaves_its_health_to_the_leader(domain, agent):
    await agent.ensure_self()
    await domain.state.commit(lambda view: plan_health(view, "n1", alive=False))
    await agent.ensure_self()
    assert [one.status for one in members(domain.view)] == ["failed"]


async def test_one_that_cannot_be_in_the_catalog_says_so_and_tries_again(domain, agent, caplog):
    await domain.state.commit(
        lambda view: plan_self(
            view, LocalNode(node="n1", id="9" * 8, address="10.0.0.9", datacenter="dc1")
        )
    )
    task = asyncio.create_task(agent.run())
    await asyncio.sleep(0.02)
    assert "the name n1 is held by another machine that is alive" in caplog.text
    await domain.state.commit(lambda view: plan_health(view, "n1", alive=False))
    async with asyncio.timeout(2):
        while domain.view.node("n1").address != "10.0.0.1":
            await asyncio.sleep(0.01)
    task.cancel()


# -- autopilot ---------------------------------------------------------------------------------------------------------


async def test_autopilot_is_stored_and_compared(domain):
    assert autopilot(domain.view) == Autopilot()
    wanted = Autopilot(cleanup_dead_servers=False, min_quorum=3)
    commit = domain.state.commit
    assert not await commit(lambda view: plan_autopilot(view, wanted, at_index=7))
    assert await commit(lambda view: plan_autopilot(view, wanted, at_index=1))
    found = autopilot(domain.view)
    assert (found.min_quorum, found.cleanup_dead_servers) == (3, False)
    assert found.modify_index == domain.view.revision
    assert not await commit(lambda view: plan_autopilot(view, wanted, at_index=1))
    assert await commit(lambda view: plan_autopilot(view, wanted, at_index=found.modify_index))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"LastContactThreshold":"zz"}', 'time: invalid duration "zz"'),
        (b"[]", "Expected `object`"),
        (b"", "truncated"),
        (b'{"MinQuorum":-1}', "MinQuorum cannot be -1"),
        (b'{"ServerStabilizationTime":"-5s"}', "a duration cannot be -5000000000"),
    ],
)
def test_bad_configurations(body, error):
    with pytest.raises(
        Malformed, match=r"^Bad request: Error parsing autopilot config: "
    ) as raised:
        parse_autopilot(body)
    assert error in str(raised.value)


def test_durations_are_texts_or_nanoseconds():
    found = parse_autopilot(b'{"LastContactThreshold":"1.5s","ServerStabilizationTime":5}')
    assert (found.last_contact_threshold_ns, found.server_stabilization_time_ns) == (1.5e9, 5)


# -- sessions of a cluster ---------------------------------------------------------------------------------------------


class Two:
    """Two agents over one store; only the first ends sessions."""

    def __init__(self, domain, clock):
        gate = Gate(ExposureAuthorizer())
        self.leader, self.other = (
            Sessions(domain.state, gate, clock=clock, is_clustered=True) for _ in range(2)
        )
        self.kv = KV(domain.state, gate, locked_out=self.other.locked_out)


class HandClock:
    time = 1000.0

    def now(self):
        return self.time


async def test_no_agent_grants_a_lock_too_early(domain):
    clock = HandClock()
    two = Two(domain, clock)
    await domain.agent.ensure_self()
    for number in (1, 2):
        command = CreateSession(node="n1", lock_delay_ns=15 * 10**9)
        await two.other.create(domain.actor, command, session_id=SESSION + str(number))
    assert await two.kv.put(domain.actor, PutKey(key="lock", value=b"", acquire=SESSION + "1"))
    assert not two.other.locked_out("lock")
    await two.leader._end(SESSION + "1")
    assert two.other.locked_out("lock")
    assert two.leader.locked_out("lock")
    assert not two.other.locked_out("other")
    assert not await two.kv.put(domain.actor, PutKey(key="lock", value=b"", acquire=SESSION + "2"))
    clock.time += 15.1
    assert not two.other.locked_out("lock")
    assert await two.kv.put(domain.actor, PutKey(key="lock", value=b"", acquire=SESSION + "2"))
    clock.time += 1
    assert await two.leader._end_delays(domain.state.commit) == 60.0
    assert domain.view.system_below("lock-delay") == []


async def test_a_renewal_elsewhere_keeps_a_session(domain):
    clock = HandClock()
    two = Two(domain, clock)
    await domain.agent.ensure_self()
    command = CreateSession(node="n1", ttl="10s")
    await two.other.create(domain.actor, command, session_id=SESSION + "1")
    await two.leader._end_due()
    clock.time += 19
    await two.other.renew(domain.actor, SESSION + "1")
    renewed = two.other.take_renewals()
    assert renewed == (SESSION + "1",)
    assert two.other.take_renewals() == ()
    two.other.renewed_again(renewed)
    two.leader.heard_renewals((*two.other.take_renewals(), SESSION + "9"))
    clock.time += 19
    await two.leader._end_due()
    assert domain.view.session(SESSION + "1") is not None
    clock.time += 1
    await two.leader._end_due()
    assert domain.view.session(SESSION + "1") is None


async def test_a_new_leader_starts_every_ttl_afresh(domain):
    clock = HandClock()
    two = Two(domain, clock)
    await domain.agent.ensure_self()
    await two.leader.create(
        domain.actor, CreateSession(node="n1", ttl="10s"), session_id=SESSION + "1"
    )
    clock.time += 100
    task = asyncio.create_task(two.leader.run(commit=domain.state.commit))
    await asyncio.sleep(0.02)
    assert domain.view.session(SESSION + "1") is not None
    task.cancel()
