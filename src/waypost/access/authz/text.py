"""The exact words of a kube-apiserver: quoting, aggregated errors and what a 403 says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from waypost.access.gate import Attributes
from waypost.base.quoting import quoted


def quoted_list(texts: Iterable[str]) -> str:
    """Return a list of strings as Go's `%q` prints it: `["a" "b"]`."""
    return "[" + " ".join(map(quoted, texts)) + "]"


def aggregate(errors: Sequence[str]) -> str:
    """Return several errors as one text: alone as it is, else `[e1, e2]`, each once."""
    distinct = list(dict.fromkeys(errors))
    return distinct[0] if len(distinct) == 1 else "[" + ", ".join(distinct) + "]"


def qualified(resource: str, group: str) -> str:
    """Return `clusterroles.rbac.authorization.k8s.io`, or just `pods` for the core group."""
    return f"{resource}.{group}" if group else resource


def action(attributes: Attributes) -> str:
    """Return what is asked in words: `list resource "pods" in API group "" at the cluster scope`."""
    if attributes.path:
        return f"{attributes.verb} path {quoted(attributes.path)}"
    resource = attributes.resource
    if attributes.subresource:
        resource += "/" + attributes.subresource
    where = (
        f"in the namespace {quoted(attributes.namespace)}"
        if attributes.namespace
        else "at the cluster scope"
    )
    group = quoted(attributes.group)
    return f"{attributes.verb} resource {quoted(resource)} in API group {group} {where}"


def forbidden(user: str, attributes: Attributes, reason: str = "") -> str:
    """Return the message of the 403 that refuses a request. Source: recorded answers of kube-apiserver 1.20."""
    detail = f"User {quoted(user)} cannot {action(attributes)}"
    if reason:
        detail += ": " + reason
    if attributes.path:
        return "forbidden: " + detail
    return forbidden_object(attributes.resource, attributes.group, attributes.name, detail)


def forbidden_object(resource: str, group: str, name: str, detail: str) -> str:
    """Return the message of a 403 about one object or, without a name, about its resource."""
    named = f" {quoted(name)}" if name else ""
    return f"{qualified(resource, group)}{named} is forbidden: {detail}"
