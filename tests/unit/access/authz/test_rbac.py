"""The index against the definition, and the authorizer in step with the view."""

from __future__ import annotations

import random

import msgspec
import pytest

from waypost.access.actor import Actor
from waypost.access.authz import rbac
from waypost.access.authz.rbac import RbacAuthorizer, RbacIndex
from waypost.access.authz.records import GROUP, RESOURCES, binding_document, role_document
from waypost.access.authz.rules import allows
from waypost.access.authz.table import NONE, RuleTable
from waypost.access.gate import Attributes
from waypost.model.kv import KVEntry
from waypost.model.object import Object
from waypost.state.keys import key_of, put
from waypost.state.view import View
from waypost.store.engine import Batch, Event, KeyValue

from . import policies as p

ANN = Actor(user="ann", groups=("devs",))
PODS = Attributes("get", "pods", group="", namespace="n1")


# -- against the definition ------------------------------------------------------------------------------------------------


def test_table_finds_the_first_rule_that_allows():
    rng = random.Random(1)
    for _ in range(5000):
        rules, asked = p.random_rules(rng, 6), p.random_request(rng)
        allowed = [p.rule_allows(one, asked) for one in rules]
        assert RuleTable(rules).find(asked) == (allowed.index(True) if any(allowed) else NONE)
        assert [allows(one, asked) for one in rules] == allowed


def _check(index, roles, bindings, actor, asked):
    verdict, name, at, missing = p.naive(roles, bindings, actor, asked)
    step = index.decide(actor, asked)
    assert step.verdict == verdict
    if verdict == "allow":
        assert step.grant is not None
        assert (step.grant.namespace, step.grant.binding) == name
        assert step.grant.rule_index == at
        assert p.subject_matches(step.grant.subject, actor, step.grant.namespace)
    else:
        assert step.grant is None
        for one in missing:
            assert f'"{one}" not found' in step.reason
        assert bool(missing) == bool(step.reason)


def test_index_decides_as_the_definition():
    rng = random.Random(2)
    for _ in range(1000):
        roles, bindings = p.random_policy(rng)
        index = RbacIndex.of(roles, bindings)
        for _ in range(8):
            _check(index, roles, bindings, p.random_actor(rng), p.random_request(rng))


@pytest.mark.parametrize("few", [0, 8])
def test_index_follows_changes(monkeypatch, few):
    """With `few` 0 every subject has a merged table."""
    monkeypatch.setattr(rbac, "_FEW_ROLES", few)
    monkeypatch.setattr(rbac, "_MAX_MERGED", 3)
    rng = random.Random(3)
    for _ in range(40):
        index = RbacIndex()
        roles, bindings = {}, {}
        for _ in range(120):
            if rng.random() < 0.4:
                actor, asked = p.random_actor(rng), p.random_request(rng)
                _check(index, list(roles.values()), list(bindings.values()), actor, asked)
                continue
            is_role = rng.random() < 0.5
            one = p.random_role(rng) if is_role else p.random_binding(rng)
            table = roles if is_role else bindings
            key = (one.namespace, one.name)
            if rng.random() < 0.7:
                table[key] = one
                (index.put_role if is_role else index.put_binding)(one)
            else:
                table.pop(key, None)
                (index.delete_role if is_role else index.delete_binding)(*key)
        assert [(b.namespace, b.name) for b in index.bindings()] == sorted(bindings)
        assert [(r.namespace, r.name) for r in index.roles()] == sorted(roles)
        assert len(index._merged) <= 3


def test_many_roles_of_one_subject_are_merged_and_name_the_first_binding():
    roles = [p.cluster_role(f"r{at:03}", p.rule(resources=f"thing{at}")) for at in range(50)]
    roles.append(p.cluster_role("last", p.rule("list"), p.rule(resources="thing7")))
    bindings = [p.cluster_binding(f"b{at:03}", f"r{at:03}", p.user("ann")) for at in range(50)]
    bindings.append(p.cluster_binding("a-first", "last", p.user("ann")))
    index = RbacIndex.of(roles, bindings)
    grant = index.decide(ANN, Attributes("get", "thing7", group="")).grant
    assert grant is not None
    assert (grant.binding, grant.role, grant.rule_index) == ("a-first", "last", 1)
    grant = index.decide(ANN, Attributes("get", "thing49", group="")).grant
    assert grant is not None
    assert (grant.binding, grant.rule_index) == ("b049", 0)
    index.delete_binding("", "a-first")
    grant = index.decide(ANN, Attributes("get", "thing7", group="")).grant
    assert grant is not None
    assert grant.binding == "b007"


def test_missing_roles_are_named_once_each():
    index = RbacIndex.of(
        [],
        [
            p.cluster_binding("b1", "x", p.user("ann")),
            p.cluster_binding("b2", "y", p.group("devs")),
            p.cluster_binding("b3", "x", p.user("ann")),
            p.binding("b4", "n1", "z", p.user("ann"), kind="Role"),
        ],
    )
    assert index.decide(ANN, PODS).reason == (
        'RBAC: [clusterrole.rbac.authorization.k8s.io "x" not found, '
        'clusterrole.rbac.authorization.k8s.io "y" not found, '
        'role.rbac.authorization.k8s.io "z" not found]'
    )


def test_a_service_account_of_a_cluster_binding_needs_a_namespace():
    robot = Actor(user="system:serviceaccount:n1:robot")
    roles = [p.cluster_role("r", p.rule())]
    assert (
        RbacIndex.of(roles, [p.cluster_binding("b", "r", p.account("robot"))])
        .decide(robot, PODS)
        .verdict
        == "no-opinion"
    )
    step = RbacIndex.of(roles, [p.binding("b", "n1", "r", p.account("robot"))]).decide(robot, PODS)
    assert step.reason == (
        'RBAC: allowed by RoleBinding "b/n1" of ClusterRole "r" to ServiceAccount "robot/n1"'
    )


