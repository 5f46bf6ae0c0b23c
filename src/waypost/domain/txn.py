"""Transactions over keys, nodes, services and checks: all operations or none.

The operations are decided one after the other over an overlay of the view, so that later ones see what earlier ones
did; the overlay then becomes one transaction of the store. Source: Consul HTTP API, txn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import Admission
from waypost.access.gate import Attributes, Gate
from waypost.base.errors import Rejected
from waypost.domain.catalog import taken_over
from waypost.domain.planning import Draft
from waypost.domain.reviewing import Admits, commit_reviewed
from waypost.domain.session import require_uuid
from waypost.domain.txn_admission import admitted
from waypost.model.catalog import CRITICAL, Check, Node, Service
from waypost.model.kv import KVEntry
from waypost.state.keys import Record, check_key, kv_key, node_key, service_key, session_key
from waypost.state.state import Plan, State
from waypost.state.view import View
from waypost.wire.consul.decode import (
    CheckOperation,
    KVOperation,
    NodeOperation,
    Operation,
    ServiceOperation,
)

MAX_OPERATIONS: Final = 64
_KV_WRITES: Final = frozenset(
    {"set", "delete", "delete-cas", "delete-tree", "cas", "lock", "unlock"}
)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")


class Result(msgspec.Struct, frozen=True):
    """What one operation gave. `shows_value` is False for a key that was written."""

    record: KVEntry | Node | Service | Check
    shows_value: bool = True


class Failure(msgspec.Struct, frozen=True):
    """Why one operation cannot be."""

    position: int
    text: str


class Outcome(msgspec.Struct, frozen=True):
    """All results, or all failures and nothing done."""

    results: tuple[Result, ...] = ()
    failures: tuple[Failure, ...] = ()


def is_read_only(operations: Sequence[Operation]) -> bool:
    """Return whether no operation can change anything. An unknown verb on a key counts as reading, as in Consul."""
    return not any(
        operation.verb in _KV_WRITES
        if isinstance(operation, KVOperation)
        else operation.verb != "get"
        for operation in operations
    )


class _Overlay:
    """The view with the changes of this transaction upon it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.next_index = view.revision + 1
        self.read: dict[bytes, Record | None] = {}
        self.changed: dict[bytes, Record | None] = {}

    def _get(self, key: bytes, current: Record | None) -> Record | None:
        self.read.setdefault(key, current)
        return self.changed.get(key, current)

    def kv(self, key: str) -> KVEntry | None:
        found = self._get(kv_key(key), self.view.kv(key))
        return found if isinstance(found, KVEntry) else None

    def kv_below(self, prefix: str) -> list[KVEntry]:
        keys = {entry.key for entry in self.view.kv_below(prefix)}
        keys.update(
            record.key
            for record in self.changed.values()
            if isinstance(record, KVEntry) and record.key.startswith(prefix)
        )
        entries = (self.kv(key) for key in sorted(keys))
        return [entry for entry in entries if entry is not None]

    def node(self, name: str) -> Node | None:
        found = self._get(node_key(name), self.view.node(name))
        return found if isinstance(found, Node) else None

    def service(self, node: str, service_id: str) -> Service | None:
        found = self._get(service_key(node, service_id), self.view.service(node, service_id))
        return found if isinstance(found, Service) else None

    def check(self, node: str, check_id: str) -> Check | None:
        found = self._get(check_key(node, check_id), self.view.check(node, check_id))
        return found if isinstance(found, Check) else None

    def services(self, node: str) -> list[Service]:
        ids = set(self.view.node_services(node))
        ids.update(
            record.id
            for record in self.changed.values()
            if isinstance(record, Service) and record.node.lower() == node.lower()
        )
        found = (self.service(node, service_id) for service_id in sorted(ids))
        return [service for service in found if service is not None]

    def checks(self, node: str) -> list[Check]:
        ids = set(self.view.node_checks(node))
        ids.update(
            record.check_id
            for record in self.changed.values()
            if isinstance(record, Check) and record.node.lower() == node.lower()
        )
        found = (self.check(node, check_id) for check_id in sorted(ids))
        return [check for check in found if check is not None]

    def put(self, key: bytes, old: Record | None, new: Record) -> None:
        """Note a write; writing what is there already changes nothing."""
        if old is not None:
            new = msgspec.structs.replace(
                new, create_index=old.create_index, modify_index=old.modify_index
            )
            if new == old:
                return
        self.changed[key] = msgspec.structs.replace(
            new,
            create_index=old.create_index if old is not None else self.next_index,
            modify_index=self.next_index,
        )

    def delete(self, key: bytes) -> None:
        """Note a deletion."""
        self.changed[key] = None

    def draft(self) -> Draft:
        """Return everything as guards and operations of one transaction."""
        draft = Draft()
        for key, record in self.read.items():
            draft.guard(key, record)
        for key, record in self.changed.items():
            original = self.read.get(key)
            if record is not None:
                draft.replace(original, record)
            elif original is not None:
                draft.delete(original)
        return draft


