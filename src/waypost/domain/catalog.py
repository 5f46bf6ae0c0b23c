"""The catalog: register and deregister nodes, instances and checks, and read them.

Source: Consul HTTP API, catalog. What an agent does for its own node is in `domain.agent`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import Admission
from waypost.access.gate import Attributes, Gate
from waypost.base.errors import Rejected
from waypost.domain.planning import Draft, same
from waypost.domain.reviewing import UNREVIEWED, Admits, commit_reviewed
from waypost.model.catalog import (
    CRITICAL,
    SERF_HEALTH_ID,
    Check,
    Node,
    Service,
    fold,
)
from waypost.state.keys import CHECK, SERVICE, node_key, service_key
from waypost.state.state import Plan, State
from waypost.state.view import Instance, View

_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\Z")
ANY_ADDRESSES = frozenset({"0.0.0.0", "::", "[::]"})
MAX_NAME_BYTES = 512
_LIST_NODES = Attributes("list", "nodes")
LIST_SERVICES = Attributes("list", "services")
LIST_CHECKS = Attributes("list", "checks")


class Register(msgspec.Struct, frozen=True, kw_only=True):
    """One registration: a node, and with it at most one instance and some checks."""

    node: str
    address: str = ""
    id: str = ""
    tagged_addresses: dict[str, str] | None = None
    meta: dict[str, str] | None = None
    skip_node_update: bool = False
    service: Service | None = None
    """Its `node` member is not read: it belongs to the node named here."""
    checks: tuple[Check, ...] = ()


class Deregister(msgspec.Struct, frozen=True, kw_only=True):
    """What goes: an instance with its checks, else a check, else the whole node."""

    node: str
    service_id: str = ""
    check_id: str = ""


def plan_register(
    view: View, command: Register, *, datacenter: str, admits: Admits = UNREVIEWED
) -> Plan[None]:
    """Decide a registration; it happens wholly or not at all.

    Raises Rejected in Consul's words.
    """
    if not command.node:
        msg = "Must provide node"
        raise Rejected(msg)
    if not command.address and not command.skip_node_update:
        msg = "Must provide address if SkipNodeUpdate is not set"
        raise Rejected(msg)
    if command.id:
        _require_uuid(command.id)
    draft = Draft()
    node = _plan_node(view, command, draft, admits, datacenter=datacenter)
    service = None
    if command.service is not None:
        service = _plan_service(view, node, command.service, draft, admits)
    for check in command.checks:
        _plan_check(view, node, check, service, draft, admits)
    return draft.plan(None)


def _require_uuid(text: str) -> None:
    if len(text) != 36:
        msg = "Bad node ID: uuid string is wrong length"
        raise Rejected(msg)
    if not _UUID.match(text):
        msg = "Bad node ID: uuid is improperly formatted"
        raise Rejected(msg)


def _plan_node(
    view: View, command: Register, draft: Draft, admits: Admits, *, datacenter: str
) -> Node:
    old = view.node(command.node)
    if old is not None and command.skip_node_update:
        draft.guard(node_key(old.node), old)
        return old
    if old is None or command.id.lower() != old.id.lower():
        old = _claim_name(view, command, old, draft, admits)
    new = Node(
        node=command.node,
        address=command.address,
        id=command.id.lower() or (old.id if old else ""),
        datacenter=datacenter,
        tagged_addresses=command.tagged_addresses,
        meta=command.meta,
    )
    if old is not None and same(old, new):
        draft.guard(node_key(old.node), old)
        return old
    new = admits.record(new, old)
    draft.replace(old, new)
    return new


def _claim_name(
    view: View, command: Register, held: Node | None, draft: Draft, admits: Admits
) -> Node | None:
    """Settle a node that brings another id to a name, or another name to an id; return what is replaced."""
    if not command.id:
        return held
    mine = view.node_by_id(command.id)
    if held is not None and held.id:
        health = view.check(held.node, SERF_HEALTH_ID)
        alive = health is None or health.status != CRITICAL
        if alive:
            msg = (
                f'failed inserting node: Error while renaming Node ID: "{command.id}": '
                f"Node name {command.node} is reserved by node {held.id} "
                f"with name {held.node} ({held.address})"
            )
            raise Rejected(msg)
    if mine is not None and fold(mine.node) != fold(command.node):
        # The same machine under a new name: the old name goes with all it held.
        _remove_node(view, mine, draft, admits)
    return held


def _plan_service(
    view: View, node: Node, service: Service, draft: Draft, admits: Admits
) -> Service | None:
    if service.id and not service.name:
        msg = "Must provide service name with ID"
        raise Rejected(msg)
    if not service.name:
        return service
    if service.address in ANY_ADDRESSES:
        msg = "Invalid service address"
        raise Rejected(msg)
    new = msgspec.structs.replace(service, node=node.node, id=service.id or service.name)
    old = view.service(node.node, new.id)
    new = admits.record(new, old)
    if new.address in ANY_ADDRESSES:
        msg = "Invalid service address"
        raise Rejected(msg)
    draft.replace(old, new)
    if old is not None and (old.name, old.tags) != (new.name, new.tags):
        # Checks show the name and tags of their instance.
        for check in view.node_checks(node.node).values():
            if check.service_id == new.id:
                draft.replace(
                    check,
                    msgspec.structs.replace(check, service_name=new.name, service_tags=new.tags),
                )
    return new


def _plan_check(
    view: View, node: Node, check: Check, sent: Service | None, draft: Draft, admits: Admits
) -> None:
    if check.node and fold(check.node) != fold(node.node):
        msg = f'check node "{check.node}" does not match node "{node.node}"'
        raise Rejected(msg)
    service: Service | None = None
    if check.service_id:
        if sent is not None and (sent.id or sent.name) == check.service_id:
            service = sent
        else:
            service = view.service(node.node, check.service_id)
            if service is None:
                msg = f'failed inserting check: Missing service registration on node "{node.node}"'
                raise Rejected(msg)
            draft.guard(service_key(node.node, service.id), service)
    new = msgspec.structs.replace(
        check,
        node=node.node,
        check_id=check.check_id or check.name,
        status=check.status or CRITICAL,
        service_name=service.name if service else "",
        service_tags=service.tags if service else (),
    )
    old = view.check(node.node, new.check_id)
    draft.replace(old, admits.record(new, old))


def _remove_node(view: View, node: Node, draft: Draft, admits: Admits) -> None:
    """Add to `draft`: the node goes with everything on it, each instance asked about: each may be guarded."""
    admits.removal(node, *view.node_services(node.node).values())
    if admits.asks:
        # One by one: nothing goes that was not asked about.
        draft.delete(node)
        _delete_content(view, node.node, draft)
    else:
        delete_node(node, draft)


def _delete_content(view: View, node: str, draft: Draft) -> None:
    for service in view.node_services(node).values():
        draft.delete(service)
    for check in view.node_checks(node).values():
        draft.delete(check)


def delete_node(node: Node, draft: Draft) -> None:
    """Add to `draft`: the node goes with everything on it."""
    draft.delete(node)
    name = fold(node.node).encode("utf-8", "surrogateescape")
    draft.delete_below(SERVICE + name + b"\0")
    draft.delete_below(CHECK + name + b"\0")


def delete_service(view: View, service: Service, draft: Draft) -> None:
    """Add to `draft`: the instance goes with its checks."""
    draft.delete(service)
    for check in view.node_checks(service.node).values():
        if check.service_id == service.id:
            draft.delete(check)


def plan_deregister(view: View, command: Deregister, admits: Admits = UNREVIEWED) -> Plan[bool]:
    """Decide a deregistration; the answer is whether there was anything to remove."""
    if not command.node:
        msg = "Must provide node"
        raise Rejected(msg)
    draft = Draft()
    if command.service_id:
        service = view.service(command.node, command.service_id)
        if service is None:
            return Plan(answer=False)
        admits.removal(service)
        delete_service(view, service, draft)
    elif command.check_id:
        check = view.check(command.node, command.check_id)
        if check is None:
            return Plan(answer=False)
        admits.removal(check)
        draft.delete(check)
    else:
        node = view.node(command.node)
        if node is None:
            # Nothing but what was registered on it while it went.
            admits.removal(*view.node_services(command.node).values())
            _delete_content(view, command.node, draft)
            return draft.plan(answer=False)
        _remove_node(view, node, draft, admits)
    return draft.plan(answer=True)


def asked(view: View, command: Register) -> list[Attributes]:
    """Return everything that a registration changes, as the gate is asked for it.

    The node only if it would change; the service under the name it has and the one it gets, or whoever may write
    one service could take over another's instance by its id; checks unless they come with their service. The node of
    another name that has this id goes, so whoever may write one node cannot remove another's by its id.
    """
    node = command.node
    found: list[Attributes] = []
    renamed = view.node_by_id(command.id) if command.id else None
    if renamed is not None and fold(renamed.node) != fold(node):
        found.append(Attributes("delete", "nodes", renamed.node, node=renamed.node))
    old_node = view.node(node)
    if old_node is None or not (
        command.skip_node_update
        or (old_node.address, old_node.tagged_addresses, old_node.meta)
        == (command.address, command.tagged_addresses, command.meta)
    ):
        found.append(Attributes("update", "nodes", node, node=node))
    service_id = ""
    if command.service is not None:
        service = command.service
        service_id = service.id or service.name
        found.append(Attributes("update", "services", service.name or service_id, node=node))
        found.extend(taken_over(view, node=node, service_id=service_id, name=service.name))
    found.extend(
        Attributes("update", "checks", check.check_id or check.name, node=node)
        for check in command.checks
        if not service_id or check.service_id != service_id
    )
    return found or [Attributes("update", "nodes", node, node=node)]


def taken_over(view: View, *, node: str, service_id: str, name: str) -> list[Attributes]:
    """Return what else the gate is asked when an id moves from one service to another."""
    old = view.service(node, service_id)
    if old is None or fold(old.name) == fold(name):
        return []
    return [Attributes("update", "services", old.name, node=node)]


def _asked_removal(view: View, command: Deregister) -> Attributes:
    if command.service_id:
        found = view.service(command.node, command.service_id)
        name = found.name if found else command.service_id
        return Attributes("delete", "services", name, node=command.node)
    if command.check_id:
        return Attributes("delete", "checks", command.check_id, node=command.node)
    return Attributes("delete", "nodes", command.node, node=command.node)


def what_shows_service(service: Service) -> tuple[Attributes, ...]:
    """Return what lets somebody see an instance in a list."""
    return (Attributes("get", "services", service.name),)


def what_shows_check(check: Check) -> tuple[Attributes, ...]:
    """Return what lets somebody see a check in a list: itself, or its service, whose health shows it as well."""
    own = Attributes("get", "checks", check.check_id, node=check.node)
    if not check.service_name:
        return (own,)
    return own, Attributes("get", "services", check.service_name)


class Catalog:
    """The verbs of the catalog. Reads return what the view holds now; nothing is copied."""

    def __init__(
        self, state: State, gate: Gate, *, datacenter: str, admission: Admission | None = None
    ) -> None:
        self._state = state
        self._gate = gate
        self._admission = admission
        self.datacenter = datacenter

    async def register(self, actor: Actor, command: Register) -> None:
        """Register. Raises Forbidden, Rejected, Unavailable."""

        def decide(view: View, admits: Admits) -> Plan[None]:
            # Asked each time: while webhooks think, it may become somebody else's record.
            for attributes in asked(view, command):
                self._gate.admit(actor, attributes)
            return plan_register(view, command, datacenter=self.datacenter, admits=admits)

        await commit_reviewed(self._state, self._admission, actor, decide)

    async def deregister(self, actor: Actor, command: Deregister) -> bool:
        """Deregister; return whether there was anything. Raises Forbidden, Rejected, Unavailable."""

        def decide(view: View, admits: Admits) -> Plan[bool]:
            self._gate.admit(actor, _asked_removal(view, command))
            return plan_deregister(view, command, admits)

        done = await commit_reviewed(self._state, self._admission, actor, decide)
        while self._left_behind(command):
            await commit_reviewed(self._state, self._admission, actor, decide)
        return done

    def _left_behind(self, command: Deregister) -> bool:
        """Return whether something was registered on a node while it went."""
        if command.service_id or command.check_id:
            return False
        view = self._state.view
        return view.node(command.node) is None and bool(view.node_services(command.node))

    def nodes(self, actor: Actor) -> Sequence[Node]:
        """Return all nodes by name, or those that `actor` may get by name."""
        return self._gate.visible(
            actor,
            _LIST_NODES,
            self._state.view.nodes(),
            each=lambda node: (Attributes("get", "nodes", node.node),),
        )

    def node(self, actor: Actor, name: str) -> Node | None:
        """Return the node of that name, id, or unambiguous beginning of an id."""
        self._gate.admit(actor, Attributes("get", "nodes", name))
        view = self._state.view
        found = view.node(name) or view.node_by_id(name)
        if found is None and len(name) >= 2 and re.fullmatch(r"[0-9a-fA-F-]+", name):
            matching = [node for node in view.nodes() if node.id.startswith(name.lower())]
            found = matching[0] if len(matching) == 1 else None
        return found

    def node_services(self, actor: Actor, node: str) -> Mapping[str, Service]:
        """Return the instances of a node by id, or those whose service `actor` may get by name."""
        found = self._state.view.node_services(node)
        if self._gate.allows(actor, LIST_SERVICES):
            return found
        services = self._gate.visible(
            actor, LIST_SERVICES, tuple(found.values()), each=what_shows_service
        )
        return {service.id: service for service in services}

    def services(self, actor: Actor) -> dict[str, list[str]]:
        """Return {service: sorted union of its instances' tags}, or of those that `actor` may get by name."""
        services = self._state.view.services()
        if self._gate.allows(actor, LIST_SERVICES):
            return services
        names = self._gate.visible(
            actor,
            LIST_SERVICES,
            tuple(services),
            each=lambda name: (Attributes("get", "services", name),),
        )
        return {name: services[name] for name in names}

    def instances(self, actor: Actor, service: str) -> Sequence[Instance]:
        """Return the instances of a service with their nodes and checks."""
        self._gate.admit(actor, Attributes("get", "services", service))
        return self._state.view.instances(service)

    def node_checks(self, actor: Actor, node: str) -> Sequence[Check]:
        """Return the checks of a node by folded check id, or those that `actor` may see."""
        checks = self._seen(actor, tuple(self._state.view.node_checks(node).values()))
        return sorted(checks, key=lambda check: check.check_id.lower())

    def service_checks(self, actor: Actor, service: str) -> Sequence[Check]:
        """Return the checks that belong to instances of a service, or those that `actor` may see."""
        return self._seen(actor, self._state.view.checks_of(service))

    def checks_in(self, actor: Actor, status: str) -> Sequence[Check]:
        """Return the checks with a status, or all for `any`, or those of them that `actor` may see."""
        checks = self._state.view.checks()
        return self._seen(actor, [one for one in checks if status in ("any", one.status)])

    def _seen(self, actor: Actor, checks: Sequence[Check]) -> Sequence[Check]:
        view = self._state.view
        return self._gate.visible(
            actor, LIST_CHECKS, checks, each=what_shows_check, known=view.checks
        )
