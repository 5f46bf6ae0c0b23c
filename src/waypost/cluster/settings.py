"""What the cluster part of an agent is told."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import msgspec

from waypost.base.errors import Malformed


class ClusterPorts(msgspec.Struct, frozen=True, kw_only=True):
    """The three ports of a member. Names and numbers are Consul's where it has them."""

    cluster: int = 8301
    """`ports.serf_lan`: agents among themselves (HTTPS)."""
    server: int = 8300
    """`ports.server`: the stores of the servers among themselves (raft)."""
    store: int = 8303
    """`ports.store`: the stores for the servers' agents, on loopback and the server's address."""


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine is told about its cluster. `repr` shows no secret."""

    data_dir: Path
    node: str
    node_id: str
    datacenter: str = "dc1"
    address: str
    """The IP address that others reach this machine by."""
    bind: str = ""
    """Where the store listens for other servers; empty: `address`."""
    is_server: bool
    bootstrap_expect: int = 0
    """Servers that form the cluster together; 0 only joins one."""
    join: tuple[str, ...] = ()
    """Addresses of other machines, `HOST` or `HOST:PORT`; the port is this machine's own cluster port by default."""
    retry_join: tuple[str, ...] = ()
    retry_interval_s: float = 30.0
    """How long an address that does not answer rests, at most."""
    retry_max: int = 0
    """After so many rounds in which nobody answered a machine that never met anybody gives up; 0 = never."""
    ports: ClusterPorts = ClusterPorts()
    encrypt: str = ""
    """Base64 of 16, 24 or 32 bytes: authenticates the messages of machines without certificates."""
    join_token: str = ""
    ca_pin: str = ""
    """`sha256:…` of the cluster's authority; a machine that joins refuses any other."""
    open_join: bool = False
    """Let machines join without a token."""
    etcd: str = "etcd"
    heartbeat_ms: int = 100
    election_ms: int = 1000
    quota_bytes: int = 8 << 30
    failed_after_s: float = 2.5
    """A server that was not heard of for this long counts as failed in matters of membership."""
    dead_after_s: float = 72 * 3600.0
    """A failed voter is removed after this long even when nobody is there to replace it. Default: Consul's 72 h."""
    unstarted_after_s: float = 60.0
    """A new member whose store did not start for this long is removed; only one can be new at a time."""
    second_voter_after_s: float = 10.0
    """With two voters the loss of either stops writes: the second waits so long for a third to come along."""
    abandon_after_s: float = 30.0
    """A vote whose proposer is gone may be taken back by all others after this long."""

    def __repr__(self) -> str:
        return f"ClusterSettings(node={self.node!r}, address={self.address!r}, is_server={self.is_server})"

    @property
    def directory(self) -> Path:
        """Where this part keeps its files."""
        return self.data_dir / "cluster"

    def secret(self) -> bytes | None:
        """Return the shared key, None without. Raises Malformed in Consul's words."""
        if not self.encrypt:
            return None
        try:
            key = base64.b64decode(self.encrypt, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise Malformed(f"encrypt: the key is not base64: {exc}") from exc
        if len(key) not in (16, 24, 32):
            raise Malformed("encrypt: key size must be 16, 24 or 32 bytes")
        return key


def split_address(text: str, *, port: int) -> tuple[str, int]:
    """Return host and port of `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`. Raises Malformed."""
    rest = text.strip()
    host, number = rest, ""
    if rest.startswith("["):
        host, closing, tail = rest[1:].partition("]")
        if not closing or (tail and not tail.startswith(":")):
            raise Malformed(f'"{text}" is not an address: HOST, HOST:PORT or [IPv6]:PORT')
        number = tail[1:]
    elif rest.count(":") == 1:
        host, _, number = rest.partition(":")
    if not host or any(c.isspace() or c in "/?#@" for c in host):
        raise Malformed(f'"{text}" is not an address: HOST, HOST:PORT or [IPv6]:PORT')
    if not number:
        return host, port
    if not number.isdigit() or not 0 < int(number) < 65536:
        raise Malformed(f'"{text}": {number} is not a port')
    return host, int(number)


def join_host(host: str, port: int) -> str:
    """Return `HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
