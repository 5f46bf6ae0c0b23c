"""Rules of answers that the recorded queries do not reach."""

import pytest

from waypost.model.catalog import Check, Node, Service, TaggedAddress, Weights
from waypost.surfaces.dns.lookup import Lookup, Turn, _stride
from waypost.surfaces.dns.settings import DnsSettings, packed
from waypost.wire.dns import message as wire
from waypost.wire.dns.message import Question, Record
from waypost.wire.dns.name import name_text, parse_name

TYPES = {
    "A": 1,
    "NS": 2,
    "CNAME": 5,
    "SOA": 6,
    "PTR": 12,
    "TXT": 16,
    "AAAA": 28,
    "SRV": 33,
    "DS": 43,
    "ANY": 255,
}
NAMES = {number: name for name, number in TYPES.items()}


def shown(record):
    data = record.data
    if isinstance(data, wire.Srv):
        text = f"{data.weight} {data.port} {name_text(data.target)}"
    elif isinstance(data, wire.Soa):
        text = name_text(data.mname)
    elif isinstance(data, tuple):
        text = name_text(data)
    elif record.type == wire.TXT:
        text = data[1:].decode()
    else:
        text = data.hex()
    return f"{name_text(record.name)} {record.ttl_s} {NAMES[record.type]} {text}"


@pytest.fixture
def ask(feed):
    def ask(name, kind="A", settings=None, **more):
        return Lookup(settings or DnsSettings()).answer(
            Question(parse_name(name), TYPES[kind]),
            feed.view,
            arrange=lambda instances: instances,
            now_s=77,
            **more,
        )

    return ask


def answers(answer):
    return [shown(record) for record in answer.answer]


TAGGED_NODE = {"lan_ipv4": "10.5.0.2", "lan_ipv6": "2001:db8::52", "lan": "10.5.0.3"}


@pytest.mark.parametrize(
    ("kind", "node", "service"),
    [
        ("A", ["A 0a050002"], ["A 0a050102"]),
        (
            "AAAA",
            ["AAAA 20010db8000000000000000000000052"],
            ["AAAA 20010db8000000000000000000000061"],
        ),
        (
            "ANY",
            ["AAAA 20010db8000000000000000000000052"],
            ["AAAA 20010db8000000000000000000000061"],
        ),
        ("SRV", [], ["SRV 1 5 20010db8000000000000000000000061.addr.dc1.consul."]),
    ],
)
def test_lan_addresses_by_family(feed, ask, kind, node, service):
    # As Consul 1.8.7 answered for the same registration.
    feed.put(
        Node(node="tag46", address="10.5.0.1", tagged_addresses=TAGGED_NODE),
        Service(
            node="tag46",
            id="tg",
            name="tg",
            port=5,
            address="10.5.1.1",
            tagged_addresses={
                "lan_ipv4": TaggedAddress("10.5.1.2", 8),
                "lan_ipv6": TaggedAddress("2001:db8::61", 7),
            },
        ),
    )
    assert answers(ask("tag46.node.consul", kind)) == [f"tag46.node.consul. 0 {x}" for x in node]
    assert answers(ask("tg.service.consul", kind)) == [f"tg.service.consul. 0 {x}" for x in service]


def test_service_address_of_the_other_family_does_not_fall_back_to_the_node(feed, ask):
    feed.put(
        Node(node="d6", address="2001:db8::6"),
        Service(node="d6", id="v4", name="v4", port=5, address="10.5.1.9"),
    )
    answer = ask("v4.service.consul", "AAAA")
    assert answers(answer) == []
    assert [shown(r) for r in answer.authority] == ["consul. 0 SOA ns.consul."]


def test_aliases_inside_the_domain_stop_after_three_more(feed, ask):
    feed.put(
        Node(node="d1", address="10.1.0.1"),
        Service(node="d1", id="l1", name="l1", address="l2.service.consul"),
        Service(node="d1", id="l2", name="l2", address="l1.service.consul"),
    )
    assert [r.split()[0] for r in answers(ask("l1.service.consul"))] == [
        "l1.service.consul.",
        "l2.service.consul.",
        "l1.service.consul.",
        "l2.service.consul.",
    ]
    assert ask("l1.service.consul").topics == (("health", "l1"), ("health", "l2"))


def test_name_servers_are_host_names_in_lower_case(feed, ask):
    for name in ("NodeUp", "node_u.x", "n1", "n2", "n3"):
        feed.put(
            Node(node=name, address="10.1.0.8"),
            Service(node=name, id="consul", name="consul", port=8300),
        )
    feed.put(Check(node="n2", check_id="serfHealth", name="s", status="critical"))
    answer = ask("consul", "NS", DnsSettings(node_ttl_s=9))
    assert answers(answer) == [
        "consul. 9 NS n1.node.dc1.consul.",
        "consul. 9 NS n3.node.dc1.consul.",
        "consul. 9 NS nodeup.node.dc1.consul.",
    ]
    assert len(answer.additional) == 3


