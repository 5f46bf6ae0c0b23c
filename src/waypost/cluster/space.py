"""An etcd whose quota is used up: history is forgotten and space given back, until it takes writes again.

etcd then refuses whatever writes, deletions of ours included, and goes on refusing until it is told that the cause is gone. The
server beside etcd's leader looks after that, without a term: to begin one would be a write. Only of an etcd that the
servers run themselves; that of an operator is the operator's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from waypost.base.errors import Unavailable, WaypostError
from waypost.store.engine import Engine
from waypost.store.etcd.members import Alarm, Members

log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
_ENOUGH: Final = 0.85
"""With a larger part of the quota in use the next writes would use it up again: it stays closed for people to see."""
_MIB: Final = 2**20


class Space:
    """Looks each 10 s whether etcd has raised the alarm, and does what gives space back."""

    def __init__(
        self,
        engine: Engine,
        members: Members,
        *,
        quota_bytes: int,
        is_leader: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._members = members
        self._quota_bytes = quota_bytes
        self._is_leader = is_leader

    async def run(self) -> None:
        """Look, on the server beside etcd's leader, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._is_leader():
                continue
            try:
                await self.look()
            except WaypostError as error:
                log.warning("whether etcd has space left cannot be seen to: %s", error)

    async def look(self) -> bool:
        """Give space back if the quota is used up; return whether etcd takes writes. Raises Unavailable and others."""
        full = [alarm for alarm in await self._members.alarms() if alarm.kind == "NOSPACE"]
        if not full:
            return True
        log.error(
            "etcd's quota of %d MiB is used up and it refuses every write; its history is forgotten now",
            self._quota_bytes // _MIB,
        )
        await self._engine.compact(before=(await self._engine.status()).revision)
        used_bytes = await self._defragment()
        if used_bytes > self._quota_bytes * _ENOUGH:
            log.error(
                "etcd refuses every write: without any history it still holds %d of %d MiB; start the servers with a larger "
                "cluster.quota_bytes",
                used_bytes // _MIB,
                self._quota_bytes // _MIB,
            )
            return False
        await self._disarm(full)
        log.warning(
            "etcd takes writes again: %d of %d MiB are used",
            used_bytes // _MIB,
            self._quota_bytes // _MIB,
        )
        return True

    async def _defragment(self) -> int:
        """Give back what is free at every member that answers, the leader last; return the largest file in bytes."""
        urls: list[tuple[bool, str]] = []
        for member in await self._members.list():
            for url in member.client_urls[:1]:
                try:
                    status = await self._members.endpoint_status(url)
                except Unavailable as error:
                    log.warning("etcd's member %s is not asked to give space back: %s", member.name, error)  # fmt: skip
                    continue
                urls.append((status.leader_id == status.member_id, url))
        used_bytes = 0
        for _, url in sorted(urls):
            await self._members.defragment(url)
            status = await self._members.endpoint_status(url)
            used_bytes = max(used_bytes, status.db_size_bytes)
        return used_bytes

    async def _disarm(self, alarms: list[Alarm]) -> None:
        for alarm in alarms:
            await self._members.disarm(alarm)
