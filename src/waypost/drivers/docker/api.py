"""A small client of the Docker Engine API: only what the registrator reads.

Paths are unversioned unless `DOCKER_API_VERSION` asks for one, so neither a new engine that dropped old
versions nor an old one that lacks new versions refuses us; podman's compatible socket answers as well. Of an
event only `Type`, `Action` and `Actor` are read, because the other names left in API 1.52. aiohttp is imported
at the first connection: an agent without Docker does not pay for it.

Source: Docker Engine API reference, `SystemPing`, `ContainerList`, `ContainerInspect`, `SystemEvents`.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from waypost.base.errors import Malformed, NotFound, Rejected, Unavailable

if TYPE_CHECKING:
    import aiohttp

DEFAULT_SOCKETS: Final = (
    "/var/run/docker.sock",
    "/tmp/docker.sock",  # noqa: S108 - where Registrator's image expects the socket to be mounted
    "/run/podman/podman.sock",
)
CONTAINER_ACTIONS: Final = (
    "start",
    "die",
    "kill",
    "destroy",
    "pause",
    "unpause",
    "rename",
    "health_status",
)
"""Exec probes of a HEALTHCHECK are the bulk of a busy host's events; the engine filters them out for us."""

_OUTPUT_MAX_CHARS: Final = 4096


class Port(msgspec.Struct, frozen=True, order=True):
    """A container port, such as 53/udp."""

    number: int
    protocol: str = "tcp"

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


class Binding(msgspec.Struct, frozen=True):
    """Where a container port is published on the host."""

    host_ip: str
    host_port: int


class Network(msgspec.Struct, frozen=True):
    """The addresses of a container on one network; empty where it has none."""

    name: str
    ipv4: str = ""
    ipv6: str = ""


class Health(msgspec.Struct, frozen=True):
    """What the container's HEALTHCHECK says: `starting`, `healthy` or `unhealthy`, and its last output."""

    status: str
    output: str = ""


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """What `docker inspect` says, as far as it matters for registrations."""

    id: str
    name: str
    image: str = ""
    hostname: str = ""
    env: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    exposed: tuple[Port, ...] = ()
    published: Mapping[Port, tuple[Binding, ...]] = {}
    """Every port of `NetworkSettings.Ports`; no binding = exposed but not published."""
    network_mode: str = "default"
    networks: tuple[Network, ...] = ()
    """Sorted by name."""
    running: bool = True
    paused: bool = False
    restarting: bool = False
    exit_code: int = 0
    started_at: str = ""
    """RFC 3339 in UTC with trailing zeros, so that texts compare like times."""
    stop_signal: str = ""
    stop_timeout_s: float = 10.0
    health: Health | None = None

    @property
    def serving(self) -> bool:
        """Whether its process can answer now."""
        return self.running and not self.paused and not self.restarting

    @property
    def id12(self) -> str:
        """The short id people know."""
        return self.id[:12]

    @property
    def linked_id(self) -> str:
        """The container whose network it shares, or empty."""
        return linked(self.network_mode)


def linked(network_mode: str) -> str:
    """Return X of the network mode `container:X`, or an empty string."""
    return network_mode.removeprefix("container:") if network_mode.startswith("container:") else ""


class Summary(msgspec.Struct, frozen=True):
    """One line of `docker ps`."""

    id: str
    names: tuple[str, ...]
    state: str
    network_mode: str


