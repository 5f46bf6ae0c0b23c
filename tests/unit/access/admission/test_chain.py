from __future__ import annotations

import pytest

from waypost.access.actor import node_actor
from waypost.access.admission import Denied, Invalid, Review, WebhookFailed, settled
from waypost.access.admission.passing import MAX_ROUNDS
from waypost.access.audit.trail import Trail, following
from waypost.base.errors import TooLarge, Unavailable
from waypost.model.catalog import Check, CheckDefinition, Node, Service
from waypost.model.kv import KVEntry

from .conftest import ALICE, hook, patch

SERVICE = Service(node="n1", id="web-1", name="web", tags=("a",), port=80, meta={"team": "blue"})


def label(key, value):
    return patch({"op": "add", "path": f"/metadata/labels/{key}", "value": value})


# -- records -------------------------------------------------------------------------------------------------------------


async def test_without_webhooks_a_record_passes_as_it_is(world):
    assert await world.record(ALICE, SERVICE, None) is SERVICE
    await world.removal(ALICE, SERVICE)
    assert world.asked == []


async def test_what_a_webhook_is_told(world):
    world.configure("validating", "c", hook("v"))
    await world.record(ALICE, SERVICE, None)
    ((_, request),) = world.asked
    uid = request.pop("uid")
    assert len(uid) == 36
    kind = {"group": "discovery.waypost.io", "version": "v1", "kind": "Service"}
    resource = {"group": "discovery.waypost.io", "version": "v1", "resource": "services"}
    assert request == {
        "kind": kind,
        "resource": resource,
        "requestKind": kind,
        "requestResource": resource,
        "name": "web-1",
        "operation": "CREATE",
        "userInfo": {"username": "alice", "groups": ["dev", "system:authenticated"]},
        "object": {
            "apiVersion": "discovery.waypost.io/v1",
            "kind": "Service",
            "metadata": {"name": "web-1", "labels": {"team": "blue"}},
            "spec": {
                "service": "web",
                "node": "n1",
                "tags": ["a"],
                "port": 80,
                "weights": {"passing": 1, "warning": 1},
            },
        },
        "oldObject": None,
        "dryRun": False,
        "options": None,
    }


async def test_mutating_come_first_by_configuration_and_place(world):
    world.configure("validating", "a", hook("v1"), hook("v2"))
    world.configure("mutating", "z", hook("m3"))
    world.configure("mutating", "b", hook("m1"), hook("m2"))
    world.answers = {name: label(name, "yes") for name in ("m1", "m2", "m3")}
    found = await world.record(ALICE, SERVICE, SERVICE)
    assert found.meta == {"team": "blue", "m1": "yes", "m2": "yes", "m3": "yes"}
    assert world.names[:3] == ["m1", "m2", "m3"]
    assert sorted(world.names[3:]) == ["v1", "v2"]
    # Each sees what those before it made; who validates sees the final object.
    seen = {name: request["object"]["metadata"]["labels"] for name, request in world.asked}
    assert seen["m2"] == {"team": "blue", "m1": "yes"}
    assert seen["v1"] == found.meta


async def test_a_refusal_ends_it_with_the_reason(world):
    world.configure("mutating", "a", hook("m1"), hook("m2"))
    world.configure("validating", "a", hook("v1"))
    world.answers["m1"] = {"allowed": False, "status": {"message": "not today", "code": 418}}
    with pytest.raises(Denied) as refused:
        await world.record(ALICE, SERVICE, None)
    assert str(refused.value) == 'admission webhook "m1" denied the request: not today'
    assert refused.value.http_status == 418
    assert world.names == ["m1"]


async def test_of_several_refusals_the_first_in_order_is_heard(world):
    world.configure("validating", "a", hook("v1"), hook("v2"), hook("v3"))
    world.answers["v2"] = {"allowed": False, "status": {"reason": "Forbidden"}}
    world.answers["v3"] = {"allowed": False}
    with pytest.raises(Denied, match=r'^admission webhook "v2" denied the request: Forbidden$'):
        await world.record(ALICE, SERVICE, None)
    assert sorted(world.names) == ["v1", "v2", "v3"]


@pytest.mark.parametrize(
    "answer",
    [Unavailable("connection refused"), b"no json", {"allowed": True, "uid": "another"}],
)
async def test_who_cannot_be_asked(world, answer):
    world.configure("validating", "a", hook("v"))
    world.answers["v"] = answer
    with pytest.raises(WebhookFailed, match=r'^failed calling webhook "v": '):
        await world.record(ALICE, SERVICE, None)
    world.configure("validating", "a", hook("v", failurePolicy="Ignore"))
    assert await world.record(ALICE, SERVICE, None) is SERVICE


