"""Keeps the catalog's picture of this machine's containers true.

Level-triggered: what should be registered is computed from the running containers, compared with what is
registered, and the difference is written. Docker's events only say where to look; losing one, or all of
them, costs time and never truth, because every subscription starts with a full comparison and another one
follows every `resync_s`.

One worker does all of it, so no two changes of one container can overtake each other. An event of a
container costs one inspect of that container; a full comparison lets such events pass in between.

When Docker is away nothing is deregistered: whether its containers still run is not known until it answers
again, and then the full comparison takes out those that are gone. When the registry is away everything
stays desired and is written when it is back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final, Literal, Protocol

import msgspec

from waypost.base.clock import Clock, SystemClock
from waypost.base.errors import Malformed, NotFound, Rejected, Unavailable, WaypostError
from waypost.drivers.docker.api import Container, Docker, Event, Summary, parse_container
from waypost.drivers.docker.labels import parse_tags
from waypost.drivers.docker.mapping import (
    Clash,
    HostFacts,
    Mapped,
    MappingSettings,
    Note,
    Registration,
    Step,
    is_stop_signal,
    map_container,
    merge,
    plan,
)
from waypost.model.catalog import Check

log = logging.getLogger(__name__)

Deregister = Literal["always", "on-success"]
TagsTemplate = Callable[[Mapping[str, Any]], str]
"""Renders `-tags` for one container; the argument is its inspect answer. Raises WaypostError."""

_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MOST_S: Final = 5.0
_INSPECT_AT_ONCE: Final = 8
_WRITE_AT_ONCE: Final = 8

SERVICE_ID: Final = re.compile(r"(.+?):([a-zA-Z0-9][a-zA-Z0-9_.-]+):[0-9]+(?::[a-z]+)?")
"""The form of the ids that we (and Registrator) make: host, container, exposed port, protocol."""


class Registry(Protocol):
    """Where registrations go: this node's part of a catalog.

    Every method raises Unavailable when trying again later may help (it is tried again), and any other
    WaypostError when this one thing is refused (it is tried again when it changes, and at every resync).
    """

    async def registered(self) -> Mapping[str, Registration]:
        """Return what the registrator owns on this node, by service id, with the present check statuses."""
        ...

    async def register(self, registration: Registration) -> None:
        """Make the instance and its checks exactly this; a check that was there before keeps its status."""
        ...

    async def deregister(self, service_id: str) -> None:
        """Take the instance and its checks out; an unknown id is no error."""
        ...

    async def set_health(self, check: Check) -> None:
        """Set status and output of a check that the registrator reports (its `definition` is None)."""
        ...


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the registrator works; `mapping` says what it registers."""

    mapping: MappingSettings = MappingSettings()
    resync_s: float = 60.0
    """0 = only at every new subscription. On by default because it costs a few ms and heals everything."""
    deregister: Deregister = "always"
    """`on-success` keeps the instances of containers that ended with 1..127, until they are removed."""
    drain: bool = True
    """Leave when the stop signal is sent, not only when the process is dead."""
    drain_s: float = 60.0
    """A container that ignores its stop signal and still runs after this time comes back."""


