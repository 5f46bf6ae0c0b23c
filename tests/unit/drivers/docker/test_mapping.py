"""The mapping from containers to registrations: Registrator's rules, and where we differ."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from waypost.base.errors import Malformed
from waypost.drivers.docker.api import Binding, Container, Health, Network, Port
from waypost.drivers.docker.mapping import (
    HostFacts,
    Mapped,
    MappingSettings,
    Registration,
    Step,
    choose_binding,
    default_name,
    is_stop_signal,
    map_container,
    merge,
    plan,
    signal_number,
)
from waypost.model.catalog import Check, CheckDefinition, Service, TaggedAddress

FACTS = HostFacts(node="n1", hostname="h1", ip="10.0.0.1", ipv6="fd00::1")
ID = "bcf697c09736873fe5bc68354cc3ce654855aa1b81732e66b6559a6d1f509ff5"


def ports(text: str) -> dict[Port, tuple[Binding, ...]]:
    """`80=8000 443=4443 53/udp=53 9=` → what inspect says; empty = not published."""
    out: dict[Port, tuple[Binding, ...]] = {}
    for item in text.split():
        left, _, right = item.partition("=")
        number, _, protocol = left.partition("/")
        bindings = tuple(
            Binding(
                *(one.rsplit(":", 1)[0], int(one.rsplit(":", 1)[1]))
                if ":" in one
                else ("0.0.0.0", int(one))
            )
            for one in right.split(",")
            if one
        )
        out[Port(int(number), protocol or "tcp")] = bindings
    return out


def box(published: str = "80=8000", /, **fields: Any) -> Container:
    table = ports(published)
    base: dict[str, Any] = {
        "id": ID,
        "name": "c",
        "image": "nginx",
        "published": table,
        "exposed": tuple(sorted(table)),
        "networks": (Network("bridge", "172.17.0.2"),),
    }
    return Container(**(base | fields))


def mapped(container: Container, **given: Any) -> Mapped:
    linked_to = given.pop("linked_to", None)
    extra_tags = given.pop("extra_tags", ())
    return map_container(
        container,
        facts=FACTS,
        settings=MappingSettings(**given),
        linked_to=linked_to,
        extra_tags=extra_tags,
    )


def services(container: Container, **given: Any) -> list[Service]:
    return [one.service for one in mapped(container, **given).registrations]


def short(container: Container, **given: Any) -> list[str]:
    """`id name address:port [tags] {meta}` of every registration."""
    return [
        f"{s.id} {s.name} {s.address}:{s.port} [{' '.join(s.tags)}]"
        + (" " + ",".join(f"{k}={v}" for k, v in sorted(s.meta.items())) if s.meta else "")
        for s in services(container, **given)
    ]


def problems(container: Container, **given: Any) -> list[str]:
    return [note.text for note in mapped(container, **given).notes if note.reason == "problem"]


# Registrator's documented examples, host h1, -ip 192.0.2.1; tags in written order.
@pytest.mark.parametrize(
    ("container", "expected"),
    [
        (
            box("6379=10000", name="redis.0", image="x/redis"),
            ["h1:redis.0:6379 redis 192.0.2.1:10000 []"],
        ),
        (
            box(
                "6379=10000",
                name="redis.0",
                image="x/redis",
                env=("SERVICE_NAME=db", "SERVICE_TAGS=master,backups", "SERVICE_REGION=us2"),
            ),
            ["h1:redis.0:6379 db 192.0.2.1:10000 [master backups] region=us2"],
        ),
        (
            box("443=4443 80=8000", name="n"),
            ["h1:n:80 nginx-80 192.0.2.1:8000 []", "h1:n:443 nginx-443 192.0.2.1:4443 []"],
        ),
        (
            box("443=4443 80=8000", name="n", labels={"SERVICE_NAME": "web"}),
            ["h1:n:80 web-80 192.0.2.1:8000 []", "h1:n:443 web-443 192.0.2.1:4443 []"],
        ),
        (
            box(
                "443=4443 80=8000",
                name="n",
                labels={
                    "SERVICE_443_NAME": "https",
                    "SERVICE_443_ID": "https.1",
                    "SERVICE_80_NAME": "http",
                    "SERVICE_443_SNI": "on",
                    "SERVICE_TAGS": "www",
                },
            ),
            ["h1:n:80 http 192.0.2.1:8000 [www]", "https.1 https 192.0.2.1:4443 [www] sni=on"],
        ),
        (
            box("53=53 53/udp=53", image="dns"),
            ["h1:c:53 dns-53 192.0.2.1:53 []", "h1:c:53:udp dns-53 192.0.2.1:53 [udp]"],
        ),
        (
            box(
                "",
                network_mode="host",
                networks=(Network("host"),),
                exposed=(Port(3000), Port(3001)),
                labels={"SERVICE_NAME": "g"},
            ),
            ["h1:c:3000 g-3000 192.0.2.1:3000 []", "h1:c:3001 g-3001 192.0.2.1:3001 []"],
        ),
        (
            box(env=("SERVICE_80_NAME=a",), labels={"SERVICE_NAME": "b"}),
            ["h1:c:80 a 192.0.2.1:8000 []"],
        ),
        (
            box(env=("SERVICE_NAME=a",), labels={"SERVICE_NAME": "b"}),
            ["h1:c:80 b 192.0.2.1:8000 []"],
        ),
    ],
)
def test_documented_examples(container: Container, expected: list[str]) -> None:
    assert short(container, ip="192.0.2.1") == expected


@pytest.mark.parametrize(
    ("published", "default", "internal"),
    [
        ("80= 443= 53/udp=", [], 3),
        ("80=0.0.0.0:18080,:::18080 443= 53/udp=", ["h1:c:80 nginx 10.0.0.1:18080 []"], 3),
        ("80=127.0.0.1:18081", ["h1:c:80 nginx 127.0.0.1:18081 []"], 1),
        ("80=18085,:::18085,18084", ["h1:c:80 nginx 10.0.0.1:18085 []"], 1),
        ("80=127.0.0.1:1,18085", ["h1:c:80 nginx 10.0.0.1:18085 []"], 1),
        ("80=:::99", ["h1:c:80 nginx fd00::1:99 []"], 1),
        ("80=fd00::9:99", ["h1:c:80 nginx fd00::9:99 []"], 1),
    ],
)
def test_published_ports(published: str, default: list[str], internal: int) -> None:
    assert short(box(published)) == default
    inside = services(box(published), internal=True)
    assert [s.address for s in inside] == ["172.17.0.2"] * internal
    assert all(str(s.port) == s.id.split(":")[2] for s in inside)


def test_network_modes() -> None:
    exposed = (Port(80),)
    inner = (Network("rnet1", "172.20.0.2", "fd01::2"),)
    on_net = box("80=18082", network_mode="rnet1", networks=inner)
    assert short(on_net) == ["h1:c:80 nginx 10.0.0.1:18082 []"]
    assert short(on_net, user_network_ip=True) == ["h1:c:80 nginx 172.20.0.2:18082 []"]
    assert short(on_net, user_network_ip=True, ip="9.9.9.9") == ["h1:c:80 nginx 9.9.9.9:18082 []"]
    assert short(on_net, internal=True) == ["h1:c:80 nginx 172.20.0.2:80 []"]
    assert short(on_net, internal=True, prefer="ipv6") == ["h1:c:80 nginx fd01::2:80 []"]
    none = box("", network_mode="none", exposed=exposed, networks=(Network("none"),))
    assert short(none) == []
    assert short(none, internal=True) == []
    assert [n.text for n in mapped(none).notes] == ["no network"]
    host = box("", network_mode="host", exposed=exposed, networks=(Network("host"),))
    assert short(host, internal=True) == ["h1:c:80 nginx 10.0.0.1:80 []"]
    # A driver without publishing (macvlan) lists no port at all: the container's own address it is.
    macvlan = box("", network_mode="lan", exposed=exposed, networks=(Network("lan", "10.0.0.77"),))
    assert short(macvlan) == ["h1:c:80 nginx 10.0.0.77:80 []"]


def test_shared_network() -> None:
    side = box("", network_mode="container:other", exposed=(Port(80),), networks=())
    other = box("9=9", networks=(Network("bridge", "172.17.0.9"),))
    assert short(side, linked_to=other) == ["h1:c:80 nginx 172.17.0.9:80 []"]
    assert short(side, linked_to=other, ip="9.9.9.9") == ["h1:c:80 nginx 172.17.0.9:80 []"]
    on_net = box("9=9", network_mode="n", networks=(Network("n", "172.20.0.9"),))
    assert short(side, linked_to=on_net) == ["h1:c:80 nginx 172.20.0.9:80 []"]
    host = box("", network_mode="host", networks=(Network("host"),))
    assert short(side, linked_to=host) == ["h1:c:80 nginx 10.0.0.1:80 []"]
    assert short(side) == []
    assert "is not there" in problems(side)[0]


def test_choosing_a_network() -> None:
    two = (Network("blue", "172.21.0.2"), Network("red", "172.22.0.2"), Network("void"))
    container = box("80=", network_mode="red", networks=two)
    assert services(container, internal=True)[0].address == "172.22.0.2"
    assert services(container, internal=True, network="blue")[0].address == "172.21.0.2"
    labelled = msgspec.structs.replace(container, labels={"SERVICE_NETWORK": "blue"})
    assert services(labelled, internal=True, network="red")[0].address == "172.21.0.2"
    absent = msgspec.structs.replace(container, labels={"SERVICE_NETWORK": "void"})
    assert services(absent, internal=True) == []
    assert "no address on network 'void'" in problems(absent, internal=True)[0]
    gone = msgspec.structs.replace(container, network_mode="elsewhere")
    assert services(gone, internal=True)[0].address == "172.21.0.2"  # the first by name, every time


def test_internal_label() -> None:
    labels = {"SERVICE_80_INTERNAL": "true", "SERVICE_NAME": "w"}
    assert short(box("80= 443=4443", labels=labels)) == [
        "h1:c:80 w-80 172.17.0.2:80 []",
        "h1:c:443 w-443 10.0.0.1:4443 []",
    ]
    assert short(box("80=8000", labels={"SERVICE_INTERNAL": "false"}), internal=True) == [
        "h1:c:80 nginx 10.0.0.1:8000 []"
    ]


@pytest.mark.parametrize(
    ("label", "address"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3/24", "10.1.2.3"),
        ("fd00::5/64", "fd00::5"),
        ("10.1.2.300", "10.0.0.1"),
        ("10.1.2.3;x", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_ip_from_label(label: str, address: str) -> None:
    container = box(labels={"my.ip": label})
    assert services(container, ip_label="my.ip")[0].address == address
    assert services(container, ip_label="my.ip")[0].port == 8000
    if address.startswith("10.0"):
        assert "neither an address nor a host name" in problems(container, ip_label="my.ip")[0]
    assert "not found" in problems(box(), ip_label="my.ip")[0]


def test_ip_label_beats_all() -> None:
    container = box("80=1 81=2", labels={"SERVICE_80_IP": "example.com", "SERVICE_81_IP": "x y"})
    assert short(container, ip="9.9.9.9") == ["h1:c:80 nginx-80 example.com:1 []"]
    assert "SERVICE_IP 'x y'" in problems(container)[0]


@pytest.mark.parametrize(
    ("labels", "rule", "names"),
    [
        ({}, "many", ["nginx-80", "nginx-443"]),
        ({}, "never", ["nginx", "nginx"]),
        ({"SERVICE_443_IGNORE": "false"}, "many", ["nginx"]),
        ({"SERVICE_443_IGNORE": "false"}, "always", ["nginx-80"]),
        ({"SERVICE_443_IGNORE": "1"}, "registrator", ["nginx-80"]),
        ({"SERVICE_443_IGNORE": ""}, "many", ["nginx-80", "nginx-443"]),
        ({"SERVICE_443_NAME": "tls"}, "always", ["nginx-80", "tls"]),
        ({"SERVICE_IGNORE": "x"}, "many", []),
    ],
)
def test_suffix(labels: dict[str, str], rule: Any, names: list[str]) -> None:
    found = services(box("80=8000 443=4443", labels=labels), suffix=rule)
    assert [one.name for one in found] == names


def test_explicit() -> None:
    container = box("80=8000 443=4443", labels={"SERVICE_443_NAME": "tls"})
    assert short(container, explicit=True) == ["h1:c:443 tls 10.0.0.1:4443 []"]
    assert short(box(), explicit=True) == []
    assert short(box(labels={"SERVICE_NAME": "w"}), explicit=True) == ["h1:c:80 w 10.0.0.1:8000 []"]


def test_chosen_ports() -> None:
    host = {"network_mode": "host", "networks": (Network("host"),), "exposed": (Port(80), Port(81))}
    assert [s.port for s in services(box("", labels={"SERVICE_PORTS": "81"}, **host))] == [81]
    assert [s.id for s in services(box("", labels={"SERVICE_PORTS": "81, 9/udp"}, **host))] == [
        "h1:c:9:udp",
        "h1:c:81",
    ]
    bridged = box("80=8000 443=4443", labels={"SERVICE_PORTS": "443"})
    assert short(bridged) == ["h1:c:443 nginx 10.0.0.1:4443 []"]
    portless = box("", labels={"SERVICE_PORTS": "0", "SERVICE_NAME": "worker"})
    assert short(portless) == ["h1:c:0 worker 10.0.0.1:0 []"]
    bad = box("80=8000", labels={"SERVICE_PORTS": "80,http,70000"})
    assert short(bad) == ["h1:c:80 nginx 10.0.0.1:8000 []"]
    assert problems(bad) == [
        "SERVICE_PORTS: 'http' is not a port",
        "SERVICE_PORTS: '70000' is not a port",
    ]


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("nginx", "nginx"),
        ("reg:5000/team/web:1.2", "web"),
        ("web@sha256:ab12", "web@sha256"),
        ("sha256:ab12", "sha256"),
        ("progrium/redis:latest", "redis"),
    ],
)
def test_default_name(image: str, name: str) -> None:
    assert default_name(image) == name
    assert services(box(image=image))[0].name == name


def test_name_sources() -> None:
    labels = {"com.docker.compose.service": "front", "com.docker.swarm.service.name": "stack_front"}
    container = box(name="proj-front-1", hostname="inside", labels=labels)
    found = {
        source: services(container, name_source=source)[0].name  # type: ignore[arg-type]
        for source in ("image", "container", "compose", "swarm", "hostname")
    }
    assert found == {
        "image": "nginx",
        "container": "proj-front-1",
        "compose": "front",
        "swarm": "stack_front",
        "hostname": "inside",
    }
    assert services(box(), name_source="compose")[0].name == "nginx"


def test_one_bad_label_costs_one_service() -> None:
    labels = {"SERVICE_80_NAME": "a\nb", "SERVICE_443_NAME": "ok", "SERVICE_81_ID": "x\x00"}
    container = box("80=1 81=2 443=3", labels=labels)
    assert [one.name for one in services(container)] == ["ok"]
    assert problems(container) == [
        r"service on port 80/tcp not registered: its name 'a\nb' has control characters",
        r"service on port 81/tcp not registered: its SERVICE_ID 'x\x00' has control characters",
    ]


def test_nothing_odd_loses_a_registration() -> None:
    labels = {
        "SERVICE_ODD.KEY": "v",
        "SERVICE_CONSUL-X": "v",
        "SERVICE_LONG": "x" * 600,
        "SERVICE_TAGS": "good,b\tad",
        "SERVICE_CHECK_HTTP": "/",
        "SERVICE_CHECK_INTERVAL": "often",
    }
    labels |= {f"SERVICE_K{n:03}": "v" for n in range(80)}
    (one,) = services(box(labels=labels))
    assert one.tags == ("good",)
    assert one.meta is not None
    assert len(one.meta) == 64
    assert one.meta["consul_x"] == "v"
    assert not any(key.startswith("check") for key in one.meta)


def test_tcp_and_sctp_of_one_number() -> None:
    assert [s.id for s in services(box("80/sctp=2 80=1"))] == ["h1:c:80", "h1:c:80:sctp"]
    assert len({s.id for s in services(box("80=1 80/sctp=2 80/udp=3"))}) == 3


def test_same_id_for_two_ports() -> None:
    container = box("80=1 81=2", labels={"SERVICE_ID": "x"})
    assert [s.port for s in services(container)] == [1]
    assert "already taken" in problems(container)[0]


def test_extra_tags_and_udp() -> None:
    container = box("53/udp=53", labels={"SERVICE_TAGS": "a,b"})
    assert services(container, extra_tags=("c", "d"))[0].tags == ("a", "b", "c", "d", "udp")


@pytest.mark.parametrize("state", [{"running": False}, {"paused": True}, {"restarting": True}])
def test_not_serving(state: dict[str, bool]) -> None:
    assert services(box(**state)) == []


@pytest.mark.parametrize(
    ("status", "labels", "expected"),
    [
        ("starting", {}, "critical"),
        ("starting", {"SERVICE_CHECK_INITIAL_STATUS": "passing"}, "passing"),
        ("healthy", {}, "passing"),
        ("unhealthy", {"SERVICE_CHECK_INITIAL_STATUS": "passing"}, "critical"),
    ],
)
def test_health(status: str, labels: dict[str, str], expected: str) -> None:
    container = box(labels=labels, health=Health(status, "said so"))
    (registration,) = mapped(container).registrations
    (check,) = registration.checks
    assert (check.check_id, check.status, check.output, check.definition) == (
        "docker-health:h1:c:80",
        expected,
        "said so",
        None,
    )
    assert mapped(container, health=False).registrations[0].checks == ()
    waited = mapped(container, wait_healthy=True)
    assert bool(waited.registrations) == (status != "starting")


# --- bindings, signals, merging, planning ------------------------------------------------------------------


def test_choose_binding() -> None:
    v4, v6, lo = Binding("0.0.0.0", 1), Binding("::", 2), Binding("127.0.0.1", 3)
    assert choose_binding((lo, v6, v4), prefer="ipv4") == v4
    assert choose_binding((lo, v4, v6), prefer="ipv6") == v6
    assert choose_binding((lo, v6), prefer="ipv4") == v6
    assert choose_binding((lo,), prefer="ipv4") == lo
    assert choose_binding((), prefer="ipv4") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("15", 15),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("SIGQUIT", 3),
    ],
)
def test_signal_number(text: str, number: int) -> None:
    assert signal_number(text) == number


def test_signals() -> None:
    with pytest.raises(Malformed, match="not a signal: 'SIGFOO'"):
        signal_number("SIGFOO")
    assert is_stop_signal("15", stop_signal="")
    assert is_stop_signal("9", stop_signal="QUIT")
    assert is_stop_signal("37", stop_signal="SIGRTMIN+3")
    assert is_stop_signal("15", stop_signal="nonsense")
    assert not is_stop_signal("15", stop_signal="QUIT")
    assert not is_stop_signal("1", stop_signal="")
    assert not is_stop_signal("", stop_signal="")


def registration(service_id: str = "a", **fields: Any) -> Registration:
    checks = fields.pop("checks", ())
    return Registration(
        service=Service(node="n1", id=service_id, name="s", owner="docker", **fields), checks=checks
    )


def test_merge_gives_the_id_to_the_younger() -> None:
    old = Mapped(
        container_id="1", name="old", registrations=(registration(port=1),), started_at="2026-01-01"
    )
    new = Mapped(
        container_id="0", name="new", registrations=(registration(port=2),), started_at="2026-01-02"
    )
    for order in ([old, new], [new, old]):
        merged, clashes = merge(order)
        assert merged["a"].service.port == 2
        assert [(c.service_id, c.winner, c.loser) for c in clashes] == [("a", "new", "old")]


def check(status: str, *, own: bool = True, interval_ns: int = 1) -> Check:
    definition = None if own else CheckDefinition(tcp="x:1", interval_ns=interval_ns)
    return Check(
        node="n1", check_id="k", name="k", status=status, output=status, definition=definition
    )


@pytest.mark.parametrize(
    ("want", "have", "expected"),
    [
        ([registration("a")], [], [("register", "a")]),
        ([], [registration("a")], [("deregister", "a")]),
        ([registration("a")], [registration("a", create_index=5, modify_index=9, meta={})], []),
        (
            [registration("a", address="10.0.0.1")],
            [registration("a", address="10.0.0.1", tagged_addresses={"lan": TaggedAddress()})],
            [],
        ),
        ([registration("a", tags=("x",))], [registration("a")], [("register", "a")]),
        ([registration("z")], [registration("a")], [("register", "z"), ("deregister", "a")]),
        (
            [registration("a", checks=(check("passing"),))],
            [registration("a", checks=(check("critical"),))],
            [("health", "a")],
        ),
        (
            [registration("a", checks=(check("critical", own=False),))],
            [registration("a", checks=(check("passing", own=False),))],
            [],
        ),
        (
            [registration("a", checks=(check("critical", own=False, interval_ns=2),))],
            [registration("a", checks=(check("critical", own=False),))],
            [("register", "a")],
        ),
        (
            [registration("a")],
            [registration("a", checks=(check("passing"),))],
            [("register", "a")],
        ),
    ],
)
def test_plan(
    want: list[Registration], have: list[Registration], expected: list[tuple[str, str]]
) -> None:
    def say(step: Step) -> tuple[str, str]:
        verb = "register" if step.register else "health" if step.health else "deregister"
        return verb, step.service_id

    steps = plan({r.service.id: r for r in want}, {r.service.id: r for r in have})
    assert [say(step) for step in steps] == expected
