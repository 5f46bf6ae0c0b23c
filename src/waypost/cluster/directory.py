"""Who the servers of the cluster are, as this machine knows it from hellos, from the store and from its disk."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from waypost.base.clock import Clock
from waypost.cluster.local_store import LocalStore
from waypost.cluster.peers import Peers
from waypost.cluster.reconcile import StoreMember
from waypost.cluster.records import Phase, RaftMember, ServerFacts, ServerInfo, server_info
from waypost.cluster.standing import Standing


class Directory:
    """Answers about servers. Changes nothing but its own choice and list."""

    def __init__(
        self,
        standing: Standing,
        peers: Peers,
        store: LocalStore,
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._standing = standing
        self._settings = standing.settings
        self._peers = peers
        self._store = store
        self._clock = clock
        self._rng = rng
        self._members: tuple[StoreMember, ...] = ()
        self._preferred = ""

    # -- this machine

    def own(self) -> ServerFacts:
        """Return what this machine says about itself."""
        return self._standing.facts(is_leader=self._store.is_leader)

    # -- the store's members

    @property
    def members(self) -> tuple[StoreMember, ...]:
        """The store's members as listed last; empty before that."""
        return self._members

    def listed(self, members: tuple[StoreMember, ...]) -> None:
        """Note the store's members."""
        self._members = members
        self._peers.keep((one.name for one in members), now_s=self._clock.now())

    def forget_members(self) -> None:
        """Forget the list: this server's store is gone."""
        self._members = ()

    def endpoints(self) -> tuple[str, ...]:
        """Return the store's URLs, the best first: this server's own if it votes, then live ones, then the rest."""
        now_s, status = self._clock.now(), self._store.status
        others = sorted(
            (one for one in self._peers.all() if one.facts.phase is Phase.MEMBER),
            key=lambda one: (
                now_s - one.last_seen_s >= self._settings.failed_after_s,
                one.facts.id,
            ),
        )
        known = [one.client_url for one in self._members if one.client_url]
        known += [one.client_url for one in self._standing.state.servers]
        itself = self.own().client_url
        urls = [one.facts.client_url for one in others]
        urls += [one for one in known if one != itself]
        local = [self._store.endpoint] if self._settings.is_server else []
        is_first = self._standing.is_member if status is None else not status.is_learner
        return tuple(dict.fromkeys([*local, *urls] if is_first else [*urls, *local]))

    # -- servers

    def live_members(self) -> tuple[ServerFacts, ...]:
        """Return the other servers of the cluster that were heard of lately."""
        live = self._peers.live(now_s=self._clock.now())
        return tuple(one for one in live if one.phase is Phase.MEMBER)

    def known_members(self) -> tuple[ServerFacts, ...]:
        """Return this server and the others of the cluster."""
        members = (one.facts for one in self._peers.all() if one.facts.phase is Phase.MEMBER)
        return (self.own(), *members)

    def servers(self) -> tuple[ServerInfo, ...]:
        """Return the known servers: for a client the one that it prefers first, then live ones, then by node name."""
        now_s = self._clock.now()
        found = [
            _info(
                one.facts,
                last_seen_s=one.last_seen_s,
                is_live=now_s - one.last_seen_s < self._settings.failed_after_s,
            )
            for one in self._peers.all()
        ]
        heard = {one.id for one in found}
        if self._settings.is_server:
            found.append(_info(self.own(), last_seen_s=now_s, is_live=True, is_self=True))
            heard.add(self._settings.node_id)
        found += [
            _info(one, last_seen_s=float("-inf"), is_live=False)
            for one in self._standing.state.servers
            if one.id not in heard
        ]
        found.sort(key=lambda one: (one.id != self._preferred, not one.is_live, one.node, one.id))
        return tuple(found)

    def leader(self) -> ServerInfo | None:
        """Return the server beside the store's leader, None when none is known."""
        leader_id = self._store.leader_id
        for one in self.servers():
            if one.is_self and self._store.is_leader:
                return one
            if one.is_self or not one.is_live:
                continue
            peer = self._peers.find(one.id)
            if peer is None:
                continue
            if leader_id:
                if peer.facts.member_id == leader_id:
                    return one
            elif peer.facts.is_leader and not self._settings.is_server:
                return one
        return None

    @property
    def knows_leader(self) -> bool:
        """Whether the store has a leader, as far as this machine knows."""
        if self._settings.is_server and self._store.status is not None:
            return bool(self._store.leader_id)
        return self.leader() is not None

    def raft(self, members: Iterable[StoreMember]) -> tuple[RaftMember, ...]:
        """Return the store's members with the names of their nodes."""
        facts = self._peers.facts() | {self._settings.node_id: self.own()}
        leader_id = self._store.leader_id
        return tuple(
            RaftMember(
                id=one.name,
                node=facts[one.name].node if one.name in facts else one.name,
                address=one.peer_url.partition("://")[2],
                is_leader=f"{one.id:x}" == leader_id,
                is_voter=not one.is_learner,
                member_id=f"{one.id:x}",
            )
            for one in members
        )

    # -- a client's choice

    def prefer(self, live: Sequence[ServerFacts]) -> None:
        """Choose one of these servers unless one of them is chosen: clients spread over the servers, and each stays."""
        if all(one.id != self._preferred for one in live):
            self._preferred = self._rng.choice(live).id

    def suspect(self, server_id: str) -> None:
        """Prefer another server than this one for now: a call to it failed."""
        others = [one for one in self.live_members() if one.id != server_id]
        if server_id == self._preferred and others:
            self._preferred = self._rng.choice(others).id

    # -- what is kept on disk

    def remember(self) -> None:
        """Keep on disk who the servers are, when that changes. Raises Unavailable."""
        if not self._standing.is_member:
            return
        heard = [one.facts for one in self._peers.all() if one.facts.phase is Phase.MEMBER]
        names = {one.name for one in self._members}
        found = to_remember(self._standing.state.servers, heard, members=names)
        if found is not None:
            self._standing.change(servers=found)


def to_remember(
    before: Sequence[ServerFacts], heard: Iterable[ServerFacts], *, members: set[str]
) -> tuple[ServerFacts, ...] | None:
    """Return which servers are to be kept on disk, None when those are there.

    `before` is on disk, `heard` are the servers that say that they are members, `members` the ids that the store lists;
    empty: nobody has asked it, and a server that is known from disk may only not have been heard of yet.
    """
    known = {one.id: one for one in heard if not members or one.id in members}
    if not known:
        return None
    kept = {one.id: one for one in before}
    if not members:
        known = kept | known
    contacts = {key: one.contact for key, one in known.items()}
    if contacts == {key: one.contact for key, one in kept.items()}:
        return None
    return tuple(known[key] for key in sorted(known))


def _info(
    facts: ServerFacts, *, last_seen_s: float, is_live: bool, is_self: bool = False
) -> ServerInfo:
    is_leader = facts.is_leader and is_live
    return server_info(
        facts, is_leader=is_leader, is_live=is_live, last_seen_s=last_seen_s, is_self=is_self
    )
