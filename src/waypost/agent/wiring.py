"""The small adapters between the domain and what drivers ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from waypost.access.actor import Actor
from waypost.access.authn import anonymous
from waypost.access.authz.records import GROUP, RESOURCES
from waypost.access.gate import Attributes, Gate
from waypost.base.errors import NoLeader
from waypost.domain.agent import LocalAgent, RegisterService
from waypost.drivers.docker.mapping import Registration
from waypost.model.catalog import Check, Node
from waypost.state.view import Instance, View
from waypost.surfaces.dns.catalog import Catalog

_POLICY: Final = tuple(("objects", f"{GROUP}/{resource}") for resource in RESOURCES.values())


class LocalRegistry:
    """This agent's own part of the catalog, as the registrator sees it: what has the owner `docker`."""

    def __init__(self, agent: LocalAgent, view: View, *, actor: Actor) -> None:
        self._agent = agent
        self._view = view
        self._actor = actor

    async def registered(self) -> Mapping[str, Registration]:
        """Return what the registrator owns on this node, by service id."""
        node = self._agent.local.node
        checks = [
            check for check in self._view.node_checks(node).values() if check.owner == "docker"
        ]
        return {
            service.id: Registration(
                service=service,
                checks=tuple(check for check in checks if check.service_id == service.id),
            )
            for service in self._view.node_services(node).values()
            if service.owner == "docker"
        }

    async def register(self, registration: Registration) -> None:
        """Make the instance and the registrator's checks of it exactly this."""
        await self._agent.register_service(
            self._actor,
            RegisterService(
                service=registration.service,
                checks=registration.checks,
                replace_existing_checks=True,
            ),
            is_own=True,
        )

    async def deregister(self, service_id: str) -> None:
        """Take the instance and its checks out."""
        await self._agent.deregister_service(self._actor, service_id, is_own=True)

    async def set_health(self, check: Check) -> None:
        """Set status and output of a check that the registrator reports."""
        await self._agent.report(
            self._actor, check.check_id, status=check.status, output=check.output
        )


class Unloaded:
    """The catalog of a machine whose store was never reached: what is not known fails, so DNS says SERVFAIL.

    An empty catalog would answer that names do not exist, and whoever asks would remember that.
    """

    def __init__(self, view: View) -> None:
        """`view` may show what this machine found out itself meanwhile: that is answered."""
        self._view = view
        self.index = view.index

    @property
    def moment(self) -> int:
        """See `View.moment`."""
        return self._view.moment

    def node(self, name: str) -> Node:
        """Return the node of that name. Raises NoLeader."""
        return self._view.node(name) or self._fail()

    def instances(self, service_name: str) -> tuple[Instance, ...]:
        """Return the instances of a service, if any is known. Raises NoLeader."""
        return self._view.instances(service_name) or self._fail()

    def _fail(self, *_: object) -> Any:
        msg = "the catalog is not there yet"
        raise NoLeader(msg)

    nodes = node_services = _fail


class GatedCatalog:
    """The catalog as DNS may show it: the gate is asked once for each class of peers, not for each query."""

    def __init__(self, view: View, gate: Gate) -> None:
        self._view = view
        self._gate = gate
        self._unloaded = Unloaded(view)
        self._hidden = Unloaded(View())

    @property
    def generation(self) -> int:
        """A number that differs after each change of the policy, so that a removed binding counts at once."""
        if not self._view.revision:
            return -1
        return max(self._view.index(topic) for topic in _POLICY)

    def catalog(self, peer: str, /) -> Catalog:
        """Return the view if an anonymous client at `peer` may discover. Raises Forbidden."""
        actor = anonymous(peer)
        asked = [Attributes("list", resource) for resource in ("services", "nodes")]
        if not self._view.revision:
            # Who may discover is not known yet either.
            may = all(self._gate.allows(actor, one) for one in asked)
            return self._unloaded if may else self._hidden
        for one in asked:
            self._gate.admit(actor, one)
        return self._view
