"""The routes over a whole domain, without sockets."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import uuid
from contextlib import asynccontextmanager, suppress

import pytest

from waypost.access.actor import LOCAL
from waypost.access.authn import anonymous
from waypost.access.gate import Decision, Gate
from waypost.base.clock import SystemClock
from waypost.base.errors import Forbidden, WaypostError
from waypost.domain.agent import LocalAgent, LocalNode
from waypost.domain.catalog import Catalog
from waypost.domain.event import Events
from waypost.domain.kv import KV
from waypost.domain.session import Sessions
from waypost.domain.txn import Transactions
from waypost.state.state import State
from waypost.store.memory import MemoryEngine
from waypost.surfaces.consul.context import Domain, Network
from waypost.surfaces.consul.reading import Settings
from waypost.surfaces.consul.routes import ACL_PATHS, LATER, ConsulApi
from waypost.surfaces.http.message import Head, Headers, Peer, Rendered, Request
from waypost.surfaces.http.router import Router

HOME = Peer(listener="http", address="127.0.0.1")
AWAY = Peer(listener="http", address="192.0.2.7")


class Rules:
    """Allows the machine itself everything, others what `readable` says; remembers what it was asked."""

    def __init__(self):
        self.readable = True
        self.asked = []

    def decide(self, actor, attributes):
        self.asked.append(attributes)
        allowed = LOCAL in actor.groups or (self.readable and attributes.verb in ("get", "list"))
        return Decision(allowed=allowed, reason="a test says so")


class Api:
    def __init__(self, state, *, cluster=None, elsewhere=None, confirms=False, **settings):
        self.rules = Rules()
        self.state = state
        gate = Gate(self.rules)
        self.clock = clock = SystemClock()
        local = LocalNode(node="n1", id=str(uuid.uuid4()), address="10.0.0.1", datacenter="dc1")
        self.sessions = Sessions(state, gate, clock=clock)
        self.agent = LocalAgent(state, gate, local=local, clock=clock, judged=cluster is not None)
        domain = Domain(
            state=state,
            gate=gate,
            catalog=Catalog(state, gate, datacenter="dc1"),
            agent=self.agent,
            kv=KV(state, gate, locked_out=self.sessions.locked_out),
            sessions=self.sessions,
            transactions=Transactions(
                state, gate, datacenter="dc1", locked_out=self.sessions.locked_out
            ),
            events=Events(state, gate, node="n1"),
        )
        self.api = ConsulApi(
            domain,
            settings=Settings(**settings),
            network=Network(),
            identify=lambda peer: anonymous(peer.address),
            clock=clock,
            rng=random.Random(1),
            confirms=confirms,
            cluster=cluster,
            elsewhere=elsewhere,
        )
        self.routes = self.api.routes()
        self.router = Router(self.routes)

    def head(self, method, target):
        return Head(method=method, target=target.encode(), headers=Headers())

    async def ask(self, method, target, body=b"", *, peer=HOME):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = Request(self.head(method, target), body=data, peer=peer, arrived_s=0.0)
        try:
            answer = self.router.answer(request)
            if inspect.isawaitable(answer):
                answer = await answer
        except WaypostError as error:
            answer = self.router.failed(request, error)
        return answer

    async def text(self, method, target, body=b"", *, peer=HOME):
        answer = await self.ask(method, target, body, peer=peer)
        if isinstance(answer, Rendered):
            return answer.status, answer.tail(gzip=False).partition(b"\r\n\r\n")[2].decode()
        return answer.status, answer.body.decode()


@asynccontextmanager
async def running(**settings):
    engine = MemoryEngine(clock=SystemClock())
    await engine.open()
    state = State(engine)
    await state.load()
    task = asyncio.create_task(state.run())
    try:
        yield Api(state, **settings)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await engine.close()


@pytest.fixture
async def api():
    async with running() as running_api:
        yield running_api


DB = {"Node": "a", "Address": "1.1.1.1", "Service": {"Service": "db", "Port": 1}}


async def test_server_mode_is_compact_and_pretty_is_indented(api):
    await api.ask("PUT", "/v1/catalog/register", DB)
    _, compact = await api.text("GET", "/v1/catalog/services")
    _, pretty = await api.text("GET", "/v1/catalog/services?pretty")
    assert compact == '{"db":[]}'
    assert pretty == '{\n    "db": []\n}\n'


async def test_equal_reads_share_one_answer_until_something_changes(api):
    await api.ask("PUT", "/v1/catalog/register", DB)
    first = await api.ask("GET", "/v1/health/service/db")
    assert await api.ask("GET", "/v1/health/service/db") is first
    assert api.api.fast(api.head("GET", "/v1/health/service/db"), HOME) is first
    await api.ask("PUT", "/v1/kv/unrelated", b"x")
    assert await api.ask("GET", "/v1/health/service/db") is first
    await api.ask("PUT", "/v1/catalog/register", {**DB, "Node": "b"})
    assert api.api.fast(api.head("GET", "/v1/health/service/db"), HOME) is None
    assert await api.ask("GET", "/v1/health/service/db") is not first


async def test_woken_waiters_share_one_answer_with_plain_reads(api):
    await api.ask("PUT", "/v1/kv/k", b"1")
    index = api.state.view.index(("kv", "k"))
    target = f"/v1/kv/k?index={index}&wait=20s"
    waiting = [asyncio.create_task(api.ask("GET", target)) for _ in range(5)]
    await asyncio.sleep(0.05)
    await api.ask("PUT", "/v1/kv/k", b"2")
    answers = await asyncio.gather(*waiting)
    assert all(answer is answers[0] for answer in answers)
    assert await api.ask("GET", "/v1/kv/k") is answers[0]


async def test_a_kept_answer_is_not_given_to_who_may_not_see_it(api):
    await api.ask("PUT", "/v1/kv/secret", b"x")
    assert (await api.ask("GET", "/v1/kv/secret", peer=AWAY)).status == 200
    head = api.head("GET", "/v1/kv/secret")
    assert api.api.fast(head, AWAY) is not None
    api.rules.readable = False
    assert api.api.fast(head, AWAY) is None
    assert (await api.ask("GET", "/v1/kv/secret", peer=AWAY)).status == 403
    assert (await api.ask("GET", "/v1/kv/secret", peer=HOME)).status == 200


async def test_nobody_waits_for_what_he_may_not_see(api):
    api.rules.readable = False
    async with asyncio.timeout(2):
        answer = await api.ask("GET", "/v1/kv/secret?index=1&wait=60s", peer=AWAY)
    assert answer.status == 403


async def test_every_route_asks_the_gate(api):
    """Whatever a stranger sends is refused while he may do nothing, and nothing is changed by it."""
    api.rules.readable = False
    bodies = {
        "/v1/agent/service/register": {"Name": "x"},
        "/v1/agent/check/register": {"Name": "x", "TTL": "1s"},
        "/v1/agent/check/update/": {"Status": "passing"},
        "/v1/catalog/register": DB,
        "/v1/catalog/deregister": {"Node": "a"},
        "/v1/txn": [{"KV": {"Verb": "set", "Key": "k"}}],
    }
    open_ = {"/v1/" + path for path in (*ACL_PATHS, *LATER)}
    revision = api.state.view.revision
    for route in api.routes:
        if route.path in open_:
            continue
        name = "00000000-0000-0000-0000-000000000000" if route.is_prefix else ""
        for method in route.handlers:
            if route.path == "/v1/operator/autopilot/configuration" and method == "PUT":
                continue
            target = f"{route.path}{name}?enable=true"
            request_body = bodies.get(route.path, b"")
            answer = await api.ask(method, target, request_body, peer=AWAY)
            assert answer.status == 403, (method, route.path, answer)
    assert api.state.view.revision == revision


@pytest.mark.parametrize("path", sorted(ACL_PATHS))
async def test_acl_is_off(api, path):
    for method in ACL_PATHS[path]:
        assert await api.text(method, "/v1/" + path) == (401, "ACL support disabled")


@pytest.mark.parametrize("path", sorted(LATER))
async def test_what_is_missing_says_so(api, path):
    for method in LATER[path][0]:
        status, text = await api.text(method, "/v1/" + path)
        assert status == 501
        assert text.startswith("This agent does not support ")


async def test_names_with_slashes_and_blanks(api):
    await api.ask("PUT", "/v1/agent/service/register", {"Name": "a/b c"})
    status, _ = await api.text("GET", "/v1/agent/service/a/b%20c")
    assert status == 200
    await api.ask("PUT", "/v1/agent/service/deregister/a/b%20c")
    assert await api.text("GET", "/v1/agent/services") == (200, "{}")


async def test_text_from_clients_never_breaks_a_header(api):
    status, _ = await api.text("GET", "/v1/agent/health/service/id/a%C2%85b")
    assert status in (400, 404)
    answer = await api.ask("GET", "/v1/agent/health/service/name/x%C3%A9")
    assert answer.status == 404
    assert dict(answer.headers)["X-Consul-Reason"] == "ServiceName xé Not Found"


async def test_markup_is_escaped_as_go_does(api):
    await api.ask("PUT", "/v1/agent/service/register", {"Name": "<b>&"})
    _, text = await api.text("GET", "/v1/catalog/services")
    assert text == r'{"\u003cb\u003e\u0026":[]}'


async def test_lenient_mode_ignores_what_it_does_not_know():
    async with running(strict_json=False) as api:
        assert await api.text("PUT", "/v1/agent/service/register", {"Name": "x", "Bogus": 1}) == (
            200,
            "",
        )


async def test_scripts_may_be_allowed():
    check = {"Name": "x", "Args": ["true"], "Interval": "10s"}
    async with running(script_checks=True) as api:
        assert await api.text("PUT", "/v1/agent/check/register", check) == (200, "")
    async with running() as api:
        status, text = await api.text("PUT", "/v1/agent/check/register", check)
        assert (status, text[:20]) == (500, "Scripts are disabled")


async def test_forbidden_is_403_with_the_reason(api):
    status, text = await api.text("PUT", "/v1/kv/k", b"x", peer=AWAY)
    assert status == 403
    assert "system:anonymous" in text
    assert issubclass(Forbidden, WaypostError)


async def test_acquire_needs_a_session(api):
    zero = "00000000-0000-0000-0000-000000000000"
    assert await api.text("PUT", f"/v1/kv/k?acquire={zero}") == (500, f'invalid session "{zero}"')
    status, text = await api.text("PUT", f"/v1/kv/k?acquire={'g' * 36}")
    assert (status, text) == (
        500,
        "failed session lookup: index error: Invalid UUID: encoding/hex: invalid byte: U+0067 'g'",
    )


RESTS = (
    "",
    "x",
    "a/b",
    "%C3%A9",
    "..%2Fx",
    "x%0Ay",
    "x" * 3000,
    "%22%3E",
    "00000000-0000-0000-0000-000000000000",
)
QUERIES = (
    "",
    "?index=99999999999999999999",
    "?index=1&wait=1ms",
    "?filter=%28",
    "?filter=Node%20==%20x",
    "?filter=%FF",
    "?tag=&node-meta=&near=",
    "?recurse&keys&separator=%C3%A9",
    "?cas=1&flags=2",
    "?dc=zz",
    "?stale&max_stale=1h&cached",
    "?enable=true&reason=%00",
    "?hash=x&wait=1ms",
    "?format=text&passing=1&wan=1&segment=_all",
)
BODIES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"Name":"a\\u0000b","Node":"a\\u0000b","Address":"x"}',
    b'{"Name":"\\ud800","Node":"\\ud800","Address":"x","Check":{"Name":"c"},"Status":"passing"}',
    b'[{"KV":{"Verb":"set","Key":"\\u0000"}},{"Node":{"Verb":"set","Node":{"Node":"\\u0000"}}}]',
    b'[{"Service":{"Verb":"set","Node":"n","Service":{}}},{"Check":{"Verb":"set","Check":{"Node":"n"}}}]',
    b"[" * 5000,
    b'{"Node":"n","Address":"a","Service":{"Service":"s","Weights":{"Passing":'
    + b"9" * 400
    + b"}}}",
)


async def test_nothing_a_client_sends_is_a_fault_of_ours(api):
    """Every path, with odd names, parameters and bodies: an answer or an error of the tree, never anything else."""
    asked = 0
    for route in api.routes:
        if route.path in ("/v1/agent/monitor", "/v1/agent/join/"):
            continue
        for method in route.handlers:
            for rest in RESTS if route.is_prefix else ("",):
                for number, query in enumerate(QUERIES):
                    body = BODIES[(asked + number) % len(BODIES)] if method != "GET" else b""
                    async with asyncio.timeout(5):
                        answer = await api.ask(method, route.path + rest + query, body)
                    assert 200 <= answer.status < 600
                    asked += 1
    for body in BODIES:
        for path in ("catalog/register", "catalog/deregister", "agent/service/register", "txn"):
            await api.ask("PUT", "/v1/" + path, body)
    assert asked > 2000
