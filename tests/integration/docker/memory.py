"""A registry in memory that keeps the promises of the `Registry` protocol, and lets a test wait and look."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec

from waypost.base.errors import NotFound, Rejected, Unavailable
from waypost.drivers.docker.mapping import Registration
from waypost.model.catalog import Check


class MemoryRegistry:
    def __init__(self) -> None:
        self.instances: dict[str, Registration] = {}
        self.away = False
        """While set, every call raises Unavailable, as a registry without a leader does."""
        self.refuses: set[str] = set()
        """Service names that are refused."""
        self.writes: list[tuple[float, str, str]] = []
        """(time, verb, service id) of every write that was done."""
        self._changed = asyncio.Condition()

    async def registered(self) -> Mapping[str, Registration]:
        self._reachable()
        return dict(self.instances)

    async def register(self, registration: Registration) -> None:
        self._reachable()
        service = registration.service
        if service.name in self.refuses:
            raise Rejected(f"service name {service.name!r} is refused")
        old = self.instances.get(service.id)
        statuses = {c.check_id: c.status for c in old.checks} if old is not None else {}
        checks = tuple(
            msgspec.structs.replace(check, status=statuses.get(check.check_id, check.status))
            for check in registration.checks
        )
        self.instances[service.id] = msgspec.structs.replace(registration, checks=checks)
        await self._wrote("register", service.id)

    async def deregister(self, service_id: str) -> None:
        self._reachable()
        self.instances.pop(service_id, None)
        await self._wrote("deregister", service_id)

    async def set_health(self, check: Check) -> None:
        self._reachable()
        old = self.instances.get(check.service_id)
        if old is None or check.check_id not in {one.check_id for one in old.checks}:
            raise NotFound(f"no check {check.check_id}")
        self.instances[check.service_id] = msgspec.structs.replace(
            old,
            checks=tuple(check if one.check_id == check.check_id else one for one in old.checks),
        )
        await self._wrote("health", check.service_id)

    # --- for tests -----------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(one.service.name for one in self.instances.values())

    def named(self, name: str) -> Registration:
        return next(one for one in self.instances.values() if one.service.name == name)

    async def until(
        self, condition: Callable[[MemoryRegistry], bool], within_s: float = 5.0
    ) -> float:
        """Wait until the condition holds; return the wall time at which it did."""
        try:
            async with asyncio.timeout(within_s):
                async with self._changed:
                    await self._changed.wait_for(lambda: condition(self))
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s; there is {self.names()}") from None
        return time.perf_counter()

    async def never(self, condition: Callable[[MemoryRegistry], bool], for_s: float = 0.5) -> None:
        """Assert that the condition does not come true for a while."""
        try:
            await self.until(condition, for_s)
        except AssertionError:
            return
        raise AssertionError("it happened")

    def _reachable(self) -> None:
        if self.away:
            raise Unavailable("the registry is away")

    async def _wrote(self, verb: str, service_id: str) -> None:
        self.writes.append((time.perf_counter(), verb, service_id))
        async with self._changed:
            self._changed.notify_all()