class Event(msgspec.Struct, frozen=True):
    """One event. `action` is `health_status` with the status in `detail`, else Docker's own word."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str]
    time_ns: int
    detail: str = ""


class Version(msgspec.Struct, frozen=True):
    """What the engine calls itself."""

    version: str
    api_version: str


# --- wire forms: Docker's own names, every field optional, null allowed -------------------------------------


class _WireBinding(msgspec.Struct, rename="pascal"):
    host_ip: str | None = None
    host_port: str | None = None


class _WireNetwork(msgspec.Struct):
    IPAddress: str | None = None
    GlobalIPv6Address: str | None = None


class _WireNetworkSettings(msgspec.Struct, rename="pascal"):
    ports: dict[str, list[_WireBinding] | None] | None = None
    networks: dict[str, _WireNetwork | None] | None = None


class _WireConfig(msgspec.Struct, rename="pascal"):
    hostname: str | None = None
    image: str | None = None
    env: list[str] | None = None
    labels: dict[str, str] | None = None
    exposed_ports: dict[str, Any] | None = None
    stop_signal: str | None = None
    stop_timeout: int | None = None


class _WireHealthLog(msgspec.Struct, rename="pascal"):
    output: str | None = None


class _WireHealth(msgspec.Struct, rename="pascal"):
    status: str | None = None
    log: list[_WireHealthLog] | None = None


class _WireState(msgspec.Struct, rename="pascal"):
    running: bool = False
    paused: bool = False
    restarting: bool = False
    exit_code: int = 0
    started_at: str | None = None
    health: _WireHealth | None = None


class _WireHostConfig(msgspec.Struct, rename="pascal"):
    network_mode: str | None = None


class _WireContainer(msgspec.Struct, rename="pascal"):
    id: str
    name: str | None = None
    config: _WireConfig | None = None
    state: _WireState | None = None
    host_config: _WireHostConfig | None = None
    network_settings: _WireNetworkSettings | None = None


class _WireSummary(msgspec.Struct, rename="pascal"):
    id: str
    names: list[str] | None = None
    state: str | None = None
    host_config: _WireHostConfig | None = None


class _WireActor(msgspec.Struct):
    ID: str = ""
    Attributes: dict[str, str] | None = None


class _WireEvent(msgspec.Struct):
    Type: str = ""
    Action: str = ""
    Actor: _WireActor | None = None
    time: int = 0
    time_nano: int = msgspec.field(default=0, name="timeNano")


_decode_container = msgspec.json.Decoder(_WireContainer)
_decode_summaries = msgspec.json.Decoder(list[_WireSummary])
_decode_event = msgspec.json.Decoder(_WireEvent)


def parse_port(text: str) -> Port | None:
    """Return the port of `80/tcp` (or `80`), or None when it is none."""
    number, _, protocol = text.partition("/")
    if not re.fullmatch(r"[0-9]{1,5}", number) or not 0 < int(number) < 65536:
        return None
    return Port(int(number), protocol or "tcp")


def _started_at(text: str) -> str:
    # Go trims trailing zeros of the fraction, which would break the order of texts.
    match = re.fullmatch(r"(.*?)(?:\.(\d+))?Z", text)
    return text if match is None else f"{match.group(1)}.{(match.group(2) or ''):0<9}Z"


def _bindings(wire: list[_WireBinding] | None) -> tuple[Binding, ...]:
    return tuple(
        Binding(one.host_ip or "", int(one.host_port or 0))
        for one in wire or ()
        if re.fullmatch(r"[0-9]{1,5}", one.host_port or "")
    )


def _health(wire: _WireHealth | None) -> Health | None:
    if wire is None or wire.status in (None, "", "none"):
        return None
    output = (wire.log[-1].output or "") if wire.log else ""
    return Health(str(wire.status), output[-_OUTPUT_MAX_CHARS:])


def parse_container(body: bytes) -> Container:
    """Return the container of an inspect answer; raises Malformed when it is not one."""
    try:
        wire = _decode_container.decode(body)
    except msgspec.MsgspecError as exc:
        raise Malformed(f"docker inspect: {exc}") from exc
    config = wire.config or _WireConfig()
    state = wire.state or _WireState()
    settings = wire.network_settings or _WireNetworkSettings()
    published = {
        port: _bindings(bindings)
        for text, bindings in (settings.ports or {}).items()
        if (port := parse_port(text)) is not None
    }
    return Container(
        id=wire.id,
        name=(wire.name or "").removeprefix("/"),
        image=config.image or "",
        hostname=config.hostname or "",
        env=tuple(config.env or ()),
        labels=config.labels or {},
        exposed=tuple(
            sorted(p for text in config.exposed_ports or () if (p := parse_port(text)) is not None)
        ),
        published=published,
        network_mode=(wire.host_config and wire.host_config.network_mode) or "default",
        networks=tuple(
            Network(name, net.IPAddress or "", net.GlobalIPv6Address or "")
            for name, net in sorted((settings.networks or {}).items())
            if net is not None
        ),
        running=state.running,
        paused=state.paused,
        restarting=state.restarting,
        exit_code=state.exit_code,
        started_at=_started_at(state.started_at or ""),
        stop_signal=config.stop_signal or "",
        stop_timeout_s=10.0 if config.stop_timeout is None else float(config.stop_timeout),
        health=_health(state.health),
    )


def parse_event(line: bytes) -> Event:
    """Return the event of one line of the stream; raises Malformed when it is not one."""
    try:
        wire = _decode_event.decode(line)
    except msgspec.MsgspecError as exc:
        raise Malformed(f"docker event: {exc}") from exc
    actor = wire.Actor or _WireActor()
    action, _, detail = wire.Action.partition(": ")
    return Event(
        type=wire.Type,
        action=action,
        actor_id=actor.ID,
        attributes=actor.Attributes or {},
        time_ns=wire.time_nano or wire.time * 10**9,
        detail=detail,
    )


# --- where the engine listens ------------------------------------------------------------------------------


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach an engine: either a unix socket or a base URL."""

    socket: str = ""
    base_url: str = "http://docker"
    api_version: str = ""
    """Empty = unversioned paths."""
    cert_path: str = ""
    """Directory with `ca.pem`, `cert.pem`, `key.pem`; empty = no TLS."""
    tls_verify: bool = False

    def __str__(self) -> str:
        return f"unix://{self.socket}" if self.socket else self.base_url


