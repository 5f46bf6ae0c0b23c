"""The whole state in memory: tables, indexes and what can be waited for.

Every agent has one view, fed from the store's watch. It changes only a whole revision at a time, between two turns
of the event loop, so a reader that does not await never sees half a revision. Records are frozen; what the methods
return must be treated as frozen too (nothing is copied).

Records of nodes, services and checks can be *covered*: shown otherwise than they are stored, until the store has
the same (`state.provisional`). What the store says of a covered record is kept beneath.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from waypost.model.catalog import (
    CRITICAL,
    MAINTENANCE,
    NODE_MAINTENANCE_ID,
    PASSING,
    SERVICE_MAINTENANCE_PREFIX,
    WARNING,
    Check,
    Node,
    Service,
    fold,
)
from waypost.model.kv import KVEntry
from waypost.model.object import Object
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
)
from waypost.state.object_history import Change, ObjectHistory
from waypost.state.topics import Topic, Topics
from waypost.store.engine import Batch, Event, KeyValue

_TABLES: Final = frozenset({NODE, SERVICE, CHECK, KV, SESSION, OBJECT, SYSTEM})


class Instance(msgspec.Struct, frozen=True, gc=False):
    """One instance as a client sees it: its node, itself, the node's checks and then its own."""

    node: Node
    service: Service
    checks: tuple[Check, ...]

    @property
    def status(self) -> str:
        """The worst status of all checks; `passing` without any. Maintenance counts as its own, worst state."""
        return aggregated_status(self.checks)

    @property
    def address(self) -> str:
        """The instance's own address, else its node's."""
        return self.service.address or self.node.address


def aggregated_status(checks: Iterable[Check]) -> str:
    """Return the worst of `checks`: maintenance > critical > warning > passing. Source: consul/api AggregatedStatus."""
    worst = PASSING
    for check in checks:
        if check.check_id == NODE_MAINTENANCE_ID or check.check_id.startswith(
            SERVICE_MAINTENANCE_PREFIX
        ):
            return MAINTENANCE
        if check.status == CRITICAL:
            worst = CRITICAL
        elif check.status == WARNING and worst == PASSING:
            worst = WARNING
    return worst


COVERABLE = (NODE, SERVICE, CHECK)
"""The tables whose records can be shown otherwise than they are stored."""

_NOTHING: Mapping[str, Service] = {}
_NO_CHECKS: Mapping[str, Check] = {}


class SystemEntry(msgspec.Struct, frozen=True, gc=False):
    """Something that waypost keeps for itself, as bytes; whoever owns the name knows what they mean."""

    name: str
    """Parts separated by NUL; the first says whose it is."""
    value: bytes
    create_index: int
    modify_index: int


