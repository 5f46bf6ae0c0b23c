"""A catalog in memory with blocking queries, for tests of the runner."""

from __future__ import annotations

import asyncio

from waypost.base.errors import Unavailable
from waypost.drivers.render.source import Fetched


class MemorySource:
    """Values by dependency text; every change wakes the waiting queries."""

    def __init__(self, values=None):
        self.values = dict(values or {})
        self.index = 1
        self.down = False
        self.asked = 0
        self._changed = asyncio.Event()

    def set(self, name, value):
        self.values[name] = value
        self.index += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def fetch(self, dependency, *, index, wait_s):
        self.asked += 1
        if self.down:
            raise Unavailable("connection refused")
        while index >= self.index:
            await self._changed.wait()
            if self.down:
                raise Unavailable("connection refused")
        return Fetched(self.index, self.values.get(str(dependency)))
