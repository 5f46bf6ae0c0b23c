"""What a reader can wait for, with the exact index of each, and the waiters.

A topic is a small tuple. Its index is the moment of the view (`View.moment`: the revision, or a little more after
something provisional) that last changed what the topic stands for; a topic that was never touched since the view was
loaded has the moment of loading (`floor`), at least 1, so that a client that comes back after a restart never misses a
deletion. Of keys nothing is ever provisional: their indexes are revisions.

    ("nodes",)              any node            ("services",)           any instance of any service
    ("node", node)          a node, its instances and its checks
    ("catalog", service)    instances of a service and their nodes (catalog/service)
    ("health", service)     the same with their checks (health/service)
    ("checks", status)      checks entering, leaving or changing in a status; ("checks", "any") all
    ("kv", key)             one key             ("prefix", prefix)      every key below a prefix
    ("sessions",)           any session         ("objects", group/resource)  objects of the kube-style API
    ("system", owner)       what waypost keeps for itself under names that start with `owner`
    ("all",)                anything at all

Service and node names in topics are folded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

Topic = tuple[str, ...]

_MAX_PREFIXES = 4096
_MAX_TOMBSTONES = 16384


class Topics:
    """Indexes and waiters. Belongs to one event loop; nothing here blocks."""

    def __init__(self) -> None:
        self._indexes: dict[Topic, int] = {}
        self._waiters: dict[Topic, set[asyncio.Future[None]]] = {}
        self._prefixes: dict[str, int] = {}
        self._prefix_lengths: dict[int, int] = {}
        self._tombstones: dict[str, int] = {}
        self._kv_floor = 1
        self.floor = 1

    def reset(self, *, floor: int, kv_floor: int) -> None:
        """Forget every index, as after a reload at the moment `floor` and revision `kv_floor`, and wake everybody."""
        self.floor = max(1, floor)
        self._kv_floor = max(1, kv_floor)
        self._indexes.clear()
        self._tombstones.clear()
        self._prefixes.clear()
        self._prefix_lengths.clear()
        for waiters in list(self._waiters.values()):
            _wake(waiters)

    def index(self, topic: Topic) -> int:
        """Return the moment that last changed `topic`; never 0. Use `prefix_index` for KV prefixes."""
        return self._indexes.get(topic, self.floor)

    def bump(self, topic: Topic, moment: int) -> None:
        """Note that `moment` changed `topic` and wake whoever waits for it."""
        self._indexes[topic] = moment
        waiters = self._waiters.get(topic)
        if waiters:
            _wake(waiters)

    def bump_key(self, key: str, revision: int, *, deleted: bool) -> None:
        """Note a change of a KV key: its own topic and every prefix somebody has asked for."""
        if deleted:
            # A key that is gone has no record to carry its index: remember a bounded number of them. The oldest
            # forgotten one raises the floor for all keys that are not there, which can only wake somebody early.
            self._tombstones[key] = revision
            if len(self._tombstones) > _MAX_TOMBSTONES:
                oldest = next(iter(self._tombstones))
                self._kv_floor = max(self._kv_floor, self._tombstones.pop(oldest))
        else:
            self._tombstones.pop(key, None)
        waiters = self._waiters.get(("kv", key))
        if waiters:
            _wake(waiters)
        for length in self._prefix_lengths:
            prefix = key[:length]
            if prefix in self._prefixes:
                self._prefixes[prefix] = revision
                waiters = self._waiters.get(("prefix", prefix))
                if waiters:
                    _wake(waiters)

    def missing_key_index(self, key: str) -> int:
        """Return the index of a KV key that is not there."""
        return self._tombstones.get(key, self._kv_floor)

    def prefix_index(self, prefix: str, *, newest: Iterable[int]) -> int:
        """Return the index of everything below `prefix`; `newest` yields the modify revisions of what is there.

        `newest` is consumed only when the prefix was not asked for lately.
        """
        known = self._prefixes.get(prefix)
        if known is not None:
            return known
        gone = [rev for key, rev in self._tombstones.items() if key.startswith(prefix)]
        index = max([*newest, *gone, self._kv_floor])
        if len(self._prefixes) >= _MAX_PREFIXES:
            self._forget_prefix()
        self._prefixes[prefix] = index
        self._prefix_lengths[len(prefix)] = self._prefix_lengths.get(len(prefix), 0) + 1
        return index

    def _forget_prefix(self) -> None:
        for prefix in self._prefixes:
            if ("prefix", prefix) not in self._waiters:
                break
        else:
            return
        del self._prefixes[prefix]
        count = self._prefix_lengths[len(prefix)] - 1
        if count:
            self._prefix_lengths[len(prefix)] = count
        else:
            del self._prefix_lengths[len(prefix)]

    async def wait(self, topics: Iterable[Topic], *, at_most_s: float) -> bool:
        """Return True when one of `topics` changes, False after `at_most_s` seconds. Cancel-safe.

        One future and one timer a waiter: cheap enough for ten thousand of them.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        wanted = tuple(topics)
        for topic in wanted:
            self._waiters.setdefault(topic, set()).add(future)
        timer = loop.call_later(at_most_s, _expire, future)
        try:
            await future
        except TimeoutError:
            return False
        finally:
            timer.cancel()
            for topic in wanted:
                waiters = self._waiters[topic]
                waiters.discard(future)
                if not waiters:
                    del self._waiters[topic]
        return True

    @property
    def waiting(self) -> int:
        """How many (topic, waiter) pairs there are now."""
        return sum(len(waiters) for waiters in self._waiters.values())


def _wake(waiters: set[asyncio.Future[None]]) -> None:
    for future in waiters:
        if not future.done():
            future.set_result(None)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
