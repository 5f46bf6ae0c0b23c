"""Requests that a client agent passes on, over real HTTP: who they count as, and what comes back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import random
import time
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from waypost.access.actor import Actor
from waypost.access.authn.chain import Chain
from waypost.access.authn.local import anonymous
from waypost.access.authn.records import Accepted, Authentication, Identity, Rejected, Skipped
from waypost.access.authn.request import credentials_of
from waypost.access.authn.servers import PATH as AUTHENTICATE
from waypost.access.authn.servers import RemoteAuthenticator
from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.base.errors import Forbidden, WaypostError
from waypost.domain.kv import KV, PutKey
from waypost.store.remote import HttpTransport
from waypost.surfaces.cluster.forward_routes import ForwardRoutes
from waypost.surfaces.http.forward import ENVELOPE, LARGE_PATH, PATH, Forwarded, Forwarding
from waypost.surfaces.http.guard import Guard
from waypost.surfaces.http.message import Rendered, Request, Response, text_response
from waypost.surfaces.http.router import BodyLimit, Route, Router
from waypost.surfaces.http.server import Server, TcpEndpoint

from .conftest import Cluster, until


class OneToken:
    """`good` is alice's."""

    name = "one token"

    def __init__(self) -> None:
        self.asked = 0

    def authenticate_token(self, token: str, *, audiences: tuple[str, ...], now_s: float):
        self.asked += 1
        if token == "good":
            return Accepted(identity=Identity(user="alice", groups=("dev",), extra={"a": ("b",)}))
        return Rejected(error="bad") if token == "bad" else Skipped()


class ServerApp:
    """What a server answers its own clients with; remembers who was asked for what."""

    def __init__(self, cluster: Cluster, *, is_protected: bool) -> None:
        self.token = OneToken()
        self.chain = Chain(tokens=[self.token])
        self.is_protected = is_protected
        self.asked: list[Request] = []
        self.cancelled = asyncio.Event()
        self.kv = KV(cluster.state, Gate(self))
        self.view = cluster.view
        routes = [
            Route("/v1/kv/", {"GET": self.get, "PUT": self.put}, is_prefix=True, limit=BodyLimit(100)),
            Route("/v1/txn", {"PUT": self.who}),
            Route("/apis/", {"GET": self.watch}, is_prefix=True, on_error=self.as_status),
            Route("/v1/operator/", {"GET": self.forever}, is_prefix=True),
            Route(
                "/v1/snapshot",
                {"GET": lambda _: Rendered(Response(body=b"z" * 3_000_000)), "PUT": self.digest},
                limit=BodyLimit(40 * 2**20),
            ),
        ]  # fmt: skip
        self.guard = Guard(Router(routes), self.authenticate)

    def decide(self, actor: Actor, attributes):
        from waypost.access.gate import Decision

        if not self.is_protected:
            return ExposureAuthorizer().decide(actor, attributes)
        return Decision(allowed=actor.user == "alice", reason="only alice")

    def authenticate(self, request: Request) -> Authentication:
        self.asked.append(request)
        if not self.is_protected:
            return Authentication(actor=anonymous(request.peer.address))
        credentials = credentials_of(
            request.headers,
            remote_fields=("x-remote-user",),
            certificates_der=request.peer.certificates_der,
            query_token=request.query.get("token"),
            address=request.peer.address,
        )
        found = self.chain.authenticate_now(credentials, now_s=0)
        assert found is not None
        return found

    def actor(self, request: Request) -> Actor:
        assert request.identity is not None
        assert request.identity.actor is not None
        return request.identity.actor

    async def get(self, request: Request) -> Response:
        request.may_interrupt = True
        key = request.rest
        self.kv._gate.admit(self.actor(request), _read(key))
        index = int(request.query.get("index", "0"))
        if index:
            while self.view.index(("kv", key)) <= index:
                await self.view.topics.wait([("kv", key)], at_most_s=10)
        entry = self.view.kv(key)
        headers = (("X-Consul-Index", str(self.view.index(("kv", key)))),)
        if entry is None:
            return Response(status=404, headers=headers)
        return Response(body=entry.value, content_type="application/json", headers=headers)

    async def put(self, request: Request) -> Response:
        done = await self.kv.put(self.actor(request), PutKey(key=request.rest, value=request.body))
        return Response(body=b"true" if done else b"false", content_type="application/json")

    def digest(self, request: Request) -> Response:
        if self.is_protected and self.actor(request).user != "alice":
            return Response(status=403)
        return Response(body=hashlib.sha256(request.body).hexdigest().encode())

    def who(self, request: Request) -> Response:
        actor = self.actor(request)
        return Response(body=msgspec.json.encode([actor.user, actor.groups, actor.address]))

    def watch(self, request: Request) -> Response:
        if self.actor(request).user != "alice" and self.is_protected:
            raise Forbidden("pods is forbidden")

        async def events() -> AsyncIterator[bytes]:
            try:
                for n in range(1000):
                    yield b'{"n":%d}\n' % n
                    await asyncio.sleep(0.02)
            finally:
                self.cancelled.set()

        return Response(stream=events(), content_type="application/json")

    def as_status(self, _request: Request, error: WaypostError) -> Response:
        body = json.dumps({"kind": "Status", "message": str(error)}).encode()
        return Response(status=403, body=body, content_type="application/json")

    async def forever(self, request: Request) -> Response:
        request.may_interrupt = True
        await asyncio.Event().wait()
        raise AssertionError


