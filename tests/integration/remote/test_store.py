"""A machine without a server: its view, its writes, and what happens when servers die, freeze or lose answers."""

from __future__ import annotations

import asyncio
import time

import pytest

from waypost.access.actor import node_actor
from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.base.errors import Forbidden, Malformed, NoLeader, Unavailable, Unknown
from waypost.domain.agent import LocalAgent, LocalNode, RegisterService
from waypost.model.catalog import Check, CheckDefinition, Node, Service
from waypost.model.kv import KVEntry
from waypost.model.object import Object
from waypost.model.session import Session
from waypost.state.keys import put, service_key
from waypost.state.state import State
from waypost.store.engine import Batch, Compacted, Compare, Delete, Engine, Get, Put, Txn

from .conftest import Cluster, until


async def write(engine: Engine, key: bytes, value: bytes = b"v") -> int:
    return (await engine.commit(Txn(then=(Put(key, value),)))).revision


async def collect(engine: Engine, *, after: int, into: list[Batch]) -> None:
    async for batch in engine.watch(after=after):
        into.append(batch)  # noqa: PERF401 (others look at it meanwhile)


async def test_the_connected_server_dies_and_nothing_is_lost_or_doubled(cluster: Cluster) -> None:
    await cluster.start(2)
    engine = await cluster.client()
    seen: list[Batch] = []
    first = await engine.read_index()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(collect(engine, after=first, into=seen))
        for n in range(300):
            await write(cluster.engine, b"k%d" % (n % 7), b"%d" % n)
            await asyncio.sleep(0.001)
            if n in (100, 200):
                victim = n // 100 - 1
                assert engine.servers.current == cluster.lines[victim].address
                await cluster.lines[victim].cut()
                if n == 100:
                    await until(lambda: engine.servers.current == cluster.lines[1].address)
                await cluster.lines[0].open() if n == 200 else None
        last = await cluster.engine.read_index()
        await until(lambda: seen and seen[-1].revision == last)
        task.cancel()
    changes = [batch for batch in seen if batch.events]
    assert [batch.revision for batch in changes] == list(range(first + 1, first + 301))
    assert [int(batch.events[0].kv.value) for batch in changes] == list(range(300))
    assert engine.servers.current == cluster.lines[0].address


async def test_a_frozen_server_is_left_after_the_time_of_silence(cluster: Cluster) -> None:
    await cluster.start(2)
    engine = await cluster.client()
    state = await cluster.follow(engine)
    await until(lambda: cluster.stores[0].streams)
    cluster.lines[0].freeze()
    began = time.monotonic()
    revision = await write(cluster.engine, b"n\0a", put(Node(node="a", address="10.0.0.1")).value)
    async with asyncio.timeout(3):
        await state.reached(revision)
    assert time.monotonic() - began < 1.5
    assert state.view.node("a")
    assert await engine.read_index() >= revision
    cluster.lines[0].thaw()


async def test_writes_go_on_through_the_other_server(cluster: Cluster) -> None:
    await cluster.start(2)
    engine = await cluster.client()
    await write(engine, b"a")
    await cluster.lines[0].cut()
    results = await asyncio.gather(*(write(engine, b"k%d" % n) for n in range(50)))
    assert results == sorted(results)
    page = await cluster.engine.range(b"k", b"l")
    assert len(page.items) == 50
    assert {row.version for row in page.items} == {1}


async def test_a_write_whose_answer_is_lost_is_not_applied_twice(cluster: Cluster) -> None:
    await cluster.start(2)
    engine = await cluster.client()
    await until(lambda: cluster.stores[0].streams)
    cluster.lines[0].loses_answers = True
    create = Txn(when=(Compare(b"a", "modify", "==", 0),), then=(Put(b"a", b"1"),))
    result = await engine.commit(create)
    # The first attempt was applied, so the condition of the second does not hold; the revision has the first.
    (row,) = (await cluster.engine.range(b"a")).items
    assert (row.version, row.value) == (1, b"1")
    assert not result.succeeded
    assert result.revision >= row.modify_revision


async def test_a_decision_whose_answer_is_lost_is_answered_as_if_nothing_had_happened(
    cluster: Cluster,
) -> None:
    await cluster.start(2)
    cluster.node = "web-1"
    engine = await cluster.client()
    state = await cluster.follow(engine)
    agent = client_agent(state, cluster)
    await agent.ensure_self()
    await until(lambda: cluster.stores[0].streams)
    cluster.lines[0].loses_answers = True
    service = Service(node="web-1", id="w", name="web", port=80)
    await agent.register_service(node_actor("web-1"), RegisterService(service=service))
    assert state.view.service("web-1", "w")
    (row,) = (await cluster.engine.range(service_key("web-1", "w"))).items
    assert row.version == 1


