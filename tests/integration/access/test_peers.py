"""Others that say who somebody is, each a real HTTPS server: an OIDC issuer, a token webhook, a front proxy."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from .api import AUTHENTICATION, Api, Reply, certificate_of
from .conftest import Protected
from .peers import CLIENT, DAY, SERVER, Authority, Pair, Peer, Sent, kubeconfig

CLIENT_ID = "waypost"
WHOAMI = "/v1/waypost/auth/whoami"
REFETCH_S = 10.0
"""How long an agent waits before it asks the issuer for its keys again."""


class Key:
    """A signing key of the issuer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def public(self) -> dict[str, Any]:
        found = jwt.algorithms.RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**found, "kid": self.name, "use": "sig", "alg": "RS256"}


class Issuer:
    """An OIDC issuer that may be away."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.keys = [Key("one")]
        self.failing = 0
        self.fetched: list[str] = []
        self.peer: Peer | None = None
        with Peer(authority, self.answer) as peer:
            self.port = peer.port  # ours from now on

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def answer(self, sent: Sent) -> tuple[int, Any]:
        self.fetched.append(sent.target)
        if self.failing:
            return self.failing, b"<html>"
        if sent.target == "/.well-known/openid-configuration":
            return 200, {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        time.sleep(0.1)  # long enough for others to come meanwhile
        return 200, {"keys": [one.public for one in self.keys]}

    def start(self) -> None:
        self.peer = Peer(self.authority, self.answer, port=self.port)

    def stop(self) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer = None

    def token(self, *, key: Key | None = None, **claims: Any) -> str:
        key = key or self.keys[0]
        now = int(time.time())
        body = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "sub": "u-1",
            "email": "ann@example.org",
            "groups": ["dev", "ops"],
            "iat": now,
            "exp": now + 600,
            **claims,
        }
        return jwt.encode(body, key.private, algorithm="RS256", headers={"kid": key.name})


class Hook:
    """A service that knows tokens. It wants a client certificate of `clients`."""

    def __init__(self, authority: Authority, clients: Authority) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.status = 200
        self.reviews: list[dict[str, Any]] = []
        self.targets: list[str] = []
        self.peer = Peer(authority, self.answer, clients=clients)

    def answer(self, sent: Sent) -> tuple[int, Any]:
        review = sent.json
        self.targets.append(sent.target)
        self.reviews.append(review)
        if self.status != 200:
            return self.status, b"no"
        status = self.answers.get(review["spec"]["token"], {"authenticated": False})
        return 200, {"apiVersion": review["apiVersion"], "kind": "TokenReview", "status": status}

    def count(self, token: str) -> int:
        return sum(one["spec"]["token"] == token for one in self.reviews)


class World:
    """An agent and everybody it asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority("servers")
        self.clients = Authority("webhook clients")
        self.proxies = Authority("proxies")
        self.issuer = Issuer(self.authority)
        self.hook = Hook(self.authority, self.clients)
        ca = folder / "servers.pem"
        ca.write_bytes(self.authority.pem)
        proxies = folder / "proxies.pem"
        proxies.write_bytes(self.proxies.pem)
        hook = kubeconfig(
            folder / "hook.conf",
            url=f"{self.hook.peer.url}/authenticate",
            authority=self.authority,
            client=self.clients.issue("waypost"),
        )
        self.agent = Protected(
            f"-oidc-issuer-url={self.issuer.url}",
            f"-oidc-client-id={CLIENT_ID}",
            "-oidc-username-claim=email",
            "-oidc-username-prefix=oidc:",
            "-oidc-groups-claim=groups",
            "-oidc-groups-prefix=oidc:",
            f"-oidc-ca-file={ca}",
            f"-authentication-token-webhook-config-file={hook}",
            "-authentication-token-webhook-cache-ttl=1s",
            f"-requestheader-client-ca-file={proxies}",
            "-requestheader-allowed-names=front",
        )

    def ask(
        self,
        *,
        token: str = "",
        pair: Pair | None = None,
        headers: Any = (),
        target: str = WHOAMI,
        is_tls: bool = True,
    ) -> Reply:
        certificate = None
        if pair is not None:
            certificate = pair.write(self.folder / "shown.pem")
        port = self.agent.https if is_tls else self.agent.process.http
        with Api(port, token=token, certificate=certificate, is_tls=is_tls) as api:
            return api.ask("GET", target, headers=headers)

    def user(self, **how: Any) -> str:
        reply = self.ask(**how)
        assert reply.status == 200, reply.body
        return str(reply.json["user"])

    def close(self) -> None:
        self.agent.process.close()
        self.issuer.stop()
        self.hook.peer.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    one = World(tmp_path_factory.mktemp("peers"))
    try:
        one.agent.process.start()  # the issuer is not there yet
        yield one
    finally:
        one.close()


def eventually(probe: Callable[[], bool], *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not probe():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.2)


def at_once(count: int, ask: Callable[[], Reply]) -> list[int]:
    """Send the same request `count` times at the same moment; return the statuses."""
    barrier = threading.Barrier(count)

    def one() -> int:
        barrier.wait()
        return ask().status

    with ThreadPoolExecutor(count) as pool:
        return [done.result() for done in [pool.submit(one) for _ in range(count)]]


