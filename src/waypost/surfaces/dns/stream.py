"""One TCP connection: messages behind two bytes of length, answered as they become ready. Source: RFC 1035, RFC 7766."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from waypost.surfaces.dns.server import DnsServer

_WRITE_BYTES: Final = 256 << 10
"""A client that lets so much lie unread is not read from."""


class Stream(asyncio.Protocol):
    """Reads queries, writes replies; replies may overtake each other (RFC 7766 §6.2.1.1)."""

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._deferred = 0
        self._can_write = True
        self._idle: asyncio.TimerHandle | None = None
        self.peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start, unless there are too many connections."""
        # A cast, not a check: uvloop's transports are no subclasses of asyncio's.
        stream = cast("asyncio.Transport", transport)
        peer: Any = stream.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else ""
        if not self._server.admit_stream(self):
            stream.abort()
            return
        self._transport = stream
        stream.set_write_buffer_limits(high=_WRITE_BYTES)
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting it."""
        self._transport = None
        if self._idle is not None:
            self._idle.cancel()
        self._server.forget_stream(self)

    def abort(self) -> None:
        """Close without waiting for the client."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Answer every whole query."""
        self._buffer += data
        self._rest()
        self._answer()

    def eof_received(self) -> bool:
        """Keep our half open while replies are still to come."""
        return self._deferred > 0

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read."""
        self._can_write = False
        self._flow()

    def resume_writing(self) -> None:
        """Go on with what was received meanwhile."""
        self._can_write = True
        self._answer()

    def _answer(self) -> None:
        buffer = self._buffer
        responder = self._server.responder
        responder.begin()
        while self._transport is not None and self._may_answer():
            if len(buffer) < 2:
                break
            end = 2 + int.from_bytes(buffer[:2], "big")
            if len(buffer) < end:
                break
            data = bytes(buffer[2:end])
            del buffer[:end]
            reply = responder.respond(data, self.peer, True)  # noqa: FBT003
            if reply is None:
                # What gets silence over UDP has nothing to say over TCP either.
                self._transport.close()
                return
            if isinstance(reply, bytes):
                self._write(reply)
            elif self._server.defer(reply, self._deferred_reply):
                self._deferred += 1
            else:
                self._transport.close()
                return
        self._flow()

    def _deferred_reply(self, reply: bytes) -> None:
        self._deferred -= 1
        self._write(reply)
        self._answer()

    def _write(self, reply: bytes) -> None:
        if self._transport is not None:
            self._transport.write(len(reply).to_bytes(2, "big") + reply)

    def _may_answer(self) -> bool:
        return self._can_write and self._deferred < self._server.limits.stream_deferred

    def _flow(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._may_answer():
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(self._server.limits.idle_s, self._expire)

    def _expire(self) -> None:
        if self._deferred:
            self._rest()
        elif self._transport is not None:
            self._transport.abort()
