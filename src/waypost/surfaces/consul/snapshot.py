"""/v1/snapshot. Source: Consul HTTP API, snapshots."""

from __future__ import annotations

from typing import Final

from waypost.access.gate import Attributes
from waypost.base.errors import Rejected
from waypost.surfaces.consul.context import DONE, Context, Snapshots
from waypost.surfaces.http.message import Request, Response

MAX_SNAPSHOT_BYTES: Final = 512 * 2**20
"""The largest file taken; it is held in memory while it is restored, and at most two at once (`http.Limits`)."""

STORE_GROUP: Final = "store.waypost.io"
"""API group of what is as good as everything: who may read or replace the store needs no other right. Roles for the
discovery group do not reach it, whatever their wildcards; `cluster-admin` does."""
_SAVE: Final = Attributes("get", "snapshots", group=STORE_GROUP)
_RESTORE: Final = Attributes("update", "snapshots", group=STORE_GROUP)


class SnapshotRoutes:
    """Handlers of /v1/snapshot."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def _snapshots(self) -> Snapshots:
        if self._context.snapshots is None:
            msg = "this agent does not hold the store; ask a server"
            raise Rejected(msg)
        return self._context.snapshots

    async def save(self, request: Request) -> Response:
        """GET snapshot."""
        self._context.require_datacenter(request)
        self._context.admit(request, _SAVE)
        revision, archive = await self._snapshots().save()
        return Response(
            body=archive,
            content_type="application/x-gzip",
            headers=self._context.reader.meta(revision),
        )

    async def restore(self, request: Request) -> Response:
        """PUT snapshot."""
        self._context.require_datacenter(request)
        self._context.admit(request, _RESTORE)
        await self._snapshots().restore(request.body)
        return DONE
