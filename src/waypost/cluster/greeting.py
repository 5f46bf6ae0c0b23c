"""Hello: every machine says to every server that it knows of what it is, and learns from the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from waypost.base.clock import Clock
from waypost.base.errors import Conflict, Rejected, Unauthenticated, Unavailable, WaypostError
from waypost.cluster.copies import Copies
from waypost.cluster.directory import Directory
from waypost.cluster.messages import Hello, Path, decode, encode
from waypost.cluster.peers import Contact, Peers
from waypost.cluster.reconcile import StoreMember
from waypost.cluster.records import FORMED, Phase, ServerFacts
from waypost.cluster.report import Report
from waypost.cluster.standing import Standing
from waypost.cluster.transport import OtherAuthority, PeerClient
from waypost.cluster.trust import Caller, ServerCaller, Stranger

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.05
_FORMING_PAUSE_S: Final = 0.25
_PAUSE_S: Final = 1.0
_CLIENT_PAUSE_S: Final = 2.0
_MOST_PAUSE_S: Final = 5.0
_TIMEOUT_S: Final = 1.0
_REMOVED_FRESH_S: Final = 3.0


class InVain(Unavailable):
    """Nobody was there to join, as often as the operator wanted it tried."""


class Greeting:
    """Says hello and answers it.

    `roster` returns the store's members if this server leads it, `is_ready` tells whether this machine has found its
    cluster, `on_news` is called when a server is new or says something new.
    """

    def __init__(
        self,
        standing: Standing,
        directory: Directory,
        peers: Peers,
        copies: Copies,
        client: PeerClient,
        report: Report,
        *,
        clock: Clock,
        roster: Callable[[], tuple[StoreMember, ...] | None],
        is_ready: Callable[[], bool],
        is_store_running: Callable[[], bool],
        on_news: Callable[[], None],
    ) -> None:
        self._standing = standing
        self._settings = standing.settings
        self._directory = directory
        self._peers = peers
        self._copies = copies
        self._client = client
        self._report = report
        self._clock = clock
        self._roster = roster
        self._is_ready = is_ready
        self._is_store_running = is_store_running
        self._on_news = on_news
        self._has_met = False
        self._removed_at_s = float("-inf")

    # -- saying it

    async def run(self) -> None:
        """Say hello to everybody known, again and again. Raises InVain after `retry_max` vain rounds."""
        async with asyncio.TaskGroup() as group:
            while True:
                for contact in self._peers.due(now_s=self._clock.now()):
                    contact.is_calling = True
                    group.create_task(self._visit(contact), name=f"cluster.hello {contact.address}")
                self._check_given()
                await asyncio.sleep(_LOOK_S)

    def _check_given(self) -> None:
        limit = self._settings.retry_max
        if not limit or self._has_met or self._standing.is_member:
            return
        given = [one for one in self._peers.contacts.values() if one.is_given]
        if given and all(one.tries > limit for one in given):
            names = ", ".join(one.address for one in given)
            raise InVain(f"no machine to join answered in {limit} attempts: {names}")

    async def _visit(self, contact: Contact) -> None:
        pause_s = self._pause_s()
        most_s = min(self._settings.retry_interval_s, _MOST_PAUSE_S)
        try:
            facts = await self.greet(contact.address, timeout_s=_TIMEOUT_S)
            self._peers.answered(contact, facts, now_s=self._clock.now(), pause_s=pause_s)
            self._has_met = True
            self._report.say(f"hello {contact.address}", "")
        except WaypostError as exc:
            if isinstance(exc, Conflict) and not self._is_store_running():
                self._copies.note(f"cluster: {exc}")
            self._peers.silent(contact, now_s=self._clock.now(), pause_s=pause_s, most_s=most_s)
            self._complain(contact, exc)
        finally:
            contact.is_calling = False

    def _pause_s(self) -> float:
        if self._settings.is_server:
            return _PAUSE_S if self._standing.is_member else _FORMING_PAUSE_S
        return _CLIENT_PAUSE_S if self._is_ready() else _PAUSE_S

    def _complain(self, contact: Contact, error: WaypostError) -> None:
        if not isinstance(error, Unavailable):
            text = f"cluster: {contact.address}: {error}"
            self._report.say(f"hello {contact.address}", text, level=logging.WARNING)
        elif contact.is_given and contact.tries == 1:
            log.info("cluster: %s does not answer yet: %s", contact.address, error)
        else:
            log.debug("no answer to hello: %s", error)

    async def greet(self, address: str, *, timeout_s: float) -> ServerFacts:
        """Say hello and learn from the answer. Raises what the other side refuses with, Unavailable."""
        message = encode(self.hello())
        if self._standing.is_trusting:
            try:
                data = await self._client.call(address, Path.HELLO, message, timeout_s=timeout_s)
            except OtherAuthority as exc:
                raise await self._other_authority(address, exc) from exc
            answer = decode(data, Hello, what=Path.HELLO)
            fingerprint, is_verified = answer.sender.fingerprint, True
        else:
            first = await self._client.first_contact(
                address, Path.HELLO, message, timeout_s=timeout_s
            )
            answer = decode(first.body, Hello, what=Path.HELLO)
            fingerprint, is_verified = first.fingerprint, False
        self._learn(answer, address=address, fingerprint=fingerprint, is_verified=is_verified)
        return answer.sender

    async def _other_authority(self, address: str, error: OtherAuthority) -> WaypostError:
        """Return what is to be said of a machine that does not show a certificate of this cluster."""
        first = await self._client.first_contact(address, Path.HELLO, encode(self.hello()))
        sender = decode(first.body, Hello, what=Path.HELLO).sender
        if sender.id == self._settings.node_id:
            self._copies.judge(sender, address)
        if sender.phase is not Phase.MEMBER or not sender.is_server:
            return Unavailable(f"{sender.node} at {address} is not a member yet")
        own = self._standing.trust.pin
        return Rejected(
            f"{sender.node} belongs to another cluster (authority {sender.authority}, this one's is {own}); "
            f"two clusters cannot be merged ({error})"
        )

    def hello(self) -> Hello:
        """Return what this machine says."""
        servers = tuple(one.facts for one in self._peers.all()) or self._standing.state.servers
        roster = self._roster()
        authority = self._standing.trust.authority if self._standing.phase in FORMED else None
        return Hello(
            sender=self._directory.own(),
            servers=servers,
            authority_pem=authority.pem if authority else b"",
            roster=None if roster is None else tuple(f"{one.id:x}" for one in roster),
        )

    def _learn(self, answer: Hello, *, address: str, fingerprint: str, is_verified: bool) -> None:
        sender, now_s = answer.sender, self._clock.now()
        if sender.datacenter != self._settings.datacenter:
            raise Rejected(
                f"it belongs to the datacenter {sender.datacenter}, this machine to {self._settings.datacenter}"
            )
        if sender.id == self._settings.node_id:
            self._copies.judge(sender, address)
            return
        if sender.fingerprint != fingerprint:
            raise Unauthenticated("it says that it has another key than it shows")
        self._peers.learn(answer.servers, now_s=now_s)
        if sender.is_server:
            self._heard(sender, is_verified=is_verified)
        if self._is_left_out(answer):
            self._removed_at_s = now_s

    def _is_left_out(self, answer: Hello) -> bool:
        """Tell whether the leader of this machine's cluster lists its members without this one."""
        state, sender = self._standing.state, answer.sender
        return (
            answer.roster is not None
            and sender.is_leader
            and sender.cluster == state.cluster
            and bool(state.member_id)
            and state.member_id not in answer.roster
        )

    def _heard(self, sender: ServerFacts, *, is_verified: bool) -> None:
        now_s = self._clock.now()
        if self._peers.heard(sender, now_s=now_s, is_verified=is_verified):
            self._on_news()

    @property
    def is_removed(self) -> bool:
        """Whether the leader did not list this machine lately."""
        return self._clock.now() - self._removed_at_s < _REMOVED_FRESH_S

    def taken_in(self) -> None:
        """Forget that this machine was removed: it is a new member."""
        self._removed_at_s = float("-inf")

    # -- answering it

    def answer(self, hello: Hello, caller: Caller) -> Hello:
        """Answer a hello. Raises Rejected (another datacenter), Conflict (a copy of a machine that is alive)."""
        sender = hello.sender
        if sender.datacenter != self._settings.datacenter:
            raise Rejected(
                f"this machine belongs to the datacenter {self._settings.datacenter}, the caller to {sender.datacenter}"
            )
        if sender.id == self._settings.node_id:
            if sender.incarnation != self._standing.incarnation:
                self._copies.judge(sender, sender.contact)
            return self.hello()
        if sender.is_server and self._is_believed(sender, caller):
            self._copies.refuse(sender)
            self._peers.learn(hello.servers, now_s=self._clock.now())
            self._heard(sender, is_verified=isinstance(caller, ServerCaller))
        return self.hello()

    def _is_believed(self, sender: ServerFacts, caller: Caller) -> bool:
        """Tell whether a hello is from whom it says, and counts."""
        if isinstance(caller, ServerCaller):
            return caller.id == sender.id
        if not isinstance(caller, Stranger) or caller.fingerprint != sender.fingerprint:
            return False
        if not self._standing.is_trusting:
            return bool(caller.fingerprint)
        plan = self._standing.state.plan
        founder = None if plan is None else plan.member(sender.id)
        return founder is not None and founder.fingerprint == caller.fingerprint
