"""Messages of `admissionregistration.k8s.io`."""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.schema.types import Field, Message, field, message


def _webhook(kind: str, *more: Field, object_selector: int, conditions: int) -> Message:
    return message(
        f"admissionregistration.v1.{kind}", "One webhook and the requests it is asked about.",
        field("name", 1, "string", "Name in full: imagepolicy.example.com.", required=True, keep=True),
        field("clientConfig", 2, "admissionregistration.v1.WebhookClientConfig", "How to reach it.", required=True),
        field("rules", 3, "[admissionregistration.v1.RuleWithOperations]", "Requests it is asked about."),
        field("failurePolicy", 4, "string", "What counts when it cannot be asked: Fail or Ignore.", pointer=True, default="Fail", enum=("Fail", "Ignore")),
        field("matchPolicy", 9, "string", "Whether rules cover other versions of the same resource: Exact or Equivalent.", pointer=True, default="Equivalent", enum=("Equivalent", "Exact")),
        field("namespaceSelector", 5, "meta.LabelSelector", "Namespaces it is asked about.", pointer=True),
        field("objectSelector", object_selector, "meta.LabelSelector", "Objects it is asked about.", pointer=True),
        field("sideEffects", 6, "string", "Whether asking changes anything: None or NoneOnDryRun.", required=True, pointer=True, keep=True, enum=("None", "NoneOnDryRun")),
        field("timeoutSeconds", 7, "int32", "Seconds to wait, 1 to 30.", pointer=True, default=10),
        field("admissionReviewVersions", 8, "[string]", "Versions of AdmissionReview it understands, best first.", required=True, keep=True),
        *more,
        field("matchConditions", conditions, "[admissionregistration.v1.MatchCondition]", "Expressions that must all be true.", merge_key="name"),
    )  # fmt: skip


def _configuration(kind: str) -> Message:
    webhook = kind.removesuffix("Configuration")
    return message(
        f"admissionregistration.v1.{kind}", "Webhooks that look at requests before they are stored.",
        field("webhooks", 2, f"[admissionregistration.v1.{webhook}]", "The webhooks.", merge_key="name"),
        is_kind=True,
    )  # fmt: skip


MESSAGES: Final[tuple[Message, ...]] = (
    _configuration("MutatingWebhookConfiguration"),
    _configuration("ValidatingWebhookConfiguration"),
    _webhook(
        "MutatingWebhook",
        field("reinvocationPolicy", 10, "string", "Whether it is asked again after others changed the object: Never or IfNeeded.", pointer=True, default="Never", enum=("IfNeeded", "Never")),
        object_selector=11, conditions=12,
    ),
    _webhook("ValidatingWebhook", object_selector=10, conditions=11),
    message(
        "admissionregistration.v1.WebhookClientConfig", "How to reach a webhook: url or service.",
        field("url", 3, "string", "https://HOST:PORT/PATH.", pointer=True),
        field("service", 1, "admissionregistration.v1.ServiceReference", "A service of this catalog.", pointer=True),
        field("caBundle", 2, "bytes", "PEM certificates to check the webhook's against; the system's if empty."),
    ),
    message(
        "admissionregistration.v1.ServiceReference", "A service that answers a webhook.",
        field("namespace", 1, "string", "Namespace of the service.", required=True, keep=True),
        field("name", 2, "string", "Name of the service.", required=True, keep=True),
        field("path", 3, "string", "URL path.", pointer=True),
        field("port", 4, "int32", "Port, 443 if nothing is said.", pointer=True, default=443),
    ),
    message(
        "admissionregistration.v1.RuleWithOperations", "Operations on resources.",
        field("operations", 1, "[string]", "CREATE, UPDATE, DELETE, CONNECT or *."),
        field("rule", 2, "admissionregistration.v1.Rule", "The resources.", inline=True),
    ),
    message(
        "admissionregistration.v1.Rule", "Resources.",
        field("apiGroups", 1, "[string]", "API groups; * is all."),
        field("apiVersions", 2, "[string]", "API versions; * is all."),
        field("resources", 3, "[string]", "Resources: pods, pods/log, */*; * is all without subresources."),
        field("scope", 4, "string", "Cluster, Namespaced or *.", pointer=True, default="*", enum=("*", "Cluster", "Namespaced")),
    ),
    message(
        "admissionregistration.v1.MatchCondition", "An expression a request must fulfil.",
        field("name", 1, "string", "Name of the condition.", required=True, keep=True),
        field("expression", 2, "string", "The expression (CEL).", required=True, keep=True),
    ),
)  # fmt: skip