def plan_txn(
    view: View,
    operations: Sequence[Operation],
    *,
    datacenter: str,
    locked_out: Callable[[str], bool],
) -> Plan[Outcome]:
    """Decide a transaction: every operation is tried, and all that cannot be are named."""
    overlay = _Overlay(view)
    results: list[Result] = []
    failures: list[Failure] = []
    for position, operation in enumerate(operations):
        try:
            match operation:
                case KVOperation():
                    results += _on_key(overlay, operation, locked_out=locked_out)
                case NodeOperation():
                    results += _on_node(overlay, operation, datacenter=datacenter)
                case ServiceOperation():
                    results += _on_service(overlay, operation)
                case CheckOperation():
                    results += _on_check(overlay, operation)
        except Rejected as error:
            failures.append(Failure(position, str(error)))
    if failures:
        return Plan(Outcome(failures=tuple(failures)))
    return overlay.draft().plan(Outcome(results=tuple(results)))


def _refuse(text: str) -> Rejected:
    return Rejected(text)


# -- keys ----------------------------------------------------------------------------------------------------------


def _on_key(
    overlay: _Overlay, operation: KVOperation, *, locked_out: Callable[[str], bool]
) -> list[Result]:
    key = operation.key
    if not key and operation.verb != "delete-tree":
        raise _refuse("Must provide key")
    match operation.verb:
        case "get":
            entry = overlay.kv(key)
            if entry is None:
                raise _refuse(f'key "{key}" doesn\'t exist')
            return [Result(entry)]
        case "get-tree":
            return [Result(entry) for entry in overlay.kv_below(key)]
        case "set" | "cas" | "lock" | "unlock":
            return [Result(_write(overlay, operation, locked_out=locked_out), shows_value=False)]
        case "delete" | "delete-cas" | "delete-tree":
            _remove(overlay, operation)
            return []
    return _expect(overlay, operation)


def _expect(overlay: _Overlay, operation: KVOperation) -> list[Result]:
    key, entry = operation.key, overlay.kv(operation.key)
    match operation.verb:
        case "check-index":
            if entry is None:
                raise _refuse(f'failed to check index, key "{key}" doesn\'t exist')
            if entry.modify_index != operation.index:
                raise _refuse(
                    f'failed index check for key "{key}", current modify index '
                    f"{entry.modify_index} != {operation.index}"
                )
            return [Result(entry, shows_value=False)]
        case "check-session":
            if entry is None:
                raise _refuse(f'failed to check session, key "{key}" doesn\'t exist')
            if entry.session != operation.session:
                raise _refuse(
                    f'failed session check for key "{key}", current session '
                    f'"{entry.session}" != "{operation.session}"'
                )
            return [Result(entry, shows_value=False)]
        case "check-not-exists":
            if entry is not None:
                raise _refuse(f'key "{key}" exists')
            return []
    raise _refuse(f'unknown KV verb "{operation.verb}"')


def _write(
    overlay: _Overlay, operation: KVOperation, *, locked_out: Callable[[str], bool]
) -> KVEntry:
    key = operation.key
    old = overlay.kv(key)
    session = old.session if old else ""
    lock_index = 0
    match operation.verb:
        case "cas":
            if operation.index != (old.modify_index if old else 0):
                raise _refuse(f'failed to set key "{key}", index is stale')
        case "lock":
            _require_session(overlay, operation.session)
            lock_index = old.lock_index if old else 0
            if session and session != operation.session:
                raise _refuse(f'failed to lock key "{key}", lock is already held')
            if not session:
                if locked_out(key):
                    raise _refuse(f'failed to lock key "{key}" due to lock delay')
                lock_index += 1
            session = operation.session
        case "unlock":
            if not operation.session:
                raise _refuse("missing session")
            lock_index = old.lock_index if old else 0
            if session != operation.session:
                raise _refuse(
                    f'failed to unlock key "{key}", lock isn\'t held, or is held by another session'
                )
            session = ""
    new = KVEntry(
        key=key,
        value=operation.value,
        flags=operation.flags,
        lock_index=lock_index,
        session=session,
    )
    overlay.put(kv_key(key), old, new)
    written = overlay.kv(key)
    assert written is not None
    return written


def _require_session(overlay: _Overlay, session_id: str) -> None:
    if not session_id:
        raise _refuse("missing session")
    require_uuid(session_id)
    session = overlay.view.session(session_id)
    overlay.read.setdefault(session_key(session_id), session)
    if session is None:
        raise _refuse(f'invalid session "{session_id}"')


