"""What goes on on a machine of the cluster: a server's transitions, all made by one task; a client's search for servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import WaypostError
from waypost.cluster import protocol
from waypost.cluster.certificates import Certificates
from waypost.cluster.copies import Copies
from waypost.cluster.directory import Directory
from waypost.cluster.forming import Forming
from waypost.cluster.greeting import Greeting
from waypost.cluster.joining import Joining
from waypost.cluster.leading import Leading
from waypost.cluster.local_store import LocalStore
from waypost.cluster.messages import AboutMember, Path
from waypost.cluster.peers import Peers
from waypost.cluster.protocol import Seen
from waypost.cluster.records import FORMED, Phase, ServerFacts
from waypost.cluster.report import Report
from waypost.cluster.standing import Standing
from waypost.cluster.store_members import StoreMembers
from waypost.cluster.transport import PeerClient
from waypost.cluster.turns import Turns

log = logging.getLogger(__name__)

_TICK_S: Final = 0.1
_CLIENT_TICK_S: Final = 0.2
_STATUS_EVERY_S: Final = 0.2


class ServerLife:
    """Makes every transition of a server: asks `protocol.step` what to do, has it written down, does it.

    Questions to other machines are *errands*: one at a time, in a task of their own, whose outcome waits for its turn.
    """

    def __init__(
        self,
        standing: Standing,
        directory: Directory,
        peers: Peers,
        store: LocalStore,
        copies: Copies,
        turns: Turns,
        report: Report,
        forming: Forming,
        joining: Joining,
        greeting: Greeting,
        *,
        certificates: Certificates,
        clock: Clock,
        on_ready: Callable[[], None],
    ) -> None:
        self._standing = standing
        self._directory = directory
        self._peers = peers
        self._store = store
        self._copies = copies
        self._turns = turns
        self._report = report
        self._forming = forming
        self._joining = joining
        self._greeting = greeting
        self._certificates = certificates
        self._clock = clock
        self._on_ready = on_ready
        self._is_ready = False
        self._has_left = False
        self._group: asyncio.TaskGroup | None = None
        self._errand: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Be a server until cancelled; then stop etcd."""
        try:
            with self._turns.owned():
                async with asyncio.TaskGroup() as group:
                    self._group = group
                    group.create_task(self._own(), name="cluster.own")
                    group.create_task(self._watch_store(), name="cluster.store")
        finally:
            self._group = self._errand = None
            await self._store.stop()

    async def _own(self) -> None:
        while True:
            await self._turns.wait(at_most_s=_TICK_S)
            await self._turns.make()
            if self._has_left:
                continue
            try:
                self._directory.remember()
                await self._act(protocol.step(self._standing.state, self._seen()))
                self._report.say("failure", "")
            except WaypostError as exc:
                self._report.say("failure", f"cluster: {exc}", level=logging.ERROR)

    def _seen(self) -> Seen:
        return Seen(
            me=self._directory.own(),
            peers=self._peers.live(now_s=self._clock.now()),
            has_data=self._store.has_data,
            store=self._store.facts(),
            is_busy=self._errand is not None,
            may_propose=self._forming.may_propose,
            may_join=self._joining.may_ask,
            may_ask=self._forming.may_ask,
            voted_for_s=self._standing.voted_for_s,
            abandon_after_s=self._standing.settings.abandon_after_s,
            is_removed=self._greeting.is_removed,
        )

    async def _act(self, action: protocol.Action) -> None:
        problem, question = self._copies.problem, self._copies.question
        is_harmless = isinstance(action, protocol.Wait | protocol.Settle | protocol.Wipe)
        if (problem or question) and not is_harmless:
            level = logging.ERROR if problem else logging.INFO
            self._report.say("double", problem or question, level=level)
            return
        self._report.say("double", "")
        match action:
            case protocol.Wait(why, is_error):
                level = logging.ERROR if is_error else logging.INFO
                self._report.say("wait", f"cluster: {why}" if why else "", level=level)
            case protocol.Settle(state, why):
                log.info("cluster: %s", why)
                self._standing.save(state)
                if self._standing.is_member:
                    log.info(
                        "cluster: this server is a member; the authority is %s (compare with the other servers)",
                        self._standing.trust.pin,
                    )
            case protocol.Wipe():
                await self._wipe(action)
            case protocol.StartStore():
                is_new = await self._store.start(action)
                if is_new and self._standing.state.contact != self._standing.contact:
                    self._standing.change(contact=self._standing.contact)
            case protocol.Propose(members):
                self._send(self._forming.propose(members))
            case protocol.AskPlan(plan):
                self._send(self._forming.ask(plan))
            case protocol.Abandon(plan):
                self._send(self._forming.abandon(plan))
            case protocol.Join(targets):
                self._send(self._joining.ask(targets, in_turn=self._turns.take))

    async def _wipe(self, action: protocol.Wipe) -> None:
        log.warning("cluster: %s", action.why)
        await self._store.stop()
        if action.forgets_keys:
            # Before the state is written: without them nothing is started, and this comes again.
            await self._certificates.forget()
        self._standing.save(action.state)
        self._store.remove_data()
        self._directory.forget_members()
        self._joining.rest()

    # -- errands

    def _send(self, errand: Coroutine[Any, Any, None]) -> None:
        """Start an errand; there is none when this is called."""
        assert self._group is not None
        assert self._errand is None
        self._errand = self._group.create_task(self._run_errand(errand), name="cluster.errand")

    async def _run_errand(self, errand: Coroutine[Any, Any, None]) -> None:
        try:
            await errand
        except WaypostError as exc:
            self._report.say("errand", f"cluster: {exc}", level=logging.WARNING)
        finally:
            self._errand = None
            self._turns.wake()

    # -- the store's status

    async def _watch_store(self) -> None:
        """Know what this machine's member is doing; say when the engine can be opened."""
        while True:
            await asyncio.sleep(_STATUS_EVERY_S)
            knew, led = bool(self._store.leader_id), self._store.is_leader
            is_answered = await self._store.look()
            if bool(self._store.leader_id) != knew:
                self._turns.wake()
            if self._store.is_leader != led:
                self._peers.hurry(now_s=self._clock.now())
            if not is_answered or not self._standing.is_member:
                continue
            if self._standing.state.member_id != self._store.member_id:
                await self._turns.take(self._note_member_id)
            members = self._store.members
            if not self._is_ready and members is not None:
                await self._look_ready(members)

    async def _note_member_id(self) -> None:
        if self._store.member_id:
            self._standing.change(member_id=self._store.member_id)

    async def _look_ready(self, members: StoreMembers) -> None:
        for endpoint in self._directory.endpoints():
            try:
                await members.confirm(endpoint)
            except WaypostError as exc:
                log.debug("%s is not ready: %s", endpoint, exc)
                continue
            if not self._directory.members:
                with contextlib.suppress(WaypostError):
                    self._directory.listed(await members.list(endpoint))
            self._is_ready = True
            self._on_ready()
            return

    # -- leaving

    async def leave(self, leading: Leading) -> None:
        """Leave for good; see `Cluster.leave`."""
        members = self._store.members
        if not self._standing.is_member or members is None:
            await self._turns.take(self._be_gone)
            return
        listed = await members.list(self._store.endpoint)
        if sum(not one.is_learner for one in listed) <= 1:
            log.info("this is the last server: its data stays")
            return
        await leading.insist(Path.LEAVE, AboutMember(member=self._standing.settings.node_id))
        await self._turns.take(self._be_gone)
        log.info("this server has left the cluster")

    async def _be_gone(self) -> None:
        self._has_left = True
        await self._store.stop()
        before = self._standing.state
        outside = protocol.outside(before, joins_only=before.phase in FORMED)
        self._standing.save(msgspec.structs.replace(outside, phase=Phase.LEFT))
        self._store.remove_data()