@pytest.mark.parametrize(
    ("statuses", "settings", "found"),
    [
        (("passing",), {}, "10 8001"),
        (("warning",), {}, "3 8001"),
        (("critical",), {}, None),
        (("maintenance", "critical"), {}, None),
        (("warning",), {"only_passing": True}, None),
        (("passing", "warning"), {}, "3 8001"),
        ((), {"only_passing": True}, "10 8001"),
    ],
)
def test_health_and_weights(feed, ask, statuses, settings, found):
    feed.put(
        Node(node="n", address="10.1.0.1"),
        Service(node="n", id="web", name="web", port=8001, weights=Weights(10, 3)),
        *(
            Check(node="n", check_id=f"c{i}", name="c", status=status, service_id="web")
            for i, status in enumerate(statuses)
        ),
    )
    answer = ask("web.service.consul", "SRV", DnsSettings(**settings))
    if found is None:
        assert answer.rcode == wire.NXDOMAIN
    else:
        assert answers(answer) == [f"web.service.consul. 0 SRV {found} n.node.dc1.consul."]


@pytest.mark.parametrize(
    ("service", "ttl_s"), [("api", 60), ("api-v2", 7), ("apx", 6), ("web", 5), ("API", 60)]
)
def test_service_ttls(feed, ask, service, ttl_s):
    settings = DnsSettings(service_ttl_s={"*": 5.9, "Api": 60, "ap*": 6, "api*": 7})
    feed.put(Node(node="n", address="10.1.0.1"), Service(node="n", id="x", name=service, port=1))
    assert ask(f"{service}.service.consul", settings=settings).answer[0].ttl_s == ttl_s


def test_names_that_cannot_be_written_are_left_out(feed, ask):
    feed.put(
        Node(node="x" * 70, address="10.1.0.1"),
        Service(node="x" * 70, id="web", name="web", port=1),
        Node(node="ok", address="10.1.0.2"),
        Service(node="ok", id="web", name="web", port=1),
        Service(node="ok", id="web2", name="web", port=2, address="bad..name"),
    )
    assert answers(ask("web.service.consul", "SRV")) == [
        "web.service.consul. 0 SRV 1 1 ok.node.dc1.consul."
    ]
    assert len(ask("web.service.consul").answer) == 2


def test_hosts_elsewhere_wait_for_recursors(feed, ask):
    settings = DnsSettings(recursors=("192.0.2.53",), service_ttl_s={"*": 5})
    feed.put(
        Node(node="d1", address="10.1.0.1"),
        Service(node="d1", id="host", name="host", port=443, address="WWW.example.com"),
    )
    name = parse_name("www.example.com")
    assert ask("host.service.consul", settings=settings).unresolved == (name,)
    found = tuple(Record(name, wire.A, 300, bytes([192, 0, 2, i])) for i in range(8))
    answer = ask("host.service.consul", settings=settings, resolved={name: found})
    assert answer.unresolved == ()
    assert len(answer.answer) == 1 + 5
    assert {record.ttl_s for record in answer.answer} == {5}
    longer = ask("host.service.consul", settings=settings, resolved={name: found}, has_edns=True)
    assert len(longer.answer) == 1 + 8


def test_ds_goes_to_the_parent(ask):
    assert ask("consul", "DS", DnsSettings(recursors=("192.0.2.53",))).elsewhere
    assert ask("consul", "DS").rcode == wire.NXDOMAIN


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("1.0.0.10.in-addr.arpa", "N1.node.dc1.consul."),
        ("9.0.0.10.in-addr.arpa", "Web.service.dc1.consul."),
        ("1.0.0.10.IN-ADDR.arpa", "N1.node.dc1.consul."),
        ("8.0.0.10.in-addr.arpa", None),
        ("0.0.10.in-addr.arpa", None),
        ("1.0.0.10.0.in-addr.arpa", None),
        ("x.0.0.10.in-addr.arpa", None),
        ("256.0.0.10.in-addr.arpa", None),
        ("arpa", None),
        ("zz.ip6.arpa", None),
        (".".join("g" * 32) + ".ip6.arpa", None),
    ],
)
def test_reverse(feed, ask, name, target):
    feed.put(
        Node(node="N1", address="10.0.0.1"),
        Service(node="N1", id="a", name="Web", address="10.0.0.9"),
        Service(node="N1", id="b", name="Other", address="10.0.0.1"),
    )
    answer = ask(name, "PTR")
    if target is None:
        assert answer.elsewhere
    else:
        assert [name_text(record.data) for record in answer.answer] == [target]


@pytest.mark.parametrize("count", [*range(1, 40), 60, 97, 100, 128])
def test_every_instance_is_first_once_a_round(count):
    rounds = [Turn(5, number).arrange(range(count)) for number in range(2 * count)]
    for start in (0, count):
        firsts = [order[0] for order in rounds[start : start + count]]
        assert sorted(firsts) == list(range(count))
    assert all(sorted(order) == list(range(count)) for order in rounds)
    if count > 5:
        assert [o[0] for o in rounds[:count]] != [o[0] for o in rounds[count:]]
    assert 1 <= _stride(count) <= max(count, 2)


@pytest.mark.parametrize(
    ("address", "data"),
    [
        ("10.0.0.1", bytes([10, 0, 0, 1])),
        ("::ffff:10.0.0.1", bytes([10, 0, 0, 1])),
        ("2001:db8::1", bytes.fromhex("20010db8000000000000000000000001")),
        ("www.example.com", None),
        ("", None),
        ("10.0.0", None),
        ("10.0.0.1\0", None),
        ("a:b", None),
    ],
)
def test_packed(address, data):
    assert packed(address) == data
