"""/v1/event. Source: Consul HTTP API, events."""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec

from waypost.base.errors import Malformed
from waypost.model.event import UserEvent
from waypost.surfaces.consul.context import Context
from waypost.surfaces.consul.reading import Options, parse_options
from waypost.surfaces.http.message import Answer, Request, Response


class EventObject(msgspec.Struct, frozen=True):
    """An event as Consul shows it."""

    ID: str
    Name: str
    Payload: bytes | None
    NodeFilter: str
    ServiceFilter: str
    TagFilter: str
    Version: int
    LTime: int


def _shape(event: UserEvent) -> EventObject:
    return EventObject(
        event.id,
        event.name,
        event.payload or None,
        event.node_filter,
        event.service_filter,
        event.tag_filter,
        1,
        event.time,
    )


class EventRoutes:
    """Handlers of /v1/event."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._events = context.domain.events

    async def fire(self, request: Request) -> Response:
        """PUT fire/:name."""
        name, query = request.rest, request.query
        if not name:
            msg = "Missing name"
            raise Malformed(msg)
        self._context.require_datacenter(request)
        event = UserEvent(
            id="",
            name=name,
            payload=request.body,
            node_filter=query.get("node"),
            service_filter=query.get("service"),
            tag_filter=query.get("tag"),
        )
        fired = await self._events.fire(self._context.actor(request), event)
        return self._context.json(request, _shape(fired))

    def list(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET list."""
        options = parse_options(request)
        if options.index:
            request.may_interrupt = True
            return self._wait(request, options)
        return self._list(request)

    async def _wait(self, request: Request, options: Options) -> Answer:
        self._events.list(self._context.actor(request))
        await self._events.wait(
            name=request.query.get("name"),
            index=options.index,
            at_most_s=self._context.reader.wait_limit(options),
        )
        return self._list(request)

    def _list(self, request: Request) -> Response:
        found = self._events.list(self._context.actor(request), name=request.query.get("name"))
        index = found[-1].index if found else 1
        return self._context.json(
            request,
            [_shape(event) for event in found],
            headers=(("X-Consul-Index", str(index)),),
        )