class Registrator:
    """The registrator of one Docker engine. Run `run` as a task; it ends only by cancellation."""

    def __init__(
        self,
        docker: Docker,
        registry: Registry,
        *,
        facts: HostFacts,
        settings: Settings | None = None,
        tags: TagsTemplate | str = "",
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._docker = docker
        self._registry = registry
        self._facts = facts
        self._settings = settings or Settings()
        self._tags = tags
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._mapped: dict[str, Mapped] = {}
        """By container id: what every container we know of should have."""
        self._containers: dict[str, Container] = {}
        """As last inspected, to know stop signals and addresses of linked ones."""
        self._kept: dict[str, Mapped] = {}
        """Ended containers whose instances stay (`on-success`)."""
        self._leaving: dict[str, float] = {}
        """Containers that got their stop signal, and when we stop believing that they will end."""
        self._actual: dict[str, Registration] = {}
        """What is registered, as far as we know; read again by every full comparison."""
        self._known = False
        """Whether `_actual` was ever read; before that nothing is compared with it."""
        self._refused: dict[str, Registration] = {}
        """What the registry refused, so that it is not asked for again until it changes."""
        self._holders: dict[str, str] = {}
        """Service id → container id, for the log."""
        self._said: dict[str, tuple[Note, ...]] = {}
        self._clashes: tuple[Clash, ...] = ()
        self._dirty: dict[str, None] = {}
        """Containers to look at, oldest event first. Bounded by the number of containers: ids are unique."""
        self._looking: set[str] = set()
        """Containers whose inspect answer is on its way."""
        self._full = False
        self._stale = False
        """Whether something changed since the last time that everything desired was written."""
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._resync_at: float | None = None
        self._retry_at: float | None = None
        self._failures = 0

    async def run(self) -> None:
        """Follow Docker until cancelled. What is registered stays registered."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(), name="docker.events")
                group.create_task(self._work(), name="docker.reconcile")
        finally:
            await self._docker.close()

    async def ready(self) -> None:
        """Return when the first full comparison has been written."""
        await self._ready.wait()

    def poke(self) -> None:
        """Ask for a full comparison soon (the registry was restored, settings changed …)."""
        self._full = True
        self._wake.set()

    async def deregister_all(self) -> None:
        """Take out everything we own; for a clean goodbye. Call after `run` has ended."""
        for service_id in sorted(await self._registry.registered()):
            await self._registry.deregister(service_id)
            self._actual.pop(service_id, None)
            log.info("removed: %s %s", "-" * 12, service_id)

    # --- events --------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Subscribe, and again whenever the stream ends, from the last event on."""
        since_ns: int | None = None
        failures = 0
        while True:
            try:
                async with aclosing(self._docker.events(since_ns=since_ns)) as events:
                    async for event in events:
                        if event.type == "subscribed":
                            log.info("Listening for Docker events ...")
                            failures = 0
                            self.poke()
                            continue
                        since_ns = max(since_ns or 0, event.time_ns + 1)
                        self._notice(event)
                log.warning(
                    "Docker event stream of %s ended, subscribing again", self._docker.endpoint
                )
            except WaypostError as exc:
                log.log(
                    logging.WARNING if failures == 0 else logging.DEBUG,
                    "Docker events: %s; trying again",
                    exc,
                )
            failures += 1
            await asyncio.sleep(self._backoff_s(failures))

    def _notice(self, event: Event) -> None:
        """Turn one event into what is known at once, and into what the worker has to look at. Never waits."""
        if event.type == "network":
            self._look(event.attributes.get("container", ""))
            return
        container_id = event.actor_id
        if event.action == "kill":
            if self._stops(container_id, event.attributes.get("signal", "")):
                self._leaving[container_id] = self._clock.now() + self._settings.drain_s
                self._drop(container_id)
        elif event.action == "die":
            self._keep_failed(container_id, event.attributes.get("exitCode", ""))
            self._containers.pop(container_id, None)
            self._drop(container_id)
        elif event.action == "pause":
            self._containers.pop(container_id, None)
            self._drop(container_id)
        elif event.action == "destroy":
            self._forget(container_id)
            self._drop(container_id)
        else:
            if event.action == "start":
                self._leaving.pop(container_id, None)
            self._look(container_id)

    def _look(self, container_id: str) -> None:
        if container_id:
            self._dirty[container_id] = None
            self._wake.set()

    def _drop(self, container_id: str) -> None:
        """Take a container's instances out without asking Docker, which is busy with it just now."""
        self._mapped.pop(container_id, None)
        self._stale = True
        if container_id in self._looking:  # an answer from before this event is on its way
            self._dirty[container_id] = None
        for other in self._mapped.values():
            if other.linked_id == container_id:
                self._dirty[other.container_id] = None
        self._wake.set()

    def _forget(self, container_id: str) -> None:
        self._stale = True
        self._mapped.pop(container_id, None)
        self._kept.pop(container_id, None)
        self._containers.pop(container_id, None)
        self._leaving.pop(container_id, None)
        self._said.pop(container_id, None)

    def _stops(self, container_id: str, signal: str) -> bool:
        container = self._containers.get(container_id)
        return (
            self._settings.drain
            and container is not None
            and is_stop_signal(signal, stop_signal=container.stop_signal)
        )

    def _keep_failed(self, container_id: str, exit_code: str) -> None:
        """With `on-success`, keep what a container that failed had; a stopped one has nothing any more."""
        mapped = self._mapped.get(container_id)
        if (
            self._settings.deregister == "on-success"
            and mapped is not None
            and mapped.registrations
            and re.fullmatch(r"[0-9]{1,5}", exit_code)
            and failed(int(exit_code))
        ):
            self._kept[container_id] = mapped
            log.info("kept: %s exited with %s", container_id[:12], exit_code)

    # --- the worker ----------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            await self._rest()
            self._wake.clear()
            self._retry_at = None
            try:
                self._expire_leaving()
                if self._full or _due(self._resync_at, self._clock.now()):
                    await self._compare_all()
                else:
                    await self._take_dirty()
                    await self._apply()
                self._failures = 0
            except WaypostError as exc:
                self._fail(exc)

    async def _rest(self) -> None:
        """Wait for something to do: an event, a retry, a resync, the end of a drain."""
        times = list(self._leaving.values())
        if self._retry_at is not None:
            times.append(self._retry_at)
        elif self._dirty or self._full:
            return
        if self._resync_at is not None:
            times.append(self._resync_at)
        wait_s = max(0.0, min(times) - self._clock.now()) if times else None
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    def _fail(self, exc: WaypostError) -> None:
        """Remember to try again; only the first failure of a row is loud."""
        self._failures += 1
        wait_s = self._backoff_s(self._failures)
        self._retry_at = self._clock.now() + wait_s
        log.log(
            logging.WARNING if self._failures == 1 else logging.DEBUG,
            "registrator: %s; trying again in %.1f s",
            exc,
            wait_s,
        )

    def _backoff_s(self, failures: int) -> float:
        most = min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10))
        return most * self._rng.uniform(0.5, 1.0)

    def _expire_leaving(self) -> None:
        now = self._clock.now()
        for container_id, until in list(self._leaving.items()):
            if now >= until:
                del self._leaving[container_id]
                self._dirty[container_id] = None

    # --- looking -------------------------------------------------------------------------------------------

    async def _take_dirty(self) -> None:
        """Look at every container that an event named, and write what follows after each."""
        while self._dirty:
            container_id = next(iter(self._dirty))
            del self._dirty[container_id]
            try:
                await self._look_at(container_id)
            except Unavailable:
                self._dirty[container_id] = None
                raise
            self._dirty.update(
                (other.container_id, None)
                for other in self._mapped.values()
                if other.linked_id == container_id
            )
            await self._apply()

    async def _look_at(self, container_id: str) -> None:
        """Bring `_mapped` up to date for one container."""
        self._looking.add(container_id)
        try:
            body = await self._docker.inspect_bytes(container_id)
            await self._take(parse_container(body), body)
        except NotFound:
            self._forget(container_id)
        except (Malformed, Rejected) as exc:
            log.error("unable to inspect container: %s %s", container_id[:12], exc)
        finally:
            self._looking.discard(container_id)

    async def _take(self, container: Container, body: bytes) -> None:
        self._containers[container.id] = container
        if not container.serving or container.id in self._leaving:
            self._stale |= self._mapped.pop(container.id, None) is not None
            return
        self._stale |= self._kept.pop(container.id, None) is not None
        mapped = map_container(
            container,
            facts=self._facts,
            settings=self._settings.mapping,
            linked_to=await self._linked(container),
            extra_tags=await self._extra_tags(container, body),
        )
        if self._mapped.get(container.id) != mapped:
            # The same object stays, so that what is unchanged is found by identity.
            self._mapped[container.id] = mapped
            self._stale = True
        if mapped.notes != self._said.get(container.id, ()):
            self._said[container.id] = mapped.notes
            for note in mapped.notes:
                level = logging.WARNING if note.reason == "problem" else logging.INFO
                log.log(level, "%s: %s %s", note.reason, container.id12, note.text)

    async def _linked(self, container: Container) -> Container | None:
        """Return the container whose network this one shares, if it runs."""
        other = container.linked_id
        if not other:
            return None
        found = self._containers.get(other)
        if found is None:
            try:
                found = await self._docker.inspect(other)
            except (NotFound, Malformed, Rejected):
                return None
            self._containers[found.id] = found
        return found if found.serving else None

    async def _extra_tags(self, container: Container, body: bytes) -> tuple[str, ...]:
        if not callable(self._tags):
            return parse_tags(self._tags)
        try:
            # In a thread: a template may fetch something.
            return parse_tags(await asyncio.to_thread(self._tags, json.loads(body)))
        except (WaypostError, ValueError) as exc:
            log.error("-tags: %s %s", container.id12, exc)
            return ()

    async def _compare_all(self) -> None:
        """Look at every container, ask what is registered, write the difference."""
        self._full = False
        first = not self._ready.is_set()
        try:
            keeping = self._settings.deregister == "on-success"
            listed = await self._docker.containers(exited_too=keeping)
            running = [one for one in listed if one.state not in ("exited", "created", "dead")]
            log.log(
                logging.INFO if first else logging.DEBUG,
                "Syncing services on %d containers",
                len(running),
            )
            # Those that share another's network come after it, so that they see its present address.
            running.sort(key=lambda one: one.network_mode.startswith("container:"))
            ids = [one.id for one in running]
            # Those we know and Docker did not list: mostly gone; some started after the list was made.
            ids += [known for known in self._mapped if known not in set(ids)]
            for start in range(0, len(ids), _INSPECT_AT_ONCE):
                await self._look_at_some(ids[start : start + _INSPECT_AT_ONCE])
                if self._known:
                    await self._take_dirty()
            self._prune({one.id for one in listed})
            self._actual = dict(await self._registry.registered())
            self._known = True
            self._refused.clear()
            self._stale = True
            if keeping:
                await self._keep_of_before(listed)
            await self._apply()
        except WaypostError:
            self._full = True
            raise
        resync_s = self._settings.resync_s
        self._resync_at = self._clock.now() + resync_s if resync_s > 0 else None
        self._ready.set()

    async def _look_at_some(self, ids: list[str]) -> None:
        """Inspect several at once; raises Unavailable after all are done."""
        unavailable: list[Unavailable] = []

        async def one(container_id: str) -> None:
            try:
                await self._look_at(container_id)
            except Unavailable as exc:
                unavailable.append(exc)

        async with asyncio.TaskGroup() as group:
            for container_id in ids:
                group.create_task(one(container_id))
        if unavailable:
            raise unavailable[0]

    def _prune(self, listed: set[str]) -> None:
        """Forget containers that are neither listed nor running."""
        for known in list(self._containers):
            if known not in listed and known not in self._mapped and known not in self._leaving:
                self._forget(known)

    async def _keep_of_before(self, listed: Iterable[Summary]) -> None:
        """With `on-success`: what was registered before we started, of containers that failed since."""
        by_name: dict[str, dict[str, Registration]] = {}
        for service_id, registration in self._actual.items():
            name = container_name(service_id, hostname=self._facts.hostname)
            if name:
                by_name.setdefault(name, {})[service_id] = registration
        for one in listed:
            names = [name for name in one.names if name in by_name]
            if (
                one.state != "exited"
                or one.id in self._kept
                or one.id in self._leaving
                or not names
            ):
                continue
            try:
                container = await self._docker.inspect(one.id)
            except (NotFound, Malformed, Rejected):
                continue
            if not container.running and failed(container.exit_code):
                self._containers[one.id] = container
                self._kept[one.id] = Mapped(
                    container_id=one.id,
                    name=names[0],
                    registrations=tuple(by_name[names[0]].values()),
                )

    # --- writing -------------------------------------------------------------------------------------------

    async def _apply(self) -> None:
        """Write the difference between what should be and what is registered.

        Every step is tried; afterwards raises Unavailable if one has to be tried again.
        """
        if not self._known or not self._stale:
            return
        self._stale = False
        everything = [*self._kept.values(), *self._mapped.values()]
        desired, clashes = merge(everything)
        if clashes != self._clashes:
            self._clashes = clashes
            for clash in clashes:
                log.warning(
                    "service id %s is asked for by %s and %s; %s, started last, has it",
                    clash.service_id,
                    clash.loser,
                    clash.winner,
                    clash.winner,
                )
        planned = plan(desired, self._actual)
        self._actual.update(
            (service_id, desired[service_id])
            for service_id in desired.keys() - {step.service_id for step in planned}
        )
        steps = [
            step
            for step in planned
            if step.register is None or self._refused.get(step.service_id) != step.register
        ]
        if not steps:
            return
        holders = {
            registration.service.id: mapped.container_id
            for mapped in sorted(everything, key=lambda one: (one.started_at, one.container_id))
            for registration in mapped.registrations
        }
        owners = self._holders | holders
        unavailable: list[Unavailable] = []
        gate = asyncio.Semaphore(_WRITE_AT_ONCE)

        async def one(step: Step) -> None:
            try:
                async with gate:
                    await self._step(step, owners.get(step.service_id, ""))
            except Unavailable as exc:
                unavailable.append(exc)

        for adding in (True, False):  # new ones come before old ones leave
            async with asyncio.TaskGroup() as group:
                for step in steps:
                    if step.adds is adding:
                        group.create_task(one(step))
        self._holders = {service_id: owners.get(service_id, "") for service_id in self._actual}
        if unavailable:
            self._stale = True
            raise unavailable[0]

    async def _step(self, step: Step, container_id: str) -> None:
        """Write one change and remember that it is so; raises Unavailable."""
        id12 = container_id[:12] or "-" * 12
        try:
            if step.register is not None:
                await self._registry.register(step.register)
                for check in step.register.checks:
                    if check.definition is None:
                        await self._registry.set_health(check)
                again = step.service_id in self._actual
                self._actual[step.service_id] = step.register
                self._refused.pop(step.service_id, None)
                log.info("%s: %s %s", "changed" if again else "added", id12, step.service_id)
            elif step.health:
                for check in step.health:
                    await self._registry.set_health(check)
                    log.info("health: %s %s %s", id12, step.service_id, check.status)
                self._actual[step.service_id] = with_health(
                    self._actual[step.service_id], step.health
                )
            else:
                await self._registry.deregister(step.service_id)
                self._actual.pop(step.service_id, None)
                log.info("removed: %s %s", id12, step.service_id)
        except Unavailable:
            raise
        except WaypostError as exc:
            if step.register is not None:
                self._refused[step.service_id] = step.register
                log.error("register failed: %s %s", step.service_id, exc)
            elif step.health:
                # It knows less than we thought (restarted, changed by somebody): compare everything.
                log.warning("health failed: %s %s", step.service_id, exc)
                self._actual.pop(step.service_id, None)
                self.poke()
            else:
                log.error("deregister failed: %s %s", step.service_id, exc)
                self._actual.pop(step.service_id, None)


def _due(at: float | None, now: float) -> bool:
    return at is not None and now >= at


def failed(exit_code: int) -> bool:
    """Return whether `on-success` keeps the instance: 1..127; from 128 on a signal ended it."""
    return 0 < exit_code & 0xFF < 128


def container_name(service_id: str, *, hostname: str) -> str:
    """Return the container's name of an id such as `host:name:80:udp`, or empty if it is not of this host."""
    match = SERVICE_ID.fullmatch(service_id)
    return match.group(2) if match is not None and match.group(1) == hostname else ""


def with_health(registration: Registration, changed: Iterable[Check]) -> Registration:
    """Return the registration with these checks in place of those with the same id."""
    by_id = {check.check_id: check for check in changed}
    return msgspec.structs.replace(
        registration,
        checks=tuple(by_id.get(check.check_id, check) for check in registration.checks),
    )
