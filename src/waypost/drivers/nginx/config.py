"""The text of nginx's configuration: pure, from routes and facts to one file and its script.

Two lanes. *Live* (nginx ≥ 1.27.4): an upstream names a service, and nginx learns its endpoints from our loopback
DNS and, in milliseconds, from the control socket; a change of endpoints changes no line here. *Reload* (older
nginx): the endpoints are written into the upstream, and each change of them is a reload.

With the control socket, a host that no `server` here has yet is looked up among those that were told early: the
service answers while its reload still waits for its turn (`early.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from waypost.base.errors import Malformed
from waypost.drivers.nginx.backends import Endpoint
from waypost.drivers.nginx.routing import (
    HttpRoute,
    Route,
    Routes,
    StreamRoute,
    TlsRoute,
    even_weights,
    ident,
)
from waypost.drivers.nginx.settings import Listen

ZONE: Final = "svc.wp"
"""Domain of the service names that nginx asks our DNS for."""
SRV_SERVICE: Final = "wp"
"""nginx asks SRV for `_wp._tcp.LABEL.svc.wp`."""

_TOKEN = re.compile(r"[A-Za-z0-9._~/:*@=+\[\]-]+")
_MAP_WORDS: Final = frozenset({"default", "hostnames", "volatile", "include"})
_LISTEN = re.compile(r"\blisten ([0-9.]+|\[[0-9a-f:.]+\]):([0-9]+)\b")
EARLY_S: Final = 8
"""How long a host that was told early is known: longer than a reload has to wait, shorter than a list of endpoints."""
_SMALL_ZONE = 150  # endpoints that 256k hold with room to spare; too small a zone drops endpoints


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the nginx at hand can do."""

    binary: Path
    version: tuple[int, int, int]
    stream: bool = False
    stream_module: Path | None = None
    """The dynamic module to load for `stream`, when it is not built in."""
    preread: bool = False
    """TLS server names are seen in `stream`."""
    live: bool = False
    """Endpoints by `resolve` in upstreams."""
    fast: bool = False
    """Endpoints through the control socket (njs and keyval)."""

    @property
    def version_text(self) -> str:
        """Return the version as nginx prints it."""
        return ".".join(str(part) for part in self.version)


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Our ports on 127.0.0.1: DNS for nginx, and where requests go for which there is no instance."""

    dns: int
    http_sentinel: int
    stream_sentinel: int


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all services."""

    prefix: Path
    temp: Path
    listen: tuple[Listen, ...]
    tcp_addresses: tuple[str, ...]
    tls_listen: tuple[Listen, ...]
    ports: Ports
    workers: int
    open_files: int
    body_bytes: int = 16 << 20
    """Largest request body unless a service asks otherwise."""
    user: str = ""
    """`USER GROUP` of the workers, empty when nginx does not run as root."""
    access_log: Path | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the configuration depends on, but its generation. Equal plans need no reload."""

    site: Site
    routes: Routes
    endpoints: Mapping[str, tuple[Endpoint, ...]] = msgspec.field(default_factory=dict)
    """Service → endpoints; only in the reload lane."""
    big: frozenset[str] = frozenset()
    """Services with so many endpoints that they need a larger zone; only in the live lane."""
    ipv6: frozenset[str] = frozenset()
    """Services with IPv6 endpoints, for which AAAA has to be asked as well; only in the live lane."""


class Span(msgspec.Struct, frozen=True):
    """The lines `first`..`last` (from 1) that exist because of one service."""

    first: int
    last: int
    service: str


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration."""

    generation: int
    text: str
    script: str
    spans: tuple[Span, ...]

    def service_at(self, line: int) -> str | None:
        """Return the service to which a line belongs."""
        for span in self.spans:
            if span.first <= line <= span.last:
                return span.service
        return None


def listens_in(text: str) -> frozenset[Listen]:
    """Return the addresses that a configuration of ours listens on."""
    return frozenset(Listen(host.strip("[]"), int(port)) for host, port in _LISTEN.findall(text))


def label(name: str) -> str:
    """Return the DNS label of the service that is `name` inside nginx."""
    return name.replace("_", "-")


def is_fast(route: HttpRoute, *, facts: Facts) -> bool:
    """Tell whether a route follows the control socket. Affinity needs one stable list, so hashes do not."""
    return facts.live and facts.fast and route.method == "round-robin"