class View:
    """Tables and indexes of one moment."""

    def __init__(self) -> None:
        self.revision = 0
        """The newest revision of the store that was applied."""
        self.moment = 0
        """Grows with every change of what is shown, and never goes back: while it stands still, nothing has changed.

        It is the revision, as long as nothing was ever covered. Each covering and uncovering adds one, and what the
        store brings later has a moment of its own after that, until the store's revisions have caught up.
        """
        self.changes = 0
        """How often the store has brought something else."""
        self.topics = Topics()
        self.history = ObjectHistory()
        """The latest changes of objects of the kube-style API."""
        self._nodes: dict[str, Node] = {}
        self._services: dict[str, dict[str, Service]] = {}
        self._checks: dict[str, dict[str, Check]] = {}
        self._by_name: dict[str, dict[tuple[str, str], Service]] = {}
        self._instances: dict[str, tuple[Instance, ...]] = {}
        self._kv: dict[str, KVEntry] = {}
        self._kv_keys: list[str] = []
        self._sessions: dict[str, Session] = {}
        self._objects: dict[str, dict[tuple[str, str], Object]] = {}
        self._system: dict[str, SystemEntry] = {}
        self._shown: dict[bytes, Record | None] = {}
        """Covered keys and what is shown instead; None: nothing is."""
        self._beneath: dict[bytes, Record | None] = {}
        """What the store has under the same keys."""

    # -- nodes -----------------------------------------------------------------------------------------------------

    def node(self, name: str) -> Node | None:
        """Return the node of that name, whatever its case."""
        return self._nodes.get(fold(name))

    def nodes(self) -> list[Node]:
        """Return all nodes by name."""
        return sorted(self._nodes.values(), key=lambda node: node.node)

    def node_by_id(self, node_id: str) -> Node | None:
        """Return the node with that id (a UUID, any case)."""
        wanted = node_id.lower()
        for node in self._nodes.values():
            if node.id and node.id.lower() == wanted:
                return node
        return None

    def node_services(self, node: str) -> Mapping[str, Service]:
        """Return the instances of a node by id."""
        return self._services.get(fold(node), _NOTHING)

    def node_checks(self, node: str) -> Mapping[str, Check]:
        """Return all checks of a node, those of its instances included, by check id."""
        return self._checks.get(fold(node), _NO_CHECKS)

    # -- services and checks -----------------------------------------------------------------------------------------

    def service(self, node: str, service_id: str) -> Service | None:
        """Return one instance."""
        return self._services.get(fold(node), _NOTHING).get(service_id)

    def check(self, node: str, check_id: str) -> Check | None:
        """Return one check."""
        return self._checks.get(fold(node), _NO_CHECKS).get(check_id)

    def service_names(self) -> list[str]:
        """Return the folded names of all services that have an instance."""
        return sorted(self._by_name)

    def services(self) -> dict[str, list[str]]:
        """Return {service name: sorted union of the tags of its instances}, as given at registration."""
        found: dict[str, set[str]] = {}
        for instances in self._by_name.values():
            for service in instances.values():
                found.setdefault(service.name, set()).update(service.tags)
        return {name: sorted(tags) for name, tags in sorted(found.items())}

    def instances(self, service_name: str) -> tuple[Instance, ...]:
        """Return the instances of a service by node, then id, each joined with its node and checks.

        An instance whose node is not registered (yet) is left out, as Consul does.
        """
        name = fold(service_name)
        known = self._instances.get(name)
        if known is None:
            known = self._instances[name] = tuple(self._join(name))
            if not known and name not in self._by_name:
                del self._instances[name]
        return known

    def _join(self, name: str) -> Iterator[Instance]:
        services = self._by_name.get(name, {})
        for (node_name, service_id), service in sorted(services.items()):
            node = self._nodes.get(node_name)
            if node is None:
                continue
            checks = self._checks.get(node_name, _NO_CHECKS).values()
            mine = sorted(
                (
                    check
                    for check in checks
                    if not check.service_id or check.service_id == service_id
                ),
                key=lambda check: (bool(check.service_id), check.check_id.lower()),
            )
            yield Instance(node, service, tuple(mine))

    def checks_of(self, service_name: str) -> list[Check]:
        """Return the checks that belong to instances of a service, by node and id."""
        name = fold(service_name)
        return [
            check
            for instance in self.instances(name)
            for check in instance.checks
            if check.service_id
        ]

    def checks(self) -> Iterator[Check]:
        """Yield every check by node, then id."""
        for node in sorted(self._checks):
            yield from (check for _, check in sorted(self._checks[node].items()))

    # -- kv and sessions -----------------------------------------------------------------------------------------------

    def kv(self, key: str) -> KVEntry | None:
        """Return one key."""
        return self._kv.get(key)

    def kv_below(self, prefix: str) -> Sequence[KVEntry]:
        """Return every key that starts with `prefix`, in order."""
        start = bisect.bisect_left(self._kv_keys, prefix)
        found: list[KVEntry] = []
        for position in range(start, len(self._kv_keys)):
            key = self._kv_keys[position]
            if not key.startswith(prefix):
                break
            found.append(self._kv[key])
        return found

    def session(self, session_id: str) -> Session | None:
        """Return one session."""
        return self._sessions.get(session_id)

    def sessions(self) -> list[Session]:
        """Return all sessions by id."""
        return [session for _, session in sorted(self._sessions.items())]

    # -- objects of the kube-style API ---------------------------------------------------------------------------------

    def object(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        """Return one object; `namespace` is empty for cluster-scoped resources."""
        return self._objects.get(f"{group}/{resource}", {}).get((namespace, name))

    def objects(self, group: str, resource: str, *, namespace: str | None = None) -> list[Object]:
        """Return the objects of a resource by namespace and name; of one namespace if it is given."""
        found = self._objects.get(f"{group}/{resource}", {})
        return [
            one for key, one in sorted(found.items()) if namespace is None or key[0] == namespace
        ]

    def has_objects_in(self, namespace: str, *, besides: Object) -> bool:
        """Return whether a namespace holds objects, one of them left out."""
        left_out = f"{besides.group}/{besides.resource}", (besides.namespace, besides.name)
        return any(
            key[0] == namespace and (kind, key) != left_out
            for kind, found in self._objects.items()
            for key in found
        )

    def object_table(self, group: str, resource: str) -> Mapping[tuple[str, str], Object]:
        """Return the objects of a resource by (namespace, name), unordered; the mapping changes with the view."""
        return self._objects.get(f"{group}/{resource}", {})

    # -- what waypost keeps for itself -----------------------------------------------------------------------------------

    def system(self, name: str) -> SystemEntry | None:
        """Return one entry of waypost's own."""
        return self._system.get(name)

    def system_below(self, prefix: str) -> list[SystemEntry]:
        """Return the entries whose name starts with `prefix`, in the order of their last change."""
        found = [entry for name, entry in self._system.items() if name.startswith(prefix)]
        return sorted(found, key=lambda entry: (entry.modify_index, entry.name))

    def records(self) -> Iterator[Record | SystemEntry]:
        """Yield everything, table by table. Nothing may change meanwhile."""
        yield from self._nodes.values()
        for services in self._services.values():
            yield from services.values()
        for checks in self._checks.values():
            yield from checks.values()
        yield from self._kv.values()
        yield from self._sessions.values()
        for objects in self._objects.values():
            yield from objects.values()
        yield from self._system.values()

    # -- indexes ---------------------------------------------------------------------------------------------------------

    def index(self, topic: Topic) -> int:
        """Return the index of a topic (see `state.topics`): never 0, and it never goes back while the agent runs."""
        match topic:
            case ("kv", key):
                entry = self._kv.get(key)
                return entry.modify_index if entry else self.topics.missing_key_index(key)
            case ("prefix", prefix):
                newest = (entry.modify_index for entry in self.kv_below(prefix))
                return self.topics.prefix_index(prefix, newest=newest)
            case ("all",):
                return max(1, self.moment)
        return self.topics.index(topic)

    # -- changes ---------------------------------------------------------------------------------------------------------

    def load(self, items: Iterable[KeyValue], *, revision: int) -> None:
        """Replace everything by `items` as of `revision`, and wake every waiter. What is covered stays so."""
        for table in (
            self._nodes,
            self._services,
            self._checks,
            self._by_name,
            self._instances,
            self._kv,
            self._sessions,
            self._objects,
            self._system,
        ):
            table.clear()
        self.revision = revision
        self.changes += 1
        self.moment = max(revision, self.moment + 1)
        self.topics.reset(floor=self.moment, kv_floor=revision)
        self.history.reset(revision=revision)
        for item in items:
            if item.key.startswith(SYSTEM):
                self._add_system(item)
                continue
            record = decode(item)
            match record:
                case Node():
                    self._nodes[fold(record.node)] = record
                case Service():
                    self._add_service(record)
                case Check():
                    self._checks.setdefault(fold(record.node), {})[record.check_id] = record
                case KVEntry():
                    self._kv[record.key] = record
                case Session():
                    self._sessions[record.id] = record
                case Object():
                    kind = f"{record.group}/{record.resource}"
                    self._objects.setdefault(kind, {})[record.namespace, record.name] = record
        self._kv_keys = sorted(self._kv)
        covered = dict(self._shown)
        self._shown.clear()
        self._beneath.clear()
        self._cover(covered, set())

    def apply(self, batch: Batch) -> None:
        """Take in all changes of one revision. No await inside: readers see all of it or nothing."""
        if batch.revision <= self.revision:
            return
        self.revision = batch.revision
        if not any(event.kv.key[:2] in _TABLES for event in batch.events):
            # The store's own affairs: nothing here changes, so nobody is woken.
            self.moment = max(batch.revision, self.moment)
            return
        self.changes += 1
        # Every change is newer than all before it, or a reader of several topics would take it for an old one.
        self.moment = max(batch.revision, self.moment + 1)
        touched: set[Topic] = set()
        for event in batch.events:
            self._apply(event, batch.revision, touched)
        self._bump(touched)

    def _bump(self, touched: set[Topic]) -> None:
        for topic in touched:
            self.topics.bump(topic, self.moment)
        self._forget_instances(touched)
        self.topics.bump(("all",), self.moment)

    def _forget_instances(self, touched: set[Topic]) -> None:
        for topic in touched:
            if topic[0] == "health":
                self._instances.pop(topic[1], None)

    def _apply(self, event: Event, revision: int, touched: set[Topic]) -> None:
        key = event.kv.key
        record = decode(event.kv) if event.kind == "put" else None
        if key in self._beneath:
            self._beneath[key] = record
            return
        table = key[:2]
        parts = key[2:].decode("utf-8", "surrogateescape")
        if table in COVERABLE:
            self._change(key, record, touched)
        elif table == KV:
            self._change_kv(parts, record, revision)
        elif table == SESSION:
            self._sessions.pop(parts, None)
            if isinstance(record, Session):
                self._sessions[record.id] = record
            touched.add(("sessions",))
        elif table == OBJECT:
            kind, namespace, name = parts.split("\0", 2)
            old = self._objects.setdefault(kind, {}).pop((namespace, name), None)
            new = record if isinstance(record, Object) else None
            if new is not None:
                self._objects[kind][namespace, name] = new
            if old is not None or new is not None:
                self.history.add(kind, Change(revision, old, new))
            touched.add(("objects", kind))
        elif table == SYSTEM:
            self._system.pop(parts, None)
            if event.kind == "put":
                self._add_system(event.kv)
            touched.add(("system", parts.partition("\0")[0]))

    def _change(self, key: bytes, record: Record | None, touched: set[Topic]) -> None:
        """Show `record` under a key of the catalog."""
        parts = key[2:].decode("utf-8", "surrogateescape")
        if key.startswith(NODE):
            self._change_node(parts, record, touched)
            return
        node, _, name = parts.partition("\0")
        if key.startswith(SERVICE):
            self._change_service(node, name, record, touched)
        else:
            self._change_check(node, name, record, touched)

    def _add_system(self, kv: KeyValue) -> None:
        name = kv.key[len(SYSTEM) :].decode("utf-8", "surrogateescape")
        self._system[name] = SystemEntry(name, kv.value, kv.create_revision, kv.modify_revision)

    def _change_node(self, name: str, record: Record | None, touched: set[Topic]) -> None:
        if isinstance(record, Node):
            self._nodes[name] = record
        else:
            self._nodes.pop(name, None)
        touched.add(("nodes",))
        touched.add(("node", name))
        for service in self._services.get(name, _NOTHING).values():
            _touch_service(service, touched)

    def _change_service(
        self, node: str, service_id: str, record: Record | None, touched: set[Topic]
    ) -> None:
        old = self._services.get(node, {}).get(service_id)
        if old is not None:
            del self._services[node][service_id]
            if not self._services[node]:
                del self._services[node]
            name = fold(old.name)
            del self._by_name[name][node, service_id]
            if not self._by_name[name]:
                del self._by_name[name]
            _touch_service(old, touched)
        if isinstance(record, Service):
            self._add_service(record)
            _touch_service(record, touched)
        touched.add(("services",))
        touched.add(("node", node))

    def _add_service(self, record: Service) -> None:
        node = fold(record.node)
        self._services.setdefault(node, {})[record.id] = record
        self._by_name.setdefault(fold(record.name), {})[node, record.id] = record

    def _change_check(
        self, node: str, check_id: str, record: Record | None, touched: set[Topic]
    ) -> None:
        old = self._checks.get(node, {}).pop(check_id, None)
        if isinstance(record, Check):
            self._checks.setdefault(node, {})[check_id] = record
        elif node in self._checks and not self._checks[node]:
            del self._checks[node]
        services = self._services.get(node, _NOTHING)
        for check in (old, record):
            if not isinstance(check, Check):
                continue
            touched.add(("checks", check.status))
            if not check.service_id:
                for service in services.values():
                    touched.add(("health", fold(service.name)))
            elif check.service_id in services:
                touched.add(("health", fold(services[check.service_id].name)))
            if check.service_name:
                touched.add(("health", fold(check.service_name)))
        touched.add(("checks", "any"))
        touched.add(("node", node))

    def _change_kv(self, key: str, record: Record | None, revision: int) -> None:
        if isinstance(record, KVEntry):
            if key not in self._kv:
                bisect.insort(self._kv_keys, key)
            self._kv[key] = record
        elif self._kv.pop(key, None) is not None:
            del self._kv_keys[bisect.bisect_left(self._kv_keys, key)]
        self.topics.bump_key(key, revision, deleted=record is None)

    # -- covering --------------------------------------------------------------------------------------------------------

    @property
    def covered(self) -> Mapping[bytes, Record | None]:
        """What is shown otherwise than it is stored, by key; None: it is shown as not there."""
        return self._shown

    def cover(self, changes: Mapping[bytes, Record | None]) -> None:
        """Show nodes, services and checks otherwise than they are stored; None shows that there is none.

        They keep the indexes of what is stored, 0 where nothing is: a transaction that compares them compares what is
        stored.
        """
        touched: set[Topic] = set()
        self.moment = max(self.moment, self.topics.floor) + 1
        self._cover(changes, touched)
        self._bump(touched)

    def uncover(self, keys: Iterable[bytes]) -> None:
        """Show what is stored under `keys`."""
        touched: set[Topic] = set()
        self.moment += 1
        for key in keys:
            del self._shown[key]
            self._change(key, self._beneath.pop(key), touched)
        self._bump(touched)

    @contextmanager
    def as_stored(self) -> Iterator[None]:
        """Show everything as it is stored, to whoever decides within. Nothing inside may await."""
        if not self._shown:
            yield
            return
        touched: set[Topic] = set()
        for key, record in self._beneath.items():
            self._change(key, record, touched)
        self._forget_instances(touched)
        try:
            yield
        finally:
            for key, record in self._shown.items():
                self._change(key, record, touched)
            self._forget_instances(touched)

    def _cover(self, changes: Mapping[bytes, Record | None], touched: set[Topic]) -> None:
        for key, record in changes.items():
            if key[:2] not in COVERABLE:
                msg = f"key {key!r} cannot be shown otherwise than it is stored"
                raise ValueError(msg)
            if key not in self._beneath:
                self._beneath[key] = self._record(key)
            beneath = self._beneath[key]
            shown = record and msgspec.structs.replace(
                record,
                create_index=beneath.create_index if beneath is not None else 0,
                modify_index=beneath.modify_index if beneath is not None else 0,
            )
            self._shown[key] = shown
            self._change(key, shown, touched)

    def _record(self, key: bytes) -> Record | None:
        """Return what is shown under a key of the catalog."""
        parts = key[2:].decode("utf-8", "surrogateescape")
        node, _, name = parts.partition("\0")
        if key.startswith(NODE):
            return self._nodes.get(parts)
        if key.startswith(SERVICE):
            return self._services.get(node, _NOTHING).get(name)
        return self._checks.get(node, _NO_CHECKS).get(name)


def _touch_service(service: Service, touched: set[Topic]) -> None:
    name = fold(service.name)
    touched.add(("catalog", name))
    touched.add(("health", name))
