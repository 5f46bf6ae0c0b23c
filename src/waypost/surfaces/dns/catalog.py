"""What the DNS surface asks of the rest: a catalog to read, and whether a peer may read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from waypost.model.catalog import Node, Service
from waypost.state.topics import Topic
from waypost.state.view import Instance


class Catalog(Protocol):
    """Reads of one moment, synchronous and without copies. A method may raise Forbidden: the answer is REFUSED;
    or Unavailable: the answer is SERVFAIL.

    An answer stays valid while the indexes of the topics it read are unchanged (`state.topics`).
    """

    @property
    def moment(self) -> int:
        """A number that grows with every change; while it stands still, nothing has changed."""
        ...

    def index(self, topic: Topic, /) -> int:
        """Return the moment that last changed `topic`; it never goes back."""
        ...

    def node(self, name: str, /) -> Node | None:
        """Return the node of that name, whatever its case."""
        ...

    def nodes(self) -> Iterable[Node]:
        """Return all nodes by name."""
        ...

    def node_services(self, node: str, /) -> Mapping[str, Service]:
        """Return the instances of a node by id."""
        ...

    def instances(self, service_name: str, /) -> tuple[Instance, ...]:
        """Return all instances of a service, healthy or not, whatever the case of the name."""
        ...


class Admission(Protocol):
    """Decides who may read the catalog."""

    @property
    def generation(self) -> int:
        """Changes whenever a decision made before may be different now; decisions are remembered until then."""
        ...

    def catalog(self, peer: str, /) -> Catalog:
        """Return what `peer` (an IP address) may read. Raises Forbidden: the answer is REFUSED.

        Peers that may see the same get the same object, so that they share cached answers.
        """
        ...


class OpenAdmission:
    """Everybody may read the one catalog."""

    generation = 0

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def catalog(self, peer: str, /) -> Catalog:
        """Return the catalog, whoever asks."""
        return self._catalog


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a finder came to: instances to answer with, which are already filtered by health."""

    instances: tuple[Instance, ...]
    topics: tuple[Topic, ...]
    """What the result depends on."""
    service: str = ""
    """Whose `service_ttl` applies when `ttl_s` is None."""
    ttl_s: float | None = None
    keep_order: bool = False
    """The order means something (`near`): do not shuffle."""


class Finder(Protocol):
    """Answers name forms that need more than the catalog: prepared queries, Connect, ingress, virtual addresses."""

    def find(self, kind: str, name: str, /, *, catalog: Catalog) -> Found | None:
        """Return what stands behind `NAME.KIND.<domain>` (`query`, `connect`, `ingress`), None when nothing does.

        `name` is folded. Synchronous, from memory. Raises Forbidden.
        """
        ...


class Datacenters(Protocol):
    """The other datacenters, which answer for their own names."""

    def knows(self, name: str, /) -> bool:
        """Return whether a folded name is one of them."""
        ...

    async def dns(self, name: str, query: bytes, /, *, tcp: bool) -> bytes:
        """Return the reply of one of them to a message. Raises Unavailable."""
        ...


class NothingFound:
    """Knows none of them."""

    def find(self, kind: str, name: str, /, *, catalog: Catalog) -> Found | None:
        """Return None."""
        return None
