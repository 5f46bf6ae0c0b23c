"""What is decided while one request is answered: a chain that notes its decisions for whoever listens.

Handlers ask the gate deep below the server, so the note travels beside them in a context variable: set for the time of
one request by the server's guard, seen by nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.authz.decision import Decision, Step
from waypost.access.authz.settled import SettledChain
from waypost.access.gate import Attributes

_MAX_NOTES: Final = 64
"""A filtered list asks for each of its rows; the first decisions are the ones that matter."""
_MAX_ANNOTATIONS: Final = 64
_MAX_ANNOTATION_CHARS: Final = 1024


class Note(msgspec.Struct, frozen=True):
    """One decision."""

    actor: Actor
    asked: Attributes
    decision: Decision


class Trail:
    """The decisions of one request in order. Overflow: from 64 on only the last one is kept."""

    __slots__ = ("annotations", "notes")

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.annotations: dict[str, str] = {}
        """What webhooks of admission want the log to keep, `WEBHOOK/KEY`. Overflow: from 64 on new keys are left out."""

    def annotate(self, found: Mapping[str, str]) -> None:
        """Take annotations; of one key the last text counts."""
        for key, text in found.items():
            if key in self.annotations or len(self.annotations) < _MAX_ANNOTATIONS:
                self.annotations[key] = text[:_MAX_ANNOTATION_CHARS]

    def add(self, note: Note) -> None:
        """Take one decision."""
        if len(self.notes) >= _MAX_NOTES:
            self.notes[-1] = note
        else:
            self.notes.append(note)

    def main(self, *, is_refused: bool) -> Note | None:
        """Return the decision to show: of a refused request the refusal, else the first that is no impersonation."""
        if is_refused:
            refusals = [one for one in self.notes if not one.decision.allowed]
            if refusals:
                return refusals[-1]
        for one in self.notes:
            if one.asked.verb != "impersonate":
                return one
        return self.notes[-1] if self.notes else None


_CURRENT: ContextVar[Trail | None] = ContextVar("waypost_audit_trail", default=None)


@contextmanager
def following(trail: Trail) -> Iterator[None]:
    """Note the decisions of what runs inside into `trail`."""
    token = _CURRENT.set(trail)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def annotate(found: Mapping[str, str]) -> None:
    """Keep annotations for the event of the request that is being answered, if it is written down."""
    trail = _CURRENT.get()
    if trail is not None and found:
        trail.annotate(found)


class NotedChain(SettledChain):
    """A chain whose decisions go into the trail of the request that asked."""

    def authorize(self, actor: Actor, asked: Attributes) -> Decision | None:
        """Return the decision from memory, noted."""
        return _noted(actor, asked, super().authorize(actor, asked))

    def allows(self, actor: Actor, attributes: Attributes) -> bool:
        """Return whether it is allowed; noted as well, where a request is followed."""
        if _CURRENT.get() is None:
            return super().allows(actor, attributes)
        decision = self.authorize(actor, attributes)
        return decision is not None and decision.allowed

    async def resolve(self, actor: Actor, asked: Attributes) -> Decision:
        """Return the decision, noted."""
        decision = await super().resolve(actor, asked)
        _noted(actor, asked, decision)
        return decision


def _noted(actor: Actor, asked: Attributes, decision: Decision | None) -> Decision | None:
    trail = _CURRENT.get()
    if trail is not None and decision is not None:
        trail.add(Note(actor, asked, decision))
    return decision


def decisive(decision: Decision) -> Step | None:
    """Return the step that decided, None when nobody did."""
    last = decision.trace[-1] if decision.trace else None
    return last if last is not None and last.verdict != "no-opinion" else None
