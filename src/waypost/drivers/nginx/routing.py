"""Which service is reached by which host name, path or port: pure, and the only judge of what services ask for.

Names, tags and metadata come from whoever may register a service, and some of it ends up in nginx's configuration.
Every value is matched against an allow-list and refused as a whole when it does not fit; nothing is repaired.
`nginx -t` is no defence here: most injections are valid configuration.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Final, Literal, TypeVar

import msgspec

from waypost.base.duration import parse_ns
from waypost.base.errors import Malformed
from waypost.drivers.nginx.backends import Backend, Endpoint
from waypost.drivers.nginx.settings import Settings
from waypost.model.catalog import fold

HTTP_TAG: Final = "http"
TCP_TAG: Final = "tcp"
TLS_TAG: Final = "https"

Method = Literal["round-robin", "least-conn", "hash-ip", "sticky-cookie"]
METHODS: Final[tuple[Method, ...]] = ("round-robin", "least-conn", "hash-ip", "sticky-cookie")
_ROUND_ROBIN: Final[Method] = "round-robin"
_LEAST_CONN: Final[Method] = "least-conn"

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PATH = re.compile(r"/[A-Za-z0-9._~/-]{0,255}")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_COOKIE = re.compile(r"[A-Za-z0-9_]{1,64}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_SIZE = re.compile(r"([0-9]{1,6})([kmg]?)", re.IGNORECASE)
_NAME_PORT = re.compile(r".+-([0-9]{1,5})")
_HOSTS_MAX = 16
_WEIGHT_MAX = 100
_HASH_WEIGHT_MAX = 10  # consistent hashing costs 160 points a unit, rebuilt at each change


class Problem(msgspec.Struct, frozen=True, order=True):
    """Something a service asked for and did not get. `text` names the service and the value."""

    service: str
    text: str


class HttpRoute(msgspec.Struct, frozen=True, kw_only=True):
    """One service behind host names and a path prefix."""

    service: str
    ident: str
    hosts: tuple[str, ...]
    """As nginx's `server_name` takes them: `a.example`, `*.example`, `a.*`."""
    path: str = "/"
    method: Method = "round-robin"
    connect_ms: int = 500
    read_ms: int = 60_000
    tries: int = 3
    keepalive_ms: int = 4_000
    """How long an idle connection to an instance is kept, 0 = not at all."""
    body_bytes: int = 16 << 20
    rate: int = 0
    """Requests a second of one client address, 0 = unlimited."""
    snippet: str = ""
    canary_of: str = ""
    """The service some of whose requests go here; then there are no hosts of its own."""
    percent: int = 0
    """Share of the client addresses."""
    header: str = ""
    cookie: str = ""
    """nginx's variables in which `always` and `never` decide, the header before the cookie."""


class StreamRoute(msgspec.Struct, frozen=True, kw_only=True):
    """One service behind a TCP port."""

    service: str
    ident: str
    port: int
    method: Method = "least-conn"
    connect_ms: int = 500
    idle_ms: int = 3_600_000
    snippet: str = ""


class TlsRoute(msgspec.Struct, frozen=True, kw_only=True):
    """One service behind server names (SNI); its TLS is passed through untouched, its certificate is its own."""

    service: str
    ident: str
    hosts: tuple[str, ...]
    method: Method = "least-conn"


Route = HttpRoute | StreamRoute | TlsRoute


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """What is served, and what was refused."""

    http: tuple[HttpRoute, ...] = ()
    stream: tuple[StreamRoute, ...] = ()
    tls: tuple[TlsRoute, ...] = ()
    canary: tuple[HttpRoute, ...] = ()
    problems: tuple[Problem, ...] = ()

    def every(self) -> list[Route]:
        """Return all routes."""
        return [*self.http, *self.stream, *self.tls, *self.canary]

    def of(self, service: str) -> tuple[Route, ...]:
        """Return the routes of one service."""
        return tuple(one for one in self.every() if one.service == service)

    def services(self) -> frozenset[str]:
        """Return the names of the services that have a route."""
        return frozenset(one.service for one in self.every())

    def without(self, services: Iterable[str]) -> Routes:
        """Return the routes of all other services."""
        gone = frozenset(services)
        return Routes(
            http=tuple(one for one in self.http if one.service not in gone),
            stream=tuple(one for one in self.stream if one.service not in gone),
            tls=tuple(one for one in self.tls if one.service not in gone),
            canary=tuple(one for one in self.canary if one.service not in gone),
            problems=self.problems,
        )


