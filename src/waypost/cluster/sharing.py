"""Access control reaches the whole cluster by itself: what `waypost init` made on one server, the others fetch from it.

Every hello says what a server has (`AccessFacts`, fingerprints only) and whether it asks callers who they are. A server that
lacks something fetches it over the cluster port, where only servers get it; a client agent learns that the cluster is
protected. That a cluster is protected is written down and never taken back by what another machine says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path as FilePath
from typing import Final

from waypost.access.pki.files import ensure_directory, locked, read, write_all
from waypost.base.clock import Clock
from waypost.base.errors import (
    Conflict,
    Forbidden,
    Malformed,
    NotFound,
    Unavailable,
    WaypostError,
)
from waypost.cluster import access_files
from waypost.cluster.access_files import Offer, Refuse, Take
from waypost.cluster.files import StateFiles
from waypost.cluster.messages import AccessAnswer, AskAccess, Path, decode, encode
from waypost.cluster.peers import Peer, Peers
from waypost.cluster.records import Phase
from waypost.cluster.report import Report
from waypost.cluster.standing import Standing
from waypost.cluster.transport import PeerClient
from waypost.cluster.trust import Caller, ServerCaller

log = logging.getLogger(__name__)

PROBLEM_FILE: Final = "access-problem"
"""Below `DATA/cluster`: why this server's access control is not the cluster's, for who runs a command there."""
_LOOK_S: Final = 1.0
_MISSING_S: Final = 15.0
_WAIT_S: Final = 60.0

InTurn = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]


class Sharing:
    """One machine's part in it. `in_turn` has a change made by whoever owns this machine's state."""

    def __init__(
        self,
        standing: Standing,
        peers: Peers,
        client: PeerClient,
        report: Report,
        *,
        clock: Clock,
        in_turn: InTurn,
    ) -> None:
        self._standing = standing
        self._settings = standing.settings
        self._peers = peers
        self._client = client
        self._report = report
        self._clock = clock
        self._in_turn = in_turn
        self._folder = standing.settings.data_dir / "pki"
        self._seen: tuple[tuple[int, int] | None, ...] = ()
        self._waits_since_s: float | None = None
        self._protected = asyncio.Event()

    async def protected(self) -> None:
        """Return when this machine has all that it needs to ask callers who they are, and a server its turn to begin."""
        await self._protected.wait()

    async def run(self) -> None:
        """Look every second until cancelled."""
        while True:
            try:
                if self._standing.is_member:
                    await (self._look() if self._settings.is_server else self._listen())
                self._report.say("access", "")
            except WaypostError as exc:
                text = f"access control is not shared: {exc}"
                self._report.say("access", text, level=logging.ERROR)
            await asyncio.sleep(_LOOK_S)

    def _others(self) -> list[Peer]:
        """Return the live servers of the cluster whose hellos were proved to be theirs."""
        now_s, limit_s = self._clock.now(), self._settings.failed_after_s
        return [
            one
            for one in self._peers.all()
            if one.is_verified
            and one.facts.phase is Phase.MEMBER
            and now_s - one.last_seen_s < limit_s
        ]

    # -- a client

    async def _listen(self) -> None:
        if any(one.facts.is_protected for one in self._others()):
            await self._note_protected()
        if self._standing.state.is_protected:
            self._protected.set()

    async def _note_protected(self) -> None:
        """Write down that the cluster is protected."""
        if self._standing.state.is_protected:
            return

        async def change() -> None:
            self._standing.change(is_protected=True)

        await self._in_turn(change)
        log.info(
            "cluster: it is protected; this machine asks callers who they are from its next start at the latest"
        )

    # -- a server

    async def _look(self) -> None:
        self.read()
        others = self._others()
        if self._standing.asks_callers or any(one.facts.is_protected for one in others):
            await self._note_protected()
        offers = tuple(
            Offer(one.facts.id, one.facts.node, one.facts.access)
            for one in others
            if one.facts.access is not None
        )
        found = access_files.decide(
            self._standing.access,
            offers,
            authority=self._standing.trust.pin,
            node=self._settings.node,
        )
        self._write_problem(found.why if isinstance(found, Refuse) else "")
        match found:
            case Refuse(why):
                raise Conflict(why)
            case Take(server_ids):
                await self._fetch_from([one for one in others if one.facts.id in server_ids])
        if self._standing.access is not None:
            await self._note_protected()
            if self._is_turn():
                self._protected.set()

    def read(self) -> None:
        """Look at the files again if they changed. Raises Malformed for some that cannot be used."""
        seen = tuple(_mark(self._folder / name) for name in access_files.NAMES)
        if seen == self._seen:
            return
        facts = None
        if any(seen):
            try:
                with locked(self._folder):
                    files = access_files.read_files(self._folder)
            except Conflict:  # `waypost init` is at it
                return
            facts = access_files.facts_of(files, folder=self._folder)
        self._standing.access, self._seen = facts, seen

    async def _fetch_from(self, peers: list[Peer]) -> None:
        """Fetch what is missing from the first that gives it. Raises what the last one failed with."""
        for n, peer in enumerate(peers, 1):
            try:
                await self._fetch(peer)
            except Unavailable:
                if n == len(peers):
                    raise
            else:
                return

    async def _fetch(self, peer: Peer) -> None:
        data = await self._client.call(peer.facts.contact, Path.ACCESS, encode(AskAccess()))
        offered = decode(data, AccessAnswer, what=Path.ACCESS).files
        if access_files.facts_of(offered, folder=self._folder) != peer.facts.access:
            raise Malformed(f"{peer.facts.node} sent other files than it said that it has")
        ensure_directory(self._folder)
        with locked(self._folder):
            present = access_files.read_files(self._folder)
            writes = access_files.lacking(offered, present, folder=self._folder)
            write_all(writes)
        if writes:
            log.info(
                "cluster: %s of access control taken from %s (authority %s)",
                ", ".join(one.path.name for one in writes),
                peer.facts.node,
                self._standing.trust.pin,
            )
        self.read()

    def _write_problem(self, why: str) -> None:
        path = self._settings.directory / PROBLEM_FILE
        try:
            if why:
                if not path.exists() or path.read_text("utf-8") != why:
                    path.write_text(why, "utf-8")
            else:
                path.unlink(missing_ok=True)
        except OSError as exc:
            log.debug("%s: %s", path, exc)

    def _is_turn(self) -> bool:
        """Tell whether this server may start again to become protected."""
        now_s = self._clock.now()
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        others = self._others()
        return may_go(
            self._settings.node_id,
            waiting={one.facts.id for one in others if not one.facts.is_protected},
            missing={one.id for one in self._standing.state.servers}
            - {self._settings.node_id, *(one.facts.id for one in others)},
            waited_s=now_s - self._waits_since_s,
        )

    def answer(self, caller: Caller) -> AccessAnswer:
        """Give a server the files. Raises Forbidden to others, NotFound without files."""
        if not isinstance(caller, ServerCaller):
            raise Forbidden("only servers of the cluster get the keys of access control")
        self.read()
        access = self._standing.access
        if access is None or access.authority != self._standing.trust.pin:
            raise NotFound("this server has no access control of the cluster")
        return AccessAnswer(files=access_files.read_files(self._folder))


def may_go(own: str, *, waiting: set[str], missing: set[str], waited_s: float) -> bool:
    """Tell whether it is this server's turn to start again: one at a time, so that the store keeps its quorum.

    `waiting` are the live servers that are not protected yet, `missing` those that are not heard of: perhaps they are just
    starting again. Who is gone for longer is not waited for, and nobody waits for ever.
    """
    if waited_s >= _WAIT_S:
        return True
    if missing and waited_s < _MISSING_S:
        return False
    return own <= min(waiting, default=own)


def _mark(path: FilePath) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def known_protected(directory: FilePath) -> bool:
    """Tell whether the machine with this `DATA/cluster` belongs to a cluster that is protected. Raises Malformed."""
    return StateFiles(directory).glance().is_protected


def notes(directory: FilePath) -> tuple[str, ...]:
    """Return what to tell an operator who makes or looks at the access control of the machine with this `DATA/cluster`.

    Raises Malformed.
    """
    found = StateFiles(directory).glance()
    if not found.is_server or found.phase is not Phase.MEMBER:
        return ()
    problem = read(directory / PROBLEM_FILE)
    if problem is not None:
        return (f"Warning: {problem.decode('utf-8', 'replace')}",)
    return (
        "This machine is a server of a cluster: its agent, now or when it is started, hands these files to the other servers, "
        "and every agent of the cluster asks callers who they are from then on.",
    )
