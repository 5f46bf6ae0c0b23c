"""The default policy, and what reconciling does to what operators have changed."""

from __future__ import annotations

import msgspec
import pytest

from waypost.access.actor import ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, Actor, node_actor
from waypost.access.authz.aggregation import aggregate
from waypost.access.authz.bootstrap import (
    AUTOUPDATE,
    default_policy,
    kv_role,
    node_rules,
    reconcile,
    registrant_role,
)
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.records import (
    GROUP,
    RESOURCES,
    Binding,
    Role,
    binding_document,
    parse_role,
    role_document,
)
from waypost.access.authz.rules import missing
from waypost.access.authz.validate import validate_binding, validate_role
from waypost.access.gate import Attributes
from waypost.model.object import Object

from . import policies as p

ROLES = [one for one in default_policy() if isinstance(one, Role)]
BINDINGS = [one for one in default_policy() if isinstance(one, Binding)]


def find(name: str, kind: str = "ClusterRole") -> Role | Binding:
    return next(one for one in default_policy() if (one.kind, one.name) == (kind, name))


def test_every_default_is_valid_marked_and_its_role_exists():
    index = RbacIndex.of(ROLES, BINDINGS)
    for one in default_policy():
        assert one.labels["kubernetes.io/bootstrapping"] == "rbac-defaults"
        assert one.annotations[AUTOUPDATE] == "true"
        errors = validate_role(one) if isinstance(one, Role) else validate_binding(one)
        assert errors == []
    assert all(index.role_of(one) is not None for one in BINDINGS)
    assert aggregate(ROLES) == []
    assert len({(one.kind, one.namespace, one.name) for one in default_policy()}) == len(
        default_policy()
    )


def test_aggregated_defaults_have_their_rules():
    view, edit, admin = (find(name) for name in ("view", "edit", "admin"))
    assert view.rules
    assert missing(edit.rules, view.rules) == []
    assert missing(admin.rules, edit.rules) == []
    assert not any("secrets" in one.resources for one in view.rules)
    # Who may view may find services; who may edit may register them.
    assert missing(view.rules, find("waypost:discoverer").rules) == []
    assert missing(edit.rules, find("waypost:service-registrant").rules) == []


def may(actor: Actor, asked: Attributes, *extra: Role | Binding) -> bool:
    index = RbacIndex.of(
        [*ROLES, *(one for one in extra if isinstance(one, Role))],
        [*BINDINGS, *(one for one in extra if isinstance(one, Binding))],
    )
    return index.decide(actor, asked).verdict == "allow"


def test_anybody_may_find_services_and_nothing_else():
    for actor in (
        Actor(user=ANONYMOUS, groups=(UNAUTHENTICATED,)),
        Actor(user="ann", groups=(AUTHENTICATED,)),
    ):
        assert may(actor, Attributes("list", "services"))
        assert may(actor, Attributes("get", "nodes", "n"))
        assert not may(actor, Attributes("update", "services", "web"))
        assert not may(actor, Attributes("list", "sessions"))
        assert not may(actor, Attributes("get", path="/v1/kv/app"))
        assert not may(actor, Attributes("update", "operators"))


def test_nodes_read_keys_for_their_templates_but_write_none():
    assert may(node_actor("n"), Attributes("list", path="/v1/kv/app/"))
    assert not may(node_actor("n"), Attributes("update", path="/v1/kv/app/x"))
    assert node_rules()


@pytest.mark.parametrize(
    ("role", "asked", "expected"),
    [
        ("waypost:service-registrant", Attributes("update", "services", "web"), True),
        ("waypost:service-registrant", Attributes("delete", "checks", "c"), True),
        ("waypost:service-registrant", Attributes("update", "nodes", "n"), False),
        ("waypost:kv-reader", Attributes("get", path="/v1/kv/a"), True),
        ("waypost:kv-reader", Attributes("delete", path="/v1/kv/a"), False),
        ("waypost:kv-editor", Attributes("delete", path="/v1/kv/a"), True),
        ("waypost:kv-editor", Attributes("update", path="/v1/other"), False),
        ("waypost:balancer-operator", Attributes("update", "services", "web"), True),
        ("waypost:balancer-operator", Attributes("delete", "services", "web"), False),
        ("waypost:auditor", Attributes("list", "sessions"), True),
        ("waypost:auditor", Attributes("list", "rolebindings", group=GROUP), True),
        ("waypost:auditor", Attributes("update", "services", "web"), False),
        ("waypost:auditor", Attributes("get", path="/v1/kv/secret"), False),
        ("waypost:operator", Attributes("update", "operators"), True),
        ("waypost:operator", Attributes("create", "clusterroles", group=GROUP), False),
    ],
)
def test_own_roles(role: str, asked: Attributes, *, expected: bool):
    assert may(Actor(user="ann"), asked, p.cluster_binding("b", role, p.user("ann"))) is expected


