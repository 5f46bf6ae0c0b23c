"""Writes and refusals recorded from a real API server, sent through the whole surface."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from waypost.access.actor import AUTHENTICATED, Actor
from waypost.wire.kube.resources import BUILT_IN

DATA = Path(__file__).parents[3] / "conformance" / "access" / "data"
RBAC = "rbac.authorization.k8s.io"


def records(name):
    return [json.loads(line) for line in (DATA / name).read_text().splitlines() if line]


WRITES = [one for one in records("decisions.jsonl") if one["type"] == "write"]
REFUSED = [
    one
    for one in records("request-attributes.jsonl")
    if one["statusAsUnprivileged"] == 403
    and one["path"].startswith(("/api/", "/apis/", "/healthz"))  # the paths of this surface
    and "//" not in one["path"]  # the router redirects to the clean path first
]


def path_of(document):
    resource = BUILT_IN.of_kind(api_version=f"{RBAC}/v1", kind=document["kind"])
    return resource.list_path(namespace=document["metadata"].get("namespace", ""))


async def put_there(api, documents):
    """Store what a case starts from."""
    for document in documents:
        namespace = document["metadata"].get("namespace")
        if namespace and api.state.view.object("", "namespaces", "", namespace) is None:
            await api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        answer = await api.ask("POST", path_of(document), document)
        assert answer.status in (201, 409), (document, answer)


@pytest.mark.parametrize("case", WRITES, ids=lambda case: case["id"])
async def test_write(api, case):
    policy = case["policy"]
    if isinstance(policy, dict):
        policy = policy.get("add", [])
    await put_there(api, [] if policy == "default" else policy)
    existing = case.get("existing")
    await put_there(api, existing if isinstance(existing, list) else [existing] if existing else [])
    document = case.get("object") or existing
    namespace = document["metadata"].get("namespace")
    if namespace and api.state.view.object("", "namespaces", "", namespace) is None:
        await api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    who = Actor(user=case["user"], groups=tuple(case["groups"]))
    target = path_of(document)
    named = f"{target}/{document['metadata']['name']}"
    match case["op"]:
        case "create":
            answer = await api.ask("POST", target, document, actor=who)
        case "update":
            answer = await api.ask("PUT", named, document, actor=who)
        case "patch":
            merge = "application/merge-patch+json"
            answer = await api.ask("PATCH", named, case["patch"], actor=who, content_type=merge)
        case "delete":
            answer = await api.ask("DELETE", named, actor=who)
    assert answer.status == case["http"], (case["why"], answer)
    if "message" in case:
        assert answer.json["message"].startswith(case["message"])  # one recording is cut off


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case['method']} {case['path']}")
async def test_refusal(api, case):
    who = Actor(user="u1", groups=(AUTHENTICATED,))
    answer = await api.ask(case["method"], case["path"], actor=who)
    assert answer.status == 403, answer
    if case.get("message") and answer.text:
        assert (
            answer.json["message"].partition(" is forbidden: User ")[2].partition('" ')[2]
            == (case["message"].partition(" is forbidden: User ")[2].partition('" ')[2])
        )
