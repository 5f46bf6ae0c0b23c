"""Messages of `authentication.k8s.io` and `authorization.k8s.io`: questions and their answers."""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.schema.types import Field, Message, field, message

_ALLOWED: Final = "authorization.v1.SubjectAccessReviewStatus"


def _spec(of: str, doc: str = "The question.") -> Field:
    return field("spec", 2, of, doc, required=True)


AUTHENTICATION: Final[tuple[Message, ...]] = (
    message(
        "authentication.v1.TokenReview", "Asks who a bearer token belongs to.",
        _spec("authentication.v1.TokenReviewSpec"),
        field("status", 3, "authentication.v1.TokenReviewStatus", "The answer."),
        is_kind=True,
    ),
    message(
        "authentication.v1.TokenReviewSpec", "A token to look at.",
        field("token", 1, "string", "The bearer token."),
        field("audiences", 2, "[string]", "Whom the token should be meant for; the API server if empty."),
    ),
    message(
        "authentication.v1.TokenReviewStatus", "What is known about a token.",
        field("authenticated", 1, "bool", "Whether the token is good."),
        field("user", 2, "authentication.v1.UserInfo", "Whose it is."),
        field("audiences", 4, "[string]", "Asked-for audiences the token is meant for."),
        field("error", 3, "string", "Why it could not be checked."),
    ),
    message(
        "authentication.v1.UserInfo", "A user as authentication found it.",
        field("username", 1, "string", "Name."),
        field("uid", 2, "string", "Identity that outlives the name."),
        field("groups", 3, "[string]", "Groups."),
        field("extra", 4, "{texts}", "What else the authenticator said."),
    ),
    message(
        "authentication.v1.SelfSubjectReview", "Asks who the asker is.",
        field("status", 2, "authentication.v1.SelfSubjectReviewStatus", "The answer."),
        is_kind=True,
    ),
    message(
        "authentication.v1.SelfSubjectReviewStatus", "Who the asker is.",
        field("userInfo", 1, "authentication.v1.UserInfo", "The asker."),
    ),
    message(
        "authentication.v1.TokenRequest", "Asks for a token of a service account.",
        _spec("authentication.v1.TokenRequestSpec"),
        field("status", 3, "authentication.v1.TokenRequestStatus", "The answer."),
        is_kind=True,
    ),
    message(
        "authentication.v1.TokenRequestSpec", "What the token should be like.",
        field("audiences", 1, "[string]", "Whom the token is meant for; the API server if empty.", required=True, keep=True),
        field("expirationSeconds", 4, "int64", "Seconds the token is good for, 600 or more.", pointer=True, keep=True, default=3600),
        field("boundObjectRef", 3, "authentication.v1.BoundObjectReference", "Object the token dies with.", pointer=True, keep=True),
    ),
    message(
        "authentication.v1.TokenRequestStatus", "A new token.",
        field("token", 1, "string", "The bearer token.", required=True, keep=True),
        field("expirationTimestamp", 2, "time", "When it expires.", required=True, keep=True),
    ),
    message(
        "authentication.v1.BoundObjectReference", "Object a token is bound to.",
        field("kind", 1, "string", "Pod, Secret or Node."),
        field("apiVersion", 2, "string", "API version of the object."),
        field("name", 3, "string", "Name of the object."),
        field("uid", 4, "string", "UID of the object."),
    ),
)  # fmt: skip