async def test_a_configuration_counts_from_the_moment_it_is_stored(world):
    world.configure("validating", "a", hook("v"))
    await world.record(ALICE, SERVICE, None)
    world.configure("validating", "a", hook("w"))
    await world.record(ALICE, SERVICE, None)
    del world.tables["admissionregistration.k8s.io", "validatingwebhookconfigurations"]["", "a"]
    await world.record(ALICE, SERVICE, None)
    assert world.names == ["v", "w"]


async def test_an_unreadable_configuration_guards_everything(world):
    world.store("admissionregistration.k8s.io", "validatingwebhookconfigurations", "x", [1])
    with pytest.raises(WebhookFailed, match="its configuration cannot be read"):
        await world.record(ALICE, SERVICE, None)


async def test_reinvocation_happens_once_and_only_after_later_changes(world):
    world.configure("mutating", "a", hook("m1", reinvocationPolicy="IfNeeded"), hook("m2"))
    world.answers["m2"] = label("m2", "yes")
    await world.record(ALICE, SERVICE, None)
    assert world.names == ["m1", "m2", "m1"]
    world.asked.clear()
    world.answers["m2"] = {"allowed": True}
    await world.record(ALICE, SERVICE, None)
    assert world.names == ["m1", "m2"]


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        ({"op": "replace", "path": "/spec/service", "value": "b"}, "spec.service must not be changed"),
        ({"op": "replace", "path": "/spec/node", "value": "n2"}, "spec.node must not be changed"),
        ({"op": "replace", "path": "/metadata/name", "value": "b"}, "only labels can be changed"),
        ({"op": "replace", "path": "/kind", "value": "Node"}, "kind must not be changed"),
        ({"op": "replace", "path": "/spec/port", "value": "http"}, "spec: Expected `int`"),
        ({"op": "add", "path": "/spec/nonsense", "value": 1}, "unknown field `nonsense`"),
        ({"op": "remove", "path": "/metadata"}, "metadata must be an object"),
        ({"op": "replace", "path": "/metadata/labels/team", "value": 7}, "metadata.labels"),
    ],
)  # fmt: skip
async def test_what_webhooks_cannot_make_of_a_record(world, operation, text):
    world.configure("mutating", "a", hook("m"))
    world.answers["m"] = patch(operation)
    with pytest.raises(WebhookFailed, match=text):
        await world.record(ALICE, SERVICE, None)


async def test_what_webhooks_make_of_it_obeys_the_rules_as_well(world):
    world.configure("mutating", "a", hook("m"))
    world.answers["m"] = patch({"op": "replace", "path": "/spec/port", "value": 70000})
    with pytest.raises(Denied, match="port 70000 is not between 0 and 65535"):
        await world.record(ALICE, SERVICE, None)


async def test_a_patch_that_does_not_fit(world):
    world.configure("mutating", "a", hook("m", failurePolicy="Ignore"))
    world.answers["m"] = patch({"op": "remove", "path": "/spec/nothing"})
    with pytest.raises(WebhookFailed, match="its patch does not fit"):
        await world.record(ALICE, SERVICE, None)


@pytest.mark.parametrize(
    ("record", "operations", "expected"),
    [
        (
            Node(node="n1", address="10.0.0.1", datacenter="dc1"),
            [{"op": "add", "path": "/metadata/labels", "value": {"rack": "7"}}],
            Node(node="n1", address="10.0.0.1", datacenter="dc1", meta={"rack": "7"}),
        ),
        (
            Check(node="n1", check_id="c", name="c", definition=CheckDefinition(tcp="a:1", interval_ns=5)),
            [{"op": "replace", "path": "/spec/definition/intervalNs", "value": 9}],
            Check(node="n1", check_id="c", name="c", definition=CheckDefinition(tcp="a:1", interval_ns=9)),
        ),
        (
            KVEntry(key="k", value=b"\x00\xff"),
            [{"op": "replace", "path": "/spec/value", "value": "YQ=="}],
            KVEntry(key="k", value=b"a"),
        ),
    ],
)  # fmt: skip
async def test_records_of_every_kind_can_be_changed(world, record, operations, expected):
    world.configure("mutating", "a", hook("m"))
    world.answers["m"] = patch(*operations)
    assert await world.record(ALICE, record, None) == expected


