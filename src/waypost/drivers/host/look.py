"""One look at this machine: files, processes, addresses, and where an agent answers DNS. Blocking; changes nothing."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from waypost.base.errors import Malformed
from waypost.drivers.host import daemon_json, files, owner, resolver
from waypost.drivers.host.engine import KEY, engine_servers, flag_of
from waypost.drivers.host.records import DNS_PORT, RESOLV_CONF, AgentDns, Facts, Wanted

AGENT_PORT: Final = 8600
"""Where agents answer unless told otherwise."""
DEFAULT_BRIDGE: Final = "docker0"
_PATHS: Final = (
    RESOLV_CONF,
    owner.UPLINK_FILE,
    owner.NM_DNSMASQ_PID,
    *owner.DNSMASQ_PIDS,
    resolver.RESOLVED_CONF,
    resolver.RESOLVED_DROP_IN,
    resolver.DNSMASQ_DROP_IN,
    resolver.NM_DNSMASQ_DROP_IN,
    resolver.NM_DROP_IN,
    resolver.RESOLVCONF_HEAD,
    resolver.OPENRESOLV_CONF,
    resolver.DHCPCD_HEAD,
    resolver.DHCLIENT_CONF,
)
_PROGRAMS: Final = ("systemctl", "service", "resolvconf", "docker", "dockerd")
_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_ANSWER_S: Final = 1.0
_SIOCGIFADDR: Final = 0x8915


def look(
    wanted: Wanted, *, node_address: str, also: Iterable[str] = (), root: Path = Path("/")
) -> Facts:
    """Return what is known of this machine; `also` are further files to read. Raises Malformed for one that cannot be."""
    processes, dockerd = _processes()
    drop_ins = sorted(files.below(root, resolver.RESOLVED_DROP_IN).parent.glob("*.conf"))
    paths = {
        *_PATHS,
        *also,
        wanted.docker_config,
        *("/" + str(p.relative_to(root)) for p in drop_ins),
    }
    contents = {path: files.read(files.below(root, path)) for path in paths}
    settings = _engine_settings(contents.get(wanted.docker_config))
    bridge = flag_of(dockerd, "bridge") or str(settings.get("bridge") or DEFAULT_BRIDGE)
    bridge_address = interface_address(bridge)
    addresses = (
        wanted.address or "127.0.0.1",
        wanted.docker_address or bridge_address,
        node_address,
        *engine_servers(settings.get(KEY)),
    )
    return Facts(
        files=contents,
        resolv_conf="/" + os.path.relpath(os.path.realpath(files.below(root, RESOLV_CONF)), root),
        programs=frozenset(name for name in _PROGRAMS if program(name)),
        processes=processes,
        dockerd=dockerd,
        bridge_address=bridge_address,
        node_address=node_address,
        is_systemd=files.below(root, "/run/systemd/system").is_dir(),
        systemd_version=_systemd_version(),
        answers=_answers(addresses, wanted),
    )


def program(name: str) -> str | None:
    """Return where a program is, also those that only root's path has."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def docker_config_of(command: Sequence[str]) -> str:
    """Return the settings file of the engine with this command line; "" for the usual one."""
    return flag_of(command, "config-file")


def running_dockerd() -> tuple[str, ...]:
    """Return the command line of the engine that runs beside us; empty without one."""
    return _processes()[1]


def ask(domain: str, *, address: str, port: int) -> AgentDns | None:
    """Return what answers for the domain there, None if nothing does.

    Whoever has an SOA of the domain by its own authority is taken for an agent, unless it is a dnsmasq, which passes that
    on from us: to be asked by whom it asks would go in circles. "Recursion available" tells whether it asks recursors.
    """
    query = dns.message.make_query(domain, dns.rdatatype.SOA)
    try:
        reply = dns.query.udp(query, address, port=port, timeout=_ANSWER_S)
    except (dns.exception.DNSException, OSError):
        return None
    is_own = bool(reply.flags & dns.flags.AA)
    if reply.rcode() != dns.rcode.NOERROR or not reply.answer or not is_own:
        return None
    if _is_dnsmasq(address=address, port=port):
        return None
    return AgentDns(
        address=address,
        port=port,
        forwards=bool(reply.flags & dns.flags.RA),
        datacenter=_datacenter(domain, address=address, port=port),
    )