def _remove(overlay: _Overlay, operation: KVOperation) -> None:
    if operation.verb == "delete-tree":
        for entry in overlay.kv_below(operation.key):
            overlay.delete(kv_key(entry.key))
        return
    old = overlay.kv(operation.key)
    if operation.verb == "delete-cas" and old is not None and old.modify_index != operation.index:
        raise _refuse(f'failed to delete key "{operation.key}", index is stale')
    if old is not None:
        overlay.delete(kv_key(operation.key))


# -- nodes, services, checks ---------------------------------------------------------------------------------------


def _on_node(overlay: _Overlay, operation: NodeOperation, *, datacenter: str) -> list[Result]:
    name = operation.node
    if operation.id and not _UUID.match(operation.id):
        length = "string is wrong length" if len(operation.id) != 36 else "is improperly formatted"
        raise _refuse(f"node lookup by ID failed, wrong UUID: uuid {length} for '{operation.id}'")
    if not name and operation.id:
        known = overlay.view.node_by_id(operation.id)
        name = known.node if known is not None else ""
    old = overlay.node(name) if name else None
    match operation.verb:
        case "get":
            if old is None:
                raise _refuse(f'node "{operation.node or operation.id}" doesn\'t exist')
            return [Result(old)]
        case "set" | "cas":
            if not operation.node:
                raise _refuse("Must provide node")
            if operation.verb == "cas":
                _check_index(old, operation.index, f'failed to set node "{name}"')
            new = Node(
                node=operation.node,
                address=operation.address,
                id=operation.id.lower() or (old.id if old else ""),
                datacenter=operation.datacenter or datacenter,
                tagged_addresses=operation.tagged_addresses,
                meta=operation.meta,
            )
            overlay.put(node_key(name), old, new)
            written = overlay.node(name)
            return [Result(written)] if written is not None else []
        case "delete" | "delete-cas":
            if operation.verb == "delete-cas":
                what = f'failed to delete node "{operation.node}"'
                _check_index(old, operation.index, what, is_there=True)
            if old is not None:
                _delete_node(overlay, old)
            return []
    raise _refuse(f'unknown Node verb "{operation.verb}"')


def _check_index(
    old: Node | Service | Check | None, index: int, what: str, *, is_there: bool = False
) -> None:
    """Refuse a change of something that changed since its index was `index`; 0: it was not there.

    With `is_there` it has to be there.
    """
    if (old is None and is_there) or index != (old.modify_index if old else 0):
        raise _refuse(f"{what}, index is stale")


def _delete_node(overlay: _Overlay, node: Node) -> None:
    for check in overlay.checks(node.node):
        overlay.delete(check_key(node.node, check.check_id))
    for service in overlay.services(node.node):
        overlay.delete(service_key(node.node, service.id))
    overlay.delete(node_key(node.node))


def _on_service(overlay: _Overlay, operation: ServiceOperation) -> list[Result]:
    sent = operation.service
    service_id = sent.id or sent.name
    where = f'service "{service_id}" on node "{operation.node}"'
    if operation.verb in ("delete", "delete-cas") and sent.id and not sent.name:
        raise _refuse("Must provide service name with ID")
    old = overlay.service(operation.node, service_id) if operation.node else None
    match operation.verb:
        case "get":
            if old is None:
                raise _refuse(f"{where} doesn't exist")
            return [Result(old)]
        case "set" | "cas":
            if operation.verb == "cas":
                _check_index(old, sent.modify_index, f"failed to set {where}")
            return _set_service(overlay, operation, old)
        case "delete" | "delete-cas":
            if operation.verb == "delete-cas":
                what = f"failed to delete {where}"
                _check_index(old, sent.modify_index, what, is_there=True)
            if old is not None:
                for check in overlay.checks(old.node):
                    if check.service_id == old.id:
                        overlay.delete(check_key(old.node, check.check_id))
                overlay.delete(service_key(old.node, old.id))
            return []
    raise _refuse(f'unknown Service verb "{operation.verb}"')


def _set_service(
    overlay: _Overlay, operation: ServiceOperation, old: Service | None
) -> list[Result]:
    node = overlay.node(operation.node) if operation.node else None
    if node is None:
        raise _refuse("Missing node registration")
    sent = operation.service
    if not sent.name:
        raise _refuse("Must provide service name with ID")
    new = msgspec.structs.replace(sent, node=node.node, id=sent.id or sent.name)
    overlay.put(service_key(node.node, new.id), old, new)
    written = overlay.service(node.node, new.id)
    return [Result(written)] if written is not None else []


