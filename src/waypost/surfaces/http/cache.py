"""A bounded store of finished answers, and of request heads, for the hot path."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from waypost.surfaces.http.message import Head, Rendered

V = TypeVar("V")


class Entry(Generic[V]):
    """One answer and the caller's proof of its validity, such as the indexes it was made from."""

    __slots__ = ("answer", "size_bytes", "used", "validity")

    def __init__(self, answer: Rendered, validity: V) -> None:
        self.answer = answer
        self.validity = validity
        self.size_bytes = answer.size_bytes
        self.used = False


class AnswerCache(Generic[V]):
    """Finished answers under any hashable key, mostly the request target.

    What a key means and whether an entry still holds is the caller's knowledge: `get` asks
    `is_valid(entry.validity)`. Bounds: `max_entries` and `max_bytes` (the plain form; the gzip form
    comes on top, smaller than the plain one). Overflow: the oldest entry that was not asked for since
    its last turn goes (second chance). An answer over a quarter of `max_bytes` is not kept.
    """

    def __init__(
        self,
        is_valid: Callable[[V], bool],
        *,
        max_entries: int = 4096,
        max_bytes: int = 64 * 2**20,
    ) -> None:
        self._is_valid = is_valid
        self._entries: dict[Hashable, Entry[V]] = {}
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0

    def get(self, key: Hashable) -> Rendered | None:
        """Return the answer under `key` while it is valid; drop it when it is not."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not self._is_valid(entry.validity):
            self.discard(key)
            return None
        entry.used = True
        return entry.answer

    def put(self, key: Hashable, answer: Rendered, *, validity: V) -> None:
        """Keep `answer` under `key` until it is invalid or pushed out."""
        self.discard(key)
        entry = Entry(answer, validity)
        if entry.size_bytes > self._max_bytes // 4 or self._max_entries < 1:
            return
        while self._entries and (
            len(self._entries) >= self._max_entries
            or self._bytes + entry.size_bytes > self._max_bytes
        ):
            self._evict()
        self._entries[key] = entry
        self._bytes += entry.size_bytes

    def discard(self, key: Hashable) -> None:
        """Forget `key`, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Sum of the kept answers' plain sizes."""
        return self._bytes

    def _evict(self) -> None:
        while True:  # ends: a second look finds `used` unset
            key = next(iter(self._entries))
            entry = self._entries.pop(key)
            if not entry.used:
                self._bytes -= entry.size_bytes
                return
            entry.used = False
            self._entries[key] = entry


class HeadMemo:
    """Parsed heads under the exact bytes of a whole body-less request.

    Clients repeat themselves byte by byte, and equal bytes on an idle connection parse to equal
    requests, so a known request skips the parser. Bounds: `max_entries` of at most `max_head_bytes`;
    the oldest goes.
    """

    __slots__ = ("_heads", "_max_entries", "_max_head_bytes", "get")

    def __init__(self, *, max_entries: int = 1024, max_head_bytes: int = 2048) -> None:
        self._heads: dict[bytes, Head] = {}
        self._max_entries = max_entries
        self._max_head_bytes = max_head_bytes
        self.get = self._heads.get

    def put(self, data: bytes, head: Head) -> None:
        """Remember that `data`, alone on an idle connection, is `head`."""
        if len(data) > self._max_head_bytes:
            return
        heads = self._heads
        if len(heads) >= self._max_entries:
            del heads[next(iter(heads))]
        heads[data] = head

    def __len__(self) -> int:
        return len(self._heads)
