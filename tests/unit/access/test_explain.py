"""What an explanation says, and that its fix is one."""

from __future__ import annotations

import json

import pytest
import yaml

from waypost.access.actor import Actor
from waypost.access.authz.chain import Chain
from waypost.access.authz.decision import Step
from waypost.access.authz.escalation import Holdings
from waypost.access.authz.node import NodeAuthorizer
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.records import (
    GROUP,
    Binding,
    PolicyRule,
    Role,
    RoleRef,
    Subject,
    parse_binding,
    parse_role,
)
from waypost.access.explain import Explanation, explain, render
from waypost.access.gate import Attributes

ANN = Actor(
    user="ann",
    groups=("devs", "system:authenticated"),
    origin="client certificate",
    address="10.0.0.3",
)
ROBOT = Actor(user="system:serviceaccount:n1:robot", groups=("system:serviceaccounts",))
PODS = Attributes("get", "pods", "p", group="", namespace="n1")
READ_PODS = PolicyRule(verbs=("get",), api_groups=("",), resources=("pods",))


class Rbac:
    name = "RBAC"

    def __init__(self, index: RbacIndex) -> None:
        self.index = index

    def authorize(self, actor: Actor, asked: Attributes) -> Step:
        return self.index.decide(actor, asked)


class Silent:
    name = 'Webhook "w"'

    def authorize(self, _actor: Actor, _asked: Attributes) -> None:
        return None


def cluster_role(name: str, *rules: PolicyRule) -> Role:
    return Role(kind="ClusterRole", name=name, rules=rules)


def bound(name: str, role: str, *subjects: Subject, namespace: str = "") -> Binding:
    return Binding(
        kind="RoleBinding" if namespace else "ClusterRoleBinding",
        name=name,
        namespace=namespace,
        role_ref=RoleRef(kind="ClusterRole", name=role),
        subjects=subjects,
    )


def user(name: str) -> Subject:
    return Subject(kind="User", api_group=GROUP, name=name)


def group(name: str) -> Subject:
    return Subject(kind="Group", api_group=GROUP, name=name)


def explained(
    roles: list[Role], bindings: list[Binding], actor: Actor = ANN, asked: Attributes = PODS
) -> Explanation:
    index = RbacIndex.of(roles, bindings)
    return explain(Chain([NodeAuthorizer(), Rbac(index)]), index, actor, asked)


PODS_ROLE = cluster_role("pods", READ_PODS)


@pytest.mark.parametrize(
    ("roles", "binding", "kind", "said"),
    [
        ([], bound("b", "gone", user("ann")), "missing-role", '"gone" not found'),
        ([PODS_ROLE], bound("b", "pods", user("ann"), namespace="n2"), "scope", 'namespace "n2"'),
        ([PODS_ROLE], bound("b", "pods", user("Ann")), "subject", "case counts"),
        ([PODS_ROLE], bound("b", "pods", group("ann")), "subject", "must be of kind User"),
        ([PODS_ROLE], bound("b", "pods", user("devs")), "subject", "must be of kind Group"),
        (
            [cluster_role("r", PolicyRule(verbs=("list", "watch"), api_groups=("",), resources=("pods",)))],
            bound("b", "r", user("ann")), "rule", "it has list, watch, not get",
        ),
        (
            [cluster_role("r", PolicyRule(verbs=("get",), api_groups=("apps",), resources=("pods",)))],
            bound("b", "r", user("ann")), "rule", 'it has "apps", not ""',
        ),
        (
            [cluster_role("r", PolicyRule(verbs=("get",), api_groups=("",), resources=("pods/log",)))],
            bound("b", "r", user("ann")), "rule", 'it has "pods/log", not "pods"',
        ),
        (
            [cluster_role("r", PolicyRule(verbs=("get",), api_groups=("",), resources=("pods",), resource_names=("q",)))],
            bound("b", "r", user("ann")), "rule", 'names "q", not "p"',
        ),
    ],
)  # fmt: skip
def test_near_misses_say_what_does_not_fit(roles, binding, kind, said):
    explanation = explained(roles, [binding])
    (near,) = explanation.near_misses
    assert (near.kind, near.binding) == (kind, "b")
    assert said in near.text
    assert explanation.exit_code == 1
    assert near.text in render(explanation)


