"""The messages of forming a cluster, without network, under loss, delay, crashes and wiped disks.

Every server runs the functions of the protocol as the agent does: what must be written down survives a crash, everything
else is forgotten. etcd is modelled by what matters here: a founding store has a leader when a quorum of its plan runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from waypost.cluster import protocol
from waypost.cluster.protocol import PlanStatus, Seen, StoreFacts, Vote
from waypost.cluster.records import Phase, Plan, ServerFacts, State

HELLO_S = 0.25
FAILED_S = 2.5
ROUND_S = 2.0


class Machine:
    """One server: `state` is its disk."""

    def __init__(self, world: World, number: int, *, expect: int) -> None:
        self.world = world
        self.number = number
        self.expect = expect
        self.life = 0
        self.is_up = False
        self.make_new()

    def make_new(self) -> None:
        self.life += 1
        self.id = f"{'abcdefgh'[self.number]}{self.life}"
        self.state = State()
        self.data = ""
        """The token of the cluster whose data its store has."""
        self.was_led = False
        self.forget()

    def forget(self) -> None:
        """What a crash takes: all but the disk."""
        self.seen: dict[str, tuple[ServerFacts, float]] = {}
        self.round: tuple[Plan, dict[str, Vote | None], float] | None = None
        self.asking: tuple[Plan, dict[str, PlanStatus], float] | None = None
        self.runs = ""
        self.propose_at = self.ask_at = 0.0
        self.voted_at = self.world.now

    @property
    def facts(self) -> ServerFacts:
        return ServerFacts(
            id=self.id,
            node=self.id,
            datacenter="dc1",
            address=f"10.0.0.{self.number}",
            cluster_port=8301,
            server_port=8300,
            store_port=8303,
            phase=self.state.phase,
            expect=self.expect,
            cluster=self.state.cluster,
            fingerprint=f"key-{self.id}",
            joins_only=self.state.joins_only,
        )

    # -- messages; each returns its answer

    def on_hello(self, sender: ServerFacts) -> ServerFacts:
        self.seen[sender.id] = (sender, self.world.now)
        return self.facts

    def on_prepare(self, plan: Plan) -> Vote:
        self.state, answer = protocol.vote(
            self.state,
            plan,
            me=self.facts,
            has_data=bool(self.data),
            knows_cluster=any(one.phase is Phase.MEMBER for one in self.live()),
        )
        if answer.is_accepted:
            self.voted_at = self.world.now
        return answer

    def on_commit(self, plan: Plan) -> Vote:
        self.state, answer = protocol.commit(self.state, plan)
        return answer

    def on_ask(self, token: str) -> PlanStatus:
        return protocol.plan_status(self.state, token)

    def on_abandon(self, token: str) -> PlanStatus:
        self.state, status = protocol.abandon(self.state, token)
        return status

    # -- acting

    def live(self) -> tuple[ServerFacts, ...]:
        now = self.world.now
        return tuple(
            facts
            for key, (facts, at) in sorted(self.seen.items())
            if now - at < FAILED_S and key != self.id
        )

    def tick(self) -> None:
        world = self.world
        if self.round is not None:
            plan, votes, until = self.round
            if len(votes) == len(plan.members) - 1 or world.now >= until:
                self.round = None
                self.state = protocol.tally(self.state, plan, votes)
                self.propose_at = world.now + world.rng.uniform(0.1, 0.6)
                if self.state.phase is Phase.COMMITTED:
                    self.to_members(plan, lambda m: m.on_commit(plan), lambda _id, _a: None)
        if self.asking is not None:
            plan, answers, until = self.asking
            if len(answers) == len(plan.members) - 1 or world.now >= until:
                self.asking = None
                self.state = protocol.heard(self.state, plan, answers, me=self.id)
        self.act(protocol.step(self.state, self.view()))

    def view(self) -> Seen:
        led = bool(self.runs) and world_leads(self.world, self.runs)
        self.was_led = self.was_led or led
        return Seen(
            me=self.facts,
            peers=self.live(),
            has_data=bool(self.data),
            store=StoreFacts(
                is_running=bool(self.runs),
                answers=bool(self.runs),
                has_leader=led,
                was_led=self.was_led,
            ),
            is_busy=self.round is not None or self.asking is not None,
            may_propose=self.world.now >= self.propose_at,
            may_ask=self.world.now >= self.ask_at,
            voted_for_s=self.world.now - self.voted_at,
            abandon_after_s=10.0,
        )

    def act(self, action: protocol.Action) -> None:
        world = self.world
        match action:
            case protocol.Settle(state, _):
                self.state = state
            case protocol.Wipe(state, _):
                self.state, self.data, self.runs, self.was_led = state, "", "", False
            case protocol.StartStore(_, _, token):
                self.runs = self.data = token
            case protocol.Propose(members):
                plan = protocol.make_plan(
                    self.state, members, token=world.token(), proposer=self.id, authority="ca"
                )
                self.state = protocol.propose(self.state, plan)
                world.plans[plan.token] = plan
                votes: dict[str, Vote | None] = {}
                self.round = (plan, votes, world.now + ROUND_S)
                self.to_members(plan, lambda m: m.on_prepare(plan), votes.__setitem__)
            case protocol.AskPlan(plan):
                self.ask(plan, lambda m: m.on_ask(plan.token), but="")
            case protocol.Abandon(plan):
                self.state, _ = protocol.abandon(self.state, plan.token)
                self.ask(plan, lambda m: m.on_abandon(plan.token), but=plan.proposer)
            case protocol.Join(targets):
                self.join(targets)

    def ask(self, plan: Plan, question: Callable[[Machine], PlanStatus], *, but: str) -> None:
        answers: dict[str, PlanStatus] = {}
        self.ask_at = self.world.now + 0.5
        self.asking = (plan, answers, self.world.now + ROUND_S)
        self.to_members(plan, question, answers.__setitem__, but=but)

    def to_members(
        self,
        plan: Plan,
        question: Callable[[Machine], object],
        answered: Callable[[str, object], None],
        *,
        but: str = "",
    ) -> None:
        for one in plan.members:
            if one.id not in (self.id, but):
                self.world.send(self, one.id, question, answered)

    def join(self, targets: tuple[ServerFacts, ...]) -> None:
        """Joining is the store's business: it succeeds when the cluster has a leader."""
        for one in targets:
            machine = self.world.find(one.id)
            if machine is None or not machine.is_up or machine.state.phase is not Phase.MEMBER:
                continue
            if world_leads(self.world, machine.state.cluster):
                self.state = State(
                    phase=Phase.JOINING,
                    cluster=machine.state.cluster,
                    initial_cluster="x",
                    joins_only=True,
                )
                return