def test_limited_roles():
    bound = p.cluster_binding("b", "web-team", p.user("ann"))
    role = registrant_role("web-team", ["web"], checks=["service:web"])
    ann = Actor(user="ann")
    assert may(ann, Attributes("update", "services", "web"), role, bound)
    assert may(ann, Attributes("delete", "checks", "service:web"), role, bound)
    assert not may(ann, Attributes("update", "services", "db"), role, bound)
    # No check is named, so there is none that it may change.
    unchecked = registrant_role("web-team", ["web"])
    assert may(ann, Attributes("update", "services", "web"), unchecked, bound)
    assert not may(ann, Attributes("update", "checks", "c"), unchecked, bound)
    keys = kv_role("web-team", "web/", write=True)
    assert may(ann, Attributes("update", path="/v1/kv/web/x"), keys, bound)
    assert may(ann, Attributes("list", path="/v1/kv/web/"), keys, bound)
    assert not may(ann, Attributes("list", path="/v1/kv/web"), keys, bound)
    assert not may(ann, Attributes("update", path="/v1/kv/db/x"), keys, bound)
    assert validate_role(role) == validate_role(keys) == []


# -- reconciling -------------------------------------------------------------------------------------------------------------


class Stored:
    """Objects by key, and what writing changes into it does."""

    def __init__(self, *records: Role | Binding) -> None:
        self.objects: dict[tuple[str, str, str], bytes] = {}
        for one in records:
            self.write(role_document(one) if isinstance(one, Role) else binding_document(one))

    def write(self, document) -> None:
        key = (
            RESOURCES[document["kind"]],
            document["metadata"].get("namespace", ""),
            document["metadata"]["name"],
        )
        self.objects[key] = msgspec.json.encode(document)

    def __call__(self, resource: str, namespace: str, name: str) -> Object | None:
        body = self.objects.get((resource, namespace, name))
        if body is None:
            return None
        return Object(group=GROUP, resource=resource, namespace=namespace, name=name, body=body)


def test_an_empty_store_gets_everything_and_then_there_is_nothing_to_do():
    stored = Stored()
    changes = reconcile(default_policy(), stored)
    assert {one.action for one in changes} == {"create"}
    assert len(changes) == len(default_policy())
    kinds = [one.kind for one in changes]
    assert kinds == sorted(kinds, key=list(RESOURCES).index)
    for one in changes:
        stored.write(one.document)
    assert reconcile(default_policy(), stored) == []


def _only(expected, *stored):
    changes = reconcile([expected], Stored(*stored))
    return changes[0] if changes else None


def test_missing_atoms_are_appended_and_extra_rules_stay():
    expected = p.cluster_role("r", p.rule("get list", "", "pods secrets"))
    change = _only(expected, p.cluster_role("r", p.rule("get", "", "pods"), p.rule("mine")))
    assert change is not None
    assert change.action == "update"
    assert len(change.rules) == 3
    after = parse_role(change.document, kind="ClusterRole")
    assert after.rules[:2] == (p.rule("get", "", "pods"), p.rule("mine"))
    assert missing(after.rules, expected.rules) == []
    assert _only(expected, p.cluster_role("r", p.rule("*", "*", "*"))) is None


def test_missing_subjects_are_appended_and_extra_ones_stay():
    expected = p.cluster_binding("b", "r", p.group("a"), p.user("x"))
    change = _only(expected, p.cluster_binding("b", "r", p.user("x"), p.user("mine")))
    assert change is not None
    assert [one["name"] for one in change.document["subjects"]] == ["x", "mine", "a"]
    assert change.subjects == (p.group("a"),)


def test_another_role_means_to_make_the_binding_anew():
    expected = p.cluster_binding("b", "r", p.group("a"))
    change = _only(expected, p.cluster_binding("b", "other", p.user("mine")))
    assert change is not None
    assert change.action == "recreate"
    assert change.document == binding_document(expected)


def test_what_is_protected_stays():
    mine = {AUTOUPDATE: "false"}
    kept = p.cluster_role("r", annotations=mine)
    assert _only(p.cluster_role("r", p.rule()), kept).action == "protected"
    bound = msgspec.structs.replace(p.cluster_binding("b", "other"), annotations=mine)
    assert _only(p.cluster_binding("b", "r", p.user("x")), bound).action == "protected"


def test_labels_are_added_and_the_operators_win_and_nothing_unknown_is_lost():
    expected = p.cluster_role("r", p.rule(), labels={"a": "1", "b": "2"})
    stored = Stored()
    stored.write(
        {
            "kind": "ClusterRole",
            "metadata": {"name": "r", "uid": "u1", "labels": {"a": "mine", "c": "3"}},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
            "future": {"field": True},
        }
    )
    (change,) = reconcile([expected], stored)
    assert change.document["metadata"] == {
        "name": "r",
        "uid": "u1",
        "labels": {"a": "mine", "c": "3", "b": "2"},
    }
    assert change.document["future"] == {"field": True}
    assert change.rules == ()


def test_aggregation_is_put_back_or_removed():
    view = find("view")
    bare = _only(view, msgspec.structs.replace(view, aggregation=None))
    assert bare is not None
    assert parse_role(bare.document, kind="ClusterRole").aggregation == view.aggregation
    plain = p.cluster_role("r", p.rule())
    change = _only(plain, msgspec.structs.replace(plain, aggregation=view.aggregation))
    assert change is not None
    assert "aggregationRule" not in change.document
    # Rules of a role aggregated on both sides are left to the aggregation.
    assert _only(view, msgspec.structs.replace(view, rules=())) is None
