"""What to change so that the programs of this machine resolve the names of the domain. Pure.

Whoever keeps /etc/resolv.conf is told in its own way, so that the change survives a new lease, a restart and an
update. Where only the domain's names can be sent to us, any port will do; where we stand first for all names,
resolv.conf(5) has no place for a port, and it must be 53.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from waypost.base.errors import Rejected
from waypost.drivers.host import resolv_conf
from waypost.drivers.host.owner import STUB_ADDRESSES, UPLINK_FILE, Owner, is_loopback, owner
from waypost.drivers.host.records import (
    DNS_PORT,
    MADE_BY,
    RESOLV_CONF,
    AgentDns,
    Edit,
    Facts,
    Plan,
    Step,
    Wanted,
)

RESOLVED_DROP_IN: Final = "/etc/systemd/resolved.conf.d/waypost.conf"
RESOLVED_CONF: Final = "/etc/systemd/resolved.conf"
DNSMASQ_DROP_IN: Final = "/etc/dnsmasq.d/waypost.conf"
NM_DNSMASQ_DROP_IN: Final = "/etc/NetworkManager/dnsmasq.d/waypost.conf"
NM_DROP_IN: Final = "/etc/NetworkManager/conf.d/90-waypost.conf"
RESOLVCONF_HEAD: Final = "/etc/resolvconf/resolv.conf.d/head"
OPENRESOLV_CONF: Final = "/etc/resolvconf.conf"
DHCPCD_HEAD: Final = "/etc/resolv.conf.head"
DHCLIENT_CONF: Final = "/etc/dhcp/dhclient.conf"

_RESOLVED_WITH_PORTS: Final = 246
"""The first systemd whose `DNS=` takes a port."""
_ANY_PORT: Final = (Owner.RESOLVED, Owner.DNSMASQ, Owner.NM_DNSMASQ)
_DNS_SETTING: Final = re.compile(r"^[ \t]*DNS[ \t]*=[ \t]*(.*)$", re.MULTILINE)


def upstreams(facts: Facts) -> tuple[str, ...]:
    """Return the name servers this machine asks for other names, without its own addresses."""
    servers = resolv_conf.nameservers(facts.text(RESOLV_CONF))
    if set(servers) & set(STUB_ADDRESSES):
        servers = resolv_conf.nameservers(facts.text(UPLINK_FILE))
    return without_own(servers, facts)


def without_own(servers: Iterable[str], facts: Facts) -> tuple[str, ...]:
    """Return the servers that are neither this machine nor an agent."""
    own = {facts.node_address, facts.bridge_address, *(one.address for one in facts.answers)}
    return tuple(dict.fromkeys(one for one in servers if one not in own and not is_loopback(one)))


def choose(facts: Facts, wanted: Wanted, *, needs_53: bool, why: str) -> AgentDns:
    """Return where to ask the agent. Raises Rejected that says what is missing.

    Who names address and port means it, whether an agent answers there yet or not.
    """
    fitting = [
        one
        for one in facts.answers
        if wanted.address in ("", one.address) and wanted.port in (0, one.port)
    ]
    asked_now = resolv_conf.nameservers(facts.text(RESOLV_CONF))[:1]
    for one in sorted(fitting, key=lambda one: (one.address,) != asked_now):
        if one.port == DNS_PORT or not needs_53:
            return one
    if fitting or (needs_53 and wanted.port not in (0, DNS_PORT)):
        port = fitting[0].port if fitting else wanted.port
        raise Rejected(
            f"The agent answers DNS on port {port}, but {why}. Start it with -dns-port=53"
            " (ports.dns in its configuration) and repeat this."
        )
    if wanted.address and wanted.port:
        return AgentDns(address=wanted.address, port=wanted.port, forwards=True)
    place = wanted.address or "this machine"
    ports = wanted.port or "53 or 8600"
    raise Rejected(
        f"No agent answers DNS for {wanted.domain} at {place}, port {ports}. Start it first; or give both -address and -port"
        " to set up for one that is started later."
    )


def plan_host(facts: Facts, wanted: Wanted) -> Plan:
    """Return the change for whoever keeps resolv.conf. Raises Rejected, Malformed."""
    who = owner(facts)
    can_name_port = who in _ANY_PORT and not (
        who is Owner.RESOLVED and 0 < facts.systemd_version < _RESOLVED_WITH_PORTS
    )
    agent = choose(facts, wanted, needs_53=not can_name_port, why=_needs_53(who, facts))
    plan = _PLANS[who](facts, wanted, agent)
    notes = (f"/etc/resolv.conf is kept by {who.value}.", *plan.notes)
    return Plan(edits=plan.edits, steps=plan.steps, notes=notes)


def _needs_53(who: Owner, facts: Facts) -> str:
    if who is Owner.RESOLVED:
        return f"systemd {facts.systemd_version} cannot ask on another port than 53 ({_RESOLVED_WITH_PORTS} can)"
    return "resolv.conf cannot name a port"


def _resolved(facts: Facts, wanted: Wanted, agent: AgentDns) -> Plan:
    place = agent.address
    if agent.port != DNS_PORT:
        place = f"[{place}]:{agent.port}" if ":" in place else f"{place}:{agent.port}"
    others = _resolved_servers(facts)
    lines = [MADE_BY, "[Resolve]\n"]
    notes: list[str] = []
    if others:
        if not agent.forwards and not wanted.force:
            raise Rejected(
                f"systemd-resolved has name servers of its own ({', '.join(others)}), which it would ask for names of"
                f" {wanted.domain} as well, so they must give way; but the agent at {agent.address} asks no recursors. Start it"
                f" with {_as_flags(others)} and repeat this."
            )
        lines.append("DNS=\n")
        notes.append(
            f"systemd-resolved asks the agent instead of {', '.join(others)}. Have the agent started with"
            f" {_as_flags(others)} from now on: it can no longer find that out by itself."
        )
    lines += [f"DNS={place}\n", f"Domains=~{wanted.domain}\n"]
    return Plan(
        edits=_whole(facts, RESOLVED_DROP_IN, "".join(lines)),
        steps=(_service(facts, "restart", "systemd-resolved"),),
        notes=tuple(notes),
    )


def _resolved_servers(facts: Facts) -> tuple[str, ...]:
    """Return the servers that resolved's own settings name, in whatever file."""
    found: list[str] = []
    for path in sorted(facts.files):
        if path == RESOLVED_CONF or (
            path.startswith("/etc/systemd/resolved.conf.d/") and path != RESOLVED_DROP_IN
        ):
            for setting in _DNS_SETTING.findall(facts.text(path)):
                found = [*found, *setting.split()] if setting.split() else []
    return tuple(found)


