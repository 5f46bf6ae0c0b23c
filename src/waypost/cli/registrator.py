"""`waypost registrator [options] <registry URI>`: the registrator alone, for a Consul (or an agent) elsewhere.

Takes Registrator's flags, environment and registry URIs, and writes its log lines, so that it can stand in its
place. What differs: `-resync` is on by default, Docker may come later or go away, and a stop signal ends it
with everything left registered (as with Registrator) unless `-deregister-on-exit` is given.

Exit status: 0 after a stop signal, for `--version` and for help; 2 for wrong arguments; 1 for everything else.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from waypost.base.errors import Malformed, WaypostError
from waypost.cli.flags import Command, Settings, UsageError, flag

if TYPE_CHECKING:
    from waypost.drivers.docker.mapping import HostFacts
    from waypost.drivers.docker.registrator import Registrator
    from waypost.drivers.docker.registrator import Settings as WorkSettings

SUMMARY = "Register the containers of this machine (Registrator's flags)"

log = logging.getLogger("waypost.registrator")

EXIT_FATAL: Final = 1
EXIT_USAGE: Final = 2
_GOODBYE_S: Final = 5.0


def one_of(*choices: str) -> Any:
    """Return a reader of one of these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise Malformed(f"want one of {', '.join(choices)}")
        return text

    return read


def address(text: str) -> str:
    """Return an address or host name; raises Malformed."""
    from waypost.drivers.docker.mapping import parse_address

    return parse_address(text) if text else ""


class RegistratorSettings(Settings):
    """The flags; those of Registrator first."""

    internal: bool = flag(False, "Register the container's own address and its exposed ports.")
    ip: str = flag(
        "", "The address to register instead of this machine's.", parse=address, value="address"
    )
    explicit: bool = flag(False, "Register only ports that a SERVICE_NAME names.")
    use_ip_from_label: str = flag(
        "", "Take the address from this container label.", name="useIpFromLabel", value="label"
    )
    tags: str = flag("", "Tags for every service, separated by commas; may be a Go template.")
    ttl: int = flag(0, "TTL in seconds; only together with -ttl-refresh. Consul needs none.")
    ttl_refresh: int = flag(0, "Seconds between refreshes of the TTL.")
    resync: int = flag(60, "Seconds between full comparisons with Docker and registry; 0 = never.")
    deregister: str = flag(
        "always",
        "Whether the services of every ended container are taken out, or only of those that did not fail: "
        "always, on-success.",
        parse=one_of("always", "on-success"),
        value="when",
    )
    cleanup: bool = flag(False, "Accepted; dangling services are always removed.")
    retry_attempts: int = flag(
        0, "How often to try again to reach the registry at the start; -1 = for ever."
    )
    retry_interval: int = flag(2000, "Milliseconds between those attempts.")

    network: str = flag("", "With -internal: the network whose address is registered.")
    suffix: str = flag(
        "many",
        "When the port is appended to a service's name: many (several ports are registered), never, always, "
        "registrator (ports that are ignored count too).",
        parse=one_of("many", "never", "always", "registrator"),
        value="rule",
    )
    name_from: str = flag(
        "image",
        "Where a service's name comes from without SERVICE_NAME: image, container, compose, swarm, hostname.",
        parse=one_of("image", "container", "compose", "swarm", "hostname"),
        value="source",
    )
    prefer: str = flag(
        "ipv4", "The kind of address to prefer: ipv4, ipv6.", parse=one_of("ipv4", "ipv6")
    )
    user_network_ip: bool = flag(
        False,
        "Containers on user networks: the container's address with the published port, as Registrator does.",
    )
    healthcheck: bool = flag(True, "Follow the HEALTHCHECK of containers.")
    wait_for_healthy: bool = flag(False, "Do not register before the HEALTHCHECK has an opinion.")
    drain: bool = flag(True, "Take a service out at the stop signal, not only at the end.")
    hostname: str = flag("", "The first part of service ids; by default this machine's name.")
    docker: str = flag("", "Docker's address; by default DOCKER_HOST, then the usual sockets.")
    deregister_on_exit: bool = flag(False, "Take all services out when stopped.")


def _act(settings: RegistratorSettings, args: list[str]) -> int:
    if not args:
        raise UsageError("a registry URI is missing, such as consul://127.0.0.1:8500")
    if len(args) > 1:
        raise UsageError(
            f"extra argument after the registry URI: {args[1]!r} (flags come before the URI)"
        )
    handler = _log_to_stderr()
    try:
        return _work(settings, args[0])
    except WaypostError as exc:
        log.error("%s", exc)
        return EXIT_FATAL
    finally:
        logging.getLogger("waypost").removeHandler(handler)


def _log_to_stderr() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y/%m/%d %H:%M:%S"))
    root = logging.getLogger("waypost")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler


def _check(settings: RegistratorSettings) -> None:
    if bool(settings.ttl) != bool(settings.ttl_refresh):
        raise Malformed("-ttl and -ttl-refresh must be given together or not at all")
    if settings.ttl and settings.ttl <= settings.ttl_refresh:
        raise Malformed("-ttl must be greater than -ttl-refresh")
    if settings.ttl < 0 or settings.ttl_refresh < 0:
        raise Malformed("-ttl and -ttl-refresh must not be negative")
    if settings.resync < 0:
        raise Malformed("-resync must not be negative")
    if settings.retry_interval <= 0:
        raise Malformed("-retry-interval must be greater than 0")
    if settings.retry_attempts < -1:
        raise Malformed("-retry-attempts must be -1 or more")


def _work(settings: RegistratorSettings, uri: str) -> int:
    import asyncio

    import uvloop

    from waypost import __version__
    from waypost.drivers.docker.api import Docker, endpoint
    from waypost.drivers.docker.consul import (
        ConsulApi,
        ConsulKvRegistry,
        ConsulRegistry,
        parse_uri,
    )
    from waypost.drivers.docker.registrator import Registrator
    from waypost.drivers.docker.tags import compile_tags

    _check(settings)
    log.info("Starting registrator %s ...", __version__)
    if settings.ip:
        log.info("Forcing host IP to %s", settings.ip)
    docker = Docker(endpoint(os.environ, host=settings.docker))
    at = parse_uri(uri, os.environ)
    log.info("Using %s adapter: %s", at.scheme, uri)
    facts = _facts(settings)
    api = ConsulApi(at)
    made = ConsulKvRegistry if at.scheme.startswith("consulkv") else ConsulRegistry
    registry = made(api, node=facts.node, hostname=facts.hostname)
    tags = compile_tags(settings.tags)

    async def main() -> int:
        registrator = Registrator(
            docker, registry, facts=facts, settings=_work_settings(settings), tags=tags
        )
        try:
            if not await _reach(api, settings):
                return EXIT_FATAL
            await _run(registrator, deregister_on_exit=settings.deregister_on_exit)
        finally:
            await registry.close()
        return 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def _facts(settings: RegistratorSettings) -> HostFacts:
    import socket

    from waypost.drivers.docker.host import default_route_ip
    from waypost.drivers.docker.mapping import HostFacts

    hostname = settings.hostname or socket.gethostname()
    return HostFacts(
        node=hostname, hostname=hostname, ip=default_route_ip(), ipv6=default_route_ip("ipv6")
    )


def _work_settings(settings: RegistratorSettings) -> WorkSettings:
    from waypost.drivers.docker.mapping import Family, MappingSettings, NameSource, SuffixRule
    from waypost.drivers.docker.registrator import Deregister
    from waypost.drivers.docker.registrator import Settings as WorkSettings

    return WorkSettings(
        mapping=MappingSettings(
            internal=settings.internal,
            ip=settings.ip,
            explicit=settings.explicit,
            ip_label=settings.use_ip_from_label,
            network=settings.network,
            suffix=cast("SuffixRule", settings.suffix),
            name_source=cast("NameSource", settings.name_from),
            prefer=cast("Family", settings.prefer),
            user_network_ip=settings.user_network_ip,
            health=settings.healthcheck,
            wait_healthy=settings.wait_for_healthy,
        ),
        resync_s=float(settings.resync),
        deregister=cast("Deregister", settings.deregister),
        drain=settings.drain,
    )


async def _reach(api: Any, settings: RegistratorSettings) -> bool:
    """Return whether the registry answered within the attempts that the flags allow."""
    import asyncio

    most = settings.retry_attempts
    attempt = 0
    while True:
        log.info("Connecting to backend (%d/%d)", attempt, most)
        try:
            log.info("consul: current leader  %s", await api.leader())
        except WaypostError as exc:
            log.error("%s", exc)
        else:
            return True
        if most != -1 and attempt >= most:
            return False
        attempt += 1
        await asyncio.sleep(settings.retry_interval / 1000)


async def _run(registrator: Registrator, *, deregister_on_exit: bool) -> None:
    """Work until SIGTERM or SIGINT."""
    import asyncio
    import signal

    task = asyncio.ensure_future(registrator.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if deregister_on_exit:
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await registrator.deregister_all()
        except TimeoutError:
            log.error("the registry does not answer; services are left registered")


COMMAND = Command(
    "registrator [options] <registry URI>",
    """
Registers the published ports of this machine's Docker containers, and takes
them out when the containers end. The registry is one of

    consul://HOST:PORT          consul-tls://HOST:PORT
    consul-unix:///SOCKET       consulkv://HOST:PORT/PREFIX

`waypost agent` does the same by itself; this command is for machines that
run a Consul agent, or an agent in another place.
""",
    settings=RegistratorSettings,
    action=_act,
)


def run(argv: Sequence[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    if list(argv) in (["--version"], ["-version"]):
        from waypost import __version__

        print(__version__)
        return 0
    try:
        return COMMAND.run(argv)
    except UsageError as exc:
        text = "\n".join(
            part for part in (str(exc), exc.suggestion, exc.usage.rstrip("\n")) if part
        )
        print(text, file=sys.stderr)
        return EXIT_USAGE