async def test_a_removal_shows_what_goes(world):
    world.configure("mutating", "a", hook("m"))
    world.configure("validating", "a", hook("v"))
    await world.removal(ALICE, SERVICE)
    await world.removal(ALICE)
    assert world.names == ["m", "v"]
    for _, request in world.asked:
        assert request["operation"] == "DELETE"
        assert request["object"] is None
        assert request["oldObject"]["spec"]["service"] == "web"
    world.answers["m"] = patch({"op": "add", "path": "/x", "value": 1})
    with pytest.raises(WebhookFailed, match="attempted to modify the object"):
        await world.removal(ALICE, SERVICE)


# -- objects -------------------------------------------------------------------------------------------------------------


def review(**more):
    found = Review(
        operation="CREATE",
        group="",
        version="v1",
        kind="ConfigMap",
        resource="configmaps",
        namespace="default",
        name="x",
        object={"metadata": {"name": "x", "labels": {"a": "b"}}},
    )
    return Review(**{**{key: getattr(found, key) for key in found.__struct_fields__}, **more})


async def test_a_decision_asks_each_webhook_once_however_often_it_is_made(world):
    world.configure("mutating", "a", hook("m"))
    world.configure("validating", "a", hook("v"))
    world.answers["m"] = label("m", "yes") | {"warnings": ["mind"], "auditAnnotations": {"k": "1"}}
    world.answers["v"] = {"allowed": True, "warnings": ["careful"]}
    passing = world.admission.open(ALICE)
    decided = []

    async def decide():
        decided.append(1)
        changed = passing.mutate(review())
        seen = passing.validate(review(object=changed.object))
        return changed, seen

    changed, seen = await settled(decide)
    assert changed.object["metadata"]["labels"] == {"a": "b", "m": "yes"}
    assert (changed.warnings, seen.warnings) == (("mind",), ("careful",))
    assert world.names == ["m", "v"]
    assert len(decided) == 3
    await settled(decide)
    assert world.names == ["m", "v"]


async def test_annotations_go_into_the_audit_log_also_with_a_refusal(world):
    world.configure("mutating", "a", hook("m"))
    world.configure("validating", "a", hook("v"), hook("w"))
    world.answers = {
        "m": {"allowed": True, "auditAnnotations": {"why": "labelled"}},
        "v": {"allowed": True, "auditAnnotations": {"why": "fine", "long": "x" * 2000}},
        "w": {"allowed": False, "auditAnnotations": {"rule": "7"}},
    }
    trail = Trail()
    with following(trail), pytest.raises(Denied):
        await world.record(ALICE, SERVICE, None)
    assert trail.annotations == {
        "m/why": "labelled",
        "v/why": "fine",
        "v/long": "x" * 1024,
        "w/rule": "7",
    }
    other = Trail()
    world.answers["w"] = {"allowed": True, "auditAnnotations": {str(n): "" for n in range(100)}}
    with following(other):
        await world.removal(ALICE, SERVICE)
    assert len(other.annotations) == 64
    assert len(trail.annotations) == 4


async def test_an_object_that_changes_meanwhile_is_asked_about_again_but_not_forever(world):
    world.configure("validating", "a", hook("v"))
    passing = world.admission.open(ALICE)
    versions = iter(range(1000))

    async def decide():
        return passing.validate(review(old={"metadata": {"resourceVersion": next(versions)}}))

    with pytest.raises(WebhookFailed, match="changes too fast"):
        await settled(decide)
    assert len(world.asked) == MAX_ROUNDS


async def test_a_dry_run_asks_only_who_has_no_side_effects(world):
    world.configure("validating", "a", hook("v", sideEffects="Unknown"))
    passing = world.admission.open(ALICE)

    async def decide():
        return passing.validate(review(dry_run=True))

    with pytest.raises(
        Denied, match=r'^admission webhook "v" does not support dry run$'
    ) as refused:
        await settled(decide)
    assert refused.value.http_status == 400
    world.configure("validating", "a", hook("v", sideEffects="NoneOnDryRun"))
    await settled(decide)
    assert [request["dryRun"] for _, request in world.asked] == [True]


