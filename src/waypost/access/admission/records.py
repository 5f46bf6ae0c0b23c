"""What admission decides about, and how it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from waypost.access.authz.text import forbidden_object
from waypost.base.errors import Forbidden, Malformed, Rejected

JsonObject = dict[str, Any]
"""A JSON object: what is stored, and what a webhook sees and patches."""

Operation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]

GROUP: Final = "admissionregistration.k8s.io"
"""API group of the webhooks' configurations."""


class Review(msgspec.Struct, frozen=True, kw_only=True):
    """One change that is about to happen. Source: kube admission.k8s.io/v1 AdmissionRequest."""

    operation: Operation
    group: str
    """API group, empty for the core group."""
    version: str
    kind: str
    kind_group: str | None = None
    """API group of the kind where that is not the resource's, as for the tokens of a service account."""
    resource: str
    """Plural, lower case."""
    subresource: str = ""
    namespace: str = ""
    """Empty for what is of no namespace."""
    name: str = ""
    object: JsonObject | None = None
    """What there will be; None for a deletion."""
    old: JsonObject | None = None
    """What there is; None for a creation."""
    dry_run: bool = False
    options: JsonObject | None = None
    """CreateOptions, UpdateOptions or DeleteOptions as the client sent them."""


class Fault(msgspec.Struct, frozen=True):
    """One field that must not be as it is."""

    field: str
    """Where: `webhooks[0].clientConfig.url`."""
    reason: str
    """`FieldValueInvalid`, `FieldValueRequired`, …"""
    message: str


class Denied(Forbidden):
    """Admission says no. Surfaces of the kube-style API answer `http_status`, others what Forbidden means to them."""

    code = "admission_denied"

    def __init__(
        self,
        text: str,
        *,
        http_status: int = 403,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        super().__init__(text)
        self.http_status = http_status
        self.reason = reason
        """One word for programs, as the webhook gave it: `Forbidden`, `Invalid`, …"""
        self.details = details
        """`details` of the webhook's Status, as it sent them."""
        self.warnings = warnings
        """What the webhook wants the client to read as well."""


class Invalid(Malformed):
    """The object breaks rules of admission; every fault is named."""

    code = "admission_invalid"

    def __init__(self, review: Review, faults: tuple[Fault, ...]) -> None:
        texts = [f"{one.field}: {one.message}" for one in faults]
        shown = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
        super().__init__(f'{review.kind}.{review.group} "{review.name}" is invalid: {shown}')
        self.review = review
        self.faults = faults


class WebhookFailed(Rejected):
    """A webhook that must agree could not be asked, or its answer cannot be used."""

    code = "admission_webhook_failed"


def refused(review: Review, detail: str) -> Denied:
    """Return the 403 of a built-in rule: `services.discovery.waypost.io "web" is forbidden: DETAIL`."""
    text = forbidden_object(review.resource, review.group, review.name, detail)
    return Denied(text, reason="Forbidden", details=_details(review))


def _details(review: Review) -> dict[str, str]:
    found = {"name": review.name, "group": review.group, "kind": review.resource}
    return {key: value for key, value in found.items() if value}
