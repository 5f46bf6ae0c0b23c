"""What the operator can set about DNS. Names, defaults and effects are Consul's `dns_config` unless a text says else."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

import msgspec

from waypost.base.errors import Malformed
from waypost.wire.dns.name import Name, fold, parse_name

DNS_PORT: Final = 53
_MAPPED: Final = bytes(10) + b"\xff\xff"


class SoaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of the SOA record, in seconds. `min_ttl_s` is also the TTL of every SOA, so of negative answers."""

    refresh_s: int = 3600
    retry_s: int = 600
    expire_s: int = 86400
    min_ttl_s: int = 0


class DnsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the DNS surface. Durations in seconds; a TTL is cut to whole seconds."""

    domain: str = "consul."
    """Names in it are answered from the catalog."""
    alt_domain: str = ""
    """A second domain served the same way; SOA, NS and SRV targets name the first one."""
    datacenter: str = "dc1"
    """The datacenter this catalog is of; names of another one do not exist."""
    recursors: tuple[str, ...] = ()
    """Upstreams for everything else: `ADDRESS`, `ADDRESS:PORT` or `[IPv6]:PORT`. None: such questions are REFUSED."""
    recursor_strategy: str = "sequential"
    """`sequential`: in the given order for every query; `random`: in a new random order for every query."""
    recursor_timeout_s: float = 2.0
    """For each upstream."""
    node_ttl_s: float = 0.0
    """Of node and `addr` names, of NS and its addresses."""
    service_ttl_s: Mapping[str, float] = {}
    """By service name, else the longest `prefix*`, else `*`."""
    soa: SoaSettings = SoaSettings()
    only_passing: bool = False
    """Leave out instances with a warning; critical ones are always left out."""
    enable_truncate: bool = False
    """Set TC when answers were left out over UDP, so that clients come back over TCP."""
    udp_answer_limit: int = 3
    """Answers over UDP to a client without EDNS or with a payload of at most 512 bytes; 8 is the most."""
    a_record_limit: int = 0
    """Address records of a service over any transport; 0: no limit."""
    disable_compression: bool = False
    enable_additional_node_meta_txt: bool = True
    """Add the node's metadata as TXT records to the additional section."""
    allow_stale: bool = True
    """Taken for compatibility. Answers come from this agent's view whether there is a leader or not."""
    max_stale_s: float = 87600 * 3600.0
    """Taken for compatibility; see `allow_stale`."""
    use_cache: bool = False
    """Taken for compatibility: the view is in memory anyway."""
    cache_max_age_s: float = 0.0
    """Taken for compatibility; see `use_cache`."""


class Upstream(msgspec.Struct, frozen=True):
    """Where a recursor listens."""

    host: str
    port: int = DNS_PORT


def parse_upstream(text: str) -> Upstream:
    """Return the upstream of `1.1.1.1`, `1.1.1.1:5353`, `2001:db8::1` or `[2001:db8::1]:53`. Raises Malformed."""
    host, colon, port = text.strip(), "", ""
    if host.startswith("[") and "]" in host:
        host, _, rest = host[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    elif host.count(":") == 1:
        host, colon, port = host.partition(":")
    if packed(host) is None:
        msg = f"recursor {text!r}: {host!r} is not an IP address"
        raise Malformed(msg)
    if not colon:
        return Upstream(host)
    if colon != ":" or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        msg = f"recursor {text!r}: {port!r} is not a port"
        raise Malformed(msg)
    return Upstream(host, int(port))


def packed(address: str) -> bytes | None:
    """Return the 4 or 16 bytes of an IP address, None when it is none. An IPv4-mapped one is IPv4, as in Go."""
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        raw = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        # ValueError: text with a NUL or a lone surrogate.
        return None
    return raw[12:] if raw.startswith(_MAPPED) else raw


def domain_name(text: str, *, key: str) -> Name:
    """Return the folded name of a domain setting. Raises Malformed that names `key`."""
    try:
        name = fold(parse_name(text))
    except Malformed as exc:
        msg = f"{key}: {exc}"
        raise Malformed(msg) from exc
    if not name:
        msg = f"{key}: the root cannot be served"
        raise Malformed(msg)
    return name
