"""What a container should have in the catalog. Pure: container, facts and settings in, registrations out.

The rules are Registrator's; where we differ (`docs/reference/registrator.md` lists it) a setting brings the
old way back if somebody could depend on it. One odd label never costs more than the service it belongs to.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from waypost.base.errors import Malformed
from waypost.drivers.docker.api import Binding, Container, Network, Port, parse_port
from waypost.drivers.docker.labels import (
    Attributes,
    attributes,
    clean_meta,
    entries,
    has_control,
    parse_tags,
    printable,
)
from waypost.drivers.docker.probes import HEALTH_CHECK_PREFIX, Say, Target, checks
from waypost.model.catalog import CRITICAL, PASSING, WARNING, Check, Service

OWNER: Final = "docker"

SuffixRule = Literal["many", "never", "always", "registrator"]
NameSource = Literal["image", "container", "compose", "swarm", "hostname"]
Family = Literal["ipv4", "ipv6"]

_CONSUMED: Final = frozenset({"name", "id", "tags", "ignore", "ip", "internal", "network", "ports"})
"""Attributes that say how to register; everything else but `check_…` becomes metadata."""
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?\Z")
_NAME_MAX_CHARS: Final = 256
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the mapping has to know of this machine."""

    node: str
    """The node's name in the catalog."""
    hostname: str
    """The first part of service ids."""
    ip: str = ""
    """The address other machines reach this one at; empty = clients use the node's address."""
    ipv6: str = ""


class MappingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Registrator's options, and ours."""

    internal: bool = False
    """Register the exposed port and the container's address (`-internal`)."""
    ip: str = ""
    """Replaces the host's address (`-ip`)."""
    explicit: bool = False
    """Only ports whose metadata gives a name (`-explicit`)."""
    ip_label: str = ""
    """Take the address from this container label (`-useIpFromLabel`)."""
    network: str = ""
    """The network whose address is registered with `internal`, unless a label says otherwise."""
    suffix: SuffixRule = "many"
    """When `-<port>` is appended to a name that was not given for one port. `registrator` counts ports that
    are then ignored as well, as Registrator does; `many` counts only those that are registered."""
    name_source: NameSource = "image"
    prefer: Family = "ipv4"
    user_network_ip: bool = False
    """Registrator's way with user networks: published port, but the container's own address."""
    health: bool = True
    """Follow the container's HEALTHCHECK."""
    wait_healthy: bool = False
    """Do not register while the HEALTHCHECK says `starting`."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """One instance with its checks, as it should be in the catalog."""

    service: Service
    checks: tuple[Check, ...] = ()


Reason = Literal["added", "ignored", "problem"]


class Note(msgspec.Struct, frozen=True):
    """Something to tell in the log: a port that is ignored, or a value that is wrong."""

    reason: Reason
    text: str


class Mapped(msgspec.Struct, frozen=True, kw_only=True):
    """What one container comes to."""

    container_id: str
    name: str
    registrations: tuple[Registration, ...] = ()
    notes: tuple[Note, ...] = ()
    linked_id: str = ""
    """The container whose network it shares: when that changes, this one has to be looked at again."""
    started_at: str = ""


class _Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A port that may become a service."""

    port: Port
    """As exposed; names, ids and port-specific metadata go by it."""
    binding: Binding | None
    """Where it is published; None = nowhere."""
    attrs: Attributes
    internal: bool

    @property
    def registered_port(self) -> int:
        if self.internal or self.binding is None:
            return self.port.number
        return self.binding.host_port


class _Skip(Exception):
    """Do not register this port; the text says why."""


