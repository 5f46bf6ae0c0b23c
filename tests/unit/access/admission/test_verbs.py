"""The verbs over a store in memory, with webhooks that answer without a network."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress

import msgspec
import pytest

from waypost.access.actor import LOCAL, Actor
from waypost.access.admission import Admission, Denied
from waypost.access.gate import Decision, ExposureAuthorizer, Gate
from waypost.base.clock import SystemClock
from waypost.base.errors import Forbidden, Unavailable
from waypost.domain.agent import LocalAgent, LocalNode, RegisterService
from waypost.domain.catalog import Catalog, Deregister, Register
from waypost.domain.kv import KV, PutKey
from waypost.domain.object import EVERYTHING, Objects
from waypost.domain.object_plan import Options, Place
from waypost.domain.txn import Transactions
from waypost.model.catalog import Check, Service
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
