"""What happened to objects lately, for watches that start from a revision.

Bounded in number and bytes for each resource; when full, the oldest change goes and with it the right to start
before it. Belongs to one view.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from waypost.model.object import Object

MAX_CHANGES: Final = 1024
MAX_BYTES: Final = 8 * 2**20


class Change(msgspec.Struct, frozen=True, gc=False):
    """One change of one object: created (`old` is None), replaced, or deleted (`new` is None)."""

    revision: int
    old: Object | None
    new: Object | None

    @property
    def size_bytes(self) -> int:
        """Size of the bodies this change keeps."""
        return sum(len(one.body) for one in (self.old, self.new) if one is not None)


class _Log:
    __slots__ = ("changes", "oldest", "size_bytes")

    def __init__(self, oldest: int) -> None:
        self.changes: deque[Change] = deque()
        self.oldest = oldest
        self.size_bytes = 0


class ObjectHistory:
    """Changes by kind (`group/resource`)."""

    def __init__(self, *, max_changes: int = MAX_CHANGES, max_bytes: int = MAX_BYTES) -> None:
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._logs: dict[str, _Log] = {}
        self._floor = 0

    def reset(self, *, revision: int) -> None:
        """Forget everything: what led to the state of `revision` is not known."""
        self._floor = revision
        self._logs.clear()

    def add(self, kind: str, change: Change) -> None:
        """Note a change; revisions never go back."""
        log = self._logs.get(kind)
        if log is None:
            log = self._logs[kind] = _Log(self._floor)
        log.changes.append(change)
        log.size_bytes += change.size_bytes
        while len(log.changes) > self._max_changes or (
            log.size_bytes > self._max_bytes and len(log.changes) > 1
        ):
            gone = log.changes.popleft()
            log.size_bytes -= gone.size_bytes
            log.oldest = gone.revision

    def oldest(self, kind: str) -> int:
        """Return the lowest revision that `since` accepts."""
        log = self._logs.get(kind)
        return self._floor if log is None else log.oldest

    def since(self, kind: str, revision: int) -> list[Change] | None:
        """Return all changes after `revision` in order, or None when some of them are forgotten already."""
        if revision < self.oldest(kind):
            return None
        log = self._logs.get(kind)
        if log is None:
            return []
        found: list[Change] = []
        for change in reversed(log.changes):
            if change.revision <= revision:
                break
            found.append(change)
        found.reverse()
        return found
