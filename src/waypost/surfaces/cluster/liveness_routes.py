"""The route of the cluster port on which agents say that they are there."""

from __future__ import annotations

from typing import Final

from waypost.base.errors import Forbidden
from waypost.cluster.liveness import PATH, Liveness
from waypost.cluster.messages import CONTENT_TYPE
from waypost.surfaces.cluster.caller import Identifies, NodeCaller, ServerCaller, caller_of
from waypost.surfaces.cluster.routes import error_answer
from waypost.surfaces.http.message import Request, Response
from waypost.surfaces.http.router import BodyLimit, Route

_LIMIT: Final = BodyLimit(1 << 20)


class LivenessRoutes:
    """`/cluster/v1/beat`."""

    def __init__(self, liveness: Liveness, cluster: Identifies) -> None:
        self._liveness = liveness
        self._cluster = cluster

    def routes(self) -> list[Route]:
        """Return the routes for the router of the cluster port."""
        return [Route(PATH, {"POST": self._beat}, limit=_LIMIT, on_error=error_answer)]

    async def _beat(self, request: Request) -> Response:
        request.may_interrupt = True
        match caller_of(request, self._cluster):
            case ServerCaller():
                node = None
            case NodeCaller(node):
                pass
            case _:
                msg = "beats are taken from machines of this cluster only"
                raise Forbidden(msg)
        body = await self._liveness.receive(request.body, node=node)
        return Response(body=body, content_type=CONTENT_TYPE, vary=False)
