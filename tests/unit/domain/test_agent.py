"""What an agent keeps for its own node."""

import pytest

from waypost.base.errors import NotFound, Rejected
from waypost.domain.agent import RegisterService
from waypost.domain.catalog import Deregister
from waypost.model.catalog import Check, CheckDefinition, Service

TTL = CheckDefinition(ttl_ns=10**9)


def web(**more):
    return Service(node="", id=more.pop("id", ""), name=more.pop("name", "web"), **more)


def plain(check_id="", **more):
    return Check(node="", check_id=check_id, name="", definition=TTL, **more)


async def test_a_service_gets_its_ids_addresses_and_checks(domain):
    await domain.agent.register_service(
        domain.actor,
        RegisterService(
            service=web(address="10.1.1.1", port=80, tags=("a",)), checks=(plain(), plain())
        ),
    )
    service = domain.agent.service(domain.actor, "web")
    assert service.tagged_addresses["lan_ipv4"].port == 80
    checks = domain.agent.checks(domain.actor)
    assert list(checks) == ["service:web:1", "service:web:2"]
    assert checks["service:web:1"].name == "Service 'web' check"
    assert checks["service:web:1"].status == "critical"
    assert checks["service:web:1"].service_tags == ("a",)


async def test_registering_again_keeps_results_and_what_is_not_sent(domain):
    await domain.agent.register_service(
        domain.actor, RegisterService(service=web(), checks=(plain("a"), plain("b")))
    )
    await domain.agent.heartbeat(domain.actor, "a", status="passing", output="fine")
    await domain.agent.register_service(
        domain.actor,
        RegisterService(service=web(tags=("t",)), checks=(plain("a", status="critical"),)),
    )
    checks = domain.agent.checks(domain.actor)
    assert (checks["a"].status, checks["a"].output) == ("passing", "fine")
    assert set(checks) == {"a", "b"}
    assert checks["b"].service_tags == ("t",)
    await domain.agent.register_service(
        domain.actor,
        RegisterService(service=web(), checks=(plain("a"),), replace_existing_checks=True),
    )
    assert set(domain.agent.checks(domain.actor)) == {"a"}


async def test_an_output_alone_is_shown_here_and_stored_later(domain):
    await domain.agent.register_service(
        domain.actor, RegisterService(service=web(), checks=(plain("a"),))
    )
    await domain.agent.heartbeat(domain.actor, "a", status="passing", output="1")
    revision = domain.view.revision
    await domain.agent.heartbeat(domain.actor, "a", status="passing", output="2")
    assert domain.view.revision == revision
    assert domain.agent.checks(domain.actor)["a"].output == "2"
    assert domain.view.check("n1", "a").output == "1"
    await domain.agent.flush_outputs()
    assert domain.view.check("n1", "a").output == "2"


async def test_a_heartbeat_needs_a_ttl_check(domain):
    with pytest.raises(NotFound, match='CheckID "nope" does not have associated TTL'):
        await domain.agent.heartbeat(domain.actor, "nope", status="passing", output="")


async def test_a_check_needs_its_service(domain):
    with pytest.raises(Rejected, match='ServiceID "nope" does not exist'):
        await domain.agent.register_check(
            domain.actor, Check(node="", check_id="c", name="c", service_id="nope")
        )


async def test_maintenance_keeps_the_first_reason_and_survives_registration(domain):
    await domain.agent.register_service(domain.actor, RegisterService(service=web()))
    await domain.agent.set_service_maintenance(domain.actor, "web", enable=True, reason="first")
    await domain.agent.set_service_maintenance(domain.actor, "web", enable=True, reason="second")
    assert domain.view.check("n1", "_service_maintenance:web").notes == "first"
    await domain.agent.register_service(
        domain.actor, RegisterService(service=web(tags=("x",)), replace_existing_checks=True)
    )
    await domain.agent.ensure_self()
    (instance,) = domain.view.instances("web")
    assert instance.status == "maintenance"
    await domain.agent.set_service_maintenance(domain.actor, "web", enable=False)
    (instance,) = domain.view.instances("web")
    assert instance.status == "passing"
    with pytest.raises(NotFound, match='No service registered with ID "nope"'):
        await domain.agent.set_service_maintenance(domain.actor, "nope", enable=True)


async def test_the_node_is_put_back_when_somebody_removes_it(domain):
    await domain.agent.ensure_self()
    assert domain.view.services() == {"consul": []}
    await domain.catalog.deregister(domain.actor, Deregister(node="n1"))
    assert domain.view.services() == {}
    await domain.agent.ensure_self()
    assert domain.view.services() == {"consul": []}
    assert domain.view.node("n1").tagged_addresses["lan_ipv4"] == "10.0.0.1"
    assert domain.agent.services(domain.actor) == {}
