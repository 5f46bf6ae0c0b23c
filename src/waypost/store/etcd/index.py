"""Read indexes, shared: a revision that covers all that was acknowledged before somebody asked."""

from __future__ import annotations

import asyncio

from waypost.base.errors import NoLeader, WaypostError
from waypost.store.etcd.compile import LANES, LANES_END
from waypost.store.etcd.failure import Failure, explain, not_done
from waypost.store.etcd.gateway import Gateway
from waypost.store.etcd.messages import RANGE, newest_json, range_decoder, range_json

TIMEOUT_S = 5.0
"""After that a reader is told that there is no leader: longer than an election takes, also on a busy machine."""

ATTEMPT_S = 0.9
"""So that a second endpoint can be asked within the time when the first is frozen."""

_QUESTION = range_json(b"\0", None, count_only=True)
"""A linearizable read of nothing: etcd confirms its leader with a quorum and answers with the revision it is at."""


class ReadIndex:
    """One question under way, one that waits; who asks while one is under way shares the next.

    So nobody gets an answer to a question that was sent before he asked. `run()` must be running.

    Below a prefix it is the revision at which a lane moved last, because every write moves one: whatever else happens in
    this etcd has no events for us, and nobody's view would ever reach its revisions.
    """

    def __init__(self, gateway: Gateway, *, prefix: bytes = b"") -> None:
        self._gateway = gateway
        self._prefix = prefix
        self._question = newest_json(prefix + LANES, prefix + LANES_END) if prefix else _QUESTION
        self.store_revision = 0
        """The revision of all of etcd at the latest answer."""
        self._waiting: list[asyncio.Future[int]] = []
        self._wanted = asyncio.Event()

    async def get(self) -> int:
        """Return the revision. Raises NoLeader after 5 s."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._waiting.append(future)
        self._wanted.set()
        timer = loop.call_later(TIMEOUT_S, _give_up, future)
        try:
            return await future
        finally:
            timer.cancel()

    async def run(self) -> None:
        """Ask on behalf of whoever waits, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            try:
                revision = await self.ask()
            except WaypostError as error:
                _fail(waiting, error)
            except BaseException:
                _fail(waiting, NoLeader("the store is closing"))
                raise
            else:
                for future in waiting:
                    if not future.done():
                        future.set_result(revision)

    async def ask(self) -> int:
        """Ask now, for nobody else. Raises NoLeader."""
        try:
            answer = await self._gateway.ask(
                RANGE, self._question, into=range_decoder, at_most_s=TIMEOUT_S, attempt_s=ATTEMPT_S
            )
        except Failure as failure:
            msg = f"the store refused to read: {explain(failure)}"
            raise NoLeader(msg) from failure
        self.store_revision = answer.header.revision
        if not self._prefix:
            return answer.header.revision
        return answer.kvs[0].mod_revision if answer.kvs else 1

    def close(self) -> None:
        """Tell those who wait that there will be no answer."""
        waiting, self._waiting = self._waiting, []
        _fail(waiting, NoLeader("the store is closing"))


def _fail(waiting: list[asyncio.Future[int]], error: WaypostError) -> None:
    for future in waiting:
        if not future.done():
            future.set_exception(type(error)(*error.args))


def _give_up(future: asyncio.Future[int]) -> None:
    if not future.done():
        future.set_exception(not_done(None, at_most_s=TIMEOUT_S))
