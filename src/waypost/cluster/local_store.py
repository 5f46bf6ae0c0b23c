"""This server's part of the store: its etcd process, and what that says about itself. A client has none."""

from __future__ import annotations

import logging
import random
from typing import Final

from waypost.base.clock import Clock
from waypost.base.errors import Malformed, WaypostError
from waypost.cluster.child import (
    EtcdChild,
    arguments,
    find_binary,
    has_data,
    local_endpoint,
    remove_data,
)
from waypost.cluster.protocol import StartStore, StoreFacts
from waypost.cluster.settings import ClusterSettings
from waypost.cluster.store_members import StoreMembers, StoreStatus
from waypost.cluster.trust import Trust

log = logging.getLogger(__name__)

_FRESH_S: Final = 2.0


class LocalStore:
    """Starts and stops etcd, knows its status. Without `open` (on a client) there is nothing to ask and to stop."""

    def __init__(
        self, settings: ClusterSettings, *, trust: Trust, clock: Clock, rng: random.Random
    ) -> None:
        self._settings = settings
        self._trust = trust
        self._clock = clock
        self._rng = rng
        self._directory = settings.directory / "etcd"
        self._child: EtcdChild | None = None
        self._members: StoreMembers | None = None
        self._status: StoreStatus | None = None
        self._status_s = float("-inf")
        self._was_led = False

    async def open(self) -> None:
        """Find etcd and make ready to ask it. Raises Malformed (no etcd that can be used)."""
        binary = await find_binary(self._settings.etcd)
        self._child = EtcdChild(binary, self._directory, clock=self._clock)
        await self.reconnect()

    async def reconnect(self) -> None:
        """Ask etcd with the certificate that is on disk now."""
        tls = self._trust.store_tls
        if self._child is None or tls is None:
            return
        if self._members is not None:
            await self._members.close()
        self._members = StoreMembers(tls, clock=self._clock, rng=self._rng)
        await self._members.open()

    async def close(self) -> None:
        """Stop etcd, close the connections."""
        await self.stop()
        members, self._members = self._members, None
        if members is not None:
            await members.close()

    # -- what is known

    @property
    def endpoint(self) -> str:
        """The URL of this machine's member."""
        return local_endpoint(self._settings)

    @property
    def members(self) -> StoreMembers | None:
        """How to ask the store about its members; None before this server has a certificate."""
        return self._members

    @property
    def pid(self) -> int | None:
        """Etcd's process id, None when it does not run."""
        return None if self._child is None else self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether etcd runs."""
        return self._child is not None and self._child.is_running

    @property
    def has_data(self) -> bool:
        """Whether etcd has its log on this machine. Raises Unavailable."""
        return has_data(self._directory)

    @property
    def status(self) -> StoreStatus | None:
        """What this machine's member said within the last two seconds; None when it did not."""
        if self._clock.now() - self._status_s > _FRESH_S:
            return None
        return self._status

    @property
    def member_id(self) -> str:
        """The store's id of this machine's member, hexadecimal; empty while that does not answer."""
        status = self.status
        return f"{status.member_id:x}" if status is not None else ""

    @property
    def leader_id(self) -> str:
        """The store's id of its leader, hexadecimal; empty when this machine's member knows none."""
        status = self.status
        return f"{status.leader_id:x}" if status is not None and status.leader_id else ""

    @property
    def is_leader(self) -> bool:
        """Whether the store's leader is on this machine."""
        status = self.status
        return status is not None and status.leader_id == status.member_id != 0

    def facts(self) -> StoreFacts:
        """Return what the protocol decides upon."""
        child, status = self._child, self.status
        return StoreFacts(
            is_running=self.is_running,
            has_exited=child is not None and child.exits > 0 and not child.is_running,
            answers=status is not None,
            has_leader=status is not None and status.leader_id != 0,
            was_led=self._was_led,
        )

    # -- what is done

    async def look(self) -> bool:
        """Ask etcd how it is; return whether it answered."""
        if self._members is None or not self.is_running:
            self._status = None
            return False
        try:
            status = await self._members.status(self.endpoint)
        except WaypostError as exc:
            log.debug("the store does not say how it is: %s", exc)
            return False
        self._status, self._status_s = status, self._clock.now()
        self._was_led = self._was_led or status.leader_id != 0
        return True

    async def start(self, how: StartStore) -> bool:
        """Start etcd unless it runs, or rests after a failure; return whether it was started now.

        Raises Malformed without a certificate, Unavailable.
        """
        tls, child = self._trust.store_tls, self._child
        if tls is None or child is None:
            raise Malformed(
                f"{self._settings.directory}: the store's certificate is missing, so etcd cannot be started"
            )
        flags = arguments(
            self._settings,
            version=child.version,
            tls=tls,
            initial_cluster=how.initial_cluster,
            is_new=how.is_new,
            token=how.cluster,
        )
        return await child.start(flags)

    async def stop(self) -> None:
        """End etcd. Safe to call when it does not run."""
        if self._child is not None:
            await self._child.stop()

    def remove_data(self) -> None:
        """Delete the data of an etcd that was stopped. Raises Unavailable."""
        remove_data(self._directory)
        self._status, self._was_led = None, False
