"""Admission: the last word on a change, after authentication and authorization.

First what changes the object (built in, then webhooks one after the other), then what only looks at it (built in, then
webhooks all at once). Whoever refuses ends the request, and nothing is stored. Reading passes by.

Writes are pure decisions; what they ask is a `Pass`, see `passing`. Source: Kubernetes, "Dynamic Admission Control".
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from waypost.access.actor import NODES, Actor
from waypost.access.admission.configuration import (
    MUTATING,
    VALIDATING,
    Objects,
    ServiceReference,
    Webhook,
    Webhooks,
)
from waypost.access.admission.exchange import Answer, denial, patched, question, read_answer
from waypost.access.admission.matching import covers, is_asked, labels_in
from waypost.access.admission.passing import Outcome, Pass
from waypost.access.admission.records import GROUP as CONFIGURATIONS
from waypost.access.admission.records import (
    Denied,
    JsonObject,
    Review,
    WebhookFailed,
)
from waypost.access.admission.rules import (
    DEFAULT_LIMITS,
    Limits,
    Record,
    check_object,
    check_record,
    dns_warning,
)
from waypost.access.admission.webhook import Address, Caller
from waypost.access.audit.trail import annotate
from waypost.base.errors import Malformed, Unavailable
from waypost.base.quoting import quoted
from waypost.model.catalog import CRITICAL, Service
from waypost.model.object import Object
from waypost.state.view import View

log = logging.getLogger(__name__)

_MAX_NAMES: Final = 4096
"""Service names that are remembered, so that each is warned about once; of later ones nothing is said."""


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

    # -- records -------------------------------------------------------------------------------------------------------

    def check_record(self, actor: Actor, new: Record, *, is_new: bool) -> None:
        """Apply the fixed rules to what is about to be stored. Raises Denied, TooLarge."""
        check_record(actor, new, limits=self._limits)
        if is_new and isinstance(new, Service):
            self._warn_about_name(new.name)

    def concerns(self, review: Review) -> bool:
        """Return whether anybody may have a say about a change; its documents are not looked at."""
        return bool(self._plugins) or any(
            covers(rule, review)
            for webhooks in (self._mutating, self._validating)
            for webhook in webhooks.now()
            for rule in webhook.rules
        )

    async def through(self, actor: Actor, review: Review) -> Outcome:
        """Take a change through the whole chain; warnings go to the log. Raises Denied, WebhookFailed."""
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
        return _joined(before, _told(answer, value))

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
        for task in tasks:
            found = task.result()
            if isinstance(found, Exception):
                raise found
            if found is not None:
                outcome = _joined(outcome, _told(found, review.object))
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
        annotate({f"{webhook.name}/{key}": text for key, text in answer.annotations.items()})
        if not answer.allowed:
            raise denial(webhook.name, answer.status, answer.warnings)
        return answer


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


def _key(webhook: Webhook) -> str:
    return f"{webhook.configuration}/{webhook.name}"


def _told(answer: Answer, value: JsonObject | None) -> Outcome:
    return Outcome(object=value, warnings=answer.warnings)


def _joined(before: Outcome, after: Outcome) -> Outcome:
    return Outcome(
        object=after.object,
        warnings=tuple(dict.fromkeys((*before.warnings, *after.warnings))),
    )


def _read(found: Object) -> JsonObject:
    try:
        value = msgspec.json.decode(found.body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