def _resolved_direct(facts: Facts, wanted: Wanted, agent: AgentDns) -> Plan:
    _ = wanted
    text = f"{MADE_BY}[Resolve]\nDNS={agent.address}\n"
    return Plan(
        edits=_whole(facts, RESOLVED_DROP_IN, text),
        steps=(_service(facts, "restart", "systemd-resolved"),),
        notes=_about_forwarding(facts, agent),
    )


def _dnsmasq(facts: Facts, wanted: Wanted, agent: AgentDns) -> Plan:
    return Plan(
        edits=_whole(facts, DNSMASQ_DROP_IN, _dnsmasq_text(wanted, agent)),
        steps=(_service(facts, "restart", "dnsmasq"),),
    )


def _nm_dnsmasq(facts: Facts, wanted: Wanted, agent: AgentDns) -> Plan:
    return Plan(
        edits=_whole(facts, NM_DNSMASQ_DROP_IN, _dnsmasq_text(wanted, agent)),
        steps=(_service(facts, "restart", "NetworkManager"),),
    )


def _dnsmasq_text(wanted: Wanted, agent: AgentDns) -> str:
    # With stop-dns-rebind dnsmasq throws away answers with private addresses, and ours are such.
    return (
        f"{MADE_BY}server=/{wanted.domain}/{agent.address}#{agent.port}\n"
        f"rebind-domain-ok=/{wanted.domain}/\n"
    )


def _network_manager(facts: Facts, wanted: Wanted, agent: AgentDns) -> Plan:
    _ = wanted
    servers = (agent.address, *upstreams(facts))
    searched = resolv_conf.searched(facts.text(RESOLV_CONF))
    text = (
        f"{MADE_BY}[global-dns]\n"
        + (f"searches={','.join(searched)}\n" if searched else "")
        + f"\n[global-dns-domain-*]\nservers={','.join(servers)}\n"
    )
    note = (
        "NetworkManager writes these name servers from now on, whatever network it joins. A machine that moves between"
        " networks should use systemd-resolved or dnsmasq with it; then only the domain's names come here."
    )
    return Plan(
        edits=_whole(facts, NM_DROP_IN, text),
        steps=(_service(facts, "reload", "NetworkManager"),),
        notes=(note, *_about_forwarding(facts, agent)),
    )


def _resolvconf(facts: Facts, wanted: Wanted, agent: AgentDns) -> Plan:
    _ = wanted
    return _put_first(facts, agent, RESOLVCONF_HEAD, step=_resolvconf_update(facts))


