"""Admission: the last word on a change, after authentication and authorization.

First what changes the object (built in, then webhooks one after the other), then what only looks at it (built in, then
webhooks all at once). Whoever refuses ends the request, and nothing is stored. Reading passes by.

A write is decided by a pure function on one view, possibly several times, and webhooks cannot be waited for in there.
So the function asks its `Pass`: it answers from what webhooks have said about exactly this change, or raises `Pending`;
the caller settles that and decides again. Source: Kubernetes, "Dynamic Admission Control".
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from waypost.access.actor import NODES, Actor
from waypost.access.admission import discovery
from waypost.access.admission.configuration import (
    MUTATING,
    VALIDATING,
    Objects,
    ServiceReference,
    Webhook,
    Webhooks,
)
from waypost.access.admission.exchange import Answer, denial, patched, question, read_answer
from waypost.access.admission.matching import is_asked, labels_in
from waypost.access.admission.records import GROUP as CONFIGURATIONS
from waypost.access.admission.records import (
    Denied,
    JsonObject,
    Operation,
    Review,
    WebhookFailed,
)
from waypost.access.admission.rules import (
    DEFAULT_LIMITS,
    Limits,
    Record,
    check_object,
    check_record,
    check_registration,
    check_removal,
    dns_warning,
)
from waypost.access.admission.webhook import Address, Caller
from waypost.access.authz.text import quoted
from waypost.base.errors import Malformed, Unavailable
from waypost.model.catalog import CRITICAL, Check, Service
from waypost.model.object import Object
from waypost.state.view import View

log = logging.getLogger(__name__)

MAX_ROUNDS: Final = 16
"""A change that is decided anew so many times, each time with another outcome, is given up."""
_MAX_NAMES: Final = 4096
"""Service names that are remembered, so that each is warned about once; of later ones nothing is said."""

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the webhooks made of a change."""

    object: JsonObject | None
    warnings: tuple[str, ...] = ()
    annotations: dict[str, str] = {}
    """For the audit log, keys `WEBHOOK/KEY`."""


class Pending(Exception):
    """Webhooks have to be asked before a decision can be made. `settle` asks them."""

    def __init__(self, settle: Callable[[], Awaitable[None]]) -> None:
        super().__init__("webhooks have to be asked")
        self.settle = settle


class Plugin(Protocol):
    """A rule built into the chain; further ones are given to `Admission`."""

    def mutate(self, actor: Actor, review: Review) -> JsonObject | None:
        """Return the object as it is to be, or None to leave it as it is. Raises Denied, Invalid."""
        ...

    def validate(self, actor: Actor, review: Review) -> None:
        """Return when nothing is wrong. Raises Denied, Invalid."""
        ...