def world_leads(world: World, token: str) -> bool:
    """Tell whether a founding quorum of the plan runs, or did once and joined ones keep it alive."""
    plan = world.plans[token]
    founders = {one.id for one in plan.members}
    running = sum(m.is_up and m.runs == token and m.id in founders for m in world.machines)
    return running >= len(founders) // 2 + 1


class World:
    """Time, messages and faults, all from one seed."""

    def __init__(self, seed: int, *, expects: tuple[int, ...]) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.plans: dict[str, Plan] = {}
        self.loss = 0.0
        self.slow_s = 0.05
        self.cut: set[frozenset[int]] = set()
        self.letters: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.machines = [Machine(self, n, expect=e) for n, e in enumerate(expects)]

    def token(self) -> str:
        return f"t{self.rng.getrandbits(64):016x}"

    def find(self, server_id: str) -> Machine | None:
        return next((m for m in self.machines if m.id == server_id), None)

    def post(self, one: Machine, other: Machine, deliver: Callable[[], None]) -> None:
        if frozenset((one.number, other.number)) in self.cut or self.rng.random() < self.loss:
            return
        self.count += 1
        at = self.now + self.rng.uniform(0.001, self.slow_s)
        self.letters.append((at, self.count, deliver))

    def send(
        self,
        sender: Machine,
        to: str,
        question: Callable[[Machine], object],
        answered: Callable[[str, object], None],
    ) -> None:
        target = self.find(to)
        if target is None:
            return
        life = target.life

        def arrive() -> None:
            if not target.is_up or target.life != life:
                return
            answer = question(target)
            self.post(target, sender, lambda: answered(to, answer))

        self.post(sender, target, arrive)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            due = sorted(one for one in self.letters if one[0] <= self.now)
            self.letters = [one for one in self.letters if one[0] > self.now]
            for _, _, deliver in due:
                deliver()
            for m in self.machines:
                if not m.is_up:
                    continue
                if round(self.now / 0.05) % round(HELLO_S / 0.05) == m.number % 5:
                    for other in self.machines:
                        if other is not m:
                            facts = m.facts
                            self.send(
                                m,
                                other.id,
                                lambda target, facts=facts: target.on_hello(facts),
                                lambda key, answer, m=m: m.seen.__setitem__(
                                    key, (answer, self.now)
                                ),
                            )
                m.tick()
            self.check()

    def check(self) -> None:
        """Whatever happens: no two clusters ever have a leader, and nobody counted twice."""
        tokens = {m.state.cluster for m in self.machines if m.state.phase is Phase.MEMBER}
        assert len(tokens) <= 1, f"two clusters at {self.now:.2f} s: {tokens}"
        alive = {token for token in self.plans if world_leads(self, token)}
        assert len(alive) <= 1, f"two stores have a leader at {self.now:.2f} s: {alive}"

    def end(self) -> None:
        """Heal everything; then there is exactly one cluster with everybody in it."""
        self.loss, self.cut, self.slow_s = 0.0, set(), 0.05
        for m in self.machines:
            if not m.is_up:
                m.forget()
                m.is_up = True
        self.run(60)
        phases = {m.id: (m.state.phase, m.state.cluster) for m in self.machines}
        assert {phase for phase, _ in phases.values()} == {Phase.MEMBER}, phases
        assert len({token for _, token in phases.values()}) == 1, phases


