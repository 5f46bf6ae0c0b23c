"""What an agent keeps for its own node: its services, its checks and their results, maintenance.

There is one truth, the catalog: an agent's registration is a catalog record of its node that carries an owner
(`api`, `config`, `docker`), so nothing has to be synchronised and nothing can dangle. The only things an agent holds
beside it are the outputs of checks that changed without a change of status (written later, `check_update_interval`)
and when each TTL check last heard from its program.

While the store takes no writes, what the agent finds out by itself (`is_own`: containers, definitions, results of
checks, the node) is shown on its own machine and stored later; what others ask for is refused, because an answer
promises that it is kept.

Source: Consul HTTP API, agent/service and agent/check.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from waypost.access.actor import NODES, Actor
from waypost.access.admission import Admission
from waypost.access.admission.discovery import STATUS
from waypost.access.gate import Attributes, Gate
from waypost.base.clock import Clock
from waypost.base.errors import Conflict, NotFound, Rejected, Unavailable, WaypostError
from waypost.domain.catalog import (
    LIST_CHECKS,
    LIST_SERVICES,
    Deregister,
    delete_service,
    plan_deregister,
    taken_over,
    what_shows_check,
    what_shows_service,
)
from waypost.domain.planning import Draft
from waypost.domain.reviewing import UNREVIEWED, Admits, commit_reviewed
from waypost.model.catalog import (
    CRITICAL,
    NODE_MAINTENANCE_ID,
    PASSING,
    SERF_HEALTH_ID,
    SERVICE_MAINTENANCE_PREFIX,
    Check,
    Node,
    Service,
    TaggedAddress,
    fold,
)
from waypost.state.keys import service_key
from waypost.state.state import Plan, State
from waypost.state.view import View

CONSUL_SERVICE = "consul"
"""Id and name of the service that stands for the servers themselves."""
HEALTHY = "Agent alive and reachable"
"""Output of a passing `serfHealth`, as Consul words it."""

log = logging.getLogger(__name__)

_RETRY_S = 1.0


class LocalNode(msgspec.Struct, frozen=True, kw_only=True):
    """Who this agent is."""

    node: str
    id: str
    address: str
    datacenter: str
    meta: dict[str, str] = {}
    server: bool = True
    server_port: int = 8300


class RegisterService(msgspec.Struct, frozen=True, kw_only=True):
    """One service of this node with its checks. A check without an id gets `service:<id>` (`:<n>` with several)."""

    service: Service
    checks: tuple[Check, ...] = ()
    replace_existing_checks: bool = False


def with_ip_addresses(service: Service) -> Service:
    """Return the service with the tagged addresses that follow from an address that is an IP.

    Source: Consul agent; `lan_ipv4` and `wan_ipv4`, or `…_ipv6`, with the service's own port.
    """
    try:
        version = ipaddress.ip_address(service.address).version
    except ValueError:
        return service
    derived = TaggedAddress(address=service.address, port=service.port)
    tagged = {f"lan_ipv{version}": derived, f"wan_ipv{version}": derived}
    return msgspec.structs.replace(
        service, tagged_addresses={**tagged, **(service.tagged_addresses or {})}
    )


def number_checks(service: Service, checks: Sequence[Check]) -> tuple[Check, ...]:
    """Return the checks of one service with their ids, names and service filled in."""
    several = len(checks) > 1
    return tuple(
        msgspec.structs.replace(
            check,
            node=service.node,
            check_id=check.check_id or f"service:{service.id}" + (f":{n}" if several else ""),
            name=check.name or f"Service '{service.name}' check",
            status=check.status or CRITICAL,
            service_id=service.id,
            service_name=service.name,
            service_tags=service.tags,
            owner=check.owner or service.owner,
        )
        for n, check in enumerate(checks, start=1)
    )


def plan_register_service(
    view: View, local: LocalNode, command: RegisterService, admits: Admits = UNREVIEWED
) -> Plan[None]:
    """Decide the registration of a service of this node.

    An instance of the same id is replaced wholly. Its checks that are sent again keep status and output; those not
    sent stay, unless `replace_existing_checks`.
    """
    service = msgspec.structs.replace(
        command.service,
        node=local.node,
        id=command.service.id or command.service.name,
        owner=command.service.owner or "api",
    )
    present = view.service(local.node, service.id)
    service = with_ip_addresses(admits.record(service, present))
    draft = Draft()
    draft.replace(present, service)
    known = {
        check.check_id: check
        for check in view.node_checks(local.node).values()
        if check.service_id == service.id
    }
    sent = {check.check_id: check for check in number_checks(service, command.checks)}
    for check_id, check in sent.items():
        old = view.check(local.node, check_id)
        new = check
        if old is not None:
            new = msgspec.structs.replace(check, status=old.status, output=old.output)
        draft.replace(old, admits.record(new, old))
    for check_id, old in known.items():
        if check_id in sent:
            continue
        if command.replace_existing_checks and _replaces(service, old):
            admits.removal(old)
            draft.delete(old)
        else:
            # It goes on showing the name and tags of its instance.
            new = msgspec.structs.replace(old, service_name=service.name, service_tags=service.tags)
            draft.replace(old, new)
    return draft.plan(None)


def _replaces(service: Service, check: Check) -> bool:
    """Return whether a new registration of `service` may remove `check`: maintenance stays, and so does what somebody
    else than the registering driver put there.
    """
    if check.check_id.startswith(SERVICE_MAINTENANCE_PREFIX):
        return False
    return service.owner == "api" or check.owner == service.owner


def plan_register_check(
    view: View, local: LocalNode, check: Check, admits: Admits = UNREVIEWED
) -> Plan[None]:
    """Decide the registration of a check of this node or of one of its services."""
    draft = Draft()
    service: Service | None = None
    if check.service_id:
        service = view.service(local.node, check.service_id)
        if service is None:
            msg = f'ServiceID "{check.service_id}" does not exist'
            raise Rejected(msg)
        draft.guard(service_key(local.node, service.id), service)
    new = msgspec.structs.replace(
        check,
        node=local.node,
        check_id=check.check_id or check.name,
        status=check.status or CRITICAL,
        service_name=service.name if service else "",
        service_tags=service.tags if service else (),
        owner=check.owner or "api",
    )
    old = view.check(local.node, new.check_id)
    if old is not None:
        new = msgspec.structs.replace(new, status=old.status, output=old.output)
    draft.replace(old, admits.record(new, old))
    return draft.plan(None)


def plan_result(
    view: View, local: LocalNode, check_id: str, *, status: str, output: str
) -> Plan[bool]:
    """Decide what a check's result changes; the answer is whether the check exists."""
    old = view.check(local.node, check_id)
    if old is None:
        return Plan(answer=False)
    draft = Draft()
    draft.replace(old, msgspec.structs.replace(old, status=status, output=output))
    # Of this node's checks nobody else knows better: a heartbeat that changes nothing needs no leader.
    return msgspec.structs.replace(draft.plan(answer=True), is_own=True)


