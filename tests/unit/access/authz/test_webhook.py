"""The webhook against a real HTTP server on loopback."""

from __future__ import annotations

import contextlib

import aiohttp
import pytest
from aiohttp import web

from waypost.access.actor import Actor
from waypost.access.authz.webhook import WebhookAuthorizer, WebhookSettings
from waypost.access.gate import Attributes

ANN = Actor(user="u", groups=("g",), uid="7", extra={"k": ("v",)})
PODS = Attributes("list", "pods", group="", namespace="n1", version="v1")


class HandClock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.seconds


class Peer:
    """Answers with what is queued, the last for ever; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[object] = []
        self.asked: list[dict] = []
        self.queries: list[str] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        self.queries.append(request.query_string)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, int):
            return web.Response(status=answer, headers={"Location": "/elsewhere"})
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return web.json_response(
            {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": answer}
        )  # fmt: skip


@contextlib.asynccontextmanager
async def running(peer: Peer, **settings):
    app = web.Application()
    app.router.add_post("/authorize", peer.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    clock = HandClock()
    given = {"name": "w", "url": f"http://127.0.0.1:{port}/authorize", "retry_delay_s": 0.001}
    async with aiohttp.ClientSession() as session:
        yield (
            WebhookAuthorizer(WebhookSettings(**(given | settings)), session=session, clock=clock),
            clock,
        )
    await runner.cleanup()


@pytest.fixture
def peer():
    return Peer()


async def test_the_question_is_a_subject_access_review(peer):
    peer.answers = [{"allowed": True, "reason": "fine"}]
    async with running(peer) as (webhook, _):
        step = await webhook.resolve(ANN, PODS)
        await webhook.resolve(ANN, Attributes("get", path="/metrics", group=""))
    assert (step.authorizer, step.verdict, step.reason) == ('Webhook "w"', "allow", "fine")
    assert peer.queries[0] == "timeout=30s"
    assert peer.asked[0] == {
        "kind": "SubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {"creationTimestamp": None},
        "spec": {
            "resourceAttributes": {
                "namespace": "n1",
                "verb": "list",
                "version": "v1",
                "resource": "pods",
            },
            "user": "u",
            "groups": ["g"],
            "extra": {"k": ["v"]},
            "uid": "7",
        },
        "status": {"allowed": False},
    }
    assert peer.asked[1]["spec"]["nonResourceAttributes"] == {"path": "/metrics", "verb": "get"}


@pytest.mark.parametrize(
    ("status", "verdict", "error"),
    [
        ({"allowed": True}, "allow", ""),
        ({"allowed": False, "reason": "no"}, "no-opinion", ""),
        ({"allowed": False, "denied": True}, "deny", ""),
        (
            {"allowed": True, "denied": True},
            "deny",
            "webhook subject access review returned both allow and deny response",
        ),
        ({}, "no-opinion", ""),
    ],
)
async def test_answers(peer, status, verdict, error):
    peer.answers = [status]
    async with running(peer) as (webhook, _):
        step = await webhook.resolve(ANN, PODS)
    assert (step.verdict, step.error, step.reason) == (verdict, error, status.get("reason", ""))


@pytest.mark.parametrize(
    ("status", "fresh_s"),
    [({"allowed": True}, 300), ({"allowed": False}, 30), ({"allowed": True, "denied": True}, 30)],
)
async def test_answers_are_kept_for_their_time(peer, status, fresh_s):
    peer.answers = [status]
    async with running(peer) as (webhook, clock):
        assert webhook.authorize(ANN, PODS) is None
        step = await webhook.resolve(ANN, PODS)
        clock.seconds += fresh_s - 0.1
        assert webhook.authorize(ANN, PODS) == step
        assert await webhook.resolve(ANN, PODS) == step
        assert webhook.authorize(Actor(user="u", groups=("g",)), PODS) is None
        clock.seconds += 0.1
        assert webhook.authorize(ANN, PODS) is None
    assert len(peer.asked) == 1


async def test_long_questions_are_not_kept(peer):
    peer.answers = [{"allowed": True}]
    async with running(peer) as (webhook, _):
        long = Attributes("get", path="/" + "x" * 20_000)
        await webhook.resolve(ANN, long)
        assert webhook.authorize(ANN, long) is None


async def test_it_is_asked_again_when_that_may_help(peer):
    peer.answers = [503, 429, 500, 502, {"allowed": True}]
    async with running(peer) as (webhook, _):
        assert (await webhook.resolve(ANN, PODS)).verdict == "allow"
    assert len(peer.asked) == 5


@pytest.mark.parametrize(
    ("answer", "tries", "said"),
    [
        (500, 5, "answered 500"),
        (404, 1, "answered 404"),
        (302, 1, "answered 302"),
        (b"<html>", 1, "did not answer with a SubjectAccessReview"),
        (b'{"kind":"Status","apiVersion":"v1"}', 1, "answered with Status of v1"),
        (b"x" * 2_000_000, 1, "more than 1048576 bytes"),
    ],
)
@pytest.mark.parametrize(("policy", "verdict"), [("NoOpinion", "no-opinion"), ("Deny", "deny")])
async def test_failures_follow_the_policy_and_are_not_kept(
    peer, answer, tries, said, policy, verdict
):
    peer.answers = [answer]
    async with running(peer, failure_policy=policy) as (webhook, _):
        step = await webhook.resolve(ANN, PODS)
        assert webhook.authorize(ANN, PODS) is None
    assert step.verdict == verdict
    assert said in step.error
    assert len(peer.asked) == tries


async def test_a_peer_that_is_not_there_is_an_error():
    async with aiohttp.ClientSession() as session:
        settings = WebhookSettings(name="w", url="http://127.0.0.1:1/x", retry_delay_s=0.001)
        webhook = WebhookAuthorizer(settings, session=session, clock=HandClock())
        step = await webhook.resolve(ANN, PODS)
    assert step.verdict == "no-opinion"
    assert "http://127.0.0.1:1/x" in step.error


async def test_requests_that_are_not_its_business_are_not_sent(peer):
    async with aiohttp.ClientSession() as session:
        webhook = WebhookAuthorizer(
            WebhookSettings(name="w", url="http://127.0.0.1:1/x"),
            session=session,
            clock=HandClock(),
            matches=lambda _actor, asked: asked.namespace == "n2",
        )
        step = webhook.authorize(ANN, PODS)
    assert step is not None
    assert (step.verdict, step.error) == ("no-opinion", "")
