"""A webhook that decides, as a real HTTPS server which wants a client certificate: answers, memory, failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .api import RBAC, Api, certificate_of
from .conftest import Protected
from .peers import Authority, Peer, Sent, kubeconfig

TOKENS = """\
token-of-eve,eve,1001
token-of-bob,bob,1002
"""
Decide = Callable[[dict[str, Any]], dict[str, Any]]


class Judge:
    """The webhook. `decide` gets the `spec` of a review and returns its `status`."""

    def __init__(self) -> None:
        self.authority, self.clients = Authority("servers"), Authority("agents")
        self.decide: Decide = lambda _spec: {"allowed": False}
        self.status = 200
        self.specs: list[dict[str, Any]] = []
        self.peer = Peer(self.authority, self.answer, clients=self.clients)

    def answer(self, sent: Sent) -> tuple[int, Any]:
        review = sent.json
        assert (review["apiVersion"], review["kind"]) == (
            "authorization.k8s.io/v1",
            "SubjectAccessReview",
        )
        self.specs.append(review["spec"])
        if self.status != 200:
            return self.status, b"no"
        review["status"] = self.decide(review["spec"])
        return 200, review

    def file(self, folder: Path) -> Path:
        return kubeconfig(
            folder / "judge.conf",
            url=f"{self.peer.url}/authorize",
            authority=self.authority,
            client=self.clients.issue("waypost"),
        )


@pytest.fixture
def judge() -> Iterator[Judge]:
    one = Judge()
    yield one
    one.peer.close()


def start(judge: Judge, folder: Path, *, policy: str, keeps: bool = False) -> Protected:
    plan = {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthorizationConfiguration",
        "authorizers": [
            {
                "type": "Webhook",
                "name": "judge",
                "webhook": {
                    "timeout": "3s",
                    "subjectAccessReviewVersion": "v1",
                    "matchConditionSubjectAccessReviewVersion": "v1",
                    "failurePolicy": policy,
                    "cacheAuthorizedRequests": keeps,
                    "cacheUnauthorizedRequests": keeps,
                    "connectionInfo": {
                        "type": "KubeConfigFile",
                        "kubeConfigFile": str(judge.file(folder)),
                    },
                },
            },
            {"type": "RBAC", "name": "rbac"},
        ],
    }
    file = folder / "authorization.json"
    file.write_text(json.dumps(plan))
    agent = Protected(f"-authorization-config={file}", tokens=TOKENS)
    try:
        agent.process.start()
    except BaseException:
        agent.process.close()
        raise
    return agent


def of_eve(spec: dict[str, Any]) -> dict[str, Any]:
    """Eve may everything but what is called `forbidden`; about others nothing is said."""
    if spec["user"] != "eve":
        return {"allowed": False}
    asked = spec.get("resourceAttributes") or spec.get("nonResourceAttributes")
    if "forbidden" in json.dumps(asked):
        return {"allowed": False, "denied": True, "reason": "never"}
    return {"allowed": True, "reason": "eve may"}


def secret(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}


SECRETS = "/api/v1/namespaces/default/secrets"


@pytest.mark.parametrize("keeps", [False, True], ids=["asked each time", "remembered"])
def test_what_the_webhook_allows_and_denies(judge: Judge, tmp_path: Path, keeps: bool) -> None:
    judge.decide = of_eve
    agent = start(judge, tmp_path, policy="NoOpinion", keeps=keeps)
    try:
        with Api(agent.https, token="token-of-eve") as eve:
            # Objects: read, made, put where there was none, patched, listed, deleted.
            assert eve.ask("GET", f"{SECRETS}/a").status == 404
            assert eve.ask("POST", SECRETS, secret("a")).status == 201
            assert eve.ask("GET", f"{SECRETS}/a").status == 200
            assert eve.ask("GET", SECRETS).status == 200
            patched = eve.ask(
                "PATCH",
                f"{SECRETS}/a",
                {"metadata": {"labels": {"x": "y"}}},
                content_type="application/merge-patch+json",
            )
            assert patched.status == 200
            assert eve.ask("DELETE", f"{SECRETS}/a").status == 200
            assert eve.ask("DELETE", SECRETS).status == 200
            role = {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": "made-by-eve"},
                "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
            }
            # Two further questions: may she create by PUT, and may she escalate.
            assert eve.ask("PUT", f"{RBAC}/clusterroles/made-by-eve", role).status == 201
            verbs = [one["resourceAttributes"]["verb"] for one in judge.specs]
            assert {"update", "create", "escalate"} <= set(verbs)

            refused = eve.ask("GET", f"{SECRETS}/forbidden")
            assert refused.status == 403
            assert refused.message.endswith('in the namespace "default": never')
            assert refused.json["reason"] == "Forbidden"

            # Consul's endpoints go the same way.
            assert eve.ask("PUT", "/v1/kv/a", b"x").status == 200
            assert eve.ask("GET", "/v1/kv/a?raw").text == "x"
            assert eve.ask("PUT", "/v1/kv/forbidden", b"x").status == 403
            assert eve.ask("PUT", "/v1/agent/service/register", {"Name": "web"}).status == 200
            assert eve.ask("PUT", "/v1/txn", [{"KV": {"Verb": "get", "Key": "a"}}]).status == 200
            seen = len(judge.specs)
            for _ in range(3):
                assert eve.ask("GET", "/v1/kv/a?raw").text == "x"
                assert eve.ask("GET", f"{SECRETS}/forbidden").status == 403
            assert len(judge.specs) - seen == (0 if keeps else 6)
            sent = judge.specs[-1]
            assert sent["user"] == "eve"
            assert sent["groups"] == ["system:authenticated"]
        with Api(agent.https, token="token-of-bob") as bob:
            assert bob.ask("PUT", "/v1/kv/a", b"x").status == 403  # nobody said yes
            assert bob.ask("GET", "/v1/catalog/services").status == 200  # RBAC did
        assert agent.process.terminate() == 0
        log = agent.process.log()
        assert "Unclosed" not in log
        assert "Traceback" not in log
    finally:
        agent.process.close()


@pytest.mark.parametrize("policy", ["NoOpinion", "Deny"])
def test_a_webhook_that_fails(judge: Judge, tmp_path: Path, policy: str) -> None:
    judge.status = 400  # trying again would not help
    agent = start(judge, tmp_path, policy=policy)
    try:
        with Api(agent.https, token="token-of-bob") as bob:
            asked_rbac = bob.ask("GET", "/version")
            assert asked_rbac.status == (200 if policy == "NoOpinion" else 500)
            assert bob.ask("GET", "/v1/catalog/services").status == (
                200 if policy == "NoOpinion" else 403
            )
            refused = bob.ask("GET", SECRETS)
            assert refused.status == 500  # nobody knows, so nobody can say that it is forbidden
            assert refused.text.startswith(f'Internal Server Error: "{SECRETS}": ')
            assert "answered 400" in refused.text
        pair = certificate_of(agent.process.data / "admin.conf", agent.folder)
        seen = len(judge.specs)
        with Api(agent.https, certificate=pair) as admin:
            assert admin.ask("GET", SECRETS).status == 200  # system:masters need nobody
        assert len(judge.specs) == seen
        judge.status, judge.decide = 200, lambda _spec: {"allowed": True}
        with Api(agent.https, token="token-of-bob") as bob:
            assert bob.ask("GET", SECRETS).status == 200  # a failure is not remembered
    finally:
        agent.process.close()


def test_a_webhook_that_is_away_and_comes_back(judge: Judge, tmp_path: Path) -> None:
    agent = start(judge, tmp_path, policy="Deny")
    port = judge.peer.port
    judge.peer.close()
    try:
        with Api(agent.https, token="token-of-eve") as eve:
            assert eve.ask("GET", SECRETS).status == 500  # after five tries
            judge.decide = of_eve
            judge.peer = Peer(judge.authority, judge.answer, clients=judge.clients, port=port)
            assert eve.ask("GET", SECRETS).status == 200
    finally:
        agent.process.close()
