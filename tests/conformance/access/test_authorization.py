"""What a real kube-apiserver 1.20 decided, case by case.

Left out or changed, each with its reason:

| cases | what | why |
|---|---|---|
| node, `expectSince132` | reading other nodes and other nodes' pods | the stricter answer of newer releases holds here |
| node, secrets … pods | decided by what runs on the node | which objects belong to a node is given by the test: `RELATED` |
| A167 | the reason | upstream's order is arbitrary; it named a default binding that is not in the case's policy |
| abac | the policy file | the recording does not hold the file; `ABAC_FILE` is what its cases describe |
| impersonate | what is asked when somebody is impersonated | authentication; the questions themselves are RBAC cases |
| write, A388 | the words after the colon | recorded empty: the second question is the storage's own |
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from waypost.access.actor import Actor
from waypost.access.authz.abac import AbacAuthorizer, parse_policies
from waypost.access.authz.attributes import request_attributes
from waypost.access.authz.bootstrap import node_rules
from waypost.access.authz.chain import MASTERS_STEP, Chain, conclude
from waypost.access.authz.decision import Step
from waypost.access.authz.escalation import Holdings, check_binding, check_role, exempt
from waypost.access.authz.fixed import AlwaysDeny
from waypost.access.authz.node import NodeAuthorizer
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.records import (
    GROUP,
    RESOURCES,
    binding_document,
    parse_binding,
    parse_role,
    role_document,
)
from waypost.access.authz.text import forbidden, forbidden_object
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed

from .policy import DATA, actor_of, asked_of, by_id, cases, documents, index_of

# -- RBAC ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", cases("sar"), ids=by_id)
def test_rbac_decides_as_recorded(row: dict[str, Any]):
    chain = Chain([_Rbac(index_of(row["policy"]))])
    decision = chain.authorize(actor_of(row), asked_of(row["request"]))
    assert decision is not None
    assert decision.verdict == row["expect"], row["why"]
    if row["id"] == "A167":
        assert 'to Group "system:unauthenticated"' in decision.reason
    elif "reason" in row:
        assert decision.reason == row["reason"]
    elif row["expect"] == "no-opinion":
        assert decision.reason == ""


class _Rbac:
    name = "RBAC"

    def __init__(self, index: RbacIndex) -> None:
        self._index = index

    def authorize(self, actor: Actor, asked: Attributes) -> Step:
        return self._index.decide(actor, asked)


# -- writing roles and bindings --------------------------------------------------------------------------------------------


def _write(row: dict[str, Any]) -> tuple[int, str]:
    """Do what the write path of a server does; return the status and the message of a refusal."""
    sent, op, actor = row["object"], row["op"], actor_of(row)
    kind, meta = sent["kind"], sent["metadata"]
    index = index_of(row["policy"] + row.get("existing", []))
    held = Holdings(Chain([_Rbac(index)]), index)
    old = next(
        (
            one
            for one in documents(row["policy"] + row.get("existing", []))
            if one["kind"] == kind and one["metadata"]["name"] == meta["name"]
        ),
        None,
    )
    url_name = "" if op == "create" else meta["name"]
    asked = Attributes(
        op,
        RESOURCES[kind],
        url_name,
        group=GROUP,
        namespace=meta.get("namespace", ""),
        version="v1",
    )
    if not held.may(actor, asked):
        return 403, forbidden(actor.user, asked)
    if op == "delete":
        return 200, ""
    if old is None and op == "update":
        create = msgspec.structs.replace(asked, verb="create")
        if not held.may(actor, create):
            return 403, forbidden_object(RESOURCES[kind], GROUP, meta["name"], "")
    new = _merged(old, row["patch"]) if op == "patch" and old is not None else sent
    if old is not None and exempt(new, old):
        return 200, ""
    if kind.endswith("Binding"):
        refusal = check_binding(actor, held, parse_binding(new, kind=kind))
    else:
        refusal = check_role(
            actor,
            held,
            parse_role(new, kind=kind),
            old=None if old is None else parse_role(old, kind=kind),
            name=url_name,
        )
    if refusal is not None:
        return refusal.status, refusal.message
    return (201, "") if old is None else (200, "")


def _merged(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


@pytest.mark.parametrize("row", cases("write"), ids=by_id)
def test_writes_are_accepted_and_refused_as_recorded(row: dict[str, Any]):
    status, message = _write(row)
    assert status == row["http"], row["why"]
    assert message == row.get("message", "")


# -- Node ------------------------------------------------------------------------------------------------------------------

RELATED = {
    ("node1", "pods", "n1", "p1"),
    ("node1", "serviceaccounts", "n1", "podsa"),
    ("node1", "secrets", "n1", "sec-a"),
    ("node1", "secrets", "n1", "sec-env"),
    ("node1", "secrets", "n1", "sec-pull"),
    ("node1", "configmaps", "n1", "cm-a"),
    ("node1", "persistentvolumeclaims", "n1", "pvc-a"),
    ("node1", "persistentvolumes", "", "pv-a"),
    ("node2", "pods", "n1", "p2"),
    ("node2", "serviceaccounts", "n1", "othersa"),
    ("node2", "secrets", "n1", "sec-node2"),
}


def _related(node: str, resource: str, namespace: str, name: str) -> bool:
    return (node, resource, namespace, name) in RELATED


@pytest.mark.parametrize("row", cases("node"), ids=by_id)
def test_node_decides_as_recorded(row: dict[str, Any]):
    step = NodeAuthorizer(node_rules(), related=_related).authorize(
        actor_of(row), asked_of(row["request"])
    )
    assert step.verdict == row.get("expectSince132", row["expect"]), row["why"]
    if "expectSince132" not in row:
        assert step.reason == row["reason"]
    elif '"' in row["whySince132"]:
        assert step.reason == row["whySince132"].split('"')[1]


# -- ABAC ------------------------------------------------------------------------------------------------------------------

ABAC_FILE = "\n\n# who may what\n" + "\n".join(
    json.dumps(
        {"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": spec}
    )
    for spec in (
        {"user": "alice", "namespace": "*", "resource": "*", "apiGroup": "*"},
        {"user": "kubelet", "namespace": "*", "resource": "pods", "readonly": True},
        {"group": "system:authenticated", "readonly": True, "nonResourcePath": "/healthz*"},
        {"user": "*", "nonResourcePath": "/ver"},
        {"group": "devs", "namespace": "dev", "resource": "configmaps"},
        {"user": "both", "group": "g1", "namespace": "*", "resource": "secrets"},
        {"user": "appsman", "namespace": "*", "resource": "*", "apiGroup": "apps"},
        {"user": "noscope"},
        {"user": "clusteronly", "resource": "nodes"},
    )
)


@pytest.mark.parametrize("row", cases("abac"), ids=by_id)
def test_abac_decides_as_recorded(row: dict[str, Any]):
    authorizer = AbacAuthorizer(parse_policies(ABAC_FILE, source="policy.jsonl"))
    step = authorizer.authorize(actor_of(row), asked_of(row["request"]))
    assert (step.verdict, step.reason) == (row["expect"], row["reason"]), row["why"]


# -- chain -----------------------------------------------------------------------------------------------------------------


class _Recorded:
    def __init__(self, answer: dict[str, Any], asked: list[str]) -> None:
        self.name = answer.get("authorizer", "recorded")
        self._answer = answer
        self._asked = asked

    def authorize(self, _actor: Actor, _attributes: Attributes) -> Step:
        self._asked.append(self.name)
        return Step(
            authorizer=self.name,
            verdict=self._answer["decision"],
            reason=self._answer.get("reason", ""),
            error=self._answer.get("error", ""),
        )


@pytest.mark.parametrize("row", cases("chain"), ids=by_id)
def test_chain_concludes_as_recorded(row: dict[str, Any]):
    answers = list(row["authorizers"])
    groups: tuple[str, ...] = ()
    if answers[0].get("authorizer", "").startswith("system:masters"):
        groups = ("system:masters",)
        answers = answers[1:]
    asked: list[str] = []
    chain = Chain([_Recorded(one, asked) for one in answers])
    decision = chain.authorize(Actor(user="u", groups=groups), Attributes("get", "pods"))
    assert decision is not None
    assert decision.http_status == row["http"], row["why"]
    assert decision.review_status == row["sarStatus"]
    if row["expect"] != "error":
        assert decision.verdict == row["expect"]
    if groups:
        assert decision.trace == (MASTERS_STEP,)
        assert asked == []


def test_always_deny_blocks_nothing_behind_it():
    first = AlwaysDeny().authorize(Actor(user="u"), Attributes("get", "pods"))
    assert conclude([first]).reason == "Everything is forbidden."
    assert conclude([first, Step(authorizer="x", verdict="allow")]).allowed


# -- URLs ------------------------------------------------------------------------------------------------------------------

URLS = [json.loads(line) for line in (DATA / "request-attributes.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", URLS, ids=lambda row: f"{row['method']} {row['path']}")
def test_attributes_of_a_url_are_as_recorded(row: dict[str, Any]):
    if row["statusAsUnprivileged"] == 500:
        with pytest.raises(Malformed) as raised:
            request_attributes(row["method"], row["path"])
        assert str(raised.value) in row["message"]
        return
    asked = request_attributes(row["method"], row["path"])
    assert asked.verb == row["verb"]
    if row.get("nonResource"):
        assert asked.path == row["path"].partition("?")[0]
    else:
        recorded = row["resource"]
        assert asked.path == ""
        assert asked.resource == recorded["resource"]
        assert asked.name == recorded.get("name", "")
        assert asked.namespace == recorded.get("namespace", "")
        assert asked.group == recorded.get("apiGroup", "")
        assert asked.subresource == recorded.get("subresource", "")
        if "apiVersion" in recorded:
            assert asked.version == recorded["apiVersion"]
    if "message" in row:
        assert forbidden("bob", asked) == row["message"]


# -- documents -------------------------------------------------------------------------------------------------------------


def test_defaults_survive_parsing_and_printing():
    for document in documents("default"):
        kind = document["kind"]
        if kind.endswith("Binding"):
            record = parse_binding(document, kind=kind)
            assert parse_binding(binding_document(record), kind=kind) == record
        else:
            role = parse_role(document, kind=kind)
            assert parse_role(role_document(role), kind=kind) == role