_Route = TypeVar("_Route", HttpRoute, StreamRoute, TlsRoute)
_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


def quoted(value: str) -> str:
    """Return a foreign value for a message: printable ASCII, at most 80 characters, so that no log line breaks."""
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:76] + "...'"


def ident(service: str) -> str:
    """Return the name of a service inside nginx: `wp_` + letters, digits, `_` + a hash that keeps it unique."""
    name = fold(service)
    safe = re.sub("[^a-z0-9]+", "_", name)[:40].strip("_")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"wp_{safe}_{digest}" if safe else f"wp_{digest}"


def host_name(text: str) -> str:
    """Return `text` as a `server_name`: lower-case, IDNA-encoded, with an optional leading `*.`.

    Raises Malformed for everything else; above all for `~` (a regular expression to nginx), `_` and `$`.
    """
    wildcard, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as exc:
            raise Malformed(f"{quoted(text)} is not a host name") from exc
    name = name.lower()
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise Malformed(
            f"{quoted(text)} is not a host name (labels of a-z, 0-9 and '-', optionally '*.' in front)"
        )
    return wildcard + name


def plan_routes(
    backends: Iterable[Backend], *, settings: Settings, previous: Routes | None = None
) -> Routes:
    """Return the routes of all services that ask for one by tag.

    `previous` makes ownership stick: a host, path or port that two services claim stays with the one that has it,
    otherwise the first registered gets it. It also keeps the last good route of a service whose new
    metadata is refused, so a bad label does not take a service down.
    """
    planner = _Planner(settings=settings, previous=previous or Routes())
    for backend in sorted(backends, key=lambda one: (one.since, fold(one.service))):
        planner.add(backend)
    return planner.result()