def endpoint(
    env: Mapping[str, str], *, host: str = "", sockets: tuple[str, ...] = DEFAULT_SOCKETS
) -> Endpoint:
    """Return where Docker is: `host`, `DOCKER_HOST`, else the first of `sockets` that exists.

    `DOCKER_TLS_VERIFY`, `DOCKER_CERT_PATH` and `DOCKER_API_VERSION` mean what they mean to the docker client.
    Raises Malformed for an address we cannot use.
    """
    version = env.get("DOCKER_API_VERSION", "").removeprefix("v")
    if version and not re.fullmatch(r"[0-9]+\.[0-9]+", version):
        raise Malformed(f"DOCKER_API_VERSION: {version!r} is not a version such as 1.41")
    address = host or env.get("DOCKER_HOST", "")
    if not address:
        found = next((path for path in sockets if Path(path).exists()), sockets[0])
        return Endpoint(socket=found, api_version=version)
    scheme, sep, rest = address.partition("://")
    if scheme == "unix" and sep and rest:
        return Endpoint(socket=rest, api_version=version)
    if scheme in ("tcp", "http", "https") and sep and rest:
        verify = bool(env.get("DOCKER_TLS_VERIFY"))
        cert_path = env.get("DOCKER_CERT_PATH", "")
        if verify and not cert_path:
            cert_path = str(Path(env.get("HOME", "/root")) / ".docker")
        if scheme == "http":
            verify, cert_path = False, ""
        secure = scheme == "https" or verify or bool(cert_path)
        return Endpoint(
            base_url=("https://" if secure else "http://") + rest.rstrip("/"),
            api_version=version,
            cert_path=cert_path,
            tls_verify=verify or (scheme == "https" and not cert_path),
        )
    raise Malformed(
        f"DOCKER_HOST: cannot use {address!r}; want unix:///path, tcp://host:port or https://host:port"
    )


def _ssl_context(at: Endpoint) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context()
        if not at.tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if at.cert_path:
            folder = Path(at.cert_path)
            if at.tls_verify and (folder / "ca.pem").exists():
                context.load_verify_locations(folder / "ca.pem")
            if (folder / "cert.pem").exists():
                context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except (OSError, ssl.SSLError) as exc:
        raise Malformed(f"DOCKER_CERT_PATH {at.cert_path}: {exc}") from exc
    return context


