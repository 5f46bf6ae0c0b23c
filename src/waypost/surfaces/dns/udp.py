"""One UDP socket: many datagrams a wake-up, replies from the address that was asked."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from typing import TYPE_CHECKING, Final

from waypost.surfaces.dns.batch import IP_PKTINFO, SLOT_BYTES, Address, Ancillary, Batch

if TYPE_CHECKING:
    from waypost.surfaces.dns.server import DnsServer

log = logging.getLogger(__name__)

BATCH: Final = 32
"""Datagrams read before anybody else in the loop gets a turn, and before the first of them is answered."""
_BUFFER_BYTES: Final = 4 << 20
_ANY: Final = frozenset({"0.0.0.0", "::"})
_MAX_PEERS: Final = 4096


class Datagrams:
    """Reads, answers and writes datagrams of one bound socket."""

    def __init__(self, sock: socket.socket, server: DnsServer) -> None:
        self._sock = sock
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None
        host, port = sock.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        is_any = host in _ANY
        if is_any:
            # A machine has many addresses; the reply must come from the one that was asked, or the client drops it.
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self._batch = Batch(BATCH, family=sock.family, ancillary=is_any)
        self._peers: dict[bytes, str] = {}
        """Packed address → as the rest of the server writes it."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer from now on."""
        self._loop = loop
        loop.add_reader(self._sock.fileno(), self._read)

    def close(self) -> None:
        """Stop and close the socket."""
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop = None
        self._sock.close()

    def _read(self) -> None:
        """Answer what has arrived; if that is more than a batch, the loop calls again."""
        batch, fd = self._batch, self._sock.fileno()
        try:
            found = batch.receive(fd)
        except OSError as exc:
            # An ICMP error of an earlier reply; it says nothing about this socket.
            log.debug("udp receive: %s", exc)
            return
        responder = self._server.responder
        responder.begin()
        respond, peers = responder.respond, self._peers
        first = 0
        for index, (host, query) in enumerate(found):
            reply = respond(query, peers.get(host) or self._peer(host))
            if isinstance(reply, bytes) and len(reply) <= SLOT_BYTES:
                batch.put(index, reply)
                continue
            # Before a gap what is ready goes out: a call sends neighbours only.
            self._flush(fd, first, index)
            first = index + 1
            if reply is not None:
                send = functools.partial(self._send, batch.sender(index), batch.ancillary(index))
                if isinstance(reply, bytes):
                    send(reply)
                else:
                    self._server.defer(reply, send)
        self._flush(fd, first, len(found))

    def _flush(self, fd: int, first: int, end: int) -> None:
        if first < end and (lost := self._batch.send(fd, first, end)):
            self._server.dropped += lost
            log.debug("udp replies dropped: %d", lost)

    def _peer(self, host: bytes) -> str:
        if len(self._peers) >= _MAX_PEERS:
            self._peers.clear()
        text = self._peers[host] = socket.inet_ntop(self._sock.family, host)
        return text

    def _send(self, sender: Address, ancillary: list[Ancillary], reply: bytes) -> None:
        if self._loop is None:
            return
        try:
            self._sock.sendmsg((reply,), ancillary, 0, sender)
        except OSError as exc:
            self._server.dropped += 1
            log.debug("udp reply dropped: %s", exc)