def plan_maintenance(
    view: View,
    local: LocalNode,
    *,
    service_id: str,
    enable: bool,
    reason: str,
    admits: Admits = UNREVIEWED,
) -> Plan[None]:
    """Decide maintenance mode of the node (`service_id` empty) or of one service. Enabling twice keeps the reason."""
    draft = Draft()
    service: Service | None = None
    if service_id:
        service = view.service(local.node, service_id)
        if service is None:
            msg = f'No service registered with ID "{service_id}"'
            raise NotFound(msg)
    check_id = SERVICE_MAINTENANCE_PREFIX + service_id if service_id else NODE_MAINTENANCE_ID
    old = view.check(local.node, check_id)
    if not enable:
        if old is not None:
            admits.removal(old)
            draft.delete(old)
        return draft.plan(None)
    if old is not None:
        return Plan(None)
    kind = "service" if service_id else "node"
    default = (
        f"Maintenance mode is enabled for this {kind}, but no reason was provided. "
        "This is a default message."
    )
    new = Check(
        node=local.node,
        check_id=check_id,
        name=f"{kind.capitalize()} Maintenance Mode",
        notes=reason or default,
        status=CRITICAL,
        service_id=service_id,
        service_name=service.name if service else "",
        service_tags=service.tags if service else (),
        type="maintenance",
        owner="api",
    )
    draft.replace(None, admits.record(new, None))
    return draft.plan(None)


