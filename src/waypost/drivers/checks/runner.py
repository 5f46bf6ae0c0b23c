"""Runs the checks of this node: one task a check, started and ended as the catalog says.

The catalog is the list of what to run (every check of this node that has a definition); a change of it wakes the
runner, which compares. The first run of a check comes at once, so a new instance is in service as soon as it answers;
later runs are spread by jitter. TTL checks have no task of their own: one timer watches them all.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.base.clock import Clock
from waypost.base.errors import Unavailable, WaypostError
from waypost.domain.agent import LocalAgent
from waypost.drivers.checks.alias import alias_result
from waypost.drivers.checks.probes import (
    DockerExec,
    HttpProber,
    Result,
    probe_docker,
    probe_script,
    probe_tcp,
)
from waypost.drivers.checks.thresholds import Streak, judge
from waypost.model.catalog import CRITICAL, Check, CheckDefinition, fold
from waypost.state.view import View

log = logging.getLogger(__name__)

MIN_INTERVAL_S: Final = 1.0
REAP_PERIOD_S: Final = 30.0
OUTPUT_PERIOD_S: Final = 300.0
_CONCURRENT_PROBES: Final = 64


async def _no_docker(_container: str, _argv: tuple[str, ...]) -> tuple[int, bytes]:
    msg = "no Docker engine is reachable"
    raise Unavailable(msg)


class Scripts(msgspec.Struct, frozen=True, kw_only=True):
    """Whose checks may run programs. Source: Consul, enable_script_checks and enable_local_script_checks."""

    everywhere: bool = False
    files: bool = False
    """Those of configuration files alone."""

    def allow(self, check: Check) -> bool:
        """Return whether the programs of `check` may be run.

        Asked at every run and not only at the registration: a check may have come another way (a container's label, an
        earlier start that allowed more).
        """
        return self.everywhere or (self.files and check.owner == "config")


class CheckRunner:
    """Owns every probe of this node. `run()` until cancelled."""

    def __init__(
        self,
        agent: LocalAgent,
        view: View,
        *,
        actor: Actor,
        clock: Clock,
        rng: random.Random,
        scripts: Scripts,
        docker_exec: DockerExec = _no_docker,
    ) -> None:
        self._agent = agent
        self._view = view
        self._actor = actor
        self._clock = clock
        self._rng = rng
        self._scripts = scripts
        self._docker_exec = docker_exec
        self._http = HttpProber()
        self._slots = asyncio.Semaphore(_CONCURRENT_PROBES)
        self._running: dict[str, tuple[CheckDefinition, asyncio.Task[None]]] = {}
        self._critical_since: dict[str, float] = {}

    async def run(self) -> None:
        """Run checks until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch_ttls(), name="checks.ttl")
                tasks.create_task(self._reap(), name="checks.reap")
                tasks.create_task(self._flush(), name="checks.flush")
                topic = ("node", fold(self._agent.local.node))
                while True:
                    self._reconcile(tasks)
                    await self._view.topics.wait([topic], at_most_s=60.0)
        finally:
            await self._http.close()

    def _mine(self) -> dict[str, Check]:
        return {
            check_id: check
            for check_id, check in self._view.node_checks(self._agent.local.node).items()
            if check.definition is not None
        }

    def _reconcile(self, tasks: asyncio.TaskGroup) -> None:
        wanted = self._mine()
        for check_id, (running, task) in list(self._running.items()):
            check = wanted.get(check_id)
            if check is None or check.definition != running or task.done():
                task.cancel()
                del self._running[check_id]
        for check_id, check in wanted.items():
            definition = check.definition
            assert definition is not None
            if definition.ttl_ns:
                self._agent.heartbeats.setdefault(check_id, self._clock.now())
            elif check_id not in self._running:
                task = tasks.create_task(
                    self._follow(check_id, definition), name=f"check {check_id}"
                )
                self._running[check_id] = (definition, task)
        for check_id in list(self._agent.heartbeats):
            if check_id not in wanted:
                del self._agent.heartbeats[check_id]
        self._note_critical(wanted)

    def _note_critical(self, wanted: dict[str, Check]) -> None:
        now = self._clock.now()
        for check_id in list(self._critical_since):
            if check_id not in wanted or wanted[check_id].status != CRITICAL:
                del self._critical_since[check_id]
        for check_id, check in wanted.items():
            if check.status == CRITICAL:
                self._critical_since.setdefault(check_id, now)

    async def _follow(self, check_id: str, definition: CheckDefinition) -> None:
        if definition.alias_service or definition.alias_node:
            await self._follow_alias(check_id, definition)
            return
        interval = max(definition.interval_ns / 1e9, MIN_INTERVAL_S)
        streak = Streak()
        while True:
            async with self._slots:
                result = await self._probe_safely(check_id, definition)
            check = self._view.check(self._agent.local.node, check_id)
            if check is None:
                return
            streak, status = judge(
                streak,
                shown=check.status,
                result=result.status,
                success_before_passing=definition.success_before_passing,
                failures_before_critical=definition.failures_before_critical,
            )
            await self._report(check_id, Result(status, result.output))
            # The jitter keeps many checks of one start apart, without ever being later than the interval allows.
            await asyncio.sleep(interval * self._rng.uniform(0.9, 1.0))

    async def _probe_safely(self, check_id: str, definition: CheckDefinition) -> Result:
        try:
            return await self._probe(check_id, definition)
        except Exception as error:  # a fault of one probe must not end the others
            log.exception("check %r could not be run", check_id)
            return Result(CRITICAL, f"check could not be run: {type(error).__name__}: {error}")

    async def _probe(self, check_id: str, definition: CheckDefinition) -> Result:
        # The first of these is used when several are given, as in Consul.
        if definition.grpc:
            return Result(CRITICAL, "gRPC checks are not available in this version")
        if definition.http:
            return await self._http.probe(definition)
        if definition.tcp:
            return await probe_tcp(definition)
        if definition.docker_container_id:
            return await self._run_program(
                check_id, lambda: probe_docker(definition, self._docker_exec)
            )
        return await self._run_program(check_id, lambda: probe_script(definition))

    async def _run_program(self, check_id: str, probe: Callable[[], Awaitable[Result]]) -> Result:
        check = self._view.check(self._agent.local.node, check_id)
        if check is None or not self._scripts.allow(check):
            return Result(
                CRITICAL,
                "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' to true",
            )
        return await probe()

    async def _follow_alias(self, check_id: str, definition: CheckDefinition) -> None:
        node = definition.alias_node or self._agent.local.node
        topic = ("node", fold(node))
        while True:
            check = self._view.check(self._agent.local.node, check_id)
            if check is None:
                return
            exists = definition.alias_service in self._view.node_services(node)
            checks = self._view.node_checks(node).values()
            await self._report(check_id, alias_result(check, checks, target_exists=exists))
            await self._view.topics.wait([topic], at_most_s=60.0)

    async def _report(self, check_id: str, result: Result) -> None:
        try:
            await self._agent.report(
                self._actor, check_id, status=result.status, output=result.output
            )
        except WaypostError as error:
            log.warning("result of check %r could not be stored: %s", check_id, error)

    async def _watch_ttls(self) -> None:
        while True:
            now = self._clock.now()
            next_at = now + 60.0
            for check_id, check in self._mine().items():
                definition = check.definition
                assert definition is not None
                if not definition.ttl_ns:
                    continue
                due = self._agent.heartbeats.get(check_id, now) + definition.ttl_ns / 1e9
                if due > now:
                    next_at = min(next_at, due)
                elif check.status != CRITICAL:
                    newest = self._agent.checks(self._actor).get(check_id, check).output
                    output = "TTL expired"
                    if newest:
                        output += f" (last output before timeout follows): {newest}"
                    log.warning("check %r missed its TTL", check_id)
                    await self._report(check_id, Result(CRITICAL, output))
            self._agent.beat.clear()
            try:
                async with asyncio.timeout(max(0.01, next_at - self._clock.now())):
                    await self._agent.beat.wait()
            except TimeoutError:
                continue

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(REAP_PERIOD_S)
            now = self._clock.now()
            self._note_critical(self._mine())
            for check_id, since in list(self._critical_since.items()):
                check = self._view.check(self._agent.local.node, check_id)
                if check is None or check.definition is None or not check.service_id:
                    continue
                after_s = check.definition.deregister_critical_service_after_ns / 1e9
                if after_s and now - since >= max(after_s, 60.0):
                    log.warning(
                        "service %r was critical for %.0f s and is deregistered",
                        check.service_id,
                        now - since,
                    )
                    try:
                        await self._agent.deregister_service(self._actor, check.service_id)
                    except WaypostError as error:
                        log.warning("deregistering %r failed: %s", check.service_id, error)

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(OUTPUT_PERIOD_S * self._rng.uniform(0.9, 1.1))
            try:
                await self._agent.flush_outputs()
            except WaypostError as error:
                log.warning("outputs of checks could not be stored: %s", error)
