"""Which engines there are, and how each is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from waypost.base.clock import Clock
from waypost.base.errors import Malformed
from waypost.store.engine import Engine
from waypost.store.memory import MemoryEngine
from waypost.store.sqlite import SqliteEngine


def _memory(rest: str, clock: Clock) -> Engine:
    if rest:
        msg = f"store memory:{rest}: the memory engine takes no location"
        raise Malformed(msg)
    return MemoryEngine(clock)


def _sqlite(rest: str, clock: Clock) -> Engine:
    if not rest:
        msg = "store sqlite: needs a directory, as in sqlite:/var/lib/waypost/store"
        raise Malformed(msg)
    return SqliteEngine(Path(rest), clock=clock)


ENGINES: Mapping[str, Callable[[str, Clock], Engine]] = MappingProxyType(
    {"memory": _memory, "sqlite": _sqlite}
)
"""Scheme to constructor; the constructor gets what follows the scheme's colon."""


def make_engine(location: str, *, clock: Clock) -> Engine:
    """Return the engine of a location: `memory`, or `sqlite:/var/lib/waypost/store`. It is not open yet.

    Raises Malformed for an unknown scheme or a location the engine cannot have.
    """
    scheme, _, rest = location.partition(":")
    make = ENGINES.get(scheme)
    if make is None:
        msg = f"store {location!r}: unknown engine {scheme!r}, expected one of {', '.join(sorted(ENGINES))}"
        raise Malformed(msg)
    return make(rest, clock)