def _openresolv(facts: Facts, wanted: Wanted, agent: AgentDns) -> Plan:
    _ = wanted
    text = facts.text(OPENRESOLV_CONF)
    if text and not text.endswith("\n"):
        text += "\n"
    text += f'{resolv_conf.MARK}name_servers="{agent.address}${{name_servers:+ $name_servers}}"\n'
    return Plan(
        edits=_whole(facts, OPENRESOLV_CONF, text),
        steps=(_resolvconf_update(facts),),
        notes=_about_forwarding(facts, agent),
    )


def _dhcpcd(facts: Facts, wanted: Wanted, agent: AgentDns) -> Plan:
    head = _put_first(facts, agent, DHCPCD_HEAD)
    now = _plain(facts, wanted, agent)
    return Plan(edits=(*head.edits, *now.edits), notes=now.notes)


def _plain(facts: Facts, wanted: Wanted, agent: AgentDns) -> Plan:
    _ = wanted
    text = facts.text(RESOLV_CONF)
    plan = _put_first(facts, agent, RESOLV_CONF)
    edits, notes = list(plan.edits), list(plan.notes)
    servers = resolv_conf.nameservers(resolv_conf.put_first(text, agent.address))
    if len(servers) > resolv_conf.MAX_NAMESERVERS:
        beyond = ", ".join(servers[resolv_conf.MAX_NAMESERVERS :])
        notes.append(
            f"Programs ask the first three name servers only; {beyond} is left to the agent."
        )
    if resolv_conf.rotates(text) and len(servers) > 1:
        notes.append(
            "`options rotate` goes: the other name servers do not know the domain and would be asked in turns with the agent."
        )
    if "dhclient" in facts.processes:
        edits += _dhclient(facts, agent)
    return Plan(edits=tuple(edits), notes=tuple(notes))


def _dhclient(facts: Facts, agent: AgentDns) -> tuple[Edit, ...]:
    """Each new lease writes resolv.conf; this puts us first in it again."""
    if ":" in agent.address:  # the option of DHCPv4
        return ()
    line = f"prepend domain-name-servers {agent.address};\n"
    text = facts.text(DHCLIENT_CONF)
    if line in text:
        return ()
    if text and not text.endswith("\n"):
        text += "\n"
    return _whole(facts, DHCLIENT_CONF, f"{text}{resolv_conf.MARK}{line}")


def _put_first(facts: Facts, agent: AgentDns, path: str, *, step: Step | None = None) -> Plan:
    return Plan(
        edits=_whole(facts, path, resolv_conf.put_first(facts.text(path), agent.address)),
        steps=(step,) if step else (),
        notes=_about_forwarding(facts, agent),
    )


_PLANS: Final[Mapping[Owner, Callable[[Facts, Wanted, AgentDns], Plan]]] = {
    Owner.RESOLVED: _resolved,
    Owner.RESOLVED_DIRECT: _resolved_direct,
    Owner.DNSMASQ: _dnsmasq,
    Owner.NM_DNSMASQ: _nm_dnsmasq,
    Owner.NETWORK_MANAGER: _network_manager,
    Owner.RESOLVCONF: _resolvconf,
    Owner.OPENRESOLV: _openresolv,
    Owner.DHCPCD: _dhcpcd,
    Owner.NOBODY: _plain,
}


def _about_forwarding(facts: Facts, agent: AgentDns) -> tuple[str, ...]:
    if agent.forwards:
        return ()
    others = upstreams(facts)
    if not others:
        return (
            "The agent asks no recursors, and no other name server is known: only names of the domain resolve.",
        )
    return (
        f"The agent asks no recursors: other names are refused there, then asked of {', '.join(others)}, which takes longer"
        f" and works in glibc only. Started again, the agent asks those itself (or with {_as_flags(others)}).",
    )


def _as_flags(servers: Iterable[str]) -> str:
    return " ".join(f"-recursor={server}" for server in servers)


def _whole(facts: Facts, path: str, text: str) -> tuple[Edit, ...]:
    before, after = facts.files.get(path), text.encode("utf-8", "surrogateescape")
    return () if before == after else (Edit(part="host", path=path, before=before, after=after),)


def _service(facts: Facts, verb: str, unit: str) -> Step:
    argv: tuple[str, ...] = ()
    if facts.is_systemd:
        argv = ("systemctl", verb, unit)
    elif unit == "dnsmasq" and "service" in facts.programs:
        argv = ("service", unit, verb)
    return Step(part="host", what=f"{verb} {unit}", argv=argv, why="it reads its files then")


def _resolvconf_update(facts: Facts) -> Step:
    return Step(
        part="host",
        what="run resolvconf -u",
        argv=("resolvconf", "-u") if "resolvconf" in facts.programs else (),
        why="it writes resolv.conf anew",
    )
