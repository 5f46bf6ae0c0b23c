"""Registries over any Consul HTTP API: `consul://`, `consul-tls://`, `consul-unix://` and `consulkv://`.

Ownership: an id of the form `<hostname>:<container>:<port>` with our own hostname is ours, whoever wrote it
(an earlier run, or Registrator itself); besides, everything this process has registered. A custom
`SERVICE_ID` of an earlier run cannot be told from a service that somebody else registered, so it is left.

Source: Consul HTTP API, `agent/service/register`, `agent/check/update`, `status/leader`, `kv`.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from waypost.base.duration import format_ns
from waypost.base.errors import Forbidden, Malformed, NotFound, Rejected, Unavailable
from waypost.drivers.docker.mapping import OWNER, Registration, same
from waypost.drivers.docker.probes import authority
from waypost.drivers.docker.registrator import container_name
from waypost.model.catalog import CRITICAL, Check, CheckDefinition, Service

if TYPE_CHECKING:
    import aiohttp

FOREVER: Final = "87600h"
"""TTL of the HEALTHCHECK's check: it changes when Docker says so, not because time passes. A dead machine is
Consul's own business (`serfHealth`), and a registrator that is restarted must not be an outage."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a Consul API listens and how to speak to it."""

    scheme: str
    """The registry URI's scheme."""
    base_url: str
    socket: str = ""
    prefix: str = ""
    """Of `consulkv`."""
    token: str = ""
    auth: str = ""
    """`user:password`."""
    verify: bool = True
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __repr__(self) -> str:  # never the token
        return f"Address({self.scheme}://{self.socket or self.base_url})"


UNSUPPORTED: Final = ("etcd", "skydns2", "zookeeper", "etcd-tls")
SCHEMES: Final = ("consul", "consul-tls", "consul-unix", "consulkv", "consulkv-unix")


def parse_uri(uri: str, env: Mapping[str, str]) -> Address:
    """Return the address of a registry URI; `CONSUL_*` variables fill in what it does not say.

    Raises Malformed with the schemes that work when it is another.
    """
    scheme, sep, rest = uri.partition("://")
    if not sep or scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        if scheme in UNSUPPORTED:
            raise Malformed(f"registry {uri!r}: {scheme} is not supported; use one of {known}")
        raise Malformed(f"bad adapter uri: {uri!r}; want one of {known}")
    common: dict[str, Any] = {
        "scheme": scheme,
        "token": env.get("CONSUL_HTTP_TOKEN", ""),
        "auth": env.get("CONSUL_HTTP_AUTH", ""),
        "verify": _truth(env.get("CONSUL_HTTP_SSL_VERIFY", "true")) or scheme == "consul-tls",
        "ca_file": env.get("CONSUL_CACERT", ""),
        "cert_file": env.get("CONSUL_CLIENT_CERT", ""),
        "key_file": env.get("CONSUL_CLIENT_KEY", ""),
    }
    if scheme.endswith("-unix"):
        socket, _, prefix = rest.partition(":")
        if not socket.startswith("/"):
            raise Malformed(f"registry {uri!r}: want {scheme}:///path/of/the/socket")
        return Address(base_url="http://consul", socket=socket, prefix=prefix.strip("/"), **common)
    host, _, path = rest.partition("/")
    secure = scheme == "consul-tls" or _truth(env.get("CONSUL_HTTP_SSL", ""))
    if not host:
        host = env.get("CONSUL_HTTP_ADDR", "") or "127.0.0.1:8500"
        given, sep, bare = host.partition("://")
        if sep:
            if given == "unix":
                return Address(
                    base_url="http://consul", socket=bare, prefix=path.strip("/"), **common
                )
            secure, host = secure or given == "https", bare.rstrip("/")
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port or (8501 if secure else 8500)
        name = parts.hostname
    except ValueError as exc:
        raise Malformed(f"registry {uri!r}: {exc}") from exc
    if not name or "@" in host:
        raise Malformed(f"registry {uri!r}: want {scheme}://host:port")
    base = f"{'https' if secure else 'http'}://{authority(name, port)}"
    return Address(base_url=base, prefix=path.strip("/"), **common)


def _truth(text: str) -> bool:
    return text.strip().lower() in ("1", "t", "true")


