"""A watch as a stream of JSON lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from waypost.domain.object import Event
from waypost.surfaces.kube.answers import Form
from waypost.wire.kube.resources import Resource
from waypost.wire.kube.table import partial, render
from waypost.wire.kube.values import JsonObject, encode_json


async def lines(
    events: AsyncGenerator[Event], form: Form, *, resource: Resource, wall: Callable[[], float]
) -> AsyncGenerator[bytes]:
    """Yield each event as one line, its object in the form that was asked for."""
    first = True
    async with aclosing(events):
        async for event in events:
            value = event.object
            if event.type != "ERROR":
                value = _shown(event, form, resource=resource, now_s=wall(), columns=first)
                first = False
            yield encode_json({"type": event.type, "object": value}) + b"\n"


def _shown(
    event: Event, form: Form, *, resource: Resource, now_s: float, columns: bool
) -> JsonObject:
    value = event.object
    if form.wanted.convert == "Table":
        rows = [] if event.type == "BOOKMARK" else [value]
        return render(
            resource,
            rows,
            now_s=now_s,
            metadata={"resourceVersion": value["metadata"]["resourceVersion"]},
            include_object=form.include_object,
            columns=columns,
            version=form.wanted.version,
        )
    if form.wanted.convert.startswith("PartialObjectMetadata"):
        return partial(value, version=form.wanted.version)
    return value
