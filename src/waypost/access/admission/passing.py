"""The admission of one request, as pure decisions need it that may be made more than once.

A write is decided on one view. Webhooks cannot be waited for in there, so the decision asks its `Pass`: it answers from
what webhooks have said about exactly this change, or raises `Pending`; `settled` asks them and decides again, on the
view of then. So what is stored is what was admitted, whatever happened while webhooks were thinking.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import discovery
from waypost.access.admission.records import JsonObject, Operation, Review, WebhookFailed
from waypost.access.admission.rules import Record, check_removal
from waypost.base.errors import Malformed
from waypost.base.quoting import quoted

if TYPE_CHECKING:
    from waypost.access.admission.chain import Admission

MAX_ROUNDS: Final = 16
"""An object that is decided anew so many times, each time with another outcome, is given up."""
MAX_RECORD_ROUNDS: Final = 80
"""Likewise for a record; more, because a transaction may write the same one with each of its 64 operations."""

R = TypeVar("R", bound=Record)
T = TypeVar("T")
_Subject = tuple[str, ...]
_ENCODER: Final = msgspec.json.Encoder()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the webhooks made of a change."""

    object: JsonObject | None
    warnings: tuple[str, ...] = ()


class Pending(Exception):
    """Webhooks have to be asked before a decision can be made. `settle` asks them."""

    def __init__(self, settle: Callable[[], Awaitable[None]]) -> None:
        super().__init__("webhooks have to be asked")
        self.settle = settle

    @classmethod
    def all(cls, parts: Sequence[Pending]) -> Pending:
        """Return one that asks about several things, one after the other: what is refused first is what is answered."""

        async def settle() -> None:
            for one in parts:
                await one.settle()

        return cls(settle)


async def settled(decide: Callable[[], Awaitable[T]]) -> T:
    """Return what `decide` returns once all webhooks it depends on have answered. Raises what it raises, but Pending."""
    while True:
        try:
            return await decide()
        except Pending as found:
            pending = found
        # Out here, so that a refusal does not look like the failure of something else.
        await pending.settle()


class Pass:
    """What one request of `actor` has been told by admission."""

    def __init__(self, admission: Admission, actor: Actor) -> None:
        self._admission = admission
        self._actor = actor
        self._known: dict[tuple[str, bytes], Outcome] = {}
        self._rounds: dict[_Subject, int] = {}

    # -- objects of the kube-style API ---------------------------------------------------------------------------------

    def mutate(self, review: Review) -> Outcome:
        """Return the object as it is to be stored. Raises Denied, Invalid, Pending."""
        value, has_more = self._admission.mutate_now(self._actor, review)
        if not has_more:
            return Outcome(object=value)
        review = msgspec.structs.replace(review, object=value)
        return self._settled("mutate", review, self._admission.mutate)

    def validate(self, review: Review) -> Outcome:
        """Return the warnings about an object as it is going to be stored. Raises Denied, Invalid, Pending."""
        if not self._admission.validate_now(self._actor, review):
            return Outcome(object=review.object)
        return self._settled("validate", review, self._admission.validate)

    def _settled(
        self, phase: str, review: Review, ask: Callable[[Actor, Review], Awaitable[Outcome]]
    ) -> Outcome:
        key = (phase, _ENCODER.encode(review))
        found = self._known.get(key)
        if found is not None:
            return found

        async def settle() -> None:
            self._count((phase, review.namespace, review.name), at_most=MAX_ROUNDS)
            self._known[key] = await ask(self._actor, review)

        raise Pending(settle)

    def _count(self, subject: _Subject, *, at_most: int) -> None:
        rounds = self._rounds[subject] = self._rounds.get(subject, 0) + 1
        if rounds > at_most:
            raise WebhookFailed("the object changes too fast: webhooks cannot keep up")

    # -- records -------------------------------------------------------------------------------------------------------

    @property
    def asks(self) -> bool:
        """Whether anything but the fixed rules has a say."""
        return not self._admission.is_idle

    def record(self, new: R, old: R | None, *, subresource: str = "") -> R:
        """Return what is to be stored in place of `old` instead of `new`.

        Raises Denied, TooLarge, Pending; WebhookFailed also when webhooks make something impossible of it.
        """
        admission = self._admission
        admission.check_record(self._actor, new, is_new=old is None)
        if admission.is_idle:
            return new
        operation: Operation = "CREATE" if old is None else "UPDATE"
        review = discovery.subject_of(new, operation=operation, subresource=subresource)
        if not admission.concerns(review):
            return new
        outcome = self._record_settled(discovery.shown(review, new, old), new)
        document = outcome.object
        if document is None or document == discovery.document(new):
            return new
        try:
            found = discovery.changed(new, document, subresource=subresource)
        except Malformed as exc:
            raise WebhookFailed(
                f"webhooks changed {review.kind} {quoted(review.name)} to what it cannot be: {exc}"
            ) from exc
        admission.check_record(self._actor, found, is_new=False)
        assert isinstance(found, type(new))
        return found

    def removal(self, *gone: Record) -> None:
        """Return when all of `gone` may go. Raises Denied, WebhookFailed, Pending."""
        for one in gone:
            check_removal(self._actor, one)
        admission = self._admission
        if admission.is_idle:
            return
        reviews = [(one, discovery.subject_of(one, operation="DELETE")) for one in gone]
        asked = [
            (one, discovery.shown(review, None, one))
            for one, review in reviews
            if admission.concerns(review)
        ]
        unknown = [(one, review) for one, review in asked if _key(review) not in self._known]
        if not unknown:
            return

        async def settle() -> None:
            # One after the other, as if each had come alone: what is refused first is what is answered.
            for one, review in unknown:
                await self._ask(review, one)

        raise Pending(settle)

    def _record_settled(self, review: Review, one: Record) -> Outcome:
        found = self._known.get(_key(review))
        if found is None:
            raise Pending(lambda: self._ask(review, one))
        return found

    async def _ask(self, review: Review, one: Record) -> None:
        subject = (review.resource, review.subresource, discovery.node_of(one), review.name)
        self._count(subject, at_most=MAX_RECORD_ROUNDS)
        self._known[_key(review)] = await self._admission.through(self._actor, review)


def _key(review: Review) -> tuple[str, bytes]:
    return "record", _ENCODER.encode(review)
