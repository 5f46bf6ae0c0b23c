from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from waypost.access.actor import Actor
from waypost.access.audit.log import AuditLog, LogSettings
from waypost.access.audit.policy import Level, Policy, Rule
from waypost.access.audit.trail import NotedChain
from waypost.access.authn import anonymous
from waypost.access.authn.records import Authentication
from waypost.access.authz.decision import Step
from waypost.access.gate import Attributes, Gate
from waypost.base.clock import SystemClock
from waypost.base.errors import Forbidden, Malformed, Unauthenticated
from waypost.surfaces.http.audit import Auditor
from waypost.surfaces.http.guard import Guard
from waypost.surfaces.http.message import Head, Headers, Peer, Rendered, Request, Response
from waypost.surfaces.http.router import Route, Router

ANNA = Actor(user="anna", groups=("dev",))
ASKED = Attributes("update", "services", "web")


class Remote:
    """An authorizer that has to be asked over the network; says yes to the names in `yes`."""

    name = 'Webhook "test"'

    def __init__(self, *yes: str, keeps: bool = True) -> None:
        self.yes = yes
        self.keeps = keeps
        self.known: dict[Attributes, Step] = {}
        self.calls = 0

    def authorize(self, _actor: Actor, asked: Attributes) -> Step | None:
        return self.known.get(asked)

    async def resolve(self, _actor: Actor, asked: Attributes) -> Step:
        self.calls += 1
        await asyncio.sleep(0)
        step = Step(
            authorizer=self.name, verdict="allow" if asked.name in self.yes else "no-opinion"
        )
        if self.keeps:
            self.known[asked] = step
        return step


class Local:
    """An authorizer that knows at once."""

    name = "Local"

    def authorize(self, actor: Actor, _asked: Attributes) -> Step:
        allowed = actor.user == "anna"
        return Step(
            authorizer=self.name, verdict="allow" if allowed else "no-opinion", reason="a test"
        )


def request(*, body: bytes = b"", target: bytes = b"/x?token=hidden") -> Request:
    head = Head(method="PUT", target=target, headers=Headers([(b"User-Agent", b"test")]))
    return Request(head, body=body, peer=Peer(listener="http", address="10.0.0.1"), arrived_s=0.0)


class Setting:
    """A guard with an audit log in front of one handler."""

    def __init__(
        self, path: Path, handler: Any, *, level: Level = Level.REQUEST_RESPONSE, **options: Any
    ) -> None:
        self.path = path
        clock = SystemClock()
        self.log = AuditLog(LogSettings(path=str(path), **options), clock=clock)
        self.ids = iter(f"id-{n}" for n in range(100))
        auditor = Auditor(
            Policy((Rule(level=level),)),
            self.log,
            asked_of=lambda _head: ASKED,
            new_id=lambda: next(self.ids),
            clock=clock,
        )
        self.found = Authentication(actor=ANNA)
        router = Router([Route("/x", {"PUT": handler})])
        self.guard = Guard(router, lambda _request: self.found, auditor=auditor)

    async def ask(self, **options: Any) -> Any:
        answer = self.guard.answer(request(**options))
        return await answer if inspect.isawaitable(answer) else answer

    async def events(self) -> list[dict[str, Any]]:
        await self.log.written()
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Any]:
    made: list[Setting] = []

    def make(handler: Any, **options: Any) -> Setting:
        one = Setting(tmp_path / "audit.log", handler, **options)
        one.log.open()
        made.append(one)
        return one

    yield make
    for one in made:
        await one.log.close()


async def test_a_request_has_two_events_and_its_answer_the_id(setting: Any) -> None:
    gate = Gate(NotedChain([Local()]))

    def handler(asked: Request) -> Response:
        assert asked.identity is not None
        gate.admit(asked.identity.actor, ASKED)
        return Response(body=b'{"done":true}')

    one = setting(handler)
    answer = await one.ask(body=b'{"Name":"web","Token":"hidden"}')
    assert answer.headers[0] == ("Audit-Id", "id-0")
    received, complete = await one.events()
    assert (received["stage"], complete["stage"]) == ("RequestReceived", "ResponseComplete")
    assert complete["requestObject"] == {"Name": "web", "Token": "REDACTED"}
    assert complete["responseObject"] == {"done": True}
    assert complete["annotations"] == {
        "authorization.k8s.io/decision": "allow",
        "authorization.k8s.io/reason": "a test",
        "access.waypost.io/authorizer": "Local",
    }
    assert "hidden" not in one.path.read_text()


async def test_a_refusal_is_written_with_its_answer(setting: Any) -> None:
    gate = Gate(NotedChain([Local()]))

    async def handler(asked: Request) -> Response:
        gate.admit(anonymous("10.0.0.1"), ASKED)
        raise AssertionError(asked)

    one = setting(handler)
    answer = await one.ask()
    assert answer.status == 403
    event = (await one.events())[-1]
    assert event["responseStatus"]["code"] == 403
    assert event["annotations"]["authorization.k8s.io/decision"] == "forbid"


async def test_nobody_is_one_event(setting: Any) -> None:
    one = setting(lambda _request: Response())
    one.found = Authentication(actor=None, error="bad token")
    answer = await one.ask()
    assert (answer.status, answer.headers[0][0]) == (401, "Audit-Id")
    (event,) = await one.events()
    assert (event["stage"], event["user"]) == ("ResponseStarted", {})


