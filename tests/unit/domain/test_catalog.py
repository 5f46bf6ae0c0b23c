"""Registering and deregistering through the catalog, with Consul's rules and words."""

import pytest

from waypost.access.authn import anonymous
from waypost.base.errors import Forbidden, Rejected
from waypost.domain.catalog import Deregister, Register, asked
from waypost.model.catalog import Check, Service

UUID_A = "aaaaaaaa-0000-0000-0000-00000000000a"
UUID_B = "bbbbbbbb-0000-0000-0000-00000000000b"


def service(name="web", service_id="", **more):
    return Service(node="", id=service_id, name=name, **more)


def check(check_id, service_id="", **more):
    return Check(
        node="", check_id=check_id, name=more.pop("name", check_id), service_id=service_id, **more
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"node": "", "address": "10.0.0.9"}, "Must provide node"),
        ({"node": "ext1"}, "Must provide address if SkipNodeUpdate is not set"),
        ({"node": "ext1", "address": "a", "id": "abc"}, "Bad node ID: uuid string is wrong length"),
        (
            {"node": "ext1", "address": "a", "service": service("", "x")},
            "Must provide service name with ID",
        ),
        (
            {"node": "ext1", "address": "a", "service": service(address="0.0.0.0")},
            "Invalid service address",
        ),
        (
            {"node": "ext1", "address": "a", "checks": (check("c", "nope"),)},
            'failed inserting check: Missing service registration on node "ext1"',
        ),
        (
            {
                "node": "ext1",
                "address": "a",
                "checks": (Check(node="other", check_id="c", name="c"),),
            },
            'check node "other" does not match node "ext1"',
        ),
    ],
)
async def test_a_refused_registration_leaves_nothing(domain, command, message):
    with pytest.raises(Rejected) as caught:
        await domain.catalog.register(domain.actor, Register(**command))
    assert str(caught.value) == message
    assert domain.view.revision == domain.start


async def test_an_equal_registration_moves_no_index(domain):
    command = Register(
        node="ext1", address="10.0.0.9", service=service(tags=("a",)), checks=(check("c", "web"),)
    )
    await domain.catalog.register(domain.actor, command)
    revision = domain.view.revision
    await domain.catalog.register(domain.actor, command)
    assert domain.view.revision == revision
    (instance,) = domain.view.instances("web")
    assert (instance.service.create_index, instance.checks[0].status) == (revision, "critical")


async def test_new_tags_reach_the_checks_of_the_instance(domain):
    await domain.catalog.register(
        domain.actor,
        Register(node="e", address="1.1.1.1", service=service(), checks=(check("c", "web"),)),
    )
    await domain.catalog.register(
        domain.actor, Register(node="e", address="1.1.1.1", service=service(tags=("new",)))
    )
    assert domain.view.check("e", "c").service_tags == ("new",)


async def test_a_name_held_by_a_living_node_is_refused_and_that_of_a_dead_one_given(domain):
    await domain.catalog.register(domain.actor, Register(node="n9", address="10.0.0.9", id=UUID_A))
    claim = Register(node="N9", address="10.0.0.10", id=UUID_B)
    with pytest.raises(Rejected, match=f"Node name N9 is reserved by node {UUID_A} with name n9"):
        await domain.catalog.register(domain.actor, claim)
    await domain.catalog.register(
        domain.actor,
        Register(
            node="n9", skip_node_update=True, checks=(check("serfHealth", status="critical"),)
        ),
    )
    await domain.catalog.register(domain.actor, claim)
    assert domain.view.node("n9").id == UUID_B


async def test_the_same_id_under_another_name_renames_the_node(domain):
    await domain.catalog.register(
        domain.actor, Register(node="old", address="10.0.0.9", id=UUID_A, service=service())
    )
    await domain.catalog.register(domain.actor, Register(node="new", address="10.0.0.9", id=UUID_A))
    assert domain.view.node("old") is None
    assert domain.view.instances("web") == ()
    assert domain.view.node("new").id == UUID_A


async def test_deregistering_takes_the_instance_the_check_or_the_node(domain):
    both = (check("c1", "web"), check("c2"))
    await domain.catalog.register(
        domain.actor, Register(node="e", address="1.1.1.1", service=service(), checks=both)
    )
    assert await domain.catalog.deregister(domain.actor, Deregister(node="e", service_id="web"))
    assert set(domain.view.node_checks("e")) == {"c2"}
    assert not await domain.catalog.deregister(domain.actor, Deregister(node="e", service_id="web"))
    await domain.catalog.register(
        domain.actor, Register(node="e", address="1.1.1.1", service=service())
    )
    assert await domain.catalog.deregister(domain.actor, Deregister(node="E"))
    assert domain.view.nodes() == []
    assert domain.view.services() == {}


async def test_a_stranger_from_another_machine_changes_nothing(domain):
    stranger = anonymous("192.0.2.1")
    with pytest.raises(Forbidden):
        await domain.catalog.register(stranger, Register(node="e", address="1.1.1.1"))
    with pytest.raises(Forbidden):
        await domain.catalog.deregister(stranger, Deregister(node="e"))
    assert domain.catalog.services(stranger) == {}
    assert domain.view.revision == domain.start


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        # The node exists and stays as it is: only the service is asked for.
        (
            {"node": "e", "address": "1.1.1.1", "service": service("api")},
            [("update", "services", "api")],
        ),
        (
            {"node": "e", "skip_node_update": True, "service": service("api")},
            [("update", "services", "api")],
        ),
        # Another address would be the node's, for all its services.
        (
            {"node": "e", "address": "6.6.6.6", "service": service("api")},
            [("update", "nodes", "e"), ("update", "services", "api")],
        ),
        # An id that belongs to another service: whoever may write one must not take the other's instance.
        (
            {"node": "e", "skip_node_update": True, "service": service("api", "web")},
            [("update", "services", "api"), ("update", "services", "web")],
        ),
        # A check of the service comes with it, any other is asked for.
        (
            {
                "node": "e",
                "skip_node_update": True,
                "service": service("api"),
                "checks": (check("a", "api"), check("b")),
            },
            [("update", "services", "api"), ("update", "checks", "b")],
        ),
        ({"node": "new", "address": "2.2.2.2"}, [("update", "nodes", "new")]),
    ],
)
async def test_everything_that_would_change_is_asked_for(domain, command, expected):
    await domain.catalog.register(
        domain.actor, Register(node="e", address="1.1.1.1", service=service())
    )
    found = asked(domain.view, Register(**command))
    assert [(one.verb, one.resource, one.name) for one in found] == expected
    assert {one.node for one in found} == {command["node"]}
