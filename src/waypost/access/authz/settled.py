"""Decisions that were fetched for one request: what a webhook said holds for it even if it is not kept for others.

A webhook that fails, or whose answers are not to be kept, would otherwise be asked again each time the gate asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from waypost.access.actor import Actor
from waypost.access.authz.chain import Chain
from waypost.access.authz.decision import Decision
from waypost.access.gate import Attributes

Key = tuple[str, tuple[str, ...], Attributes]
Answers = dict[Key, Decision]

_CURRENT: ContextVar[Answers | None] = ContextVar("waypost_settled_decisions", default=None)


def key_of(actor: Actor, asked: Attributes) -> Key:
    """Return under what a decision is found again."""
    return actor.user, actor.groups, asked


@contextmanager
def settled(answers: Answers) -> Iterator[None]:
    """Let the chain use `answers` for what it does not know itself."""
    token = _CURRENT.set(answers)
    try:
        yield
    finally:
        _CURRENT.reset(token)


class SettledChain(Chain):
    """A chain that looks at what was fetched for the request before it says that it does not know."""

    def authorize(self, actor: Actor, asked: Attributes) -> Decision | None:
        """Return the decision from memory, or the one fetched for this request."""
        decision = super().authorize(actor, asked)
        if decision is None:
            answers = _CURRENT.get()
            if answers is not None:
                return answers.get(key_of(actor, asked))
        return decision

    async def resolve(self, actor: Actor, asked: Attributes) -> Decision:
        """Return the decision; what was fetched for it holds until this request is answered."""
        decision = await super().resolve(actor, asked)
        answers = _CURRENT.get()
        if answers is not None:
            answers[key_of(actor, asked)] = decision
        return decision
