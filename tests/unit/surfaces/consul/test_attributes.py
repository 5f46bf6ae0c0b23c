"""The table of questions is the one of the routes, of the handlers, and of the documentation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from waypost.access.actor import LOCAL, Actor
from waypost.access.gate import GROUP, Attributes, Decision
from waypost.base.errors import WaypostError
from waypost.domain.session import CreateSession
from waypost.surfaces.consul.attributes import (
    ENDPOINTS,
    KV,
    PATH,
    TXN,
    consul_attributes,
    markdown,
)
from waypost.surfaces.consul.routes import ACL_PATHS, LATER
from waypost.surfaces.http.message import Rendered

from .test_api import AWAY, running

HOME_ACTOR = Actor(user="operator", groups=(LOCAL,))
PAGE = Path(__file__).parents[4] / "docs" / "reference" / "attributes.md"
SESSION = "11111111-2222-3333-4444-555555555555"
REST = {
    "session/": SESSION,
    "catalog/node": "a",
    "health/node": "a",
    "coordinate/node": "a",
    "internal/ui/node": "a",
    "agent/check/": "mine:check",
    "agent/service/": "mine",
    "agent/health/service/id": "mine",
}
BODIES: dict[str, Any] = {
    "catalog/register": {"Node": "a", "Address": "1.1.1.1", "Service": {"Service": "db"}},
    "catalog/deregister": {"Node": "a", "ServiceID": "db"},
    "agent/service/register": {"Name": "mine"},
    "agent/check/register": {"Name": "c", "TTL": "10s"},
    "agent/check/update/": {"Status": "passing"},
    "session/create": {},
    "coordinate/update": {"Node": "a"},
}
QUERIES = {
    "agent/maintenance": "?enable=true",
    "agent/service/maintenance/": "?enable=true",
    "operator/raft/peer": "?id=x",
    "operator/raft/transfer-leader": "?id=x",
}
ENDLESS = {"agent/monitor"}


def rest_of(path: str) -> str:
    found = [value for start, value in REST.items() if path.startswith(start)]
    return found[-1] if found else "db"


async def test_every_route_is_in_the_table_and_nothing_else() -> None:
    async with running() as api:
        routes = {
            (route.path.removeprefix("/v1/"), method)
            for route in api.routes
            for method in route.handlers
        }
    others = {(path, m) for path, methods in ACL_PATHS.items() for m in methods}
    others |= {(path, m) for path, (methods, _) in LATER.items() for m in methods}
    others |= {(KV, m) for m in ("GET", "PUT", "DELETE")} | {(TXN, "PUT")}
    table = {(path, method) for path, methods in ENDPOINTS.items() for method in methods}
    assert routes - others == table


@pytest.mark.parametrize(
    ("path", "method"),
    [(p, m) for p, methods in ENDPOINTS.items() for m in methods if p not in ENDLESS],
)
async def test_handlers_ask_what_the_table_says(path: str, method: str) -> None:
    async with running() as api:
        await api.ask("PUT", "/v1/catalog/register", BODIES["catalog/register"])
        check = {"CheckID": "mine:check", "Name": "x", "TTL": "10s"}
        await api.ask("PUT", "/v1/agent/service/register", {"Name": "mine", "Check": check})
        target = f"/v1/{path}{rest_of(path) if path.endswith('/') else ''}"
        api.rules.asked.clear()
        try:
            await api.ask(method, target + QUERIES.get(path, ""), BODIES.get(path, b""))
        except WaypostError:
            pytest.fail("an error of the tree must become an answer")
        asked = list(dict.fromkeys((one.verb, one.resource) for one in api.rules.asked))
        table = list(dict.fromkeys((one.verb, one.resource) for one in ENDPOINTS[path][method]))
        assert asked == table
        first = ENDPOINTS[path][method][0]
        if first.name == PATH:
            assert api.rules.asked[0].name == rest_of(path)
        elif not first.name:
            assert api.rules.asked[0].name == ""
        found = consul_attributes(method, target)
        assert (found.verb, found.resource) == (first.verb, first.resource)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GET /v1/kv/a/b", Attributes("get", path="/v1/kv/a/b")),
        ("GET /v1/kv/a?recurse", Attributes("list", path="/v1/kv/a")),
        ("GET /v1/kv/a?raw&keys=", Attributes("list", path="/v1/kv/a")),
        ("PUT /v1/kv/a%20b", Attributes("update", path="/v1/kv/a b")),
        ("DELETE /v1/kv/a", Attributes("delete", path="/v1/kv/a")),
        ("PUT /v1/txn", Attributes("update", "transactions")),
        (
            "GET /v1/catalog/service/web",
            Attributes("get", "services", "web", group=GROUP, version="v1"),
        ),
        ("GET /v1/nothing", Attributes("get", path="/v1/nothing", group="")),
        ("POST /v1/catalog/nodes", Attributes("post", path="/v1/catalog/nodes", group="")),
    ],
)
def test_a_request_line(line: str, expected: Attributes) -> None:
    method, _, target = line.partition(" ")
    path, _, query = target.partition("?")
    assert consul_attributes(method, path, query) == expected


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == markdown()


async def test_a_list_without_list_shows_what_may_be_got_by_name_and_says_so() -> None:
    async with running() as api:
        for name in ("db", "web"):
            body = {"Node": "a", "Address": "1.1.1.1", "Service": {"Service": name}}
            await api.ask("PUT", "/v1/catalog/register", body)
        api.rules.readable = False
        allowed = api.rules.decide
        seen = {"web"}

        def decide(actor: Any, asked: Attributes) -> Any:
            decision = allowed(actor, asked)
            if asked.verb == "get" and asked.name in seen:
                return msgspec.structs.replace(decision, allowed=True)
            return decision

        api.rules.decide = decide
        for _ in range(2):  # the second time a kept answer would do, if there were one
            answer = await api.ask("GET", "/v1/catalog/services", peer=AWAY)
            assert answer.status == 200
            assert answer.body == b'{"web":[]}'
            assert ("X-Consul-Results-Filtered-By-ACLs", "true") in answer.headers
        seen.add("db")
        assert (await api.text("GET", "/v1/catalog/services", peer=AWAY))[1] == (
            '{"db":[],"web":[]}'
        )
        seen.clear()
        assert (await api.ask("GET", "/v1/catalog/services", peer=AWAY)).status == 403
        whole = await api.ask("GET", "/v1/catalog/services")
        assert b"Filtered" not in whole.tail(gzip=False)


FILTERED = ("X-Consul-Results-Filtered-By-ACLs", "true")
LISTS = {
    # path: what of it is shown to who may get these, as (resource, name)
    "/v1/health/state/any": {("checks", "mine:check"): ["mine:check"], ("services", "mine"): ["mine:check"]},
    "/v1/health/state/critical": {("checks", "disk"): ["disk"]},
    "/v1/health/node/n1": {("checks", "disk"): ["disk"], ("services", "mine"): ["mine:check"]},
    "/v1/health/checks/mine": {("checks", "mine:check"): ["mine:check"]},
    "/v1/agent/checks": {("checks", "disk"): ["disk"], ("services", "mine"): ["mine:check"]},
    "/v1/agent/services": {("services", "mine"): ["mine"]},
    "/v1/agent/members": {("agents", "n1"): ["n1"]},
    "/v1/session/list": {("sessions", SESSION): [SESSION]},
    "/v1/session/node/n1": {("sessions", SESSION): [SESSION]},
}  # fmt: skip


def ids(body: bytes) -> list[str]:
    """Return what the rows of a list are called."""
    found = json.loads(body)
    if isinstance(found, dict):
        return sorted(found)
    keys = ("CheckID", "ID", "Name")
    return sorted(next(one[key] for key in keys if key in one) for one in found)


class Some:
    """Allows the machine itself everything, others to get what is `seen` and nothing else."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()

    def decide(self, actor: Any, asked: Attributes) -> Decision:
        seen = asked.verb == "get" and (asked.resource, asked.name) in self.seen
        return Decision(allowed=LOCAL in actor.groups or seen, reason="a test says so")


