"""Other datacenters: who their servers are, and asking them on behalf of our own clients.

Each datacenter has its own store and its own authority; nothing is replicated between them. Servers of different
datacenters say hello to each other on the WAN port and tell each other whom they know, so naming one server of one other
datacenter is enough. The first hello takes the other datacenter's authority on trust (logged, and kept in `wan.json`); from then on
only servers with a certificate of that authority are asked. With a shared key (`-encrypt`) a hello is only believed with its MAC.

A request for another datacenter goes there as it came, with its own credentials, and is judged there.
Source: Consul, "Federate multiple datacenters with WAN gossip"; the exchange itself is our own.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import math
import random
import ssl
import statistics
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from waypost.access.pki.files import SECRET_MODE, FileWrite, write_all
from waypost.access.pki.issue import ca_pin, load_certificate
from waypost.base.clock import Clock
from waypost.base.errors import Forbidden, Malformed, Unavailable, WaypostError
from waypost.cluster.settings import join_host, split_address
from waypost.domain.cluster import FarServer
from waypost.wire.http import HOP_BY_HOP

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

HELLO_PATH: Final = "/cluster/v1/wan/hello"
DNS_PATH: Final = "/cluster/v1/wan/dns"
MAX_DATACENTERS: Final = 64
MAX_SERVERS: Final = 32
MAX_MESSAGE_BYTES: Final = 1 << 20
_HELLO_S: Final = 5.0
_CALL_S: Final = 5.0
_CONNECT_S: Final = 3.0
_DNS_S: Final = 2.0
_TRIPS: Final = 8
"""Round trips that are remembered of a server; the shortest counts, as the others had something else in their way."""
_NOT_FORWARDED: Final = HOP_BY_HOP | {
    "content-encoding",
    "content-length",
    "date",
    "host",
    "vary",
}
"""Fields of one connection, and those each side writes itself."""


class WanServer(msgspec.Struct, frozen=True):
    """A server as other datacenters reach it."""

    node: str
    id: str
    address: str
    port: int
    status: Literal["alive", "failed", "left"] = "alive"
    """As its own datacenter sees it."""
    server_port: int = 8300

    @property
    def netloc(self) -> str:
        """`ADDRESS:PORT` for a URL."""
        return join_host(self.address, self.port)


class Datacenter(msgspec.Struct, frozen=True):
    """What is known of one datacenter."""

    ca_pem: str
    servers: tuple[WanServer, ...]


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What servers tell each other. `mac` is over everything else, with the shared key."""

    datacenter: str
    datacenters: dict[str, Datacenter]
    mac: str = ""


def mac(hello: Hello, key: bytes) -> str:
    """Return the MAC of a hello, "" without a key."""
    if not key:
        return ""
    plain = msgspec.json.encode(msgspec.structs.replace(hello, mac=""), order="deterministic")
    return base64.b64encode(hmac.digest(key, plain, "sha256")).decode("ascii")


def check(hello: Hello, key: bytes) -> None:
    """Raise Forbidden when the MAC is wrong, Malformed when the message is out of bounds."""
    if not hmac.compare_digest(mac(hello, key), hello.mac):
        raise Forbidden("the shared key (encrypt) of the datacenters differs")
    if len(hello.datacenters) > MAX_DATACENTERS:
        raise Malformed(f"{len(hello.datacenters)} datacenters; at most {MAX_DATACENTERS}")
    for name, found in hello.datacenters.items():
        if len(found.servers) > MAX_SERVERS:
            raise Malformed(f"{len(found.servers)} servers of {name}; at most {MAX_SERVERS}")


