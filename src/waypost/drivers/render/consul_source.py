"""A Source over any Consul HTTP API: our own agent's or a real Consul's.

Source: Consul HTTP API, blocking queries. Stale answers are taken while the answering server is at most `max_stale_s`
behind the leader, as consul-template does.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import field
from yarl import URL

from waypost.base.duration import format_ns
from waypost.base.errors import Malformed, NotFound, Rejected, Unavailable
from waypost.drivers.render import dependency as ask
from waypost.drivers.render import records
from waypost.drivers.render.dependency import Dependency
from waypost.drivers.render.source import Fetched
from waypost.model.catalog import Check, Node, Service, TaggedAddress, Weights
from waypost.model.kv import KVEntry

_SLACK_S: Final = 15.0
"""Consul answers a blocking query up to a sixteenth later than asked, and the way takes time too."""
_MAX_BODY_BYTES: Final = 256 * 1024 * 1024


class ConsulSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the Consul API is reached. `address` is `host:port`, a URL, or `unix:///path`."""

    address: str = "127.0.0.1:8500"
    token: str = ""
    auth: tuple[str, str] | None = None
    max_stale_s: float = 2.0
    tls: bool = False
    tls_verify: bool = True
    tls_ca_cert: str = ""
    tls_ca_path: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_server_name: str = ""

    def __repr__(self) -> str:
        return f"ConsulSettings(address={self.address!r}, token={'***' if self.token else ''!r})"


class _WireAddress(msgspec.Struct, rename="pascal"):
    address: str = ""
    port: int = 0


class _WireWeights(msgspec.Struct, rename="pascal"):
    passing: int = 1
    warning: int = 1


class _WireNode(msgspec.Struct, rename="pascal"):
    node: str
    address: str
    id: str = field(default="", name="ID")
    datacenter: str = ""
    tagged_addresses: dict[str, str] | None = None
    meta: dict[str, str] | None = None


class _WireService(msgspec.Struct, rename="pascal"):
    id: str = field(name="ID")
    service: str
    tags: list[str] | None = None
    address: str = ""
    port: int = 0
    meta: dict[str, str] | None = None
    tagged_addresses: dict[str, _WireAddress] | None = None
    weights: _WireWeights | None = None
    enable_tag_override: bool = False


class _WireCheck(msgspec.Struct, rename="pascal"):
    node: str
    check_id: str = field(name="CheckID")
    name: str
    status: str
    notes: str = ""
    output: str = ""
    service_id: str = field(default="", name="ServiceID")
    service_name: str = ""
    service_tags: list[str] | None = None


class _WireEntry(msgspec.Struct, rename="pascal"):
    node: _WireNode
    service: _WireService
    checks: list[_WireCheck] | None = None


class _WireCatalogNode(msgspec.Struct, rename="pascal"):
    node: _WireNode | None = None
    services: dict[str, _WireService] | None = None


class _WirePair(msgspec.Struct, rename="pascal"):
    key: str
    value: bytes | None = None
    flags: int = 0
    lock_index: int = 0
    session: str = ""
    create_index: int = 0
    modify_index: int = 0


class _Answer(msgspec.Struct):
    status: int
    index: int
    body: bytes
    lag_ms: int
    known_leader: bool


