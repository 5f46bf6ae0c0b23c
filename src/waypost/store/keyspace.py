"""Keys in order, in memory."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from waypost.store.engine import KeyValue

_CHUNK = 1024
"""Keys in a chunk before it is split: an insertion moves at most this many pointers (8 KiB, about 1 µs)."""


class KeySpace:
    """Rows by key, and the keys in bytewise order: a list of sorted chunks, so that an insertion into a million
    keys costs as much as into a thousand.
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, KeyValue] = {}
        self._chunks: list[list[bytes]] = []
        self._last: list[bytes] = []
        """The greatest key of each chunk."""
        self.size_bytes = 0
        """Keys and values together."""

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> KeyValue | None:
        """Return the row of one key."""
        return self._rows.get(key)

    def put(self, row: KeyValue) -> None:
        """Write one row."""
        key = row.key
        old = self._rows.get(key)
        self._rows[key] = row
        self.size_bytes += len(row.value)
        if old is None:
            self.size_bytes += len(key)
            self._insert(key)
        else:
            self.size_bytes -= len(old.value)

    def remove(self, key: bytes) -> None:
        """Remove one key. Raises KeyError when it is missing."""
        row = self._rows.pop(key)
        self.size_bytes -= len(key) + len(row.value)
        at = bisect_left(self._last, key)
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, key)]
        if chunk:
            self._last[at] = chunk[-1]
        else:
            del self._chunks[at], self._last[at]

    def span(self, key: bytes, end: bytes) -> Iterator[KeyValue]:
        """Yield the rows with key <= k < end in order. Nothing may be written meanwhile."""
        rows = self._rows
        at = bisect_left(self._last, key)
        if at == len(self._chunks):
            return
        chunk = self._chunks[at]
        start = bisect_left(chunk, key)
        while self._last[at] < end:
            for k in chunk[start:]:
                yield rows[k]
            at += 1
            if at == len(self._chunks):
                return
            chunk, start = self._chunks[at], 0
        for k in chunk[start : bisect_left(chunk, end)]:
            yield rows[k]

    def _insert(self, key: bytes) -> None:
        if not self._chunks:
            self._chunks.append([key])
            self._last.append(key)
            return
        at = min(bisect_left(self._last, key), len(self._chunks) - 1)
        chunk = self._chunks[at]
        insort(chunk, key)
        self._last[at] = chunk[-1]
        if len(chunk) > _CHUNK:
            half = len(chunk) // 2
            # Keys often arrive in order; a full chunk at the very end is cut so that it stays full.
            if at == len(self._chunks) - 1 and chunk[-1] == key:
                half = len(chunk) - 1
            self._chunks[at : at + 1] = [chunk[:half], chunk[half:]]
            self._last[at : at + 1] = [chunk[half - 1], chunk[-1]]
