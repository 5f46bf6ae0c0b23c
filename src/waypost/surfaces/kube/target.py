"""From a URL path to what it addresses. Authorization parses the same parts (`access.authz.attributes`)."""

from __future__ import annotations

import msgspec

from waypost.wire.kube.resources import Catalog, Resource
from waypost.wire.kube.status import method_not_allowed, no_such_resource

_OWN_SUBRESOURCES = ("status", "finalize")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An addressed collection, object or subresource."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def parse_target(path: str, *, catalog: Catalog) -> Target:
    """Return what a decoded resource path addresses. Raises ApiError 404."""
    parts = path.strip("/").split("/")
    group, version, rest = (
        ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
    )
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in _OWN_SUBRESOURCES:
        namespace, rest = rest[1], rest[2:]
    resource = catalog.find(group=group, version=version, plural=rest[0])
    if resource is None or len(rest) > 3 or not all(rest):
        raise no_such_resource()
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if namespace and not resource.namespaced:
        raise no_such_resource()
    if resource.namespaced and not namespace and name:
        raise no_such_resource()
    if subresource and resource.subresource(subresource) is None:
        raise no_such_resource()
    return Target(resource=resource, namespace=namespace, name=name, subresource=subresource)


_NAMED = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_COLLECTION = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


def verb_of(target: Target, method: str) -> str:
    """Return the verb of a method here; `watch` is told apart from `list` by the query. Raises ApiError 405."""
    if target.subresource and method == "POST":
        verb = "create"
    else:
        verb = (_NAMED if target.name else _COLLECTION).get(method, "")
    everywhere = target.resource.namespaced and not target.namespace
    if not verb or (everywhere and verb != "list" and target.resource.stored):
        raise method_not_allowed()
    if not target.resource.allows(verb, subresource=target.subresource):
        raise method_not_allowed()
    if everywhere and verb == "create":
        raise method_not_allowed()
    return verb
