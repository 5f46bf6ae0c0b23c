"""Another machine with this one's node id: a copied data directory. One of the two must not go on."""

from __future__ import annotations

import logging
from typing import Final

from waypost.base.clock import Clock
from waypost.base.errors import Conflict
from waypost.cluster.directory import Directory
from waypost.cluster.peers import Peers, outranks
from waypost.cluster.records import ServerFacts
from waypost.cluster.report import Report
from waypost.cluster.standing import Standing

_BELIEVED_S: Final = 5.0


class Copies:
    """Judges machines that answer or call with an id that is taken."""

    def __init__(
        self,
        standing: Standing,
        directory: Directory,
        peers: Peers,
        report: Report,
        *,
        clock: Clock,
    ) -> None:
        self._standing = standing
        self._settings = standing.settings
        self._directory = directory
        self._peers = peers
        self._report = report
        self._clock = clock
        self._outranked: tuple[str, float] = ("", float("-inf"))

    def note(self, why: str) -> None:
        """Note that another machine has this one's identity and goes before it."""
        self._outranked = (why, self._clock.now())

    @property
    def problem(self) -> str:
        """Why this machine must not go on for now; empty when it may."""
        why, at_s = self._outranked
        return why if self._clock.now() - at_s < _BELIEVED_S else ""

    @property
    def question(self) -> str:
        """What has to be found out before this machine may go on; empty when nothing has.

        A member that moved may be a copy: whether the other one still answers at the old address is looked at first.
        """
        if not self._standing.is_moved or not self._standing.is_member:
            return ""
        old = self._standing.state.contact
        contact = self._peers.contacts.get(old)
        if contact is None or contact.tries or contact.server_id:
            return ""
        return f"cluster: this machine was at {old} before; looking whether it still is"

    @property
    def may_go_on(self) -> bool:
        """Whether nothing is known, or to be found out, that keeps this machine from going on."""
        return not (self.problem or self.question)

    def judge(self, other: ServerFacts, address: str) -> None:
        """Judge a machine, or this one, that answers with this machine's id. Raises Conflict for another."""
        if other.incarnation == self._standing.incarnation:
            self._peers.is_me(address)
            return
        settings = self._settings
        text = (
            f"cluster: the machine at {other.contact} ({other.node}) has the same node id as this one, "
            f"{settings.node_id}: its data directory is a copy. Stop one of the two, and delete the files "
            "node-id and cluster of the copy"
        )
        if outranks(self._directory.own(), other):
            self._report.say("copy", text, level=logging.ERROR)
        else:
            self.note(text)
        raise _in_use(settings.node_id, settings.node, self._standing.contact)

    def refuse(self, sender: ServerFacts) -> None:
        """Raise Conflict for a caller with the id of another server, which is alive and goes before it."""
        known = self._peers.find(sender.id)
        if known is None or known.facts.incarnation == sender.incarnation:
            return
        is_live = self._clock.now() - known.last_seen_s < self._settings.failed_after_s
        if is_live and known.facts.contact != sender.contact and outranks(known.facts, sender):
            raise _in_use(sender.id, known.facts.node, known.facts.contact)


def _in_use(server_id: str, node: str, contact: str) -> Conflict:
    return Conflict(
        f"the node id {server_id} is that of {node} at {contact}, which is alive: "
        "the data directory of one of the two is a copy"
    )
