"""What may I, who can, and what looks wrong."""

from __future__ import annotations

import random

import pytest

from waypost.access.actor import Actor
from waypost.access.authz.bootstrap import default_policy
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.records import Role
from waypost.access.authz.review import grants, lint, outcome_changes, reach, review_rules, who_can
from waypost.access.gate import Attributes

from . import policies as p

ANN = Actor(user="ann", groups=("devs",))


def test_rules_of_cluster_and_namespace_are_listed():
    index = RbacIndex.of(
        [
            p.cluster_role("c", p.rule(), p.rule(urls=["/x"])),
            p.role("r", "n1", p.rule("list", "", "secrets", names=["a"])),
        ],
        [
            p.cluster_binding("b", "c", p.group("devs")),
            p.binding("b", "n1", "r", p.user("ann"), kind="Role"),
            p.binding("b2", "n1", "gone", p.user("ann")),
            p.binding("b", "n2", "gone2", p.user("ann")),
        ],
    )
    review = review_rules(index, ANN, "n1")
    assert review.status == {
        "resourceRules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
            {
                "verbs": ["list"],
                "apiGroups": [""],
                "resources": ["secrets"],
                "resourceNames": ["a"],
            },
        ],
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}],
        "incomplete": True,
        "evaluationError": 'clusterrole.rbac.authorization.k8s.io "gone" not found',
    }
    assert not review_rules(index, ANN, "n3").incomplete


def test_authorizers_that_cannot_list_make_it_incomplete():
    review = review_rules(RbacIndex(), ANN, "n", authorizers=("Node", "RBAC", 'Webhook "w"'))
    assert review.incomplete
    assert "webhook authorizer does not support user rule resolution" in review.evaluation_error
    everything = review_rules(RbacIndex(), Actor(user="r", groups=("system:masters",)), "n")
    assert everything.status["resourceRules"][0]["resources"] == ["*"]


def test_who_can_and_grants_agree_with_decisions():
    rng = random.Random(4)
    for _ in range(1500):
        index = RbacIndex.of(*p.random_policy(rng))
        actor, asked = p.random_actor(rng), p.random_request(rng)
        step = index.decide(actor, asked)
        mine = [
            one
            for one in who_can(index, asked)
            if p.subject_matches(one.subject, actor, one.grant.namespace)
        ]
        found = grants(index, actor, asked)
        assert (step.verdict == "allow") == bool(mine) == bool(found)
        if found:
            assert found[0] == step.grant
            assert {(one.namespace, one.binding) for one in found} == {
                (one.grant.namespace, one.grant.binding) for one in mine
            }


def codes(roles, bindings, **more):
    index = RbacIndex.of(roles, bindings)
    return {(one.code, one.name) for one in lint(index, **more)}


@pytest.mark.parametrize(
    ("roles", "bindings", "expected"),
    [
        ([], [p.cluster_binding("b", "gone", p.user("x"))], ("missing-role", "b")),
        ([p.cluster_role("r", p.rule())], [], ("unused-role", "r")),
        ([p.cluster_role("r", p.rule())], [p.cluster_binding("b", "r")], ("no-subjects", "b")),
        ([p.cluster_role("r", p.rule("*"))], [], ("wildcard", "r")),
        ([p.cluster_role("r", p.rule(urls=["*"]))], [], ("wildcard", "r")),
        ([p.cluster_role("r", p.rule("escalate"))], [], ("escalation", "r")),
        ([p.cluster_role("r", p.rule("create", names=["a"]))], [], ("names-without-name", "r")),
        ([p.cluster_role("r", p.rule("list", "", "secrets"))], [], ("secrets", "r")),
        ([p.cluster_role("r", p.rule("get", "", "pods/*"))], [], ("literal-star", "r")),
        ([p.cluster_role("r", p.rule("get", "", "roles"))], [], ("wrong-group", "r")),
        (
            [p.cluster_role("r", p.rule(urls=["/x"]))],
            [p.binding("b", "n", "r", p.user("x"))],
            ("urls-in-namespace", "b"),
        ),
        (
            [p.cluster_role("r", p.rule())],
            [p.cluster_binding("b", "r", p.user("system:authenticated"))],
            ("group-as-user", "b"),
        ),
        (
            [p.cluster_role("r", p.rule())],
            [p.cluster_binding("b", "r", p.group("dev-*"))],
            ("literal-star", "b"),
        ),
        (
            [p.cluster_role("r", p.rule())],
            [p.cluster_binding("b", "r", p.group("system:unauthenticated"))],
            ("anonymous", "b"),
        ),
        (
            [p.cluster_role("r", p.rule("*", "*", "*"))],
            [p.binding("b", "n", "r", p.user("x"))],
            ("all-powerful", "b"),
        ),
        (
            [p.cluster_role("r", p.rule())],
            [p.cluster_binding("b", "r", p.user("x"), p.user("x"))],
            ("duplicate-subject", "b"),
        ),
    ],
)
def test_lint_finds(roles, bindings, expected):
    assert expected in codes(roles, bindings)