def map_container(
    container: Container,
    *,
    facts: HostFacts,
    settings: MappingSettings,
    linked_to: Container | None = None,
    extra_tags: tuple[str, ...] = (),
) -> Mapped:
    """Return the registrations of a running container, ordered by port, and what the log should say.

    `linked_to` is the container of network mode `container:X`; `extra_tags` are the rendered `-tags`. A
    container that is not serving (stopped, paused, restarting) comes to nothing.
    """
    notes: list[Note] = []
    made: list[Registration] = []
    if container.serving:
        candidates = _candidates(container, settings, notes)
        registering = _registering(candidates, settings, notes)
        many = len(candidates if settings.suffix == "registrator" else registering) > 1
        taken: set[str] = set()
        for one in registering:
            try:
                made.append(
                    _register(
                        container,
                        one,
                        facts=facts,
                        settings=settings,
                        linked_to=linked_to,
                        extra_tags=extra_tags,
                        suffix=settings.suffix == "always" or (many and settings.suffix != "never"),
                        taken=taken,
                        notes=notes,
                    )
                )
            except _Skip as exc:
                notes.append(Note("problem", f"service on port {one.port} not registered: {exc}"))
    if made and settings.health and settings.wait_healthy and _starting(container):
        made = []
        notes = [Note("ignored", "waiting for its HEALTHCHECK")]
    return Mapped(
        container_id=container.id,
        name=container.name,
        registrations=tuple(made),
        notes=tuple(dict.fromkeys(Note(note.reason, printable(note.text)) for note in notes)),
        linked_id=container.linked_id,
        started_at=container.started_at,
    )


def _starting(container: Container) -> bool:
    return container.health is not None and container.health.status == "starting"


# --- which ports -------------------------------------------------------------------------------------------


def _candidates(
    container: Container, settings: MappingSettings, notes: list[Note]
) -> list[_Candidate]:
    found = entries(container.env, container.labels)
    general = attributes(found, "")
    table: dict[Port, tuple[Binding, ...]] = dict(container.published)
    shared = container.network_mode == "host" or bool(container.linked_id)
    if container.network_mode == "none":
        # Nobody can connect to it: Registrator registers every exposed port of it, without an address.
        notes.append(Note("ignored", "no network"))
        return []
    direct = _direct_ports(container)
    for port in container.exposed:
        # On the host's (or another container's) network an exposed port is open as it is.
        table.setdefault(port, (Binding("", port.number),) if shared else ())
    chosen = _chosen_ports(general.get("ports"), notes)
    if chosen is not None:
        for port in chosen - table.keys():
            reachable = shared or _internal(general, settings) or port.number == 0
            table[port] = (Binding("", port.number),) if reachable else ()
        table = {port: bindings for port, bindings in table.items() if port in chosen}
    if not table:
        notes.append(Note("ignored", "no published ports"))
        return []
    out: list[_Candidate] = []
    for port in sorted(table, key=lambda p: (p.number, p.protocol != "tcp", p.protocol)):
        attrs = attributes(found, str(port.number))
        internal = _internal(attrs, settings) or port in direct
        binding = choose_binding(table[port], prefer=settings.prefer)
        if binding is None and not internal:
            notes.append(Note("ignored", f"port {port.number} not published on host"))
            continue
        out.append(_Candidate(port=port, binding=binding, attrs=attrs, internal=internal))
    return out


def _direct_ports(container: Container) -> frozenset[Port]:
    """Return the exposed ports on a network that has no publishing at all (macvlan, ipvlan).

    A bridge lists every exposed port, published or not. There the container's own address is the one that
    other machines reach, which is what Registrator registers too.
    """
    if container.network_mode in ("host", "none", "bridge", "default", "") or container.linked_id:
        return frozenset()
    return frozenset(container.exposed) - container.published.keys()


def _internal(attrs: Attributes, settings: MappingSettings) -> bool:
    text = attrs.get("internal")
    return text.strip().lower() not in _FALSE if text else settings.internal


def _chosen_ports(text: str, notes: list[Note]) -> frozenset[Port] | None:
    """Return the ports of `SERVICE_PORTS=80,53/udp`, or None when it does not say. `0` = a service without port."""
    if not text.strip():
        return None
    chosen: set[Port] = set()
    for item in (part.strip() for part in text.split(",")):
        port = Port(0) if item == "0" else parse_port(item)
        if port is not None and port.protocol in ("tcp", "udp", "sctp"):
            chosen.add(port)
        elif item:
            notes.append(Note("problem", f"SERVICE_PORTS: {item!r} is not a port"))
    return frozenset(chosen)


def choose_binding(bindings: Iterable[Binding], *, prefer: Family) -> Binding | None:
    """Return the binding to register: not loopback before loopback, then the family, then Docker's order."""

    def rank(binding: Binding) -> tuple[bool, bool]:
        is_v6 = ":" in binding.host_ip
        return _is_loopback(binding.host_ip), is_v6 != (prefer == "ipv6")

    return min(bindings, key=rank, default=None)


