"""What machines know of each other and keep on disk. Frozen; the same records travel between machines and lie in files."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from waypost.cluster.settings import join_host

VERSION = 1
"""Of messages and files: a reader refuses a higher one, and ignores fields that it does not know."""


class Phase(StrEnum):
    """How far a machine is on its way into a cluster.

    none → voted → committed → member; none → joining → member; member → left.
    """

    NONE = "none"
    VOTED = "voted"
    COMMITTED = "committed"
    JOINING = "joining"
    MEMBER = "member"
    LEFT = "left"


FORMED = frozenset({Phase.COMMITTED, Phase.MEMBER, Phase.JOINING})
"""Phases of machines that have chosen their cluster."""


class AccessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The access control of a server in fingerprints (`sha256:` of public keys)."""

    authority: str
    token_keys: tuple[str, ...]
    """The keys that verify service-account tokens."""
    front_proxy: str = ""
    """The authority of front proxies, if it has one."""


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine says about itself with every hello."""

    id: str
    node: str
    datacenter: str
    address: str
    cluster_port: int
    server_port: int
    store_port: int
    is_server: bool = True
    phase: Phase = Phase.NONE
    expect: int = 0
    cluster: str = ""
    """The token of the cluster it belongs to, or is about to form."""
    epoch: int = 0
    """Recoveries from a lost quorum so far; a member of an earlier epoch has a store of the past."""
    fingerprint: str = ""
    """`sha256:` of the public key that it serves and calls with before it has a certificate of the cluster."""
    authority: str = ""
    """The pin of the authority that it would bring along (`waypost init`), or that the cluster has."""
    incarnation: str = ""
    """Made at each start: tells a restarted machine from a copied one."""
    member_id: str = ""
    is_leader: bool = False
    is_moved: bool = False
    """It was at another address when its store ran last, or its data directory was copied from there."""
    joins_only: bool = False
    """It was a member before, or is not told how many servers form a cluster: never takes part in forming one."""
    access: AccessFacts | None = None
    """The files of access control that it has and gives to other servers."""
    is_protected: bool = False
    """It asks callers who they are."""

    @property
    def contact(self) -> str:
        """Where its cluster port is."""
        return join_host(self.address, self.cluster_port)

    @property
    def peer_url(self) -> str:
        """The store's URL for other servers' stores."""
        return f"https://{join_host(self.address, self.server_port)}"

    @property
    def client_url(self) -> str:
        """The store's URL for servers."""
        return f"https://{join_host(self.address, self.store_port)}"


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A server as this machine knows it."""

    id: str
    node: str
    datacenter: str
    address: str
    cluster_port: int
    server_port: int
    store_port: int
    phase: Phase
    is_leader: bool
    is_self: bool
    is_live: bool
    """It was heard of within the time after which a server counts as failed."""
    last_seen_s: float
    """Monotonic seconds; minus infinity for one that is only known by name."""

    @property
    def contact(self) -> str:
        """Where its cluster port is."""
        return join_host(self.address, self.cluster_port)

    @property
    def store_url(self) -> str:
        """The store's URL for servers."""
        return f"https://{join_host(self.address, self.store_port)}"


def server_info(
    facts: ServerFacts, *, is_leader: bool, is_live: bool, last_seen_s: float, is_self: bool = False
) -> ServerInfo:
    """Return a server as this machine knows it, from what the server said about itself."""
    return ServerInfo(
        id=facts.id,
        node=facts.node,
        datacenter=facts.datacenter,
        address=facts.address,
        cluster_port=facts.cluster_port,
        server_port=facts.server_port,
        store_port=facts.store_port,
        phase=facts.phase,
        is_leader=is_leader,
        is_self=is_self,
        is_live=is_live,
        last_seen_s=last_seen_s,
    )


class RaftMember(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `operator raft list-peers`."""

    id: str
    """The node id."""
    node: str
    address: str
    """`IP:PORT` of the store among servers, as Consul shows it."""
    is_leader: bool
    is_voter: bool
    member_id: str
    """The store's own id of the member, hexadecimal."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A proposal of which servers form the cluster. A vote is for one plan, known by its token."""

    ballot: int
    token: str
    proposer: str
    expect: int
    members: tuple[ServerFacts, ...]
    """In the order of their ids."""
    authority: str
    """The pin of the authority that the cluster will have."""

    @property
    def initial_cluster(self) -> str:
        """The value of etcd's flag."""
        return ",".join(f"{one.id}={one.peer_url}" for one in self.members)

    def member(self, server_id: str) -> ServerFacts | None:
        """Return what the plan says of a server, None if it is not part of it."""
        return next((one for one in self.members if one.id == server_id), None)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """`cluster.json`: written and synced before anybody is told, or anything done, that depends on it."""

    version: int = VERSION
    is_server: bool = True
    phase: Phase = Phase.NONE
    ballot: int = 0
    """The highest ballot this server ever proposed."""
    plan: Plan | None = None
    """What was voted for or committed."""
    abandoned: tuple[str, ...] = ()
    """Tokens of plans that this server promised never to vote for, nor to commit unless another voter did; the last 8."""
    cluster: str = ""
    """The token of the cluster it is a member of, or joins."""
    initial_cluster: str = ""
    member_id: str = ""
    epoch: int = 0
    joins_only: bool = False
    """It was a member once: it may join a cluster, but never form one."""
    contact: str = ""
    """Where the cluster port was when the store was last started: another address means that the machine moved or was copied."""
    is_protected: bool = False
    """The cluster asks callers who they are, so this machine does, whatever files it has. Never taken back."""
    servers: tuple[ServerFacts, ...] = ()
    """The servers known last, so that a restart needs no addresses."""