def make_plan(
    routes: Routes,
    *,
    site: Site,
    endpoints: Mapping[str, tuple[Endpoint, ...]],
    facts: Facts,
) -> Plan:
    """Return the plan; in the live lane only what about the endpoints needs a reload is part of it."""
    bases = {one.service for one in routes.http}
    canary = [one for one in routes.canary if one.canary_of in bases]
    if not facts.live:
        # A canary without an instance would be an error to those it was chosen for. Where endpoints travel apart it
        # is lent those of its base.
        canary = [one for one in canary if endpoints.get(one.service)]
    bare = msgspec.structs.replace(routes, problems=(), canary=tuple(canary))
    services = sorted(bare.services())
    if not facts.live:
        mine = {service: endpoints.get(service, ()) for service in services}
        return Plan(site=site, routes=bare, endpoints=mine)
    return Plan(
        site=site,
        routes=bare,
        big=frozenset(one for one in services if len(endpoints.get(one, ())) > _SMALL_ZONE),
        ipv6=frozenset(
            one
            for one in services
            if any(":" in endpoint.address for endpoint in endpoints.get(one, ()))
        ),
    )


def render(plan: Plan, *, facts: Facts, generation: int) -> Rendered:
    """Return the configuration of `plan`."""
    writer = _Writer(plan, facts=facts)
    writer.main(generation)
    return Rendered(
        generation=generation,
        text="\n".join(writer.lines) + "\n",
        script=script(plan.site.ports.http_sentinel),
        spans=tuple(writer.spans),
    )


def script(sentinel_port: int) -> str:
    """Return the njs script of the control socket.

    `ep` stores (PUT) or forgets (DELETE) the endpoints of service `s`, as `IP:PORT` separated by spaces; while the
    keyval entry lives, requests go to one of them. The list outlives the entry, so no request finds the one
    without the other. `hosts` takes hosts with the service each leads to, "" for one that has to wait for its
    `server`; `early` finds the service of a request in the order of nginx's server names.
    """
    return f"""\
const NOBODY = '127.0.0.1:{sentinel_port}';
function endpoints(r) {{
  return (ngx.shared.wp_eps.get(r.variables.wp_svc) || '').split(' ').filter(one => one);
}}
function any(list) {{
  return list.length ? list[Math.floor(Math.random() * list.length)] : NOBODY;
}}
function pick(r) {{ return any(endpoints(r)); }}
function pick_other(r) {{
  const tried = (r.variables.upstream_addr || '').split(', ');
  const list = endpoints(r);
  const others = list.filter(one => !tried.includes(one));
  return any(others.length ? others : list);
}}
function ep(r) {{
  const service = r.args.s;
  if (r.method == 'PUT') {{
    ngx.shared.wp_eps.set(service, r.requestText || ' ');
    r.variables.wp_ov = '1';
  }} else if (r.method == 'DELETE') {{
    r.variables.wp_ov = '';
    ngx.shared.wp_eps.delete(service);
  }}
  r.return(200, (ngx.shared.wp_eps.get(service) || '-') + '\\n');
}}
function early(r) {{
  const hosts = ngx.shared.wp_hosts;
  const host = r.variables.host;
  if (host.length > 253) {{ return ''; }}
  let found = hosts.get(host);
  for (let at = host.indexOf('.'); found === undefined && at >= 0; at = host.indexOf('.', at + 1)) {{
    found = hosts.get('*' + host.slice(at));
  }}
  for (let at = host.lastIndexOf('.'); found === undefined && at > 0; at = host.lastIndexOf('.', at - 1)) {{
    found = hosts.get(host.slice(0, at) + '.*');
  }}
  return found || '';
}}
function hosts(r) {{
  const told = JSON.parse(r.requestText);
  for (const host in told) {{ ngx.shared.wp_hosts.set(host, told[host]); }}
  r.return(200);
}}
export default {{ pick, pick_other, ep, early, hosts }};
"""


def _token(value: object) -> str:
    """Return `value` as one word of configuration. Everything was validated before; this is the second lock."""
    text = str(value)
    if not _TOKEN.fullmatch(text):
        raise Malformed(f"{text!a} may not stand in nginx's configuration")
    return text


def _map_key(host: str) -> str:
    """Return a host as the key of a `map`. A backslash keeps nginx from reading it as a word of its own.

    Only before those: before t, r and n it would make a control character.
    """
    return f"\\{host}" if host in _MAP_WORDS else _token(host)