def _registering(
    candidates: list[_Candidate], settings: MappingSettings, notes: list[Note]
) -> list[_Candidate]:
    out: list[_Candidate] = []
    for one in candidates:
        # Any value: Registrator reads IGNORE=false as "ignore" too.
        if one.attrs.get("ignore"):
            notes.append(Note("ignored", f"service on port {one.port.number}"))
        elif settings.explicit and not one.attrs.get("name"):
            notes.append(Note("ignored", f"port {one.port.number} has no SERVICE_NAME"))
        else:
            out.append(one)
    return out


# --- one service -------------------------------------------------------------------------------------------


def _register(
    container: Container,
    one: _Candidate,
    *,
    facts: HostFacts,
    settings: MappingSettings,
    linked_to: Container | None,
    extra_tags: tuple[str, ...],
    suffix: bool,
    taken: set[str],
    notes: list[Note],
) -> Registration:
    def say(text: str) -> None:
        notes.append(Note("problem", f"service on port {one.port}: {text}"))

    name = _name(container, one, settings, suffix=suffix)
    service_id = _service_id(container, one, facts, taken)
    tags = _tags(one, extra_tags, say)
    address = _address(container, one, facts=facts, settings=settings, linked_to=linked_to, say=say)
    meta, changes = clean_meta(
        {
            key: value
            for key, value in one.attrs.values.items()
            if key not in _CONSUMED and not key.startswith("check_")
        }
    )
    for change in changes:
        say(change)
    taken.add(service_id)
    target = Target(
        node=facts.node,
        service_id=service_id,
        service_name=name,
        service_tags=tags,
        address=address or facts.ip,
        port=one.registered_port,
        exposed_port=one.port.number,
        container_id=container.id,
    )
    made = checks(one.attrs.values, target, say)
    if settings.health and container.health is not None:
        made += (_health_check(container, one, target),)
    return Registration(
        service=Service(
            node=facts.node,
            id=service_id,
            name=name,
            tags=tags,
            address=address,
            port=one.registered_port,
            meta=meta or None,
            owner=OWNER,
        ),
        checks=made,
    )


def default_name(image: str) -> str:
    """Return the last path segment of an image reference up to the first colon."""
    return image.rsplit("/", 1)[-1].split(":", 1)[0]


def _name(container: Container, one: _Candidate, settings: MappingSettings, *, suffix: bool) -> str:
    name = one.attrs.get("name") or _source_name(container, settings.name_source)
    if suffix and "name" not in one.attrs.from_port:
        name = f"{name}-{one.port.number}"
    _check_name("name", name)
    return name


def _source_name(container: Container, source: NameSource) -> str:
    found = {
        "container": container.name,
        "compose": container.labels.get("com.docker.compose.service", ""),
        "swarm": container.labels.get("com.docker.swarm.service.name", ""),
        "hostname": container.hostname,
    }.get(source, "")
    return found or default_name(container.image)


def _check_name(what: str, text: str) -> None:
    if not text.strip():
        raise _Skip(f"its {what} is empty")
    if has_control(text):
        raise _Skip(f"its {what} {text!r} has control characters")
    if len(text) > _NAME_MAX_CHARS:
        raise _Skip(f"its {what} is longer than {_NAME_MAX_CHARS} characters")


def _service_id(container: Container, one: _Candidate, facts: HostFacts, taken: set[str]) -> str:
    given = one.attrs.get("id")
    if given:
        _check_name("SERVICE_ID", given)
        if given in taken:
            raise _Skip(f"SERVICE_ID {given!r} is already taken by another port of the container")
        return given
    owner = facts.hostname or facts.ip
    made = f"{owner}:{container.name}:{one.port.number}"
    if one.port.protocol == "udp":
        made += ":udp"
    if made in taken:  # 80/sctp beside 80/tcp: Registrator lets the one overwrite the other
        made += f":{one.port.protocol}"
    return made


def _tags(one: _Candidate, extra: tuple[str, ...], say: Say) -> tuple[str, ...]:
    tags = [*parse_tags(one.attrs.get("tags")), *extra]
    if one.port.protocol == "udp":
        tags.append("udp")
    good = tuple(tag for tag in tags if not has_control(tag))
    if len(good) != len(tags):
        say("tags with control characters dropped")
    return good


