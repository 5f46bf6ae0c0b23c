"""Where this machine stands: what it was told, what it has written down, what it says about itself."""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable

import msgspec

from waypost.base.clock import Clock
from waypost.cluster.files import StateFiles
from waypost.cluster.peers import contact_of
from waypost.cluster.records import FORMED, AccessFacts, Phase, ServerFacts, State
from waypost.cluster.settings import ClusterSettings
from waypost.cluster.trust import Trust

log = logging.getLogger(__name__)


def new_id(rng: random.Random) -> str:
    """Return 32 hexadecimal digits that nobody had before."""
    return uuid.UUID(int=rng.getrandbits(128), version=4).hex


class Standing:
    """This machine's state, on disk before it is here. `on_news` is called when others should hear of a change."""

    def __init__(
        self,
        settings: ClusterSettings,
        *,
        trust: Trust,
        clock: Clock,
        rng: random.Random,
        on_news: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.trust = trust
        self.incarnation = new_id(rng)
        """Made at each start: tells a restarted machine from a copied one."""
        self.access: AccessFacts | None = None
        """The files of access control that are on this machine, as `sharing` saw them last."""
        self.asks_callers = False
        """This agent asks callers who they are."""
        self._clock = clock
        self._on_news = on_news
        self._files = StateFiles(settings.directory)
        self._state = State(is_server=settings.is_server)
        self._voted_at_s = 0.0

    def open(self) -> None:
        """Read the state and the keys; make what is missing. Raises Malformed, Unavailable."""
        self._files.claim(self.settings)
        self._state = self._files.load(is_server=self.settings.is_server)
        self.trust.open()
        self._voted_at_s = self._clock.now()

    @property
    def state(self) -> State:
        """What is on disk."""
        return self._state

    @property
    def phase(self) -> Phase:
        """How far this machine is."""
        return self._state.phase

    @property
    def is_member(self) -> bool:
        """Whether it belongs to a cluster that stands."""
        return self._state.phase is Phase.MEMBER

    @property
    def is_trusting(self) -> bool:
        """Whether this machine talks as a member, to members only."""
        return self.trust.is_credible and self.phase not in (Phase.VOTED, Phase.COMMITTED)

    @property
    def contact(self) -> str:
        """Where its cluster port is."""
        return contact_of(self.settings.address, self.settings.ports.cluster)

    @property
    def is_moved(self) -> bool:
        """Whether its store ran at another address before: it moved, or its disk was copied."""
        return self._state.contact not in ("", self.contact)

    @property
    def voted_for_s(self) -> float:
        """Seconds since it voted, or started with its vote."""
        return self._clock.now() - self._voted_at_s

    def save(self, state: State) -> None:
        """Write a state down; from then on it is this machine's. Raises Unavailable: then the old one is."""
        before = self._state
        if state.phase is not before.phase:
            log.info("cluster: phase %s → %s", before.phase, state.phase)
        if state.phase is Phase.VOTED and state.plan != before.plan:
            self._voted_at_s = self._clock.now()
        self._files.save(state)
        self._state = state
        if (state.phase, state.member_id) != (before.phase, before.member_id):
            self._on_news()

    def change(self, **changes: object) -> None:
        """Write the state down with other values of some fields. Raises Unavailable."""
        self.save(msgspec.structs.replace(self._state, **changes))

    def facts(self, *, is_leader: bool) -> ServerFacts:
        """Return what this machine says about itself; `is_leader`: the store's leader is here."""
        settings, state = self.settings, self._state
        has_cluster = state.phase in FORMED
        return ServerFacts(
            id=settings.node_id,
            node=settings.node,
            datacenter=settings.datacenter,
            address=settings.address,
            cluster_port=settings.ports.cluster,
            server_port=settings.ports.server,
            store_port=settings.ports.store,
            is_server=settings.is_server,
            phase=state.phase,
            expect=settings.bootstrap_expect,
            cluster=state.cluster,
            epoch=state.epoch,
            fingerprint=self.trust.fingerprint,
            authority=self.trust.pin if has_cluster else self.trust.own_authority,
            incarnation=self.incarnation,
            member_id=state.member_id,
            is_leader=is_leader,
            is_moved=self.is_moved,
            access=self.access,
            is_protected=self.asks_callers,
            joins_only=state.joins_only or settings.bootstrap_expect == 0,
        )