# -- in step with the view -------------------------------------------------------------------------------------------------


class Feed:
    def __init__(self):
        self.view = View()

    def put(self, *records):
        revision = self.view.revision + 1
        events = []
        for record in records:
            one = put(_object(record))
            events.append(Event("put", KeyValue(one.key, one.value, revision, revision)))
        self.view.apply(Batch(revision, tuple(events)))

    def delete(self, record):
        revision = self.view.revision + 1
        kv = KeyValue(key_of(_object(record)), b"", 0, revision)
        self.view.apply(Batch(revision, (Event("delete", kv),)))


def _object(record):
    if isinstance(record, Object | KVEntry):
        return record
    document = (
        binding_document(record) if record.kind.endswith("Binding") else role_document(record)
    )
    return Object(
        group=GROUP,
        resource=RESOURCES[record.kind],
        namespace=record.namespace,
        name=record.name,
        body=msgspec.json.encode(document),
    )


@pytest.fixture
def feed():
    return Feed()


@pytest.fixture
def authorizer(feed):
    return RbacAuthorizer(feed.view)


def test_a_change_counts_for_the_very_next_request(feed, authorizer):
    assert authorizer.authorize(ANN, PODS).verdict == "no-opinion"
    feed.put(p.cluster_role("r", p.rule()), p.cluster_binding("b", "r", p.user("ann")))
    assert authorizer.authorize(ANN, PODS).verdict == "allow"
    feed.put(p.cluster_role("r", p.rule("list")))
    assert authorizer.authorize(ANN, PODS).verdict == "no-opinion"
    feed.put(p.cluster_role("r", p.rule("get")))
    assert authorizer.authorize(ANN, PODS).verdict == "allow"
    feed.put(p.cluster_binding("b", "r", p.user("ben")))
    assert authorizer.authorize(ANN, PODS).verdict == "no-opinion"
    feed.put(p.binding("b", "n1", "r", p.group("devs")))
    assert authorizer.authorize(ANN, PODS).verdict == "allow"
    feed.delete(p.binding("b", "n1", "r"))
    assert authorizer.authorize(ANN, PODS).verdict == "no-opinion"


def test_a_reload_of_the_view_is_noticed(feed, authorizer):
    feed.put(p.cluster_role("r", p.rule()), p.cluster_binding("b", "r", p.user("ann")))
    assert authorizer.authorize(ANN, PODS).verdict == "allow"
    feed.view.load([], revision=9)
    assert authorizer.authorize(ANN, PODS).verdict == "no-opinion"


def test_decisions_are_kept_until_the_policy_changes(feed, authorizer):
    feed.put(p.cluster_role("r", p.rule()), p.cluster_binding("b", "r", p.user("ann")))
    first = authorizer.authorize(ANN, PODS)
    assert authorizer.authorize(Actor(user="ann", groups=("devs",)), PODS) is first
    feed.put(KVEntry(key="app/x", value=b"1"))
    assert authorizer.authorize(ANN, PODS) is first
    feed.put(p.role("other", "n1"))
    assert authorizer.authorize(ANN, PODS) is not first
    # Who asks is part of the question.
    assert authorizer.authorize(Actor(user="ben"), PODS).verdict == "no-opinion"


def test_decisions_are_bounded(feed, authorizer, monkeypatch):
    monkeypatch.setattr(rbac, "_MAX_DECISIONS", 10)
    for at in range(50):
        authorizer.authorize(ANN, Attributes("get", "pods", f"p{at}", group=""))
    assert len(authorizer._decisions) == 10


def test_only_what_changed_is_parsed_again(feed, authorizer, monkeypatch):
    bindings = [p.cluster_binding(f"b{at}", "r", p.user(f"u{at}")) for at in range(30)]
    feed.put(p.cluster_role("r", p.rule()), *bindings)
    authorizer.authorize(ANN, PODS)
    parsed = []
    original = rbac.parse_binding
    monkeypatch.setattr(
        rbac, "parse_binding", lambda body, kind: parsed.append(body) or original(body, kind=kind)
    )
    feed.put(p.cluster_binding("b7", "r", p.user("ann")))
    assert authorizer.authorize(ANN, PODS).verdict == "allow"
    assert len(parsed) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b'{"metadata":{"name":"b"},"subjects":"everybody"}',
        b'{"metadata":{"name":"another"},"subjects":[]}',
        b'{"metadata":{"name":"b\xff"}}',
    ],
)
def test_what_cannot_be_read_grants_nothing_and_says_so(feed, authorizer, caplog, body):
    feed.put(p.cluster_role("r", p.rule()), p.cluster_binding("b", "r", p.user("ann")))
    assert authorizer.authorize(ANN, PODS).verdict == "allow"
    feed.put(Object(group=GROUP, resource="clusterrolebindings", name="b", body=body))
    assert authorizer.authorize(ANN, PODS).verdict == "no-opinion"
    assert "ClusterRoleBinding /b is ignored" in caplog.text


def test_a_namespaced_object_never_passes_for_one_of_the_cluster(feed, authorizer):
    document = binding_document(p.binding("b", "", "r", p.user("ann")))
    stray = Object(
        group=GROUP, resource="rolebindings", name="b", body=msgspec.json.encode(document)
    )
    feed.put(p.cluster_role("r", p.rule()), stray)
    assert authorizer.authorize(ANN, PODS).verdict == "no-opinion"
