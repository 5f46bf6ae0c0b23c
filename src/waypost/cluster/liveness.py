"""Which machines of the cluster are alive.

Every agent says each second that it is there: a *beat*, to the leader or to any server, which passes it on. The leader
remembers when it heard whom, by its monotonic clock and in memory only: beats are no writes, and nobody is declared
dead by a jump of the wall clock. A new leader starts every timer afresh, so an election costs nobody his life. When beats
stop, the node's `serfHealth` becomes critical; when they come again, passing; a node that stays away is removed.

Beats also carry what the leader alone has to know: which sessions were renewed at that agent. The answer tells the
agent that the leader is in reach, which is its *last contact*.

Who a machine is: a name and an id, both unique. A beat is refused, with a text for the machine's operator, while its
name or id belongs to another machine that is heard of; once that one is silent the newcomer takes its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Literal, Protocol

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Malformed, NoLeader, Rejected, Unavailable, WaypostError
from waypost.cluster.leadership import Term
from waypost.domain.member import (
    LEFT,
    left_members,
    plan_health,
    plan_leave,
    plan_return,
    returned,
)
from waypost.domain.planning import Draft
from waypost.model.catalog import CRITICAL, PASSING, SERF_HEALTH_ID, fold
from waypost.state.keys import system_key
from waypost.state.state import Plan, State
from waypost.state.view import View

log = logging.getLogger(__name__)

PATH: Final = "/cluster/v1/beat"
_SELF: Final = "self"
_REPEAT_S: Final = 60.0
"""The same complaint is not logged more often."""
_MAX_RENEWED: Final = 8192
_LAST_S: Final = 10.0


class LivenessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a silent machine is noticed. Everything in seconds of the leader's monotonic clock."""

    beat_s: float = 1.0
    failed_after_s: float = 5.0
    """Silence after which a node is critical. Four beats may be lost; a killed node of Consul takes about 7 s."""
    moved_after_s: float = 3.0
    """Silence after which a name or id may be taken over by another machine. Less than `failed_after_s`, so that a
    machine that comes back at another address is not critical in between."""
    reap_after_s: float = 72 * 3600.0
    """Silence after which a failed node is removed with everything on it (Consul's `reconnect_timeout`, same default).
    Long on purpose: what programs registered through the agent's API is known nowhere else."""
    forget_after_s: float = 24 * 3600.0
    """How long a member that left is still shown."""


class Beat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent says about itself each second."""

    node: str
    id: str
    address: str
    session: int
    """Made up at each start of the agent: tells a restarted machine from a copied one."""
    is_server: bool = False
    renewed: tuple[str, ...] = ()
    """Sessions that were renewed at this agent since its last beat."""
    is_relayed: bool = False
    is_last: bool = False
    """The agent leaves: its node goes from the catalog before the answer comes."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the leader says to a beat. `is_led` False: nobody leads whom the asked server knows."""

    is_led: bool = False
    refusal: str = ""
    leader: str = ""
    """Node of the leader."""


class Heard(msgspec.Struct, frozen=True):
    """The last beat of a node, and when it came."""

    beat: Beat
    at_s: float


class Verdict(msgspec.Struct, frozen=True):
    """Whether a beat counts. `note` is what the leader's log says about it, once."""

    refusal: str = ""
    note: str = ""


def examine(
    now_s: float, beat: Beat, heard: Mapping[str, Heard], settings: LivenessSettings
) -> Verdict:
    """Judge whether a beat comes from whom it says. `heard` is by folded node name."""
    note = ""
    for other in heard.values():
        known = other.beat
        same_name = fold(known.node) == fold(beat.node)
        same_id = known.id.lower() == beat.id.lower()
        if not (same_name or same_id) or known.session == beat.session:
            continue
        is_here = known.address == beat.address
        if same_name and same_id and is_here:
            note = f"the agent of {beat.node} was started again"
            continue
        if now_s - other.at_s < settings.moved_after_s:
            return Verdict(refusal=_refusal(beat, known, same_name=same_name, same_id=same_id))
        if same_name and same_id:
            note = f"{beat.node} moved from {known.address} to {beat.address}"
        elif same_name:
            note = (
                f"{beat.node} is another machine now: node id {beat.id} at {beat.address}, "
                f"before {known.id} at {known.address}"
            )
        else:
            note = f"{known.node} is called {beat.node} now (node id {beat.id}, at {beat.address})"
    return Verdict(note=note)