AUTHORIZATION: Final[tuple[Message, ...]] = (
    message(
        "authorization.v1.SubjectAccessReview", "Asks whether somebody may do something.",
        _spec("authorization.v1.SubjectAccessReviewSpec"),
        field("status", 3, _ALLOWED, "The answer."),
        is_kind=True,
    ),
    message(
        "authorization.v1.LocalSubjectAccessReview", "Asks whether somebody may do something in one namespace.",
        _spec("authorization.v1.SubjectAccessReviewSpec"),
        field("status", 3, _ALLOWED, "The answer."),
        is_kind=True,
    ),
    message(
        "authorization.v1.SelfSubjectAccessReview", "Asks whether the asker may do something.",
        _spec("authorization.v1.SelfSubjectAccessReviewSpec"),
        field("status", 3, _ALLOWED, "The answer."),
        is_kind=True,
    ),
    message(
        "authorization.v1.SubjectAccessReviewSpec", "Who and what; exactly one of the two attributes is given.",
        field("resourceAttributes", 1, "authorization.v1.ResourceAttributes", "The action on a resource.", pointer=True),
        field("nonResourceAttributes", 2, "authorization.v1.NonResourceAttributes", "The action on a path.", pointer=True),
        field("user", 3, "string", "Name of the user."),
        field("groups", 4, "[string]", "Groups of the user."),
        field("extra", 5, "{texts}", "What authentication said besides."),
        field("uid", 6, "string", "UID of the user."),
    ),
    message(
        "authorization.v1.SelfSubjectAccessReviewSpec", "What; exactly one of the two is given.",
        field("resourceAttributes", 1, "authorization.v1.ResourceAttributes", "The action on a resource.", pointer=True),
        field("nonResourceAttributes", 2, "authorization.v1.NonResourceAttributes", "The action on a path.", pointer=True),
    ),
    message(
        "authorization.v1.ResourceAttributes", "An action on a resource.",
        field("namespace", 1, "string", "Namespace; empty for all of them or for kinds without one."),
        field("verb", 2, "string", "Verb: get, list, create, …; * is all."),
        field("group", 3, "string", "API group; * is all."),
        field("version", 4, "string", "API version; * is all."),
        field("resource", 5, "string", "Resource, plural; * is all."),
        field("subresource", 6, "string", "Subresource."),
        field("name", 7, "string", "Name of the object; empty for all."),
        field("fieldSelector", 8, "authorization.v1.FieldSelectorAttributes", "Limits by fields.", pointer=True),
        field("labelSelector", 9, "authorization.v1.LabelSelectorAttributes", "Limits by labels.", pointer=True),
    ),
    message(
        "authorization.v1.FieldSelectorAttributes", "A field selector, as text or in parts.",
        field("rawSelector", 1, "string", "As text."),
        field("requirements", 2, "[meta.FieldSelectorRequirement]", "In parts."),
    ),
    message(
        "authorization.v1.LabelSelectorAttributes", "A label selector, as text or in parts.",
        field("rawSelector", 1, "string", "As text."),
        field("requirements", 2, "[meta.LabelSelectorRequirement]", "In parts."),
    ),
    message(
        "authorization.v1.NonResourceAttributes", "An action on a path.",
        field("path", 1, "string", "URL path."),
        field("verb", 2, "string", "HTTP method in lower case."),
    ),
    message(
        "authorization.v1.SubjectAccessReviewStatus", "Whether it is allowed.",
        field("allowed", 1, "bool", "Whether it is allowed.", required=True, keep=True),
        field("denied", 4, "bool", "Whether an authorizer refused it, so that nobody else was asked."),
        field("reason", 2, "string", "Why."),
        field("evaluationError", 3, "string", "What went wrong while deciding; the answer may hold all the same."),
    ),
    message(
        "authorization.v1.SelfSubjectRulesReview", "Asks what the asker may do in a namespace.",
        _spec("authorization.v1.SelfSubjectRulesReviewSpec"),
        field("status", 3, "authorization.v1.SubjectRulesReviewStatus", "The answer."),
        is_kind=True,
    ),
    message(
        "authorization.v1.SelfSubjectRulesReviewSpec", "Where.",
        field("namespace", 1, "string", "The namespace."),
    ),
    message(
        "authorization.v1.SubjectRulesReviewStatus", "What is allowed, as far as rules can say it.",
        field("resourceRules", 1, "[authorization.v1.ResourceRule]", "Rules for resources, in no order.", required=True, keep=True),
        field("nonResourceRules", 2, "[authorization.v1.NonResourceRule]", "Rules for paths, in no order.", required=True, keep=True),
        field("incomplete", 3, "bool", "Whether there may be more than the rules say.", required=True, keep=True),
        field("evaluationError", 4, "string", "What went wrong."),
    ),
    message(
        "authorization.v1.ResourceRule", "Verbs allowed on resources.",
        field("verbs", 1, "[string]", "Verbs.", required=True, keep=True),
        field("apiGroups", 2, "[string]", "API groups."),
        field("resources", 3, "[string]", "Resources."),
        field("resourceNames", 4, "[string]", "Names; empty is all."),
    ),
    message(
        "authorization.v1.NonResourceRule", "Verbs allowed on paths.",
        field("verbs", 1, "[string]", "Verbs.", required=True, keep=True),
        field("nonResourceURLs", 2, "[string]", "Paths."),
    ),
)  # fmt: skip
