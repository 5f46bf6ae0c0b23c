"""What all families of the Consul API hold: the domain's verbs, the reader, and who is asking."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from waypost.access.actor import Actor
from waypost.access.gate import Attributes, Gate
from waypost.base.errors import Malformed, Rejected
from waypost.domain.agent import LocalAgent
from waypost.domain.catalog import Catalog
from waypost.domain.cluster import ClusterView, FarServer, OtherDatacenters
from waypost.domain.event import Events
from waypost.domain.kv import KV
from waypost.domain.session import Sessions
from waypost.domain.txn import Transactions
from waypost.state.state import State
from waypost.surfaces.consul.reading import FILTERED, Headers, Reader, Settings
from waypost.surfaces.http.message import Peer, Request, Response

T = TypeVar("T")

Identify = Callable[[Peer], Actor]


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses and ports that members and status show."""

    server_port: int = 8300
    serf_lan_port: int = 8301
    serf_wan_port: int = 8302


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    """The verbs that this surface calls."""

    state: State
    gate: Gate
    catalog: Catalog
    agent: LocalAgent
    kv: KV
    sessions: Sessions
    transactions: Transactions
    events: Events


class Snapshots(Protocol):
    """Everything the store holds, as one file."""

    async def save(self) -> tuple[int, bytes]:
        """Return the revision and the file. Raises NoLeader, Unavailable."""
        ...

    async def restore(self, archive: bytes) -> None:
        """Replace everything by what a file holds. Raises Rejected in Consul's words, NoLeader, Unavailable."""
        ...


class Context:
    """What a handler needs."""

    def __init__(
        self,
        domain: Domain,
        reader: Reader,
        *,
        network: Network,
        identify: Identify,
        cluster: ClusterView,
        is_clustered: bool = False,
        snapshots: Snapshots | None = None,
        elsewhere: OtherDatacenters | None = None,
        reload: Callable[[], Awaitable[None]] | None = None,
        leave: Callable[[], Awaitable[None]] | None = None,
        started_s: float = 0.0,
    ) -> None:
        """`reload` and `leave` are what agent/reload and agent/leave do; `started_s` is the wall time of the start.

        `is_clustered`: `cluster` is a real one, so members come and go, and leaving is more than ending.
        """
        self.cluster = cluster
        self.is_clustered = is_clustered
        self.snapshots = snapshots
        self._elsewhere = elsewhere
        self.domain = domain
        self.reader = reader
        self.network = network
        self.reload = reload
        self.leave = leave
        self.started_s = started_s
        self._identify = identify

    def far_servers(self) -> Sequence[FarServer]:
        """Return the servers of other datacenters."""
        return () if self._elsewhere is None else self._elsewhere.far_servers()

    def actor(self, request: Request) -> Actor:
        """Return who asks."""
        identity = request.identity
        if identity is not None and identity.actor is not None:
            return identity.actor
        return self._identify(request.peer)

    @property
    def settings(self) -> Settings:
        """The surface's settings."""
        return self.reader.settings

    def admit(self, request: Request, attributes: Attributes) -> Actor:
        """Return who asks after the gate let him do this; for what has no verb of the domain. Raises Forbidden."""
        actor = self.actor(request)
        self.domain.gate.admit(actor, attributes)
        return actor

    def marks(self, actor: Actor, listing: Attributes) -> Headers:
        """Return the header that says that a list has only what `actor` may see, if he may not list everything."""
        return () if self.domain.gate.allows(actor, listing) else (FILTERED,)

    def json(
        self, request: Request, value: Any, *, status: int = 200, headers: Headers = ()
    ) -> Response:
        """Return a JSON answer."""
        return self.reader.json(request, value, status=status, headers=headers)

    def decode(self, request: Request, decoder: Callable[..., T]) -> T:
        """Decode a request body. Raises Malformed with Consul's prefix."""
        try:
            return decoder(request.body, strict=self.settings.strict_json)
        except Malformed as error:
            msg = f"Request decode failed: {error}"
            raise Malformed(msg) from error

    def require_datacenter(self, request: Request, *, named: str = "") -> None:
        """Refuse a write for another datacenter; one named in a body beats the query's. Raises Rejected."""
        if named:
            if named.lower() != self.reader.datacenter.lower():
                msg = "No path to datacenter"
                raise Rejected(msg)
            return
        wrong = self.reader.other_datacenter(request)
        if wrong:
            raise Rejected(wrong)


DONE = Response()
"""The empty 200 of most writes of the agent's family."""
