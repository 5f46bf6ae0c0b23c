from __future__ import annotations

import json

import msgspec
import pytest

from waypost.base.errors import Malformed, Rejected
from waypost.drivers.host.engine import flag_of, has_docker, plan_docker
from waypost.drivers.host.records import Facts, Wanted

from .machines import ON_53, ON_8600, ON_BRIDGE, ON_NODE, debian

PATH = "/etc/docker/daemon.json"


def machine(settings: str | None = None, **facts: object) -> Facts:
    made = debian(
        **{
            "answers": (ON_53, ON_BRIDGE, ON_NODE),
            "bridge_address": "172.17.0.1",
            "node_address": "10.0.0.5",
            "dockerd": ("/usr/bin/dockerd", "-H", "fd://"),
            "is_systemd": True,
        }
        | facts
    )
    files = {**made.files, PATH: None if settings is None else settings.encode()}
    return msgspec.structs.replace(made, files=files)


@pytest.mark.parametrize(
    ("facts", "wanted", "address"),
    [
        (machine(), Wanted(), "172.17.0.1"),
        (machine(answers=(ON_53, ON_NODE)), Wanted(), "10.0.0.5"),
        (machine(bridge_address=""), Wanted(), "10.0.0.5"),
        (machine(), Wanted(docker_address="10.0.0.5"), "10.0.0.5"),
        (machine(answers=()), Wanted(docker_address="10.9.9.9", port=53), "10.9.9.9"),
    ],
)
def test_containers_ask_where_they_reach_the_agent(facts, wanted, address):
    (edit,) = plan_docker(facts, wanted).edits
    assert (edit.path, edit.part, edit.before) == (PATH, "docker", None)
    assert json.loads(edit.after or b"") == {"dns": [address]}


@pytest.mark.parametrize(
    ("facts", "wanted", "words"),
    [
        (
            machine(answers=(ON_8600,)),
            Wanted(),
            "at 172.17.0.1 or 10.0.0.5, where no agent answers DNS on port 53",
        ),
        (
            machine(answers=(ON_8600,)),
            Wanted(),
            '"addresses": {"dns": "127.0.0.1:53 172.17.0.1:53"}',
        ),
        (
            machine(answers=(ON_53,), bridge_address="", node_address=""),
            Wanted(),
            "give -docker-address",
        ),
        (machine(), Wanted(docker_address="127.0.0.1"), "leads a container to itself"),
        (machine(dockerd=("dockerd", "--dns", "8.8.8.8")), Wanted(), "started with --dns=8.8.8.8"),
        (machine(dockerd=("dockerd", "--dns=8.8.8.8")), Wanted(), "started with --dns=8.8.8.8"),
        (
            machine(answers=(msgspec.structs.replace(ON_BRIDGE, forwards=False),)),
            Wanted(),
            "containers would resolve nothing outside consul",
        ),
    ],
)
def test_what_is_missing_is_said(facts, wanted, words):
    with pytest.raises(Rejected) as caught:
        plan_docker(facts, wanted)
    assert words in str(caught.value)


def test_an_agent_without_recursors_will_do_where_there_are_no_other_servers():
    mute = msgspec.structs.replace(ON_BRIDGE, forwards=False)
    closed = debian("", answers=(mute,), bridge_address="172.17.0.1")
    assert plan_docker(closed, Wanted()).edits
    assert plan_docker(machine(answers=(mute,)), Wanted(force=True)).edits


def test_other_servers_of_the_engine_give_way_and_are_named():
    plan = plan_docker(machine('{"dns": ["8.8.8.8"], "x": 1}'), Wanted())
    assert plan.edits[0].after == b'{"dns": ["172.17.0.1"], "x": 1}'
    assert any("8.8.8.8 gives way" in note for note in plan.notes)


def test_a_mark_of_byte_order_and_bytes_that_are_no_text_stay():
    facts = machine("")
    data = b'\xef\xbb\xbf{"a": "\xff"}'
    facts = msgspec.structs.replace(facts, files={**facts.files, PATH: data})
    assert plan_docker(facts, Wanted()).edits[0].after == (
        b'\xef\xbb\xbf{"dns": ["172.17.0.1"], "a": "\xff"}'
    )


@pytest.mark.parametrize("address", ["172.17.0.1", "10.0.0.5"])
def test_who_has_it_already_is_left_alone(address):
    mute = tuple(
        msgspec.structs.replace(one, forwards=False) for one in (ON_53, ON_BRIDGE, ON_NODE)
    )
    facts = machine(f'{{"dns": ["{address}"]}}', answers=mute)
    closed = msgspec.structs.replace(facts, files={**facts.files, "/etc/resolv.conf": b""})
    plan = plan_docker(closed, Wanted())
    assert not plan.edits
    assert not plan.steps
    (moved,) = plan_docker(closed, Wanted(docker_address="172.17.0.1")).edits or (None,)
    assert (moved is None) == (address == "172.17.0.1")


def test_invalid_settings_are_refused():
    with pytest.raises(Malformed, match="no valid JSON"):
        plan_docker(machine("{,}"), Wanted())


def test_the_restart_is_only_asked_for():
    (step,) = plan_docker(machine(), Wanted()).steps
    assert step.argv == ("systemctl", "restart", "docker")
    assert step.is_asked
    assert plan_docker(machine(is_systemd=False), Wanted()).steps[0].argv == ()
    assert plan_docker(machine(dockerd=()), Wanted()).steps == ()


def test_whether_there_is_an_engine():
    assert not has_docker(debian(), Wanted())
    assert has_docker(debian(programs=frozenset({"docker"})), Wanted())
    assert has_docker(machine("{}", dockerd=()), Wanted())


@pytest.mark.parametrize(
    ("command", "value"),
    [
        (("dockerd", "--config-file", "/x.json"), "/x.json"),
        (("dockerd", "--config-file=/x.json"), "/x.json"),
        (("dockerd", "--config-files=/x.json"), ""),
        (("dockerd", "--config-file"), ""),
        ((), ""),
    ],
)
def test_flags_of_an_engine(command, value):
    assert flag_of(command, "config-file") == value
