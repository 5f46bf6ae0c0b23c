"""Admission of writes to objects: from documents to reviews, and from refusals to what the API answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import (
    Admission,
    Denied,
    Invalid,
    Outcome,
    Pass,
    Review,
    WebhookFailed,
    settled,
)
from waypost.access.admission.records import Operation
from waypost.base.quoting import quoted
from waypost.wire.kube import managed_fields, status
from waypost.wire.kube.bodies import FieldValidation, conform, with_defaults
from waypost.wire.kube.resources import Resource
from waypost.wire.kube.status import ApiError, Details, FieldError, Status
from waypost.wire.kube.values import JsonObject

T = TypeVar("T")


class Refused(ApiError):
    """Admission said no; `warnings` are for the client as well."""

    def __init__(self, found: Status, *, warnings: tuple[str, ...]) -> None:
        super().__init__(found)
        self.warnings = warnings


_OPTIONS = {"CREATE": "CreateOptions", "UPDATE": "UpdateOptions", "DELETE": "DeleteOptions"}


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a request writes."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


class Passage:
    """Admission of one request, as its pure decisions need it. Without a chain everything passes."""

    def __init__(
        self,
        admission: Admission | None,
        actor: Actor,
        *,
        dry_run: bool,
        manager: str = "",
        now_s: float = 0.0,
    ) -> None:
        """`manager` owns the fields that webhooks change."""
        self._admission = admission
        self._actor = actor
        self._opened: Pass | None = None
        self._dry_run = dry_run
        self._manager = manager
        self._now_s = now_s

    def mutated(
        self,
        subject: Subject,
        value: JsonObject,
        live: JsonObject | None,
        *,
        is_managed: bool = False,
    ) -> tuple[JsonObject, tuple[str, ...]]:
        """Return the object as the chain wants it, and its warnings. `live` is None for a creation.

        Raises Denied, Invalid, Pending, WebhookFailed; ApiError when webhooks make another kind of object of it.
        """
        if self._admission is None or not self._is_seen(subject):
            return value, ()
        resource = subject.resource
        if resource.namespaced and not value["metadata"].get("namespace"):
            value = value | {"metadata": value["metadata"] | {"namespace": subject.namespace}}
        if self._admission.has_webhooks:
            # Others see defaults as if the client had sent them.
            value = with_defaults(value, resource=resource, subresource=subject.subresource)
        operation: Operation = "CREATE" if live is None else "UPDATE"
        outcome = self._pass.mutate(self._review(operation, subject, value, live))
        if outcome.object is None or outcome.object == value:
            return value, outcome.warnings
        new = conform(
            outcome.object,
            resource=resource,
            subresource=subject.subresource,
            field_validation=FieldValidation.IGNORE,
        ).object
        for key in ("name", "namespace", "uid"):
            if new["metadata"].get(key, "") != value["metadata"].get(key, ""):
                raise WebhookFailed(
                    f"webhooks changed metadata.{key} of {resource.qualified} {quoted(subject.name)}"
                )
        if is_managed:
            new = managed_fields.updated(
                value,
                new,
                resource=resource,
                manager=self._manager,
                now_s=self._now_s,
                subresource=subject.subresource,
            )
        return new, outcome.warnings

    def validated(
        self, subject: Subject, value: JsonObject, live: JsonObject | None
    ) -> tuple[str, ...]:
        """Return the warnings about an object as it is going to be stored. Raises as `mutated` does."""
        if not self._is_seen(subject):
            return ()
        operation: Operation = "CREATE" if live is None else "UPDATE"
        return self._pass.validate(self._review(operation, subject, value, live)).warnings

    def removed(self, subject: Subject, live: JsonObject) -> tuple[str, ...]:
        """Return the warnings about a deletion. Raises as `mutated` does."""
        if not self._is_seen(subject):
            return ()
        review = self._review("DELETE", subject, None, live)
        outcome: Outcome = self._pass.mutate(review)
        return outcome.warnings + self._pass.validate(review).warnings

    def _is_seen(self, subject: Subject) -> bool:
        """Return whether anything has a say about this write."""
        admission = self._admission
        return admission is not None and admission.looks_at(self._actor, subject.resource.group)

    @property
    def _pass(self) -> Pass:
        if self._opened is None:
            assert self._admission is not None
            self._opened = self._admission.open(self._actor)
        return self._opened

    def _review(
        self,
        operation: Operation,
        subject: Subject,
        value: JsonObject | None,
        live: JsonObject | None,
    ) -> Review:
        resource = subject.resource
        part = resource.subresource(subject.subresource)
        options: JsonObject = {"kind": _OPTIONS[operation], "apiVersion": "meta.k8s.io/v1"}
        if self._dry_run:
            options["dryRun"] = ["All"]
        if self._manager and operation != "DELETE":
            options["fieldManager"] = self._manager
        in_itself = not resource.group and resource.plural == "namespaces" and live is not None
        return Review(
            operation=operation,
            group=resource.group,
            version=resource.version,
            kind=resource.kind if part is None else part.kind,
            kind_group=None if part is None else part.group,
            resource=resource.plural,
            subresource=subject.subresource,
            namespace=subject.name if in_itself else subject.namespace,
            name=subject.name,
            object=value,
            old=live,
            dry_run=self._dry_run,
            options=options,
        )


async def admitted(decide: Callable[[], Awaitable[T]]) -> T:
    """Return what `decide` returns once webhooks have said what it needs. Raises ApiError for a refusal, WebhookFailed."""
    try:
        return await settled(decide)
    except Denied as error:
        raise _refusal(error) from error
    except Invalid as error:
        review = error.review
        faults = [FieldError(one.field, one.reason, one.message) for one in error.faults]
        raise status.invalid(review.kind, review.name, faults, group=review.group) from error


def _refusal(error: Denied) -> Refused:
    details: Details | None = None
    if error.details:
        try:
            details = msgspec.convert(dict(error.details), Details)
        except msgspec.ValidationError:
            details = None  # a webhook's own idea of details is not worth a failure
    found = Status(code=error.http_status, message=str(error), reason=error.reason, details=details)
    return Refused(found, warnings=error.warnings)
