"""The one table of resources: discovery, OpenAPI, routes and validation are made from it.

A `Catalog` is such a table with its indexes; `BUILT_IN` is the one this API serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

STORED: Final = (
    "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
)  # fmt: skip
"""Verbs of a resource whose objects are stored."""
READ_ONLY: Final = ("get", "list", "watch")
REVIEW: Final = ("create",)
"""Verbs of a question: it is answered, not stored."""
SUB_WRITE: Final = ("get", "patch", "update")

RBAC: Final = "rbac.authorization.k8s.io"
AUTHENTICATION: Final = "authentication.k8s.io"
AUTHORIZATION: Final = "authorization.k8s.io"
CERTIFICATES: Final = "certificates.k8s.io"
ADMISSION: Final = "admissionregistration.k8s.io"
COORDINATION: Final = "coordination.k8s.io"
DISCOVERY: Final = "discovery.waypost.io"


class Subresource(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an object under its own path: `serviceaccounts/NAME/token`."""

    name: str
    kind: str
    """Kind of its body; `group` and `version` are given where they differ from the parent's."""
    group: str | None = None
    version: str | None = None
    verbs: tuple[str, ...]


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One resource in one version."""

    group: str
    """Empty for the core group."""
    version: str = "v1"
    plural: str
    singular: str
    kind: str
    schema: str
    """Name of the message in `schema` that describes an object: `io.k8s.api.rbac.v1.Role`."""
    namespaced: bool
    verbs: tuple[str, ...] = STORED
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[Subresource, ...] = ()
    path_names: bool = False
    """Names may be anything that fits into a path (RBAC), instead of an RFC 1123 subdomain."""
    creates_on_update: bool = False
    """A PUT on a missing name creates it."""
    unconditional_update: bool = True
    """A PUT without resourceVersion overwrites; otherwise it is refused."""
    field_labels: tuple[str, ...] = ()
    """What a field selector may name besides metadata.name and metadata.namespace."""

    @property
    def group_version(self) -> str:
        """`v1`, `rbac.authorization.k8s.io/v1`: what objects carry as apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        """`RoleList`."""
        return self.kind + "List"

    @property
    def qualified(self) -> str:
        """`roles.rbac.authorization.k8s.io`, `secrets`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def stored(self) -> bool:
        """Whether there are objects of it to get and list."""
        return "list" in self.verbs

    def subresource(self, name: str) -> Subresource | None:
        """Return the subresource of that name, or None."""
        return next((one for one in self.subresources if one.name == name), None)

    def allows(self, verb: str, *, subresource: str = "") -> bool:
        """Tell whether the resource, or its subresource, knows `verb`; False for an unknown one."""
        if not subresource:
            return verb in self.verbs
        found = self.subresource(subresource)
        return found is not None and verb in found.verbs

    def list_path(self, *, namespace: str = "") -> str:
        """Return the URL path of the collection."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return (
            f"{root}/namespaces/{namespace}/{self.plural}" if namespace else f"{root}/{self.plural}"
        )


class Catalog:
    """Resources with their indexes; immutable. Groups and versions keep the order they were given in."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self.resources: Final = tuple(resources)
        self._by_plural: Final = {(r.group, r.version, r.plural): r for r in self.resources}
        self._by_kind: Final = {(r.group_version, r.kind): r for r in self.resources}

    def find(self, *, group: str, version: str, plural: str) -> Resource | None:
        """Return the resource of a URL, or None."""
        return self._by_plural.get((group, version, plural))

    def of_kind(self, *, api_version: str, kind: str) -> Resource | None:
        """Return the resource of a body's apiVersion and kind, or None."""
        return self._by_kind.get((api_version, kind))

    def groups(self) -> tuple[str, ...]:
        """Return the groups; the core group is the empty text."""
        return tuple(dict.fromkeys(one.group for one in self.resources))

    def versions(self, group: str) -> tuple[str, ...]:
        """Return the versions of a group, the preferred one first."""
        return tuple(dict.fromkeys(one.version for one in self.resources if one.group == group))

    def group_versions(self) -> tuple[tuple[str, str], ...]:
        """Return every (group, version)."""
        return tuple(dict.fromkeys((one.group, one.version) for one in self.resources))

    def of_group_version(self, group: str, version: str) -> tuple[Resource, ...]:
        """Return the resources of one group version; empty if there is no such one."""
        return tuple(r for r in self.resources if (r.group, r.version) == (group, version))

    def __iter__(self) -> Iterator[Resource]:
        return iter(self.resources)


def _core(
    plural: str, singular: str, kind: str, *, namespaced: bool = True, **more: object
) -> Resource:
    schema = f"io.k8s.api.core.v1.{kind}"
    found = Resource(
        group="", plural=plural, singular=singular, kind=kind, schema=schema, namespaced=namespaced
    )
    return msgspec.structs.replace(found, **more)