def _read(key: str):
    from waypost.access.gate import Attributes

    return Attributes("get", path=f"/v1/kv/{key}")


class Machine:
    """A client agent's HTTP, and the server it knows."""

    def __init__(self, cluster: Cluster, app: ServerApp, base: str, http: aiohttp.ClientSession):
        self.cluster, self.app, self.base, self.http = cluster, app, base, http
        self.local: list[str] = []
        self.has_kv = False

    async def ask(self, method: str, path: str, **options) -> tuple[int, bytes, dict[str, str]]:
        async with self.http.request(method, self.base + path, **options) as answer:
            return answer.status, await answer.read(), dict(answer.headers)


@pytest.fixture(params=["open", "protected"])
async def machine(request: pytest.FixtureRequest, cluster: Cluster) -> AsyncIterator[Machine]:
    async for one in make(cluster, is_protected=request.param == "protected"):
        yield one


@pytest.fixture
async def open_machine(cluster: Cluster) -> AsyncIterator[Machine]:
    async for one in make(cluster, is_protected=False):
        yield one


@pytest.fixture
async def protected(cluster: Cluster) -> AsyncIterator[Machine]:
    async for one in make(cluster, is_protected=True):
        yield one


async def make(cluster: Cluster, *, is_protected: bool) -> AsyncIterator[Machine]:
    app = ServerApp(cluster, is_protected=is_protected)
    routes = ForwardRoutes(
        app.guard,
        node_of=lambda _request: cluster.node,
        is_protected=is_protected,
        review=app.chain.review,
        clock=cluster.clock,
    )
    await cluster.start(2, routes=routes.routes)
    cluster.node = "web-1"
    engine = await cluster.client()
    transport = HttpTransport(tls=None, connect_s=0.5)

    def local(request: Request) -> Response:
        machine.local.append(request.path)
        return text_response(200, "local")

    forwarding = Forwarding(
        Router([Route("/v1/", {"*": local}, is_prefix=True, limit=BodyLimit(64 * 2**20))]),
        servers=engine.servers,
        transport=transport,
        node="web-1",
        has_kv=lambda: machine.has_kv,
        clock=cluster.clock,
    )
    server = Server(forwarding, [TcpEndpoint("127.0.0.1", 0)], grace_s=0.2)
    async with server, aiohttp.ClientSession() as http:
        machine = Machine(cluster, app, f"http://127.0.0.1:{server.port('http')}", http)
        yield machine
    await transport.close()


