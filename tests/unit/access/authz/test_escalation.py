"""Covering is sound: whoever holds rules that cover others may do all that the others allow."""

from __future__ import annotations

import random

import pytest

from waypost.access.actor import Actor
from waypost.access.authz.escalation import check_binding, check_role, exempt
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.records import LabelSelector, PolicyRule, rule_document
from waypost.access.authz.rules import atoms, compact, missing, rule_text

from . import policies as p

ANN = Actor(user="ann", groups=("g", "system:authenticated"))


def test_what_is_covered_is_held():
    rng = random.Random(5)
    covered = 0
    for _ in range(20_000):
        held, wanted, asked = p.random_rules(rng), [p.random_rule(rng)], p.random_request(rng)
        if p.rule_allows(wanted[0], asked) and not missing(held, wanted):
            covered += 1
            assert any(p.rule_allows(one, asked) for one in held)
    assert covered > 50


def test_rules_cover_themselves_and_adding_what_is_missing_covers():
    rng = random.Random(6)
    for _ in range(1000):
        rules = p.random_rules(rng, 3)
        assert missing(rules, rules) == []
        lacking = missing(rules[:1], rules)
        assert missing([*rules[:1], *lacking], rules) == []
        assert {a for one in compact(lacking) for a in atoms(one)} == set(lacking)


def test_lists_never_cover_a_star():
    held = [p.rule("get list watch create update patch delete")]
    assert missing(held, [p.rule("*")]) == [p.rule("*")]


def test_atoms_of_one_resource_are_shown_as_one_rule():
    lacking = missing([], [p.rule("get list", "", "pods secrets", names=["a"])])
    assert [rule_text(one) for one in compact(lacking)] == [
        '{APIGroups:[""], Resources:["pods"], ResourceNames:["a"], Verbs:["get" "list"]}',
        '{APIGroups:[""], Resources:["secrets"], ResourceNames:["a"], Verbs:["get" "list"]}',
    ]
    both = compact(missing([], [p.rule(urls=["/b"]), p.rule("post", urls=["/b"])]))
    assert [rule_text(one) for one in both] == [
        '{NonResourceURLs:["/b"], Verbs:["get"]}',
        '{NonResourceURLs:["/b"], Verbs:["post"]}',
    ]


def test_groups_are_quoted_and_unresolved_roles_are_told():
    index = RbacIndex.of([], [p.cluster_binding("b", "gone", p.user("ann"))])
    refusal = check_role(ANN, p.held(index), p.cluster_role("new", p.rule()), old=None, name="")
    assert refusal is not None
    assert refusal.status == 403
    assert refusal.missing == (p.rule(),)
    assert refusal.message == (
        'clusterroles.rbac.authorization.k8s.io "new" is forbidden: user "ann" '
        '(groups=["g" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:\n'
        '{APIGroups:[""], Resources:["pods"], Verbs:["get"]}'
        '; resolution errors: [clusterrole.rbac.authorization.k8s.io "gone" not found]'
    )


def test_binding_a_missing_role_is_not_found_without_bind():
    index = RbacIndex.of([], [])
    binding = p.binding("b", "n1", "gone", p.user("ben"), kind="Role")
    refusal = check_binding(ANN, p.held(index), binding)
    assert refusal is not None
    assert (refusal.status, refusal.message) == (
        404,
        'role.rbac.authorization.k8s.io "gone" not found',
    )


def test_masters_grant_what_they_like():
    boss = Actor(user="boss", groups=("system:masters",))
    held = p.held(RbacIndex())
    everything = p.cluster_role("all", p.rule("*", "*", "*"), aggregation=(LabelSelector(),))
    assert check_role(boss, held, everything, old=None, name="") is None
    assert check_binding(boss, held, p.cluster_binding("b", "none", p.user("x"))) is None


def test_an_aggregation_needs_everything():
    # Every verb by name, so neither `escalate` nor `*`.
    verbs = "get list watch create update patch delete"
    index = RbacIndex.of(
        [p.cluster_role("r", p.rule(verbs, "*", "*"))],
        [p.cluster_binding("b", "r", p.user("ann"))],
    )
    new = p.cluster_role("new", aggregation=(LabelSelector(match_labels={"a": "b"}),))
    refusal = check_role(ANN, p.held(index), new, old=None, name="")
    assert refusal is not None
    assert "must have cluster-admin privileges to use the aggregationRule" in refusal.message
    plain = p.cluster_role("new", p.rule("get"))
    assert check_role(ANN, p.held(index), plain, old=None, name="") is None
    assert check_role(ANN, p.held(index), plain, old=new, name="new") is not None


@pytest.mark.parametrize(
    ("metadata", "rules", "expected"),
    [
        ({"ownerReferences": [{"uid": "u"}]}, None, True),
        ({"finalizers": ["f"], "managedFields": [{}]}, None, True),
        ({}, [], True),
        ({"labels": {"a": "b"}}, None, False),
        ({}, [rule_document(PolicyRule(verbs=("get",)))], False),
    ],
)
def test_only_bookkeeping_is_exempt(metadata, rules, expected):
    old = {"metadata": {"name": "r", "uid": "1", "resourceVersion": "5"}, "rules": None}
    new = {"metadata": {"name": "r", "uid": "1"} | metadata, "rules": rules}
    assert exempt(new, old) is expected