def _rbac(plural: str, kind: str, *, namespaced: bool) -> Resource:
    return Resource(
        group=RBAC,
        plural=plural,
        singular=kind.lower(),
        kind=kind,
        schema=f"io.k8s.api.rbac.v1.{kind}",
        namespaced=namespaced,
        path_names=True,
        creates_on_update=True,
    )


def _review(group: str, kind: str, *, namespaced: bool = False) -> Resource:
    area = group.partition(".")[0]
    return Resource(
        group=group,
        plural=kind.lower() + "s",
        singular=kind.lower(),
        kind=kind,
        schema=f"io.k8s.api.{area}.v1.{kind}",
        namespaced=namespaced,
        verbs=REVIEW,
    )


def _webhooks(kind: str) -> Resource:
    return Resource(
        group=ADMISSION,
        plural=kind.lower() + "s",
        singular=kind.lower(),
        kind=kind,
        schema=f"io.k8s.api.admissionregistration.v1.{kind}",
        namespaced=False,
        unconditional_update=False,
        categories=("api-extensions",),
    )


BUILT_IN: Final = Catalog(
    (
        _core("configmaps", "configmap", "ConfigMap", short_names=("cm",)),
        _core(
            "events", "event", "Event", short_names=("ev",), verbs=READ_ONLY,
            field_labels=(
                "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
                "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
                "reason", "reportingComponent", "source", "type",
            ),
        ),
        _core(
            "namespaces", "namespace", "Namespace", namespaced=False, short_names=("ns",),
            verbs=tuple(verb for verb in STORED if verb != "deletecollection"),
            subresources=(
                Subresource(name="finalize", kind="Namespace", verbs=("update",)),
                Subresource(name="status", kind="Namespace", verbs=SUB_WRITE),
            ),
            field_labels=("status.phase",),
        ),
        _core("secrets", "secret", "Secret", field_labels=("type",)),
        _core(
            "services", "service", "Service", short_names=("svc",), verbs=READ_ONLY,
            schema="io.k8s.api.catalog.v1.Service",  # only the part that the catalog can fill
        ),
        _core(
            "serviceaccounts", "serviceaccount", "ServiceAccount", short_names=("sa",),
            subresources=(
                Subresource(
                    name="token", kind="TokenRequest", group=AUTHENTICATION, version="v1", verbs=("create",)
                ),
            ),
        ),
        _webhooks("MutatingWebhookConfiguration"),
        _webhooks("ValidatingWebhookConfiguration"),
        _review(AUTHENTICATION, "SelfSubjectReview"),
        _review(AUTHENTICATION, "TokenReview"),
        _review(AUTHORIZATION, "LocalSubjectAccessReview", namespaced=True),
        _review(AUTHORIZATION, "SelfSubjectAccessReview"),
        _review(AUTHORIZATION, "SelfSubjectRulesReview"),
        _review(AUTHORIZATION, "SubjectAccessReview"),
        Resource(
            group=CERTIFICATES, plural="certificatesigningrequests", singular="certificatesigningrequest",
            kind="CertificateSigningRequest", schema="io.k8s.api.certificates.v1.CertificateSigningRequest",
            namespaced=False, short_names=("csr",),
            subresources=(
                Subresource(name="approval", kind="CertificateSigningRequest", verbs=SUB_WRITE),
                Subresource(name="status", kind="CertificateSigningRequest", verbs=SUB_WRITE),
            ),
            field_labels=("spec.signerName",),
        ),
        Resource(
            group=COORDINATION, plural="leases", singular="lease", kind="Lease",
            schema="io.k8s.api.coordination.v1.Lease", namespaced=True,
            creates_on_update=True, unconditional_update=False,
        ),
        _rbac("clusterrolebindings", "ClusterRoleBinding", namespaced=False),
        _rbac("clusterroles", "ClusterRole", namespaced=False),
        _rbac("rolebindings", "RoleBinding", namespaced=True),
        _rbac("roles", "Role", namespaced=True),
    )
)  # fmt: skip
"""Every resource of this API."""


def _asked(plural: str) -> Resource:
    singular = "query" if plural == "queries" else plural[:-1]
    return Resource(
        group=DISCOVERY,
        plural=plural,
        singular=singular,
        kind=singular.capitalize(),
        schema="",
        namespaced=False,
        verbs=(),
    )


ASKED: Final = Catalog(
    map(
        _asked,
        ("agents", "checks", "events", "nodes", "operators", "queries", "services", "sessions"),
    )
)
"""What the Consul API, DNS and the web interface ask the gate for. Nothing of it is served below `/apis` (hence no verbs), but
discovery names it, so that `kubectl create role --resource=services.discovery.waypost.io` knows what is meant."""