def merged(
    known: Mapping[str, Datacenter],
    told: Mapping[str, Datacenter],
    *,
    own: str,
    proven: str = "",
) -> dict[str, Datacenter]:
    """Return what is known after a hello. An authority that is known is never replaced, and ours is not told to us.

    Servers of a datacenter whose authority differs from the known one are not believed. `proven` is the datacenter that
    proved by its authority that it is the one that speaks: who it does not name is no server of it any more, and how its
    servers are is known from it alone.
    """
    result = dict(known)
    for name, found in told.items():
        if name == own or not name:
            continue
        old = result.get(name)
        if old is None:
            if len(result) < MAX_DATACENTERS:
                result[name] = found
        elif old.ca_pem != found.ca_pem:
            continue
        elif name == proven and found.servers:
            result[name] = found
        else:
            servers = {one.id: one for one in old.servers}
            for one in found.servers:
                status = servers[one.id].status if one.id in servers else one.status
                servers[one.id] = msgspec.structs.replace(one, status=status)
            result[name] = Datacenter(old.ca_pem, tuple(list(servers.values())[:MAX_SERVERS]))
    return result


def distance_s(trips_s: Iterable[float]) -> float:
    """Return how far a datacenter is: the median of its servers' shortest round trips; infinite while none is known."""
    found = sorted(trips_s)
    return statistics.median(found) if found else math.inf