@pytest.mark.parametrize(
    ("actor", "asked", "binding", "said"),
    [
        (
            ANN, Attributes("list", "pods", group=""),
            bound("b", "r", user("ann"), namespace="n1"), "a ClusterRoleBinding is needed",
        ),
        (
            ANN, Attributes("get", path="/x/y"),
            bound("b", "r", user("ann"), namespace="n1"), "a RoleBinding never grants URLs",
        ),
        (
            ROBOT, PODS,
            bound("b", "r", Subject(kind="ServiceAccount", name="robot", namespace="n2")),
            'another namespace than "n2"',
        ),
        (
            ROBOT, PODS, bound("b", "r", user("robot")),
            'user name is "system:serviceaccount:n1:robot"',
        ),
        (
            Actor(user="deployer"), PODS, bound("b", "r", user("deploier")), "typing error",
        ),
    ],
)  # fmt: skip
def test_near_misses_of_scope_and_spelling(actor, asked, binding, said):
    role = cluster_role(
        "r",
        PolicyRule(verbs=("get", "list"), api_groups=("",), resources=("pods",)),
        PolicyRule(verbs=("get",), non_resource_urls=("/x/*",)),
    )
    (near,) = explained([role], [binding], actor, asked).near_misses
    assert said in near.text


def test_what_has_nothing_to_do_with_it_is_no_near_miss():
    roles = [cluster_role("r", PolicyRule(verbs=("list",), api_groups=("x",), resources=("y",)))]
    bindings = [bound("b", "r", user("ann")), bound("c", "r", user("zed"))]
    assert explained(roles, bindings).near_misses == ()


def test_a_name_limited_rule_and_a_list_get_the_way_to_ask():
    names = PolicyRule(
        verbs=("list",), api_groups=("",), resources=("pods",), resource_names=("q",)
    )
    asked = Attributes("list", "pods", group="", namespace="n1")
    (near,) = explained(
        [cluster_role("r", names)], [bound("b", "r", user("ann"))], ANN, asked
    ).near_misses
    assert "list carries no name (ask with fieldSelector metadata.name=q)" in near.text


@pytest.mark.parametrize("actor", [ANN, ROBOT, Actor(user="strange user'; rm -rf /")])
@pytest.mark.parametrize(
    "asked",
    [
        PODS,
        Attributes("create", "pods", "p", group="", namespace="n1"),
        Attributes("get", "pods", "p", group="", namespace="n1", subresource="log"),
        Attributes("list", "nodes", group=""),
        Attributes("update", "services", "web"),
        Attributes("get", path="/v1/kv/app/x"),
    ],
)
def test_the_fix_allows_exactly_what_was_asked(actor, asked):
    fix = explained([], [], actor, asked).fix
    assert fix is not None
    role, binding = yaml.safe_load_all(fix.manifest)
    index = RbacIndex.of(
        [parse_role(role, kind=role["kind"])], [parse_binding(binding, kind=binding["kind"])]
    )
    assert index.decide(actor, asked).verdict == "allow"
    assert index.decide(Actor(user="other"), asked).verdict == "no-opinion"
    assert len(role["rules"]) == 1
    assert all("rm -rf" not in one or "'\"'\"'" in one for one in fix.commands)