GOOD = {"X-Consul-Token": "good"}


async def test_a_key_is_written_and_read_and_waited_for(machine: Machine) -> None:
    assert (await machine.ask("PUT", "/v1/kv/a/b%20c", data=b"1", headers=GOOD))[:2] == (
        200,
        b"true",
    )
    entry = machine.cluster.view.kv("a/b c")
    assert entry is not None
    status, body, headers = await machine.ask("GET", "/v1/kv/a/b%20c", headers=GOOD)
    assert (status, body, headers["Content-Type"]) == (200, b"1", "application/json")
    index = headers["X-Consul-Index"]
    waiting = asyncio.create_task(machine.ask("GET", f"/v1/kv/a/b%20c?index={index}", headers=GOOD))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await machine.ask("PUT", "/v1/kv/a/b%20c", data=b"2", headers=GOOD)
    assert (await waiting)[1] == b"2"
    assert not machine.local
    assert machine.app.asked[0].target == b"/v1/kv/a/b%20c"
    status, body, headers = await machine.ask("GET", "/v1/kv/none", headers=GOOD)
    assert (status, body) == (404, b"")
    assert "X-Waypost-Forwarded" not in headers


async def test_a_watch_streams_and_ends_on_the_server_when_its_client_goes(
    machine: Machine,
) -> None:
    async with machine.http.get(machine.base + "/apis/x/v1/pods?watch=1", headers=GOOD) as answer:
        began = time.monotonic()
        assert await answer.content.readline() == b'{"n":0}\n'
        assert await answer.content.readline() == b'{"n":1}\n'
        assert time.monotonic() - began < 1
    async with asyncio.timeout(3):
        await machine.app.cancelled.wait()


async def test_large_answers_come_whole(machine: Machine) -> None:
    status, body, _ = await machine.ask("GET", "/v1/snapshot", headers=GOOD)
    assert (status, body) == (200, b"z" * 3_000_000)
    status, body, _ = await machine.ask("HEAD", "/v1/kv/none", headers=GOOD)
    assert body == b""


async def test_large_requests_come_whole(machine: Machine) -> None:
    for size in (4 * 2**20, 4 * 2**20 + 1, 8 * 2**20, 20 * 2**20):
        body = random.Random(size).randbytes(size)
        status, answer, _ = await machine.ask(
            "PUT", "/v1/snapshot", data=io.BytesIO(body), headers=GOOD
        )
        assert (status, answer.decode()) == (200, hashlib.sha256(body).hexdigest())
        assert machine.app.asked[-1].headers.get("x-waypost-envelope") is None
    status, answer, _ = await machine.ask(
        "PUT", "/v1/snapshot", data=io.BytesIO(b"x" * (40 * 2**20 + 1)), headers=GOOD
    )
    assert status == 413
    if machine.app.is_protected:
        status, answer, _ = await machine.ask(
            "PUT", "/v1/snapshot", data=io.BytesIO(b"x" * 5 * 2**20)
        )
        assert (status, answer) == (403, b"")


async def test_a_large_request_says_what_it_is(open_machine: Machine) -> None:
    message = msgspec.msgpack.encode(Forwarded("PUT", b"/v1/snapshot", (), b"", "", True))
    url = f"http://{open_machine.cluster.lines[0].address}{LARGE_PATH}"
    for shown, status in (
        (base64.b64encode(message).decode(), 200),
        (None, 400),
        ("%%%", 400),
        (base64.b64encode(b"\xc1").decode(), 400),
    ):
        headers = {} if shown is None else {ENVELOPE: shown}
        async with open_machine.http.post(url, data=b"body", headers=headers) as answer:
            assert answer.status == status