class _Planner:
    """Collects the routes of one plan; lives for one call. Services are added in the order of registration."""

    def __init__(self, *, settings: Settings, previous: Routes) -> None:
        self._settings = settings
        self._old_http = {one.service: one for one in (*previous.http, *previous.canary)}
        self._old_stream = {one.service: one for one in previous.stream}
        self._old_owner = {
            (host, one.path): one.service for one in previous.http for host in one.hosts
        }
        self._old_tls = {one.service: one for one in previous.tls}
        self._old_name_owner = {host: one.service for one in previous.tls for host in one.hosts}
        self._old_port_owner = {one.port: one.service for one in previous.stream}
        self._old_canary = {one.canary_of: one.service for one in previous.canary}
        self._http: list[HttpRoute] = []
        self._canary: list[HttpRoute] = []
        self._stream: list[StreamRoute] = []
        self._tls: list[TlsRoute] = []
        self._problems: list[Problem] = []

    def add(self, backend: Backend) -> None:
        """Take what the service asks for, or note why not."""
        if HTTP_TAG in backend.tags:
            http = self._parsed(backend, _http_route, self._old_http.get(backend.service))
            if http is not None:
                (self._canary if http.canary_of else self._http).append(http)
        if TCP_TAG in backend.tags:
            stream = self._parsed(backend, _stream_route, self._old_stream.get(backend.service))
            if stream is not None:
                self._stream.append(stream)
        if TLS_TAG in backend.tags:
            tls = self._parsed(backend, _tls_route, self._old_tls.get(backend.service))
            if tls is not None:
                self._tls.append(tls)

    def result(self) -> Routes:
        """Settle who owns what and return the routes."""
        http = tuple(sorted(self._settled_http(), key=lambda one: one.service))
        return Routes(
            http=http,
            canary=tuple(self._settled_canary({one.service for one in http})),
            stream=tuple(sorted(self._settled_stream(), key=lambda one: one.port)),
            tls=tuple(sorted(self._settled_tls(), key=lambda one: one.service)),
            problems=tuple(sorted(self._problems)),
        )

    def _parsed(
        self, backend: Backend, parse: Callable[..., _Route], last_good: _Route | None
    ) -> _Route | None:
        try:
            return parse(backend, settings=self._settings)
        except Malformed as error:
            tail = "it gets no route" if last_good is None else "its last good route stays"
            self._report(backend.service, f"{error}; {tail}")
            return last_good

    def _report(self, service: str, text: str) -> None:
        self._problems.append(Problem(service, f"service {quoted(service)}: {text}"))

    def _settled_http(self) -> Iterator[HttpRoute]:
        claims = [(one.service, (host, one.path)) for one in self._http for host in one.hosts]
        owners = _owners(claims, old=self._old_owner)
        for route in self._http:
            hosts = []
            for host in route.hosts:
                owner = owners[host, route.path]
                if owner == route.service:
                    hosts.append(host)
                else:
                    what = f"host {host} path {route.path}"
                    self._report(route.service, f"{what} belongs to service {quoted(owner)}")
            if hosts:
                yield msgspec.structs.replace(route, hosts=tuple(hosts))

    def _settled_stream(self) -> Iterator[StreamRoute]:
        owners = _owners(
            [(one.service, one.port) for one in self._stream], old=self._old_port_owner
        )
        shared = {one.port for one in self._settings.tls_listen} if self._tls else set()
        for route in self._stream:
            owner = owners[route.port]
            if route.port in shared:
                what = f"port {route.port} is shared by the services tagged {TLS_TAG!r}"
                self._report(route.service, what)
            elif owner == route.service:
                yield route
            else:
                what = f"port {route.port}"
                self._report(route.service, f"{what} belongs to service {quoted(owner)}")

    def _settled_canary(self, bases: set[str]) -> Iterator[HttpRoute]:
        claims = [(one.service, one.canary_of) for one in self._canary]
        owners = _owners(claims, old=self._old_canary)
        for route in sorted(self._canary, key=lambda one: one.service):
            base, owner = route.canary_of, owners[route.canary_of]
            if base not in bases:
                self._report(route.service, f"there is no HTTP service {quoted(base)} to try out")
            elif owner != route.service:
                what = f"service {quoted(base)} is tried out already by service {quoted(owner)}"
                self._report(route.service, what)
            else:
                yield route

    def _settled_tls(self) -> Iterator[TlsRoute]:
        claims = [(one.service, host) for one in self._tls for host in one.hosts]
        owners = _owners(claims, old=self._old_name_owner)
        for route in self._tls:
            hosts = []
            for host in route.hosts:
                if owners[host] == route.service:
                    hosts.append(host)
                else:
                    what = f"TLS server name {host} belongs to service {quoted(owners[host])}"
                    self._report(route.service, what)
            if hosts:
                yield msgspec.structs.replace(route, hosts=tuple(hosts))


def _owners(claims: Iterable[tuple[str, _Key]], *, old: Mapping[_Key, str]) -> dict[_Key, str]:
    owners: dict[_Key, str] = {}
    for service, key in claims:
        if key not in owners or old.get(key) == service:
            owners[key] = service
    return owners


def _http_route(backend: Backend, *, settings: Settings) -> HttpRoute:
    meta = _Meta(backend.meta)
    canary_of = fold(backend.meta.get("http_canary_of", ""))
    hosts = () if canary_of else _hosts(backend, key="http_host", settings=settings)
    return HttpRoute(
        service=backend.service,
        ident=ident(backend.service),
        hosts=hosts,
        canary_of=canary_of,
        percent=meta.get("http_canary_percent", 0, _integer(0, 100)),
        header=meta.get("http_canary_header", "", _header),
        cookie=meta.get("http_canary_cookie", "", _cookie),
        path=meta.get("http_path", "/", _path),
        method=meta.get("lb_method", _ROUND_ROBIN, _method),
        connect_ms=meta.get("http_connect_timeout", 500, _ms(50, 5_000)),
        read_ms=meta.get("http_read_timeout", 60_000, _ms(1_000, 3_600_000)),
        tries=meta.get("http_tries", 3, _integer(1, 5)),
        keepalive_ms=meta.get("http_keepalive", 4_000, _ms(0, 3_600_000)),
        body_bytes=meta.get("http_max_body", settings.max_body_bytes, _size),
        rate=meta.get("http_rate", 0, _integer(1, 1_000_000)),
        snippet=settings.snippets.get(backend.service, ""),
    )