async def test_namespaces_are_selected_by_their_labels(world):
    world.store("", "namespaces", "default", {"metadata": {"labels": {"env": "prod"}}})
    selector = {"matchLabels": {"env": "prod"}}
    world.configure("validating", "a", hook("v", namespaceSelector=selector))

    async def decide(namespace):
        return world.admission.open(ALICE).validate(review(namespace=namespace))

    passing = world.admission.open(ALICE)

    async def selected():
        return passing.validate(review())

    await settled(selected)
    assert world.names == ["v"]
    await settled(lambda: decide("other"))
    assert world.names == ["v"]


async def test_configurations_are_never_sent_but_always_checked(world):
    world.configure("validating", "a", hook("v"))
    passing = world.admission.open(ALICE)
    group = "admissionregistration.k8s.io"
    kind = "ValidatingWebhookConfiguration"
    asked = review(group=group, kind=kind, object={"webhooks": [hook("a.b.c")]})
    passing.validate(asked)
    assert world.asked == []
    wrong = review(group=group, kind=kind, object={"webhooks": [hook("a.b.c", timeoutSeconds=31)]})
    with pytest.raises(Invalid, match=r"webhooks\[0\].timeoutSeconds"):
        passing.validate(wrong)


# -- the fixed rules -----------------------------------------------------------------------------------------------------

N1 = node_actor("n1")
N2 = node_actor("n2")


@pytest.mark.parametrize(
    ("actor", "record", "error", "text"),
    [
        (ALICE, Service(node="n1", id="consul", name="consul"), Denied,
         'services.discovery.waypost.io "consul" is forbidden: the name "consul" is reserved for the servers themselves'),
        (ALICE, Service(node="n1", id="a", name="CONSUL"), Denied, "is reserved"),
        (N2, Service(node="n1", id="a", name="web"), Denied,
         'services.discovery.waypost.io "web" is forbidden: '
         'node "n2" is not allowed to modify services of node "n1"'),
        (N2, Check(node="n1", check_id="c", name="c"), Denied, "not allowed to modify checks of node"),
        (N2, Node(node="n1", address="1"), Denied, "not allowed to modify nodes of node"),
        (ALICE, Service(node="n1", id="a", name="web", port=65536), Denied, "port 65536 is not between"),
        (ALICE, Service(node="n1", id="a", name="web", port=-1), Denied, "port -1 is not between"),
        (ALICE, Service(node="n1", id="a", name="web", tags=("x",) * 1025), TooLarge, "1025 tags"),
        (ALICE, Service(node="n1", id="a", name="web", tags=("x" * 70000,)), TooLarge, "characters of tags"),
        (ALICE, Service(node="n1", id="a", name="web", meta={"a": "x" * 70000}), TooLarge, "of metadata"),
        (ALICE, Service(node="n1", id="a", name="ä" * 257), TooLarge, "a name of 514 bytes"),
        (ALICE, Node(node="n1", address="1", meta={"a": "x" * 70000}), TooLarge, "of metadata"),
    ],
)  # fmt: skip
async def test_what_the_rules_refuse(world, actor, record, error, text):
    with pytest.raises(error) as refused:
        await world.record(actor, record, None)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("actor", "record"),
    [
        (N1, Service(node="N1", id="consul", name="consul", port=8300)),
        (N1, Check(node="n1", check_id="c", name="c")),
        (ALICE, Service(node="n1", id="a", name="web", port=65535)),
        (ALICE, Service(node="n1", id="a", name="ä" * 256)),
        (ALICE, Service(node="n1", id="a", name="consul-esm")),
        (ALICE, KVEntry(key="a", value=b"x" * 600000)),
    ],
)
async def test_what_the_rules_let_pass(world, actor, record):
    assert await world.record(actor, record, None) is record
    await world.removal(actor, record)


async def test_a_node_removes_only_its_own(world):
    with pytest.raises(Denied, match='node "n2" is not allowed to modify services of node "n1"'):
        await world.removal(N2, SERVICE)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"namespace": "kube-node-lease", "name": "n1"}, ""),
        ({"namespace": "kube-node-lease", "name": "n2"},
         'leases.coordination.k8s.io "n2" is forbidden: '
         "can only access node lease with the same name as the requesting node"),
        ({"namespace": "default", "name": "n1"},
         'can only access leases in the "kube-node-lease" system namespace'),
    ],
)  # fmt: skip
async def test_a_node_has_one_lease(world, more, text):
    asked = review(group="coordination.k8s.io", kind="Lease", resource="leases", **more)
    passing = world.admission.open(N1)
    if not text:
        passing.validate(asked)
        return
    with pytest.raises(Denied) as refused:
        passing.validate(asked)
    assert text in str(refused.value)
