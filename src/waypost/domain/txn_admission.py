"""Admission of the operations of a transaction: each change is admitted as if it came alone; reading passes by. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from waypost.domain.reviewing import Admits
from waypost.model.catalog import Node
from waypost.model.kv import KVEntry
from waypost.state.view import View
from waypost.wire.consul.decode import (
    CheckOperation,
    KVOperation,
    NodeOperation,
    Operation,
    ServiceOperation,
)

_SETS: Final = frozenset({"set", "cas", "lock", "unlock"})
_DELETES: Final = frozenset({"delete", "delete-cas", "delete-tree"})


def admitted(admits: Admits, view: View, operation: Operation, *, datacenter: str) -> Operation:
    """Return an operation as admission lets it be. Raises Denied, TooLarge, WebhookFailed."""
    if operation.verb not in _SETS and operation.verb not in _DELETES:
        return operation
    match operation:
        case KVOperation():
            return _key(admits, view, operation)
        case NodeOperation():
            return _node(admits, view, operation, datacenter=datacenter)
        case ServiceOperation():
            return _service(admits, view, operation)
        case CheckOperation():
            return _check(admits, view, operation)


def _key(admits: Admits, view: View, operation: KVOperation) -> KVOperation:
    if operation.verb == "delete-tree":
        admits.removal(*view.kv_below(operation.key))
        return operation
    old = view.kv(operation.key)
    if operation.verb in _DELETES:
        if old is not None:
            admits.removal(old)
        return operation
    if not operation.key:
        return operation
    new = KVEntry(key=operation.key, value=operation.value, flags=operation.flags)
    new = admits.record(new, old)
    return msgspec.structs.replace(operation, value=new.value, flags=new.flags)


def _node(
    admits: Admits, view: View, operation: NodeOperation, *, datacenter: str
) -> NodeOperation:
    old = view.node(operation.node)
    if old is None and operation.id:
        old = view.node_by_id(operation.id)
    if operation.verb in _DELETES:
        if old is not None:
            admits.removal(old, *view.node_services(old.node).values())
        return operation
    new = Node(
        node=operation.node,
        address=operation.address,
        id=operation.id.lower() or (old.id if old else ""),
        datacenter=operation.datacenter or datacenter,
        tagged_addresses=operation.tagged_addresses,
        meta=operation.meta,
    )
    new = admits.record(new, old)
    return msgspec.structs.replace(
        operation,
        address=new.address,
        tagged_addresses=new.tagged_addresses,
        meta=new.meta,
    )


def _service(admits: Admits, view: View, operation: ServiceOperation) -> ServiceOperation:
    sent = operation.service
    service_id = sent.id or sent.name
    old = view.service(operation.node, service_id)
    if operation.verb in _DELETES:
        if old is not None:
            admits.removal(old)
        return operation
    new = msgspec.structs.replace(sent, node=operation.node, id=service_id)
    return msgspec.structs.replace(operation, service=admits.record(new, old))


def _check(admits: Admits, view: View, operation: CheckOperation) -> CheckOperation:
    sent = operation.check
    check_id = sent.check_id or sent.name
    old = view.check(sent.node, check_id)
    if operation.verb in _DELETES:
        if old is not None:
            admits.removal(old)
        return operation
    new = msgspec.structs.replace(sent, check_id=check_id)
    return msgspec.structs.replace(operation, check=admits.record(new, old))
