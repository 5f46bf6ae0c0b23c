"""What a node may do with the store's keys themselves: pure functions over keys and transactions.

The Node authorizer (`node.py`) decides for requests; this is the same rule for the agent of a node whose store is on
the servers (`store.remote`). It reads the catalog, sessions and those objects that decide about access and admission,
keys if it is let; it writes the records of its own node. A written value has to be a record that belongs under its
key: every agent decodes what is stored, so one bad value would hurt them all.

What is hidden from a node is left out of its ranges and its watch; what it asks for by name and may not have is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Final

import msgspec

from waypost.base.errors import Forbidden, Malformed
from waypost.model.catalog import CRITICAL, PASSING, WARNING, Check, Node, Service, fold
from waypost.model.session import Session
from waypost.state.keys import (
    CHECK,
    KV,
    NODE,
    OBJECT,
    SERVICE,
    SESSION,
    SYSTEM,
    Record,
    decode,
    encode,
    key_of,
    node_key,
    span_end,
)
from waypost.store.engine import (
    Batch,
    Compare,
    Delete,
    Event,
    Get,
    KeyValue,
    Operation,
    Put,
    Txn,
)

MAX_OPERATIONS: Final = 1024
"""In one transaction of a node; the largest of its own is its deregistration."""

RBAC: Final = "rbac.authorization.k8s.io"
ADMISSION: Final = "admissionregistration.k8s.io"
READABLE_OBJECTS: Final = (
    "/namespaces",
    "/serviceaccounts",
    f"{RBAC}/roles",
    f"{RBAC}/rolebindings",
    f"{RBAC}/clusterroles",
    f"{RBAC}/clusterrolebindings",
    f"{ADMISSION}/mutatingwebhookconfigurations",
    f"{ADMISSION}/validatingwebhookconfigurations",
)
"""The kinds of objects that a client agent decides by. None holds a credential; every other kind is hidden, so a kind
that is added later is hidden until it is named here."""

EVENTS: Final = SYSTEM + b"event\0"
"""User events, which are delivered to every agent through the store."""
_TABLES: Final = (NODE, SERVICE, CHECK, SESSION, EVENTS)
_OBJECTS: Final = tuple(OBJECT + kind.encode() + b"\0" for kind in READABLE_OBJECTS)
_NAMES: Final = {
    NODE: "node",
    SERVICE: "service",
    CHECK: "check",
    SESSION: "session",
    KV: "key",
    OBJECT: "object",
}

SessionOf = Callable[[str], Session | None]
"""Looks up a session by id, as `View.session` does."""


class NodeScope(msgspec.Struct, frozen=True):
    """What one node may do. `reads_kv`: KV entries are shown to it, because the gate lets it read all of them."""

    node: str
    reads_kv: bool = False

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        """The beginnings of all keys it may read."""
        return (*_TABLES, *_OBJECTS, KV) if self.reads_kv else (*_TABLES, *_OBJECTS)

    def may_read(self, key: bytes) -> bool:
        """Return whether it is shown this key."""
        return key.startswith(self.prefixes)


# -- reading -----------------------------------------------------------------------------------------------------------


def check_range(scope: NodeScope, key: bytes, end: bytes | None) -> None:
    """Raise Forbidden when nothing of a key (or of key <= k < end) may be read."""
    if end is None:
        if not scope.may_read(key):
            raise _refused(scope, f"read {describe(key)}")
    elif not any(key < span_end(prefix) and prefix < end for prefix in scope.prefixes):
        raise _refused(scope, f"read {describe(key)} to {describe(end)}")


def shown(scope: NodeScope, row: KeyValue) -> KeyValue | None:
    """Return a row as the node is shown it, None for what is hidden.

    How a check of another node is run is left out: its headers, bodies and arguments may hold credentials, and only
    the agent of its own node runs it.
    """
    if not scope.may_read(row.key):
        return None
    if (
        row.key.startswith(CHECK)
        and b"definition" in row.value
        and not row.key.startswith(own_prefix(scope, CHECK))
    ):
        check = decode(row)
        if isinstance(check, Check) and check.definition is not None:
            value = encode(msgspec.structs.replace(check, definition=None))
            return msgspec.structs.replace(row, value=value)
    return row


def shown_batch(scope: NodeScope, batch: Batch) -> Batch:
    """Return a revision as the node is shown it; without events when all of it is hidden."""
    events: list[Event] = []
    for event in batch.events:
        row = shown(scope, event.kv)
        if row is event.kv:
            events.append(event)
        elif row is not None:
            events.append(Event(event.kind, row))
    if len(events) == len(batch.events) and all(map(operator.is_, events, batch.events)):
        return batch
    return Batch(batch.revision, tuple(events))


def own_prefix(scope: NodeScope, table: bytes) -> bytes:
    """Return how the keys of its own services or checks begin."""
    return table + node_key(scope.node)[len(NODE) :] + b"\0"


# -- writing -----------------------------------------------------------------------------------------------------------


def check_txn(scope: NodeScope, txn: Txn, *, session_of: SessionOf) -> Txn:
    """Return the transaction as it may be applied. Raises Forbidden with what is refused, Malformed for a bad record.

    A session that the transaction overwrites or deletes has to be the node's own when it is applied, too: a condition on
    its key is added for that.
    """
    if len(txn.when) + len(txn.then) + len(txn.otherwise) > MAX_OPERATIONS:
        raise _refused(scope, f"send more than {MAX_OPERATIONS} operations in a transaction")
    for compare in txn.when:
        if not scope.may_read(compare.key):
            raise _refused(scope, f"compare {describe(compare.key)}")
    guards: dict[bytes, Compare] = {}
    for branch in (txn.then, txn.otherwise):
        for operation in branch:
            _check_operation(scope, operation, session_of=session_of, guards=guards)
    if not guards:
        return txn
    if any(not isinstance(operation, Get) for operation in txn.otherwise):
        # An added condition that fails would take this branch.
        raise _refused(
            scope, "write sessions in a transaction that writes when its conditions fail"
        )
    return msgspec.structs.replace(txn, when=(*txn.when, *guards.values()))


def _check_operation(
    scope: NodeScope, operation: Operation, *, session_of: SessionOf, guards: dict[bytes, Compare]
) -> None:
    match operation:
        case Get(key, end):
            # The answer of a range could not be told from a whole one with its hidden rows left out.
            if not scope.may_read(key) or (
                end is not None and not _within(scope.prefixes, key, end)
            ):
                raise _refused(scope, f"read {describe(key)}")
        case Put(key, value, lease):
            if lease:
                raise _refused(scope, "put keys under a lease")
            _check_record(scope, key, value)
            _guard_session(scope, key, session_of=session_of, guards=guards)
        case Delete(key, None):
            if not (_is_own(scope, key) or key.startswith(SESSION)):
                raise _refused(scope, f"delete {describe(key)}")
            _guard_session(scope, key, session_of=session_of, guards=guards)
        case Delete(key, end):
            own = (own_prefix(scope, SERVICE), own_prefix(scope, CHECK))
            if not _within(own, key, end):
                raise _refused(scope, f"delete {describe(key)} to {describe(end or b'')}")


def _within(prefixes: tuple[bytes, ...], key: bytes, end: bytes | None) -> bool:
    return any(
        key.startswith(prefix) and end is not None and end <= span_end(prefix)
        for prefix in prefixes
    )


def _is_own(scope: NodeScope, key: bytes) -> bool:
    return key == node_key(scope.node) or key.startswith(
        (own_prefix(scope, SERVICE), own_prefix(scope, CHECK))
    )


def _check_record(scope: NodeScope, key: bytes, value: bytes) -> None:
    if not (_is_own(scope, key) or key.startswith(SESSION)):
        raise _refused(scope, f"write {describe(key)}")
    record = decode(KeyValue(key, value, 0, 0))
    if record is None or _key_of(record) != key:
        raise Malformed(f"what is put as {describe(key)} is another record")
    _check_values(record)
    owner = _owner(record)
    if owner is None or fold(owner) != fold(scope.node):
        raise _refused(scope, f"write {describe(key)} of node '{owner}'")


def _check_values(record: Record) -> None:
    """Raise Malformed for what the HTTP API would have refused and what readers rely on."""
    match record:
        case Service(port=port, weights=weights):
            for name, number in (
                ("port", port),
                ("passing weight", weights.passing),
                ("warning weight", weights.warning),
            ):
                if not 0 <= number <= 65535:
                    raise Malformed(f"service {_quoted(record.id)}: {name} {number}")
        case Check(status=status) if status not in (PASSING, WARNING, CRITICAL):
            raise Malformed(f"check {_quoted(record.check_id)}: status {_quoted(status)}")


def _key_of(record: Record) -> bytes | None:
    try:
        return key_of(record)
    except Malformed:
        return None


def _owner(record: Record) -> str | None:
    return record.node if isinstance(record, Node | Service | Check | Session) else None


def _guard_session(
    scope: NodeScope, key: bytes, *, session_of: SessionOf, guards: dict[bytes, Compare]
) -> None:
    if not key.startswith(SESSION):
        return
    session = session_of(key[len(SESSION) :].decode("utf-8", "surrogateescape"))
    if session is not None and fold(session.node) != fold(scope.node):
        raise _refused(scope, f"change {describe(key)} of node '{session.node}'")
    revision = 0 if session is None else session.modify_index
    guards[key] = Compare(key, "modify", "==", revision)


# -- words -------------------------------------------------------------------------------------------------------------


def describe(key: bytes) -> str:
    """Return a key in words: `service "web-1" of node "n1"`, `object "/secrets" "default/token"`, `key "a/b"`."""
    name = _NAMES.get(key[:2])
    rest = key[2:].decode("utf-8", "replace").split("\0")
    if name is None:
        return "what waypost keeps for itself" if key.startswith(b"_\0") else f"key {key!r}"
    match name, rest:
        case ("service" | "check", [node, one]):
            return f"{name} {_quoted(one)} of node {_quoted(node)}"
        case "object", [kind, namespace, one]:
            return f"object {_quoted(kind)} {_quoted(f'{namespace}/{one}' if namespace else one)}"
    return f"{name} {_quoted(' '.join(rest))}"


def _quoted(text: str) -> str:
    shown_text = text if text.isprintable() else ascii(text)[1:-1]
    return f'"{shown_text[:200]}"'


def _refused(scope: NodeScope, what: str) -> Forbidden:
    return Forbidden(f"node '{scope.node}' cannot {what}")
