"""The routes of the cluster port that form and change the cluster: a message in, a message out.

Errors go back as their text with the status of the table and their code in a header, so that the calling machine raises
what was raised here.
"""

from __future__ import annotations

from typing import Final, Protocol

from waypost.base.errors import WaypostError
from waypost.cluster.answers import Reply
from waypost.cluster.messages import AUTHORITY_PATH, CONTENT_TYPE, MAX_BYTES, Path
from waypost.cluster.transport import ERROR_FIELD, MAC_FIELD
from waypost.cluster.trust import Caller
from waypost.surfaces.cluster.caller import Identifies, caller_of
from waypost.surfaces.http.message import Request, Response, text_response
from waypost.surfaces.http.router import BodyLimit, Route
from waypost.surfaces.http.status import status_of


class Answers(Identifies, Protocol):
    """What the routes need of the cluster."""

    async def answer(self, path: str, body: bytes, *, caller: Caller, shown_mac: str) -> Reply:
        """Answer a message of another machine. Raises errors of the tree."""
        ...

    def authority_pem(self) -> bytes:
        """Return the certificate of the cluster's authority. Raises NotFound before there is one."""
        ...


_LIMIT: Final = BodyLimit(MAX_BYTES)


def error_answer(_: Request, error: WaypostError) -> Response:
    """Return an error as machines tell each other; a `Route`'s `on_error` for every route of the cluster port."""
    return text_response(status_of(error), str(error), headers=((ERROR_FIELD, type(error).code),))


class ClusterRoutes:
    """`/cluster/v1/…` of forming, joining and membership."""

    def __init__(self, cluster: Answers) -> None:
        self._cluster = cluster

    def routes(self) -> list[Route]:
        """Return the routes for the router of the cluster port."""
        return [
            Route(AUTHORITY_PATH, {"GET": self._authority}, on_error=error_answer),
            *(
                Route(str(path), {"POST": self._answer}, limit=_LIMIT, on_error=error_answer)
                for path in Path
            ),
        ]

    def _authority(self, request: Request) -> Response:
        del request
        pem = self._cluster.authority_pem()
        return Response(body=pem, content_type="application/x-pem-file", vary=False)

    async def _answer(self, request: Request) -> Response:
        request.may_interrupt = True
        reply = await self._cluster.answer(
            request.path,
            request.body,
            caller=caller_of(request, self._cluster),
            shown_mac=request.headers.get(MAC_FIELD) or "",
        )
        return Response(
            body=reply.body,
            content_type=CONTENT_TYPE,
            headers=((MAC_FIELD, reply.mac),) if reply.mac else (),
            vary=False,
        )