def _path_token(path: Path) -> str:
    text = str(path)
    if not path.is_absolute() or any(char in text for char in "\"'\\$;{}\n\r"):
        raise Malformed(f"the path {text!a} may not stand in nginx's configuration")
    return f'"{text}"'


class _Writer:
    """Collects lines and notes which service each belongs to."""

    def __init__(self, plan: Plan, *, facts: Facts) -> None:
        self._plan = plan
        self._site = plan.site
        self._facts = facts
        self._chosen: dict[str, str] = {}
        """Service with a canary → the variable that holds whose turn it is."""
        self.lines: list[str] = []
        self.spans: list[Span] = []

    def put(self, *lines: str) -> None:
        for line in lines:
            self.lines.extend(line.split("\n"))

    def put_for(self, service: str, lines: Iterable[str]) -> None:
        first = len(self.lines) + 1
        self.put(*lines)
        self.spans.append(Span(first, len(self.lines), service))

    def main(self, generation: int) -> None:
        site, facts = self._site, self._facts
        self.put("# Written by waypost; what is changed here is overwritten.")
        if facts.stream_module is not None:
            self.put(f"load_module {_path_token(facts.stream_module)};")
        if site.user:
            self.put("user " + " ".join(_token(one) for one in site.user.split()) + ";")
        self.put(
            "daemon on;",
            f"worker_processes {site.workers};",
            f"worker_rlimit_nofile {site.open_files};",
            "worker_shutdown_timeout 10m;",
            "pid run/nginx.pid;",
            "error_log logs/error.log notice;",
            f"events {{ worker_connections {min(16384, site.open_files // 2)}; }}",
        )
        self._http(generation)
        if facts.stream:
            self._stream()

    # http

    def _http(self, generation: int) -> None:
        self.put("http {")
        self._http_base()
        self._control(generation)
        self._sentinel()
        for listen in self._site.listen:
            self.put(
                f"  server {{ listen {_token(listen.text())} default_server;",
                "    default_type text/plain;",
                *self._unknown_host(),
            )
        if self._site.listen:
            for route in (*self._plan.routes.http, *self._plan.routes.canary):
                self.put_for(route.service, self._http_upstream(route))
            for route in self._plan.routes.canary:
                self.put_for(route.service, self._canary(route))
            for hosts, routes in _by_hosts(self._plan.routes.http):
                self._http_server(hosts, routes)
        self.put("}")

    def _unknown_host(self) -> list[str]:
        refused = 'return 404 "no service answers to this host name\\n";'
        if not (self._facts.live and self._facts.fast):
            return [f"    {refused} }}"]
        plain = HttpRoute(service="", ident="wp_early", hosts=(), body_bytes=self._site.body_bytes)
        return [
            "    location / {",
            f'      if ($wp_early = "") {{ {refused} }}',
            "      set $wp_svc $wp_early;",
            f"      client_max_body_size {plain.body_bytes};",
            *_proxy_lines(plain, tries=plain.tries, budget="2s"),
            "      error_page 502 504 = @wp_early;",
            "      proxy_pass http://$wp_peer; }",
            *_once_more(plain, target="$wp_early", other="$wp_peer2"),
            "  }",
        ]

    def _http_base(self) -> None:
        temp = self._site.temp
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            self.put(f"  {kind}_temp_path {_path_token(temp / kind)};")
        self.put(
            "  server_tokens off;",
            "  keepalive_timeout 65s;",
        )
        if self._facts.version >= (1, 27, 4):
            # Without it a reload closes idle connections in the client's face: 13 % of requests failed at 10/s.
            self.put("  keepalive_min_timeout 3s;")
        self.put(
            "  server_names_hash_bucket_size 512;",
            "  server_names_hash_max_size 16384;",
            "  map_hash_bucket_size 512;",
            "  map_hash_max_size 16384;",
            '  map $http_upgrade $wp_connection { default upgrade; "" ""; }',
        )
        self.put("  proxy_http_version 1.1;", *(f"  {one}" for one in _PROXY_HEADERS))
        # A read timeout is at least 1 s and the budget for retries 1 or 2 s: only failures to connect are tried again.
        self.put("  proxy_next_upstream error timeout;")
        self._access_log()
        if self._facts.live and self._facts.fast:
            self._fast_lane()

    def _access_log(self) -> None:
        path = self._site.access_log
        if path is None:
            self.put("  access_log off;")
            return
        self.put(
            "  log_format waypost escape=json '{"
            + ",".join(f'"{key}":{value}' for key, value in _LOG_FIELDS)
            + "}';",
            f"  access_log {_path_token(path)} waypost buffer=64k flush=1s;",
        )

    def _fast_lane(self) -> None:
        self.put(
            "  js_path js;",
            "  js_import wp from wp.js;",
            "  js_shared_dict_zone zone=wp_eps:8m timeout=10s;",
            "  keyval_zone zone=wp_kv:2m timeout=3s;",
            "  keyval $wp_svc $wp_ov zone=wp_kv;",
            f"  js_shared_dict_zone zone=wp_hosts:2m timeout={EARLY_S}s;",
            "  js_set $wp_early wp.early;",
            "  js_set $wp_peer wp.pick nocache;",
            "  js_set $wp_peer2 wp.pick_other nocache;",
            '  map $wp_ov $wp_dst { volatile; "" $wp_svc; default $wp_peer; }',
            '  map $wp_ov $wp_dst2 { volatile; "" $wp_svc; default $wp_peer2; }',
            '  map "$upstream_status:$request_method:$upstream_bytes_sent" $wp_retry { volatile; default 0;',
            '    "~^(.*[, ])?502:(GET|HEAD|OPTIONS|PUT|DELETE):" 1;',
            '    "~:(0|-)?(, (0|-))*$" 1;',
            # What was sent and not answered in time must not be sent again: it stays the 504 that it is.
            '    "~^(.*[, ])?504:" 4; }',
        )

    def _control(self, generation: int) -> None:
        self.put(
            f'  server {{ listen "unix:{_unquoted(self._site.prefix / "run" / "ctl.sock")}";',
            "    access_log off;",
            f'    location = /gen {{ default_type text/plain; return 200 "{generation}"; }}',
        )
        if self._facts.live and self._facts.fast:
            self.put(
                "    set $wp_svc $arg_s;",
                "    location = /ep { client_body_buffer_size 256k; client_max_body_size 256k;",
                "      js_content wp.ep; }",
                "    location = /hosts { client_body_buffer_size 256k; client_max_body_size 256k;",
                "      js_content wp.hosts; }",
            )
        self.put("    location / { return 404; } }")

    def _sentinel(self) -> None:
        if self._facts.live:
            self.put(
                f"  server {{ listen 127.0.0.1:{self._site.ports.http_sentinel}; access_log off;",
                "    add_header Retry-After 1 always; return 503; }",
            )

    def _http_upstream(self, route: HttpRoute) -> list[str]:
        endpoints = even_weights(self._plan.endpoints.get(route.service, ()), method=route.method)
        if not self._facts.live and not endpoints:
            return []
        lines = self._upstream(route, endpoints)
        if route.rate:
            zone = f"zone={_token(route.ident)}_rl:1m"
            lines.insert(0, f"  limit_req_zone $binary_remote_addr {zone} rate={route.rate}r/s;")
        if route.method == "sticky-cookie":
            lines.append("    sticky cookie wp_sid path=/ httponly samesite=lax;")
        if route.keepalive_ms:
            lines.append(f"    keepalive 32; keepalive_timeout {route.keepalive_ms}ms; }}")
        elif self._facts.version >= (1, 29, 7):
            lines.append("    keepalive 0; }")
        else:
            lines.append("  }")
        return lines

    def _upstream(self, route: Route, endpoints: tuple[Endpoint, ...]) -> list[str]:
        name = _token(route.ident)
        method = {"least-conn": "    least_conn;", "hash-ip": "    hash $remote_addr consistent;"}
        lines = [f"  upstream {name} {{"]
        if self._facts.live:
            size = "1m" if route.service in self._plan.big else "256k"
            lines.append(f"    zone {name} {size};")
            if route.method in method:
                lines.append(method[route.method])
            family = "" if route.service in self._plan.ipv6 else " ipv6=off"
            lines += [
                f"    resolver 127.0.0.1:{self._site.ports.dns}{family}; resolver_timeout 1s;",
                f"    server {_token(label(route.ident))}.{ZONE} service={SRV_SERVICE} resolve max_fails=0;",
            ]
            return lines
        lines.append(f"    zone {name} 256k;")
        if route.method in method:
            lines.append(method[route.method])
        for one in endpoints:
            where = Listen(one.address, one.port).text()
            lines.append(f"    server {_token(where)} weight={one.weight} max_fails=0;")
        return lines

    def _canary(self, route: HttpRoute) -> list[str]:
        """Choose between a service and its canary: header before cookie before share of the clients."""
        canary, base = _token(route.ident), _token(ident(route.canary_of))
        share = f"{route.percent}% {canary}; " if 0 < route.percent < 100 else ""
        rest = canary if route.percent == 100 else base
        lines = [f'  split_clients "$remote_addr" $share_{base} {{ {share}* {rest}; }}']
        chosen = f"$share_{base}"
        for kind, variable in (("cookie", route.cookie), ("header", route.header)):
            if variable:
                name = f"${kind}_{base}"
                rules = f"default {chosen}; always {canary}; never {base};"
                lines.append(f"  map ${_token(variable[1:])} {name} {{ {rules} }}")
                chosen = name
        self._chosen[route.canary_of] = chosen
        return lines

    def _http_server(self, hosts: tuple[str, ...], routes: tuple[HttpRoute, ...]) -> None:
        self.put("  server {")
        self.put(*(f"    listen {_token(one.text())};" for one in self._site.listen))
        owner = routes[0].service
        self.put_for(owner, [f"    server_name {' '.join(_token(one) for one in hosts)};"])
        for route in routes:
            self.put_for(route.service, self._locations(route))
        if all(route.path != "/" for route in routes):
            self.put("    location / { return 404; }")
        self.put("  }")

    def _locations(self, route: HttpRoute) -> list[str]:
        path = _token(route.path)
        heads = [f"    location {path} {{"]
        if not path.endswith("/"):
            heads = [f"    location = {path} {{", f"    location {path}/ {{"]
        lines: list[str] = []
        for head in heads:
            lines += [head, *self._location(route)]
        if is_fast(route, facts=self._facts):
            lines += _once_more(route, target=self._target(route), other="$wp_dst2")
        return lines

    def _target(self, route: HttpRoute) -> str:
        return self._chosen.get(route.service, _token(route.ident))

    def _location(self, route: HttpRoute) -> list[str]:
        name = _token(route.ident)
        if not self._facts.live and not self._plan.endpoints.get(route.service):
            return ["      add_header Retry-After 1 always; return 503; }"]
        lines = []
        if route.rate:
            lines.append(
                f"      limit_req zone={name}_rl burst={2 * route.rate} nodelay; limit_req_status 429;"
            )
        lines.append(f"      client_max_body_size {route.body_bytes};")
        lines += _proxy_lines(route, tries=route.tries, budget="2s")
        if route.snippet:
            lines.append(route.snippet)
        if is_fast(route, facts=self._facts):
            lines += [
                f"      set $wp_svc {self._target(route)};",
                f"      error_page 502 504 = @{name};",
                "      proxy_pass http://$wp_dst; }",
            ]
        else:
            lines.append(f"      proxy_pass http://{self._target(route)}; }}")
        return lines

    # stream

    def _stream(self) -> None:
        self.put("stream {")
        if self._facts.live:
            port = self._site.ports.stream_sentinel
            self.put(f'  server {{ listen 127.0.0.1:{port}; return ""; }}')
        for route in self._plan.routes.stream:
            self.put_for(route.service, self._stream_server(route))
        if self._plan.routes.tls and self._site.tls_listen:
            self._tls()
        self.put("}")

    def _tls(self) -> None:
        """One server for all: the name in the client's hello chooses the upstream."""
        self.put(
            "  map_hash_bucket_size 512; map_hash_max_size 16384;",
            "  upstream wp_nobody { zone wp_nobody 64k; server 127.0.0.1:1 down; }",
        )
        for route in self._plan.routes.tls:
            self.put_for(route.service, self._tls_upstream(route))
        self.put("  map $ssl_preread_server_name $wp_sni { hostnames; default wp_nobody;")
        for route in self._plan.routes.tls:
            served = self._facts.live or self._plan.endpoints.get(route.service)
            target = _token(route.ident) if served else "wp_nobody"
            lines = [f"    {_map_key(one)} {target};" for one in route.hosts]
            self.put_for(route.service, lines)
        self.put("  }", "  server {")
        self.put(*(f"    listen {_token(one.text())};" for one in self._site.tls_listen))
        self.put(
            "    ssl_preread on; preread_timeout 5s;",
            "    proxy_connect_timeout 500ms; proxy_timeout 1h; proxy_socket_keepalive on;",
            # `echo question | nc` ends its side at once and still wants the answer.
            "    proxy_half_close on;",
            "    proxy_pass $wp_sni; }",
        )

    def _tls_upstream(self, route: TlsRoute) -> list[str]:
        endpoints = even_weights(self._plan.endpoints.get(route.service, ()), method=route.method)
        if not self._facts.live and not endpoints:
            return []
        return [*self._upstream(route, endpoints), "  }"]

    def _stream_server(self, route: StreamRoute) -> list[str]:
        endpoints = even_weights(self._plan.endpoints.get(route.service, ()), method=route.method)
        served = self._facts.live or bool(endpoints)
        lines: list[str] = []
        if served:
            lines += [*self._upstream(route, endpoints), "  }"]
        lines.append("  server {")
        for address in self._site.tcp_addresses:
            lines.append(f"    listen {_token(Listen(address, route.port).text())};")
        if not served:
            return [*lines, '    return ""; }']
        lines += [
            f"    proxy_connect_timeout {route.connect_ms}ms; proxy_timeout {route.idle_ms}ms;",
            # `echo question | nc` ends its side at once and still wants the answer.
            "    proxy_half_close on;",
            "    proxy_socket_keepalive on;",
        ]
        if route.snippet:
            lines.append(route.snippet)
        return [*lines, f"    proxy_pass {_token(route.ident)}; }}"]