async def test_refusals_come_in_the_form_of_their_route(protected: Machine) -> None:
    status, body, _ = await protected.ask("GET", "/apis/x/v1/pods")
    assert status == 403
    assert json.loads(body)["kind"] == "Status"
    status, body, _ = await protected.ask("PUT", "/v1/kv/a", data=b"1")
    assert status == 403
    assert b'User "system:anonymous" cannot' in body
    status, _, _ = await protected.ask("PUT", "/v1/kv/a", headers={"X-Consul-Token": "bad"})
    assert status == 401
    status, body, _ = await protected.ask("PUT", "/v1/kv/a", data=b"x" * 101, headers=GOOD)
    assert status == 413
    assert protected.cluster.view.kv("a") is None


FORGED = {
    "X-Remote-User": "admin",
    "X-Forwarded-For": "127.0.0.1",
    "X-Waypost-Forwarded": "1",
    "Forwarded": "for=127.0.0.1",
    "X-Consul-Token": "good",
}


async def test_who_a_local_program_is(machine: Machine) -> None:
    """The machine says that it is local: enough where there is no access control, nothing where there is."""
    user, groups, address = json.loads((await machine.ask("PUT", "/v1/txn"))[1])
    assert user == "system:anonymous"
    if machine.app.is_protected:
        assert (groups, address) == (["system:unauthenticated"], "")
    else:
        assert (groups, address) == (["system:unauthenticated", "waypost:local"], "127.0.0.1")
    assert machine.app.asked[-1].peer.listener == "forwarded by web-1"


async def test_headers_say_nothing_about_who_asks(protected: Machine) -> None:
    headers = {name: value for name, value in FORGED.items() if "Token" not in name}
    user, groups, _ = json.loads((await protected.ask("PUT", "/v1/txn", headers=headers))[1])
    assert (user, groups) == ("system:anonymous", ["system:unauthenticated"])
    assert "x-remote-user" not in protected.app.asked[-1].headers
    user, groups, _ = json.loads((await protected.ask("PUT", "/v1/txn", headers=FORGED))[1])
    assert (user, groups) == ("alice", ["dev", "system:authenticated"])


@pytest.mark.parametrize(
    ("address", "is_local", "allowed"),
    [("10.0.0.7", False, False), ("127.0.0.1", True, True), ("", True, True)],
)
async def test_a_remote_client_of_a_client_agent_stays_remote(
    open_machine: Machine, address: str, is_local: bool, allowed: bool
) -> None:
    message = Forwarded("PUT", b"/v1/kv/a", (), b"1", address, is_local)
    async with open_machine.http.post(
        f"http://{open_machine.cluster.lines[0].address}{PATH}",
        data=msgspec.msgpack.encode(message),
    ) as answer:
        assert answer.status == (200 if allowed else 403)
    assert bool(open_machine.cluster.view.kv("a")) is allowed


@pytest.mark.parametrize(
    "message",
    [
        Forwarded("PUT", b"/v1/kv/a", (), b"", "not an address", False),
        Forwarded("PUT", b"/v1/kv/a", (), b"", "", False),
        Forwarded("put /x", b"/v1/kv/a", (), b"", "", True),
        Forwarded("PUT", b"v1/kv/a", (), b"", "", True),
        Forwarded("PUT", b"/v1/kv/a HTTP/1.1\r\nX: y", (), b"", "", True),
    ],
)
async def test_what_is_no_request_is_refused(open_machine: Machine, message: Forwarded) -> None:
    async with open_machine.http.post(
        f"http://{open_machine.cluster.lines[0].address}{PATH}",
        data=msgspec.msgpack.encode(message),
    ) as answer:
        assert answer.status == 400
    assert not open_machine.app.asked


async def test_a_stranger_has_nothing_forwarded_and_no_token_looked_up(
    open_machine: Machine,
) -> None:
    def stranger(_request: Request) -> str:
        raise Forbidden("who are you")

    routes = ForwardRoutes(
        open_machine.app.guard,
        node_of=stranger,
        is_protected=False,
        review=open_machine.app.chain.review,
        clock=open_machine.cluster.clock,
    )
    async with Server(Router(routes.routes()), [TcpEndpoint("127.0.0.1", 0)]) as server:
        for path in (PATH, AUTHENTICATE):
            async with open_machine.http.post(
                f"http://127.0.0.1:{server.port('http')}{path}", data=b""
            ) as answer:
                assert (answer.status, await answer.text()) == (403, "who are you")
    assert not open_machine.app.asked


