"""Who calls the cluster port."""

from __future__ import annotations

from typing import Protocol

from waypost.cluster.trust import Caller, NodeCaller, ServerCaller, Stranger
from waypost.surfaces.http.message import Request

__all__ = ["Caller", "NodeCaller", "ServerCaller", "Stranger", "caller_of"]


class Identifies(Protocol):
    """Knows the authorities of the cluster; `Cluster` does."""

    def identify(self, chain_der: tuple[bytes, ...]) -> Caller:
        """Return who shows these certificates."""
        ...


def caller_of(request: Request, cluster: Identifies) -> Caller:
    """Return who sends a request: by the client certificate of its connection and nothing else. Never raises."""
    return cluster.identify(request.peer.certificates_der)
