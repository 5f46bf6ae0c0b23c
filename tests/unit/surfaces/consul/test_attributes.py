"""The table of questions is the one of the routes, of the handlers, and of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from waypost.access.gate import GROUP, Attributes
from waypost.base.errors import WaypostError
from waypost.surfaces.consul.attributes import (
    ENDPOINTS,
    KV,
    PATH,
    TXN,
    consul_attributes,
    markdown,
)
from waypost.surfaces.consul.routes import ACL_PATHS, LATER

from .test_api import AWAY, running

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