def _health_check(container: Container, one: _Candidate, target: Target) -> Check:
    health = container.health
    assert health is not None
    status = PASSING if health.status == "healthy" else CRITICAL
    initial = one.attrs.get("check_initial_status")
    if health.status == "starting" and initial in (PASSING, WARNING, CRITICAL):
        status = initial
    return Check(
        node=target.node,
        check_id=HEALTH_CHECK_PREFIX + target.service_id,
        name="Docker HEALTHCHECK",
        status=status,
        output=health.output or health.status,
        service_id=target.service_id,
        service_name=target.service_name,
        service_tags=target.service_tags,
        type="docker",
        owner=OWNER,
    )


# --- the address -------------------------------------------------------------------------------------------


def _address(
    container: Container,
    one: _Candidate,
    *,
    facts: HostFacts,
    settings: MappingSettings,
    linked_to: Container | None,
    say: Say,
) -> str:
    explicit = one.attrs.get("ip").strip()
    if explicit:
        return _valid_address("SERVICE_IP", explicit)
    if container.linked_id:
        return _linked_address(one, facts=facts, settings=settings, linked_to=linked_to)
    if settings.ip_label:
        given = container.labels.get(settings.ip_label)
        if given is None:
            say(f"label {settings.ip_label!r} not found in container configuration")
        else:
            try:
                return _valid_address(settings.ip_label, given.rpartition("/")[0] or given)
            except _Skip as exc:
                say(f"{exc}; using the ordinary address")
    if one.internal:
        return _container_address(container, one.attrs, facts=facts, settings=settings)
    if settings.ip:
        return settings.ip
    user_network = container.network_mode not in ("bridge", "default", "host", "")
    if settings.user_network_ip and user_network:
        return _container_address(container, one.attrs, facts=facts, settings=settings)
    return _host_address(one.binding.host_ip if one.binding else "", facts)


def _host_address(host_ip: str, facts: HostFacts) -> str:
    if host_ip in ("", "0.0.0.0"):
        return facts.ip
    if host_ip == "::":
        return facts.ipv6 or facts.ip
    return host_ip


def _linked_address(
    one: _Candidate, *, facts: HostFacts, settings: MappingSettings, linked_to: Container | None
) -> str:
    if linked_to is None:
        raise _Skip("the container whose network it shares is not there")
    if linked_to.network_mode == "host":
        return settings.ip or _host_address("", facts)
    return _container_address(linked_to, one.attrs, facts=facts, settings=settings)


def _container_address(
    container: Container, attrs: Attributes, *, facts: HostFacts, settings: MappingSettings
) -> str:
    """Return the container's own address: of the network that is asked for, or of the most likely one."""
    if container.network_mode == "host":
        return _host_address("", facts)
    wanted = attrs.get("network").strip() or settings.network
    having = [net for net in container.networks if net.ipv4 or net.ipv6]
    if wanted:
        having = [net for net in having if net.name == wanted]
        if not having:
            names = ", ".join(net.name for net in container.networks) or "none"
            raise _Skip(f"it has no address on network {wanted!r} (its networks: {names})")
    if not having:
        raise _Skip("it has no address on any network")
    mode = "bridge" if container.network_mode in ("default", "") else container.network_mode
    return _of_family(min(having, key=lambda net: (net.name != mode, net.name)), settings.prefer)


def _of_family(network: Network, prefer: Family) -> str:
    first, second = network.ipv4, network.ipv6
    return (second or first) if prefer == "ipv6" else (first or second)


def parse_address(text: str) -> str:
    """Return an IP address (without brackets, in its usual spelling) or a host name; raises Malformed."""
    text = text.strip()
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        pass
    # A dotted number that is no address (10.0.0.300) would pass as a host name.
    if _HOSTNAME.match(text) and len(text) < 254 and not re.fullmatch(r"[0-9.]+", text):
        return text
    raise Malformed(f"{text!r} is neither an address nor a host name")


def _valid_address(what: str, text: str) -> str:
    try:
        return parse_address(text)
    except Malformed as exc:
        raise _Skip(f"{what} {exc}") from exc


