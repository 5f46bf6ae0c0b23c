"""User events: fired once, remembered for a while, never part of the state.

Source: Consul HTTP API, events. An event is delivered to the agents whose node and services match its filters; each
agent remembers the last 256 that it was delivered.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import Admission
from waypost.access.gate import Attributes, Gate
from waypost.base.errors import Malformed, Rejected
from waypost.domain.reviewing import reviewed
from waypost.model.event import UserEvent
from waypost.state.state import State
from waypost.state.view import View
from waypost.wire.consul.regex import compile_regex

KEPT: Final = 256
MAX_EVENT_BYTES: Final = 512
_ENVELOPE_BYTES: Final = 96
"""What Consul's encoding adds to an event without filters; its limit counts the encoded event."""


def check_event(event: UserEvent) -> None:
    """Refuse an event that cannot be fired. Raises Rejected in Consul's words."""
    for kind in ("node", "service", "tag"):
        try:
            compile_regex(getattr(event, f"{kind}_filter"))
        except Malformed as error:
            msg = f"Invalid {kind} filter: {error}"
            raise Rejected(msg) from error
    if event.tag_filter and not event.service_filter:
        msg = "Cannot provide tag filter without service filter"
        raise Rejected(msg)
    filters = (event.node_filter, event.service_filter, event.tag_filter)
    size = _ENVELOPE_BYTES + 2 * len(event.name.encode()) + len(event.payload)
    size += sum(len(text.encode()) + 4 for text in filters if text)
    if size > MAX_EVENT_BYTES:
        msg = (
            '1 error occurred:\n\t* error broadcasting event to segment "": user event exceeds '
            f"configured limit of {MAX_EVENT_BYTES} bytes before encoding\n\n"
        )
        raise Rejected(msg)


def concerns(event: UserEvent, view: View, *, node: str) -> bool:
    """Return whether an event's filters match a node and one of its services."""
    if event.node_filter and not compile_regex(event.node_filter).search(node):
        return False
    if not event.service_filter:
        return True
    name = compile_regex(event.service_filter)
    tag = compile_regex(event.tag_filter)
    return any(
        name.search(service.name)
        and (not event.tag_filter or any(tag.search(text) for text in service.tags))
        for service in view.node_services(node).values()
    )


class Events:
    """The verbs of events for one agent."""

    def __init__(
        self,
        state: State,
        gate: Gate,
        *,
        node: str,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
        admission: Admission | None = None,
    ) -> None:
        self._state = state
        self._admission = admission
        self._gate = gate
        self._node = node
        self._new_id = new_id
        self._kept: deque[UserEvent] = deque(maxlen=KEPT)
        self._time = 1
        self._waiters: set[asyncio.Future[None]] = set()

    async def fire(self, actor: Actor, event: UserEvent) -> UserEvent:
        """Fire an event; its `id` is made here. Raises Forbidden, Rejected."""
        self._gate.admit(actor, Attributes("create", "events", event.name))
        check_event(event)
        sent = event
        event = await reviewed(self._admission, actor, lambda admits: admits.record(sent, None))
        if event is not sent:
            check_event(event)
        fired = msgspec.structs.replace(event, id=str(self._new_id()), time=0)
        self.deliver(fired)
        return fired

    def deliver(self, event: UserEvent) -> None:
        """Take in an event if it concerns this agent."""
        self._time += 1
        if not concerns(event, self._state.view, node=self._node):
            return
        self._kept.append(msgspec.structs.replace(event, time=self._time))
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def list(self, actor: Actor, *, name: str = "") -> Sequence[UserEvent]:
        """Return the kept events, oldest first. Raises Forbidden."""
        self._gate.admit(actor, Attributes("list", "events"))
        return [event for event in self._kept if not name or event.name == name]

    async def wait(self, *, name: str = "", index: int, at_most_s: float) -> None:
        """Return when the newest event of `name` is not the one of `index` any more, or after `at_most_s`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + at_most_s
        while True:
            left = deadline - loop.time()
            newest = next((e for e in reversed(self._kept) if not name or e.name == name), None)
            if (newest.index if newest is not None else 1) != index or left <= 0:
                return
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait((waiter,), timeout=left)
            finally:
                self._waiters.discard(waiter)
