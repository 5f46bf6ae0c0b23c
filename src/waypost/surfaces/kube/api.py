"""The kube-style API as routes for a router.

Every request goes the same way: who is it, may they, what is addressed, do it. Errors become Status documents.
Source: Kubernetes API concepts; answers recorded from kube-apiserver 1.20.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable

import msgspec

from waypost.access.gate import Undecided
from waypost.base.clock import Clock
from waypost.base.errors import WaypostError
from waypost.domain.object import Objects
from waypost.surfaces.http.message import Request, Response
from waypost.surfaces.http.router import ANY, BodyLimit, Route
from waypost.surfaces.kube import answers
from waypost.surfaces.kube.access import Access, Caller, admit
from waypost.surfaces.kube.answers import Plain
from waypost.surfaces.kube.documents import ISSUER_PATHS, DocumentRoutes
from waypost.surfaces.kube.objects import ObjectRoutes
from waypost.surfaces.kube.reviews import ReviewRoutes
from waypost.surfaces.kube.target import parse_target, verb_of
from waypost.wire.kube.resources import REVIEW
from waypost.wire.kube.status import method_not_allowed

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 3 * 2**20
"""As in the original."""
_EXACT = (
    "/api", "/apis", "/healthz", "/livez", "/readyz", "/version", "/openapi/v2", "/openapi/v3",
)  # fmt: skip
_PREFIXES = ("/api/", "/apis/", "/healthz/", "/livez/", "/readyz/", "/version/", "/openapi/")


def is_kube(path: str) -> bool:
    """Return whether a decoded path is one of this surface."""
    return path in _EXACT or path in ISSUER_PATHS or path.startswith(_PREFIXES)


class KubeApi:
    """Holds what the routes need."""

    def __init__(
        self,
        objects: Objects,
        access: Access,
        *,
        version: str,
        clock: Clock,
        rng: random.Random,
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`version` is waypost's own; `is_ready` tells whether the store answers."""
        self._access = access
        self._catalog = objects.catalog
        self._rng = rng
        self._objects = ObjectRoutes(objects, clock=clock, rng=rng)
        self._reviews = ReviewRoutes(objects, access, clock=clock, rng=rng)
        self._documents = DocumentRoutes(
            objects.catalog,
            version=version,
            issuer="" if access.issuer is None else access.issuer.issuer,
            token_keys=access.token_keys,
            external_address=access.external_address,
            jwks_uri=access.jwks_uri,
            is_ready=is_ready,
        )

    def routes(self) -> list[Route]:
        """Return every route of this surface."""
        limit = BodyLimit(MAX_BODY_BYTES, _too_large)
        return [
            Route(
                path,
                {ANY: self._answer},
                is_prefix=path.endswith("/"),
                limit=limit,
                on_error=self._failed,
            )
            for path in (*_EXACT, *ISSUER_PATHS, *_PREFIXES)
        ]

    async def _answer(self, request: Request) -> Response:
        identity = request.identity
        try:
            caller = await admit(request, self._access)
            response = await self._serve(request, caller)
        except Undecided:  # the guard asks the webhook, and then us again
            raise
        except WaypostError as error:
            response = self._failed(request, error)
        return self._marked(response, warning="" if identity is None else identity.warning)

    def _failed(self, request: Request, error: WaypostError) -> Response:
        response = answers.failed(error)
        if response.status >= 500:
            log.warning("%s: %d %s", request.head.loggable(), response.status, error)
        return response

    def _marked(self, response: Response, *, warning: str) -> Response:
        marks = [("Audit-Id", str(uuid.UUID(int=self._rng.getrandbits(128), version=4)))]
        if warning:
            marks.append(("Warning", answers.warning_text(warning)))
        return msgspec.structs.replace(response, headers=(*marks, *response.headers))

    async def _serve(self, request: Request, caller: Caller) -> Response:
        if caller.asked.path:
            return self._documents.answer(request)
        path = request.path
        group = caller.asked.group
        if group not in self._catalog.groups():
            raise Plain(404, "404 page not found\n")
        target = parse_target(path, catalog=self._catalog)
        if request.method == "HEAD":
            raise method_not_allowed()
        verb = verb_of(target, request.method)
        if target.resource.verbs == REVIEW or target.subresource == "token":
            return await self._reviews.answer(request, target, caller.actor)
        return await self._objects.answer(request, target, verb, caller.actor)


def _too_large(size_bytes: int, max_bytes: int) -> str:
    return f"Request entity too large: limit is {max_bytes}"