# -- OIDC ------------------------------------------------------------------------------------------------------------------


def test_an_issuer_that_comes_later_and_changes_its_keys(world: World) -> None:
    issuer = world.issuer
    assert world.ask(token=issuer.token()).status == 401
    assert world.user(token="token-of-ops") == "ops"  # nobody else is hindered
    issuer.start()
    eventually(lambda: world.ask(token=issuer.token()).status == 200, within_s=REFETCH_S + 8)
    reply = world.ask(token=issuer.token())
    assert reply.json["user"] == "oidc:ann@example.org"
    assert reply.json["groups"] == ["oidc:dev", "oidc:ops", "system:authenticated"]
    seen = len(issuer.fetched)
    assert world.ask(token=issuer.token()).status == 200
    assert len(issuer.fetched) == seen

    old, new = issuer.keys[0], Key("two")
    issuer.keys = [new]
    assert world.ask(token=issuer.token(key=old)).status == 200  # nobody has asked yet
    time.sleep(REFETCH_S)
    # Everybody comes with the new key at once: one fetch, and nobody is turned away.
    fresh = issuer.token()
    assert at_once(12, lambda: world.ask(token=fresh)) == [200] * 12
    assert issuer.fetched[seen:] == ["/.well-known/openid-configuration", "/keys"]
    assert world.ask(token=issuer.token(key=old)).status == 401

    # An issuer that fails takes nothing away that is known.
    time.sleep(REFETCH_S)
    issuer.failing = 404
    assert world.ask(token=issuer.token(key=Key("three"))).status == 401
    assert world.ask(token=issuer.token()).status == 200
    issuer.failing = 0


def test_tokens_of_the_issuer_that_are_not_for_us(world: World) -> None:
    issuer = world.issuer
    if issuer.peer is None:
        issuer.start()
    eventually(lambda: world.ask(token=issuer.token()).status == 200, within_s=REFETCH_S + 8)
    now = int(time.time())
    for wrong in (
        {"aud": "somebody-else"},
        {"aud": []},
        {"aud": None},
        {"exp": now - 5},
        {"exp": None},
        {"exp": "tomorrow"},
        {"nbf": now + 600},
        {"iss": issuer.url + "/"},
        {"iss": "https://evil.example"},
        {"email": ""},
        {"email": None},
        {"email": 7},
        {"email_verified": False},
        {"groups": {"a": "b"}},
        {"groups": ["a", 1]},
    ):
        assert world.ask(token=issuer.token(**wrong)).status == 401, wrong
    assert world.ask(token=issuer.token(key=Key("one"))).status == 401
    assert world.ask(token=issuer.token(aud=["x", CLIENT_ID])).status == 200
    assert world.ask(token=issuer.token(groups="alone")).json["groups"][0] == "oidc:alone"
    # A prefix keeps the issuer from naming those who may everything.
    reply = world.ask(token=issuer.token(groups=["system:masters"]))
    assert reply.json["groups"] == ["oidc:system:masters", "system:authenticated"]


# -- the token webhook -------------------------------------------------------------------------------------------------------


def test_a_token_that_another_service_knows(world: World) -> None:
    hook = world.hook
    hook.answers["good"] = {
        "authenticated": True,
        "user": {
            "username": "hooked",
            "uid": "7",
            "groups": ["g1"],
            "extra": {"example.org/team": ["a", "b"]},
        },
    }
    reply = world.ask(token="good")
    assert reply.status == 200
    assert (reply.json["user"], reply.json["uid"]) == ("hooked", "7")
    assert reply.json["groups"] == ["g1", "system:authenticated"]
    assert reply.json["extra"] == {"example.org/team": ["a", "b"]}
    assert hook.targets[-1] == "/authenticate?timeout=30s"
    sent = hook.reviews[-1]
    assert (sent["apiVersion"], sent["kind"]) == ("authentication.k8s.io/v1", "TokenReview")
    assert sent["spec"]["token"] == "good"

    for _ in range(5):
        assert world.ask(token="good").status == 200
        assert world.ask(token="bad").status == 401
    assert (hook.count("good"), hook.count("bad")) == (1, 1)  # remembered
    del hook.answers["good"]
    eventually(lambda: world.ask(token="good").status == 401, within_s=3)
    assert hook.count("good") == 2


def test_what_comes_before_is_not_sent_to_the_webhook(world: World) -> None:
    assert world.user(token="token-of-ops") == "ops"
    assert world.hook.count("token-of-ops") == 0