class ConsulApi:
    """The few calls we need, with our errors."""

    def __init__(self, at: Address, *, timeout_s: float = 10.0) -> None:
        self.address = at
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def leader(self) -> str:
        """Return the leader's address; raises Unavailable when there is none."""
        found = str(await self.call("GET", "/v1/status/leader") or "")
        if not found:
            raise Unavailable(f"consul at {self._where()}: no cluster leader")
        return found

    async def call(
        self, method: str, path: str, *, body: Any = None, query: Mapping[str, str] | None = None
    ) -> Any:
        """Return the decoded answer, None when it is empty.

        Raises Unavailable (no connection, 5xx, 429), NotFound, Forbidden, or Rejected with Consul's text.
        """
        import aiohttp

        data = (
            body if isinstance(body, bytes) else None if body is None else msgspec.json.encode(body)
        )
        url = self.address.base_url + path
        try:
            async with self._open().request(method, url, data=data, params=query) as got:
                answer = await got.read()
                status = got.status
        except TimeoutError as exc:
            raise Unavailable(
                f"consul at {self._where()}: no answer in {self._timeout_s:g} s"
            ) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Unavailable(f"consul at {self._where()}: {exc or type(exc).__name__}") from exc
        if status >= 400:
            text = answer[:500].decode(errors="replace").strip()
            raise _refusal(status, text)(f"consul: {status}: {text}")
        try:
            return msgspec.json.decode(answer) if answer.strip() else None
        except msgspec.MsgspecError as exc:
            raise Unavailable(f"consul at {self._where()}: not JSON: {exc}") from exc

    def _where(self) -> str:
        return self.address.socket or self.address.base_url

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            at = self.address
            connector: aiohttp.BaseConnector
            if at.socket:
                connector = aiohttp.UnixConnector(path=at.socket)
            else:
                context = _ssl_context(at) if at.base_url.startswith("https:") else True
                connector = aiohttp.TCPConnector(ssl=context)
            headers = {"X-Consul-Token": at.token} if at.token else {}
            if at.auth:
                headers["Authorization"] = "Basic " + base64.b64encode(at.auth.encode()).decode()
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            )
        return self._session


def _refusal(status: int, text: str) -> type[Unavailable | NotFound | Forbidden | Rejected]:
    # Consul answers 500 to much that is the request's own fault, of which trying again makes nothing better.
    if status == 403 or "ACL not found" in text:
        return Forbidden
    if status == 404 or "Unknown " in text or "does not have associated TTL" in text:
        return NotFound
    own_fault = "Invalid" in text or "disabled on this agent" in text
    return Unavailable if status == 429 or (status >= 500 and not own_fault) else Rejected


def _ssl_context(at: Address) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=at.ca_file or None)
        if not at.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if at.cert_file:
            context.load_cert_chain(at.cert_file, at.key_file or None)
    except (OSError, ssl.SSLError) as exc:
        raise Malformed(f"TLS to consul: {exc}") from exc
    return context


class ConsulRegistry:
    """A `Registry` over a Consul agent of this machine."""

    def __init__(self, api: ConsulApi, *, node: str, hostname: str) -> None:
        self._api = api
        self._node = node
        self._hostname = hostname
        self._sent: dict[str, Registration] = {}
        """What we wrote: the agent's lists do not show a check's definition."""

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def registered(self) -> Mapping[str, Registration]:
        """Return what is ours; one of an earlier run comes without check definitions, so it is written anew."""
        services = await self._api.call("GET", "/v1/agent/services") or {}
        checks = await self._api.call("GET", "/v1/agent/checks") or {}
        by_service: dict[str, list[Check]] = {}
        for check in checks.values():
            by_service.setdefault(check.get("ServiceID", ""), []).append(self._check(check))
        out: dict[str, Registration] = {}
        for service_id, entry in services.items():
            sent = self._sent.get(service_id)
            if sent is None and not container_name(service_id, hostname=self._hostname):
                continue
            seen = Registration(
                service=self._service(entry),
                checks=tuple(sorted(by_service.get(service_id, ()), key=lambda c: c.check_id)),
            )
            out[service_id] = _as_sent(sent, seen)
        for service_id in self._sent.keys() - services.keys():
            del self._sent[service_id]
        return out

    async def register(self, registration: Registration) -> None:
        """Write the instance and its checks."""
        service = registration.service
        body: dict[str, Any] = {
            "ID": service.id,
            "Name": service.name,
            "Tags": list(service.tags),
            "Port": service.port,
            "Address": service.address,
            "Meta": service.meta or {},
            "Checks": [consul_check(check) for check in registration.checks],
        }
        await self._api.call(
            "PUT",
            "/v1/agent/service/register",
            body=body,
            query={"replace-existing-checks": "true"},
        )
        self._sent[service.id] = registration

    async def deregister(self, service_id: str) -> None:
        """Take the instance out."""
        with suppress(NotFound):  # newer Consuls say so of an unknown id; it is what we wanted
            await self._api.call(
                "PUT", f"/v1/agent/service/deregister/{quote(service_id, safe='')}"
            )
        self._sent.pop(service_id, None)

    async def set_health(self, check: Check) -> None:
        """Update the HEALTHCHECK's check; raises NotFound when Consul lost it."""
        await self._api.call(
            "PUT",
            f"/v1/agent/check/update/{quote(check.check_id, safe='')}",
            body={"Status": check.status, "Output": check.output},
        )

    def _service(self, entry: Mapping[str, Any]) -> Service:
        return Service(
            node=self._node,
            id=str(entry.get("ID", "")),
            name=str(entry.get("Service", "")),
            tags=tuple(entry.get("Tags") or ()),
            address=str(entry.get("Address", "")),
            port=int(entry.get("Port", 0)),
            meta=dict(entry.get("Meta") or {}) or None,
            owner=OWNER,
        )

    def _check(self, entry: Mapping[str, Any]) -> Check:
        return Check(
            node=self._node,
            check_id=str(entry.get("CheckID", "")),
            name=str(entry.get("Name", "")),
            status=str(entry.get("Status", CRITICAL)),
            output=str(entry.get("Output", "")),
            service_id=str(entry.get("ServiceID", "")),
            service_name=str(entry.get("ServiceName", "")),
            type=str(entry.get("Type", "")),
            owner=OWNER,
        )


