"""From pictures of the catalog to what nginx should serve, with the little memory that needs: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from waypost.base.clock import Clock
from waypost.drivers.nginx.backends import Backend, Endpoint
from waypost.drivers.nginx.routing import Problem, Routes, plan_routes, usable_endpoints
from waypost.drivers.nginx.settings import Settings


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What should be served."""

    version: int
    """Of the picture it was made from."""
    routes: Routes
    endpoints: Mapping[str, tuple[Endpoint, ...]]
    problems: tuple[Problem, ...]
    due_at: float | None = None
    """Monotonic time at which the same picture means something else, because a vanished service ends to linger."""


class Tracker:
    """Remembers the last routes, so that ownership sticks, and services that vanished a moment ago."""

    def __init__(self, *, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._routes: Routes | None = None
        self._present: dict[str, Backend] = {}
        self._gone: dict[str, tuple[Backend, float]] = {}

    def update(self, backends: Iterable[Backend], *, version: int) -> Wanted:
        """Return what the picture means now."""
        now = self._clock.now()
        present = {one.service: one for one in backends}
        for service, backend in self._present.items():
            if service not in present and self._settings.linger_s > 0:
                self._gone[service] = (backend, now + self._settings.linger_s)
        self._gone = {
            service: (backend, until)
            for service, (backend, until) in self._gone.items()
            if service not in present and until > now
        }
        self._present = present
        lingering = [
            msgspec.structs.replace(backend, endpoints=()) for backend, _ in self._gone.values()
        ]
        endpoints: dict[str, tuple[Endpoint, ...]] = {}
        problems: list[Problem] = []
        known = [*present.values(), *lingering]
        self._routes = plan_routes(known, settings=self._settings, previous=self._routes)
        routed = self._routes.services()
        for backend in known:
            if backend.service in routed:
                good, bad = usable_endpoints(backend, settings=self._settings)
                endpoints[backend.service] = good
                problems += bad
        return Wanted(
            version=version,
            routes=self._routes,
            endpoints=endpoints,
            problems=(*self._routes.problems, *sorted(problems)),
            due_at=min((until for _, until in self._gone.values()), default=None),
        )
