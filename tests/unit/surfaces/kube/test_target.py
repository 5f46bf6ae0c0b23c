"""What a path addresses, and which verb a method is there."""

from __future__ import annotations

import pytest

from waypost.surfaces.kube.target import parse_target, verb_of
from waypost.wire.kube.resources import BUILT_IN
from waypost.wire.kube.status import ApiError

RBAC = "/apis/rbac.authorization.k8s.io/v1"


def parsed(path):
    target = parse_target(path, catalog=BUILT_IN)
    return target.resource.plural, target.namespace, target.name, target.subresource


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/namespaces", ("namespaces", "", "", "")),
        ("/api/v1/namespaces/", ("namespaces", "", "", "")),
        ("/api/v1/namespaces/n1", ("namespaces", "", "n1", "")),
        ("/api/v1/namespaces/n1/status", ("namespaces", "", "n1", "status")),
        ("/api/v1/namespaces/n1/finalize", ("namespaces", "", "n1", "finalize")),
        ("/api/v1/secrets", ("secrets", "", "", "")),
        ("/api/v1/namespaces/n1/secrets", ("secrets", "n1", "", "")),
        ("/api/v1/namespaces/n1/secrets/s", ("secrets", "n1", "s", "")),
        ("/api/v1/namespaces/n1/serviceaccounts/a/token", ("serviceaccounts", "n1", "a", "token")),
        (f"{RBAC}/clusterroles/system:node", ("clusterroles", "", "system:node", "")),
        (f"{RBAC}/namespaces/n1/roles/r", ("roles", "n1", "r", "")),
    ],
)
def test_path(path, expected):
    assert parsed(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/foos",
        "/api/v2/secrets",
        f"{RBAC}/namespaces/n1/clusterroles",
        f"{RBAC}/roles/r",
        "/api/v1/namespaces/n1/secrets/s/log",
        "/api/v1/namespaces/n1/secrets/a/b/c",
        "/api/v1/namespaces/n1/secrets//x",
    ],
)
def test_nothing_there(path):
    with pytest.raises(ApiError) as caught:
        parsed(path)
    assert caught.value.status.code == 404


@pytest.mark.parametrize(
    ("method", "path", "verb"),
    [
        ("GET", f"{RBAC}/roles", "list"),
        ("GET", f"{RBAC}/clusterroles/a", "get"),
        ("POST", f"{RBAC}/clusterroles", "create"),
        ("PUT", f"{RBAC}/clusterroles/a", "update"),
        ("PATCH", f"{RBAC}/clusterroles/a", "patch"),
        ("DELETE", f"{RBAC}/clusterroles/a", "delete"),
        ("DELETE", f"{RBAC}/clusterroles", "deletecollection"),
        ("POST", "/api/v1/namespaces/n1/serviceaccounts/a/token", "create"),
        ("PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval", "update"),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "create"),
        ("POST", "/apis/authorization.k8s.io/v1/namespaces/n/localsubjectaccessreviews", "create"),
    ],
)
def test_verb(method, path, verb):
    assert verb_of(parse_target(path, catalog=BUILT_IN), method) == verb


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{RBAC}/clusterroles/a"),
        ("PUT", f"{RBAC}/clusterroles"),
        ("POST", f"{RBAC}/roles"),
        ("DELETE", f"{RBAC}/roles"),
        ("DELETE", "/api/v1/namespaces"),
        ("GET", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
        ("GET", "/api/v1/namespaces/n1/serviceaccounts/a/token"),
        ("POST", "/apis/authorization.k8s.io/v1/localsubjectaccessreviews"),
        ("FOO", f"{RBAC}/clusterroles"),
    ],
)
def test_method_not_allowed(method, path):
    with pytest.raises(ApiError) as caught:
        verb_of(parse_target(path, catalog=BUILT_IN), method)
    assert caught.value.status.code == 405
