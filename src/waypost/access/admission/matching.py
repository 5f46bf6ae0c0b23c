"""Which webhooks are asked about a change. Pure. Source: kube admissionregistration.k8s.io/v1, rules and selectors.

Every resource here is served in one version only, so `matchPolicy` Exact and Equivalent come to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from waypost.access.admission.configuration import Rule, Webhook
from waypost.access.admission.records import GROUP, JsonObject, Review
from waypost.access.authz.aggregation import selects
from waypost.access.authz.records import LabelSelector

NamespaceLabels = Callable[[str], Mapping[str, str]]
"""Returns the labels of a namespace, none for one that is not there."""

_NO_LABELS: Final[Mapping[str, str]] = {}


def is_asked(webhook: Webhook, review: Review, labels_of: NamespaceLabels) -> bool:
    """Return whether a webhook is to be asked about a change."""
    return (
        review.group != GROUP
        and any(covers(rule, review) for rule in webhook.rules)
        and _in_namespace(webhook.namespace_selector, review, labels_of)
        and _has_labels(webhook.object_selector, review)
    )


def covers(rule: Rule, review: Review) -> bool:
    """Return whether a rule is about a change."""
    return (
        _in(rule.operations, review.operation)
        and _in(rule.groups, review.group)
        and _in(rule.versions, review.version)
        and _scoped(rule.scope, review)
        and _covers_resource(rule.resources, review.resource, review.subresource)
    )


def _in(allowed: frozenset[str], value: str) -> bool:
    return "*" in allowed or value in allowed


def _scoped(scope: str, review: Review) -> bool:
    # A namespace is itself of the cluster, although its requests carry its name as namespace.
    namespaced = bool(review.namespace) and not _is_namespace(review)
    return scope == "*" or (scope == "Namespaced") == namespaced


def _covers_resource(patterns: frozenset[str], resource: str, subresource: str) -> bool:
    if "*/*" in patterns:
        return True
    if not subresource:
        return "*" in patterns or resource in patterns
    return not patterns.isdisjoint(
        (f"{resource}/{subresource}", f"{resource}/*", f"*/{subresource}")
    )


def _is_namespace(review: Review) -> bool:
    return not review.group and review.resource == "namespaces"


def _in_namespace(selector: LabelSelector, review: Review, labels_of: NamespaceLabels) -> bool:
    if _is_empty(selector):
        return True
    if _is_namespace(review):
        labels = labels_in(review.object if review.operation != "DELETE" else review.old)
        return selects(selector, labels)
    # What is of no namespace cannot be left out by one.
    return not review.namespace or selects(selector, labels_of(review.namespace))


def _has_labels(selector: LabelSelector, review: Review) -> bool:
    if _is_empty(selector):
        return True
    return any(
        selects(selector, labels_in(one)) for one in (review.object, review.old) if one is not None
    )


def _is_empty(selector: LabelSelector) -> bool:
    return not selector.match_labels and not selector.match_expressions


def labels_in(document: JsonObject | None) -> Mapping[str, str]:
    """Return the labels of a document."""
    metadata: Mapping[str, Any] = (document or {}).get("metadata") or {}
    return metadata.get("labels") or _NO_LABELS
