"""The verbs over a store in memory, with webhooks that answer without a network."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress

import msgspec
import pytest

from waypost.access.actor import LOCAL, Actor, node_actor
from waypost.access.admission import Admission, Denied, WebhookFailed
from waypost.access.gate import Decision, ExposureAuthorizer, Gate
from waypost.base.clock import SystemClock
from waypost.base.errors import Forbidden, Rejected, Unavailable
from waypost.domain.agent import LocalAgent, LocalNode, RegisterService
from waypost.domain.catalog import Catalog, Deregister, Register
from waypost.domain.event import Events
from waypost.domain.kv import KV, PutKey
from waypost.domain.object import EVERYTHING, Objects
from waypost.domain.object_admission import Refused
from waypost.domain.object_plan import Options, Place
from waypost.domain.session import CreateSession, Sessions
from waypost.domain.txn import Transactions
from waypost.model.catalog import CRITICAL, PASSING, WARNING, Check, CheckDefinition, Service
from waypost.model.event import UserEvent
from waypost.state.state import State
from waypost.store.memory import MemoryEngine
from waypost.wire.consul.decode import KVOperation, NodeOperation, ServiceOperation
from waypost.wire.kube.bodies import DeleteOptions
from waypost.wire.kube.patch import APPLY_PATCH, MERGE_PATCH
from waypost.wire.kube.resources import BUILT_IN, Resource
from waypost.wire.kube.status import ApiError

from .conftest import World, hook, patch

OPERATOR = Actor(user="operator", groups=(LOCAL,))
GROUP = "admissionregistration.k8s.io"


def resource(plural: str, group: str = "") -> Resource:
    found = BUILT_IN.find(group=group, version="v1", plural=plural)
    assert found is not None
    return found


MAPS = resource("configmaps")


class Verbs(World):
    """Everything that writes, with one admission chain over the real view."""

    def __init__(self, state):
        super().__init__()
        self.state = state
        self.admission = Admission(state.view, caller=self, rng=random.Random(1))
        gate = Gate(ExposureAuthorizer())
        clock = SystemClock()
        more = {"admission": self.admission}
        self.objects = Objects(state, gate, clock=clock, rng=random.Random(2), **more)
        self.catalog = Catalog(state, gate, datacenter="dc1", **more)
        self.kv = KV(state, gate, **more)
        self.transactions = Transactions(
            state, gate, datacenter="dc1", locked_out=lambda key: False, **more
        )
        local = LocalNode(
            node="n1",
            id="11111111-2222-3333-4444-555555555555",
            address="10.0.0.1",
            datacenter="dc1",
        )
        self.agent = LocalAgent(state, gate, local=local, clock=clock, **more)
        self.sessions = Sessions(state, gate, clock=clock, **more)
        self.events = Events(state, gate, node="n1", **more)

    @property
    def view(self):
        return self.state.view

    async def guard(self, kind, *hooks):
        name = f"{kind.capitalize()}WebhookConfiguration"
        document = {
            "apiVersion": f"{GROUP}/v1",
            "kind": name,
            "metadata": {"name": kind},
            "webhooks": list(hooks),
        }
        place = Place(resource(name.lower() + "s", GROUP))
        await self.objects.create(OPERATOR, place, document, Options())

    async def create(self, name, **options):
        document = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name} if not name.endswith("-") else {"generateName": name},
            "data": {"a": "b"},
        }
        place = Place(MAPS, "default")
        return await self.objects.create(OPERATOR, place, document, Options(**options))

    def stored(self, name):
        return self.objects.stored(Place(MAPS, "default", name))


@pytest.fixture
async def verbs():
    engine = MemoryEngine(clock=SystemClock())
    await engine.open()
    state = State(engine)
    await state.load()
    task = asyncio.create_task(state.run())
    try:
        one = Verbs(state)
        await one.objects.ensure_namespaces()
        yield one
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await engine.close()


# -- objects -------------------------------------------------------------------------------------------------------------


async def test_the_status_of_a_refusal_is_the_webhooks(verbs):
    await verbs.guard("validating", hook("guard.example.com"))
    details = {"causes": [{"reason": "Owner", "message": "none", "field": "metadata"}]}
    verbs.answers["guard.example.com"] = {
        "allowed": False,
        "status": {"message": "no", "code": 409, "reason": "Conflict", "details": details},
    }
    with pytest.raises(ApiError) as refused:
        await verbs.create("x")
    body = refused.value.status.body()
    assert (body["code"], body["reason"]) == (409, "Conflict")
    assert body["message"] == 'admission webhook "guard.example.com" denied the request: no'
    assert body["details"] == details
    assert verbs.stored("x") is None


async def test_every_way_to_write_is_asked_about(verbs):
    await verbs.create("x")
    await verbs.guard("validating", hook("v.example.com"))
    place = Place(MAPS, "default", "x")
    await verbs.create("y-")
    live = verbs.stored("x")
    live["data"] = {"a": "c"}
    await verbs.objects.update(OPERATOR, place, live, Options())
    await verbs.objects.patch(
        OPERATOR, place, b'{"data":{"a":"d"}}', media_type=MERGE_PATCH, options=Options()
    )
    await verbs.objects.delete(OPERATOR, place, DeleteOptions())
    requests = [request for _, request in verbs.asked]
    assert [one["operation"] for one in requests] == ["CREATE", "UPDATE", "UPDATE", "DELETE"]
    assert requests[0]["name"].startswith("y-")
    assert len(requests[0]["name"]) > 2
    assert requests[2]["object"]["data"] == {"a": "d"}
    assert requests[2]["oldObject"]["data"] == {"a": "c"}
    assert requests[3]["oldObject"]["data"] == {"a": "d"}


async def test_a_collection_goes_only_if_each_may_go(verbs):
    for n in range(20):
        await verbs.create(f"x{n}")
    await verbs.guard("validating", hook("v.example.com"))
    place = Place(MAPS, "default")
    verbs.answers["v.example.com"] = lambda request: {"allowed": request["name"] != "x7"}
    with pytest.raises(ApiError, match="denied the request"):
        await verbs.objects.delete_collection(OPERATOR, place, EVERYTHING, DeleteOptions())
    assert len(verbs.view.objects("", "configmaps")) == 20
    verbs.answers.clear()
    verbs.asked.clear()
    await verbs.objects.delete_collection(OPERATOR, place, EVERYTHING, DeleteOptions())
    assert verbs.view.objects("", "configmaps") == []
    assert len(verbs.asked) == 20


async def test_what_webhooks_add_belongs_to_who_asked(verbs):
    await verbs.guard("mutating", hook("m.example.com"))
    verbs.answers["m.example.com"] = patch({"op": "add", "path": "/data/added", "value": "yes"})
    applied = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"b"}}'
    await verbs.objects.patch(
        OPERATOR,
        Place(MAPS, "default", "x"),
        applied,
        media_type=APPLY_PATCH,
        options=Options(manager="me"),
    )
    stored = verbs.stored("x")
    assert stored["data"] == {"a": "b", "added": "yes"}
    owners = {
        (one["manager"], one["operation"]): one["fieldsV1"]
        for one in stored["metadata"]["managedFields"]
    }
    assert "f:added" in json.dumps(owners["me", "Update"])
    assert "f:added" not in json.dumps(owners["me", "Apply"])


async def test_a_webhook_that_makes_another_object_of_it(verbs):
    await verbs.guard("mutating", hook("m.example.com"))
    for operation, text in (
        ({"op": "replace", "path": "/metadata/name", "value": "y"}, "metadata.name"),
        ({"op": "add", "path": "/data", "value": 7}, "cannot be handled as a ConfigMap"),
    ):
        verbs.answers["m.example.com"] = patch(operation)
        with pytest.raises(Exception, match=text):
            await verbs.create("x")
    assert verbs.view.objects("", "configmaps") == []


async def test_who_changes_an_object_while_a_webhook_thinks_is_not_overwritten(verbs):
    await verbs.create("x")
    await verbs.guard("validating", hook("v.example.com"))
    thinking, go_on = asyncio.Event(), asyncio.Event()
    call = verbs.call

    async def slow(webhook, body):
        if not thinking.is_set():
            thinking.set()
            await go_on.wait()
        return await call(webhook, body)

    verbs.call = slow
    place = Place(MAPS, "default", "x")

    async def change(data):
        return await verbs.objects.patch(
            OPERATOR,
            place,
            msgspec.json.encode({"data": data}),
            media_type=MERGE_PATCH,
            options=Options(),
        )

    async with asyncio.TaskGroup() as group:
        first = group.create_task(change({"first": "1"}))
        await thinking.wait()
        await change({"second": "2"})
        go_on.set()
    assert first.result().object["data"] == {"a": "b", "first": "1", "second": "2"}
    seen = [request["object"]["data"] for _, request in verbs.asked]
    assert seen[-1] == {"a": "b", "first": "1", "second": "2"}


async def test_what_every_cluster_has_comes_whatever_webhooks_say(verbs):
    await verbs.guard("validating", hook("v.example.com"))
    verbs.answers["v.example.com"] = Unavailable("down")
    place = Place(resource("serviceaccounts"), "default", "default")
    verbs.answers["v.example.com"] = {"allowed": True}
    await verbs.objects.delete(OPERATOR, place, DeleteOptions())
    verbs.answers["v.example.com"] = Unavailable("down")
    await verbs.objects.ensure_namespaces()
    assert verbs.objects.stored(place) is not None


async def test_a_large_collection_is_looked_at_a_few_times(verbs, monkeypatch):
    for n in range(50):
        await verbs.create(f"x{n}")
    await verbs.guard("mutating", hook("m.example.com"))
    await verbs.guard("validating", hook("v.example.com"))
    looks = []
    plain = verbs.view.objects
    monkeypatch.setattr(verbs.view, "objects", lambda *a, **k: looks.append(a) or plain(*a, **k))
    await verbs.objects.delete_collection(
        OPERATOR, Place(MAPS, "default"), EVERYTHING, DeleteOptions()
    )
    # Once for the mutating ones, once for the validating ones, once to delete; the store may make it look once more.
    assert len([one for one in looks if one == ("", "configmaps")]) <= 4
    assert len(verbs.asked) == 100
    assert plain("", "configmaps") == []


async def test_warnings_come_with_deletions_and_refusals_too(verbs):
    await verbs.create("x")
    await verbs.create("y")
    await verbs.guard("validating", hook("v.example.com"), hook("w.example.com"))
    place = Place(MAPS, "default", "x")
    for name in ("v.example.com", "w.example.com"):
        verbs.answers[name] = {"allowed": True, "warnings": ["mind the gap"]}
    removed = await verbs.objects.delete(OPERATOR, place, DeleteOptions())
    assert removed.warnings == ("mind the gap",)
    page = await verbs.objects.delete_collection(
        OPERATOR, Place(MAPS, "default"), EVERYTHING, DeleteOptions(dry_run=True)
    )
    assert page.warnings == ("mind the gap",)
    verbs.answers["w.example.com"] = {"allowed": False, "warnings": ["ask before"]}
    with pytest.raises(Refused) as refused:
        await verbs.objects.delete(OPERATOR, Place(MAPS, "default", "y"), DeleteOptions())
    assert refused.value.warnings == ("ask before",)
    assert verbs.stored("y") is not None


# -- the catalog and keys ------------------------------------------------------------------------------------------------


async def refused(verbs, wanted, what):
    """Check that `what` is refused when the webhook refuses the resource `wanted`, and changes nothing."""
    verbs.answers["v.example.com"] = lambda request: {
        "allowed": request["resource"]["resource"] != wanted
    }
    before = verbs.view.revision
    with pytest.raises(Denied, match="without explanation"):
        await what
    assert verbs.view.revision == before


async def test_every_way_to_register_is_guarded(verbs):
    await verbs.agent.ensure_self()
    web = Service(node="", id="", name="web", port=80)
    check = Check(node="", check_id="", name="c")
    await verbs.agent.register_service(OPERATOR, RegisterService(service=web, checks=(check,)))
    await verbs.guard("validating", hook("v.example.com"))
    db = Service(node="", id="", name="db")
    agent, catalog, apply = verbs.agent, verbs.catalog, verbs.transactions.apply
    await refused(verbs, "services", agent.register_service(OPERATOR, RegisterService(service=db)))
    with_check = RegisterService(service=db, checks=(check,))
    await refused(verbs, "checks", agent.register_service(OPERATOR, with_check))
    await refused(verbs, "services", agent.deregister_service(OPERATOR, "web"))
    await refused(verbs, "checks", agent.register_check(OPERATOR, check))
    await refused(verbs, "checks", agent.deregister_check(OPERATOR, "service:web"))
    external = Register(node="ext", address="10.0.0.9", service=db, checks=(check,))
    for wanted in ("nodes", "services", "checks"):
        await refused(verbs, wanted, catalog.register(OPERATOR, external))
    gone = Deregister(node="n1")
    for wanted in ("nodes", "services"):
        await refused(verbs, wanted, catalog.deregister(OPERATOR, gone))
    by_check = Deregister(node="n1", check_id="service:web")
    await refused(verbs, "checks", catalog.deregister(OPERATOR, by_check))
    operations = [
        ("services", ServiceOperation(verb="set", node="n1", service=db)),
        ("services", ServiceOperation(verb="delete", node="n1", service=web)),
        ("nodes", NodeOperation(verb="set", node="ext", address="10.0.0.9")),
        ("nodes", NodeOperation(verb="delete", node="n1")),
    ]
    for wanted, operation in operations:
        await refused(verbs, wanted, apply(OPERATOR, [operation]))
    # Nothing of this is asked about when nothing changes.
    verbs.asked.clear()
    await apply(OPERATOR, [NodeOperation(verb="get", node="n1")])
    await catalog.register(OPERATOR, Register(node="n1", skip_node_update=True))
    assert verbs.asked == []


async def test_every_way_to_write_a_key_is_guarded(verbs):
    await verbs.kv.put(OPERATOR, PutKey(key="a/b", value=b"1"))
    await verbs.guard("validating", hook("v.example.com"))
    apply = verbs.transactions.apply
    await refused(verbs, "keys", verbs.kv.put(OPERATOR, PutKey(key="a/b", value=b"2")))
    await refused(verbs, "keys", verbs.kv.delete(OPERATOR, "a/b"))
    await refused(verbs, "keys", verbs.kv.delete_below(OPERATOR, "a/"))
    for verb in ("set", "cas", "lock", "unlock", "delete", "delete-cas", "delete-tree"):
        await refused(verbs, "keys", apply(OPERATOR, [KVOperation(verb=verb, key="a/b")]))
    verbs.asked.clear()
    await apply(OPERATOR, [KVOperation(verb="get", key="a/b")])
    assert verbs.kv.get(OPERATOR, "a/b").value == b"1"
    assert verbs.asked == []


async def test_what_webhooks_make_of_a_registration_is_stored(verbs):
    await verbs.agent.ensure_self()
    await verbs.guard("mutating", hook("m.example.com"))

    def labelled(request):
        if request["resource"]["resource"] == "keys":
            return patch({"op": "replace", "path": "/spec/flags", "value": 7})
        return patch({"op": "add", "path": "/metadata/labels", "value": {"by": "webhook"}})

    verbs.answers["m.example.com"] = labelled
    service = Service(node="", id="", name="web")
    await verbs.agent.register_service(OPERATOR, RegisterService(service=service))
    assert verbs.view.service("n1", "web").meta == {"by": "webhook"}
    await verbs.catalog.register(
        OPERATOR, Register(node="ext", address="10.0.0.9", service=service)
    )
    assert verbs.view.node("ext").meta == {"by": "webhook"}
    assert verbs.view.service("ext", "web").meta == {"by": "webhook"}
    await verbs.transactions.apply(
        OPERATOR,
        [
            ServiceOperation(verb="set", node="ext", service=Service(node="", id="b", name="b")),
            KVOperation(verb="set", key="k", value=b"1", flags=1),
        ],
    )
    assert verbs.view.service("ext", "b").meta == {"by": "webhook"}
    assert verbs.view.kv("k").flags == 7
    await verbs.kv.put(OPERATOR, PutKey(key="l", value=b"1", flags=1))
    assert verbs.view.kv("l").flags == 7


class OnlyDb:
    """Allows reading, configuring, and writing the service `db`."""

    def decide(self, actor, attributes):
        name = attributes.name if attributes.resource == "services" else "db"
        return Decision(allowed=name == "db", reason="")


@pytest.mark.parametrize("way", ["agent", "catalog", "txn", "deregister", "catalog deregister"])
async def test_an_id_that_becomes_anothers_while_a_webhook_thinks_is_not_taken(verbs, way):
    await verbs.agent.ensure_self()
    await verbs.guard("validating", hook("v.example.com"))
    state, more = verbs.state, {"admission": verbs.admission}
    gate = Gate(OnlyDb())
    agent = LocalAgent(state, gate, local=verbs.agent.local, clock=SystemClock(), **more)
    catalog = Catalog(state, gate, datacenter="dc1", **more)
    transactions = Transactions(state, gate, datacenter="dc1", locked_out=lambda key: False, **more)
    thinking, go_on = asyncio.Event(), asyncio.Event()
    call = verbs.call

    async def slow(webhook, body):
        if not thinking.is_set():
            thinking.set()
            await go_on.wait()
        return await call(webhook, body)

    mine = Service(node="", id="one", name="db")
    theirs = Service(node="", id="one", name="web")
    if "deregister" in way:
        await agent.register_service(OPERATOR, RegisterService(service=mine))
    verbs.call = slow
    writes = {
        "agent": lambda: agent.register_service(OPERATOR, RegisterService(service=mine)),
        "catalog": lambda: catalog.register(
            OPERATOR, Register(node="n1", skip_node_update=True, service=mine)
        ),
        "txn": lambda: transactions.apply(
            OPERATOR, [ServiceOperation(verb="set", node="n1", service=mine)]
        ),
        "deregister": lambda: agent.deregister_service(OPERATOR, "one"),
        "catalog deregister": lambda: catalog.deregister(
            OPERATOR, Deregister(node="n1", service_id="one")
        ),
    }
    task = asyncio.create_task(writes[way]())
    await thinking.wait()
    await verbs.agent.register_service(OPERATOR, RegisterService(service=theirs))
    go_on.set()
    with pytest.raises(Forbidden):
        await task
    assert verbs.view.service("n1", "one").name == "web"


# -- what changes while a webhook thinks -----------------------------------------------------------------------------------


class Thinking:
    """Holds the first question to a webhook until `go_on`, so that others can write meanwhile."""

    def __init__(self, verbs):
        self.started, self.go_on = asyncio.Event(), asyncio.Event()
        self._call = verbs.call
        verbs.call = self.call

    async def call(self, webhook, body):
        if not self.started.is_set():
            self.started.set()
            await self.go_on.wait()
        return await self._call(webhook, body)


def owned(*, team, **more):
    return Service(node="", id="one", name="web", meta={"team": team}, **more)


async def while_thinking(verbs, first, then):
    """Start `first`, write `then` while its webhook thinks, and return what `first` comes to."""
    thinking = Thinking(verbs)
    task = asyncio.create_task(first)
    await thinking.started.wait()
    await then
    thinking.go_on.set()
    return await task


@pytest.mark.parametrize("way", ["agent", "catalog", "txn"])
async def test_a_registration_is_asked_about_as_it_is_stored(verbs, way):
    await verbs.agent.ensure_self()
    await verbs.agent.register_service(OPERATOR, RegisterService(service=owned(team="a")))
    await verbs.guard("validating", hook("v.example.com"))
    mine = owned(team="b", port=80)
    writes = {
        "agent": lambda: verbs.agent.register_service(OPERATOR, RegisterService(service=mine)),
        "catalog": lambda: verbs.catalog.register(
            OPERATOR, Register(node="n1", skip_node_update=True, service=mine)
        ),
        "txn": lambda: verbs.transactions.apply(
            OPERATOR, [ServiceOperation(verb="set", node="n1", service=mine)]
        ),
    }
    other = verbs.agent.register_service(OPERATOR, RegisterService(service=owned(team="c")))
    await while_thinking(verbs, writes[way](), other)
    assert verbs.view.service("n1", "one").meta == {"team": "b"}
    asked = [
        (
            request["oldObject"]["metadata"]["labels"]["team"],
            request["object"]["metadata"]["labels"]["team"],
        )
        for _, request in verbs.asked
    ]
    # First over what was there, then over what came in between.
    assert asked == [("a", "c"), ("a", "b"), ("c", "b")]


async def test_what_is_refused_over_the_newer_record_is_not_stored(verbs):
    await verbs.agent.ensure_self()
    await verbs.agent.register_service(OPERATOR, RegisterService(service=owned(team="a")))
    await verbs.guard("validating", hook("v.example.com"))
    # Whose it is, it stays: only the team of the instance may change it, and "c" never gives it away.
    verbs.answers["v.example.com"] = lambda request: {
        "allowed": (request["oldObject"] or request["object"])["metadata"]["labels"]["team"] != "c"
    }
    other = verbs.agent.register_service(OPERATOR, RegisterService(service=owned(team="c")))
    mine = verbs.agent.register_service(OPERATOR, RegisterService(service=owned(team="b")))
    with pytest.raises(Denied):
        await while_thinking(verbs, mine, other)
    assert verbs.view.service("n1", "one").meta == {"team": "c"}


async def test_what_a_webhook_made_of_it_is_made_again_of_the_newer_one(verbs):
    await verbs.agent.ensure_self()
    check = Check(node="", check_id="c", name="c", definition=CheckDefinition(ttl_ns=10**10))
    await verbs.agent.register_check(OPERATOR, check)
    await verbs.guard("mutating", hook("m.example.com"))
    verbs.answers["m.example.com"] = lambda request: patch(
        {
            "op": "add",
            "path": "/spec/notes",
            "value": f"was {request['oldObject']['spec']['status']}",
        }
    )
    # A new registration keeps the check's status, also one that came while the webhook was thinking.
    change = verbs.agent.register_check(OPERATOR, check)
    rule = {"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["checks"], "operations": ["*"]}
    await verbs.objects.delete(
        OPERATOR,
        Place(resource("mutatingwebhookconfigurations", GROUP), "", "mutating"),
        DeleteOptions(),
    )
    await verbs.guard("mutating", hook("m.example.com", rules=[rule]))
    result = verbs.agent.heartbeat(OPERATOR, "c", status=PASSING, output="fine")
    await while_thinking(verbs, change, result)
    stored = verbs.view.check("n1", "c")
    assert (stored.status, stored.output, stored.notes) == (PASSING, "fine", "was passing")
    assert [r["oldObject"]["spec"]["status"] for _, r in verbs.asked] == [CRITICAL, PASSING]


async def test_an_instance_that_joins_a_node_that_goes_is_asked_about(verbs):
    service = Service(node="", id="a", name="a")
    await verbs.catalog.register(
        OPERATOR, Register(node="ext", address="10.0.0.9", service=service)
    )
    await verbs.guard("validating", hook("v.example.com"))
    late = Register(
        node="ext", skip_node_update=True, service=Service(node="", id="late", name="late")
    )
    gone = verbs.catalog.deregister(OPERATOR, Deregister(node="ext"))
    await while_thinking(verbs, gone, verbs.catalog.register(OPERATOR, late))
    assert verbs.view.node("ext") is None
    assert not verbs.view.node_services("ext")
    removed = [r["name"] for _, r in verbs.asked if r["operation"] == "DELETE"]
    # What was asked about already is not asked about again.
    assert sorted(removed) == ["a", "ext", "late"]


async def test_a_key_that_joins_what_goes_is_asked_about_or_stays(verbs):
    await verbs.kv.put(OPERATOR, PutKey(key="a/b", value=b"1"))
    await verbs.guard("validating", hook("v.example.com"))
    verbs.answers["v.example.com"] = lambda request: {
        "allowed": request["operation"] != "DELETE" or request["name"] != "a/late"
    }
    gone = verbs.kv.delete_below(OPERATOR, "a/")
    with pytest.raises(Denied):
        await while_thinking(verbs, gone, verbs.kv.put(OPERATOR, PutKey(key="a/late", value=b"2")))
    assert [entry.key for entry in verbs.view.kv_below("a/")] == ["a/b", "a/late"]


async def test_many_keys_go_with_one_question_each(verbs):
    for n in range(100):
        await verbs.kv.put(OPERATOR, PutKey(key=f"a/{n}", value=b"1"))
    await verbs.guard("validating", hook("v.example.com"))
    await verbs.kv.delete_below(OPERATOR, "a/")
    assert verbs.view.kv_below("a/") == []
    assert len(verbs.asked) == 100


async def test_a_transaction_may_write_one_record_with_each_operation(verbs):
    await verbs.guard("validating", hook("v.example.com"))
    operations = [KVOperation(verb="set", key="k", value=b"%d" % n) for n in range(64)]
    outcome = await verbs.transactions.apply(OPERATOR, operations)
    assert outcome.failures == ()
    assert verbs.view.kv("k").value == b"63"
    assert len(verbs.asked) == 64


# -- results, maintenance, sessions, events ----------------------------------------------------------------------------------

RESULTS = {
    "apiGroups": ["discovery.waypost.io"],
    "apiVersions": ["v1"],
    "resources": ["checks/status"],
    "operations": ["UPDATE"],
}
TTL = Check(node="", check_id="c", name="c", definition=CheckDefinition(ttl_ns=10**10))


async def test_results_are_asked_about_by_rules_that_name_them(verbs):
    await verbs.agent.ensure_self()
    await verbs.agent.register_check(OPERATOR, TTL)
    rule = RESULTS | {"resources": ["checks"]}
    await verbs.guard("validating", hook("v.example.com", rules=[rule]))
    await verbs.agent.heartbeat(OPERATOR, "c", status=PASSING, output="1")
    assert verbs.asked == []
    await verbs.guard("mutating", hook("m.example.com", rules=[RESULTS]))
    await verbs.agent.heartbeat(OPERATOR, "c", status=WARNING, output="2")
    ((_, request),) = verbs.asked
    assert (request["operation"], request["subResource"]) == ("UPDATE", "status")
    assert request["kind"]["kind"] == "Check"
    assert (request["oldObject"]["spec"]["status"], request["oldObject"]["spec"]["output"]) == (
        PASSING,
        "1",
    )
    assert (request["object"]["spec"]["status"], request["object"]["spec"]["output"]) == (
        WARNING,
        "2",
    )
    assert verbs.view.check("n1", "c").status == WARNING


async def test_a_refused_result_changes_nothing_and_keeps_nothing_alive(verbs):
    await verbs.agent.ensure_self()
    await verbs.agent.register_check(OPERATOR, TTL)
    await verbs.agent.heartbeat(OPERATOR, "c", status=PASSING, output="fine")
    await verbs.guard("validating", hook("v.example.com", rules=[RESULTS]))
    verbs.answers["v.example.com"] = {"allowed": False, "status": {"message": "not you"}}
    heard = dict(verbs.agent.heartbeats)
    before = verbs.view.revision
    for status in (PASSING, WARNING):
        with pytest.raises(Denied, match="denied the request: not you"):
            await verbs.agent.heartbeat(OPERATOR, "c", status=status, output="other")
    assert verbs.view.revision == before
    assert verbs.agent.checks(OPERATOR)["c"].output == "fine"
    assert verbs.agent.heartbeats == heard
    # The agent's own results go the same way.
    with pytest.raises(Denied):
        await verbs.agent.report(node_actor("n1"), "c", status=CRITICAL, output="TTL expired")
    with pytest.raises(Denied, match='node "n2" is not allowed to modify checks of node "n1"'):
        await verbs.agent.report(node_actor("n2"), "c", status=CRITICAL, output="x")


async def test_webhooks_may_change_a_result_but_not_the_check(verbs):
    await verbs.agent.ensure_self()
    await verbs.agent.register_check(OPERATOR, TTL)
    await verbs.guard("mutating", hook("m.example.com", rules=[RESULTS]))
    verbs.answers["m.example.com"] = patch(
        {"op": "replace", "path": "/spec/status", "value": WARNING},
        {"op": "replace", "path": "/spec/output", "value": "softened"},
    )
    await verbs.agent.heartbeat(OPERATOR, "c", status=CRITICAL, output="down")
    assert (verbs.view.check("n1", "c").status, verbs.view.check("n1", "c").output) == (
        WARNING, "softened",
    )  # fmt: skip
    # An output alone is kept here and written later, as without webhooks.
    verbs.answers["m.example.com"] = patch(
        {"op": "replace", "path": "/spec/output", "value": "again"}
    )
    before = verbs.view.revision
    await verbs.agent.heartbeat(OPERATOR, "c", status=WARNING, output="x")
    assert verbs.view.revision == before
    assert verbs.agent.checks(OPERATOR)["c"].output == "again"
    await verbs.agent.flush_outputs()
    assert verbs.view.check("n1", "c").output == "again"
    for path, value, text in (
        ("/spec/notes", "mine", "only spec.status and spec.output"),
        ("/spec/status", "sleepy", "spec.status must be one of passing, warning, critical"),
    ):
        verbs.answers["m.example.com"] = patch({"op": "add", "path": path, "value": value})
        with pytest.raises(WebhookFailed, match=text):
            await verbs.agent.heartbeat(OPERATOR, "c", status=PASSING, output="x")


async def test_a_check_that_goes_while_its_result_is_thought_about(verbs):
    await verbs.agent.ensure_self()
    await verbs.agent.register_check(OPERATOR, TTL)
    await verbs.guard("validating", hook("v.example.com", rules=[RESULTS]))
    result = verbs.agent.heartbeat(OPERATOR, "c", status=PASSING, output="x")
    await while_thinking(verbs, result, verbs.agent.deregister_check(OPERATOR, "c"))
    assert verbs.view.check("n1", "c") is None
    await verbs.agent.flush_outputs()
    assert verbs.view.check("n1", "c") is None


async def test_maintenance_is_a_check_that_comes_and_goes(verbs):
    await verbs.agent.ensure_self()
    web = Service(node="", id="web", name="web")
    await verbs.agent.register_service(OPERATOR, RegisterService(service=web))
    await verbs.guard("validating", hook("v.example.com"))
    agent = verbs.agent
    on = {"enable": True, "reason": "disk"}
    await refused(verbs, "checks", agent.set_node_maintenance(OPERATOR, **on))
    await refused(verbs, "checks", agent.set_service_maintenance(OPERATOR, "web", **on))
    verbs.answers.clear()
    verbs.asked.clear()
    await agent.set_node_maintenance(OPERATOR, **on)
    await agent.set_service_maintenance(OPERATOR, "web", **on)
    await agent.set_service_maintenance(OPERATOR, "web", **on)
    await refused(verbs, "checks", agent.set_node_maintenance(OPERATOR, enable=False))
    await refused(verbs, "checks", agent.set_service_maintenance(OPERATOR, "web", enable=False))
    assert [(r["operation"], r["name"]) for _, r in verbs.asked] == [
        ("CREATE", "_node_maintenance"),
        ("CREATE", "_service_maintenance:web"),
        ("DELETE", "_node_maintenance"),
        ("DELETE", "_service_maintenance:web"),
    ]
    assert verbs.asked[0][1]["object"]["spec"]["type"] == "maintenance"
    assert verbs.asked[0][1]["object"]["spec"]["notes"] == "disk"


SESSION = "11111111-2222-3333-4444-555555555555"


async def test_sessions_are_created_renewed_and_destroyed_only_if_admitted(verbs):
    await verbs.agent.ensure_self()
    await verbs.guard("validating", hook("v.example.com"))
    command = CreateSession(node="n1", name="lock", ttl="15s", behavior="delete")
    sessions = verbs.sessions

    async def create():
        return await sessions.create(OPERATOR, command, session_id=SESSION)

    await refused(verbs, "sessions", create())
    verbs.answers.clear()
    verbs.asked.clear()
    await create()
    ((_, request),) = verbs.asked
    assert (request["operation"], request["name"]) == ("CREATE", SESSION)
    assert request["object"]["spec"] == {
        "name": "lock",
        "node": "n1",
        "behavior": "delete",
        "ttl": "15s",
        "lockDelayNs": 15_000_000_000,
        "nodeChecks": ["serfHealth"],
    }
    await verbs.kv.put(OPERATOR, PutKey(key="k", value=b"", acquire=SESSION))
    await refused(verbs, "sessions", sessions.renew(OPERATOR, SESSION))
    await refused(verbs, "sessions", sessions.destroy(OPERATOR, SESSION))
    # A session of the kind that deletes takes its keys along.
    await refused(verbs, "keys", sessions.destroy(OPERATOR, SESSION))
    verbs.answers.clear()
    verbs.asked.clear()
    assert (await sessions.renew(OPERATOR, SESSION)).id == SESSION
    await sessions.destroy(OPERATOR, SESSION)
    assert [(r["operation"], r.get("subResource", ""), r["name"]) for _, r in verbs.asked] == [
        ("UPDATE", "renewal", SESSION),
        ("DELETE", "", SESSION),
        ("DELETE", "", "k"),
    ]
    assert verbs.view.session(SESSION) is None
    assert verbs.view.kv("k") is None


async def test_what_webhooks_make_of_a_session_is_stored_and_must_be_one(verbs):
    await verbs.agent.ensure_self()
    await verbs.guard("mutating", hook("m.example.com"))
    command = CreateSession(node="n1", ttl="15s")

    async def create():
        return await verbs.sessions.create(OPERATOR, command, session_id=SESSION)

    for operation, error, text in (
        ({"op": "replace", "path": "/spec/ttl", "value": "1s"}, Rejected, "Invalid Session TTL"),
        ({"op": "replace", "path": "/spec/behavior", "value": "x"}, Rejected, "Invalid Behavior"),
        ({"op": "replace", "path": "/spec/node", "value": "n2"}, WebhookFailed, "spec.node must not be changed"),
        ({"op": "replace", "path": "/spec/lockDelayNs", "value": -1}, WebhookFailed, "lockDelayNs"),
        ({"op": "replace", "path": "/spec/lockDelayNs", "value": 2**70}, WebhookFailed, "cannot be stored"),
    ):  # fmt: skip
        verbs.answers["m.example.com"] = patch(operation)
        with pytest.raises(error, match=text):
            await create()
        assert verbs.view.session(SESSION) is None
    verbs.answers["m.example.com"] = patch(
        {"op": "replace", "path": "/spec/ttl", "value": "30s"},
        {"op": "replace", "path": "/spec/lockDelayNs", "value": 0},
    )
    await create()
    stored = verbs.view.session(SESSION)
    assert (stored.ttl, stored.lock_delay_ns, stored.node_checks) == ("30s", 0, ("serfHealth",))
    verbs.answers["m.example.com"] = patch({"op": "replace", "path": "/spec/ttl", "value": "20s"})
    with pytest.raises(WebhookFailed, match="a renewal changes nothing"):
        await verbs.sessions.renew(OPERATOR, SESSION)


async def test_a_session_whose_time_has_come_needs_nobodys_consent(verbs):
    await verbs.agent.ensure_self()
    await verbs.sessions.create(OPERATOR, CreateSession(node="n1"), session_id=SESSION)
    rule = RESULTS | {"resources": ["sessions"], "operations": ["*"]}
    await verbs.guard("validating", hook("v.example.com", rules=[rule]))
    verbs.answers["v.example.com"] = {"allowed": False}
    task = asyncio.create_task(verbs.sessions.run())
    await verbs.agent.report(OPERATOR, "serfHealth", status=CRITICAL, output="")
    async with asyncio.timeout(5):
        while verbs.view.session(SESSION) is not None:
            await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_events_are_fired_as_admission_lets_them_be(verbs):
    await verbs.guard("validating", hook("v.example.com"))
    event = UserEvent(id="", name="deploy", payload=b"v2", node_filter="n.*")
    await refused(verbs, "events", verbs.events.fire(OPERATOR, event))
    assert verbs.events.list(OPERATOR) == []
    verbs.asked.clear()
    await verbs.guard("mutating", hook("m.example.com"))
    verbs.answers["m.example.com"] = patch(
        {"op": "replace", "path": "/spec/payload", "value": "djM="}
    )
    verbs.answers["v.example.com"] = {"allowed": True}
    fired = await verbs.events.fire(OPERATOR, event)
    assert fired.payload == b"v3"
    assert [one.payload for one in verbs.events.list(OPERATOR)] == [b"v3"]
    request = verbs.asked[0][1]
    assert (request["operation"], request["name"]) == ("CREATE", "deploy")
    assert request["resource"]["resource"] == "events"
    assert request["object"]["spec"] == {"payload": "djI=", "nodeFilter": "n.*"}
    for operation, error, text in (
        ({"op": "add", "path": "/spec/tagFilter", "value": "x"}, Rejected, "tag filter without"),
        ({"op": "replace", "path": "/metadata/name", "value": "x"}, WebhookFailed, "only labels"),
        ({"op": "replace", "path": "/spec/payload", "value": "?"}, WebhookFailed, "not base64"),
    ):
        verbs.answers["m.example.com"] = patch(operation)
        with pytest.raises(error, match=text):
            await verbs.events.fire(OPERATOR, event)
    assert len(verbs.events.list(OPERATOR)) == 1


async def test_another_name_for_a_machine_asks_about_the_old_one(verbs):
    old = "22222222-2222-3333-4444-555555555555"
    service = Service(node="", id="a", name="a")
    await verbs.catalog.register(
        OPERATOR, Register(node="old", address="10.0.0.9", id=old, service=service)
    )
    await verbs.guard("validating", hook("v.example.com"))
    verbs.answers["v.example.com"] = lambda request: {"allowed": request["operation"] != "DELETE"}
    command = Register(node="new", address="10.0.0.9", id=old)
    with pytest.raises(Denied):
        await verbs.catalog.register(OPERATOR, command)
    assert verbs.view.node("old") is not None
    assert verbs.view.node("new") is None
    verbs.answers.clear()
    await verbs.catalog.register(OPERATOR, command)
    assert verbs.view.node("old") is None
    assert not verbs.view.node_services("old")


class NotTheOld:
    """Allows everything but removing the node `old`."""

    def decide(self, actor, attributes):
        return Decision(allowed=(attributes.verb, attributes.name) != ("delete", "old"), reason="")


async def test_another_name_for_a_machine_needs_the_right_to_remove_the_old_one(verbs):
    old = "22222222-2222-3333-4444-555555555555"
    await verbs.catalog.register(OPERATOR, Register(node="old", address="10.0.0.9", id=old))
    catalog = Catalog(verbs.state, Gate(NotTheOld()), datacenter="dc1")
    with pytest.raises(Forbidden, match='cannot delete resource "nodes" "old"'):
        await catalog.register(OPERATOR, Register(node="new", address="10.0.0.9", id=old))
    assert verbs.view.node("old") is not None
