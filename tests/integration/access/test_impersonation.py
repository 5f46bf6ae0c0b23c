"""Acting as somebody else on endpoints of Consul's API: allowed as on the kube-style one, never ignored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .api import Api, certificate_of
from .conftest import Protected

BOB = [("Impersonate-User", "bob"), ("Impersonate-Group", "readers")]
GROUP = "rbac.authorization.k8s.io"


@pytest.fixture(scope="module")
def admin(agent: Protected) -> Iterator[Api]:
    pair = certificate_of(agent.process.data / "admin.conf", agent.folder)
    with Api(agent.https, certificate=pair) as api:
        assert api.ask("PUT", "/v1/kv/app/a", b"x").status == 200
        rules = [{"nonResourceURLs": ["/v1/kv/app/*"], "verbs": ["get"]}]
        api.create({"kind": "ClusterRole", "metadata": {"name": "readers"}, "rules": rules})
        api.create(
            {
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "readers"},
                "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "readers"},
                "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": "readers"}],
            }
        )
        yield api


def test_an_administrator_sees_what_another_sees(admin: Api) -> None:
    found = admin.ask("GET", "/v1/waypost/auth/whoami", headers=BOB).json
    assert (found["user"], found["groups"]) == ("bob", ["readers", "system:authenticated"])
    assert admin.ask("GET", "/v1/kv/app/a?raw", headers=BOB).text == "x"
    for method, target in (("PUT", "/v1/kv/app/a"), ("GET", "/v1/kv/b"), ("GET", "/v1/agent/self")):
        refused = admin.ask(method, target, b"y" if method == "PUT" else None, headers=BOB)
        assert refused.status == 403
        assert refused.text.startswith('Forbidden: User "bob" cannot ')
    assert admin.ask("GET", "/v1/kv/app/a?raw").text == "x"


def test_both_are_in_the_audit_log(agent: Protected, admin: Api) -> None:
    answer = admin.ask("PUT", "/v1/kv/app/a", b"y", headers=BOB)
    event = agent.event(answer.headers["audit-id"])
    assert event["user"]["username"] == "kubernetes-admin"
    assert event["impersonatedUser"]["username"] == "bob"
    assert event["responseStatus"]["code"] == 403


def test_who_may_not_is_refused_even_what_he_may_himself(agent: Protected, admin: Api) -> None:
    del admin
    with Api(agent.https, token="token-of-web") as web:
        assert web.ask("GET", "/v1/catalog/services").status == 200
        for fields, kind, name in (
            (BOB, "users", "bob"),
            ([("Impersonate-User", "system:serviceaccount:a:b")], "serviceaccounts", "b"),
            ([("impersonate-user", "web-team")], "users", "web-team"),
        ):
            for target in ("/v1/catalog/services", "/v1/kv/app/a", "/v1/nothing", "/ui/"):
                refused = web.ask("GET", target, headers=fields)
                assert refused.status == 403
                assert refused.text == (
                    f'Forbidden: User "web-team" cannot impersonate resource "{kind}" "{name}" in API group ""'
                )
    with Api(agent.process.http, is_tls=False) as nobody:
        refused = nobody.ask("GET", "/v1/catalog/services", headers=BOB)
        assert refused.status == 403
        assert 'User "system:anonymous" cannot impersonate' in refused.text


def test_fields_without_a_user(admin: Api) -> None:
    for field in ("Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-Scopes"):
        answer = admin.ask("GET", "/v1/kv/app/a", headers=[(field, "x")])
        assert answer.status == 400
        assert answer.text.endswith("without impersonating a user")
    # An empty name asks for nobody.
    found = admin.ask("GET", "/v1/waypost/auth/whoami", headers=[("Impersonate-User", "")]).json
    assert found["user"] == "kubernetes-admin"
