"""What to change so that containers resolve the names of the domain: `dns` of the Docker engine. Pure.

Source: dockerd's reference, "Daemon configuration file". `dns` is not among the keys read on SIGHUP, and a key that is
given both there and as a flag keeps the engine from starting.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Final

from waypost.base.errors import Rejected
from waypost.drivers.host import daemon_json
from waypost.drivers.host.owner import is_loopback
from waypost.drivers.host.records import DNS_PORT, AgentDns, Edit, Facts, Plan, Step, Wanted
from waypost.drivers.host.resolver import upstreams, without_own

KEY: Final = "dns"
_BOM: Final = "\ufeff"
PROGRAMS: Final = ("docker", "dockerd")


def has_docker(facts: Facts, wanted: Wanted) -> bool:
    """Tell whether there is an engine on this machine, or settings for one."""
    return bool(
        facts.dockerd
        or facts.programs & set(PROGRAMS)
        or facts.files.get(wanted.docker_config) is not None
    )


def flag_of(command: Sequence[str], name: str) -> str:
    """Return the value of a flag on dockerd's command line, "" without it."""
    for word, following in zip_longest(command, command[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        if flag == f"--{name}":
            return value if equals else following
    return ""


def engine_servers(value: Any) -> tuple[str, ...]:
    """Return the addresses of a value of `dns`."""
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def plan_docker(facts: Facts, wanted: Wanted) -> Plan:
    """Return the change of daemon.json. Raises Rejected, Malformed."""
    path = wanted.docker_config
    by_flag = flag_of(facts.dockerd, KEY)
    if by_flag:
        raise Rejected(
            f"The Docker engine was started with --dns={by_flag}, and does not start when {path} has dns as well."
            " Take the flag out of its command line, or put the agent's address there."
        )
    before = facts.files.get(path)
    text = facts.text(path)
    plain = text.removeprefix(_BOM)
    bom = text[: len(text) - len(plain)]
    old = engine_servers(daemon_json.value_of(plain, KEY, name=path))
    agent = _reached_by_containers(facts, wanted, old)
    after = bom + daemon_json.with_value(plain, KEY, [agent.address], name=path)
    others = without_own(old, facts)
    known = tuple(dict.fromkeys((*others, *upstreams(facts))))
    if not agent.forwards and known and not wanted.force:
        raise Rejected(
            f"The agent at {agent.address} asks no recursors, so containers would resolve nothing outside {wanted.domain}."
            f" Start the agent again: on port 53 it takes the name servers of /etc/resolv.conf ({', '.join(known)}), or name them"
            " with -recursor. (-force does it nevertheless.)"
        )
    data = after.encode("utf-8", "surrogateescape")
    if data == before:
        return Plan(notes=(f"Containers ask {agent.address} already.",))
    notes = [
        f"Containers will ask {agent.address}; those that run now when they are started again."
    ]
    if others:
        notes.append(
            f"{', '.join(others)} gives way: some programs ask all servers at once and take the first"
            ' "no such name". The agent asks its own recursors for other names.'
        )
    return Plan(
        edits=(Edit(part="docker", path=path, before=before, after=data),),
        steps=(_restart(facts),) if facts.dockerd else (),
        notes=tuple(notes),
    )


def _reached_by_containers(facts: Facts, wanted: Wanted, old: Sequence[str]) -> AgentDns:
    """Return where containers ask: where they do so far if an agent answers there, else at Docker's bridge, whose address
    does not change, else at the machine's own.
    """
    asked = [wanted.docker_address] if wanted.docker_address else _own_addresses(facts, wanted)
    for address in (*(() if wanted.docker_address else old), *asked):
        if address == wanted.docker_address and is_loopback(address):
            raise Rejected(f"-docker-address: {address} leads a container to itself")
        for one in facts.answers:
            if (one.address, one.port) == (address, DNS_PORT):
                return one
    if wanted.docker_address and wanted.port == DNS_PORT:
        return AgentDns(address=wanted.docker_address, port=DNS_PORT, forwards=True)
    if not asked:
        raise Rejected(
            "This machine has no address that containers could ask; give -docker-address."
        )
    own = [one.address for one in facts.answers] or ["127.0.0.1"]
    listen = " ".join(f"{address}:53" for address in dict.fromkeys((own[0], asked[0])))
    raise Rejected(
        f"Containers reach this machine at {' or '.join(asked)}, where no agent answers DNS on port 53 (Docker's dns cannot name"
        f' a port). Start it with -client=0.0.0.0 -dns-port=53, or with "addresses": {{"dns": "{listen}"}}'
        " in its configuration, and repeat this; -only host sets up the host alone."
    )


def _own_addresses(facts: Facts, wanted: Wanted) -> list[str]:
    candidates = (facts.bridge_address, wanted.address, facts.node_address)
    return list(dict.fromkeys(one for one in candidates if one and not is_loopback(one)))


def _restart(facts: Facts) -> Step:
    argv: tuple[str, ...] = ()
    if facts.is_systemd:
        argv = ("systemctl", "restart", "docker")
    elif "service" in facts.programs:
        argv = ("service", "docker", "restart")
    return Step(
        part="docker",
        what="restart the Docker engine",
        argv=argv,
        why="it reads dns only then; containers stop meanwhile unless live-restore is on",
        is_asked=True,
    )