def _stream_route(backend: Backend, *, settings: Settings) -> StreamRoute:
    meta = _Meta(backend.meta)
    text = backend.meta.get("tcp_port")
    if text is None:
        match = _NAME_PORT.fullmatch(backend.service)
        if match is None:
            raise Malformed(
                "tagged 'tcp', but no port: name it NAME-PORT or set the metadata key tcp_port"
            )
        text = match.group(1)
    port = _port(text, settings=settings)
    method = meta.get("lb_method", _LEAST_CONN, _method)
    if method == "sticky-cookie":
        raise Malformed("metadata lb_method 'sticky-cookie' is for HTTP services only")
    return StreamRoute(
        service=backend.service,
        ident=ident(backend.service) + "_tcp",
        port=port,
        method=method,
        connect_ms=meta.get("tcp_connect_timeout", 500, _ms(50, 5_000)),
        idle_ms=meta.get("tcp_idle_timeout", 3_600_000, _ms(1_000, 86_400_000)),
        snippet=settings.snippets.get(backend.service, ""),
    )


def _tls_route(backend: Backend, *, settings: Settings) -> TlsRoute:
    method = _Meta(backend.meta).get("lb_method", _LEAST_CONN, _method)
    if method == "sticky-cookie":
        raise Malformed("metadata lb_method 'sticky-cookie' needs HTTP, TLS is not opened here")
    return TlsRoute(
        service=backend.service,
        ident=ident(backend.service) + "_tls",
        hosts=_hosts(backend, key="tls_host", settings=settings),
        method=method,
    )


class _Meta:
    """Reads one option after the other; an error names the key."""

    def __init__(self, meta: Mapping[str, str]) -> None:
        self._meta = meta

    def get(self, key: str, default: _Value, parse: Callable[[str], _Value]) -> _Value:
        text = self._meta.get(key)
        if text is None:
            return default
        try:
            return parse(text)
        except Malformed as exc:
            raise Malformed(f"metadata {key} {exc}") from exc


def _hosts(backend: Backend, *, key: str, settings: Settings) -> tuple[str, ...]:
    asked = backend.meta.get(key)
    if asked is not None:
        names = [one for one in re.split("[, ]+", asked) if one]
        if not 1 <= len(names) <= _HOSTS_MAX:
            raise Malformed(
                f"metadata {key} {quoted(asked)} must hold 1 to {_HOSTS_MAX} host names"
            )
        try:
            return tuple(dict.fromkeys(host_name(one) for one in names))
        except Malformed as exc:
            raise Malformed(f"metadata {key} {quoted(asked)}: {exc}") from exc
    label = fold(backend.service)
    if not _LABEL.fullmatch(label):
        raise Malformed(
            f"its name is no host label (a-z, 0-9, '-', at most 63), and it has no metadata {key}"
        )
    if settings.domain:
        return (host_name(f"{label}.{settings.domain}"),)
    return (label, f"{label}.*")


def _path(text: str) -> str:
    if not _PATH.fullmatch(text) or "//" in text or "/../" in f"{text}/" or "/./" in f"{text}/":
        raise Malformed(f"{quoted(text)} is not a path (letters, digits and . _ ~ / - after a '/')")
    return text.rstrip("/") or "/"


def _header(text: str) -> str:
    if not _HEADER.fullmatch(text):
        raise Malformed(f"{quoted(text)} is not the name of a header")
    return "$http_" + text.lower().replace("-", "_")


def _cookie(text: str) -> str:
    if not _COOKIE.fullmatch(text):
        raise Malformed(f"{quoted(text)} is not the name of a cookie (letters, digits and _)")
    return f"$cookie_{text}"


def _method(text: str) -> Method:
    for method in METHODS:
        if text.replace("_", "-") == method:
            return method
    raise Malformed(f"{quoted(text)} is none of {', '.join(METHODS)}")


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
            raise Malformed(f"{quoted(text)} is not a number from {low} to {high}")
        return int(text)

    return parse