def test_lint_finds_nothing_in_the_defaults_and_in_a_tidy_policy():
    roles = [one for one in default_policy() if isinstance(one, Role)]
    bindings = [one for one in default_policy() if not isinstance(one, Role)]
    assert codes(roles, bindings) == set()
    tidy = [p.cluster_role("r", p.rule("get list"))]
    assert codes(tidy, [p.cluster_binding("b", "r", p.user("x"))]) == set()


def test_lint_asks_who_is_known():
    roles = [p.cluster_role("r", p.rule())]
    bindings = [p.cluster_binding("b", "r", p.user("x"), p.user("y"))]
    found = codes(roles, bindings, known=lambda subject, _namespace: subject.name == "x")
    assert found == {("unknown-subject", "b")}


def test_lint_puts_errors_first():
    index = RbacIndex.of(
        [p.cluster_role("a", p.rule("*"))], [p.cluster_binding("z", "gone", p.user("x"))]
    )
    assert [one.severity for one in lint(index)] == ["error", "warning", "note"]


def test_who_can_names_subjects_and_rules():
    index = RbacIndex.of(
        [p.cluster_role("r", p.rule("list"), p.rule("get"))],
        [
            p.cluster_binding("b", "r", p.user("ann"), p.group("devs")),
            p.binding("c", "n1", "r", p.account("robot")),
            p.binding("d", "n2", "r", p.user("ben")),
        ],
    )
    found = who_can(index, Attributes("get", "pods", group="", namespace="n1"))
    assert [(one.subject.name, one.grant.binding, one.grant.rule_index) for one in found] == [
        ("ann", "b", 1),
        ("devs", "b", 1),
        ("robot", "c", 1),
    ]


def test_reach_names_every_place_where_somebody_has_rights():
    index = RbacIndex.of(
        [],
        [
            p.binding("b", "n2", "r", p.user("ann")),
            p.binding("b", "n3", "r", p.user("ben")),
            p.binding("c", "n1", "r", p.user("zed"), p.group("devs")),
            p.cluster_binding("z", "r", p.group("devs"), p.user("ann")),
        ],
    )
    found = [(one.namespace, one.name, subject.name) for one, subject in reach(index, ANN)]
    assert found == [("", "z", "devs"), ("n1", "c", "devs"), ("n2", "b", "ann")]


def test_a_change_of_policy_is_tried_on_requests():
    roles = [p.cluster_role("r", p.rule())]
    before = RbacIndex.of(roles, [p.cluster_binding("b", "r", p.user("ann"))])
    after = RbacIndex.of(roles, [p.cluster_binding("b", "r", p.user("ben"))])
    pods, secrets = (Attributes("get", of, group="") for of in ("pods", "secrets"))
    ben = Actor(user="ben")
    asked = [(ANN, pods), (ANN, secrets), (ben, pods), (Actor(user="zed"), pods)]
    found = outcome_changes(before, after, asked)
    assert [(one.actor.user, one.before.verdict, one.after.verdict) for one in found] == [
        ("ann", "allow", "no-opinion"),
        ("ben", "no-opinion", "allow"),
    ]