def plan_self(view: View, local: LocalNode, *, judged: bool = False) -> Plan[None]:
    """Decide what must be in the catalog so that this node, and on a server the `consul` service, are there.

    `judged`: the leader of a cluster decides about the node's `serfHealth`, so the one that is there stays, and a
    name or id that another machine holds is not taken from it while it lives. Raises Conflict then.
    """
    draft = Draft()
    old = view.node(local.node)
    known = view.node_by_id(local.id)
    renamed = known if known is not None and fold(known.node) != fold(local.node) else None
    if judged:
        for other in (old if old is not None and old.id != local.id else None, renamed):
            if other is not None and _lives(view, other):
                raise Conflict(_taken(other, local))
    if judged and old is not None and old.id != local.id:
        # Another machine under the same name: what the old one held is not here.
        _forget_other(view, old, draft)
    draft.replace(old, _own_node(local))
    if renamed is not None:
        plan = plan_deregister(view, Deregister(node=renamed.node))
        draft.merge(plan)
        _keep_under(local.node, view, renamed.node, draft)
    health = view.check(local.node, SERF_HEALTH_ID)
    if health is None or not judged:
        new = Check(
            node=local.node,
            check_id=SERF_HEALTH_ID,
            name="Serf Health Status",
            status=PASSING,
            output=HEALTHY,
            owner="self",
        )
        draft.replace(health, new)
    if local.server:
        service = Service(
            node=local.node,
            id=CONSUL_SERVICE,
            name=CONSUL_SERVICE,
            port=local.server_port,
            meta={
                "non_voter": "false",
                "raft_version": "3",
                "serf_protocol_current": "2",
                "serf_protocol_max": "5",
                "serf_protocol_min": "1",
                "version": "1.8.7",
            },
            owner="self",
        )
        draft.replace(view.service(local.node, CONSUL_SERVICE), service)
    return draft.plan(None)


def _keep_under(name: str, view: View, old: str, draft: Draft) -> None:
    """Keep what was registered through the API when the machine has got a new name. The agent finds out the rest again."""
    mine = {key: one for key, one in view.node_services(old).items() if one.owner == "api"}
    for service in mine.values():
        new = msgspec.structs.replace(service, node=name)
        draft.replace(view.service(name, service.id), new)
    for check in view.node_checks(old).values():
        if check.service_id in mine or (not check.service_id and check.owner == "api"):
            renamed = msgspec.structs.replace(check, node=name)
            draft.replace(view.check(name, check.check_id), renamed)


def _own_node(local: LocalNode) -> Node:
    lan = f"ipv{ipaddress.ip_address(local.address).version}"
    addresses = {
        "lan": local.address,
        f"lan_{lan}": local.address,
        "wan": local.address,
        f"wan_{lan}": local.address,
    }
    return Node(
        node=local.node,
        address=local.address,
        id=local.id,
        datacenter=local.datacenter,
        tagged_addresses=addresses,
        meta={"consul-network-segment": "", **local.meta},
    )


def _lives(view: View, node: Node) -> bool:
    health = view.check(node.node, SERF_HEALTH_ID)
    return health is not None and health.status == PASSING


def _taken(other: Node, local: LocalNode) -> str:
    if fold(other.node) == fold(local.node):
        return (
            f"the name {local.node} is held by another machine that is alive: node id {other.id} at {other.address}, "
            f"this one is {local.id} at {local.address}; start one of the two under another name (-node)"
        )
    return (
        f"the node id {local.id} is in use by {other.node} at {other.address}, which is alive; if this machine was "
        f"copied from it, it needs a data directory of its own"
    )


def _forget_other(view: View, other: Node, draft: Draft) -> None:
    for service in view.node_services(other.node).values():
        if service.id != CONSUL_SERVICE:
            draft.delete(service)
    for check in view.node_checks(other.node).values():
        if check.check_id != SERF_HEALTH_ID:
            draft.delete(check)