_LOG_FIELDS: Final = (
    ("t", "$msec"),
    ("m", '"$request_method"'),
    ("h", '"$host"'),
    ("st", "$status"),
    ("rt", "$request_time"),
    ("bi", "$request_length"),
    ("bo", "$bytes_sent"),
    ("ua", '"$upstream_addr"'),
    ("us", '"$upstream_status"'),
    ("ut", '"$upstream_response_time"'),
)


def _unquoted(path: Path) -> str:
    return _path_token(path).strip('"')


_PROXY_HEADERS: Final = (
    "proxy_set_header Host $host;",
    "proxy_set_header Upgrade $http_upgrade;",
    "proxy_set_header Connection $wp_connection;",
    "proxy_set_header X-Real-IP $remote_addr;",
    "proxy_set_header X-Forwarded-For $remote_addr;",
    "proxy_set_header X-Forwarded-Host $http_host;",
    "proxy_set_header X-Forwarded-Port $server_port;",
    "proxy_set_header X-Forwarded-Proto $scheme;",
)


def _proxy_lines(route: HttpRoute, *, tries: int, budget: str) -> list[str]:
    lines = [
        f"      proxy_connect_timeout {route.connect_ms}ms; proxy_read_timeout {route.read_ms}ms;",
        f"      proxy_next_upstream_tries {tries}; proxy_next_upstream_timeout {budget};",
    ]
    if route.snippet:
        # One proxy_set_header of the operator here would make nginx forget those of the outer level.
        lines += [f"      {one}" for one in _PROXY_HEADERS]
    return lines


