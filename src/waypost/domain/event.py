"""User events: fired once, remembered for a while, never part of the state.

An event is delivered to the agents whose node and services match its filters; each agent remembers the last 256 that
it was delivered.

In a cluster an event travels as a short-lived entry of the store, which every agent follows anyway. Promise: once
`fire` has returned, every agent that runs then, and every one that was cut off and follows the store again within
`SHARED_S` and before 256 newer events, is delivered the event exactly once, all in the same order; an agent that starts
later is not. Consul's gossip promises less.

Source: Consul HTTP API, events.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import Admission
from waypost.access.gate import Attributes, Gate
from waypost.base.errors import Malformed, Rejected
from waypost.domain.planning import Draft
from waypost.domain.reviewing import reviewed
from waypost.model.event import UserEvent
from waypost.state.keys import system_key
from waypost.state.state import Plan, State
from waypost.state.view import View
from waypost.wire.consul.regex import compile_regex

log = logging.getLogger(__name__)

KEPT: Final = 256
SHARED_S: Final = 300.0
"""How long the leader leaves an event in the store."""
_OWNER: Final = "event"
_POLL_S: Final = 60.0
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


def plan_share(view: View, event: UserEvent) -> Plan[None]:
    """Decide that all agents get an event. The oldest go when there are too many of them."""
    draft = Draft()
    draft.write(system_key(_OWNER, event.id), msgspec.msgpack.encode(event), revision=0)
    for entry in view.system_below(_OWNER + "\0")[: -KEPT + 1]:
        draft.erase(system_key(*entry.name.split("\0")), revision=entry.modify_index)
    return draft.plan(None)


def shared_events(view: View) -> list[str]:
    """Return the names of the system entries that are events, oldest first."""
    return [entry.name for entry in view.system_below(_OWNER + "\0")]


def plan_forget(view: View, names: Sequence[str]) -> Plan[None]:
    """Decide that events have been in the store for long enough."""
    draft = Draft()
    for name in names:
        entry = view.system(name)
        if entry is not None:
            draft.erase(system_key(*name.split("\0")), revision=entry.modify_index)
    return draft.plan(None)


class Events:
    """The verbs of events for one agent."""

    def __init__(
        self,
        state: State,
        gate: Gate,
        *,
        node: str,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
        is_clustered: bool = False,
        admission: Admission | None = None,
    ) -> None:
        """`is_clustered`: other agents use the same store, and `run` must run on each."""
        self._is_clustered = is_clustered
        self._seen: set[str] = set()
        self._state = state
        self._admission = admission
        self._gate = gate
        self._node = node
        self._new_id = new_id
        self._kept: deque[UserEvent] = deque(maxlen=KEPT)
        self._time = 1
        self._waiters: set[asyncio.Future[None]] = set()

    async def fire(self, actor: Actor, event: UserEvent) -> UserEvent:
        """Fire an event; its `id` is made here. Raises Forbidden, Rejected; in a cluster Unavailable."""
        self._gate.admit(actor, Attributes("create", "events", event.name))
        check_event(event)
        sent = event
        event = await reviewed(self._admission, actor, lambda admits: admits.record(sent, None))
        if event is not sent:
            check_event(event)
        fired = msgspec.structs.replace(event, id=str(self._new_id()), time=0)
        if self._is_clustered:
            await self._state.commit(lambda view: plan_share(view, fired))
        else:
            self.deliver(fired)
        return fired

    async def run(self) -> None:
        """Deliver what agents of the cluster fire from now on, until cancelled."""
        view = self._state.view
        self._seen = {entry.name for entry in view.system_below(_OWNER + "\0")}
        while True:
            await view.topics.wait([("system", _OWNER)], at_most_s=_POLL_S)
            self._deliver_shared()

    def _deliver_shared(self) -> None:
        entries = self._state.view.system_below(_OWNER + "\0")
        for entry in entries:
            if entry.name in self._seen:
                continue
            try:
                event = msgspec.msgpack.decode(entry.value, type=UserEvent)
            except msgspec.MsgspecError as error:
                log.warning("an event of the store cannot be read, %s: %s", entry.name, error)
                continue
            self.deliver(event, time=entry.modify_index)
        self._seen = {entry.name for entry in entries}

    def deliver(self, event: UserEvent, *, time: int = 0) -> None:
        """Take in an event if it concerns this agent; `time` is its Lamport time if the cluster gave it one."""
        self._time = time or self._time + 1
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
