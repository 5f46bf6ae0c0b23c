"""How the first servers agree on a cluster: the messages of `protocol`, sent and answered.

What is sent runs as an errand of whoever owns the state; what comes of it waits for its turn there. Methods that return
an errand have written down what must be on disk before it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec

from waypost.access.pki.issue import ca_pin, load_certificate
from waypost.base.clock import Clock
from waypost.base.errors import Forbidden, Malformed, Rejected, WaypostError
from waypost.cluster import protocol
from waypost.cluster.certificates import Certificates
from waypost.cluster.directory import Directory
from waypost.cluster.messages import (
    AskPlan,
    Commit,
    Path,
    PlanAnswer,
    Prepare,
    Secrets,
    VoteAnswer,
    decode,
    encode,
)
from waypost.cluster.peers import Peers
from waypost.cluster.protocol import PlanStatus, Vote
from waypost.cluster.records import Phase, Plan, ServerFacts, State
from waypost.cluster.standing import Standing, new_id
from waypost.cluster.transport import CALL_TIMEOUT_S, PeerClient
from waypost.cluster.trust import Caller, Stranger
from waypost.cluster.turns import Turns

log = logging.getLogger(__name__)

T = TypeVar("T")
Errand = Coroutine[Any, Any, None]

_TIMEOUT_S: Final = 2.0
_ASK_AGAIN_S: Final = 0.5
_ABANDON_AGAIN_S: Final = 5.0
_PROPOSE_AGAIN_S: Final = (0.1, 0.6)


class Forming:
    """Proposes, votes, commits, asks what became of a plan. `is_able` tells whether this machine may take part."""

    def __init__(
        self,
        standing: Standing,
        directory: Directory,
        peers: Peers,
        client: PeerClient,
        certificates: Certificates,
        turns: Turns,
        *,
        clock: Clock,
        rng: random.Random,
        has_data: Callable[[], bool],
        is_able: Callable[[], bool],
    ) -> None:
        self._standing = standing
        self._id = standing.settings.node_id
        self._trust = standing.trust
        self._directory = directory
        self._peers = peers
        self._client = client
        self._certificates = certificates
        self._turns = turns
        self._clock = clock
        self._rng = rng
        self._has_data = has_data
        self._is_able = is_able
        self._propose_at_s = self._ask_at_s = float("-inf")

    @property
    def may_propose(self) -> bool:
        """Whether the pause after a proposal that was not accepted is over."""
        return self._clock.now() >= self._propose_at_s

    @property
    def may_ask(self) -> bool:
        """Whether the pause between two questions about a plan is over."""
        return self._clock.now() >= self._ask_at_s

    # -- a round of the proposer

    def propose(self, members: tuple[ServerFacts, ...]) -> Errand:
        """Vote for a new plan; return the errand that asks the others for their votes. Raises Unavailable."""
        secrets = self._trust.propose()
        plan = protocol.make_plan(
            self._standing.state,
            members,
            token=new_id(self._rng),
            proposer=self._id,
            authority=_pin_of(secrets),
        )
        log.info("cluster: proposing a cluster of %s (ballot %d)", _names(plan), plan.ballot)
        self._standing.save(protocol.propose(self._standing.state, plan))
        return self._hold_round(plan, secrets)

    async def _hold_round(self, plan: Plan, secrets: Secrets) -> None:
        message = Prepare(plan=plan)
        votes: dict[str, Vote | None] = {}

        async def ask(member: ServerFacts) -> None:
            try:
                found = await self._ask(member, Path.PREPARE, message, VoteAnswer)
            except WaypostError as exc:
                log.info("cluster: no vote of %s: %s", member.node, exc)
                return
            if found.id == member.id:
                votes[member.id] = Vote(is_accepted=found.is_accepted, why=found.why)
                if not found.is_accepted:
                    log.info("cluster: %s does not vote for the plan: %s", member.node, found.why)

        await self._each(plan, ask)

        async def conclude() -> bool:
            state = protocol.tally(self._standing.state, plan, votes)
            if state.phase is Phase.COMMITTED:
                await self._found(state, secrets)
                return True
            self._standing.save(state)
            self._propose_at_s = self._clock.now() + self._rng.uniform(*_PROPOSE_AGAIN_S)
            return False

        if await self._turns.take(conclude):
            await self._tell(plan, secrets)

    async def _tell(self, plan: Plan, secrets: Secrets) -> None:
        """Tell the others that all have voted. Whoever is not reached asks by itself."""
        message = Commit(plan=plan, secrets=secrets)

        async def tell(member: ServerFacts) -> None:
            with contextlib.suppress(WaypostError):
                await self._ask(member, Path.COMMIT, message, VoteAnswer, timeout_s=CALL_TIMEOUT_S)

        await self._each(plan, tell)

    async def _found(self, state: State, secrets: Secrets) -> None:
        """Become a founding member: keys first, then the phase that needs them."""
        assert state.plan is not None
        self._certificates.found(secrets)
        self._standing.save(state)
        await self._certificates.changed()
        log.info(
            "cluster: all of %s agreed; its authority is %s (compare with the other servers)",
            _names(state.plan),
            self._trust.pin,
        )

    async def _ask(
        self,
        member: ServerFacts,
        path: Path,
        message: msgspec.Struct,
        kind: type[T],
        *,
        timeout_s: float = _TIMEOUT_S,
    ) -> T:
        answer = await self._client.first_contact(
            member.contact,
            path,
            encode(message),
            fingerprint=member.fingerprint,
            timeout_s=timeout_s,
        )
        return decode(answer.body, kind, what=path)

    async def _each(
        self,
        plan: Plan,
        do: Callable[[ServerFacts], Errand],
        *,
        without: tuple[str, ...] = (),
    ) -> None:
        """Do something with every other member of the plan at once."""
        async with asyncio.TaskGroup() as group:
            for member in plan.members:
                if member.id not in (self._id, *without):
                    group.create_task(do(member))

    # -- what became of a plan

    def ask(self, plan: Plan) -> Errand:
        """Return the errand that asks the plan's members what became of it."""
        self._ask_at_s = self._clock.now() + _ASK_AGAIN_S
        return self._ask_plan(plan, path=Path.PLAN)

    def abandon(self, plan: Plan) -> Errand:
        """Promise never to commit the plan; return the errand that asks the other voters for it. Raises Unavailable."""
        self._ask_at_s = self._clock.now() + _ABANDON_AGAIN_S
        state, _ = protocol.abandon(self._standing.state, plan.token)
        if state is not self._standing.state:
            log.warning(
                "cluster: the server that proposed the cluster is gone; its plan is taken back"
            )
            self._standing.save(state)
        return self._ask_plan(plan, path=Path.ABANDON)

    async def _ask_plan(self, plan: Plan, *, path: Path) -> None:
        message = AskPlan(token=plan.token, id=self._id)
        answers: dict[str, PlanStatus] = {}
        secrets: list[Secrets] = []

        async def ask(member: ServerFacts) -> None:
            try:
                found = await self._ask(member, path, message, PlanAnswer)
            except WaypostError as exc:
                log.debug("%s does not say what became of the plan: %s", member.node, exc)
                return
            if found.id == member.id:
                answers[member.id] = found.status
                if found.secrets is not None:
                    secrets.append(found.secrets)

        await self._each(plan, ask, without=() if path is Path.PLAN else (plan.proposer,))

        async def conclude() -> None:
            before = self._standing.state
            state = protocol.heard(before, plan, answers, me=self._id)
            if state is before:
                return
            if state.phase is Phase.COMMITTED:
                if secrets:
                    await self._found(state, secrets[0])
                return
            log.info("cluster: the plan that this server voted for came to nothing")
            self._standing.save(state)

        await self._turns.take(conclude)

    # -- answers

    async def answer_prepare(self, message: Prepare, caller: Caller) -> VoteAnswer:
        """Vote. Raises Forbidden (not from its proposer), Rejected (not a server), Unavailable."""
        plan = message.plan
        proposer = plan.member(plan.proposer)
        if proposer is None or not isinstance(caller, Stranger) or not caller.fingerprint:
            raise Forbidden("a proposal comes from a member of it")
        if proposer.fingerprint != caller.fingerprint:
            raise Forbidden("the caller is not the one that proposes")
        if not self._standing.settings.is_server:
            raise Rejected("this machine is not a server")

        async def change() -> Vote:
            before = self._standing.state
            state, answer = protocol.vote(
                before,
                plan,
                me=self._directory.own(),
                has_data=self._has_data(),
                knows_cluster=bool(self._directory.live_members()),
            )
            if not self._is_able():
                return Vote(is_accepted=False, why="it is not able to take part")
            if state is not before:
                self._standing.save(state)
                self._ask_at_s = self._clock.now() + _TIMEOUT_S
                log.info(
                    "cluster: voted for the plan of %s (authority %s)",
                    proposer.node,
                    plan.authority,
                )
            return answer

        return self._voted(await self._turns.take(change))

    async def answer_commit(self, message: Commit, caller: Caller) -> VoteAnswer:
        """Commit the plan that was voted for. Raises Forbidden, Malformed, Unavailable."""
        self._check_founder(message.plan.proposer, message.plan.token, caller)
        if _pin_of(message.secrets) != message.plan.authority:
            raise Malformed("the keys are not those of the plan's authority")

        async def change() -> Vote:
            state, answer = protocol.commit(self._standing.state, message.plan)
            if state is not self._standing.state:
                await self._found(state, message.secrets)
            return answer

        return self._voted(await self._turns.take(change))

    def _voted(self, vote: Vote) -> VoteAnswer:
        return VoteAnswer(id=self._id, is_accepted=vote.is_accepted, why=vote.why)

    def _check_founder(self, server_id: str, token: str, caller: Caller) -> None:
        """Raise Forbidden unless the caller is this member of the plan that was voted for here."""
        plan = self._standing.state.plan
        member = plan.member(server_id) if plan is not None and plan.token == token else None
        if (
            member is None
            or not isinstance(caller, Stranger)
            or caller.fingerprint != member.fingerprint
        ):
            raise Forbidden("the caller is not a member of a plan that this server knows")

    def answer_plan(self, message: AskPlan, caller: Caller) -> PlanAnswer:
        """Say what became of a plan; with the keys, to its members. Raises Forbidden."""
        status = protocol.plan_status(self._standing.state, message.token)
        secrets = None
        if status is PlanStatus.COMMITTED:
            self._check_founder(message.id, message.token, caller)
            secrets = self._trust.secrets()
        return PlanAnswer(id=self._id, status=status, secrets=secrets)

    async def answer_abandon(self, message: AskPlan, caller: Caller) -> PlanAnswer:
        """Take the vote for a plan back. Raises Forbidden to strangers, Unavailable."""
        known = self._peers.find(message.id)
        if (
            not isinstance(caller, Stranger)
            or known is None
            or known.facts.fingerprint != caller.fingerprint
        ):
            raise Forbidden("the caller is not a server that this one knows")

        async def change() -> PlanStatus:
            state, status = protocol.abandon(self._standing.state, message.token)
            if state is not self._standing.state:
                self._standing.save(state)
            return status

        status = await self._turns.take(change)
        if status is PlanStatus.COMMITTED:
            return self.answer_plan(message, caller)
        return PlanAnswer(id=self._id, status=status)


def _names(plan: Plan) -> str:
    return ", ".join(one.node for one in plan.members)


def _pin_of(secrets: Secrets) -> str:
    return ca_pin(load_certificate(secrets.authority_pem, name="the cluster's authority"))
