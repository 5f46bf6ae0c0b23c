"""Files of this machine as a Source: looked at every two seconds, read when size or time has changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from waypost.base.clock import Clock
from waypost.base.errors import NotFound, Rejected
from waypost.drivers.render.dependency import Dependency, FileDependency
from waypost.drivers.render.source import Fetched

_POLL_S: Final = 2.0


class FileSource:
    """Answers FileDependency; the index is made of the file's time and size."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock

    async def fetch(self, dependency: Dependency, *, index: int, wait_s: float) -> Fetched:
        """Return the content once the file differs from `index`, or after `wait_s`. Raises NotFound, Rejected."""
        if not isinstance(dependency, FileDependency):
            raise Rejected(f"{dependency} is no file")
        path = Path(dependency.path)
        end = self._clock.now() + wait_s
        while True:
            found, text = await asyncio.to_thread(_read, path, index)
            if found != index or self._clock.now() >= end:
                if text is None:
                    _, text = await asyncio.to_thread(_read, path, 0)
                return Fetched(found, text)
            await asyncio.sleep(_POLL_S)


def _read(path: Path, index: int) -> tuple[int, str | None]:
    """Return the file's index, and its text if that is another one."""
    try:
        status = path.stat()
        found = max(1, status.st_mtime_ns * 1000 + status.st_size % 1000)
        if found == index:
            return found, None
        return found, path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError as exc:
        raise NotFound(f"stat {path}: no such file or directory") from exc
    except OSError as exc:
        raise Rejected(f"read {path}: {(exc.strerror or str(exc)).lower()}") from exc