def test_the_commands_of_a_fix():
    fix = explained([PODS_ROLE], [], ROBOT, PODS).fix
    assert fix is not None
    assert fix.commands == (
        "kubectl create role n1-robot-get-pods --verb=get --resource=pods --resource-name=p --namespace=n1",
        "kubectl create rolebinding n1-robot-get-pods --role=n1-robot-get-pods --serviceaccount=n1:robot --namespace=n1",
    )
    assert fix.existing == (
        "kubectl create rolebinding NAME --clusterrole=pods --serviceaccount=n1:robot --namespace=n1",
    )
    log = Attributes("get", "services", "web", subresource="status", namespace="n1")
    fix = explained([], [], ANN, log).fix
    assert fix is not None
    assert "--resource=services.discovery.waypost.io/status " in fix.commands[0]


def test_a_fix_says_what_who_asks_lacks():
    index = RbacIndex.of([PODS_ROLE], [bound("b", "pods", user("ben"))])
    chain = Chain([Rbac(index)])
    own = explain(chain, index, ANN, PODS, held=Holdings(chain, index), asker=Actor(user="ben"))
    assert own.fix is not None
    assert own.fix.lacking == ()
    other = explain(chain, index, ANN, PODS, held=Holdings(chain, index), asker=Actor(user="eve"))
    assert other.fix is not None
    assert other.fix.lacking == (
        '{APIGroups:[""], Resources:["pods"], ResourceNames:["p"], Verbs:["get"]}',
    )
    assert "you may not grant that" in render(other)


def test_everything_that_allows_is_named():
    explanation = explained(
        [PODS_ROLE], [bound("b", "pods", group("devs")), bound("c", "pods", user("ann"))]
    )
    assert explanation.verdict == "allow"
    assert [one.binding for one in explanation.grants] == ["b", "c"]
    assert explanation.decided_by == "RBAC"
    assert explanation.fix is None
    assert explanation.message == ""
    assert explanation.exit_code == 0
    screen = render(explanation)
    assert screen.startswith("ALLOWED")
    assert "taking away one of these is not enough" in screen


def test_an_owner_of_all_needs_no_policy():
    boss = Actor(user="root", groups=("system:masters",))
    explanation = explained([], [], boss)
    assert explanation.decided_by == "system:masters"
    assert "no policy is looked at" in render(explanation)


def test_a_webhook_that_was_not_asked_leaves_it_open():
    index = RbacIndex()
    explanation = explain(Chain([Silent(), Rbac(index)]), index, ANN, PODS)
    assert explanation.incomplete
    assert explanation.exit_code == 2
    assert render(explanation).startswith("UNKNOWN")


@pytest.mark.parametrize(
    ("actor", "asked", "said"),
    [
        (ANN, Attributes("create", "pods", "p", group=""), "create carries no name"),
        (ANN, Attributes("head", path="/healthz"), 'the verb "head"'),
        (ANN, Attributes("get", "nodes", "a", group="", namespace="n1"), "nodes have no namespace"),
        (ANN, Attributes("get", "po", group=""), '"pods", not "po"'),
        (ANN, Attributes("get", "pods/log", group=""), "give the subresource by itself"),
        (ANN, Attributes("GET", "pods", group=""), 'lower case: "get"'),
        (ANN, Attributes("cordon", "nodes", group=""), "no verb of any API"),
        (Actor(user="system:anonymous"), PODS, "no credential was accepted"),
    ],
)
def test_surprises_are_told(actor, asked, said):
    assert any(said in note for note in explained([], [], actor, asked).notes)


def test_one_screen_and_the_same_as_json():
    roles = [PODS_ROLE]
    bindings = [bound(f"b{at}", "pods", user("Ann")) for at in range(50)]
    explanation = explained(roles, bindings)
    screen = render(explanation)
    assert len(screen.splitlines()) <= 24
    assert "client certificate, 10.0.0.3" in screen
    assert "in system:authenticated   (added to every caller)" in screen
    document = json.loads(explanation.json)
    assert document["verdict"] == "no-opinion"
    assert document["user"] == "ann"
    assert document["message"] == explanation.message
    assert [one["binding"] for one in document["near_misses"]] == ["b0", "b1", "b10", "b11", "b12"]
    assert document["fix"]["commands"] == list(explanation.fix.commands)
