"""The one gate between a request and the state: who, what, may they.

Every domain verb asks here before it reads or changes anything. The authorizer behind it is exchangeable; the
decision is an allow or a Forbidden with its reason, in the words of a kube-apiserver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, Protocol, TypeVar

import msgspec

from waypost.access.actor import LOCAL, MASTERS, NODES, Actor
from waypost.base.errors import Forbidden

T = TypeVar("T")

GROUP: Final = "discovery.waypost.io"
READ_VERBS: Final = frozenset({"get", "list", "watch"})
DISCOVERY: Final = frozenset({"nodes", "services", "checks", "operators"})
"""What has to be readable to find a service: the catalog, health, and who leads."""


class Attributes(msgspec.Struct, frozen=True):
    """What is asked. Source: kube authorization attributes.

    `resource` is one of nodes, services, checks, sessions, events, agents …; for KV and other plain paths it is empty
    and `path` holds the URL path.
    """

    verb: str
    resource: str = ""
    name: str = ""
    path: str = ""
    group: str = GROUP
    namespace: str = ""
    subresource: str = ""
    version: str = ""
    node: str = ""
    """The node whose object this is; only the Node authorizer looks at it."""

    @property
    def text(self) -> str:
        """The request in words, as a 403 shows it."""
        if self.path:
            return f'{self.verb} path "{self.path}"'
        name = f' "{self.name}"' if self.name else ""
        return f'{self.verb} resource "{self.resource}"{name} in API group "{self.group}"'


class Decision(msgspec.Struct, frozen=True):
    """An answer with its reason."""

    allowed: bool
    reason: str
    is_known: bool = True
    """False: somebody has to be asked over the network first; it counts as a refusal until then."""


class Undecided(Forbidden):
    """Nobody knows yet whether `actor` may do what is `asked`; unless somebody finds out, it is a refusal."""

    def __init__(self, text: str, *, actor: Actor, asked: Attributes) -> None:
        super().__init__(text)
        self.actor = actor
        self.asked = asked


class Authorizer(Protocol):
    """Decides one request. Pure: no I/O, so a decision can be asked for on every read.

    One that has a method `allows` with the same arguments is asked that where nobody wants a reason.
    """

    def decide(self, actor: Actor, attributes: Attributes) -> Decision:
        """Return whether `actor` may do this, and why."""
        ...


class ExposureAuthorizer:
    """The posture of an agent without access control: open to its own machine, for discovery from elsewhere.

    Who comes over loopback, the unix socket or from a network of `write_networks` may do everything, as with a
    Consul agent; anybody else may discover services. The operator opens more by naming networks.
    """

    def __init__(self, *, write_networks: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        self._networks = tuple(write_networks)

    def decide(self, actor: Actor, attributes: Attributes) -> Decision:
        """Return whether `actor` may do this, and why."""
        if NODES in actor.groups or MASTERS in actor.groups or LOCAL in actor.groups:
            return Decision(allowed=True, reason="local to the machine")
        if attributes.verb in READ_VERBS and attributes.resource in DISCOVERY:
            return Decision(allowed=True, reason="discovery is open")
        if self._networks and self._inside(actor):
            return Decision(allowed=True, reason="address is in allow_write_http_from")
        return Decision(
            allowed=False,
            reason="from other machines only discovery is open (catalog, health, DNS); "
            "allow_write_http_from opens the rest to their networks",
        )

    def _inside(self, actor: Actor) -> bool:
        try:
            address = ip_address(actor.address)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


class Gate:
    """What every verb holds."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer
        self._allows: Callable[[Actor, Attributes], bool] = getattr(
            authorizer, "allows", self._is_allowed
        )

    def admit(self, actor: Actor, attributes: Attributes) -> None:
        """Return when `actor` may do this. Raises Forbidden with the reason."""
        decision = self._authorizer.decide(actor, attributes)
        if not decision.allowed:
            why = f": {decision.reason}" if decision.reason else ""
            msg = f'Forbidden: User "{actor.user}" cannot {attributes.text}{why}'
            if not decision.is_known:
                raise Undecided(msg, actor=actor, asked=attributes)
            raise Forbidden(msg)

    def visible(
        self,
        actor: Actor,
        listing: Attributes,
        rows: Sequence[T],
        *,
        each: Callable[[T], Sequence[Attributes]],
        known: Callable[[], Iterable[T]] | None = None,
    ) -> Sequence[T]:
        """Return the rows of a list, or those that `actor` may see one by one, who may not list them all.

        `each` says what lets somebody see a row, any one of it. Raises Forbidden when `actor` may see none, of all that
        are `known` if that is given: then a list that happens to be empty is no refusal.
        """
        decision = self._authorizer.decide(actor, listing)
        if decision.allowed:
            return rows
        if not decision.is_known:
            self.admit(actor, listing)

        def seen(row: T) -> bool:
            return any(self.allows(actor, one) for one in each(row))

        found = [row for row in rows if seen(row)]
        if not found and not (known is not None and any(map(seen, known()))):
            self.admit(actor, listing)
        return found

    def decide(self, actor: Actor, attributes: Attributes) -> Decision:
        """Return the answer with its reason, for callers with words of their own."""
        return self._authorizer.decide(actor, attributes)

    def allows(self, actor: Actor, attributes: Attributes) -> bool:
        """Return whether `actor` may do this."""
        return self._allows(actor, attributes)

    def _is_allowed(self, actor: Actor, attributes: Attributes) -> bool:
        return self._authorizer.decide(actor, attributes).allowed