class Reply(msgspec.Struct, frozen=True):
    """An answer from another datacenter; `stream` is the body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    content_type: str
    stream: AsyncIterator[bytes]


class Wan:
    """The other datacenters, as one server sees them. `run` keeps it current."""

    def __init__(
        self,
        *,
        datacenter: str,
        own: Callable[[], Datacenter | None],
        join: Iterable[str],
        retry_join: Iterable[str] = (),
        default_port: int,
        path: Path,
        key: bytes = b"",
        interval_s: float = _HELLO_S,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """`own` tells our servers and authority, None while there are none; `path` is where knowledge is kept.

        Raises Malformed when the file cannot be read as what it should be.
        """
        self.datacenter = datacenter.lower()
        self._own = own
        self._join = tuple(_address(one, default_port) for one in join)
        self._retry_join = tuple(_address(one, default_port) for one in retry_join)
        self._path = path
        self._key = key
        self._interval_s = interval_s
        self._clock = clock
        self._rng = rng
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._alive_s: dict[str, float] = {}
        """Server id → when it last answered."""
        self._silent: set[str] = set()
        """Ids of servers that were asked and did not answer."""
        self._trips_s: dict[str, deque[float]] = {}
        """Server id → how long its last answers took."""
        self._known = _load(path)
        self._changed = asyncio.Event()

    # -- what is known ---------------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """Return the names of the other datacenters: the nearest first, those whose distance is not known last."""
        return tuple(sorted(self._known, key=lambda name: (self._distance_s(name), name)))

    def _distance_s(self, name: str) -> float:
        trips = (self._trips_s.get(one.id) for one in self._known[name].servers)
        return distance_s(min(found) for found in trips if found)

    def knows(self, name: str) -> bool:
        """Return whether `name` is another datacenter."""
        return name.lower() in self._known

    def servers(self, name: str) -> tuple[WanServer, ...]:
        """Return the servers of another datacenter that have not left it."""
        found = self._known.get(name.lower())
        return () if found is None else tuple(s for s in found.servers if s.status != "left")

    def far_servers(self) -> tuple[FarServer, ...]:
        """Return all servers of other datacenters, by datacenter and name."""
        return tuple(
            FarServer(
                node=one.node,
                id=one.id,
                datacenter=name,
                address=one.address,
                port=one.port,
                server_port=one.server_port,
                status=self._status(one),
                trip_s=min(self._trips_s.get(one.id, ()), default=None),
            )
            for name, found in sorted(self._known.items())
            for one in sorted(found.servers, key=lambda one: (one.node, one.id))
        )

    def _status(self, server: WanServer) -> Literal["alive", "failed", "left"]:
        """Return how a server is: as it answers us; before it was asked, as its datacenter says."""
        if server.status == "left":
            return "left"
        if self.is_alive(server):
            return "alive"
        is_asked = server.id in self._silent or server.id in self._alive_s
        return "failed" if is_asked else server.status

    def is_alive(self, server: WanServer) -> bool:
        """Return whether a server answered lately."""
        last = self._alive_s.get(server.id)
        return last is not None and self._clock.now() - last < 4 * self._interval_s

    def hello(self) -> Hello:
        """Return what we tell others."""
        everything = dict(self._known)
        own = self._own()
        if own is not None:
            everything[self.datacenter] = own
        plain = Hello(datacenter=self.datacenter, datacenters=everything)
        return msgspec.structs.replace(plain, mac=mac(plain, self._key))

    def heard(self, hello: Hello, *, proven: str = "") -> None:
        """Take in what another server says; `proven` is the datacenter that it has proved to be of.

        Raises Forbidden, Malformed.
        """
        check(hello, self._key)
        before = self._known
        for name, found in hello.datacenters.items():
            if name != self.datacenter and name not in before:
                certificate = load_certificate(found.ca_pem.encode(), name=f"authority of {name}")
                log.warning(
                    "wan: datacenter %s is known now, its authority %s is taken on trust; compare it with the one %s logs",
                    name,
                    ca_pin(certificate),
                    name,
                )
            elif name != self.datacenter and before[name].ca_pem != found.ca_pem:
                log.error(
                    "wan: %s says that datacenter %s has another authority than the one known here; not believed. "
                    "If that datacenter was really set up anew, remove %s",
                    hello.datacenter,
                    name,
                    self._path,
                )
        after = merged(before, hello.datacenters, own=self.datacenter, proven=proven)
        if after != before:
            self._known = after
            self._save()
            ids = {one.id for found in after.values() for one in found.servers}
            self._silent &= ids
            self._alive_s = {key: at for key, at in self._alive_s.items() if key in ids}
            self._trips_s = {key: found for key, found in self._trips_s.items() if key in ids}

    def join(self, address: str, *, default_port: int) -> None:
        """Say hello to one more address, soon. Raises Malformed."""
        self._join = (*self._join, _address(address, default_port))
        self._changed.set()

    # -- life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Say hello to everybody again and again, until cancelled."""
        try:
            while True:
                await self._round()
                self._changed.clear()
                pause = self._interval_s * self._rng.uniform(0.8, 1.2)
                try:
                    await asyncio.wait_for(self._changed.wait(), pause)
                except TimeoutError:
                    continue
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            # The transports of TLS connections end one turn of the loop later.
            await asyncio.sleep(0)

    async def _round(self) -> None:
        if self._own() is None:
            return
        met = {server.netloc for found in self._known.values() for server in found.servers}
        targets: list[tuple[str, str, str]] = [
            (name, server.netloc, server.id)
            for name in self._known
            for server in self.servers(name)
        ]
        # An address given by hand is asked until it is known as a server.
        targets += [("", one, "") for one in (*self._join, *self._retry_join) if one not in met]
        async with asyncio.TaskGroup() as group:
            for name, netloc, server_id in targets:
                group.create_task(self._greet(name, netloc, server_id))

    async def _greet(self, name: str, netloc: str, server_id: str) -> None:
        message = msgspec.json.encode(self.hello())
        started_s = self._clock.now()
        try:
            answer = await self._post(name, netloc, HELLO_PATH, message)
            took_s = self._clock.now() - started_s
            hello = decode_hello(answer)
            self.heard(hello, proven=name if hello.datacenter == name else "")
        except WaypostError as error:
            if not name or (server_id and server_id in self._alive_s):
                log.warning("wan: %s does not answer: %s", netloc, error)
                self._alive_s.pop(server_id, None)
            if server_id:
                self._silent.add(server_id)
            return
        if server_id:
            self._alive_s[server_id] = self._clock.now()
            self._silent.discard(server_id)
            self._trips_s.setdefault(server_id, deque(maxlen=_TRIPS)).append(took_s)

    # -- asking ----------------------------------------------------------------------------------------------------------

    async def dns(self, name: str, query: bytes, *, tcp: bool) -> bytes:
        """Return the reply of another datacenter's DNS to a message. Raises Unavailable."""
        path = DNS_PATH + ("?tcp" if tcp else "")
        error: WaypostError = Unavailable(f"no server of {name} is known")
        for server in self._order(name):
            try:
                return await self._post(name, server.netloc, path, query, timeout_s=_DNS_S)
            except WaypostError as failed:
                error = failed
        raise Unavailable(str(error)) from error

    async def forward(
        self,
        name: str,
        *,
        method: str,
        target: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
    ) -> Reply:
        """Send a request to a server of another datacenter and return its answer, whose stream has to be read or closed.

        Another server is tried only when the connection could not be made, so nothing is done twice. Raises Unavailable.
        """
        import aiohttp
        from yarl import URL

        kept = [(key, value) for key, value in headers if key.lower() not in _NOT_FORWARDED]
        reason: Exception | None = None
        for server in self._order(name):
            try:
                response = await self._client().request(
                    method,
                    URL(f"https://{server.netloc}{target}", encoded=True),
                    headers=kept,
                    data=body or None,
                    ssl=self._context(name),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                )
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as failed:
                reason = failed
                continue
            except (aiohttp.ClientError, OSError, TimeoutError) as failed:
                raise Unavailable(f"datacenter {name}: {failed}") from failed
            return Reply(
                status=response.status,
                headers=tuple(
                    (key, value)
                    for key, value in response.headers.items()
                    if key.lower() not in _NOT_FORWARDED and key.lower() != "content-type"
                ),
                content_type=response.headers.get("Content-Type", ""),
                stream=_body(response),
            )
        raise Unavailable(f"datacenter {name}: no server answers: {reason}") from reason

    def _order(self, name: str) -> list[WanServer]:
        servers = list(self.servers(name))
        self._rng.shuffle(servers)
        return sorted(servers, key=lambda one: not self.is_alive(one))

    async def _post(
        self, name: str, netloc: str, path: str, body: bytes, *, timeout_s: float = _CALL_S
    ) -> bytes:
        import aiohttp

        try:
            async with self._client().post(
                f"https://{netloc}{path}",
                data=body,
                ssl=self._context(name) if name else _unverified(),
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                answer = await response.content.read(MAX_MESSAGE_BYTES)
                if response.status != 200:
                    raise Unavailable(answer.decode("utf-8", "replace")[:200])
                return answer
        except aiohttp.ClientConnectorError as failed:
            raise Unavailable(failed.os_error.strerror or str(failed.os_error)) from failed
        except (aiohttp.ClientError, OSError, TimeoutError) as failed:
            raise Unavailable(str(failed) or type(failed).__name__) from failed

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=256), auto_decompress=True
            )
        return self._session

    def _context(self, name: str) -> ssl.SSLContext:
        """Return what trusts the authority of a datacenter and nobody else. Servers are known by it, not by their address."""
        pem = self._known[name.lower()].ca_pem
        context = self._contexts.get(pem)
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.load_verify_locations(cadata=pem)
            self._contexts[pem] = context
        return context

    def _save(self) -> None:
        data = msgspec.json.encode(self._known)
        write_all([FileWrite(self._path, msgspec.json.format(data, indent=1), SECRET_MODE)])


async def _body(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    finally:
        response.close()


def _unverified() -> ssl.SSLContext:
    """Return what takes any certificate: only for the first hello, whose answer names the authority to believe."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def decode_hello(data: bytes) -> Hello:
    """Return a hello. Raises Malformed."""
    try:
        return msgspec.json.decode(data, type=Hello)
    except msgspec.MsgspecError as error:
        raise Malformed(f"this is no hello of another datacenter: {error}") from error


def _load(path: Path) -> dict[str, Datacenter]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(data, type=dict[str, Datacenter])
    except msgspec.MsgspecError as error:
        raise Malformed(f"{path}: {error}") from error


def _address(text: str, default_port: int) -> str:
    """Return `HOST:PORT`. Raises Malformed."""
    try:
        return join_host(*split_address(text, port=default_port))
    except Malformed as error:
        raise Malformed(f"join_wan: {error}") from error
