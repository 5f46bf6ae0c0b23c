"""Records that are shown otherwise than they are stored."""

import asyncio

import pytest

from waypost.model.catalog import CRITICAL, PASSING, Check, Node, Service
from waypost.state.keys import encode, key_of
from waypost.state.view import View
from waypost.store.engine import Batch, Event, KeyValue

NODE = Node(node="n1", address="10.0.0.1")
WEB = Service(node="n1", id="web", name="web", port=80)
ALIVE = Check(
    node="n1", check_id="web-1", name="web", status=PASSING, service_id="web", service_name="web"
)
DEAD = Check(
    node="n1", check_id="web-1", name="web", status=CRITICAL, service_id="web", service_name="web"
)


def row(record, revision, created=0):
    return KeyValue(key_of(record), encode(record), created or revision, revision)


def written(view, *records):
    """Let the store bring a revision."""
    revision = view.revision + 1
    view.apply(Batch(revision, tuple(Event("put", row(one, revision)) for one in records)))


def removed(view, *records):
    revision = view.revision + 1
    gone = (Event("delete", KeyValue(key_of(one), b"", 0, revision, 0)) for one in records)
    view.apply(Batch(revision, tuple(gone)))


@pytest.fixture
def view():
    found = View()
    found.load([row(NODE, 2), row(WEB, 3), row(ALIVE, 4)], revision=9)
    return found


def statuses(view):
    return [instance.status for instance in view.instances("web")]


def test_what_is_covered_is_shown_with_the_indexes_of_what_is_stored(view):
    view.cover({key_of(DEAD): DEAD})
    shown = view.check("n1", "web-1")
    assert (shown.status, shown.create_index, shown.modify_index) == (CRITICAL, 4, 4)
    assert statuses(view) == [CRITICAL]
    assert view.revision == 9
    with view.as_stored():
        assert view.check("n1", "web-1").status == PASSING
        assert statuses(view) == [PASSING]
    assert statuses(view) == [CRITICAL]
    view.uncover([key_of(DEAD)])
    assert statuses(view) == [PASSING]
    assert not view.covered


def test_what_is_not_stored_has_no_index_yet(view):
    api = Service(node="n1", id="api", name="api", port=81)
    view.cover({key_of(api): api, key_of(WEB): None, key_of(ALIVE): None})
    assert view.service("n1", "api").modify_index == 0
    assert view.service_names() == ["api"]
    with view.as_stored():
        assert view.service_names() == ["web"]
        assert statuses(view) == [PASSING]
    assert view.service_names() == ["api"]
    assert view.instances("web") == ()


def test_what_the_store_brings_of_a_covered_record_lies_beneath(view):
    view.cover({key_of(DEAD): DEAD})
    written(view, ALIVE)
    assert statuses(view) == [CRITICAL]
    removed(view, ALIVE)
    assert statuses(view) == [CRITICAL]
    view.uncover([key_of(DEAD)])
    assert view.check("n1", "web-1") is None


def test_what_is_covered_stays_so_over_a_new_load(view):
    view.cover({key_of(DEAD): DEAD})
    moment = view.moment
    view.load([row(NODE, 2), row(WEB, 3), row(ALIVE, 30)], revision=40)
    assert statuses(view) == [CRITICAL]
    assert view.check("n1", "web-1").modify_index == 30
    assert view.moment > moment
    with view.as_stored():
        assert statuses(view) == [PASSING]


def test_every_change_has_a_higher_index_than_all_before(view):
    topics = [("health", "web"), ("services",), ("node", "n1"), ("checks", "any"), ("all",)]
    api = Service(node="n1", id="api", name="api", port=81)
    seen = max(view.index(topic) for topic in topics)
    for change in (
        lambda: view.cover({key_of(DEAD): DEAD}),
        lambda: view.cover({key_of(ALIVE): ALIVE}),
        lambda: written(view, api),  # its revision alone would be lower than what was shown
        lambda: view.uncover([key_of(ALIVE)]),
        lambda: view.load([row(NODE, 2)], revision=view.revision),
        lambda: written(view, WEB),
    ):
        change()
        now = max(view.index(topic) for topic in topics)
        assert now > seen
        assert now == view.moment
        seen = now


def test_revisions_without_events_let_the_store_catch_up(view):
    view.cover({key_of(DEAD): DEAD})
    view.cover({key_of(DEAD): ALIVE})
    view.uncover([key_of(DEAD)])
    assert (view.revision, view.moment) == (9, 12)
    for revision in (10, 11, 12):
        view.apply(Batch(revision, ()))
    assert (view.revision, view.moment) == (12, 12)


def test_indexes_of_keys_are_revisions(view):
    view.cover({key_of(DEAD): DEAD})
    assert view.index(("kv", "a")) == 9
    view.load([], revision=9)
    assert view.index(("kv", "a")) == 9
    assert view.index(("health", "web")) > 9


async def test_whoever_waits_is_woken(view):
    waiting = asyncio.create_task(view.topics.wait([("health", "web")], at_most_s=5))
    await asyncio.sleep(0)
    view.cover({key_of(DEAD): DEAD})
    assert await waiting is True
    waiting = asyncio.create_task(view.topics.wait([("checks", CRITICAL)], at_most_s=5))
    await asyncio.sleep(0)
    view.uncover([key_of(DEAD)])
    assert await waiting is True


async def test_looking_beneath_wakes_nobody(view):
    view.cover({key_of(DEAD): DEAD})
    waiting = asyncio.create_task(view.topics.wait([("health", "web")], at_most_s=0.02))
    await asyncio.sleep(0)
    moment = view.moment
    with view.as_stored():
        pass
    assert view.moment == moment
    assert await waiting is False


def test_only_the_catalog_can_be_covered(view):
    with pytest.raises(ValueError, match="cannot be shown"):
        view.cover({b"k\0a": None})
