"""From catalog records to backends, and the feed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from waypost.drivers.nginx.backends import Backend, Endpoint, Feed, from_catalog
from waypost.drivers.nginx.settings import Settings
from waypost.drivers.nginx.wanted import Tracker
from waypost.model.catalog import Service, Weights


def test_instances_become_backends():
    services = [
        Service(node="n2", id="w2", name="Web", port=81, tags=("http", "v2"), meta={"http_host": "new.test"}, create_index=9),
        Service(node="n1", id="w1", name="web", port=80, address="10.1.1.1", tags=("http",), weights=Weights(passing=4), create_index=5),
        Service(node="n1", id="sick", name="web", port=82, meta={"http_host": "sick.test"}, create_index=10),
        Service(node="n1", id="db", name="db", port=5432, meta={"weight": "7"}, create_index=2),
    ]  # fmt: skip
    healthy = {("n1", "w1"): True, ("n2", "w2"): True, ("n1", "sick"): False, ("n1", "db"): True}
    db, web = from_catalog(
        services, healthy=healthy, node_addresses={"n1": "10.0.0.1", "n2": "10.0.0.2"}
    )
    assert db.endpoints == (
        Endpoint(address="10.0.0.1", port=5432, weight=7, instance_id="db", node="n1"),
    )
    assert web.service == "web"
    assert web.tags == ("http", "v2")
    assert web.meta == {"http_host": "new.test"}
    assert web.since == 5
    assert [(one.address, one.port, one.weight) for one in web.endpoints] == [
        ("10.0.0.2", 81, 1),
        ("10.1.1.1", 80, 4),
    ]


def test_a_service_whose_instances_are_all_sick_is_still_known():
    service = Service(node="n", id="a", name="web", port=1, tags=("http",))
    [web] = from_catalog([service], healthy={}, node_addresses={"n": "10.0.0.1"})
    assert (web.tags, web.endpoints) == (("http",), ())


async def test_the_feed_keeps_the_newest_and_wakes_once_a_change():
    feed = Feed()
    assert feed.backends is None
    waiting = asyncio.create_task(feed.wait_past(0))
    await asyncio.sleep(0)
    feed.publish([])
    feed.publish([Backend(service="a")])
    feed.publish([Backend(service="a")])
    assert await waiting == 2
    assert feed.backends == (Backend(service="a"),)


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time


def test_a_vanished_service_lingers_without_endpoints():
    clock = Clock()
    tracker = Tracker(settings=Settings(prefix=Path("/srv"), linger_s=30.0), clock=clock)
    web = Backend(service="web", tags=("http",), endpoints=(Endpoint(address="10.0.0.1", port=1),))
    assert tracker.update([web], version=1).endpoints["web"] == web.endpoints
    gone = tracker.update([], version=2)
    assert gone.routes.services() == {"web"}
    assert gone.endpoints == {"web": ()}
    assert gone.due_at == 130.0
    clock.time = 129.0
    back = tracker.update([web], version=3)
    assert (back.endpoints["web"], back.due_at) == (web.endpoints, None)
    tracker.update([], version=4)
    clock.time = 160.0
    assert tracker.update([], version=4).routes.services() == frozenset()