def _ms(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = parse_ns(text) // 1_000_000
        except Malformed as exc:
            raise Malformed(f"{quoted(text)} is not a duration such as 500ms or 2s") from exc
        if not low <= value <= high:
            raise Malformed(f"{quoted(text)} is not between {low}ms and {high}ms")
        return value

    return parse


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Malformed(f"{quoted(text)} is not a size such as 512k or 16m")
    value = int(match.group(1)) << {"": 0, "k": 10, "m": 20, "g": 30}[match.group(2).lower()]
    if not 1 <= value <= 64 << 30:
        raise Malformed(f"{quoted(text)} is not between 1 byte and 64g")
    return value


def _port(text: str, *, settings: Settings) -> int:
    port = int(text) if _NUMBER.fullmatch(text) else 0
    if not 1 <= port <= 65535:
        raise Malformed(f"{quoted(text)} is not a port from 1 to 65535")
    if port in settings.reserved_ports or port in {one.port for one in settings.listen}:
        raise Malformed(f"port {port} is used by waypost itself")
    if not any(low <= port <= high for low, high in settings.tcp_ports):
        ranges = ", ".join(f"{low}-{high}" for low, high in settings.tcp_ports)
        raise Malformed(f"port {port} is outside what TCP services may have ({ranges})")
    return port


def usable_endpoints(
    backend: Backend, *, settings: Settings
) -> tuple[tuple[Endpoint, ...], tuple[Problem, ...]]:
    """Return the endpoints nginx may connect to, addresses re-printed, and why the others are refused."""
    allowed = tuple(ipaddress.ip_network(one) for one in settings.networks)
    good: dict[tuple[str, int], Endpoint] = {}
    problems: list[Problem] = []
    for endpoint in backend.endpoints:
        try:
            address = _address(endpoint.address, allowed=allowed, settings=settings)
            if not 1 <= endpoint.port <= 65535:
                raise Malformed(f"port {endpoint.port} is not a port")
        except Malformed as error:
            who = quoted(endpoint.instance_id or endpoint.address)
            text = f"service {quoted(backend.service)}: instance {who} gets no requests: {error}"
            problems.append(Problem(backend.service, text))
            continue
        weight = max(1, endpoint.weight)
        good.setdefault(
            (address, endpoint.port),
            msgspec.structs.replace(endpoint, address=address, weight=weight),
        )
    return tuple(good[key] for key in sorted(good)), tuple(problems)


def _address(
    text: str,
    *,
    allowed: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...],
    settings: Settings,
) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as exc:
        raise Malformed(f"{quoted(text)} is not an IP address") from exc
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None or getattr(address, "scope_id", None):
        raise Malformed(f"{address} is not a plain IP address")
    if address.is_loopback:
        if not settings.allow_loopback:
            raise Malformed(f"{address} is a loopback address (see allow_loopback)")
    elif address.is_link_local or address.is_multicast or address.is_unspecified:
        raise Malformed(f"{address} is a link-local, multicast or unspecified address")
    elif address.is_reserved or str(address) == "255.255.255.255":
        raise Malformed(f"{address} is a reserved address")
    if allowed and not any(address in network for network in allowed):
        raise Malformed(f"{address} is outside the networks {', '.join(settings.networks)}")
    return str(address)


def even_weights(endpoints: Iterable[Endpoint], *, method: Method) -> tuple[Endpoint, ...]:
    """Return the endpoints with weights reduced to the smallest that keep their proportion, at most 100 (hash: 10).

    A weight of 65,535 with consistent hashing was measured to hang nginx for half a minute.
    """
    found = tuple(endpoints)
    limit = _HASH_WEIGHT_MAX if method == "hash-ip" else _WEIGHT_MAX
    divisor = math.gcd(*(one.weight for one in found)) or 1
    top = max((one.weight // divisor for one in found), default=1)
    return tuple(
        msgspec.structs.replace(one, weight=_scaled(one.weight // divisor, top=top, limit=limit))
        for one in found
    )


def _scaled(weight: int, *, top: int, limit: int) -> int:
    if top <= limit:
        return max(1, weight)
    return max(1, round(weight * limit / top))
