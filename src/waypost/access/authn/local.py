"""Identities that need no secret: the peer of the unix socket, and nobody in particular.

Anonymous callers on the machine's own loopback addresses are in the group `waypost:local`, because programs on the
machine register themselves there as they do with Consul.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from waypost.access.actor import ANONYMOUS, AUTHENTICATED, LOCAL, MASTERS, UNAUTHENTICATED, Actor


@lru_cache(maxsize=4096)
def anonymous(address: str) -> Actor:
    """Return the actor of a request without a credential that comes from `address` (without port)."""
    groups: tuple[str, ...] = (UNAUTHENTICATED,)
    if is_loopback(address):
        groups += (LOCAL,)
    return Actor(user=ANONYMOUS, groups=groups, address=address, origin="no credential")


@lru_cache(maxsize=256)
def unix_peer(uid: int, owner_uid: int) -> Actor:
    """Return the actor of a unix-socket peer: root and the agent's own user are the machine's operator."""
    operator = uid in (0, owner_uid)
    return Actor(
        user=f"unix:{uid}",
        groups=(AUTHENTICATED, LOCAL, MASTERS) if operator else (AUTHENTICATED, LOCAL),
        origin=f"unix socket, uid {uid}",
    )


def is_loopback(address: str) -> bool:
    """Return whether `address` is one of the machine's loopback addresses."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