class Admission:
    """The chain of one agent. Its webhooks are those stored at the moment of each question."""

    def __init__(
        self,
        objects: Objects,
        *,
        caller: Caller,
        rng: random.Random,
        limits: Limits = DEFAULT_LIMITS,
        plugins: Sequence[Plugin] = (),
    ) -> None:
        self._objects = objects
        self._caller = caller
        self._rng = rng
        self._limits = limits
        self._plugins = tuple(plugins)
        self._mutating = Webhooks(objects, MUTATING)
        self._validating = Webhooks(objects, VALIDATING)
        self._seen_names: set[str] = set()

    # -- objects of the kube-style API ---------------------------------------------------------------------------------

    def open(self, actor: Actor) -> Pass:
        """Return the admission of one request of `actor`."""
        return Pass(self, actor)

    def mutate_now(self, actor: Actor, review: Review) -> tuple[JsonObject | None, bool]:
        """Return the object after the built-in plugins, and whether webhooks have to be asked as well."""
        value = review.object
        for plugin in self._plugins:
            found = plugin.mutate(actor, msgspec.structs.replace(review, object=value))
            value = value if found is None else found
        return value, bool(self._asked(self._mutating, review))

    def validate_now(self, actor: Actor, review: Review) -> bool:
        """Apply the built-in rules; return whether webhooks have to be asked. Raises Denied, Invalid."""
        check_object(actor, review)
        for plugin in self._plugins:
            plugin.validate(actor, review)
        return bool(self._asked(self._validating, review))

    # -- records of the catalog ----------------------------------------------------------------------------------------

    def check(self, actor: Actor, service: Service, checks: Sequence[Check], *, node: str) -> None:
        """Apply the fixed rules to an instance of `node` with its checks: all there is to do while the chain `is_idle`.

        Raises Denied, TooLarge.
        """
        check_registration(actor, service, checks, node=node, limits=self._limits)
        self._warn_about_name(service.name)

    async def record(self, actor: Actor, new: R, old: Record | None) -> R:
        """Admit that `new` takes the place of `old`; return what is to be stored instead of `new`.

        Raises Denied, TooLarge, WebhookFailed; Malformed when a webhook makes something impossible of it.
        """
        check_record(actor, new, limits=self._limits)
        if isinstance(new, Service) and old is None:
            self._warn_about_name(new.name)
        if self.is_idle:
            return new
        operation: Operation = "CREATE" if old is None else "UPDATE"
        review = discovery.review_of(new, old, operation=operation)
        outcome = await self._through(actor, review)
        if outcome.object is None or outcome.object == review.object:
            return new
        try:
            found = discovery.changed(new, outcome.object)
        except Malformed as exc:
            raise WebhookFailed(
                f"webhooks changed {review.kind} {quoted(review.name)} to what it cannot be: {exc}"
            ) from exc
        check_record(actor, found, limits=self._limits)
        assert isinstance(found, type(new))
        return found

    async def removal(self, actor: Actor, old: Record | None) -> None:
        """Admit that a record goes; None is one that is not there. Raises Denied, WebhookFailed."""
        if old is None:
            return
        check_removal(actor, old)
        if not self.is_idle:
            await self._through(actor, discovery.review_of(None, old, operation="DELETE"))

    @property
    def has_webhooks(self) -> bool:
        """Whether any webhook is configured."""
        return bool(self._mutating.now() or self._validating.now())

    @property
    def is_idle(self) -> bool:
        """Whether nothing but the fixed rules has a say."""
        if self._plugins:
            return False
        table = self._objects.object_table
        return not table(CONFIGURATIONS, MUTATING) and not table(CONFIGURATIONS, VALIDATING)

    def looks_at(self, actor: Actor, group: str) -> bool:
        """Return whether anything has a say about what `actor` does to objects of an API group."""
        return group == CONFIGURATIONS or NODES in actor.groups or not self.is_idle

    async def _through(self, actor: Actor, review: Review) -> Outcome:
        """Take a change through the whole chain."""
        value, has_more = self.mutate_now(actor, review)
        review = msgspec.structs.replace(review, object=value)
        outcome = Outcome(object=value)
        if has_more:
            outcome = await self.mutate(actor, review)
            review = msgspec.structs.replace(review, object=outcome.object)
        if self.validate_now(actor, review):
            seen = await self.validate(actor, review)
            outcome = _joined(outcome, seen)
        for text in outcome.warnings:
            log.warning("%s %s: %s", review.kind, review.name, text)
        return outcome

    def _warn_about_name(self, name: str) -> None:
        if name in self._seen_names or len(self._seen_names) >= _MAX_NAMES:
            return
        self._seen_names.add(name)
        text = dns_warning(name)
        if text:
            log.warning("%s", text)

    # -- webhooks ------------------------------------------------------------------------------------------------------

    def _asked(self, webhooks: Webhooks, review: Review) -> list[Webhook]:
        return [one for one in webhooks.now() if is_asked(one, review, self._namespace_labels)]

    def _namespace_labels(self, name: str) -> Mapping[str, str]:
        found = self._objects.object("", "namespaces", "", name)
        return {} if found is None else labels_in(_read(found))

    async def mutate(self, actor: Actor, review: Review) -> Outcome:
        """Ask the mutating webhooks in order; those that want it once more when later ones changed the object.

        Raises Denied, WebhookFailed.
        """
        outcome = Outcome(object=review.object)
        changed_after: set[str] = set()
        asked: list[Webhook] = []
        for webhook in self._mutating.now():
            # Matched at its turn: an earlier one may have changed what its selector looks at.
            now = msgspec.structs.replace(review, object=outcome.object)
            if not is_asked(webhook, now, self._namespace_labels):
                continue
            before = outcome.object
            outcome = await self._mutated(actor, now, webhook, outcome)
            if outcome.object != before:
                changed_after.update(_key(one) for one in asked)
            asked.append(webhook)
        for webhook in asked:
            if webhook.reinvoked and _key(webhook) in changed_after:
                now = msgspec.structs.replace(review, object=outcome.object)
                if is_asked(webhook, now, self._namespace_labels):
                    outcome = await self._mutated(actor, now, webhook, outcome)
        return outcome

    async def _mutated(
        self, actor: Actor, review: Review, webhook: Webhook, before: Outcome
    ) -> Outcome:
        answer = await self._ask(actor, review, webhook)
        if answer is None:
            return before
        value = before.object
        if answer.patch:
            if value is None:
                raise WebhookFailed(
                    f"webhook {quoted(webhook.name)} attempted to modify the object, "
                    "which is not supported for this operation"
                )
            try:
                value = patched(value, answer.patch)
            except Malformed as exc:
                raise WebhookFailed(
                    f"failed calling webhook {quoted(webhook.name)}: its patch does not fit: {exc}"
                ) from exc
        return _joined(before, _told(webhook, answer, value))

    async def validate(self, actor: Actor, review: Review) -> Outcome:
        """Ask the validating webhooks, all at once; the first one in order that refuses is the one that is heard.

        Raises Denied, WebhookFailed.
        """
        outcome = Outcome(object=review.object)
        webhooks = self._asked(self._validating, review)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._outcome(actor, review, one), name=f"webhook {one.name}")
                for one in webhooks
            ]
        for webhook, task in zip(webhooks, tasks, strict=True):
            found = task.result()
            if isinstance(found, Exception):
                raise found
            if found is not None:
                outcome = _joined(outcome, _told(webhook, found, review.object))
        return outcome

    async def _outcome(
        self, actor: Actor, review: Review, webhook: Webhook
    ) -> Answer | Denied | WebhookFailed | None:
        try:
            return await self._ask(actor, review, webhook)
        except (Denied, WebhookFailed) as exc:
            return exc

    async def _ask(self, actor: Actor, review: Review, webhook: Webhook) -> Answer | None:
        """Return the consent of a webhook, None when it cannot be asked and that does not matter.

        Raises Denied, WebhookFailed.
        """
        name = quoted(webhook.name)
        if review.dry_run and not webhook.dry_run_safe:
            raise Denied(
                f"admission webhook {name} does not support dry run",
                http_status=400,
                reason="BadRequest",
            )
        uid = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        try:
            body = await self._caller.call(webhook, question(actor, review, uid=uid))
            answer = read_answer(body, uid=uid, mutates=webhook.mutates)
        except (Unavailable, Malformed) as exc:
            if webhook.may_fail:
                log.warning("webhook %s is left out: %s", webhook.name, exc)
                return None
            raise WebhookFailed(f"failed calling webhook {name}: {exc}") from exc
        if not answer.allowed:
            raise denial(webhook.name, answer.status)
        return answer


