"""What machines say to each other below `/cluster/v1/`, as MessagePack. Unknown fields are ignored, higher versions refused."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from waypost.base.errors import Malformed
from waypost.cluster.protocol import PlanStatus
from waypost.cluster.records import VERSION, Plan, RaftMember, ServerFacts

PREFIX: Final = "/cluster/v1/"
AUTHORITY_PATH: Final = "/cluster/v1/authority"
"""GET: the certificate of the cluster's authority as PEM, for whoever wants to compare or name it."""
MAX_BYTES: Final = 1 << 20
CONTENT_TYPE: Final = "application/msgpack"
MAX_SERVERS: Final = 64
"""More servers than these are not learned from one message."""

T = TypeVar("T")


class Path(StrEnum):
    """What can be asked for."""

    HELLO = "/cluster/v1/hello"
    PREPARE = "/cluster/v1/prepare"
    COMMIT = "/cluster/v1/commit"
    PLAN = "/cluster/v1/plan"
    ABANDON = "/cluster/v1/abandon"
    JOIN = "/cluster/v1/join"
    RENEW = "/cluster/v1/renew"
    LEAVE = "/cluster/v1/leave"
    REMOVE = "/cluster/v1/remove"
    TRANSFER = "/cluster/v1/transfer"
    RAFT = "/cluster/v1/raft"
    HEALTH = "/cluster/v1/health"
    ACCESS = "/cluster/v1/access"


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Said by every server to every other each second, and by whoever comes. The answer is a Hello as well."""

    version: int = VERSION
    sender: ServerFacts
    servers: tuple[ServerFacts, ...] = ()
    """The servers that the sender knows: where to say hello as well. What they do is only believed from themselves."""
    authority_pem: bytes = b""
    """The certificate of the cluster's authority, for whoever is not a member yet."""
    roster: tuple[str, ...] | None = None
    """From the leader: the store's ids of all members, as confirmed by a quorum lately."""


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a machine a server. `repr` shows no key."""

    authority_pem: bytes
    authority_key: bytes
    store_authority_pem: bytes
    store_authority_key: bytes
    pki: dict[str, bytes] = {}
    """Files of the `pki` directory by name, where the cluster has one."""

    def __repr__(self) -> str:
        return "Secrets(***)"


class Prepare(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a vote."""

    version: int = VERSION
    plan: Plan


class VoteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The vote, or that a plan was committed."""

    version: int = VERSION
    id: str
    is_accepted: bool
    why: str = ""


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """Tells that all have voted."""

    version: int = VERSION
    plan: Plan
    secrets: Secrets


class AskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Asks what became of a plan; to ABANDON: to take the vote for it back."""

    version: int = VERSION
    token: str
    id: str
    """Who asks."""


class PlanAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a member of the plan knows of it."""

    version: int = VERSION
    id: str
    status: PlanStatus
    secrets: Secrets | None = None
    """With `committed`, for members of the plan."""


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """Asks to be taken into the cluster. `repr` does not show the token."""

    version: int = VERSION
    sender: ServerFacts
    token: str = ""
    csr_pem: bytes = b""
    """A client's request for its certificate."""
    last_member_id: str = ""

    def __repr__(self) -> str:
        return f"Join(sender={self.sender.id})"


class JoinAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Taken in, or whom to ask instead."""

    version: int = VERSION
    leader: str = ""
    """Where the leader's cluster port is, if the asked server is not the one: ask there. All else is empty then."""
    retry_after_s: float = 0.0
    why: str = ""
    """Not now: another machine is joining, for instance."""
    authority_pem: bytes = b""
    certificate_pem: bytes = b""
    """The client's certificate."""
    secrets: Secrets | None = None
    cluster: str = ""
    epoch: int = 0
    initial_cluster: str = ""
    member_id: str = ""
    is_protected: bool = False
    """The cluster asks callers who they are, so the new machine does from the beginning."""
    servers: tuple[ServerFacts, ...] = ()

    def __repr__(self) -> str:
        return f"JoinAnswer(leader={self.leader!r}, member_id={self.member_id!r}, why={self.why!r})"


class Renew(msgspec.Struct, frozen=True, kw_only=True):
    """A node asks for a new certificate with its old one; the answer is a JoinAnswer."""

    version: int = VERSION
    csr_pem: bytes


class AskAccess(msgspec.Struct, frozen=True, kw_only=True):
    """A server asks for the files of access control."""

    version: int = VERSION


class AccessAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The files by their names in the `pki` directory. `repr` shows no key."""

    version: int = VERSION
    files: dict[str, bytes]

    def __repr__(self) -> str:
        return "AccessAnswer(***)"


class AboutMember(msgspec.Struct, frozen=True, kw_only=True):
    """Leave, remove, transfer: about one server, by node id, or by the store's id or address; empty: any."""

    version: int = VERSION
    member: str = ""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """It was done, or somebody else has to be asked."""

    version: int = VERSION
    leader: str = ""
    detail: str = ""


class RaftAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The members of the store."""

    version: int = VERSION
    members: tuple[RaftMember, ...]


class MemberHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How one member of the store is, as the server beside the leader saw it last."""

    id: str
    """The node id."""
    is_healthy: bool
    why: str = ""
    """Why it is not."""
    contact_s: float | None = None
    """How old the leader's knowledge is that the member follows it; None: it never knew."""
    term: int = 0
    index: int = 0
    """How far its log is known to be agreed."""
    since_s: float
    """Wall time since when it is healthy, or not."""


class HealthAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How the members are, or who knows."""

    version: int = VERSION
    leader: str = ""
    """Where the leader's cluster port is, if the asked server is not the one: ask there."""
    members: tuple[MemberHealth, ...] = ()


class _Versioned(msgspec.Struct, frozen=True):
    version: int = VERSION


_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """Return a message's bytes."""
    return _encoder.encode(message)


def decode(data: bytes, kind: type[T], *, what: str) -> T:
    """Return the message of `kind`. Raises Malformed with `what` for other bytes, and for a newer version."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as exc:
        _refuse_newer(data, what=what)
        raise Malformed(f"{what}: not a message of this protocol: {exc}") from exc


def _refuse_newer(data: bytes, *, what: str) -> None:
    try:
        version = msgspec.msgpack.decode(data, type=_Versioned).version
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError):
        return
    if version > VERSION:
        raise Malformed(f"{what}: version {version} of the protocol; this machine knows {VERSION}")
