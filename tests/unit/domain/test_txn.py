"""Transactions: every verb, all or nothing, later operations see earlier ones."""

from __future__ import annotations

import pytest

from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.domain.catalog import Register
from waypost.domain.kv import PutKey
from waypost.domain.session import CreateSession, Sessions
from waypost.domain.txn import Transactions, is_read_only
from waypost.model.catalog import Check, Service
from waypost.wire.consul.decode import (
    CheckOperation,
    KVOperation,
    NodeOperation,
    ServiceOperation,
)

ID = "11111111-1111-1111-1111-111111111111"
ZERO = "00000000-0000-0000-0000-000000000000"


def kv(verb, key="k", **more):
    return KVOperation(verb=verb, key=key, **more)


def node(verb, name="n", **more):
    return NodeOperation(verb=verb, node=name, **more)


def service(verb, service_id="s", name="web", on="n", **more):
    made = Service(node="", id=service_id, name=name, **more)
    return ServiceOperation(verb=verb, node=on, service=made)


def check(verb, check_id="c", on="n", **more):
    made = Check(
        node=on, check_id=check_id, name=check_id, status=more.pop("status", "passing"), **more
    )
    return CheckOperation(verb=verb, check=made)


@pytest.fixture
async def apply(domain):
    gate = Gate(ExposureAuthorizer())
    transactions = Transactions(
        domain.state, gate, datacenter="dc1", locked_out=lambda key: key == "delayed"
    )

    async def run(*operations):
        outcome = await transactions.apply(domain.actor, operations)
        return outcome.results, [(f.position, f.text) for f in outcome.failures]

    return run


async def test_write_and_read_back_in_one(domain, apply):
    results, failures = await apply(kv("set", value=b"1", flags=7), kv("get"), kv("get-tree", "k"))
    assert failures == []
    assert [r.shows_value for r in results] == [False, True, True]
    assert all(r.record.modify_index == domain.view.revision for r in results)
    assert domain.view.kv("k").flags == 7


async def test_all_failures_are_named_and_nothing_happens(domain, apply):
    before = domain.view.revision
    results, failures = await apply(kv("set", value=b"1"), kv("cas", index=99), kv("get", "nope"))
    assert results == ()
    assert failures == [
        (1, 'failed to set key "k", index is stale'),
        (2, 'key "nope" doesn\'t exist'),
    ]
    assert domain.view.revision == before


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (kv("bogus"), 'unknown KV verb "bogus"'),
        (kv("set", ""), "Must provide key"),
        (kv("delete-cas", "there", index=1), 'failed to delete key "there", index is stale'),
        (kv("check-index", "nope"), 'failed to check index, key "nope" doesn\'t exist'),
        (kv("check-not-exists", "there"), 'key "there" exists'),
        (
            kv("check-session", "there", session="x"),
            'failed session check for key "there", current session "" != "x"',
        ),
        (kv("lock"), "missing session"),
        (kv("lock", session="x"), "failed session lookup: index error: UUID must be 36 characters"),
        (kv("lock", session=ZERO), f'invalid session "{ZERO}"'),
        (kv("unlock"), "missing session"),
        (
            kv("unlock", session=ZERO),
            'failed to unlock key "k", lock isn\'t held, or is held by another session',
        ),
        (node("get", "nope"), 'node "nope" doesn\'t exist'),
        (node("bogus"), 'unknown Node verb "bogus"'),
        (node("set", ""), "Must provide node"),
        (node("cas", "n1", index=1), 'failed to set node "n1", index is stale'),
        (node("delete-cas", "nope", index=1), 'failed to delete node "nope", index is stale'),
        (
            node("get", "", id="zz"),
            "node lookup by ID failed, wrong UUID: uuid string is wrong length for 'zz'",
        ),
        (service("get"), 'service "s" on node "n" doesn\'t exist'),
        (service("set"), "Missing node registration"),
        (service("delete", name=""), "Must provide service name with ID"),
        (service("cas", modify_index=3), 'failed to set service "s" on node "n", index is stale'),
        (service("bogus"), 'unknown Service verb "bogus"'),
        (check("get"), 'check "c" on node "n" doesn\'t exist'),
        (check("set"), "Missing node registration"),
        (check("cas", modify_index=3), 'failed to set check "c" on node "n", index is stale'),
        (
            check("delete-cas", modify_index=3),
            'failed to delete check "c" on node "n", index is stale',
        ),
        (check("set", on="n1", service_id="nope"), "Missing service registration"),
        (check("bogus"), 'unknown Check verb "bogus"'),
    ],
)
async def test_refusals(domain, apply, operation, error):
    await domain.kv.put(domain.actor, PutKey(key="there", value=b""))
    await domain.catalog.register(domain.actor, Register(node="n1", address="a"))
    _, failures = await apply(operation)
    assert failures == [(0, error)]