class Pass:
    """The admission of one request of the kube-style API, for decisions that may be made more than once."""

    def __init__(self, admission: Admission, actor: Actor) -> None:
        self._admission = admission
        self._actor = actor
        self._known: dict[tuple[str, bytes], Outcome] = {}
        self._rounds: dict[tuple[str, str, str], int] = {}

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
            one = (phase, review.namespace, review.name)
            self._rounds[one] = self._rounds.get(one, 0) + 1
            if self._rounds[one] > MAX_ROUNDS:
                raise WebhookFailed("the object changes too fast: webhooks cannot keep up")
            self._known[key] = await ask(self._actor, review)

        raise Pending(settle)


async def settled(decide: Callable[[], Awaitable[T]]) -> T:
    """Return what `decide` returns once all webhooks it depends on have answered. Raises what it raises, but Pending."""
    while True:
        try:
            return await decide()
        except Pending as pending:
            await pending.settle()


def service_addresses(view: View) -> Callable[[ServiceReference], list[Address]]:
    """Return how a webhook's service is found: the healthy instances of that name in this catalog, at their own ports.

    The reference's port counts only for an instance without one.
    """

    def resolve(service: ServiceReference) -> list[Address]:
        found = view.instances(service.name)
        return [
            (one.address, one.service.port)
            for one in found
            if one.status not in (CRITICAL, "maintenance") and one.address
        ]

    return resolve


_ENCODER: Final = msgspec.json.Encoder()


def _key(webhook: Webhook) -> str:
    return f"{webhook.configuration}/{webhook.name}"


def _told(webhook: Webhook, answer: Answer, value: JsonObject | None) -> Outcome:
    annotations = {f"{webhook.name}/{key}": text for key, text in answer.annotations.items()}
    return Outcome(object=value, warnings=answer.warnings, annotations=annotations)


def _joined(before: Outcome, after: Outcome) -> Outcome:
    return Outcome(
        object=after.object,
        warnings=(*before.warnings, *after.warnings),
        annotations=before.annotations | after.annotations,
    )


def _read(found: Object) -> JsonObject:
    try:
        value = msgspec.json.decode(found.body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
