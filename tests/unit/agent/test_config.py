"""Files and flags to settings: what is taken, what is refused, and in which words."""

import json

import pytest

from waypost.agent import definitions
from waypost.agent.config import merge, read_files, read_system_resolvers, resolve
from waypost.base.errors import Malformed
from waypost.cli.agent import AgentFlags, overrides
from waypost.cli.flags import parse

BASE = {"data_dir": "/var/lib/waypost", "node_name": "n1", "bind_addr": "10.0.0.5"}


def settings(**values):
    return resolve({**BASE, **values})


def flags(*argv):
    return overrides(parse(AgentFlags, argv)[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data_dir": ""}, "data_dir cannot be empty"),
        ({"datacenter": "a b"}, 'datacenter cannot be "a b". Please use only [a-z0-9-_]'),
        (
            {"bootstrap_expect": 1, "server": False},
            "'bootstrap_expect > 0' requires 'server = true'",
        ),
        (
            {"bootstrap_expect": 1, "bootstrap": True},
            "'bootstrap_expect > 0' and 'bootstrap = true' are mutually exclusive",
        ),
        ({"bootstrap_expect": -1}, "bootstrap_expect cannot be -1"),
        (
            {"log_level": "bogus"},
            "Invalid log level: bogus. Valid log levels are: [TRACE DEBUG INFO WARN ERR ERROR]",
        ),
        (
            {"node_meta": {"a b": "c"}},
            "node_meta invalid: Couldn't load metadata pair ('a b', 'c'): Key contains invalid characters",
        ),
        ({"advertise_addr": "0.0.0.0"}, "Advertise address cannot be 0.0.0.0, :: or [::]"),
        ({"bind_addr": "example.com"}, "must be IP addresses, not 'example.com'"),
        (
            {"ports": {"http": 53, "dns": 53}},
            "HTTP address 127.0.0.1:53 already configured for DNS",
        ),
        ({"ports": {"dns": 70000}}, "no valid port"),
        ({"client_addr": "localhost"}, "'localhost' is not"),
        (
            {"dns_config": {"node_ttl": "10"}},
            'dns_config.node_ttl: time: missing unit in duration "10"',
        ),
        ({"http_config": {"allow_write_http_from": ["10.0.0.0/99"]}}, "allow_write_http_from"),
        ({"ports": {"http": "x"}}, "expected `int`, got `str` - at `ports.http`"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(Malformed) as caught:
        settings(**values)
    assert message in str(caught.value)


def test_an_unknown_key_names_the_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"data_dir": "x", "bogus": 1}))
    with pytest.raises(Malformed) as caught:
        read_files([file], [])
    assert (
        str(caught.value)
        == f"failed to parse {file}: 1 error occurred:\n\t* invalid config key bogus"
    )


def test_files_of_a_directory_are_merged_in_name_order(tmp_path):
    (tmp_path / "b.hcl").write_text('node_name = "b"\nrecursors = ["2.2.2.2"]\nports { http = 1 }')
    (tmp_path / "a.json").write_text(
        '{"node_name": "a", "recursors": ["1.1.1.1"], "ports": {"dns": 2}}'
    )
    (tmp_path / "c.txt").write_text("not read")
    values = read_files([], [tmp_path])
    assert values == {
        "node_name": "b",
        "recursors": ["1.1.1.1", "2.2.2.2"],
        "ports": {"http": 1, "dns": 2},
    }


def test_flags_override_files_and_lists_append():
    found = flags(
        "-data-dir=/d", "-client", "0.0.0.0", "-dns-port=53", "-node-meta", "a:b:c", "-recursor=9.9.9.9",
        "-balancer=off", "-ui", "-template", "a:b:c", "-allow-write-http-from=10.0.0.0/8",
    )  # fmt: skip
    values = merge({"data_dir": "/x", "recursors": ["1.1.1.1"], "ports": {"http": 1}}, found)
    assert values["data_dir"] == "/d"
    assert values["recursors"] == ["1.1.1.1", "9.9.9.9"]
    assert values["ports"] == {"http": 1, "dns": 53}
    result = resolve({**values, "bind_addr": "10.0.0.5"})
    assert result.config.node_meta == {"a": "b:c"}
    assert result.config.balancer.enabled is False
    assert result.config.docker.enabled is None
    assert [str(one) for one in result.write_networks] == ["10.0.0.0/8"]
    with pytest.raises(Malformed, match="-docker is auto, on or off, not 'maybe'"):
        flags("-docker=maybe")


