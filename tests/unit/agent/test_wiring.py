"""The adapters between the domain and what drivers and surfaces ask for."""

import random

import dns.message
import dns.rcode

from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.agent.wiring import GatedCatalog
from waypost.base.clock import SystemClock
from waypost.model.catalog import Node
from waypost.state.keys import put
from waypost.state.view import View
from waypost.store.engine import KeyValue
from waypost.surfaces.dns.responder import Responder
from waypost.surfaces.dns.settings import DnsSettings


def asked(responder, name):
    responder.begin()
    reply = responder.respond(dns.message.make_query(name, "A").to_wire(), "127.0.0.1")
    return dns.rcode.to_text(dns.message.from_wire(reply).rcode())


def test_names_fail_and_are_not_denied_until_the_catalog_is_there():
    view = View()
    responder = Responder(
        DnsSettings(),
        GatedCatalog(view, Gate(ExposureAuthorizer())),
        clock=SystemClock(),
        rng=random.Random(1),
    )
    assert asked(responder, "a.node.consul.") == "SERVFAIL"
    operation = put(Node(node="a", address="192.0.2.1"))
    view.load([KeyValue(operation.key, operation.value, 2, 2)], revision=2)
    assert asked(responder, "a.node.consul.") == "NOERROR"
    assert asked(responder, "b.node.consul.") == "NXDOMAIN"
