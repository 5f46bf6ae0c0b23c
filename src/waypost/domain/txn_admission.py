"""Admission of the operations of a transaction: each change is admitted as if it came alone; reading passes by."""

from __future__ import annotations

from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import Admission
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


async def admitted(
    admission: Admission, view: View, actor: Actor, operation: Operation, *, datacenter: str
) -> Operation:
    """Return an operation as admission lets it be. Raises Denied, TooLarge, WebhookFailed."""
    if operation.verb not in _SETS and operation.verb not in _DELETES:
        return operation
    match operation:
        case KVOperation():
            return await _key(admission, view, actor, operation)
        case NodeOperation():
            return await _node(admission, view, actor, operation, datacenter=datacenter)
        case ServiceOperation():
            return await _service(admission, view, actor, operation)
        case CheckOperation():
            return await _check(admission, view, actor, operation)


async def _key(
    admission: Admission, view: View, actor: Actor, operation: KVOperation
) -> KVOperation:
    if not admission.has_webhooks or not operation.key:
        return operation
    if operation.verb in _DELETES:
        if operation.verb != "delete-tree":
            await admission.removal(actor, view.kv(operation.key))
            return operation
        for entry in view.kv_below(operation.key):
            await admission.removal(actor, entry)
        return operation
    new = KVEntry(key=operation.key, value=operation.value, flags=operation.flags)
    new = await admission.record(actor, new, view.kv(operation.key))
    return msgspec.structs.replace(operation, value=new.value, flags=new.flags)


async def _node(
    admission: Admission, view: View, actor: Actor, operation: NodeOperation, *, datacenter: str
) -> NodeOperation:
    old = view.node(operation.node)
    if old is None and operation.id:
        old = view.node_by_id(operation.id)
    if operation.verb in _DELETES:
        if old is not None:
            await admission.removal(actor, old)
            for service in tuple(view.node_services(old.node).values()):
                await admission.removal(actor, service)
        return operation
    new = Node(
        node=operation.node,
        address=operation.address,
        id=operation.id.lower() or (old.id if old else ""),
        datacenter=operation.datacenter or datacenter,
        tagged_addresses=operation.tagged_addresses,
        meta=operation.meta,
    )
    new = await admission.record(actor, new, old)
    return msgspec.structs.replace(
        operation,
        address=new.address,
        tagged_addresses=new.tagged_addresses,
        meta=new.meta,
    )


async def _service(
    admission: Admission, view: View, actor: Actor, operation: ServiceOperation
) -> ServiceOperation:
    sent = operation.service
    service_id = sent.id or sent.name
    old = view.service(operation.node, service_id)
    if operation.verb in _DELETES:
        await admission.removal(actor, old)
        return operation
    new = msgspec.structs.replace(sent, node=operation.node, id=service_id)
    return msgspec.structs.replace(operation, service=await admission.record(actor, new, old))


async def _check(
    admission: Admission, view: View, actor: Actor, operation: CheckOperation
) -> CheckOperation:
    sent = operation.check
    check_id = sent.check_id or sent.name
    old = view.check(sent.node, check_id)
    if operation.verb in _DELETES:
        await admission.removal(actor, old)
        return operation
    new = msgspec.structs.replace(sent, check_id=check_id)
    return msgspec.structs.replace(operation, check=await admission.record(actor, new, old))
