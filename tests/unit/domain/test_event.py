"""User events."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.base.errors import Rejected
from waypost.domain.catalog import Register
from waypost.domain.event import KEPT, Events, check_event
from waypost.model.catalog import Service
from waypost.model.event import UserEvent


def event(name="deploy", **more):
    return UserEvent(id="", name=name, **more)


@pytest.fixture
async def events(domain):
    await domain.catalog.register(
        domain.actor,
        Register(
            node="n1", address="a", service=Service(node="", id="w", name="web", tags=("v1",))
        ),
    )
    return Events(domain.state, Gate(ExposureAuthorizer()), node="n1")


def names(domain, events, **more):
    return [one.name for one in events.list(domain.actor, **more)]


@pytest.mark.parametrize(
    ("filters", "arrives"),
    [
        ({}, True),
        ({"node_filter": "^n[0-9]$"}, True),
        ({"node_filter": "other"}, False),
        ({"service_filter": "web"}, True),
        ({"service_filter": "db"}, False),
        ({"service_filter": "web", "tag_filter": "v1"}, True),
        ({"service_filter": "web", "tag_filter": "v2"}, False),
    ],
)
async def test_filters_decide_who_gets_it(domain, events, filters, arrives):
    fired = await events.fire(domain.actor, event(**filters))
    assert fired.time == 0
    assert names(domain, events) == (["deploy"] if arrives else [])


async def test_times_grow_and_old_ones_go(domain, events):
    for number in range(KEPT + 5):
        await events.fire(domain.actor, event(f"e{number}"))
    kept = events.list(domain.actor)
    assert len(kept) == KEPT
    assert kept[0].name == "e5"
    times = [one.time for one in kept]
    assert times == sorted(set(times))
    assert names(domain, events, name="e9") == ["e9"]


def test_index_is_the_folded_id():
    assert UserEvent(id=str(uuid.UUID(int=(5 << 64) | 3)), name="x").index == 6


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"node_filter": "("}, "Invalid node filter: error parsing regexp: missing closing ): `(`"),
        ({"tag_filter": "t"}, "Cannot provide tag filter without service filter"),
    ],
)
def test_refusals(wrong, error):
    with pytest.raises(Rejected) as raised:
        check_event(event(**wrong))
    assert str(raised.value) == error


@pytest.mark.parametrize(
    ("more", "largest"),
    [
        ({"name": "b"}, 414),
        ({"name": "b" * 10}, 396),
        ({"name": "b", "node_filter": "abcd"}, 406),
        ({"name": "b", "node_filter": "abcd", "service_filter": "efgh", "tag_filter": "ij"}, 392),
    ],
)
def test_the_limit_counts_what_consul_would_send(more, largest):
    check_event(event(**more, payload=b"x" * largest))
    with pytest.raises(Rejected, match="exceeds configured limit of 512 bytes"):
        check_event(event(**more, payload=b"x" * (largest + 1)))


async def test_waiting(domain, events):
    fired = await events.fire(domain.actor, event())
    waiting = asyncio.create_task(events.wait(name="deploy", index=fired.index, at_most_s=5))
    await asyncio.sleep(0.02)
    await events.fire(domain.actor, event("other"))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await events.fire(domain.actor, event())
    async with asyncio.timeout(1):
        await waiting
    async with asyncio.timeout(1):
        await events.wait(name="deploy", index=1, at_most_s=5)
        await events.wait(name="nope", index=1, at_most_s=0.02)