def _as_sent(sent: Registration | None, seen: Registration) -> Registration:
    """Return what we sent, with the statuses Consul has, if what it shows is that; else what it shows."""
    if sent is None:
        return seen
    statuses = {check.check_id: check.status for check in seen.checks}
    bare = msgspec.structs.replace(sent, checks=())
    if not same(bare, msgspec.structs.replace(seen, checks=())):
        return seen
    if {check.check_id for check in sent.checks} != statuses.keys():
        return seen
    return msgspec.structs.replace(
        sent,
        checks=tuple(
            msgspec.structs.replace(check, status=statuses[check.check_id]) for check in sent.checks
        ),
    )


def consul_check(check: Check) -> dict[str, Any]:
    """Return a check as `agent/service/register` wants it."""
    body: dict[str, Any] = {"CheckID": check.check_id, "Name": check.name, "Status": check.status}
    given = check.definition
    if given is None:
        return body | {"TTL": FOREVER, "Notes": "as Docker's HEALTHCHECK says"}
    return body | _definition(given)


def _definition(given: CheckDefinition) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "HTTP": given.http,
        "Method": given.method,
        "Header": {name: list(values) for name, values in (given.header or {}).items()},
        "Body": given.body,
        "TCP": given.tcp,
        "GRPC": given.grpc,
        "GRPCUseTLS": given.grpc_use_tls,
        "TLSSkipVerify": given.tls_skip_verify,
        "Args": list(given.args),
        "DockerContainerID": given.docker_container_id,
        "Shell": given.shell,
        "SuccessBeforePassing": given.success_before_passing,
        "FailuresBeforeCritical": given.failures_before_critical,
    }
    durations = {
        "TTL": given.ttl_ns,
        "Interval": given.interval_ns,
        "Timeout": given.timeout_ns,
        "DeregisterCriticalServiceAfter": given.deregister_critical_service_after_ns,
    }
    return {key: value for key, value in plain.items() if value} | {
        key: format_ns(value) for key, value in durations.items() if value
    }


class ConsulKvRegistry:
    """A `Registry` that keeps `prefix/<name>/<id>` = `ip:port` in Consul's KV store. It has no checks."""

    def __init__(self, api: ConsulApi, *, node: str, hostname: str) -> None:
        self._api = api
        self._node = node
        self._hostname = hostname
        self._prefix = api.address.prefix
        self._sent: dict[str, Registration] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def registered(self) -> Mapping[str, Registration]:
        """Return the keys that are ours. Tags and metadata are not kept here."""
        try:
            pairs = await self._api.call("GET", self._path(self._prefix), query={"recurse": "true"})
        except NotFound:
            pairs = None
        out: dict[str, Registration] = {}
        for pair in pairs or ():
            name, sep, service_id = self._split(str(pair["Key"]))
            sent = self._sent.get(service_id)
            if not sep or (
                sent is None and not container_name(service_id, hostname=self._hostname)
            ):
                continue
            value = base64.b64decode(pair.get("Value") or "").decode(errors="replace")
            if sent is not None and sent.service.name == name and _place(sent.service) == value:
                out[service_id] = sent
                continue
            address, _, port = value.rpartition(":")
            out[service_id] = Registration(
                service=Service(
                    node=self._node,
                    id=service_id,
                    name=name,
                    address=address.strip("[]"),
                    port=int(port) if port.isdigit() else 0,
                    owner=OWNER,
                )
            )
        return out

    async def register(self, registration: Registration) -> None:
        """Write the key."""
        service = registration.service
        old = self._sent.get(service.id)
        if old is not None and old.service.name != service.name:
            await self._api.call("DELETE", self._key(old.service))
        await self._api.call("PUT", self._key(service), body=_place(service).encode())
        self._sent[service.id] = registration

    async def deregister(self, service_id: str) -> None:
        """Delete the key."""
        sent = self._sent.get(service_id) or (await self.registered()).get(service_id)
        if sent is not None:
            await self._api.call("DELETE", self._key(sent.service))
        self._sent.pop(service_id, None)

    async def set_health(self, check: Check) -> None:
        """Do nothing but remember it: a key has no health."""
        sent = self._sent.get(check.service_id)
        if sent is not None:
            self._sent[check.service_id] = msgspec.structs.replace(
                sent,
                checks=tuple(
                    check if one.check_id == check.check_id else one for one in sent.checks
                ),
            )

    def _key(self, service: Service) -> str:
        return self._path("/".join(filter(None, (self._prefix, service.name, service.id))))

    def _path(self, key: str) -> str:
        return "/v1/kv/" + quote(key, safe="/")

    def _split(self, key: str) -> tuple[str, str, str]:
        rest = key.removeprefix(self._prefix).lstrip("/")
        return rest.partition("/")


def _place(service: Service) -> str:
    return authority(service.address, service.port)
