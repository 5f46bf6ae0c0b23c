"""The token webhook: what is sent, what is believed, what is remembered; over real HTTP."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from aiohttp import web

from waypost.access.authn.records import Accepted, Pending, Rejected, Skipped
from waypost.access.authn.remote import Endpoint, HttpsCaller
from waypost.access.authn.webhook import TokenWebhook
from waypost.base.errors import Malformed, Unavailable


class Clock:
    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def wall(self):
        return 0.0


class Hook:
    """What the other side saw, and what it answers."""

    def __init__(self):
        self.bodies = []
        self.headers = []
        self.answers = []

    async def handle(self, request):
        self.bodies.append(await request.json() if request.can_read_body else None)
        self.headers.append(request.headers)
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, body=body)


@pytest.fixture
async def hook():
    hook = Hook()
    app = web.Application()
    app.router.add_route("*", "/hook", hook.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    hook.url = f"http://127.0.0.1:{port}/hook"
    hook.caller = HttpsCaller(Endpoint(url=hook.url, token="hook-token"), rng=random.Random(1))
    yield hook
    await hook.caller.close()
    await runner.cleanup()


def status(**values):
    return 200, json.dumps({"status": values}).encode()


GOOD = {
    "authenticated": True,
    "user": {"username": "zoe", "uid": "7", "groups": ["g"], "extra": {"k": ["v"]}},
}


async def ask(webhook, token="secret-token", audiences=()):
    verdict = webhook.authenticate_token(token, audiences=audiences, now_s=0.0)
    return await verdict.ask() if isinstance(verdict, Pending) else verdict


async def test_what_is_sent_and_believed(hook):
    hook.answers = [status(**GOOD)]
    webhook = TokenWebhook(hook.caller.post, clock=Clock(), audiences=("https://me",))
    identity = (await ask(webhook)).identity
    assert (identity.user, identity.uid, identity.groups) == ("zoe", "7", ("g",))
    assert identity.extra == {"k": ("v",)}
    assert hook.bodies == [
        {
            "kind": "TokenReview",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"creationTimestamp": None},
            "spec": {"token": "secret-token", "audiences": ["https://me"]},
            "status": {"user": {}},
        }
    ]
    assert hook.headers[0]["Authorization"] == "Bearer hook-token"


async def test_answers_are_remembered_for_a_while(hook):
    clock = Clock()
    hook.answers = [status(**GOOD), status(authenticated=False, error="hook rejects")]
    webhook = TokenWebhook(hook.caller.post, clock=clock, ttl_s=120)
    assert isinstance(await ask(webhook), Accepted)
    clock.time = 119.0
    found = webhook.authenticate_token("secret-token", audiences=(), now_s=5000.0)
    assert isinstance(found, Accepted)
    assert (found.is_steady, found.steady_until_s) == (True, 5001.0)
    assert isinstance(await ask(webhook, "other"), Rejected)
    clock.time = 121.0
    assert await ask(webhook) == Rejected(error="hook rejects")
    assert len(hook.bodies) == 3
    assert await ask(webhook) == Rejected(error="hook rejects")
    assert len(hook.bodies) == 3, "bad answers are remembered as well"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (status(authenticated=False), Skipped),
        (status(), Skipped),
        ((200, b"{}"), Skipped),
        (status(authenticated=True, user={}), Rejected),
        (status(authenticated=True), Rejected),
        (status(authenticated="true", user={"username": "zoe"}), Rejected),
        ((200, b"not json"), Rejected),
        ((200, b"\xff\xfe"), Rejected),
        ((403, b"{}"), Rejected),
        ((302, b""), Rejected),
        (status(**GOOD, audiences=["else"]), Rejected),
        (status(**GOOD, audiences=["a", "else"]), Accepted),
    ],
)
async def test_answers(hook, answer, kind):
    hook.answers = [answer]
    verdict = await ask(TokenWebhook(hook.caller.post, clock=Clock()), audiences=("a", "b"))
    assert isinstance(verdict, kind), verdict
    if kind is Accepted:
        assert verdict.identity.audiences == ("a",)
    assert "secret-token" not in repr(verdict)


async def test_a_stumbling_webhook_is_asked_again(hook, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("waypost.access.authn.remote.asyncio.sleep", sleep)
    hook.answers = [(500, b""), (429, b""), status(**GOOD)]
    assert isinstance(await ask(TokenWebhook(hook.caller.post, clock=Clock())), Accepted)
    assert [0.5 <= slept[0] <= 0.6, 0.75 <= slept[1] <= 0.9] == [True, True]
    hook.answers = [(503, b"")]
    with pytest.raises(Unavailable, match="status 503"):
        await hook.caller.get()
    assert len(hook.bodies) == 3 + 5


async def test_an_answer_without_end(hook):
    hook.answers = [(200, b"x" * ((1 << 20) + 10))]
    with pytest.raises(Unavailable, match="larger"):
        await hook.caller.get()


def test_where_to_call():
    with pytest.raises(Malformed):
        HttpsCaller(Endpoint(url="file:///etc/passwd"), rng=random.Random(1))
    with pytest.raises(Malformed, match="cannot be used"):
        HttpsCaller(Endpoint(url="https://x", certificate_pem=b"junk"), rng=random.Random(1))
    assert "sekret" not in repr(Endpoint(url="https://x", token="sekret", password="sekret"))


async def test_nothing_is_called_after_the_end():
    caller = HttpsCaller(Endpoint(url="http://127.0.0.1:1"), rng=random.Random(1))
    await caller.close()
    with pytest.raises(Unavailable, match="not called any more"):
        await caller.post(b"{}")


class Slow:
    """A webhook that answers when it is told to."""

    def __init__(self):
        self.bodies = []
        self.gate = asyncio.Event()
        self.fails = False

    async def post(self, body):
        self.bodies.append(json.loads(body)["spec"]["token"])
        await self.gate.wait()
        if self.fails:
            raise Unavailable("gone")
        return status(**GOOD)[1]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_equal_questions_share_one_call():
    slow, clock = Slow(), Clock()
    webhook = TokenWebhook(slow.post, clock=clock)
    tasks = [asyncio.create_task(ask(webhook)) for _ in range(5)]
    tasks.append(asyncio.create_task(ask(webhook, "other")))
    tasks.append(asyncio.create_task(ask(webhook, audiences=("a",))))
    await settle()
    assert slow.bodies == ["secret-token", "other", "secret-token"]
    # Who asked first goes away, and one of the others: the rest is answered all the same.
    tasks[0].cancel()
    tasks[3].cancel()
    await settle()
    slow.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [
        asyncio.CancelledError, Accepted, Accepted, asyncio.CancelledError, Accepted, Accepted, Accepted,
    ]  # fmt: skip
    assert len(slow.bodies) == 3
    assert webhook._flights == {}


async def test_a_question_that_nobody_waits_for_is_dropped():
    slow = Slow()
    webhook = TokenWebhook(slow.post, clock=Clock())
    tasks = [asyncio.create_task(ask(webhook)) for _ in range(2)]
    await settle()
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await settle()
    assert [t for t in asyncio.all_tasks() if t.get_name() == "token webhook"] == []
    assert webhook._flights == {}
    # The next one asks anew.
    slow.gate.set()
    assert isinstance(await ask(webhook), Accepted)
    assert len(slow.bodies) == 2


async def test_a_failure_is_shared_and_not_remembered():
    slow = Slow()
    slow.fails = True
    webhook = TokenWebhook(slow.post, clock=Clock())
    tasks = [asyncio.create_task(ask(webhook)) for _ in range(3)]
    await settle()
    slow.gate.set()
    assert await asyncio.gather(*tasks) == [Rejected(error="gone")] * 3
    assert len(slow.bodies) == 1
    slow.fails = False
    assert isinstance(await ask(webhook), Accepted)
