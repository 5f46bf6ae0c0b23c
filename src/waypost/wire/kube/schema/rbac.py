"""Messages of `rbac.authorization.k8s.io`."""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.schema.types import Message, field, message

_RULES_DOC: Final = "What is allowed; there are no rules that forbid."
_SUBJECTS_DOC: Final = "Who gets the rules of the role."

MESSAGES: Final[tuple[Message, ...]] = (
    message(
        "rbac.v1.Role", "Rules that a RoleBinding in the same namespace can give to subjects.",
        field("rules", 2, "[rbac.v1.PolicyRule]", _RULES_DOC, keep=True),
        is_kind=True,
    ),
    message(
        "rbac.v1.ClusterRole", "Rules that bindings anywhere can give to subjects.",
        field("rules", 2, "[rbac.v1.PolicyRule]", _RULES_DOC, keep=True),
        field("aggregationRule", 3, "rbac.v1.AggregationRule", "Where the rules come from; the server then overwrites them.", pointer=True),
        is_kind=True,
    ),
    message(
        "rbac.v1.AggregationRule", "Which ClusterRoles are put together into one.",
        field("clusterRoleSelectors", 1, "[meta.LabelSelector]", "A ClusterRole that fits any of them is taken in."),
    ),
    message(
        "rbac.v1.PolicyRule", "Allows verbs on resources, or on paths that are no resources.",
        field("verbs", 1, "[string]", "Verbs: get, list, watch, create, update, patch, delete, deletecollection, …; * is every verb.", required=True, keep=True),
        field("apiGroups", 2, "[string]", "API groups of the resources; the empty text is the core group, * every group."),
        field("resources", 3, "[string]", "Resources and subresources: pods, pods/log, */scale; * is every one."),
        field("resourceNames", 4, "[string]", "Objects the rule is limited to; empty means all."),
        field("nonResourceURLs", 5, "[string]", "Paths such as /healthz or /metrics/*; only in a ClusterRole bound cluster-wide."),
    ),
    message(
        "rbac.v1.RoleBinding", "Gives the rules of a role to subjects within one namespace.",
        field("subjects", 2, "[rbac.v1.Subject]", _SUBJECTS_DOC),
        field("roleRef", 3, "rbac.v1.RoleRef", "Role in this namespace, or ClusterRole; cannot be changed.", required=True),
        is_kind=True,
    ),
    message(
        "rbac.v1.ClusterRoleBinding", "Gives the rules of a ClusterRole to subjects everywhere.",
        field("subjects", 2, "[rbac.v1.Subject]", _SUBJECTS_DOC),
        field("roleRef", 3, "rbac.v1.RoleRef", "The ClusterRole; cannot be changed.", required=True),
        is_kind=True,
    ),
    message(
        "rbac.v1.Subject", "A user, a group or a service account.",
        field("kind", 1, "string", "User, Group or ServiceAccount.", required=True, keep=True),
        field("apiGroup", 2, "string", "rbac.authorization.k8s.io for users and groups, empty for service accounts."),
        field("name", 3, "string", "Name of the subject.", required=True, keep=True),
        field("namespace", 4, "string", "Namespace of a service account."),
        atomic=True,
    ),
    message(
        "rbac.v1.RoleRef", "Names the role of a binding.",
        field("apiGroup", 1, "string", "rbac.authorization.k8s.io.", keep=True, default="rbac.authorization.k8s.io"),
        field("kind", 2, "string", "Role or ClusterRole.", required=True, keep=True),
        field("name", 3, "string", "Name of the role.", required=True, keep=True),
    ),
)  # fmt: skip
