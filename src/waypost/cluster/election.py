"""Who leads among servers that have only a store in common: one key, renewed by the leader, taken when it stands still.

The leader writes its claim again each second. Every other server notes, by its own monotonic clock, when it saw the claim
change last, and takes it when that was too long ago; nobody compares clocks. A leader that could not renew stops to lead
before anybody may take the claim. Whoever is slower than that is fenced: see `leadership`. As kube's controllers do.
"""

from __future__ import annotations

from typing import Final

import msgspec

RENEW_S: Final = 1.0
"""How often the leader renews, and the others look."""
HOLD_S: Final = 4.0
"""How long a leader leads after it began its last successful renewal."""
EXPIRE_S: Final = 5.0
"""How long a claim stands still before another server takes it."""
COURTESY_S: Final = 2.0
"""How long a claim that was handed over is left to whom it was meant for."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What stands under the key. `repr` shows all: nothing here is secret."""

    id: str = ""
    """Node id of the leader; empty: handed over."""
    session: str = ""
    """Made up at each start: tells a restarted server from a copied one."""
    count: int = 0
    """Grows with each renewal."""
    meant_for: str = ""
    """Node id of the server that shall lead next; empty: any."""


class Election:
    """One server's part, without I/O: `saw` what stands there, write what `wants` returns, say when it `succeeded`."""

    def __init__(self, *, server_id: str, session: str) -> None:
        self._id = server_id
        self._session = session
        self._claim: Claim | None = None
        self._revision = -1
        self._changed_s = float("-inf")
        self._held_until_s = float("-inf")

    def saw(self, claim: Claim | None, *, revision: int, now_s: float) -> None:
        """Note what stands under the key, and at which revision it was written (0: nothing)."""
        if revision != self._revision:
            self._revision = revision
            self._changed_s = now_s
        self._claim = claim
        if not self._is_mine:
            self._held_until_s = float("-inf")

    def wants(self, *, now_s: float) -> Claim | None:
        """Return the claim to write in place of what was seen, None to leave it."""
        claim = self._claim
        mine = Claim(id=self._id, session=self._session, count=claim.count + 1 if claim else 1)
        if claim is None or self._is_mine:
            return mine
        waited_s = now_s - self._changed_s
        if not claim.id:
            is_free = claim.meant_for in ("", self._id) or waited_s >= COURTESY_S
            return mine if is_free else None
        return mine if waited_s >= EXPIRE_S else None

    def succeeded(self, claim: Claim, *, revision: int, began_s: float, now_s: float) -> None:
        """Note that `claim` was written at `revision`; `began_s` is from before that was tried."""
        self.saw(claim, revision=revision, now_s=now_s)
        if claim.id == self._id:
            self._held_until_s = began_s + HOLD_S

    def given_up(self, *, to: str = "") -> Claim:
        """Lead no more; return the claim to write so that another one need not wait."""
        self._held_until_s = float("-inf")
        return Claim(count=self._claim.count + 1 if self._claim else 1, meant_for=to)

    def leads(self, *, now_s: float) -> bool:
        """Return whether this server leads."""
        return now_s < self._held_until_s

    def leader(self, *, now_s: float) -> str:
        """Return the node id of the leader, empty when nobody is known to lead."""
        claim = self._claim
        if claim is None:
            return ""
        if self._is_mine:
            return self._id if self.leads(now_s=now_s) else ""
        return claim.id if now_s - self._changed_s < EXPIRE_S else ""

    @property
    def revision(self) -> int:
        """At which revision the claim was written that was seen last; 0: there was none."""
        return max(0, self._revision)

    @property
    def _is_mine(self) -> bool:
        return (
            self._claim is not None
            and self._claim.id == self._id
            and self._claim.session == self._session
        )
