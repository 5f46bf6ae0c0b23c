"""`waypost init`."""

from __future__ import annotations

import datetime as dt
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from waypost.cli.agent_flags import no_arguments
from waypost.cli.flags import Command, Settings, UsageError, duration, flag, repeated

if TYPE_CHECKING:
    from waypost.access.pki.issue import Names
    from waypost.access.pki.setup import Setup, Step

SUMMARY = "Set up access control: certificate authority, certificates, keys, kubeconfig files"

DEFAULT_PORT = 8501
_YEAR_S = 365 * 86_400.0


class InitFlags(Settings):
    """Flags of `waypost init`."""

    advertise: tuple[str, ...] = repeated(
        str,
        "Address that other machines reach this one at; may be given several times. The first one goes into the "
        "kubeconfig files. The address of the default route by default.",
        value="ip",
    )
    data_dir: str = flag("", "Data directory of the agent; required.", value="dir")
    datacenter: str = flag(
        "dc1", "Datacenter, for the name server.DATACENTER.DOMAIN.", value="name"
    )
    domain: str = flag("consul", "DNS domain of the agent.", value="domain")
    dry_run: bool = flag(False, "Only print what would be done.")
    endpoint: str = flag(
        "",
        "Stable name or address of all servers, host or host:port, for the kubeconfig files.",
        value="host:port",
    )
    extra_san: tuple[str, ...] = repeated(
        str,
        "Further name or address that the serving certificate is good for; may be given several times.",
        name="extra-san",
        value="name",
    )
    key_algorithm: str = flag(
        "ECDSA-P256",
        "Kind of new keys: ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072, RSA-4096.",
        value="kind",
    )
    node: str = flag("", "Name of this node; the host name by default.", value="name")
    phase: tuple[str, ...] = repeated(
        str, "Only this phase, certs or kubeconfig; may be given several times.", value="phase"
    )
    port: int = flag(DEFAULT_PORT, "HTTPS port of the agents.")
    validity: float = duration(_YEAR_S, "How long new certificates live.", name="validity")


def _init(settings: InitFlags, args: list[str]) -> int:
    no_arguments(args)
    if not settings.data_dir:
        raise UsageError("-data-dir is required, such as -data-dir=/var/lib/waypost")
    from waypost.access.pki.setup import InitSettings, Layout, initialise
    from waypost.base.clock import SystemClock

    layout = Layout(Path(settings.data_dir).absolute())
    addresses = _addresses(settings)
    node = settings.node or socket.gethostname()
    done = initialise(
        InitSettings(
            node=node,
            server=_server(settings, addresses),
            names=_names(settings, node=node, addresses=addresses),
            algorithm=settings.key_algorithm,
            validity_s=_validity_s(settings.validity),
            phases=_phases(settings.phase),
        ),
        layout,
        now_s=SystemClock().wall(),
        dry_run=settings.dry_run,
    )
    _print(done, layout.data_dir, dry_run=settings.dry_run)
    if not settings.dry_run:
        from waypost.cluster.sharing import notes

        for note in notes(layout.data_dir / "cluster"):
            print(f"\n{note}")
    return 0


def _addresses(settings: InitFlags) -> tuple[str, ...]:
    from ipaddress import ip_address

    if not settings.advertise:
        from waypost.agent.config import default_route_address

        found = default_route_address()
        return (found,) if found else ("127.0.0.1",)
    for text in settings.advertise:
        try:
            address = ip_address(text)
        except ValueError as exc:
            raise UsageError(f'-advertise: "{text}" is no IP address') from exc
        if address.is_unspecified:
            raise UsageError(f"-advertise: {text} is no address that others can reach")
    return settings.advertise


def _server(settings: InitFlags, addresses: tuple[str, ...]) -> str:
    if not 0 < settings.port < 65536:
        raise UsageError(f"-port: {settings.port} is no port")
    if settings.endpoint:
        host, port = _split_endpoint(settings.endpoint)
        return f"https://{_bracketed(host)}:{port or settings.port}"
    return f"https://{_bracketed(addresses[0])}:{settings.port}"


