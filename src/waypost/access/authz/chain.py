"""The chain of authorizers: the first allow or deny ends it.

Members of `system:masters` are allowed before anybody is asked. When nobody decides, all reasons are joined; when
then somebody had failed, the answer is a fault and not a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from waypost.access import gate
from waypost.access.actor import MASTERS, Actor
from waypost.access.authz.decision import Authorizer, Decision, RemoteAuthorizer, Step
from waypost.access.authz.text import aggregate
from waypost.access.gate import Attributes

MASTERS_STEP: Final = Step(authorizer="system:masters", verdict="allow")
_MASTERS_DECISION: Final = Decision("allow", "", (MASTERS_STEP,))


class Chain:
    """Authorizers in the order they are asked.

    `authorize` answers at once or says with None that somebody has to be asked over the network; `resolve` asks.
    `decide` makes the chain an authorizer of the gate.
    """

    def __init__(self, authorizers: Sequence[Authorizer | RemoteAuthorizer]) -> None:
        self.authorizers = tuple(authorizers)

    def replace(self, authorizers: Sequence[Authorizer | RemoteAuthorizer]) -> None:
        """Ask these from now on; a question that is being asked over the network ends with those it began with."""
        self.authorizers = tuple(authorizers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the authorizers, in order."""
        return tuple(one.name for one in self.authorizers)

    def authorize(self, actor: Actor, asked: Attributes) -> Decision | None:
        """Return the decision from memory; None when a webhook must be asked first: await `resolve`."""
        if MASTERS in actor.groups:
            return _MASTERS_DECISION
        steps: list[Step] = []
        for authorizer in self.authorizers:
            step = authorizer.authorize(actor, asked)
            if step is None:
                return None
            steps.append(step)
            if step.verdict != "no-opinion":
                break
        return conclude(steps)

    def allows(self, actor: Actor, attributes: Attributes) -> bool:
        """Return whether `authorize` allows it, without putting a reason together."""
        if MASTERS in actor.groups:
            return True
        for authorizer in self.authorizers:
            step = authorizer.authorize(actor, attributes)
            if step is None:
                decision = self.authorize(actor, attributes)
                return decision is not None and decision.allowed
            if step.verdict != "no-opinion":
                return step.verdict == "allow"
        return False

    async def resolve(self, actor: Actor, asked: Attributes) -> Decision:
        """Return the decision, asking webhooks whose answer is not known."""
        if MASTERS in actor.groups:
            return _MASTERS_DECISION
        steps: list[Step] = []
        for authorizer in self.authorizers:
            step = authorizer.authorize(actor, asked)
            if step is None:
                step = await _ask(authorizer, actor, asked)
            steps.append(step)
            if step.verdict != "no-opinion":
                break
        return conclude(steps)

    def decide(self, actor: Actor, attributes: Attributes) -> gate.Decision:
        """Return the decision for the gate. What a webhook has not answered yet is refused: `resolve` comes first."""
        decision = self.authorize(actor, attributes)
        if decision is None:
            return gate.Decision(
                allowed=False,
                reason="the webhook that decides this has not been asked",
                is_known=False,
            )
        return gate.Decision(allowed=decision.allowed, reason=decision.error or decision.reason)


async def _ask(authorizer: Authorizer | RemoteAuthorizer, actor: Actor, asked: Attributes) -> Step:
    resolve = getattr(authorizer, "resolve", None)
    if resolve is None:
        # An authorizer that neither knows nor can ask is a programming error; nobody is let in by it.
        return Step(authorizer=authorizer.name, verdict="no-opinion", error="no answer")
    step: Step = await resolve(actor, asked)
    return step


def conclude(steps: Sequence[Step]) -> Decision:
    """Return what a chain says whose authorizers answered `steps`; none may follow an allow or a deny."""
    trace = tuple(steps)
    if trace and trace[-1].verdict != "no-opinion":
        last = trace[-1]
        return Decision(last.verdict, last.reason, trace, last.error)
    errors = [step.error for step in trace if step.error]
    return Decision(
        "no-opinion",
        "\n".join(step.reason for step in trace if step.reason),
        trace,
        aggregate(errors) if errors else "",
    )
