"""The discovery documents, made from a catalog of resources: `/api`, `/apis`, `/apis/GROUP/VERSION`.

Two forms: the plain lists every client knows, and the aggregated one (`apidiscovery.k8s.io/v2`) that
answers all of it in two requests. Source: Kubernetes API concepts, "Discovery API".
"""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.resources import BUILT_IN, Catalog, Resource
from waypost.wire.kube.values import JsonObject

AGGREGATED: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
"""Content-Type of an aggregated document; its parameters are how the client knows."""


def api_versions(*, server_address: str, catalog: Catalog = BUILT_IN) -> JsonObject:
    """Return `/api`; `server_address` is `host:port`."""
    return {
        "kind": "APIVersions",
        "versions": list(catalog.versions("")),
        "serverAddressByClientCIDRs": [
            {"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}
        ],
    }


def api_groups(*, catalog: Catalog = BUILT_IN) -> JsonObject:
    """Return `/apis`."""
    groups = [_group(name, catalog) for name in catalog.groups() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def api_group(name: str, *, catalog: Catalog = BUILT_IN) -> JsonObject | None:
    """Return `/apis/GROUP`, or None if there is no such group."""
    if not name or name not in catalog.groups():
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, catalog)}


def _group(name: str, catalog: Catalog) -> JsonObject:
    versions = [
        {"groupVersion": f"{name}/{version}", "version": version}
        for version in catalog.versions(name)
    ]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def api_resources(group: str, version: str, *, catalog: Catalog = BUILT_IN) -> JsonObject | None:
    """Return `/api/v1` or `/apis/GROUP/VERSION`, or None if it is not served."""
    found = catalog.of_group_version(group, version)
    if not found:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": found[0].group_version,
        "resources": [entry for one in found for entry in _plain(one)],
    }


def _plain(resource: Resource) -> list[JsonObject]:
    entry: JsonObject = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    entries = [entry]
    for sub in resource.subresources:
        entry = {
            "name": f"{resource.plural}/{sub.name}",
            "singularName": "",
            "namespaced": resource.namespaced,
        }
        if sub.group is not None:
            entry["group"] = sub.group
        if sub.version is not None:
            entry["version"] = sub.version
        entries.append(entry | {"kind": sub.kind, "verbs": list(sub.verbs)})
    return entries


def aggregated(*, core: bool, catalog: Catalog = BUILT_IN) -> JsonObject:
    """Return the aggregated `/api` (`core`) or `/apis`."""
    names = [""] if core else [name for name in catalog.groups() if name]
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [_aggregated_group(name, catalog) for name in names],
    }


def _aggregated_group(name: str, catalog: Catalog) -> JsonObject:
    metadata: JsonObject = {"name": name} if name else {}
    return {
        "metadata": metadata | {"creationTimestamp": None},
        "versions": [
            {
                "version": version,
                "resources": [_aggregated(one) for one in catalog.of_group_version(name, version)],
                "freshness": "Current",
            }
            for version in catalog.versions(name)
        ],
    }


def _aggregated(resource: Resource) -> JsonObject:
    entry: JsonObject = {
        "resource": resource.plural,
        "responseKind": {"group": "", "version": "", "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    if resource.subresources:
        entry["subresources"] = [
            {
                "subresource": sub.name,
                "responseKind": {
                    "group": sub.group or "",
                    "version": sub.version or "",
                    "kind": sub.kind,
                },
                "verbs": list(sub.verbs),
            }
            for sub in resource.subresources
        ]
    return entry