def _split_endpoint(endpoint: str) -> tuple[str, int | None]:
    host, port = endpoint, ""
    if endpoint.startswith("["):
        host, _, port = endpoint[1:].partition("]")
        port = port.removeprefix(":")
    elif endpoint.count(":") == 1:
        host, _, port = endpoint.partition(":")
    if not port:
        return host, None
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f'-endpoint: "{endpoint}" is not host:port')
    return host, int(port)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _names(settings: InitFlags, *, node: str, addresses: tuple[str, ...]) -> Names:
    from waypost.access.pki.issue import Names

    domain = settings.domain.strip(".")
    endpoint = [_split_endpoint(settings.endpoint)[0]] if settings.endpoint else []
    return Names.of(
        [
            node,
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            f"server.{settings.datacenter}.{domain}",
            f"{domain}.service.{domain}",
            *endpoint,
            *settings.extra_san,
            "127.0.0.1",
            "::1",
            *addresses,
        ]
    )


def _validity_s(validity_s: float) -> float:
    if validity_s < 3600:
        raise UsageError("-validity: certificates have to live for an hour at least")
    return validity_s


def _phases(given: tuple[str, ...]) -> tuple[str, ...]:
    from waypost.access.pki.setup import PHASES

    for one in given:
        if one not in PHASES:
            raise UsageError(f'-phase: there is no "{one}"; known are {", ".join(PHASES)}')
    return given or PHASES


_VERBS = {
    "certs": {"created": "Generating", "kept": "Using existing", "reissued": "Re-issuing"},
    "kubeconfig": {"created": "Writing", "kept": "Using existing", "reissued": "Writing"},
}
_NOUNS = {
    "ca": "certificate authority and key",
    "apiserver": "serving certificate and key",
    "sa": "key pair for service account tokens",
}


def _print(done: Setup, folder: Path, *, dry_run: bool) -> None:
    if dry_run:
        print("Dry run: nothing is written.")
    for step in done.steps:
        print(_line(step, folder))
        if step.name == "apiserver":
            print(f"[certs] The serving certificate is good for {', '.join(done.names)}")
    for warning in done.warnings:
        print(f"Warning: {warning}")
    if dry_run:
        return
    changed = any(step.action != "kept" for step in done.steps)
    print("\nAccess control is set up." if changed else "\nEverything was there already.")
    print(f"""
To use it:

    export KUBECONFIG={folder / "operator.conf"}
    kubectl get clusterroles

{folder / "admin.conf"} is in system:masters, which no policy can take anything from:
keep it offline, for emergencies. The authority's public key is

    {done.pin}""")


def _line(step: Step, folder: Path) -> str:
    noun = _NOUNS.get(step.name, "kubeconfig file")
    paths = ", ".join(str(path.relative_to(folder)) for path in step.paths)
    line = f'[{step.phase}] {_VERBS[step.phase][step.action]} "{step.name}" {noun}: {paths}'
    if step.detail:
        line += f" ({step.detail})"
    if step.expires_s is not None:
        line += f", until {dt.datetime.fromtimestamp(step.expires_s, dt.UTC):%Y-%m-%d}"
    return line


COMMAND = Command(
    "init [options]",
    "Makes what access control needs in the data directory, as kubeadm init does for a Kubernetes cluster:\n"
    "a certificate authority, the serving certificate, the key pair for service account tokens, and\n"
    "kubeconfig files for kubectl and for the agent of this machine.\n\n"
    "It can be run again: what is there and good is kept, what is missing is made, and nothing that\n"
    "another authority signed is replaced.\n\n"
    "    $ waypost init -data-dir=/var/lib/waypost -advertise=192.0.2.10",
    settings=InitFlags,
    action=_init,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
