"""Which engines there are, and how each is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from random import SystemRandom
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


def _etcd(rest: str, clock: Clock) -> Engine:
    """One that nobody gave a name writes under a new one each time; servers of a cluster make theirs themselves."""
    # Loaded by who has an etcd.
    from waypost.store.etcd import EtcdEngine
    from waypost.store.etcd.endpoints import check_url

    endpoints = [check_url(url.strip()) for url in rest.split(",") if url.strip()]
    if not endpoints:
        msg = "store etcd: needs endpoints, as in etcd:https://10.0.0.1:2379,https://10.0.0.2:2379"
        raise Malformed(msg)
    rng = SystemRandom()
    return EtcdEngine(endpoints, process_id=f"{rng.getrandbits(64):016x}", clock=clock, rng=rng)


ENGINES: Mapping[str, Callable[[str, Clock], Engine]] = MappingProxyType(
    {"etcd": _etcd, "memory": _memory, "sqlite": _sqlite}
)
"""Scheme to constructor; the constructor gets what follows the scheme's colon."""


def make_engine(location: str, *, clock: Clock) -> Engine:
    """Return the engine of a location: `memory`, `sqlite:/var/lib/waypost/store` or `etcd:http://a:2379,http://b:2379`.

    It is not open yet. An etcd that wants client certificates needs an EtcdEngine of its own (`tls=`).

    Raises Malformed for an unknown scheme or a location the engine cannot have.
    """
    scheme, _, rest = location.partition(":")
    make = ENGINES.get(scheme)
    if make is None:
        msg = f"store {location!r}: unknown engine {scheme!r}, expected one of {', '.join(sorted(ENGINES))}"
        raise Malformed(msg)
    return make(rest, clock)
