"""When an instance gets requests."""

import asyncio

import pytest
from tests.unit.state.test_view import Feed as Changes

from waypost.agent.balance import BalancerFeed, is_balanced, somebody_listens, wants_proof
from waypost.drivers.nginx.backends import Feed
from waypost.model.catalog import Check, Node, Service


def service(service_id="web", port=80, owner="api", **more):
    more.setdefault("tags", ("http",))
    return Service(node="n1", id=service_id, name="web", port=port, owner=owner, **more)


@pytest.mark.parametrize(
    ("tags", "meta", "expected"),
    [
        (("http",), None, True),
        (("tcp", "x"), None, True),
        (("x",), None, False),
        ((), {"http_host": "a"}, True),
    ],
)
def test_what_is_balanced(tags, meta, expected):
    assert is_balanced(service(tags=tags, meta=meta)) is expected


def test_only_unchecked_containers_of_this_node_have_to_prove_themselves():
    changes = Changes()
    changes.put(
        Node(node="n1", address="127.0.0.1"),
        service("a", owner="docker"),
        service("b"),
        service("c", owner="docker"),
    )
    changes.put(Check(node="n1", check_id="x", name="x", service_id="c", status="passing"))
    found = {one.service.id: wants_proof(one, node="N1") for one in changes.view.instances("web")}
    assert found == {"a": True, "b": False, "c": False}
    assert not any(wants_proof(one, node="n2") for one in changes.view.instances("web"))


async def serve(handler):
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def hold(reader, writer):
    await reader.read()
    writer.close()


async def drop(reader, writer):
    writer.close()


async def greet(reader, writer):
    writer.write(b"220 ready\r\n")
    await reader.read()
    writer.close()


@pytest.mark.parametrize(("handler", "expected"), [(hold, True), (greet, True), (drop, False)])
async def test_a_connection_that_is_dropped_at_once_was_taken_by_nobody(handler, expected):
    server, port = await serve(handler)
    async with server:
        assert await somebody_listens("127.0.0.1", port) is expected
    assert await somebody_listens("127.0.0.1", port) is False


async def test_a_new_container_waits_for_its_program_and_an_old_one_does_not():
    changes = Changes()
    changes.put(Node(node="n1", address="127.0.0.1"), service("old", port=1, owner="docker"))
    feed = Feed()
    task = asyncio.create_task(BalancerFeed(changes.view, feed, node="n1").run())
    await asyncio.sleep(0.01)

    def ids():
        return [one.instance_id for one in feed.backends[0].endpoints]

    assert ids() == ["old"], "what was there before the agent is not asked"
    server, port = await serve(drop)
    changes.put(service("new", port=port, owner="docker"))
    await asyncio.sleep(0.1)
    assert ids() == ["old"]
    server.close()
    await server.wait_closed()
    server = await asyncio.start_server(hold, "127.0.0.1", port)
    async with asyncio.timeout(5), server:
        while ids() != ["new", "old"] and ids() != ["old", "new"]:
            await asyncio.sleep(0.01)
    changes.delete(service("new", port=port, owner="docker"))
    await asyncio.sleep(0.02)
    assert ids() == ["old"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