def is_replaceable(world: World) -> bool:
    """Tell whether a disk may be lost without that any cluster could have lost its quorum for good."""
    return all(
        sum(m.id in {one.id for one in plan.members} for m in world.machines)
        >= len(plan.members) // 2 + 2
        for plan in world.plans.values()
    )


@pytest.mark.parametrize("count", [3, 4, 5])
def test_without_faults(count: int) -> None:
    world = World(count, expects=(3,) * count)
    for m in world.machines:
        m.is_up = True
    world.run(8)
    assert {m.state.phase for m in world.machines} == {Phase.MEMBER}
    assert len(world.plans) == 1


def test_one_at_a_time_and_late() -> None:
    world = World(1, expects=(3, 3, 3, 3))
    for m in reversed(world.machines):
        m.forget()
        m.is_up = True
        world.run(5)
    assert {m.state.phase for m in world.machines} == {Phase.MEMBER}
    (plan,) = world.plans.values()
    assert [one.id for one in plan.members] == ["b1", "c1", "d1"]


def test_the_proposer_never_comes_back() -> None:
    """It alone committed: the other two take their votes back, and form with a fourth."""
    world = World(2, expects=(3, 3, 3, 3))
    a, *rest = world.machines
    for m in world.machines[:3]:
        m.is_up = True
    while [m.state.phase for m in rest[:2]] != [Phase.VOTED] * 2:
        world.run(0.05)
    world.cut = {frozenset((0, 1)), frozenset((0, 2))}  # their votes are on the way
    while a.state.phase is not Phase.COMMITTED:
        world.run(0.05)
    a.is_up = False
    world.run(8)
    assert [m.state.phase for m in rest[:2]] == [Phase.VOTED] * 2
    world.cut = set()
    rest[2].forget()
    rest[2].is_up = True
    world.run(30)
    assert [m.state.phase for m in rest] == [Phase.MEMBER] * 3
    # It returns, with a store that never had a leader: it joins the others.
    a.forget()
    a.is_up = True
    world.run(5)
    assert a.state.phase is Phase.MEMBER
    assert a.state.cluster == rest[0].state.cluster


@pytest.mark.parametrize("seed", range(40))
def test_two_proposers(seed: int) -> None:
    """The first two do not see each other, and both ask the others: whoever votes twice makes two clusters."""
    world = World(seed, expects=(3, 3, 3, 3))
    world.cut = {frozenset((0, 1))}
    for m in world.machines:
        m.is_up = True
        # Nobody tells of a third one: each proposes as soon as it can.
        m.propose_at = 1.0
    world.slow_s = 0.4
    world.run(6)
    world.end()


@pytest.mark.parametrize("seed", range(40))
def test_chaos(seed: int) -> None:
    """Loss, delay, partitions and crashes at every moment while the cluster forms."""
    rng = random.Random(seed * 7919)
    count = rng.choice([3, 3, 4, 5])
    world = World(seed, expects=(3,) * count)
    world.loss = rng.choice([0.0, 0.1, 0.4])
    world.slow_s = rng.choice([0.05, 0.5, 3.0])
    for _ in range(rng.randrange(5, 40)):
        m = rng.choice(world.machines)
        what = rng.random()
        if not m.is_up:
            m.forget()
            m.is_up = True
        elif what < 0.3:
            m.is_up, m.runs = False, ""
        elif what < 0.5:
            world.cut = {
                frozenset((x, y)) for x in range(count) for y in range(x) if rng.random() < 0.4
            }
        elif what < 0.6:
            world.cut = set()
        world.run(rng.choice([0.05, 0.1, 0.3, 1.0, 4.0]))
    world.end()


@pytest.mark.parametrize("seed", range(20))
def test_disks_are_lost_while_votes_are_open(seed: int) -> None:
    """A machine that lost everything comes back as another one; no vote of its former self counts for it."""
    rng = random.Random(seed * 104729)
    world = World(seed, expects=(3, 3, 3, 3))
    world.loss = rng.choice([0.0, 0.2])
    world.slow_s = rng.choice([0.05, 0.5])
    for m in world.machines[: rng.choice([3, 4])]:
        m.is_up = True
    for _ in range(rng.randrange(1, 15)):
        world.run(rng.choice([0.05, 0.1, 0.2, 0.4]))
        m = rng.choice(world.machines)
        if rng.random() < 0.5:
            m.is_up, m.runs = not m.is_up, ""
            m.forget()
    open_vote = [m for m in world.machines if m.state.phase in (Phase.NONE, Phase.VOTED)]
    if open_vote and is_replaceable(world):
        lost = rng.choice(open_vote)
        lost.make_new()
        lost.is_up = True
    world.end()
