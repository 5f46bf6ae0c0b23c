"""Identities of credentials that were good a moment ago, so that a hot read need not prove them again.

An entry holds until the credential ends, a stored object changes that tokens may depend on, or `clear` is called
because the authenticators are others now. Only what `Authentication.is_steady` says may be kept is kept. Credentials are
kept as digests.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from waypost.access.authn.records import Authentication
from waypost.base.clock import Clock
from waypost.state.topics import Topic
from waypost.state.view import View

TOPICS: Final[tuple[Topic, ...]] = tuple(
    ("objects", f"/{resource}") for resource in ("serviceaccounts", "secrets", "pods", "nodes")
)
"""What service-account and bootstrap tokens depend on."""
_MAX_ENTRIES: Final = 4096


class _Entry:
    __slots__ = ("found", "revision", "since_s", "until_s")

    def __init__(
        self, found: Authentication, *, revision: int, since_s: float, until_s: float
    ) -> None:
        self.found = found
        self.revision = revision
        self.since_s = since_s
        self.until_s = until_s


class Remembered:
    """Bound: 4096 entries; overflow: the oldest goes. Belongs to one event loop."""

    def __init__(self, view: View, *, clock: Clock) -> None:
        self._view = view
        self._clock = clock
        self._entries: dict[Hashable, _Entry] = {}

    def get(self, key: Hashable) -> Authentication | None:
        """Return whose credential it is, None if that has to be found out."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.since_s <= self._clock.wall() < entry.until_s:
            revision = self._view.revision
            if entry.revision == revision:
                return entry.found
            index = self._view.topics.index
            if all(index(topic) <= entry.revision for topic in TOPICS):
                entry.revision = revision
                return entry.found
        del self._entries[key]
        return None

    def put(self, key: Hashable, found: Authentication) -> None:
        """Keep an answer that was given just now, if it may be kept."""
        if not found.is_steady or found.actor is None or found.warning:
            return
        entries = self._entries
        if key not in entries and len(entries) >= _MAX_ENTRIES:
            del entries[next(iter(entries))]
        entries[key] = _Entry(
            found,
            revision=self._view.revision,
            since_s=self._clock.wall(),
            until_s=found.steady_until_s
            if found.expires_s is None
            else min(found.expires_s, found.steady_until_s),
        )

    def clear(self) -> None:
        """Forget everything: other files, other authenticators."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