async def test_a_write_that_may_not_be_repeated_is_of_unknown_outcome(cluster: Cluster) -> None:
    await cluster.start(2)
    engine = await cluster.client()
    await until(lambda: cluster.stores[0].streams)
    cluster.lines[0].loses_answers = True
    with pytest.raises(Unknown):
        await write(engine, b"counter")
    (row,) = (await cluster.engine.range(b"counter")).items
    assert row.version == 1


async def test_without_any_server_reads_and_writes_say_so_in_bounded_time(cluster: Cluster) -> None:
    await cluster.start(2)
    engine = await cluster.client()
    state = await cluster.follow(engine)
    revision = await write(engine, b"a")
    await state.reached(revision)
    for line in cluster.lines:
        await line.cut()
    began = time.monotonic()
    with pytest.raises(NoLeader):
        await state.confirm()
    with pytest.raises(NoLeader):
        await write(engine, b"b")
    assert time.monotonic() - began < 9
    assert state.view.revision >= revision
    status = await engine.status()
    assert (status.has_quorum, status.revision) == (False, state.view.revision)
    await cluster.lines[1].open()
    again = await write(engine, b"c")
    async with asyncio.timeout(5):
        await state.reached(again)


async def test_opening_without_a_server_says_why(cluster: Cluster) -> None:
    await cluster.start(1)
    await cluster.lines[0].cut()
    with pytest.raises(Unavailable, match="no server answers"):
        await cluster.client()