def test_the_error_of_the_webhook_is_in_a_token_review(world: World) -> None:
    world.hook.answers["odd"] = {"authenticated": False, "error": "hook rejects"}
    pair = certificate_of(world.agent.process.data / "admin.conf", world.folder)
    with Api(world.agent.https, certificate=pair) as admin:
        reply = admin.ask(
            "POST",
            f"{AUTHENTICATION}/tokenreviews",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": "odd"},
            },
        )
    assert reply.status == 201
    assert reply.json["status"] == {"user": {}, "error": "[invalid bearer token, hook rejects]"}


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": True},
        {"authenticated": True, "user": {"username": ""}},
        {"authenticated": "yes", "user": {"username": "x"}},
        {"authenticated": True, "user": {"username": ["x"]}},
        {"authenticated": True, "user": {"username": "x"}, "audiences": ["other"]},
    ],
)
def test_answers_of_the_webhook_that_are_not_taken(world: World, status: dict[str, Any]) -> None:
    token = f"odd-{json.dumps(status, separators=(',', ':'))}"
    world.hook.answers[token] = status
    assert world.ask(token=token).status == 401


def test_a_webhook_that_fails_is_asked_again_and_not_remembered(world: World) -> None:
    hook = world.hook
    hook.answers["late"] = {"authenticated": True, "user": {"username": "late"}}
    hook.status = 400
    assert world.ask(token="late").status == 401
    assert hook.count("late") == 1  # trying again would not help
    hook.status = 503
    threading.Timer(0.7, lambda: setattr(hook, "status", 200)).start()
    assert world.user(token="late") == "late"
    assert hook.count("late") >= 3


def test_a_webhook_without_our_certificate_is_not_asked(tmp_path: Path) -> None:
    """The webhook wants a certificate that this agent does not have: nobody is believed, and the log says why."""
    authority, clients = Authority("servers"), Authority("webhook clients")
    hook = Hook(authority, clients)
    hook.answers["good"] = {"authenticated": True, "user": {"username": "x"}}
    file = kubeconfig(tmp_path / "hook.conf", url=hook.peer.url, authority=authority)
    agent = Protected(f"-authentication-token-webhook-config-file={file}")
    try:
        agent.process.start()
        with Api(agent.https, token="good") as api:
            assert api.ask("GET", WHOAMI).status == 401
        assert hook.reviews == []
        assert "not authenticated" in agent.process.log()
        assert "good" not in re.findall(r"\bgood\b", agent.process.log())
    finally:
        agent.process.close()
        hook.peer.close()


# -- front proxy -------------------------------------------------------------------------------------------------------------

NAMED = [
    ("X-Remote-User", "proxied"),
    ("X-Remote-Uid", "9"),
    ("X-Remote-Group", "a"),
    ("X-Remote-Group", "b"),
    ("X-Remote-Extra-Example.org%2Fteam", "t"),
]


def test_a_proxy_names_the_user(world: World) -> None:
    reply = world.ask(pair=world.proxies.issue("front"), headers=NAMED)
    assert reply.status == 200
    found = reply.json
    assert (found["user"], found["uid"]) == ("proxied", "9")
    assert found["groups"] == ["a", "b", "system:authenticated"]
    assert found["extra"] == {"example.org/team": ["t"]}


def test_who_is_no_proxy_names_nobody(world: World) -> None:
    forged = [("X-Remote-User", "kubernetes-admin"), ("X-Remote-Group", "system:masters")]
    other = Authority("proxies")  # the same name, another key
    for pair in (
        world.proxies.issue("back"),
        other.issue("front"),
        world.proxies.issue("front", start=-3 * DAY, end=-DAY),
        world.proxies.issue("front", start=DAY, end=2 * DAY),
        world.proxies.issue("front", usages=(SERVER,)),
        world.clients.issue("front"),
    ):
        assert world.ask(pair=pair, headers=forged).status == 401
    assert world.user(headers=forged) == "system:anonymous"
    assert world.user(headers=forged, is_tls=False) == "system:anonymous"
    assert world.user(headers=forged, token="token-of-ops") == "ops"
    pair = certificate_of(world.agent.process.data / "operator.conf", world.folder)
    with Api(world.agent.https, certificate=pair) as operator:
        found = operator.ask("GET", WHOAMI, headers=forged).json
    assert "system:masters" not in found["groups"]
    assert found["user"] != "kubernetes-admin"


def test_a_proxy_that_names_nobody_is_nobody(world: World) -> None:
    pair = world.proxies.issue("front", usages=(CLIENT,))
    assert world.ask(pair=pair).status == 401
    assert world.ask(pair=pair, headers=[("X-Remote-User", "")]).status == 401
    assert world.ask(pair=pair, headers=[("X-Remote-Group", "system:masters")]).status == 401
    # The proxy's own token is as good as anybody's.
    assert world.user(pair=pair, token="token-of-ops") == "ops"


# -- the end -----------------------------------------------------------------------------------------------------------------


def test_connections_are_closed_at_the_end(world: World) -> None:
    """Last in this file: it ends the agent, while connections to everybody are open."""
    world.hook.answers["last"] = {"authenticated": True, "user": {"username": "last"}}
    assert world.user(token="last") == "last"
    assert world.agent.process.terminate() == 0
    log = world.agent.process.log()
    assert "Unclosed" not in log
    assert "Traceback" not in log
    secrets = ("token-of-ops", "hook rejects token", world.issuer.token()[:40])
    assert not [one for one in secrets if one in log]
