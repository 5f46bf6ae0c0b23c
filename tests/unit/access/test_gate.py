"""The posture without access control: open to the machine itself, for discovery to others."""

from ipaddress import ip_network

import pytest

from waypost.access.actor import node_actor
from waypost.access.authn import anonymous, unix_peer
from waypost.access.gate import Attributes, ExposureAuthorizer, Gate
from waypost.base.errors import Forbidden

READ = Attributes("list", "services")
WRITE = Attributes("update", "services", "web")
KV_WRITE = Attributes("update", path="/v1/kv/app")


@pytest.mark.parametrize(
    ("actor", "networks", "may_write"),
    [
        (anonymous("127.0.0.1"), (), True),
        (anonymous("127.8.8.8"), (), True),
        (anonymous("::1"), (), True),
        (anonymous("::ffff:127.0.0.1"), (), True),
        (anonymous("192.0.2.7"), (), False),
        (anonymous("::ffff:192.0.2.7"), (), False),
        (anonymous(""), (), False),
        (anonymous("192.0.2.7"), ("192.0.2.0/24",), True),
        (anonymous("198.51.100.1"), ("192.0.2.0/24",), False),
        (unix_peer(0, 0), (), True),
        (unix_peer(1000, 0), (), True),
        (node_actor("n1"), (), True),
    ],
)
def test_who_may_change_something(actor, networks, may_write):
    gate = Gate(ExposureAuthorizer(write_networks=map(ip_network, networks)))
    gate.admit(actor, READ)
    assert gate.allows(actor, WRITE) is may_write
    assert gate.allows(actor, KV_WRITE) is may_write
    # Keys, logs and machine facts are no discovery.
    for hidden in (
        Attributes("get", path="/v1/kv/app"),
        Attributes("get", "agents", "monitor"),
        Attributes("list", "sessions"),
    ):
        assert gate.allows(actor, hidden) is may_write


def test_a_refusal_says_who_what_and_why():
    gate = Gate(ExposureAuthorizer())
    with pytest.raises(
        Forbidden,
        match=r'User "system:anonymous" cannot update resource "services" "web".*only discovery is open',
    ):
        gate.admit(anonymous("192.0.2.7"), WRITE)