def test_the_founding_articles_flags_are_understood():
    found = flags(
        "-server", "-ui", "-dns-port=53", "-data-dir=/root/consul-install/consul-data", "-node=consul-1",
        "-client=0.0.0.0", "-bind=192.168.0.129", "-datacenter=dc1",
    )  # fmt: skip
    result = resolve(found)
    assert result.node_name == "consul-1"
    assert result.address == "192.168.0.129"
    assert result.dns_addresses == (("0.0.0.0", 53),)
    assert result.http_addresses == ("0.0.0.0",)


def test_addresses_of_dns_may_carry_ports():
    result = settings(addresses={"dns": "127.0.0.1 10.0.0.5:53 [::1]:54"})
    assert result.dns_addresses == (("127.0.0.1", 8600), ("10.0.0.5", 53), ("::1", 54))


def test_the_systems_resolvers_stand_behind_port_53(tmp_path):
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# x\nnameserver 127.0.0.1\nnameserver 10.1.1.1\nnameserver 10.0.0.5\nsearch lan\n"
    )
    assert read_system_resolvers(file, own=["10.0.0.5"]) == ("10.1.1.1",)
    assert read_system_resolvers(tmp_path / "none") == ()


def test_who_serves_every_address_asks_none_of_them(tmp_path):
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.7\nnameserver ::1\nnameserver 192.0.2.1\n")
    assert read_system_resolvers(file, own=["0.0.0.0"]) == ("192.0.2.1",)
    assert read_system_resolvers(file, own=["127.0.0.1"]) == ("127.0.0.7", "192.0.2.1")


def test_what_cannot_be_a_recursor_does_not_keep_the_agent_from_starting(tmp_path):
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver fe80::1%eth0\nnameserver router\nnameserver 10.1.1.1\n")
    assert read_system_resolvers(file) == ("10.1.1.1",)


def test_behind_systemd_resolved_its_own_servers_are_asked(tmp_path):
    file, uplinks = tmp_path / "resolv.conf", tmp_path / "uplinks"
    file.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n")
    assert read_system_resolvers(file, uplinks=uplinks) == ("127.0.0.53",)
    uplinks.write_text("nameserver 127.0.0.1\nnameserver 10.1.1.1\n")
    assert read_system_resolvers(file, uplinks=uplinks) == ("10.1.1.1",)


def definition(**values):
    return definitions.parse(settings(**values).config)


def test_definitions_in_either_form():
    found = definition(
        service=[{"name": "web", "port": 80, "tags": ["a"], "check": {"http": "http://x/", "interval": "10s", "success_before_passing": 2}}],
        services=[{"name": "db", "id": "db1", "checks": [{"id": "c", "ttl": "5s"}, {"tcp": "x:1", "interval": "1s"}]}],
        check=[{"name": "disk", "ttl": "1m"}],
    )  # fmt: skip
    db, web = found.services
    assert (db.service.id, [c.check_id for c in db.checks]) == ("db1", ["c", ""])
    assert web.checks[0].definition.success_before_passing == 2
    assert {one.service.owner for one in found.services} == {"config"}
    assert [one.name for one in found.checks] == ["disk"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"service": [{"port": 1}]}, "Service name missing"),
        ({"service": [{"name": "x", "check": {"http": "http://x/"}}]}, "Interval must be > 0"),
        (
            {"service": [{"name": "x", "check": {"args": ["true"], "interval": "1s"}}]},
            "Scripts are disabled on this agent",
        ),
        ({"check": [{"ttl": "1s"}]}, "Missing check name"),
        ({"service": [{"name": "x", "meta": {"a b": "c"}}]}, "Key contains invalid characters"),
    ],
)
def test_definitions_that_are_refused(values, message):
    with pytest.raises(Malformed, match=message):
        definition(**values)
    if "args" in str(values):
        assert definition(**values, enable_local_script_checks=True).services


@pytest.mark.parametrize(
    ("values", "role"),
    [
        ({}, "single"),
        ({"server": True}, "single"),
        ({"bootstrap": True}, "single"),
        ({"bootstrap_expect": 1}, "server"),
        ({"bootstrap_expect": 3, "retry_join": ["192.0.2.1"]}, "server"),
        ({"server": True, "retry_join": ["192.0.2.1"]}, "server"),
        ({"retry_join": ["192.0.2.1"]}, "client"),
        ({"start_join": ["192.0.2.1"]}, "client"),
        ({"server": False}, "client"),
    ],
)
def test_what_a_machine_is_follows_from_how_it_is_started(tmp_path, values, role):
    assert resolve({"data_dir": str(tmp_path), **values}).role == role


@pytest.mark.parametrize("values", [{"bootstrap_expect": 3}, {"retry_join": ["192.0.2.1"]}])
def test_what_keeps_nothing_joins_nobody(values):
    with pytest.raises(Malformed, match="dev"):
        resolve(values, dev=True)