def _once_more(route: HttpRoute, *, target: str, other: str) -> list[str]:
    """Return the location that tries a request again that may be, at the instance in the variable `other`."""
    return [
        f"    location @{_token(route.ident)} {{",
        "      if ($wp_retry = 0) { return 502; }",
        "      if ($wp_retry = 4) { return 504; }",
        f"      set $wp_svc {target};",
        *_proxy_lines(route, tries=min(2, route.tries), budget="1s"),
        f"      proxy_pass http://{other}; }}",
    ]


def _by_hosts(
    routes: Iterable[HttpRoute],
) -> list[tuple[tuple[str, ...], tuple[HttpRoute, ...]]]:
    """Group hosts that lead to the same set of routes: each group is one `server`."""
    by_host: dict[str, list[HttpRoute]] = {}
    for route in routes:
        for host in route.hosts:
            by_host.setdefault(host, []).append(route)
    groups: dict[tuple[str, ...], tuple[list[str], tuple[HttpRoute, ...]]] = {}
    for host, members in by_host.items():
        ordered = tuple(sorted(members, key=lambda one: one.path))
        key = tuple(one.ident for one in ordered)
        groups.setdefault(key, ([], ordered))[0].append(host)
    return [(tuple(hosts), members) for hosts, members in groups.values()]