async def test_what_the_machine_does_itself_goes_nowhere(machine: Machine) -> None:
    machine.has_kv = True
    for method, path in (
        ("GET", "/v1/kv/a"),
        ("GET", "/v1/catalog/services"),
        ("PUT", "/v1/agent/service/register"),
        ("PUT", "/v1/session/renew/x"),
        ("GET", "/v1/event/list"),
    ):
        assert (await machine.ask(method, path))[1] == b"local"
    assert not machine.app.asked


async def test_a_dead_server_is_passed_over_and_none_is_said_in_consuls_words(
    machine: Machine,
) -> None:
    await machine.cluster.lines[0].cut()
    assert (await machine.ask("PUT", "/v1/kv/a", data=b"1", headers=GOOD))[1] == b"true"
    await machine.cluster.lines[1].cut()
    status, body, _ = await machine.ask("PUT", "/v1/kv/a", data=b"1", headers=GOOD)
    assert (status, body) == (500, b"No known Consul servers")


async def test_a_write_whose_answer_is_lost_is_not_sent_again_a_read_is(machine: Machine) -> None:
    await until(lambda: machine.cluster.stores[0].streams)
    machine.cluster.lines[0].loses_answers = True
    status, body, _ = await machine.ask("PUT", "/v1/kv/a", data=b"1", headers=GOOD)
    assert status == 500
    assert b"may have been carried out" in body
    assert len(machine.app.asked) == 1
    status, body, _ = await machine.ask("GET", "/v1/kv/a", headers=GOOD)
    assert (status, body) == (200, b"1")


async def test_a_long_poll_on_a_server_that_froze_is_asked_of_another(machine: Machine) -> None:
    await until(lambda: machine.cluster.stores[0].streams)
    waiting = asyncio.create_task(machine.ask("GET", "/v1/kv/a?index=1", headers=GOOD))
    await until(lambda: machine.app.asked)
    machine.cluster.lines[0].freeze()
    await until(lambda: len(machine.app.asked) == 2)
    await machine.ask("PUT", "/v1/kv/a", data=b"1", headers=GOOD)
    async with asyncio.timeout(3):
        assert (await waiting)[:2] == (200, b"1")
    machine.cluster.lines[0].thaw()


async def test_whose_token_it_is_is_asked_once_for_ten_seconds(protected: Machine) -> None:
    transport = HttpTransport(tls=None)
    address = protected.cluster.lines[0].address

    class Clock:
        at = 0.0

        def now(self) -> float:
            return self.at

        def wall(self) -> float:
            return self.at

    clock = Clock()
    tokens = RemoteAuthenticator(
        lambda body: transport.call(address, AUTHENTICATE, body), clock=clock
    )
    chain = Chain(tokens=[tokens])
    for token, user in (("good", "alice"), ("nobody's", None), ("bad", None)):
        before = protected.app.token.asked
        found = await asyncio.gather(*(chain.review(token, now_s=0) for _ in range(20)))
        assert {None if one.actor is None else one.actor.user for one in found} == {user}
        assert protected.app.token.asked == before + 1
        clock.at += 9
        await chain.review(token, now_s=0)
        assert protected.app.token.asked == before + 1
        clock.at += 2
        await chain.review(token, now_s=0)
        assert protected.app.token.asked == before + 2
    actor = (await chain.review("good", now_s=0)).actor
    assert actor is not None
    assert actor.groups == ("dev", "system:authenticated")
    assert actor.extra == {"a": ("b",)}
    await transport.close()
    await protected.cluster.lines[0].cut()
    clock.at += 20
    answer = await chain.review("good", now_s=0)
    assert answer.actor is None
    assert "cannot be verified here" in answer.error
    await transport.close()