async def test_other_errors_faults_and_clients_that_go_away(setting: Any) -> None:
    waiting = asyncio.Event()

    async def handler(asked: Request) -> Response:
        match asked.body:
            case b"bad":
                msg = "that is wrong"
                raise Malformed(msg)
            case b"fault":
                raise RuntimeError("a bug")
        waiting.set()
        await asyncio.sleep(60)
        return Response()

    one = setting(handler, level=Level.METADATA)
    assert (await one.ask(body=b"bad")).status == 400
    with pytest.raises(RuntimeError):
        await one.ask(body=b"fault")
    task = asyncio.create_task(one.ask())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ends = [e for e in await one.events() if e["stage"] != "RequestReceived"]
    assert [(e["stage"], e["responseStatus"]["code"]) for e in ends] == [
        ("ResponseComplete", 400),
        ("Panic", 500),
        ("ResponseComplete", 499),
    ]


async def test_a_stream_is_written_at_its_beginning_and_its_end(setting: Any) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    one = setting(lambda _request: Response(stream=chunks()))
    answer = await one.ask()
    assert [e["stage"] for e in await one.events()] == ["RequestReceived", "ResponseStarted"]
    assert [chunk async for chunk in answer.stream] == [b"a", b"b"]
    assert (await one.events())[-1]["stage"] == "ResponseComplete"


async def test_a_shared_answer_stays_without_the_id_of_one_request(setting: Any) -> None:
    shared = Rendered(Response(body=b"x" * 2000, content_type="text/plain"))
    one = setting(lambda _request: shared)
    answer = await one.ask()
    assert b"Audit-Id: id-0\r\n" in answer.tail(gzip=False)
    assert b"Vary: Accept-Encoding\r\n" in answer.tail(gzip=False)
    assert answer.tail(gzip=False).endswith(b"x" * 2000)
    assert b"Content-Encoding: gzip" in answer.tail(gzip=True)
    assert b"Audit-Id" not in shared.tail(gzip=True)


async def test_blocking_answers_only_what_is_written(setting: Any) -> None:
    one = setting(lambda _request: Response(), blocks=True)
    await one.ask()
    assert one.path.read_text().count("ResponseComplete") == 1


# -- webhooks ----------------------------------------------------------------------------------------------------------------


def asking(remote: Remote, *names: str) -> tuple[Guard, list[int]]:
    chain = NotedChain([remote])
    gate = Gate(chain)
    effects: list[int] = []

    async def handler(asked: Request) -> Response:
        assert asked.identity is not None
        for name in names:
            gate.admit(asked.identity.actor, Attributes("update", "services", name))
        effects.append(1)
        return Response()

    router = Router([Route("/x", {"PUT": handler})])
    guard = Guard(router, lambda _request: Authentication(actor=ANNA), resolve=chain.resolve)
    return guard, effects


async def test_a_webhook_is_asked_and_then_the_handler_again() -> None:
    remote = Remote("a", "b")
    guard, effects = asking(remote, "a", "b")
    answer = guard.answer(request())
    assert inspect.isawaitable(answer)
    assert (await answer).status == 200
    assert (remote.calls, effects) == (2, [1])


async def test_what_the_webhook_refuses_is_refused() -> None:
    remote = Remote("a")
    guard, effects = asking(remote, "a", "b")
    with pytest.raises(Forbidden):
        await guard.answer(request())  # type: ignore[misc]
    assert effects == []


async def test_an_answer_that_is_not_kept_holds_for_the_request() -> None:
    remote = Remote("a", keeps=False)
    guard, effects = asking(remote, "a", "a")
    assert (await guard.answer(request())).status == 200  # type: ignore[misc]
    assert (remote.calls, effects) == (1, [1])
    assert (await guard.answer(request())).status == 200  # type: ignore[misc]
    assert remote.calls == 2


def test_without_a_credential_that_counts_nobody_gets_in() -> None:
    router = Router([Route("/x", {"PUT": lambda _request: Response()})])
    guard = Guard(router, lambda _request: Authentication(actor=None))
    with pytest.raises(Unauthenticated):
        guard.answer(request())


async def test_a_request_that_wants_to_be_another_is_answered_as_that_one() -> None:
    seen: list[str] = []

    def handler(asked: Request) -> Response:
        assert asked.identity is not None
        assert asked.identity.actor is not None
        seen.append(asked.identity.actor.user)
        return Response()

    async def become(asked: Request, actor: Actor) -> Actor:
        if asked.headers.get("impersonate-user") == "nobody":
            raise Forbidden("no")
        return Actor(user=f"{asked.headers.get('impersonate-user')} by {actor.user}")

    router = Router([Route("/x", {"PUT": handler})])
    guard = Guard(router, lambda _request: Authentication(actor=ANNA), impersonate=become)

    async def ask(*fields: tuple[bytes, bytes]) -> None:
        head = Head(method="PUT", target=b"/x", headers=Headers(fields))
        peer = Peer(listener="http", address="10.0.0.1")
        answer = guard.answer(Request(head, body=b"", peer=peer, arrived_s=0.0))
        if inspect.isawaitable(answer):
            await answer

    await ask((b"User-Agent", b"test"))
    await ask((b"IMPERSONATE-User", b"bob"))
    with pytest.raises(Forbidden):
        await ask((b"Impersonate-User", b"nobody"))
    assert seen == ["anna", "bob by anna"]
