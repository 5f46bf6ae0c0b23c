"""Whom this machine has heard of, and where it says hello. No I/O; times are monotonic seconds."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from waypost.cluster.messages import MAX_SERVERS
from waypost.cluster.records import FORMED, Phase, ServerFacts
from waypost.cluster.settings import join_host

_FORGET_S = 600.0
_SETTLED_S = 30.0


class Peer(msgspec.Struct, frozen=True):
    """A server that was heard of, and when last."""

    facts: ServerFacts
    last_seen_s: float
    is_verified: bool = False
    """It proved by a certificate of the cluster that these are its words."""


class Contact(msgspec.Struct, kw_only=True):
    """An address where hello is said."""

    address: str
    is_given: bool
    """By the operator: never forgotten."""
    server_id: str = ""
    """Who answered there, or is said to be there."""
    tries: int = 0
    """Attempts since the last answer."""
    due_s: float = 0.0
    is_calling: bool = False
    known_since_s: float = 0.0


class Peers:
    """The servers of the datacenter as seen from here."""

    def __init__(self, *, own_id: str, own_contact: str, failed_after_s: float) -> None:
        self._own_id = own_id
        self._own_contact = own_contact
        self._failed_after_s = failed_after_s
        self._peers: dict[str, Peer] = {}
        self.contacts: dict[str, Contact] = {}
        self.own_addresses: set[str] = {own_contact}
        """Where this machine itself answered."""

    def give(self, addresses: Iterable[str]) -> None:
        """Add addresses that the operator named."""
        for address in addresses:
            if address not in self.own_addresses:
                self.contacts[address] = Contact(address=address, is_given=True)

    def learn(self, servers: Iterable[ServerFacts], *, now_s: float) -> None:
        """Add where other servers are said to be."""
        for one in servers:
            if one.id == self._own_id or not one.is_server or not one.address:
                continue
            if one.contact in self.contacts or one.contact in self.own_addresses:
                continue
            if len(self.contacts) >= MAX_SERVERS:
                return
            self.contacts[one.contact] = Contact(
                address=one.contact, is_given=False, server_id=one.id, known_since_s=now_s
            )

    def heard(self, facts: ServerFacts, *, now_s: float, is_verified: bool = False) -> bool:
        """Note that a server is alive; return whether it is new, or says something else than before."""
        if facts.id == self._own_id:
            return False
        before = self._peers.get(facts.id)
        if before is None and len(self._peers) >= MAX_SERVERS:
            return False
        self._peers[facts.id] = Peer(facts, now_s, is_verified)
        self.learn([facts], now_s=now_s)
        return before is None or before.facts != facts

    def is_me(self, address: str) -> None:
        """Note that this machine itself answers at an address."""
        self.own_addresses.add(address)
        self.contacts.pop(address, None)

    def find(self, server_id: str) -> Peer | None:
        """Return a server by its id."""
        return self._peers.get(server_id)

    def all(self) -> tuple[Peer, ...]:
        """Return every server that was heard of, by id."""
        return tuple(self._peers[key] for key in sorted(self._peers))

    def live(self, *, now_s: float) -> tuple[ServerFacts, ...]:
        """Return the servers that were heard of lately."""
        return tuple(
            one.facts for one in self.all() if now_s - one.last_seen_s < self._failed_after_s
        )

    def silent_s(self, *, now_s: float) -> dict[str, float]:
        """Return for each server how long it was not heard of."""
        return {key: now_s - one.last_seen_s for key, one in self._peers.items()}

    def facts(self) -> dict[str, ServerFacts]:
        """Return what each server says about itself."""
        return {key: one.facts for key, one in self._peers.items()}

    def keep(self, server_ids: Iterable[str], *, now_s: float) -> None:
        """Forget servers that are not members and were not heard of for ten minutes."""
        kept = set(server_ids)
        for key, one in tuple(self._peers.items()):
            if key not in kept and now_s - one.last_seen_s > _FORGET_S:
                del self._peers[key]
        for address, contact in tuple(self.contacts.items()):
            is_known = contact.server_id in kept or contact.server_id in self._peers
            if not contact.is_given and not is_known and now_s - contact.known_since_s > _FORGET_S:
                del self.contacts[address]

    def due(self, *, now_s: float) -> list[Contact]:
        """Return the contacts to greet now."""
        return [one for one in self.contacts.values() if not one.is_calling and one.due_s <= now_s]

    def hurry(self, *, now_s: float) -> None:
        """Greet everybody who is there now: there is news."""
        for one in self.contacts.values():
            if one.tries == 0:
                one.due_s = min(one.due_s, now_s)

    def answered(
        self, contact: Contact, facts: ServerFacts, *, now_s: float, pause_s: float
    ) -> None:
        """Note who answered at a contact."""
        contact.server_id, contact.tries = facts.id, 0
        # Another name for a server that is greeted under its own address: looked up seldom.
        is_alias = facts.contact != contact.address and facts.contact in self.contacts
        contact.due_s = now_s + (_SETTLED_S if is_alias else pause_s)

    def silent(self, contact: Contact, *, now_s: float, pause_s: float, most_s: float) -> None:
        """Note that nobody answered; the pauses grow for addresses of the operator's where nobody ever did."""
        contact.tries += 1
        factor = 2 ** min(contact.tries - 1, 6) if contact.is_given else 1
        contact.due_s = now_s + min(pause_s * factor, max(most_s, pause_s))


_RANK = {
    Phase.LEFT: 0,
    Phase.NONE: 0,
    Phase.VOTED: 1,
    Phase.JOINING: 2,
    Phase.COMMITTED: 2,
    Phase.MEMBER: 3,
}


def outranks(one: ServerFacts, other: ServerFacts) -> bool:
    """Tell which of two machines with the same id may go on: the one at the old address, the one further, the lower address.

    Both machines come to the same answer.
    """
    assert one.id == other.id
    first = (one.is_moved, -_RANK[one.phase], one.address, one.cluster_port)
    second = (other.is_moved, -_RANK[other.phase], other.address, other.cluster_port)
    return first < second


def is_formed(facts: ServerFacts) -> bool:
    """Tell whether a server belongs to a cluster."""
    return facts.phase in FORMED


def contact_of(host: str, port: int) -> str:
    """Return the form in which addresses are compared."""
    return join_host(host.lower(), port)