def _is_loopback(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return False


# --- several containers ------------------------------------------------------------------------------------


class Clash(msgspec.Struct, frozen=True):
    """Two containers ask for the same service id; the one that was started last has it."""

    service_id: str
    winner: str
    loser: str


def merge(mapped: Iterable[Mapped]) -> tuple[dict[str, Registration], tuple[Clash, ...]]:
    """Return what all containers together should have, by service id, and who had to give way."""
    out: dict[str, Registration] = {}
    holder: dict[str, Mapped] = {}
    clashes: list[Clash] = []
    for one in sorted(mapped, key=lambda m: (m.started_at, m.container_id)):
        for registration in one.registrations:
            service_id = registration.service.id
            if service_id in holder:
                clashes.append(Clash(service_id, winner=one.name, loser=holder[service_id].name))
            holder[service_id] = one
            out[service_id] = registration
    return out, tuple(clashes)


# --- signals -----------------------------------------------------------------------------------------------

_SIGNALS: Final = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
    "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17,
    "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25,
    "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR": 30, "SYS": 31,
}  # fmt: skip
_RTMIN: Final = 34
_RTMAX: Final = 64


def signal_number(text: str) -> int:
    """Return the Linux number of `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`; raises Malformed."""
    name = text.strip().upper()
    if re.fullmatch(r"[0-9]{1,3}", name):
        return int(name)
    name = name.removeprefix("SIG")
    if name in _SIGNALS:
        return _SIGNALS[name]
    match = re.fullmatch(r"RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?", name)
    if match is not None:
        step = int(match.group(3) or 0) * (-1 if match.group(2) == "-" else 1)
        return (_RTMIN if match.group(1) == "MIN" else _RTMAX) + step
    raise Malformed(f"not a signal: {text!r}")


def is_stop_signal(sent: str, *, stop_signal: str) -> bool:
    """Return whether a `kill` event means that the container is being stopped: its StopSignal, or KILL."""
    try:
        number = signal_number(sent)
    except Malformed:
        return False
    try:
        wanted = signal_number(stop_signal) if stop_signal else _SIGNALS["TERM"]
    except Malformed:
        wanted = _SIGNALS["TERM"]
    return number in (wanted, _SIGNALS["KILL"])


# --- the difference ----------------------------------------------------------------------------------------


class Step(msgspec.Struct, frozen=True):
    """One change to the registry; exactly one of the fields besides `service_id` is set, none = deregister."""

    service_id: str
    register: Registration | None = None
    health: tuple[Check, ...] = ()

    @property
    def adds(self) -> bool:
        """Whether it makes or changes something, rather than taking it out."""
        return self.register is not None or bool(self.health)


def plan(
    desired: Mapping[str, Registration],
    actual: Mapping[str, Registration],
) -> tuple[Step, ...]:
    """Return the least that turns `actual` into `desired`.

    The status of checks that somebody else runs, and outputs, are not compared; of the HEALTHCHECK's own
    check the status is. New instances come before old ones leave.
    """
    adds: list[Step] = []
    drops: list[Step] = []
    for service_id in sorted(desired.keys() | actual.keys()):
        want, have = desired.get(service_id), actual.get(service_id)
        if want is have:
            continue
        if want is None:
            if have is not None:
                drops.append(Step(service_id))
        elif have is None or not same(want, have):
            adds.append(Step(service_id, register=want))
        else:
            statuses = {check.check_id: check.status for check in have.checks}
            changed = tuple(
                check
                for check in want.checks
                if check.definition is None and statuses.get(check.check_id) != check.status
            )
            if changed:
                adds.append(Step(service_id, health=changed))
    return (*adds, *drops)


def same(want: Registration, have: Registration) -> bool:
    """Return whether two registrations differ in nothing but statuses, outputs and what a catalog adds itself."""
    return _stripped_service(want.service) == _stripped_service(have.service) and _shapes(
        want.checks
    ) == _shapes(have.checks)


def _stripped_service(service: Service) -> Service:
    # Tagged addresses are never ours: the catalog derives them from the address.
    return msgspec.structs.replace(
        service, create_index=0, modify_index=0, meta=service.meta or None, tagged_addresses=None
    )


def _shapes(found: Iterable[Check]) -> dict[str, Check]:
    return {
        check.check_id: msgspec.structs.replace(
            check, status=WARNING, output="", create_index=0, modify_index=0
        )
        for check in found
    }