async def test_nodes_services_and_checks_together(domain, apply):
    results, failures = await apply(
        node("set", address="10.0.0.1"), service("set", port=1), check("set", service_id="s")
    )
    assert failures == []
    assert [type(r.record).__name__ for r in results] == ["Node", "Service", "Check"]
    assert domain.view.check("n", "c").service_name == "web"
    assert domain.view.node("n").datacenter == "dc1"
    (found,), _ = await apply(service("get"))
    assert found.record.port == 1
    results, failures = await apply(check("delete"), service("delete"), node("delete"))
    assert (results, failures) == ((), [])
    assert domain.view.node("n") is None
    assert domain.view.instances("web") == ()


async def test_a_node_goes_with_what_was_put_on_it_a_moment_ago(domain, apply):
    _, failures = await apply(node("set"), service("set"), check("set"), node("delete"))
    assert failures == []
    assert domain.view.node("n") is None
    assert dict(domain.view.node_services("n")) == {}
    assert dict(domain.view.node_checks("n")) == {}


async def test_delete_tree_then_set(domain, apply):
    for key in ("t/a", "t/b", "u"):
        await domain.kv.put(domain.actor, PutKey(key=key, value=b"old"))
    _, failures = await apply(
        kv("delete-tree", "t/"), kv("check-not-exists", "t/a"), kv("set", "t/b", value=b"new")
    )
    assert failures == []
    assert [e.key for e in domain.view.kv_below("")] == ["t/b", "u"]
    assert domain.view.kv("t/b").value == b"new"


async def test_locks(domain, apply):
    sessions = Sessions(domain.state, Gate(ExposureAuthorizer()), clock=domain.agent._clock)
    await domain.catalog.register(domain.actor, Register(node="n1", address="a"))
    await sessions.create(domain.actor, CreateSession(node="n1", node_checks=()), session_id=ID)
    (locked,), _ = await apply(kv("lock", session=ID, value=b"1"))
    assert (locked.record.session, locked.record.lock_index) == (ID, 1)
    _, failures = await apply(kv("check-session", session=ID), kv("unlock", session=ID))
    assert failures == []
    assert domain.view.kv("k").session == ""
    _, failures = await apply(kv("lock", "delayed", session=ID))
    assert failures == [(0, 'failed to lock key "delayed" due to lock delay')]


async def test_writing_what_is_there_changes_nothing(domain, apply):
    await apply(kv("set", value=b"1"))
    before = domain.view.kv("k").modify_index
    await apply(kv("set", value=b"1"))
    assert domain.view.kv("k").modify_index == before


@pytest.mark.parametrize(
    ("operations", "reads"),
    [
        ((), True),
        ((kv("get"), kv("check-index"), node("get")), True),
        ((kv("bogus"),), True),
        ((kv("get"), kv("set")), False),
        ((node("bogus"),), False),
        ((service("delete"),), False),
    ],
)
def test_read_only(operations, reads):
    assert is_read_only(operations) is reads
