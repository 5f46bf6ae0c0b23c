"""Admission: mutating, then validating; built in and by webhook. See `chain`."""

from waypost.access.admission.chain import (
    Admission,
    Plugin,
    service_addresses,
)
from waypost.access.admission.passing import Outcome, Pass, Pending, settled
from waypost.access.admission.records import Denied, Fault, Invalid, Review, WebhookFailed
from waypost.access.admission.rules import Limits
from waypost.access.admission.webhook import WebhookClient

__all__ = [
    "Admission",
    "Denied",
    "Fault",
    "Invalid",
    "Limits",
    "Outcome",
    "Pass",
    "Pending",
    "Plugin",
    "Review",
    "WebhookClient",
    "WebhookFailed",
    "service_addresses",
    "settled",
]