class ConsulSource:
    """Answers dependencies by blocking queries. Make it with `open_source`."""

    def __init__(self, settings: ConsulSettings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session

    async def fetch(self, dependency: Dependency, *, index: int, wait_s: float) -> Fetched:
        """Return the value past `index`. Raises Rejected with Consul's words, Unavailable without an answer."""
        path, query, empty_404 = _request(dependency)
        if dependency.datacenter:
            query["dc"] = dependency.datacenter
        if isinstance(dependency, ask.NodeDependency) and not dependency.name:
            path = "/v1/catalog/node/" + quote(await self._own_name(), safe="")
        if isinstance(dependency, ask.DatacentersDependency):
            answer = await self._get(path, {}, timeout_s=_SLACK_S)
            return Fetched(0, await self._datacenters(dependency, _decode(answer.body, list[str])))
        if index:
            query |= {"index": str(index), "wait": format_ns(int(wait_s * 1e9))}
        stale = {"stale": ""} if self._settings.max_stale_s > 0 else {}
        answer = await self._get(
            path, {**query, **stale}, timeout_s=wait_s + _SLACK_S, empty_404=empty_404
        )
        if stale and not self._is_fresh(answer):
            answer = await self._get(
                path, {**query, "consistent": ""}, timeout_s=wait_s + _SLACK_S, empty_404=empty_404
            )
        return Fetched(answer.index, _value(dependency, answer))

    def _is_fresh(self, answer: _Answer) -> bool:
        return answer.known_leader and answer.lag_ms <= self._settings.max_stale_s * 1000

    async def _own_name(self) -> str:
        answer = await self._get("/v1/agent/self", {}, timeout_s=_SLACK_S)
        config = _decode(answer.body, dict[str, Any]).get("Config", {})
        return str(config.get("NodeName", ""))

    async def _datacenters(
        self, dependency: ask.DatacentersDependency, names: list[str]
    ) -> tuple[str, ...]:
        if not dependency.ignore_down:
            return tuple(sorted(names))
        up = []
        for name in names:
            try:
                await self._get("/v1/catalog/services", {"dc": name}, timeout_s=_SLACK_S)
            except (Rejected, Unavailable):
                continue
            up.append(name)
        return tuple(sorted(up))

    async def _get(
        self, path: str, query: dict[str, str], *, timeout_s: float, empty_404: bool = False
    ) -> _Answer:
        try:
            async with self._session.get(
                URL(path, encoded=True).update_query(query),
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                server_hostname=self._settings.tls_server_name or None,
            ) as response:
                body = await response.content.read(_MAX_BODY_BYTES)
                while chunk := await response.content.read(_MAX_BODY_BYTES):
                    body += chunk
                    if len(body) > _MAX_BODY_BYTES:
                        raise Rejected(f"answer is longer than {_MAX_BODY_BYTES} bytes")
                headers = response.headers
        except TimeoutError as exc:
            raise Unavailable(f"Get {path}: no answer within {timeout_s:g}s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Unavailable(f"Get {path}: {exc}") from exc
        if response.status != 200 and not (response.status == 404 and empty_404):
            text = body.decode("utf-8", "replace").strip()
            shown = f" ({text[:500]})" if text else ""
            error = f"Unexpected response code: {response.status}{shown}"
            raise NotFound(error) if response.status == 404 else Rejected(error)
        return _Answer(
            response.status,
            _integer(headers.get("X-Consul-Index")),
            body,
            _integer(headers.get("X-Consul-LastContact")),
            headers.get("X-Consul-KnownLeader", "true") == "true",
        )


def _integer(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 20 else 0


def _request(dependency: Dependency) -> tuple[str, dict[str, str], bool]:
    """Return path, query, and whether 404 is an answer."""
    match dependency:
        case ask.ServiceDependency():
            query = {"passing": "1"} if dependency.filters == ("passing",) else {}
            if dependency.tag:
                query["tag"] = dependency.tag
            if dependency.near:
                query["near"] = dependency.near
            return f"/v1/health/service/{quote(dependency.name, safe='')}", query, False
        case ask.ServicesDependency():
            return "/v1/catalog/services", {}, False
        case ask.NodesDependency():
            return "/v1/catalog/nodes", {"near": dependency.near} if dependency.near else {}, False
        case ask.NodeDependency():
            return f"/v1/catalog/node/{quote(dependency.name, safe='')}", {}, True
        case ask.KeyDependency() | ask.KeyExistsDependency():
            return f"/v1/kv/{quote(dependency.key)}", {}, True
        case ask.PrefixDependency():
            return f"/v1/kv/{quote(dependency.prefix)}", {"recurse": ""}, True
        case ask.DatacentersDependency():
            return "/v1/catalog/datacenters", {}, False
        case _:
            raise Rejected(f"{dependency} cannot be asked of Consul")


def _decode(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise Rejected(f"unexpected answer: {exc}") from exc


def _value(dependency: Dependency, answer: _Answer) -> Any:
    """Return the value of an answer as templates see it."""
    body = answer.body if answer.status == 200 and answer.body.strip() != b"null" else b""
    match dependency:
        case ask.ServiceDependency():
            entries = _decode(body or b"[]", list[_WireEntry])
            return records.select(
                map(_instance, entries),
                filters=dependency.filters,
                keep_order=bool(dependency.near),
            )
        case ask.ServicesDependency():
            return records.snippets(_decode(body or b"{}", dict[str, list[str]]))
        case ask.NodesDependency():
            nodes = [
                records.node_record(_node(each)) for each in _decode(body or b"[]", list[_WireNode])
            ]
            if not dependency.near:
                nodes.sort(key=lambda each: (each.node, each.address))
            return tuple(nodes)
        case ask.NodeDependency():
            found = _decode(body or b"{}", _WireCatalogNode)
            services = (found.services or {}).values()
            node = _node(found.node) if found.node is not None else None
            return records.catalog_node(node, (_service("", each) for each in services))
        case ask.KeyDependency():
            pairs = _decode(body or b"[]", list[_WirePair])
            return (pairs[0].value or b"").decode("utf-8", "surrogateescape") if pairs else None
        case ask.KeyExistsDependency():
            return answer.status == 200
        case _:
            prefix = dependency.prefix if isinstance(dependency, ask.PrefixDependency) else ""
            pairs = _decode(body or b"[]", list[_WirePair])
            return tuple(records.key_pair(_entry(each), prefix=prefix) for each in pairs)


def _node(wire: _WireNode) -> Node:
    return Node(
        node=wire.node,
        address=wire.address,
        id=wire.id,
        datacenter=wire.datacenter,
        tagged_addresses=wire.tagged_addresses,
        meta=wire.meta,
    )


def _service(node: str, wire: _WireService) -> Service:
    weights = wire.weights or _WireWeights()
    return Service(
        node=node,
        id=wire.id,
        name=wire.service,
        tags=tuple(wire.tags or ()),
        address=wire.address,
        port=wire.port,
        meta=wire.meta,
        tagged_addresses={
            name: TaggedAddress(each.address, each.port)
            for name, each in (wire.tagged_addresses or {}).items()
        },
        weights=Weights(weights.passing, weights.warning),
        enable_tag_override=wire.enable_tag_override,
    )


def _instance(wire: _WireEntry) -> records.HealthService:
    checks = [
        Check(
            node=each.node,
            check_id=each.check_id,
            name=each.name,
            status=each.status,
            notes=each.notes,
            output=each.output,
            service_id=each.service_id,
            service_name=each.service_name,
            service_tags=tuple(each.service_tags or ()),
        )
        for each in wire.checks or ()
    ]
    return records.health_service(_node(wire.node), _service(wire.node.node, wire.service), checks)


def _entry(wire: _WirePair) -> KVEntry:
    return KVEntry(
        key=wire.key,
        value=wire.value or b"",
        flags=wire.flags,
        lock_index=wire.lock_index,
        session=wire.session,
        create_index=wire.create_index,
        modify_index=wire.modify_index,
    )


def _tls(settings: ConsulSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=settings.tls_ca_cert or None, capath=settings.tls_ca_path or None
        )
        if not settings.tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if settings.tls_cert:
            context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
    except (OSError, ssl.SSLError) as exc:
        raise Malformed(f"consul ssl: {exc}") from exc
    return context


@asynccontextmanager
async def open_source(settings: ConsulSettings) -> AsyncIterator[ConsulSource]:
    """Open the connections to a Consul API. Raises Malformed for settings that cannot work."""
    address = settings.address
    headers = {"X-Consul-Token": settings.token} if settings.token else {}
    auth = aiohttp.BasicAuth(*settings.auth) if settings.auth else None
    connector: aiohttp.BaseConnector
    # Every dependency is one long query: no bound on connections here, the watcher has its own.
    if address.startswith("unix://"):
        connector = aiohttp.UnixConnector(path=address.removeprefix("unix://"), limit=0)
        base = "http://localhost"
    else:
        is_tls = settings.tls or address.startswith("https://")
        if "://" not in address:
            address = ("https://" if is_tls else "http://") + address
        connector = aiohttp.TCPConnector(limit=0, ssl=_tls(settings) if is_tls else True)
        base = address
    try:
        session = aiohttp.ClientSession(base, connector=connector, headers=headers, auth=auth)
    except ValueError as exc:
        await connector.close()
        raise Malformed(f'consul address "{settings.address}": {exc}') from exc
    async with session:
        yield ConsulSource(settings, session)
