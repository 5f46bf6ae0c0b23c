"""A view that is fed record by record, and a responder over it."""

import random

import pytest

from waypost.model.catalog import Check, Node, Service
from waypost.state.keys import key_of, put
from waypost.state.view import View
from waypost.store.engine import Batch, Event, KeyValue
from waypost.surfaces.dns.catalog import OpenAdmission
from waypost.surfaces.dns.responder import Responder
from waypost.surfaces.dns.settings import DnsSettings


class Feed:
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

    def delete(self, *records):
        revision = self.view.revision + 1
        kvs = [KeyValue(key_of(record), b"", 0, revision) for record in records]
        self.view.apply(Batch(revision, tuple(Event("delete", kv) for kv in kvs)))

    def web(self, number, *, status="passing", tags=(), address="", name="web"):
        """Put an instance on a node of its own."""
        node = f"{name}-n{number}"
        self.put(
            Node(node=node, address=f"10.0.0.{number}", meta={"rack": f"r{number}"}),
            Service(
                node=node,
                id=f"{name}{number}",
                name=name,
                port=8000 + number,
                tags=tags,
                address=address,
            ),
            Check(
                node=node,
                check_id=f"{name}{number}",
                name="c",
                status=status,
                service_id=f"{name}{number}",
            ),
        )


class WallClock:
    def __init__(self):
        self.time_s = 1000.0

    def now(self):
        return self.time_s

    def wall(self):
        return self.time_s


@pytest.fixture
def feed():
    return Feed()


@pytest.fixture
def clock():
    return WallClock()


@pytest.fixture
def responder(feed, clock):
    def make(settings=None, *, admission=None, finder=None):
        return Responder(
            settings or DnsSettings(),
            admission or OpenAdmission(feed.view),
            clock=clock,
            rng=random.Random(7),
            finder=finder,
        )

    return make
