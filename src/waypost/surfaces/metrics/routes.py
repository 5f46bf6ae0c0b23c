"""/metrics: the agent's figures for Prometheus, made at the moment they are asked for.

Nothing is counted twice for this: parts keep their own plain numbers, and a scrape reads them.
Source: Prometheus, exposition formats; Kubernetes, the role `system:monitoring`, which may get this path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from waypost.access.actor import Actor
from waypost.access.gate import Attributes, Gate
from waypost.surfaces.http.message import Peer, Request, Response
from waypost.surfaces.http.router import Route

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

PATH: Final = "/metrics"
_ASKED: Final = Attributes("get", path=PATH)


class MetricsRoutes:
    """The route of `/metrics`. `make_collector` is called at the first scrape: until then its library is not loaded."""

    def __init__(
        self,
        gate: Gate,
        *,
        make_collector: Callable[[], Collector],
        identify: Callable[[Peer], Actor],
    ) -> None:
        self._gate = gate
        self._make_collector = make_collector
        self._identify = identify
        self._render: Callable[[str], tuple[bytes, str]] | None = None

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route(PATH, {"GET": self.scrape})]

    def scrape(self, request: Request) -> Response:
        """Answer all figures as text, or as OpenMetrics to a client that prefers it."""
        identity = request.identity
        actor = identity.actor if identity is not None else None
        self._gate.admit(actor or self._identify(request.peer), _ASKED)
        if self._render is None:
            self._render = _renderer(self._make_collector())
        body, content_type = self._render(request.headers.get("accept") or "")
        return Response(
            body=body, content_type=content_type, headers=(("Cache-Control", "no-store"),)
        )


def _renderer(collector: Collector) -> Callable[[str], tuple[bytes, str]]:
    """Return what makes (body, content type) for an `Accept` header: the collector's figures and the process's own."""
    from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)

    def render(accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    return render
