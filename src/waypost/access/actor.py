"""Who asks. Only `access.authn` and the agent itself make actors."""

from __future__ import annotations

from typing import Final

import msgspec

ANONYMOUS: Final = "system:anonymous"
UNAUTHENTICATED: Final = "system:unauthenticated"
AUTHENTICATED: Final = "system:authenticated"
MASTERS: Final = "system:masters"
NODES: Final = "system:nodes"
LOCAL: Final = "waypost:local"
"""Group of whoever talks from the machine itself: loopback addresses and the unix socket."""


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """An identity as every decision sees it. Source: kube `user.Info`."""

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, tuple[str, ...]] = {}
    address: str = ""
    """The IP address the request came from; empty for what is not of the network."""
    origin: str = ""
    """Where the identity comes from, for people: `unix socket, uid 0`, `no credential, from 127.0.0.1`."""


def node_actor(node: str) -> Actor:
    """Return the identity under which the agent of `node` does its own work."""
    return Actor(
        user=f"system:node:{node}",
        groups=(NODES, AUTHENTICATED),
        origin="the agent itself",
    )
