"""The view against a plain model, and exactly who is woken by what."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waypost.model.catalog import Check, Node, Service
from waypost.model.kv import KVEntry
from waypost.model.session import Session
from waypost.state.keys import decode, encode, key_of, put
from waypost.state.view import View
from waypost.store.engine import Batch, Event, KeyValue


class Feed:
    """Applies records to a view as a store would: one revision a call."""

    def __init__(self):
        self.view = View()
        self.created = {}

    def put(self, *records):
        revision = self.view.revision + 1
        events = []
        for record in records:
            operation = put(record)
            self.created.setdefault(operation.key, revision)
            kv = KeyValue(operation.key, operation.value, self.created[operation.key], revision)
            events.append(Event("put", kv))
        self.view.apply(Batch(revision, tuple(events)))
        return revision

    def delete(self, *records):
        revision = self.view.revision + 1
        events = []
        for record in records:
            key = key_of(record)
            self.created.pop(key, None)
            events.append(Event("delete", KeyValue(key, b"", 0, revision)))
        self.view.apply(Batch(revision, tuple(events)))
        return revision


@pytest.fixture
def feed():
    return Feed()


def node(name, address="10.0.0.1"):
    return Node(node=name, address=address)


def web(node_name, instance="web1", **more):
    return Service(node=node_name, id=instance, name="web", **more)


def check(node_name, check_id, service_id="", status="passing", service_name=""):
    return Check(
        node=node_name,
        check_id=check_id,
        name=check_id,
        service_id=service_id,
        status=status,
        service_name=service_name,
    )


def test_records_survive_the_store():
    records = [
        Node(node="N1", address="10.0.0.1", meta={"a": "b"}),
        web("n1", tags=("a",), meta={"k": "v"}),
        check("n1", "c1", "web1"),
        KVEntry(key="a/b", value=b"\x00\xff", flags=2**64 - 1),
        Session(id="s", node="n1"),
    ]
    for record in records:
        kv = KeyValue(key_of(record), encode(record), 3, 9)
        read = decode(kv)
        assert read == type(record)(
            **{
                **{f: getattr(record, f) for f in record.__struct_fields__},
                "create_index": 3,
                "modify_index": 9,
            }
        )


def test_instances_are_joined_with_node_and_checks(feed):
    feed.put(node("n2"), node("n1", "10.0.0.2"))
    feed.put(web("n1"), web("n2"), web("n1", "web0"))
    feed.put(
        check("n1", "node-check"),
        check("n1", "own", "web1", "warning"),
        check("n1", "other", "web0"),
    )
    found = feed.view.instances("WEB")
    assert [(i.node.node, i.service.id) for i in found] == [
        ("n1", "web0"),
        ("n1", "web1"),
        ("n2", "web1"),
    ]
    assert [c.check_id for c in found[1].checks] == ["node-check", "own"]
    assert [i.status for i in found] == ["passing", "warning", "passing"]


def test_an_instance_without_its_node_is_not_shown_until_the_node_comes(feed):
    feed.put(web("n1"))
    assert feed.view.instances("web") == ()
    feed.put(node("n1"))
    assert len(feed.view.instances("web")) == 1


def test_moving_an_instance_to_another_service_touches_both(feed):
    feed.put(node("n1"), web("n1"))
    before = feed.view.index(("health", "web"))
    revision = feed.put(Service(node="n1", id="web1", name="api"))
    assert feed.view.instances("web") == ()
    assert [i.service.id for i in feed.view.instances("api")] == ["web1"]
    assert (
        before
        < revision
        == feed.view.index(("health", "web"))
        == feed.view.index(("health", "api"))
    )
    assert feed.view.services() == {"api": []}


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        (lambda f: f.put(web("n1", "web2")), {"services", "health web", "catalog web", "node n1"}),
        (
            lambda f: f.put(check("n1", "own", "web1", "critical")),
            {"health web", "node n1", "checks any"},
        ),
        (lambda f: f.put(check("n1", "nodecheck")), {"health web", "node n1", "checks any"}),
        (
            lambda f: f.put(node("n1", "10.9.9.9")),
            {"nodes", "health web", "catalog web", "node n1"},
        ),
        (lambda f: f.put(node("n3")), {"nodes", "node n3"}),
        (
            lambda f: f.put(Service(node="n2", id="db", name="db")),
            {"services", "health db", "catalog db", "node n2"},
        ),
        (lambda f: f.put(KVEntry(key="a/b")), {"kv a/b", "prefix a/"}),
        (lambda f: f.delete(KVEntry(key="a/a")), {"kv a/a", "prefix a/"}),
        (lambda f: f.put(KVEntry(key="b")), {"kv b"}),
        (lambda f: f.put(Session(id="s", node="n1")), {"sessions"}),
    ],
)
async def test_only_who_is_concerned_is_woken(feed, change, touched):
    feed.put(node("n1"), node("n2"), web("n1"), KVEntry(key="a/a"))
    topics = [
        ("nodes",), ("services",), ("sessions",), ("node", "n1"), ("node", "n2"), ("node", "n3"),
        ("health", "web"), ("catalog", "web"), ("health", "db"), ("catalog", "db"), ("checks", "any"),
        ("kv", "a/a"), ("kv", "a/b"), ("kv", "b"), ("prefix", "a/"), ("prefix", "z"),
    ]  # fmt: skip
    indexes = {topic: feed.view.index(topic) for topic in topics}
    waiting = {
        topic: asyncio.create_task(feed.view.topics.wait([topic], at_most_s=0.05))
        for topic in topics
    }
    await asyncio.sleep(0)
    revision = change(feed)
    woken = {" ".join(topic) for topic, task in waiting.items() if await task}
    assert woken == touched
    for topic in topics:
        expected = revision if " ".join(topic) in touched else indexes[topic]
        assert feed.view.index(topic) == expected, topic


def test_an_unchanged_prefix_keeps_its_index_and_a_deletion_raises_it(feed):
    feed.put(KVEntry(key="p/1"))
    second = feed.put(KVEntry(key="p/2"))
    feed.put(KVEntry(key="q"))
    assert feed.view.index(("prefix", "p/")) == second
    third = feed.delete(KVEntry(key="p/1"))
    assert feed.view.index(("prefix", "p/")) == third
    assert feed.view.index(("prefix", "p")) == third
    assert feed.view.index(("kv", "p/1")) == third


def test_after_a_load_nobody_can_miss_a_deletion(feed):
    feed.put(KVEntry(key="p/1"))
    view = View()
    view.load([], revision=40)
    assert view.index(("prefix", "p/")) == 40
    assert view.index(("kv", "p/1")) == 40
    assert view.index(("health", "web")) == 40


async def test_a_wait_leaves_nothing_behind(feed):
    task = asyncio.create_task(feed.view.topics.wait([("nodes",), ("kv", "a")], at_most_s=5))
    await asyncio.sleep(0)
    assert feed.view.topics.waiting == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert feed.view.topics.waiting == 0
    assert await feed.view.topics.wait([("nodes",)], at_most_s=0.01) is False
    assert feed.view.topics.waiting == 0


names = st.sampled_from(["n1", "N1", "n2"])
ids = st.sampled_from(["a", "b"])
records = st.one_of(
    st.builds(Node, node=names, address=st.sampled_from(["10.0.0.1", "10.0.0.2"])),
    st.builds(Service, node=names, id=ids, name=st.sampled_from(["web", "Web", "db"])),
    st.builds(
        Check,
        node=names,
        check_id=ids,
        name=ids,
        service_id=st.sampled_from(["", "a", "b"]),
        status=st.sampled_from(["passing", "critical"]),
    ),
    st.builds(KVEntry, key=st.sampled_from(["x", "x/1", "x/2", "y"]), value=st.binary(max_size=2)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), records), max_size=30))
def test_the_view_equals_one_loaded_from_scratch(changes):
    feed = Feed()
    stored = {}
    for is_put, record in changes:
        key = key_of(record)
        if is_put:
            feed.put(record)
            stored[key] = KeyValue(key, encode(record), feed.created[key], feed.view.revision)
        elif key in stored:
            feed.delete(record)
            del stored[key]
        for name in ("web", "db"):
            feed.view.instances(name)  # fills the cache that the next change has to invalidate
    fresh = View()
    fresh.load([stored[key] for key in sorted(stored)], revision=feed.view.revision)
    assert feed.view.nodes() == fresh.nodes()
    assert feed.view.services() == fresh.services()
    assert list(feed.view.checks()) == list(fresh.checks())
    assert feed.view.kv_below("") == fresh.kv_below("")
    assert feed.view.kv_below("x/") == fresh.kv_below("x/")
    for name in ("web", "db"):
        assert feed.view.instances(name) == fresh.instances(name)


@pytest.mark.parametrize(
    "events",
    [(), (Event("put", KeyValue(b"e\0election", b"x", 1, 5)),)],
    ids=["no events", "of a table that is none"],
)
def test_what_the_store_does_for_itself_wakes_nobody(events):
    feed = Feed()
    feed.put(Node(node="n1", id="", address="10.0.0.1"))
    view, before = feed.view, feed.view.index(("all",))
    changes = view.changes
    woken = view.topics.index(("all",))
    view.apply(Batch(5, events))
    assert view.revision == 5
    assert view.changes == changes
    assert view.topics.index(("all",)) == woken == before
    feed.put(Node(node="n2", id="", address="10.0.0.2"))
    assert view.topics.index(("all",)) == 6
