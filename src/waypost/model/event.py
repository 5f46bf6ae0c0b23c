"""User events. Source: Consul HTTP API, events."""

from __future__ import annotations

import uuid

import msgspec


class UserEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event. `id` is empty until it is fired, `time` is the Lamport time of its delivery, 0 before it."""

    id: str
    name: str
    payload: bytes = b""
    node_filter: str = ""
    service_filter: str = ""
    tag_filter: str = ""
    time: int = 0

    @property
    def index(self) -> int:
        """What a client of the list waits on: the halves of the id, one upon the other."""
        raw = uuid.UUID(self.id).bytes
        return int.from_bytes(raw[:8], "big") ^ int.from_bytes(raw[8:], "big")