def _on_check(overlay: _Overlay, operation: CheckOperation) -> list[Result]:
    sent = operation.check
    check_id = sent.check_id or sent.name
    where = f'check "{check_id}" on node "{sent.node}"'
    old = overlay.check(sent.node, check_id) if sent.node else None
    match operation.verb:
        case "get":
            if old is None:
                raise _refuse(f"{where} doesn't exist")
            return [Result(old)]
        case "set" | "cas":
            if operation.verb == "cas":
                _check_index(old, sent.modify_index, f"failed to set {where}")
            return _set_check(overlay, sent, old)
        case "delete" | "delete-cas":
            if operation.verb == "delete-cas":
                what = f"failed to delete {where}"
                _check_index(old, sent.modify_index, what, is_there=True)
            if old is not None:
                overlay.delete(check_key(old.node, old.check_id))
            return []
    raise _refuse(f'unknown Check verb "{operation.verb}"')


def _set_check(overlay: _Overlay, sent: Check, old: Check | None) -> list[Result]:
    node = overlay.node(sent.node) if sent.node else None
    if node is None:
        raise _refuse("Missing node registration")
    service = overlay.service(node.node, sent.service_id) if sent.service_id else None
    if sent.service_id and service is None:
        raise _refuse("Missing service registration")
    new = msgspec.structs.replace(
        sent,
        node=node.node,
        check_id=sent.check_id or sent.name,
        status=sent.status or CRITICAL,
        service_name=service.name if service else "",
        service_tags=service.tags if service else (),
    )
    overlay.put(check_key(node.node, new.check_id), old, new)
    written = overlay.check(node.node, new.check_id)
    return [Result(written)] if written is not None else []


class Transactions:
    """The verb of transactions."""

    def __init__(
        self,
        state: State,
        gate: Gate,
        *,
        datacenter: str,
        locked_out: Callable[[str], bool],
        admission: Admission | None = None,
    ) -> None:
        self._state = state
        self._admission = admission
        self._gate = gate
        self._datacenter = datacenter
        self._locked_out = locked_out

    async def apply(self, actor: Actor, operations: Sequence[Operation]) -> Outcome:
        """Do all operations or none. Raises Forbidden, Unavailable; what cannot be done is in the outcome."""

        def decide(view: View, admits: Admits) -> Plan[Outcome]:
            # Asked each time: while webhooks think, it may become somebody else's record.
            self._admit(view, actor, operations)
            admitted_ones = [
                admitted(admits, view, one, datacenter=self._datacenter) for one in operations
            ]
            return plan_txn(
                view,
                admitted_ones,
                datacenter=self._datacenter,
                locked_out=self._locked_out,
            )

        outcome = await commit_reviewed(self._state, self._admission, actor, decide)
        return Outcome(tuple(map(self._as_stored, outcome.results)), outcome.failures)

    def _admit(self, view: View, actor: Actor, operations: Sequence[Operation]) -> None:
        for operation in operations:
            for attributes in _asked(view, operation):
                self._gate.admit(actor, attributes)

    def _as_stored(self, result: Result) -> Result:
        """Return a result with the indexes the store gave to what was written."""
        view = self._state.view
        record = result.record
        stored: KVEntry | Node | Service | Check | None
        match record:
            case KVEntry():
                stored = view.kv(record.key)
            case Node():
                stored = view.node(record.node)
            case Service():
                stored = view.service(record.node, record.id)
            case Check():
                stored = view.check(record.node, record.check_id)
        if stored is None:
            return result
        indexes = {"create_index": stored.create_index, "modify_index": stored.modify_index}
        return Result(msgspec.structs.replace(record, **indexes), result.shows_value)


def _asked(view: View, operation: Operation) -> list[Attributes]:
    match operation:
        case KVOperation():
            verb = "get"
            if operation.verb in _KV_WRITES:
                verb = "delete" if operation.verb.startswith("delete") else "update"
            elif operation.verb == "get-tree":
                verb = "list"
            return [Attributes(verb, path="/v1/kv/" + operation.key)]
        case NodeOperation():
            node = operation.node
            return [Attributes(_verb(operation.verb), "nodes", node, node=node)]
        case ServiceOperation():
            service, node = operation.service, operation.node
            verb, service_id = _verb(operation.verb), service.id or service.name
            found = [Attributes(verb, "services", service.name or service_id, node=node)]
            if verb != "get":
                found += taken_over(view, node=node, service_id=service_id, name=service.name)
            return found
        case CheckOperation():
            check = operation.check
            return [Attributes(_verb(operation.verb), "checks", check.check_id, node=check.node)]


def _verb(verb: str) -> str:
    if verb == "get":
        return "get"
    return "delete" if verb.startswith("delete") else "update"