def _refusal(beat: Beat, known: Beat, *, same_name: bool, same_id: bool) -> str:
    if same_name and same_id:
        return (
            f"two machines say that they are {beat.node} with node id {beat.id}: one at {known.address}, which goes on, "
            f"and one at {beat.address}; if that one was copied, it needs a data directory of its own"
        )
    if same_name:
        return (
            f"the name {beat.node} is held by node id {known.id} at {known.address}, which is alive; node id {beat.id} at "
            f"{beat.address} needs another name (-node)"
        )
    return (
        f"the node id {beat.id} is held by {known.node} at {known.address}, which is alive; if {beat.node} at "
        f"{beat.address} was copied from it, it needs a data directory of its own"
    )


class Transition(msgspec.Struct, frozen=True):
    """Something about a node that has to change in the catalog."""

    kind: Literal["fail", "revive", "return", "reap", "forget"]
    node: str
    silent_s: float = 0.0


class Timers(msgspec.Struct, frozen=True):
    """What the leader remembers: when its term began, whom it heard when, and when it first saw who had left."""

    since_s: float
    heard: Mapping[str, Heard]
    left: Mapping[str, float] = {}


def judge(
    now_s: float, timers: Timers, view: View, settings: LivenessSettings
) -> tuple[Transition, ...]:
    """Return what has to change in the catalog, by what was heard. Nobody is silent for longer than the term lasts."""
    found: list[Transition] = []
    for node in view.nodes():
        health = view.check(node.node, SERF_HEALTH_ID)
        if health is None or health.owner != _SELF:
            continue
        heard = timers.heard.get(fold(node.node))
        # Of a node whose name another machine has taken over nothing was heard.
        is_it = heard is not None and heard.beat.id.lower() == node.id.lower()
        last_s = heard.at_s if heard is not None and is_it else timers.since_s
        silent_s = now_s - max(last_s, timers.since_s)
        if silent_s >= settings.reap_after_s:
            found.append(Transition("reap", node.node, silent_s))
        elif silent_s >= settings.failed_after_s:
            if health.status != CRITICAL:
                found.append(Transition("fail", node.node, silent_s))
        elif is_it and health.status != PASSING:
            found.append(Transition("revive", node.node, silent_s))
    found += [Transition("return", name) for name in returned(view)]
    found += [
        Transition("forget", member.node)
        for member in left_members(view)
        if now_s - timers.left.get(fold(member.node), now_s) >= settings.forget_after_s
    ]
    return tuple(found)


def plan_transition(view: View, transition: Transition) -> Plan[bool]:
    """Decide a transition; the answer is whether there was anything to change."""
    match transition.kind:
        case "fail":
            return plan_health(view, transition.node, alive=False)
        case "revive":
            return plan_health(view, transition.node, alive=True)
        case "return":
            return plan_return(view, transition.node)
        case "reap":
            return plan_leave(view, transition.node, forget=True)
        case "forget":
            entry = view.system(f"{LEFT}\0{fold(transition.node)}")
            draft = Draft()
            if entry is not None:
                key = system_key(LEFT, fold(transition.node))
                draft.erase(key, revision=entry.modify_index)
            return draft.plan(answer=entry is not None)


class Call(Protocol):
    """How a message reaches another agent's cluster port; `PeerClient.call` is one."""

    async def __call__(
        self, address: str, path: str, message: bytes, *, timeout_s: float = ...
    ) -> bytes:
        """Return the answer. Raises Unavailable, and what the other side raised."""
        ...


class Renewals(Protocol):
    """Where renewals of sessions are; `domain.session.Sessions` is one."""

    def take_renewals(self) -> tuple[str, ...]:
        """Return those taken here since the last call."""
        ...

    def heard_renewals(self, session_ids: Iterable[str]) -> None:
        """Take those that another agent took."""
        ...

    def renewed_again(self, session_ids: Iterable[str]) -> None:
        """Take back what could not be passed on."""
        ...


