"""The seam between waypost and whatever keeps its data: a small revisioned key space.

One contract suite (`tests/contract`) runs against every engine. Keys and values are bytes; the order is
bytewise. Every successful transaction that changes something raises the store's revision by exactly one, and all
its keys carry that revision: it is Consul's index and a kube resourceVersion at once.

Group commit: an engine may make one revision of several transactions whose callers ask at the same time, as if one
came after the other; then they share a revision, and one among them that changed nothing is answered with that
revision too. A transaction alone is not affected. Such an engine may also move its revision
for itself, when it is opened or recovers; such a revision is a Batch without events. Only the etcd engine is of this
kind, and only it raises TooLarge for a transaction larger than one request may be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec

from waypost.base.errors import WaypostError


class Compacted(WaypostError):
    """The revisions asked for are gone: load again and watch from there. Source: etcd ErrCompacted."""

    code = "compacted"


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """One key as of some revision. `version` counts the writes since the key was created, from 1."""

    key: bytes
    value: bytes
    create_revision: int
    modify_revision: int
    version: int = 1
    lease: int = 0


class Event(msgspec.Struct, frozen=True, gc=False):
    """One change. A deletion (`kind="delete"`) carries the key, an empty value and the deleting revision as
    `modify_revision`; its `create_revision`, `version` and `lease` are 0, as in etcd.
    """

    kind: Literal["put", "delete"]
    kv: KeyValue


class Batch(msgspec.Struct, frozen=True, gc=False):
    """All changes of one revision, never split. Without events: a revision that the engine needed for itself."""

    revision: int
    events: tuple[Event, ...]


class Compare(msgspec.Struct, frozen=True, gc=False):
    """A condition on one key. A missing key has 0 for every revision and version, and the value b""."""

    key: bytes
    field: Literal["modify", "create", "version", "value"]
    op: Literal["==", "!=", "<", ">"]
    want: int | bytes


class Put(msgspec.Struct, frozen=True, gc=False):
    """Write a key; `lease` 0 = it stays. The last put decides under which lease a key is. The empty key is refused."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Delete a key, or the range key <= k < end when `end` is given."""

    key: bytes
    end: bytes | None = None


class Get(msgspec.Struct, frozen=True, gc=False):
    """Read a key, or the range key <= k < end, as of the transaction's start."""

    key: bytes
    end: bytes | None = None


Operation = Put | Delete | Get


class Txn(msgspec.Struct, frozen=True, gc=False):
    """If every compare holds do `then`, else `otherwise`; atomically. A key is written at most once in one Txn."""

    when: tuple[Compare, ...] = ()
    then: tuple[Operation, ...] = ()
    otherwise: tuple[Operation, ...] = ()


class TxnResult(msgspec.Struct, frozen=True, gc=False):
    """What a transaction did.

    `revision` is the store's revision after it (unchanged when nothing was changed, deleting nothing included).
    `results` has one item per operation of the branch taken: None for Put, the number of deleted keys for Delete,
    a tuple of KeyValue for Get.
    """

    succeeded: bool
    revision: int
    results: tuple[int | tuple[KeyValue, ...] | None, ...] = ()


class Page(msgspec.Struct, frozen=True, gc=False):
    """Keys in order, as of `revision`; `more` when a limit cut them."""

    revision: int
    items: tuple[KeyValue, ...]
    more: bool = False


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants to know of the engine. `has_quorum` False: writes are not accepted now."""

    engine: str
    revision: int
    compacted: int = 0
    keys: int = 0
    size_bytes: int = 0
    durable: bool = False
    leader: bool = True
    has_quorum: bool = True


class Engine(Protocol):
    """What every engine can do. All methods may raise Unavailable (nothing was changed) once closed or cut off."""

    async def open(self) -> None:
        """Connect or create files. Safe after a crash. Raises Unavailable with the reason, or when it is open already.

        The empty store has revision 1: Consul's clients take index 0 as "not set".
        """
        ...

    async def close(self) -> None:
        """Finish what was accepted, then stop; watches end after the last revision. Safe to call twice."""
        ...

    async def commit(self, txn: Txn) -> TxnResult:
        """Apply atomically; durable when it returns.

        Raises Malformed (a compare of the wrong kind, a key written twice), NotFound (a put under a lease that does
        not exist), Unavailable (not applied) or Unknown. When the caller is cancelled it may be applied or not.
        """
        ...

    async def range(self, key: bytes, end: bytes | None = None, *, limit: int = 0) -> Page:
        """Return the key, or key <= k < end, as of one revision. `limit` 0 = all.

        The revision covers every write acknowledged before the call; it may be ahead of what watchers have seen.
        """
        ...

    def watch(self, *, after: int) -> AsyncIterator[Batch]:
        """Yield every revision > `after`, once, in order. Raises Compacted when they are no longer kept.

        A watcher that falls too far behind gets Compacted as well: nothing stalls the log.
        """
        ...

    async def read_index(self) -> int:
        """Return a revision that covers every write acknowledged before the call. Raises NoLeader."""
        ...

    async def compact(self, *, before: int) -> None:
        """Forget history: from now on watch(after < before - 1) raises Compacted. The future cannot be forgotten."""
        ...

    async def grant(self, *, ttl_s: float) -> int:
        """Return a lease; its keys vanish in one revision between ttl_s and 2*ttl_s after the last keep_alive."""
        ...

    async def keep_alive(self, lease: int) -> float:
        """Renew; return the new remaining seconds. Raises NotFound when the lease is gone."""
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys in one revision. Unknown leases are ignored."""
        ...

    async def status(self) -> EngineStatus:
        """Return facts for people and metrics."""
        ...
