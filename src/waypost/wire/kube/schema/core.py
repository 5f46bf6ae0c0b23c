"""Messages of the core group."""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.schema.types import Message, field, message

MESSAGES: Final[tuple[Message, ...]] = (
    message(
        "core.v1.Namespace", "A scope for names; deleting it deletes what lies in it.",
        field("spec", 2, "core.v1.NamespaceSpec", "Desired state."),
        field("status", 3, "core.v1.NamespaceStatus", "Observed state; set by the server."),
        is_kind=True,
    ),
    message(
        "core.v1.NamespaceSpec", "Desired state of a namespace.",
        field("finalizers", 1, "[string]", "Who must be done before a deleted namespace goes."),
    ),
    message(
        "core.v1.NamespaceStatus", "Observed state of a namespace.",
        field("phase", 1, "string", "Active, or Terminating while it is being deleted.", enum=("Active", "Terminating")),
        field("conditions", 2, "[core.v1.NamespaceCondition]", "How far a deletion has come.", merge_key="type"),
    ),
    message(
        "core.v1.NamespaceCondition", "One observation about a namespace.",
        field("type", 1, "string", "What is observed.", required=True, keep=True),
        field("status", 2, "string", "True, False or Unknown.", required=True, keep=True),
        field("lastTransitionTime", 4, "time", "When status last changed."),
        field("reason", 5, "string", "One word for programs."),
        field("message", 6, "string", "Text for people."),
    ),
    message(
        "core.v1.ServiceAccount", "An identity for programs: `system:serviceaccount:NAMESPACE:NAME`.",
        field("secrets", 2, "[core.v1.ObjectReference]", "Secrets that belong to the account.", merge_key="name"),
        field("imagePullSecrets", 3, "[core.v1.LocalObjectReference]", "Secrets for pulling images.", merge_key="name", list_type="atomic"),
        field("automountServiceAccountToken", 4, "bool", "Whether programs get a token without asking.", pointer=True),
        is_kind=True,
    ),
    message(
        "core.v1.ObjectReference", "Names another object.",
        field("kind", 1, "string", "Kind of the object."),
        field("namespace", 2, "string", "Namespace of the object."),
        field("name", 3, "string", "Name of the object."),
        field("uid", 4, "string", "UID of the object."),
        field("apiVersion", 5, "string", "API version of the object."),
        field("resourceVersion", 6, "string", "Revision that is meant."),
        field("fieldPath", 7, "string", "Part of the object that is meant."),
        atomic=True,
    ),
    message(
        "core.v1.LocalObjectReference", "Names an object in the same namespace.",
        field("name", 1, "string", "Name of the object."),
        atomic=True,
    ),
    message(
        "core.v1.Secret", "Values that must not be seen by everybody.",
        field("immutable", 5, "bool", "Whether the data can no longer be changed.", pointer=True),
        field("data", 2, "{bytes}", "Values by key, base64-encoded."),
        field("stringData", 4, "{string}", "Values as plain text, for writing only; they go into data."),
        field("type", 3, "string", "What the secret is for; Opaque if nothing is said.", default="Opaque"),
        is_kind=True,
    ),
    message(
        "core.v1.ConfigMap", "Values for configuration.",
        field("immutable", 4, "bool", "Whether the data can no longer be changed.", pointer=True),
        field("data", 2, "{string}", "Texts by key."),
        field("binaryData", 3, "{bytes}", "Other values by key, base64-encoded; keys differ from those of data."),
        is_kind=True,
    ),
    message(
        "core.v1.Event", "A report of something that happened to an object.",
        field("involvedObject", 2, "core.v1.ObjectReference", "Object it happened to.", required=True),
        field("reason", 3, "string", "One word for programs."),
        field("message", 4, "string", "Text for people."),
        field("source", 5, "core.v1.EventSource", "Who reports."),
        field("firstTimestamp", 6, "time", "First time it was seen."),
        field("lastTimestamp", 7, "time", "Last time it was seen."),
        field("count", 8, "int32", "How often it was seen."),
        field("type", 9, "string", "Normal or Warning."),
        field("eventTime", 10, "microtime", "When it happened."),
        field("series", 11, "core.v1.EventSeries", "Repetitions.", pointer=True),
        field("action", 12, "string", "What was done."),
        field("related", 13, "core.v1.ObjectReference", "A second object.", pointer=True),
        field("reportingComponent", 14, "string", "Program that reports."),
        field("reportingInstance", 15, "string", "Which instance of it."),
        is_kind=True,
    ),
    message(
        "catalog.v1.Service", "A service of the catalog.",
        field("spec", 2, "catalog.v1.ServiceSpec", "How it is reached."),
        field("status", 3, "catalog.v1.ServiceStatus", "Observed state."),
        is_kind=True,
    ),
    message(
        "catalog.v1.ServiceSpec", "How a service is reached.",
        field("ports", 1, "[catalog.v1.ServicePort]", "Ports of its instances.", merge_key="port"),
        field("clusterIP", 3, "string", "None: its instances are found through DNS."),
        field("type", 4, "string", "ClusterIP."),
    ),
    message(
        "catalog.v1.ServicePort", "A port.",
        field("name", 1, "string", "Name of the port."),
        field("protocol", 2, "string", "TCP or UDP."),
        field("port", 3, "int32", "Its number.", required=True, keep=True),
    ),
    message("catalog.v1.ServiceStatus", "Observed state of a service; nothing here."),
    message(
        "core.v1.EventSource", "Who reports an event.",
        field("component", 1, "string", "Program."),
        field("host", 2, "string", "Machine."),
    ),
    message(
        "core.v1.EventSeries", "Repetitions of an event.",
        field("count", 1, "int32", "How many so far."),
        field("lastObservedTime", 2, "microtime", "The last one."),
    ),
)  # fmt: skip
