"""A session: what a lock is held by. Source: Consul HTTP API, sessions."""

from __future__ import annotations

import msgspec


class Session(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One session of one node. Durations in nanoseconds; `ttl` as the client wrote it (`"15s"`, empty = none)."""

    id: str
    node: str
    name: str = ""
    behavior: str = "release"
    lock_delay_ns: int = 15 * 10**9
    ttl: str = ""
    node_checks: tuple[str, ...] = ()
    service_checks: tuple[str, ...] | None = None
    checks: tuple[str, ...] = ()
    """Check ids given the old way (`Checks`), watched like the others."""
    create_index: int = 0
    modify_index: int = 0