class Docker:
    """Async client of one engine. Raises Unavailable when it cannot be reached, NotFound for an unknown id.

    Safe to use from several tasks. `close` ends every connection; the next call opens new ones.
    """

    def __init__(self, at: Endpoint, *, timeout_s: float = 30.0) -> None:
        self.endpoint = at
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ping(self) -> None:
        """Return when the engine answers."""
        await self._get("/_ping")

    async def version(self) -> Version:
        """Return the engine's version."""
        body = json.loads(await self._get("/version"))
        return Version(str(body.get("Version", "")), str(body.get("ApiVersion", "")))

    async def containers(self, *, exited_too: bool = False) -> list[Summary]:
        """Return the running (also paused and restarting) containers; with `exited_too` all of them."""
        body = await self._get("/containers/json", {"all": "1"} if exited_too else None)
        try:
            wire = _decode_summaries.decode(body)
        except msgspec.MsgspecError as exc:
            raise Malformed(f"docker list: {exc}") from exc
        return [
            Summary(
                one.id,
                tuple(name.removeprefix("/") for name in one.names or ()),
                one.state or "",
                (one.host_config and one.host_config.network_mode) or "default",
            )
            for one in wire
        ]

    async def inspect(self, container_id: str) -> Container:
        """Return the container; raises NotFound, Malformed, Unavailable."""
        return parse_container(await self.inspect_bytes(container_id))

    async def inspect_bytes(self, container_id: str) -> bytes:
        """Return the inspect answer as it came, for templates over the whole of it."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", container_id):
            raise Malformed(f"not a container name or id: {container_id!r}")
        return await self._get(f"/containers/{container_id}/json")

    async def events(self, *, since_ns: int | None = None) -> AsyncGenerator[Event, None]:
        """Yield container and network events, first those after `since_ns`, then live ones.

        The stream is open (nothing is missed any more) when the first item arrives, which is always a marker
        event of type `subscribed`. It ends when the engine closes it; raises Unavailable when it breaks. A
        line that is no event is skipped: whoever resynchronises finds what it said.
        """
        import aiohttp

        filters = {
            "type": ["container", "network"],
            "event": [*CONTAINER_ACTIONS, "connect", "disconnect"],
        }
        query = {"filters": json.dumps(filters)}
        if since_ns is not None:
            query["since"] = f"{since_ns // 10**9}.{since_ns % 10**9:09d}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=None)
        try:
            async with self._open().get(self._url("/events"), params=query, timeout=timeout) as got:
                await self._raise_for(got)
                yield Event("subscribed", "", "", {}, 0)
                async for line in _lines(got.content):
                    try:
                        event = parse_event(line)
                    except Malformed:
                        continue
                    yield event
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise Unavailable(f"docker events at {self.endpoint}: {_say(exc)}") from exc

    def _url(self, path: str) -> str:
        version = f"/v{self.endpoint.api_version}" if self.endpoint.api_version else ""
        return f"{self.endpoint.base_url}{version}{path}"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            connector: aiohttp.BaseConnector
            if self.endpoint.socket:
                connector = aiohttp.UnixConnector(path=self.endpoint.socket)
            elif self.endpoint.base_url.startswith("https://"):
                connector = aiohttp.TCPConnector(ssl=_ssl_context(self.endpoint))
            else:
                connector = aiohttp.TCPConnector()
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def _get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        try:
            async with self._open().get(self._url(path), params=query, timeout=timeout) as got:
                await self._raise_for(got)
                return await got.read()
        except TimeoutError as exc:
            raise Unavailable(
                f"docker at {self.endpoint}: no answer to {path} in {self._timeout_s:g} s"
            ) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Unavailable(f"docker at {self.endpoint}: {_say(exc)}") from exc

    async def _raise_for(self, got: aiohttp.ClientResponse) -> None:
        if got.status < 400:
            return
        body = await got.read()
        try:
            text = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            text = body[:200].decode(errors="replace")
        if got.status == 404:
            raise NotFound(f"docker: {text}")
        if got.status < 500:
            raise Rejected(f"docker at {self.endpoint}: {got.status}: {text}")
        raise Unavailable(f"docker at {self.endpoint}: {got.status}: {text}")


def _say(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


async def _lines(
    content: aiohttp.StreamReader, *, limit_bytes: int = 1 << 20
) -> AsyncIterator[bytes]:
    """Yield the lines of a stream; one longer than `limit_bytes` is dropped, not kept in memory."""
    pending = bytearray()
    dropping = False
    async for chunk in content.iter_any():
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            if not dropping:
                pending += part
                if pending.strip():
                    yield bytes(pending)
            pending.clear()
            dropping = False
        if not dropping:
            pending += rest
            if len(pending) > limit_bytes:
                pending.clear()
                dropping = True