class NoQuorum:
    """An engine whose quorum can be lost."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.is_lost = False

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    async def read_index(self) -> int:
        if self.is_lost:
            raise NoLeader("no leader")
        return await self._engine.read_index()


async def test_a_server_that_lost_the_quorum_is_left_for_another(cluster: Cluster) -> None:
    engines: list[NoQuorum] = []

    def wrap(_n: int, engine: Engine) -> Engine:
        engines.append(NoQuorum(engine))
        return engines[-1]  # type: ignore[return-value]

    await cluster.start(2, wrap=wrap)
    engine = await cluster.client()
    await until(lambda: cluster.stores[0].streams == 1)
    engines[0].is_lost = True
    await until(lambda: cluster.stores[1].streams == 1)
    assert await engine.read_index() == await cluster.engine.read_index()
    await until(lambda: not cluster.stores[0].streams)


# -- what is no longer there -------------------------------------------------------------------------------------------


async def test_who_was_away_for_too_long_loads_again(cluster: Cluster) -> None:
    await cluster.start(1, keep_batches=20)
    cluster.reads_kv = True
    engine = await cluster.client(keep_batches=20)
    state = await cluster.follow(engine)
    await cluster.lines[0].cut()
    for n in range(100):
        await cluster.engine.commit(Txn(then=(put(KVEntry(key=f"k{n}", value=b"v")),)))
    await cluster.lines[0].open()
    await until(lambda: state.view.kv("k99"))
    assert state.view.kv("k0")
    revision = await write(cluster.engine, b"_\0x")
    await until(lambda: state.view.revision >= revision)


async def test_a_store_restored_from_an_older_image_is_loaded_again(cluster: Cluster) -> None:
    await cluster.start(1)
    engine = await cluster.client()
    for n in range(10):
        await write(engine, b"k", b"%d" % n)
    state = await cluster.follow(engine)
    await cluster.lines[0].cut()
    await cluster.engine.close()
    await cluster.engine.open()
    node = Node(node="restored", address="10.0.0.1")
    revision = (await cluster.engine.commit(Txn(then=(put(node),)))).revision
    task = asyncio.create_task(cluster.stores[0].run())
    await cluster.lines[0].open()
    await until(lambda: state.view.node("restored"))
    assert state.view.revision == revision
    task.cancel()


async def test_a_slow_machine_does_not_hold_up_the_server_or_others(cluster: Cluster) -> None:
    await cluster.start(1, keep_batches=200)
    line = cluster.lines[0]
    host, _, port = line.address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    ask = b"\x91\x01"  # WatchAsk(1)
    writer.write(
        b"POST /cluster/v1/store/watch HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n" + ask
    )
    await reader.readuntil(b"\r\n\r\n")
    await until(lambda: cluster.stores[0].streams == 1)
    engine = await cluster.client()
    seen: list[Batch] = []
    task = asyncio.create_task(collect(engine, after=await engine.read_index(), into=seen))
    value = b"x" * 50_000
    slowest = 0.0
    for n in range(600):  # 30 MB, far more than all buffers on the way
        before = time.monotonic()
        await write(cluster.engine, b"k%d" % (n % 3), value)
        await until(lambda n=n: len(seen) > n)
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 1.0
    task.cancel()
    # The slow one is told that it missed something.
    got = b""
    async with asyncio.timeout(10):
        while b"compacted" not in got[-200:]:
            got += await reader.read(65536)
    writer.close()


# -- what a node sees --------------------------------------------------------------------------------------------------

SECRET = Object(group="", resource="secrets", namespace="default", name="s", body=b'{"data":1}')
ROLE = Object(group="rbac.authorization.k8s.io", resource="clusterroles", name="r", body=b"{}")
CHECK = Check(
    node="other",
    check_id="c",
    name="c",
    definition=CheckDefinition(http="http://x", header={"Authorization": ("Bearer secret",)}),
)


async def fill(cluster: Cluster) -> int:
    for record in (
        Node(node="other", address="10.0.0.9"),
        CHECK,
        SECRET,
        ROLE,
        KVEntry(key="app/password", value=b"secret"),
        Session(id="11111111-2222-3333-4444-555555555555", node="other"),
    ):
        revision = (await cluster.engine.commit(Txn(then=(put(record),)))).revision
    return (
        await cluster.engine.commit(Txn(then=(Put(b"_\0own", b"secret"),)))
    ).revision or revision


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_node_sees_the_catalog_and_no_secret(cluster: Cluster, is_first: bool) -> None:
    """Whether it is there already when it loads, or comes by the watch."""
    await cluster.start(1)
    cluster.node = "web-1"
    if is_first:
        await fill(cluster)
    engine = await cluster.client()
    state = await cluster.follow(engine)
    if not is_first:
        await fill(cluster)
    revision = await cluster.engine.read_index()
    began = time.monotonic()
    await state.confirm()
    assert time.monotonic() - began < 0.15, "hidden revisions are told of at once"
    view = state.view
    assert view.revision == revision
    assert view.node("other")
    assert view.sessions()
    assert view.object("rbac.authorization.k8s.io", "clusterroles", "", "r")
    check = view.check("other", "c")
    assert check is not None
    assert check.definition is None
    assert view.object("", "secrets", "default", "s") is None
    assert view.kv("app/password") is None
    assert not engine.shows_kv
    raw = str((await engine.range(b"\0", b"\xff")).items)
    assert "secret" not in raw.replace("/secrets", "")


async def test_keys_appear_when_the_node_may_read_them_and_go_when_it_may_not(
    cluster: Cluster,
) -> None:
    await cluster.start(1)
    cluster.node = "web-1"
    engine = await cluster.client()
    state = await cluster.follow(engine)
    await fill(cluster)
    cluster.reads_kv = True
    await until(lambda: state.view.kv("app/password"))
    assert engine.shows_kv
    cluster.reads_kv = False
    await until(lambda: state.view.kv("app/password") is None)
    assert not engine.shows_kv


async def test_a_node_sees_how_its_own_checks_are_run(cluster: Cluster) -> None:
    await cluster.start(1)
    cluster.node = "Other"
    engine = await cluster.client()
    state = await cluster.follow(engine)
    await fill(cluster)
    await state.confirm()
    assert state.view.check("other", "c") is not None
    assert state.view.check("other", "c").definition == CHECK.definition  # type: ignore[union-attr]


def client_agent(state: State, cluster: Cluster) -> LocalAgent:
    return LocalAgent(
        state,
        Gate(ExposureAuthorizer()),
        local=LocalNode(node="web-1", id="1", address="10.0.0.5", datacenter="dc1", server=False),
        clock=cluster.clock,
    )


async def test_a_client_agent_keeps_its_own_node(cluster: Cluster) -> None:
    await cluster.start(2)
    cluster.node = "web-1"
    await fill(cluster)
    engine = await cluster.client()
    state = await cluster.follow(engine)
    agent = client_agent(state, cluster)
    await agent.ensure_self()
    actor = node_actor("web-1")
    service = Service(node="web-1", id="w", name="web", port=80)
    check = Check(node="", check_id="", name="", definition=CheckDefinition(ttl_ns=10**10))
    await agent.register_service(actor, RegisterService(service=service, checks=(check,)))
    assert cluster.view.service("web-1", "w")
    assert cluster.view.check("web-1", "service:w")
    assert await agent.deregister_service(actor, "w")
    assert not cluster.view.service("web-1", "w")
    assert not cluster.view.check("web-1", "service:w")


OTHERS = put(Service(node="other", id="w", name="web"))


@pytest.mark.parametrize(
    ("txn", "text"),
    [
        (Txn(then=(OTHERS,)), 'write service "w" of node "other"'),
        (Txn(then=(put(Node(node="other", address="10.6.6.6")),)), 'write node "other"'),
        (Txn(then=(Put(b"n\0web-1", put(Node(node="other", address="x")).value),)), None),
        (Txn(then=(put(KVEntry(key="a", value=b"")),)), 'write key "a"'),
        (Txn(then=(put(ROLE),)), "write object"),
        (Txn(then=(Put(b"_\0leader", b""),)), "write what waypost keeps for itself"),
        (Txn(then=(Delete(b"c\0other\0c"),)), 'delete check "c" of node "other"'),
        (Txn(then=(Delete(b"\0", b"\xff"),)), "delete"),
        (Txn(then=(Delete(b"s\0web-1\0", b"s\0web-2\0"),)), "delete"),
        (Txn(then=(Delete(b"x\x0011111111-2222-3333-4444-555555555555"),)), "of node 'other'"),
        (Txn(then=(Get(b"o\0/secrets\0default\0s"),)), "read object"),
        (Txn(when=(Compare(b"o\0/secrets\0default\0s", "value", ">", b"m"),)), "compare object"),
        (Txn(otherwise=(OTHERS,)), "write service"),
    ],
)  # fmt: skip
async def test_a_node_writes_nothing_of_anybody_else(
    cluster: Cluster, txn: Txn, text: str | None
) -> None:
    await cluster.start(1)
    await fill(cluster)
    cluster.node = "web-1"
    engine = await cluster.client()
    before = await cluster.engine.read_index()
    with pytest.raises(Forbidden if text else Malformed, match=text):
        await engine.commit(txn)
    assert await cluster.engine.read_index() == before


async def test_a_refused_write_does_not_refuse_its_neighbours(cluster: Cluster) -> None:
    await cluster.start(1)
    cluster.node = "web-1"
    engine = await cluster.client()
    own = put(Node(node="web-1", address="10.0.0.5"))
    results = await asyncio.gather(
        *(engine.commit(Txn(then=(one,))) for one in (own, OTHERS, own)), return_exceptions=True
    )
    assert [type(one).__name__ for one in results] == ["TxnResult", "Forbidden", "TxnResult"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda e: e.grant(ttl_s=10), "have leases"),
        (lambda e: e.keep_alive(1), "have leases"),
        (lambda e: e.revoke(1), "have leases"),
        (lambda e: e.compact(before=2), "compact"),
        (lambda e: e.range(b"o\0/secrets\0default\0s"), 'read object "/secrets" "default/s"'),
        (lambda e: e.range(b"o\0/secrets\0", b"o\0/secrets\1"), "read object"),
        (lambda e: e.range(b"k\0a"), 'read key "a"'),
    ],
)  # fmt: skip
async def test_what_else_is_not_for_nodes(cluster: Cluster, call, text: str) -> None:
    await cluster.start(1)
    cluster.node = "web-1"
    engine = await cluster.client()
    with pytest.raises(Forbidden, match=f"node 'web-1' cannot {text}"):
        await call(engine)


async def test_a_limit_counts_what_a_node_is_shown(cluster: Cluster) -> None:
    await cluster.start(1)
    cluster.node = "web-1"
    await fill(cluster)
    engine = await cluster.client()
    page = await engine.range(b"\0", b"\xff", limit=2)
    assert [row.key for row in page.items] == [b"c\0other\0c", b"n\0other"]
    assert page.more
    page = await engine.range(b"n\0", b"o\0/", limit=2)
    assert ([row.key for row in page.items], page.more) == ([b"n\0other"], False)


async def test_what_was_compacted_by_a_server_is_compacted_for_all(cluster: Cluster) -> None:
    await cluster.start(1)
    engine = await cluster.client()
    for _ in range(5):
        last = await write(engine, b"a")
    await engine.compact(before=last)
    with pytest.raises(Compacted):
        await anext(engine.watch(after=last - 3))
