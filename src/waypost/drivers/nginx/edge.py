"""Brings one nginx to what is wanted: checks, starts, reloads, proves, undoes, and sets the guilty aside."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Unavailable
from waypost.drivers.nginx.config import Facts, Plan, Rendered, Site, listens_in, make_plan, render
from waypost.drivers.nginx.early import early_hosts, hosts_of
from waypost.drivers.nginx.process import Master, Nginx, cannot_bind
from waypost.drivers.nginx.routing import Route, quoted
from waypost.drivers.nginx.settings import Listen, Settings
from waypost.drivers.nginx.wanted import Wanted

log = logging.getLogger(__name__)

_PORT_RETRY_S: Final = 5.0
_RELOAD_RETRY_S: Final = 30.0
_SUSPECT_RETRY_S: Final = 2.0


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """A service that is left out of the configuration, and why."""

    service: str
    reason: str
    routes: tuple[Route, ...]
    """What it asked for: when that changes, it gets another chance."""
    retry_at: float | None = None
    """Monotonic time of the next try; None: only when it asks for something else."""


class Edge:
    """The state of one nginx. One task drives it."""

    def __init__(
        self, *, nginx: Nginx, facts: Facts, settings: Settings, site: Site, clock: Clock
    ) -> None:
        self.nginx = nginx
        self.facts = facts
        self.master: Master | None = None
        self.applied: Plan | None = None
        self.served_hosts: frozenset[str] = frozenset()
        """Hosts that have a `server` in the configuration in force."""
        self.generation = 0
        self.reloads = 0
        self.starts = 0
        self.last_error = ""
        self.quarantined: dict[str, Quarantine] = {}
        self.closed: dict[Listen, str] = {}
        """Addresses for HTTP and TLS that cannot be listened on, with the reason."""
        self._closed_retry_at = 0.0
        self._listened: frozenset[Listen] = frozenset()
        self._told: dict[str, str] = {}
        self._settings = settings
        self.site = site
        self._clock = clock

    async def adopt(self) -> bool:
        """Take over the nginx that runs already. Returns False when there is none that can be used."""
        master = self.nginx.find()
        if master is None:
            return False
        try:
            if master.binary != str(self.facts.binary.resolve()):
                raise Unavailable(f"it is {master.binary}, wanted is {self.facts.binary}")
            self.generation = await self.nginx.control.generation()
        except Unavailable as error:
            log.warning("nginx of pid %d is replaced: %s", master.pid, error)
            await self.nginx.stop(master, within_s=5.0)
            return False
        self.master = master
        self._listened = listens_in(self.nginx.installed())
        log.info("nginx adopted: pid %d, generation %d", master.pid, self.generation)
        return True

    def due_at(self) -> float | None:
        """Return when something that failed should be tried again."""
        times = [one.retry_at for one in self.quarantined.values() if one.retry_at is not None]
        if self.closed:
            times.append(self._closed_retry_at)
        return min(times, default=None)

    def pending(self, wanted: Wanted) -> bool:
        """Tell whether `wanted` needs a start or a reload."""
        self._release(wanted)
        return self.master is None or self._plan(wanted) != self.applied

    def early(self, wanted: Wanted) -> dict[str, str]:
        """Return what nginx may be told of `wanted` while its reload has to wait: `early.early_hosts`."""
        if self.master is None or self.applied is None:
            return {}
        if not (self.facts.live and self.facts.fast):
            return {}
        return early_hosts(
            wanted.routes.without(self.quarantined),
            served=self.served_hosts,
            body_bytes=self.site.body_bytes,
        )

    async def apply(self, wanted: Wanted) -> bool:
        """Make nginx serve `wanted`, without what is guilty of a failure. Returns True if it was started or reloaded.

        Raises Unavailable when nothing could be brought into force; then what served before serves on.
        """
        self._release(wanted)
        while True:
            plan = self._plan(wanted)
            if self.master is not None and plan == self.applied:
                return False
            if self._port_refused(plan, wanted=wanted):
                continue
            if self.master is not None and self.applied is None and self._as_installed(plan):
                self._serves(plan)
                return False
            rendered = render(plan, facts=self.facts, generation=self.generation + 1)
            if plan == self.applied:
                break  # it was in force already, the master only has to come back
            if await self._config_refused(plan, rendered, wanted=wanted):
                continue
            break
        self.generation += 1
        if self.master is None:
            await self._start(plan, rendered)
        else:
            await self._reload(self.master, plan, rendered, wanted=wanted)
        return True

    def lost(self) -> None:
        """Note that the master has ended."""
        self.master = None

    # what to serve

    def _plan(self, wanted: Wanted) -> Plan:
        listen = tuple(one for one in self.site.listen if one not in self.closed)
        routes = wanted.routes.without(self.quarantined)
        if not self.facts.stream:
            routes = msgspec.structs.replace(routes, stream=(), tls=())
        elif not self.facts.preread:
            routes = msgspec.structs.replace(routes, tls=())
        # A port that nobody needs is not opened.
        tls_listen = tuple(one for one in self.site.tls_listen if one not in self.closed)
        site = msgspec.structs.replace(
            self.site, listen=listen, tls_listen=tls_listen if routes.tls else ()
        )
        return make_plan(routes, site=site, endpoints=wanted.endpoints, facts=self.facts)

    def _release(self, wanted: Wanted) -> None:
        """Give those another chance who ask for something else, or whose time has come."""
        now = self._clock.now()
        for service, one in list(self.quarantined.items()):
            if wanted.routes.of(service) != one.routes or (
                one.retry_at is not None and one.retry_at <= now
            ):
                del self.quarantined[service]
        if self.closed and self._closed_retry_at <= now:
            self.closed = {}

    def _set_aside(
        self, service: str, reason: str, *, wanted: Wanted, retry_s: float | None = None
    ) -> None:
        retry_at = None if retry_s is None else self._clock.now() + retry_s
        self.quarantined[service] = Quarantine(
            service=service,
            reason=reason,
            routes=wanted.routes.of(service),
            retry_at=retry_at,
        )
        self._tell(service, f"service {quoted(service)} is left out: {reason}")

    # checks before

    def _port_refused(self, plan: Plan, *, wanted: Wanted) -> bool:
        """Try to bind what would be opened anew; returns True when something was set aside."""
        # After the master's death its workers may still hold its ports; the start takes them over.
        mine = self._listened
        opened = (*plan.site.listen, *plan.site.tls_listen)
        fresh = [one for one in opened if one not in mine]
        closed = cannot_bind(fresh)
        for listen, reason in closed.items():
            self.closed[listen] = reason
            self._closed_retry_at = self._clock.now() + _PORT_RETRY_S
            self._tell(listen.text(), f"cannot listen on {listen.text()}: {reason}")
        refused = bool(closed)
        for route in plan.routes.stream:
            asked = [Listen(address, route.port) for address in plan.site.tcp_addresses]
            for listen, reason in cannot_bind(one for one in asked if one not in mine).items():
                text = f"cannot listen on {listen.text()}: {reason}"
                self._set_aside(route.service, text, wanted=wanted, retry_s=_PORT_RETRY_S)
                refused = True
        return refused

    def _as_installed(self, plan: Plan) -> bool:
        rendered = render(plan, facts=self.facts, generation=self.generation)
        return rendered.text == self.nginx.installed()

    async def _config_refused(self, plan: Plan, rendered: Rendered, *, wanted: Wanted) -> bool:
        """Ask nginx; returns True when somebody guilty was found and set aside.

        Raises Unavailable when the part that belongs to no service is refused.
        """
        refusal = await self.nginx.test(rendered)
        if refusal is None:
            return False
        guilty = rendered.service_at(refusal.line)
        if guilty is not None and await self._passes_without(plan, [guilty]):
            self._set_aside(guilty, refusal.text, wanted=wanted)
            return True
        found = await self._bisect(plan, sorted(plan.routes.services()))
        if not found:
            raise self._failed(f"nginx refuses the configuration: {refusal.text}")
        for service in found:
            self._set_aside(service, refusal.text, wanted=wanted)
        return True

    async def _passes_without(self, plan: Plan, services: Iterable[str]) -> bool:
        bare = msgspec.structs.replace(plan, routes=plan.routes.without(services))
        return await self.nginx.test(render(bare, facts=self.facts, generation=0)) is None

    async def _bisect(self, plan: Plan, suspects: list[str]) -> list[str]:
        """Return services without which the rest is accepted; empty when even nothing is refused."""
        if not await self._passes_without(plan, suspects):
            return []
        guilty: list[str] = []
        stack = [suspects]
        cleared: set[str] = set()
        everybody = set(suspects)
        while stack:
            group = stack.pop()
            if await self._passes_without(plan, everybody - cleared - set(group)):
                cleared.update(group)
            elif len(group) == 1:
                guilty += group
            else:
                middle = len(group) // 2
                stack += [group[middle:], group[:middle]]
        return guilty

    # into force

    async def _start(self, plan: Plan, rendered: Rendered) -> None:
        self.nginx.install(rendered)
        try:
            self.master = await self.nginx.start(
                generation=rendered.generation,
                workers=plan.site.workers,
                within_s=self._settings.prove_s,
            )
        except Unavailable as error:
            self._serves(None)
            self._listened = frozenset()
            leftover = self.nginx.find()
            if leftover is not None:
                await self.nginx.stop(leftover, within_s=1.0)
            raise self._failed(str(error)) from error
        self._in_force(plan, rendered)
        self.starts += 1
        log.info(
            "nginx %s started: pid %d, generation %d, %d services, HTTP on %s",
            self.facts.version_text,
            self.master.pid,
            rendered.generation,
            len(plan.routes.services()),
            ", ".join(one.text() for one in plan.site.listen) or "nothing",
        )

    async def _reload(
        self, master: Master, plan: Plan, rendered: Rendered, *, wanted: Wanted
    ) -> None:
        last_good = self.nginx.installed()
        last_generation = await self._running_generation()
        self.nginx.install(rendered)
        try:
            proof = await self.nginx.reload(
                master,
                generation=rendered.generation,
                workers=plan.site.workers,
                within_s=self._settings.prove_s,
            )
        except Unavailable as error:
            suspects = _differing(self.applied, plan)
            for number, service in enumerate(suspects, start=1):
                # Several suspects come back one by one, so the innocent return soon and the guilty fails alone.
                retry_s = _RELOAD_RETRY_S if len(suspects) == 1 else _SUSPECT_RETRY_S * number
                self._set_aside(service, str(error), wanted=wanted, retry_s=retry_s)
            await self._put_back(master, last_good, generation=last_generation)
            raise self._failed(str(error)) from error
        self._in_force(plan, rendered)
        self.reloads += 1
        log.info(
            "nginx reloaded: generation %d, %d services, live after %.0f ms, alone after %.0f ms",
            rendered.generation,
            len(plan.routes.services()),
            proof.live_s * 1000,
            proof.total_s * 1000,
        )

    async def _running_generation(self) -> int:
        try:
            return await self.nginx.control.generation()
        except Unavailable:
            return 0

    async def _put_back(self, master: Master, text: str, *, generation: int) -> None:
        """Bring the last good configuration back into force; if even that fails, nginx is started anew."""
        self.nginx.restore(text)
        try:
            await self.nginx.reload(
                master,
                generation=generation,
                workers=self.site.workers,
                within_s=self._settings.prove_s,
            )
        except Unavailable as error:
            log.error(
                "nginx: the last good configuration does not come back, restarting: %s", error
            )
            await self.nginx.stop(master, within_s=1.0)
            self.lost()

    def _in_force(self, plan: Plan, rendered: Rendered) -> None:
        self._serves(plan)
        self._listened = listens_in(rendered.text)
        opened = {one.text() for one in (*plan.site.listen, *plan.site.tls_listen)}
        served = plan.routes.services() | opened
        self._told = {what: text for what, text in self._told.items() if what not in served}

    def _serves(self, plan: Plan | None) -> None:
        self.applied = plan
        self.served_hosts = frozenset() if plan is None else hosts_of(plan.routes)

    def _tell(self, what: str, text: str) -> None:
        """Log a failure once, not at each retry."""
        self.last_error = text
        if self._told.get(what) != text:
            self._told[what] = text
            log.error("nginx: %s", text)

    def _failed(self, text: str) -> Unavailable:
        self.last_error = text
        return Unavailable(text)


def _differing(before: Plan | None, after: Plan) -> list[str]:
    """Return the services of `after` that are new or other than in `before`."""
    if before is None:
        return []

    def seen(plan: Plan, service: str) -> object:
        return (
            plan.routes.of(service),
            plan.endpoints.get(service),
            service in plan.big,
            service in plan.ipv6,
        )

    return [one for one in sorted(after.routes.services()) if seen(before, one) != seen(after, one)]
