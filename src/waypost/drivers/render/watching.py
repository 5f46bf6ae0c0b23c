"""Watching dependencies: one blocking query each, repeated for ever, with retries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from waypost.base.clock import Clock
from waypost.base.duration import format_ns
from waypost.base.errors import NotFound, WaypostError
from waypost.drivers.render.dependency import DatacentersDependency, Dependency, FileDependency
from waypost.drivers.render.file_source import FileSource
from waypost.drivers.render.records import CatalogNode
from waypost.drivers.render.settings import Retry
from waypost.drivers.render.source import Source
from waypost.gotemplate.values import NilPointer

log = logging.getLogger(__name__)

MANY: Final = 128
"""More dependencies than this are worth a warning: each is one open query."""
_DATACENTERS_S: Final = 15.0
_UNINDEXED_S: Final = 1.0


class Watcher:
    """Keeps the newest value of every dependency that is asked for.

    `known` is what has been fetched. `changed` is told each dependency whose value is new; `failed` each one whose
    retries are used up, with the text; the watcher goes on trying all the same.
    """

    def __init__(
        self,
        source: Source,
        *,
        clock: Clock,
        retry: Retry,
        wait_s: float,
        changed: Callable[[Dependency], None],
        failed: Callable[[Dependency, str], None],
    ) -> None:
        self._source = source
        self._files = FileSource(clock=clock)
        self._retry = retry
        self._wait_s = wait_s
        self._changed = changed
        self._failed = failed
        self._known: dict[Dependency, Any] = {}
        self._tasks: dict[Dependency, asyncio.Task[None]] = {}

    @property
    def known(self) -> Mapping[Dependency, Any]:
        """Return what has been fetched."""
        return self._known

    def snapshot(self) -> dict[Dependency, Any]:
        """Return a copy that another thread may read."""
        return dict(self._known)

    def want(self, wanted: Iterable[Dependency], tasks: asyncio.TaskGroup) -> None:
        """Watch exactly these: start what is new, forget what is not among them."""
        keep = set(wanted)
        for dependency in [each for each in self._tasks if each not in keep]:
            self._tasks.pop(dependency).cancel()
            self._known.pop(dependency, None)
        for dependency in keep:
            if dependency not in self._tasks:
                name = f"render.watch {dependency}"
                self._tasks[dependency] = tasks.create_task(self._watch(dependency), name=name)
        if len(keep) > MANY:
            log.warning("(runner) watching %d dependencies, each with its own query", len(keep))

    def stop(self) -> None:
        """Stop all watches."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _watch(self, dependency: Dependency) -> None:
        index = 0
        attempt = 0
        is_file = isinstance(dependency, FileDependency)
        source = self._files if is_file else self._source
        while True:
            try:
                fetched = await source.fetch(dependency, index=index, wait_s=self._wait_s)
            except WaypostError as exc:
                attempt += 1
                await asyncio.sleep(self._pause_s(dependency, exc, attempt))
                continue
            attempt = 0
            # An index that goes back means another past: begin again. Source: Consul, blocking queries.
            index = fetched.index if is_file or fetched.index >= index else 0
            self._keep(dependency, fetched.value)
            if fetched.index == 0:  # what the source cannot block on
                is_slow = isinstance(dependency, DatacentersDependency)
                await asyncio.sleep(_DATACENTERS_S if is_slow else _UNINDEXED_S)

    def _keep(self, dependency: Dependency, value: Any) -> None:
        if dependency in self._known and self._known[dependency] == value:
            return
        self._known[dependency] = value
        if isinstance(value, CatalogNode) and isinstance(value.node, NilPointer):
            name = getattr(dependency, "name", "")
            log.warning('%s: no node exists with the name "%s"', dependency, name)
        self._changed(dependency)

    def _pause_s(self, dependency: Dependency, exc: WaypostError, attempt: int) -> float:
        text = f"{dependency}: {exc}"
        is_file = isinstance(dependency, FileDependency) and isinstance(exc, NotFound)
        pause = None if is_file else self._retry.delay_s(attempt)
        if pause is not None:
            shown = format_ns(int(pause * 1e9))
            log.warning('(view) %s (retry attempt %d after "%s")', text, attempt, shown)
            return pause
        # Told once; a watcher that has given up would never see the catalog come back.
        if attempt == 1 or is_file or attempt == self._retry.attempts + 1:
            log.error("(view) %s (exceeded maximum retries)", text)
            self._failed(dependency, text)
        return self._retry.max_backoff_s or self._retry.pause_s(attempt)