class ClientLife:
    """Has a client agent's certificate, knows whom it talks to. `on_ready` is called when it has both."""

    def __init__(
        self,
        standing: Standing,
        directory: Directory,
        client: PeerClient,
        turns: Turns,
        report: Report,
        joining: Joining,
        *,
        clock: Clock,
        on_ready: Callable[[], None],
    ) -> None:
        self._standing = standing
        self._directory = directory
        self._client = client
        self._turns = turns
        self._report = report
        self._joining = joining
        self._clock = clock
        self._on_ready = on_ready

    async def run(self) -> None:
        """Be a client until cancelled."""
        while True:
            await self._turns.wait(at_most_s=_CLIENT_TICK_S)
            try:
                await self._look()
                self._report.say("failure", "")
            except WaypostError as exc:
                self._report.say("failure", f"cluster: {exc}", level=logging.ERROR)

    async def _look(self) -> None:
        live = self._directory.live_members()
        if not self._standing.trust.node_is_usable(now_s=self._clock.wall()):
            await self._get_certificate(live)
            return
        self._report.say("wait", "" if live else "cluster: no server of the cluster answers")
        if live:
            self._directory.prefer(live)
            self._directory.remember()
            self._on_ready()

    async def _get_certificate(self, live: tuple[ServerFacts, ...]) -> None:
        if self._standing.is_member:
            log.warning("cluster: this node's certificate is not usable any more; joining again")
            self._standing.save(protocol.outside(self._standing.state, joins_only=True))
            await self._client.renewed()
        if not live:
            self._report.say("wait", "cluster: waiting for a server to join")
        elif self._joining.may_ask:
            await self._joining.ask(live, in_turn=at_once)


async def at_once(change: Callable[[], Awaitable[None]]) -> None:
    """Make a change: on a client the one that asks to join owns the state."""
    await change()