class Contacts(Protocol):
    """Where the others are."""

    def servers(self) -> Sequence[str]:
        """Return `host:port` of the cluster ports of the other servers, the leader's first."""
        ...

    def leader(self) -> str:
        """Return `host:port` of the leader's cluster port; empty without one, and on the leader."""
        ...


class Liveness:
    """One agent's part in it: says that it is there (`run`), passes beats on (`receive`), and judges as leader (`judge`)."""

    def __init__(
        self,
        state: State,
        beat: Beat,
        *,
        call: Call,
        contacts: Contacts,
        renewals: Renewals,
        clock: Clock,
        settings: LivenessSettings | None = None,
    ) -> None:
        """`beat` is what this agent says about itself, without renewals."""
        self._state = state
        self._beat = beat
        self._call = call
        self._contacts = contacts
        self._renewals = renewals
        self._clock = clock
        self.settings = settings or LivenessSettings()
        self._term: Term | None = None
        self._since_s = 0.0
        self._heard: dict[str, Heard] = {}
        self._left: dict[str, float] = {}
        self._contact_s = float("-inf")
        self._best = ""
        self._said: dict[str, float] = {}

    # -- as leader -----------------------------------------------------------------------------------------------------

    async def judge(self, term: Term) -> None:
        """Hear beats and keep the catalog by them, until cancelled. A duty of the leader."""
        now_s = self._clock.now()
        self._heard.clear()
        self._left.clear()
        self._since_s = now_s
        self._term = term
        pause_s = self.settings.beat_s / 2
        try:
            while True:
                await asyncio.sleep(pause_s)
                late_s = self._clock.now() - now_s - pause_s
                now_s = self._clock.now()
                if late_s > self.settings.beat_s:
                    # This process was stopped, or had no processor: what was sent meanwhile was not heard.
                    log.warning(
                        "this server was held up for %.1f s; silence is counted anew", late_s
                    )
                    self._since_s = now_s
                await self._settle(term, now_s)
        finally:
            self._term = None

    async def _settle(self, term: Term, now_s: float) -> None:
        view = self._state.view
        left = {fold(member.node) for member in left_members(view)}
        self._left = {name: self._left.get(name, now_s) for name in left}
        timers = Timers(self._since_s, self._heard, self._left)
        for transition in judge(now_s, timers, view, self.settings):
            try:
                changed = await term.commit(partial(plan_transition, transition=transition))
            except Unavailable as error:
                log.debug(
                    "%s of %s cannot be written now: %s", transition.kind, transition.node, error
                )
                return
            if changed:
                log.info("%s", _told(transition))
        for name, heard in list(self._heard.items()):
            if now_s - heard.at_s > self.settings.reap_after_s:
                del self._heard[name]

    async def _take(self, beat: Beat, term: Term) -> Answer:
        answer = self._hear(beat)
        if beat.is_last and not answer.refusal:
            if await term.commit(partial(plan_leave, name=beat.node)):
                log.info("node %s has left", beat.node)
            self._heard.pop(fold(beat.node), None)
        return answer

    def _hear(self, beat: Beat) -> Answer:
        now_s = self._clock.now()
        verdict = examine(now_s, beat, self._heard, self.settings)
        if verdict.refusal:
            self._complain(verdict.refusal)
            return Answer(is_led=True, refusal=verdict.refusal, leader=self._beat.node)
        if verdict.note:
            log.info("%s", verdict.note)
        for name, other in list(self._heard.items()):
            if other.beat.id.lower() == beat.id.lower() and name != fold(beat.node):
                del self._heard[name]
        kept = msgspec.structs.replace(beat, renewed=())
        self._heard[fold(beat.node)] = Heard(kept, now_s)
        self._renewals.heard_renewals(beat.renewed)
        return Answer(is_led=True, leader=self._beat.node)

    # -- between -------------------------------------------------------------------------------------------------------

    async def receive(self, message: bytes, *, node: str | None) -> bytes:
        """Answer a beat of another agent. `node` is who sends it by its certificate; None for a server.

        Raises Malformed, or Unavailable when the leader is not reached.
        """
        try:
            beat = msgspec.msgpack.decode(message, type=Beat)
        except msgspec.MsgspecError as error:
            msg = f"the beat cannot be read: {error}"
            raise Malformed(msg) from error
        if node is not None and (fold(beat.node) != fold(node) or beat.is_relayed):
            msg = f"the certificate of {node} does not speak for {beat.node}"
            raise Malformed(msg)
        if self._term is not None:
            return msgspec.msgpack.encode(await self._take(beat, self._term))
        leader = self._contacts.leader()
        if beat.is_relayed or not leader:
            return msgspec.msgpack.encode(Answer())
        passed = msgspec.structs.replace(beat, is_relayed=True)
        return await self._call(
            leader, PATH, msgspec.msgpack.encode(passed), timeout_s=self._patience_s(beat)
        )

    def _patience_s(self, beat: Beat) -> float:
        """Return how long an answer may take: a last beat waits for a write."""
        return _LAST_S if beat.is_last else self.settings.beat_s

    # -- for oneself ---------------------------------------------------------------------------------------------------

    def last_contact_s(self) -> float:
        """Return the seconds since the leader answered this agent; 0 on the leader, inf when it never did."""
        return 0.0 if self._term is not None else self._clock.now() - self._contact_s

    async def run(self) -> None:
        """Say each second that this agent is there, until cancelled."""
        while True:
            started_s = self._clock.now()
            await self._say()
            passed_s = self._clock.now() - started_s
            await asyncio.sleep(max(0.0, self.settings.beat_s - passed_s))

    async def sign_off(self) -> None:
        """Have the leader take this agent's node out of the catalog. Raises NoLeader, Rejected, Unavailable."""
        beat = msgspec.structs.replace(self._beat, is_last=True)
        term = self._term
        answer = await (self._ask(beat) if term is None else self._take(beat, term))
        if answer is None:
            msg = "No cluster leader"
            raise NoLeader(msg)
        if answer.refusal:
            raise Rejected(answer.refusal)

    async def _say(self) -> None:
        renewed = self._renewals.take_renewals()
        now, later = renewed[:_MAX_RENEWED], renewed[_MAX_RENEWED:]
        if later:
            self._renewals.renewed_again(later)
        beat = msgspec.structs.replace(self._beat, renewed=now)
        term = self._term
        answer = await self._ask(beat) if term is None else self._hear(beat)
        if answer is None or not answer.is_led:
            self._renewals.renewed_again(now)
            return
        self._contact_s = self._clock.now()
        if answer.refusal:
            self._renewals.renewed_again(now)
            self._complain(
                f"the leader, {answer.leader}, does not count this agent: {answer.refusal}"
            )

    async def _ask(self, beat: Beat) -> Answer | None:
        """Return the answer of the first server that knows a leader; None when none is reached."""
        message = msgspec.msgpack.encode(beat)
        addresses = list(self._contacts.servers())
        leader = self._contacts.leader()
        # The leader if it is known, else who answered last.
        addresses.sort(key=lambda address: (address != leader, address != self._best))
        problem = "no server is known"
        for address in addresses:
            try:
                data = await self._call(address, PATH, message, timeout_s=self._patience_s(beat))
                answer = msgspec.msgpack.decode(data, type=Answer)
            except (WaypostError, msgspec.MsgspecError) as error:
                problem = str(error)
                continue
            if answer.is_led:
                self._best = address
                return answer
            problem = f"{address} knows no leader"
        self._complain(f"no server takes the beats of this agent: {problem}", level=logging.WARNING)
        return None

    def _complain(self, text: str, *, level: int = logging.ERROR) -> None:
        """Log a text, not more often than once a minute."""
        now_s = self._clock.now()
        self._said = {said: at for said, at in self._said.items() if now_s - at < _REPEAT_S}
        if text not in self._said:
            self._said[text] = now_s
            log.log(level, "%s", text)


def _told(transition: Transition) -> str:
    node, silent_s = transition.node, transition.silent_s
    match transition.kind:
        case "fail":
            return f"node {node} has failed: nothing heard of it for {silent_s:.1f} s"
        case "revive":
            return f"node {node} is alive again"
        case "return":
            return f"node {node}, which had left, is back"
        case "reap":
            return f"node {node} is removed: nothing heard of it for {silent_s:.0f} s"
        case "forget":
            return f"node {node}, which left, is forgotten"
