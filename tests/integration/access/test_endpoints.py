"""Every row of docs/reference/attributes.md, sent to a real agent: who may nothing is refused with exactly what the row says, who may
exactly that is let through, and who may it for another name is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from .api import Api, certificate_of
from .conftest import ROOT, Protected

TOKENS = """\
token-of-bob,bob,1001
token-of-carol,carol,1002
"""
DISCOVERY = "discovery.waypost.io"
PAGE = ROOT / "docs" / "reference" / "attributes.md"
ROW = re.compile(r"\| `(/v1/[^`]+)` \| ([A-Z]+) \| (.*) \|")
REST = {
    "session/": "SESSION",
    "catalog/node": "t1",
    "health/node": "t1",
    "coordinate/node": "t1",
    "internal/ui/node": "t1",
    "agent/check/": "mine:check",
    "agent/service/": "mine",
    "agent/health/service/id": "mine",
}
BODIES: dict[str, Any] = {
    "catalog/register": {
        "Node": "t1",
        "Address": "127.0.0.1",
        "SkipNodeUpdate": True,
        "Service": {"Service": "db"},
    },
    "catalog/deregister": {"Node": "t1", "ServiceID": "db"},
    "agent/service/register": {"Name": "mine"},
    "agent/check/register": {"Name": "c", "TTL": "10s"},
    "agent/check/update/": {"Status": "passing"},
    "session/create": {},
    "coordinate/update": {"Node": "t1"},
}
QUERIES = {
    "agent/maintenance": "?enable=false",
    "agent/service/maintenance/": "?enable=false",
    "operator/raft/peer": "?id=x",
}
WORDS = {
    "catalog/register": "db",
    "catalog/deregister": "db",
    "agent/service/register": "mine",
    "agent/service/deregister/": "mine",
    "agent/check/register": "c",
    "session/create": "t1",
    "agent/maintenance": "t1",
}
"""What a name in capitals is here."""
ENDLESS = ("agent/monitor",)
ENDING = ("agent/leave",)
SPECIAL = ("/v1/kv/", "/v1/txn", "/v1/waypost/")


class Question(NamedTuple):
    verb: str
    resource: str
    name: str = ""
    group: str = DISCOVERY


def rows() -> list[Any]:
    found = []
    for path, method, asked in ROW.findall(PAGE.read_text()):
        if not path.startswith(SPECIAL):
            found.append(pytest.param(path, method, asked, id=f"{method} {path}"))
    assert len(found) > 60
    return found


def questions(path: str, asked: str, rest: str) -> list[Question]:
    found = []
    for one in asked.partition(";")[0].split(", "):
        verb, resource, *name = one.split(" ")
        named = "".join(name)
        if named == "PATH":
            named = rest
        elif named not in ("", "EACH"):
            named = WORDS[path]
        resource, _, group = resource.partition(".")
        found.append(Question(verb, resource, named, group or DISCOVERY))
    return found


def refusal(user: str, one: Question) -> str:
    name = f' "{one.name}"' if one.name and one.name != "EACH" else ""
    return (
        f'Forbidden: User "{user}" cannot {one.verb} resource "{one.resource}"{name} '
        f'in API group "{one.group}"'
    )


@pytest.fixture(scope="module")
def agent() -> Iterator[Protected]:
    one = Protected(tokens=TOKENS)
    try:
        one.process.start()
        yield one
    finally:
        one.process.close()


@pytest.fixture(scope="module")
def admin(agent: Protected) -> Iterator[Api]:
    pair = certificate_of(agent.process.data / "admin.conf", agent.folder)
    with Api(agent.https, certificate=pair) as api:
        # Everybody may discover, unless somebody takes that away.
        api.delete("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/waypost:discoverer")
        yield api


@pytest.fixture(scope="module")
def bob(agent: Protected) -> Iterator[Api]:
    with Api(agent.process.http, token="token-of-bob", is_tls=False) as api:
        yield api


@pytest.fixture(scope="module")
def session(admin: Api) -> str:
    return str(admin.ask("PUT", "/v1/session/create", {"TTL": "1h"}).json["ID"])


def rest_of(path: str, session: str) -> str:
    found = [value for start, value in REST.items() if path.startswith(start)]
    return (found[-1] if found else "db").replace("SESSION", session)


def granted(admin: Api, rules: list[dict[str, Any]]) -> list[str]:
    return [
        admin.create({"kind": "ClusterRole", "metadata": {"name": "exact"}, "rules": rules}),
        admin.create(
            {
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "exact"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "exact",
                },
                "subjects": [
                    {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "carol"}
                ],
            }
        ),
    ]


def rule(one: Question, *, name: str | None = None) -> dict[str, Any]:
    names = [name if name is not None else one.name]
    return {
        "apiGroups": [one.group],
        "resources": [one.resource],
        "verbs": [one.verb],
        **({"resourceNames": names} if names[0] not in ("", "EACH") else {}),
    }


@pytest.mark.parametrize(("path", "method", "asked"), rows())
def test_a_row_of_the_page(
    agent: Protected, admin: Api, bob: Api, session: str, path: str, method: str, asked: str
) -> None:
    key = path.removeprefix("/v1/").removesuffix("PATH")
    rest = rest_of(key, session)
    prepare(admin)
    wanted = questions(key, asked, rest)
    target = path.replace("PATH", rest) + QUERIES.get(key, "")
    body = BODIES.get(key)
    refused = bob.ask(method, target, body)
    assert (refused.status, refused.text) == (403, refusal("bob", wanted[0]))
    if key in ENDING:
        return
    carol = Api(agent.process.http, token="token-of-carol", is_tls=False)
    first = wanted[0]
    if first.name not in ("", "EACH"):
        made = granted(admin, [rule(first, name="another")])
        answer = carol.ask(method, target, body)
        assert (answer.status, answer.text) == (403, refusal("carol", first))
        for one in made:
            admin.delete(one)
    made = granted(admin, [rule(one) for one in wanted])
    try:
        if key in ENDLESS:
            status = _first_line(carol, method, target)
        else:
            answer = carol.ask(method, target, body)
            status = answer.status
            assert b"Forbidden" not in answer.body
        assert status not in (401, 403)
    finally:
        carol.close()
        for one in made:
            admin.delete(one)


def prepare(admin: Api) -> None:
    """What the rows speak of is there."""
    for method, target, body in (
        ("PUT", "/v1/catalog/register", BODIES["catalog/register"]),
        (
            "PUT",
            "/v1/agent/service/register",
            {"Name": "mine", "Check": {"CheckID": "mine:check", "Name": "x", "TTL": "10s"}},
        ),
    ):
        assert admin.ask(method, target, body).status == 200


def _first_line(api: Api, method: str, target: str) -> int:
    connection = api._connection
    connection.request(method, target, headers=api.headers)
    answer = connection.getresponse()
    answer.close()
    return answer.status


def test_who_registers_a_service_may_not_change_the_node(agent: Protected, admin: Api) -> None:
    prepare(admin)
    made = granted(admin, [rule(Question("update", "services", "db"))])
    body = BODIES["catalog/register"] | {"SkipNodeUpdate": False, "Address": "10.9.9.9"}
    with Api(agent.https, token="token-of-carol") as carol:
        answer = carol.ask("PUT", "/v1/catalog/register", body)
    for one in made:
        admin.delete(one)
    assert (answer.status, answer.text) == (
        403,
        refusal("carol", Question("update", "nodes", "t1")),
    )


@pytest.mark.parametrize(
    ("method", "target", "verb", "path"),
    [
        ("GET", "/v1/kv/app/a", "get", "/v1/kv/app/a"),
        ("GET", "/v1/kv/app/a?raw", "get", "/v1/kv/app/a"),
        ("GET", "/v1/kv/app%2Fa", "get", "/v1/kv/app/a"),
        ("GET", "/v1/kv/app/?recurse", "list", "/v1/kv/app/"),
        ("GET", "/v1/kv/app/?keys&separator=/", "list", "/v1/kv/app/"),
        ("GET", "/v1/kv/?recurse", "list", "/v1/kv/"),
        ("PUT", "/v1/kv/app/a", "update", "/v1/kv/app/a"),
        ("PUT", "/v1/kv/app/a?cas=0", "update", "/v1/kv/app/a"),
        ("DELETE", "/v1/kv/app/a", "delete", "/v1/kv/app/a"),
        ("DELETE", "/v1/kv/app/?recurse", "delete", "/v1/kv/app/"),
    ],
)
def test_keys(admin: Api, bob: Api, method: str, target: str, verb: str, path: str) -> None:
    del admin  # the others' right to discover has to be gone
    answer = bob.ask(method, target, b"x" if method == "PUT" else None)
    assert (answer.status, answer.text) == (
        403,
        f'Forbidden: User "bob" cannot {verb} path "{path}"',
    )


def test_a_prefix_of_keys_and_nothing_beside(agent: Protected, admin: Api) -> None:
    made = granted(
        admin,
        [{"nonResourceURLs": ["/v1/kv/app/*"], "verbs": ["get", "list", "update", "delete"]}],
    )
    with Api(agent.https, token="token-of-carol") as carol:
        for target, is_inside in (
            ("/v1/kv/app/a", True),
            ("/v1/kv/app%2Fb", True),
            ("/v1/kv/app/", True),
            ("/v1/kv/app", False),
            ("/v1/kv/apple", False),
            ("/v1/kv/App/a", False),
            ("/v1/kv/other", False),
            ("/v1/kv/app%00/a", False),
            ("/v1/kv/%2fapp/a", False),
        ):
            for method, query in (
                ("PUT", ""),
                ("GET", ""),
                ("GET", "?recurse"),
                ("GET", "?keys"),
                ("DELETE", ""),
                ("DELETE", "?recurse"),
            ):
                status = carol.ask(method, target + query, b"x" if method == "PUT" else None).status
                expected = (200, 404) if is_inside else (301, 400, 403)
                assert status in expected, (method, target, query, status)
        # What climbs out of the prefix is sent to the clean path, which is asked for like any other.
        for target in ("/v1/kv/app/../other", "/v1/kv/app/%2e%2e/other", "/v1/kv/app/..%2fother"):
            answer = carol.ask("PUT", target, b"x")
            assert answer.status == 301
            assert answer.headers["location"] == "/v1/kv/other"
    for one in made:
        admin.delete(one)


def test_a_transaction_is_asked_for_each_operation(admin: Api, bob: Api) -> None:
    del admin
    operations = [{"KV": {"Verb": "get", "Key": "app/a"}}, {"KV": {"Verb": "delete", "Key": "z"}}]
    answer = bob.ask("PUT", "/v1/txn", operations)
    assert answer.status == 403
    assert 'User "bob" cannot get path "/v1/kv/app/a"' in answer.text


def test_questions_about_access(admin: Api, bob: Api) -> None:
    del admin
    assert bob.ask("GET", "/v1/waypost/auth/whoami").json["user"] == "bob"
    question = {"verb": "get", "resource": "nodes"}
    assert bob.ask("POST", "/v1/waypost/auth/explain", question).status == 200
    for method, path, body, asked in (
        (
            "POST",
            "explain",
            question | {"user": "x"},
            'create resource "subjectaccessreviews" in API group "authorization.k8s.io"',
        ),
        ("POST", "who-can", question, 'in API group "rbac.authorization.k8s.io"'),
        ("GET", "lint", None, 'in API group "rbac.authorization.k8s.io"'),
    ):
        answer = bob.ask(method, f"/v1/waypost/auth/{path}", body)
        assert answer.status == 403
        assert asked in answer.text