def resolve(name: str, *, at_most_s: float = 20.0) -> tuple[tuple[str, ...], str]:
    """Return the addresses this machine's resolver has for a name, in its order, and why there are none.

    In a process of its own: it reads the resolver's settings as any program does that starts now.
    """
    code = (
        "import socket, sys\n"
        "try:\n"
        "    found = socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)\n"
        "except OSError as exc:\n"
        "    sys.exit(exc.strerror)\n"
        "print(*dict.fromkeys(one[4][0] for one in found))\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, name],
            capture_output=True,
            text=True,
            timeout=at_most_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (), f"no answer within {at_most_s:g} s"
    return tuple(done.stdout.split()), done.stderr.strip()


def _is_dnsmasq(*, address: str, port: int) -> bool:
    query = dns.message.make_query("version.bind", dns.rdatatype.TXT, dns.rdataclass.CH)
    try:
        reply = dns.query.udp(query, address, port=port, timeout=_ANSWER_S)
    except (dns.exception.DNSException, OSError):
        return False
    return any("dnsmasq" in str(record) for answer in reply.answer for record in answer)


def _datacenter(domain: str, *, address: str, port: int) -> str:
    """Return the datacenter of the agent there, from where a server's name is: NODE.node.DATACENTER.DOMAIN."""
    query = dns.message.make_query(f"consul.service.{domain}", dns.rdatatype.SRV)
    with suppress(dns.exception.DNSException, OSError):
        reply = dns.query.udp(query, address, port=port, timeout=_ANSWER_S)
        for record in (one for answer in reply.answer for one in answer):
            found = re.search(
                rf"\.(?:node|addr)\.([a-z0-9_-]+)\.{re.escape(domain)}\.$",
                str(record),
                re.IGNORECASE,
            )
            if found:
                return found.group(1)
    return ""


def _answers(addresses: Iterable[str], wanted: Wanted) -> tuple[AgentDns, ...]:
    # Containers can only ask on port 53, wherever the host asks.
    ports = (wanted.port, DNS_PORT) if wanted.port else (DNS_PORT, AGENT_PORT)
    places = [
        (address, port)
        for address in dict.fromkeys(filter(None, addresses))
        for port in dict.fromkeys(ports)
    ]
    found = (ask(wanted.domain, address=address, port=port) for address, port in places)
    return tuple(one for one in found if one is not None)


def _engine_settings(data: bytes | None) -> dict[str, Any]:
    text = (data or b"").decode("utf-8", "replace").removeprefix("\ufeff")
    with suppress(Malformed):  # whoever is to change the file says so
        return {one.key: one.value for one in daemon_json.members(text, name="")}
    return {}


def interface_address(name: str) -> str:
    """Return the IPv4 address of a network interface, "" without it or one. Source: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, suppress(OSError):
        request = struct.pack("256s", name.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24])
    return ""


def _processes() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the names of the processes in our network namespace, and dockerd's command line.

    Others are those of containers: a dnsmasq in one says nothing about this machine.
    """
    names: set[str] = set()
    dockerd: tuple[str, ...] = ()
    own = Path("/proc/self/ns/net").readlink()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if not _is_beside_us(folder, own):
                continue
            name = (folder / "comm").read_text(errors="replace").strip()
            names.add(name)
            if name == "dockerd":
                words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                dockerd = tuple(word.decode(errors="replace") for word in words)
    return frozenset(names), dockerd


def _is_beside_us(folder: Path, own: Path) -> bool:
    try:
        return (folder / "ns/net").readlink() == own
    except PermissionError:
        return True  # only root may know; most processes are


def _systemd_version() -> int:
    if program("systemctl") is None:
        return 0
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, timeout=5, check=False
        )
        found = re.match(r"systemd (\d+)", done.stdout)
        return int(found.group(1)) if found else 0
    return 0
