"""What a real kube-apiserver 1.20 refuses to store, in its own words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from waypost.access.authz.records import GROUP, parse_binding, parse_role
from waypost.access.authz.validate import (
    invalid_text,
    validate_binding,
    validate_binding_update,
    validate_role,
)

from .policy import DATA


def _recorded() -> dict[str, dict[str, Any]]:
    """Return the answers by title: a line `## TITLE | METHOD PATH`, then status and body (long ones are cut off)."""
    lines = (DATA / "errors-kube-apiserver-1.20.txt").read_text().splitlines()
    found = {}
    for title, answer in zip(lines[::2], lines[1::2], strict=True):
        body = answer.strip().partition(" ")[2]
        if body.startswith("{") and body.endswith("}"):
            found[title.removeprefix("## ").partition(" | ")[0]] = json.loads(body)
    return found


RECORDED = _recorded()
RULE = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
REF = {"apiGroup": GROUP, "kind": "ClusterRole", "name": "r"}


def _role(kind: str = "ClusterRole", *, name: str = "x", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "namespace": "default"}, **more}


def _binding(**more: Any) -> dict[str, Any]:
    return {"kind": "ClusterRoleBinding", "metadata": {"name": "x"}, "roleRef": REF} | more


def _to(**subject: Any) -> dict[str, Any]:
    return _binding(subjects=[subject])


REFUSED = {
    "422 no name": _role(name=""),
    "422 no verbs": _role(rules=[RULE | {"verbs": []}]),
    "422 mixed": _role(rules=[RULE | {"nonResourceURLs": ["/x"]}]),
    "422 role nonres": _role("Role", rules=[{"verbs": ["get"], "nonResourceURLs": ["/x"]}]),
    "422 empty rule": _role(rules=[{}]),
    "422 agg empty": _role(aggregationRule={"clusterRoleSelectors": []}),
    "422 bad name slash": _role(name="a/b"),
    "422 bad name pct": _role(name="a%b"),
    "422 name dot": _role(name="."),
    "422 no roleRef": _binding(roleRef={}),
    "422 crb->Role": _binding(roleRef=REF | {"kind": "Role"}),
    "422 crb sa no ns": _to(kind="ServiceAccount", name="s"),
    "422 bad subj kind": _to(kind="Robot", name="s"),
    "422 user wrong apigroup": _to(kind="User", name="s", apiGroup="x"),
    "422 sa apigroup": _to(kind="ServiceAccount", name="s", namespace="n", apiGroup="x"),
    "422 subj noname": _to(kind="User", name=""),
    "422 bad sa name": _to(kind="ServiceAccount", name="Bad_Name", namespace="n"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_faults_are_told_in_the_recorded_words(title: str):
    document, recorded = REFUSED[title], RECORDED[title]
    kind = document["kind"]
    if kind == "ClusterRoleBinding":
        errors = validate_binding(parse_binding(document, kind=kind))
    else:
        errors = validate_role(parse_role(document, kind=kind))
    assert invalid_text(kind, document["metadata"]["name"], errors) == recorded["message"]
    causes = [{"reason": one.reason, "message": one.message, "field": one.field} for one in errors]
    assert causes == recorded["details"]["causes"]


def test_role_ref_never_changes():
    old = parse_binding(_binding(), kind="ClusterRoleBinding")
    new = parse_binding(_binding(roleRef=REF | {"name": "r2"}), kind="ClusterRoleBinding")
    errors = validate_binding_update(new, old=old)
    recorded = RECORDED["422 roleRef change"]
    assert invalid_text("ClusterRoleBinding", "x", errors) == recorded["message"]
    assert validate_binding_update(old, old=old) == []


@pytest.mark.parametrize(
    "document",
    [
        _role(name="A:b c"),
        _role(name="system:node", rules=[RULE]),
        _role(rules=None),
        _role(rules=[{"verbs": ["frob"], "apiGroups": ["no.such"], "resources": ["a/b/c", "*"]}]),
        _role(rules=[{"verbs": ["get"], "nonResourceURLs": ["/x", "*"]}]),
    ],
)
def test_odd_names_and_unknown_things_are_fine(document: dict[str, Any]):
    assert validate_role(parse_role(document, kind="ClusterRole")) == []


def test_missing_roles_defaults_and_stars_are_fine():
    document = _binding(
        subjects=[
            {"kind": "User", "name": "s"},
            {"kind": "ServiceAccount", "name": "s", "namespace": "n"},
            {"kind": "Group", "name": "*"},
        ],
        roleRef={"kind": "ClusterRole", "name": "r"},
    )
    binding = parse_binding(document, kind="ClusterRoleBinding")
    assert validate_binding(binding) == []
    stored = RECORDED["crb ok missing role, defaults"]
    assert [one.api_group for one in binding.subjects] == [
        one.get("apiGroup", "") for one in stored["subjects"]
    ]
    assert binding.role_ref.api_group == stored["roleRef"]["apiGroup"]


def test_bad_labels_are_told_in_the_recorded_words():
    document = _role()
    document["metadata"]["labels"] = {"a b": "c d"}
    errors = validate_role(parse_role(document, kind="ClusterRole"))
    told = json.dumps("[" + ", ".join(one.text for one in errors) + "]").strip('"')
    # Recorded of a Namespace, in a line that is cut off behind the message.
    assert told in (DATA / "errors-kube-apiserver-1.20.txt").read_text()