class LocalAgent:
    """The verbs of `/v1/agent`: everything concerns the node this agent runs on."""

    def __init__(
        self,
        state: State,
        gate: Gate,
        *,
        local: LocalNode,
        clock: Clock,
        admission: Admission | None = None,
        judged: bool = False,
    ) -> None:
        """`judged`: this agent is one of a cluster, whose leader decides whether its node is alive."""
        self.local = local
        self._judged = judged
        self._is_leaving = False
        self._state = state
        self._gate = gate
        self._admission = admission
        self._clock = clock
        self.heartbeats: dict[str, float] = {}
        """When each TTL check last heard from its program, in the clock's monotonic seconds."""
        self.when_forgotten: Callable[[], None] = lambda: None
        """Called when the node was removed from the catalog, and is there again: all that was on it is gone."""
        self.beat = asyncio.Event()
        """Set when a TTL check was registered, for the task that watches the TTLs."""
        self._outputs: dict[str, str] = {}

    def _admit(self, actor: Actor, verb: str, resource: str, name: str) -> None:
        if self._is_leaving and verb != "delete":
            # Whatever was written now would stay behind when the node is gone.
            msg = "this agent is leaving the cluster"
            raise Unavailable(msg)
        self._gate.admit(actor, Attributes(verb, resource, name, node=self.local.node))

    # -- services --------------------------------------------------------------------------------------------------------

    async def register_service(
        self, actor: Actor, command: RegisterService, *, is_own: bool = False
    ) -> None:
        """Register or replace a service. Raises Forbidden, Rejected, Unavailable.

        `is_own`: this agent wants it by itself, and would again after a restart.
        """

        def decide(view: View, admits: Admits) -> Plan[None]:
            # Asked each time: while webhooks think, the id may become somebody else's.
            self._admit_registration(actor, command.service)
            return plan_register_service(view, self.local, command, admits)

        await commit_reviewed(self._state, self._admission, actor, decide, is_own=is_own)
        now = self._clock.now()
        for check in self._state.view.node_checks(self.local.node).values():
            if check.definition is not None and check.definition.ttl_ns:
                self.heartbeats.setdefault(check.check_id, now)
        self.beat.set()

    def _admit_registration(self, actor: Actor, service: Service) -> None:
        self._admit(actor, "update", "services", service.name)
        for attributes in taken_over(
            self._state.view,
            node=self.local.node,
            service_id=service.id or service.name,
            name=service.name,
        ):
            self._gate.admit(actor, attributes)

    async def deregister_service(
        self, actor: Actor, service_id: str, *, is_own: bool = False
    ) -> bool:
        """Remove a service with its checks; return whether it was there. Raises Forbidden, Unavailable."""

        def decide(view: View, admits: Admits) -> Plan[bool]:
            service = view.service(self.local.node, service_id)
            self._admit(actor, "delete", "services", service.name if service else service_id)
            if service is None:
                return Plan(answer=False)
            admits.removal(service)
            draft = Draft()
            delete_service(view, service, draft)
            return draft.plan(answer=True)

        return await commit_reviewed(self._state, self._admission, actor, decide, is_own=is_own)

    def services(self, actor: Actor) -> Mapping[str, Service]:
        """Return the services of this node by id, without the one that stands for the server itself.

        Only those that `actor` may get by name, if he may not list them.
        """
        view = self._state.view
        mine = sorted(view.node_services(self.local.node).items())
        found = self._gate.visible(
            actor,
            LIST_SERVICES,
            [service for _, service in mine if service.owner != "self"],
            each=what_shows_service,
            known=lambda: (
                one for node in view.nodes() for one in view.node_services(node.node).values()
            ),
        )
        return {service.id: service for service in found}

    def service(self, actor: Actor, service_id: str) -> Service:
        """Return one service of this node. Raises NotFound in Consul's words."""
        found = self.services(actor).get(service_id)
        if found is None:
            msg = f"unknown service ID: {service_id}"
            raise NotFound(msg)
        return found

    async def set_service_maintenance(
        self, actor: Actor, service_id: str, *, enable: bool, reason: str = ""
    ) -> None:
        """Turn maintenance of one service on or off. Raises NotFound, Forbidden, Unavailable."""

        def decide(view: View, admits: Admits) -> Plan[None]:
            found = view.service(self.local.node, service_id)
            self._admit(actor, "update", "services", found.name if found else service_id)
            return plan_maintenance(
                view,
                self.local,
                service_id=service_id,
                enable=enable,
                reason=reason,
                admits=admits,
            )

        await commit_reviewed(self._state, self._admission, actor, decide)

    async def set_node_maintenance(self, actor: Actor, *, enable: bool, reason: str = "") -> None:
        """Turn maintenance of the whole node on or off. Raises Forbidden, Unavailable."""
        self._admit(actor, "update", "nodes", self.local.node)
        await commit_reviewed(
            self._state,
            self._admission,
            actor,
            lambda view, admits: plan_maintenance(
                view, self.local, service_id="", enable=enable, reason=reason, admits=admits
            ),
        )

    # -- checks ----------------------------------------------------------------------------------------------------------

    async def register_check(self, actor: Actor, check: Check, *, is_own: bool = False) -> None:
        """Register or replace a check. Raises Forbidden, Rejected, Unavailable."""
        self._admit(actor, "update", "checks", check.check_id or check.name)
        await commit_reviewed(
            self._state,
            self._admission,
            actor,
            lambda view, admits: plan_register_check(view, self.local, check, admits),
            is_own=is_own,
        )
        if check.definition is not None and check.definition.ttl_ns:
            self.heartbeats.setdefault(check.check_id or check.name, self._clock.now())
            self.beat.set()

    async def deregister_check(self, actor: Actor, check_id: str, *, is_own: bool = False) -> bool:
        """Remove a check; return whether it was there. Raises Forbidden, Unavailable."""
        self._admit(actor, "delete", "checks", check_id)
        gone = Deregister(node=self.local.node, check_id=check_id)
        return await commit_reviewed(
            self._state,
            self._admission,
            actor,
            lambda view, admits: plan_deregister(view, gone, admits),
            is_own=is_own,
        )

    def checks(self, actor: Actor) -> dict[str, Check]:
        """Return the checks of this node by id with their newest outputs, without the server's own.

        Only those that `actor` may see, if he may not list them.
        """
        view = self._state.view
        mine = sorted(view.node_checks(self.local.node).items())
        found = self._gate.visible(
            actor,
            LIST_CHECKS,
            [check for _, check in mine if check.owner != "self"],
            each=what_shows_check,
            known=view.checks,
        )
        return {check.check_id: self._newest(check) for check in found}

    def _newest(self, check: Check) -> Check:
        output = self._outputs.get(check.check_id)
        if output is None:
            return check
        return msgspec.structs.replace(check, output=output)

    async def heartbeat(self, actor: Actor, check_id: str, *, status: str, output: str) -> None:
        """Take the result that a program sends for its TTL check.

        Raises NotFound when there is no such TTL check; Forbidden, Unavailable.
        """
        check = self._state.view.check(self.local.node, check_id)
        self._admit(actor, "update", "checks", check_id)
        if check is None or check.definition is None or not check.definition.ttl_ns:
            msg = f'CheckID "{check_id}" does not have associated TTL'
            raise NotFound(msg)
        before = self.heartbeats.get(check_id)
        self.heartbeats[check_id] = now = self._clock.now()
        try:
            await self._take(actor, check, status=status, output=output)
        except BaseException:
            # What was not taken does not keep the check alive either.
            if before is not None and self.heartbeats.get(check_id) == now:
                self.heartbeats[check_id] = before
            raise

    async def report(self, actor: Actor, check_id: str, *, status: str, output: str) -> None:
        """Take a check's result. A change of the output alone is kept here until `flush_outputs`."""
        self._admit(actor, "update", "checks", check_id)
        check = self._state.view.check(self.local.node, check_id)
        if check is None:
            self._outputs.pop(check_id, None)
            return
        await self._take(actor, check, status=status, output=output)

    async def _take(self, actor: Actor, check: Check, *, status: str, output: str) -> None:
        """Take a result of `check`, as it is now, after authorization."""
        admission = self._admission
        if admission is not None:
            # Most agents have no webhooks, and results come often: the short way for them.
            if NODES in actor.groups:
                admission.check_record(actor, check, is_new=False)
            if not admission.is_idle:
                await self._take_reviewed(admission, actor, check, status=status, output=output)
                return
        if check.status == status:
            self._keep_output(check, output)
            return
        self._outputs.pop(check.check_id, None)
        await self._state.commit_own(
            lambda view: plan_result(view, self.local, check.check_id, status=status, output=output)
        )

    async def _take_reviewed(
        self, admission: Admission, actor: Actor, check: Check, *, status: str, output: str
    ) -> None:
        check_id = check.check_id

        def decide(view: View, admits: Admits) -> Plan[Check | None]:
            old = view.check(self.local.node, check_id)
            if old is None:
                return Plan(None)
            new = msgspec.structs.replace(old, status=status, output=output)
            new = admits.record(new, self._newest(old), subresource=STATUS)
            draft = Draft()
            if new.status != old.status:
                draft.replace(old, new)
            return draft.plan(new)

        taken = await commit_reviewed(self._state, admission, actor, decide, is_own=True)
        now = self._state.view.check(self.local.node, check_id)
        if taken is None or now is None or now.status != taken.status:
            self._outputs.pop(check_id, None)
        else:
            self._keep_output(now, taken.output)

    def _keep_output(self, check: Check, output: str) -> None:
        """Remember the output of a check whose status is what was reported."""
        if check.output != output:
            self._outputs[check.check_id] = output
        else:
            self._outputs.pop(check.check_id, None)

    async def flush_outputs(self) -> None:
        """Write the outputs that changed without a change of status."""
        for check_id in list(self._outputs):
            output = self._outputs.pop(check_id, None)
            check = self._state.view.check(self.local.node, check_id)
            if output is None or check is None:
                continue
            decide = functools.partial(
                plan_result, local=self.local, check_id=check_id, status=check.status, output=output
            )
            try:
                await self._state.commit(decide)
            except WaypostError:
                self._outputs.setdefault(check_id, output)
                raise

    # -- the node itself --------------------------------------------------------------------------------------------------

    async def ensure_self(self) -> None:
        """Make the catalog show this node as it is.

        Raises Conflict when another machine that is alive has its name or id, Unavailable.
        """
        if self._is_leaving:
            return

        def decide(view: View) -> Plan[None]:
            # Nothing to do on a view that is behind: it is looked at again when the view moves.
            plan = plan_self(view, self.local, judged=self._judged)
            return msgspec.structs.replace(plan, is_own=True)

        await self._state.commit_own(decide)

    @property
    def is_leaving(self) -> bool:
        """Whether this agent is on its way out of the cluster, or out already."""
        return self._is_leaving

    def start_leaving(self) -> None:
        """Write nothing more for this node: it is about to leave the catalog."""
        self._is_leaving = True

    def stay(self) -> None:
        """Take `start_leaving` back."""
        self._is_leaving = False

    async def run(self) -> None:
        """Keep this node in the catalog until cancelled: whoever removes it sees it come back."""
        topic = ("node", self.local.node.lower())
        problem = ""
        was_there = False
        while True:
            wait_s = 60.0
            is_there = self._state.view.node(self.local.node) is not None
            try:
                await self.ensure_self()
                if was_there and not is_there and not self._is_leaving:
                    log.warning(
                        "node %s was removed from the catalog, and is back", self.local.node
                    )
                    self.when_forgotten()
                was_there = True
                if problem:
                    log.info("node %s is in the catalog", self.local.node)
                problem = ""
            except WaypostError as error:
                if not self._judged:
                    raise
                if str(error) != problem:
                    log.error("node %s cannot be in the catalog: %s", self.local.node, error)
                problem, wait_s = str(error), _RETRY_S
            await self._state.view.topics.wait([topic], at_most_s=wait_s)