@asynccontextmanager
async def with_lists() -> AsyncIterator[tuple[Any, Some]]:
    async with running() as api:
        await api.agent.ensure_self()
        some = Some()
        for name in ("mine", "other"):
            check = {"CheckID": f"{name}:check", "Name": "x", "TTL": "10s"}
            await api.ask("PUT", "/v1/agent/service/register", {"Name": name, "Check": check})
            await api.ask("PUT", f"/v1/agent/check/pass/{name}:check")
        await api.ask("PUT", "/v1/agent/check/register", {"Name": "disk", "TTL": "10s"})
        for session_id in (SESSION, SESSION.replace("1", "2")):
            command = CreateSession(node="n1")
            await api.sessions.create(HOME_ACTOR, command, session_id=session_id)
        api.rules.decide = some.decide
        yield api, some


@pytest.mark.parametrize(
    ("path", "right"), [(path, right) for path, rights in LISTS.items() for right in rights]
)
async def test_other_lists_show_what_may_be_got_by_name(path: str, right: tuple[str, str]) -> None:
    async with with_lists() as (api, some):
        assert (await api.ask("GET", path, peer=AWAY)).status == 403
        some.seen.add(right)
        for _ in range(2):  # the second time a kept answer would do, if there were one
            answer = await api.ask("GET", path, peer=AWAY)
            assert answer.status == 200
            assert ids(answer.body) == LISTS[path][right]
            assert FILTERED in answer.headers
        whole = await api.ask("GET", path)
        assert set(ids(whole.body)) >= set(LISTS[path][right])
        headers = whole.tail(gzip=False) if isinstance(whole, Rendered) else str(whole.headers)
        assert "Filtered" not in str(headers)


async def test_a_list_that_happens_to_be_empty_is_no_refusal() -> None:
    async with with_lists() as (api, some):
        some.seen |= {("checks", "disk"), ("services", "other"), ("sessions", SESSION)}
        for path in ("/v1/health/state/warning", "/v1/health/node/elsewhere", "/v1/session/node/z"):
            answer = await api.ask("GET", path, peer=AWAY)
            assert (answer.status, json.loads(answer.body)) == (200, [])
            assert FILTERED in answer.headers


@pytest.mark.parametrize("path", ["id/mine", "name/mine"])
async def test_health_of_which_something_is_hidden_is_not_shown(path: str) -> None:
    async with with_lists() as (api, some):
        some.seen |= {("services", "mine"), ("checks", "mine:check")}
        # The node's critical check may not be seen, and without it the service would look healthy.
        answer = await api.ask("GET", f"/v1/agent/health/service/{path}", peer=AWAY)
        assert answer.status == 403
        assert (await api.ask("GET", f"/v1/agent/health/service/{path}")).status == 503


async def test_who_does_not_know_yet_is_no_reason_to_hide_anything() -> None:
    async with with_lists() as (api, some):
        decide = some.decide

        def unsure(actor: Any, asked: Attributes) -> Decision:
            if asked.verb == "list":
                return Decision(allowed=False, reason="ask", is_known=False)
            return decide(actor, asked)

        api.rules.decide = unsure
        some.seen.add(("checks", "disk"))
        answer = await api.ask("GET", "/v1/health/state/any", peer=AWAY)
        assert answer.status == 403
