"""One UDP socket: many datagrams a wake-up, replies from the address that was asked."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from waypost.surfaces.dns.server import DnsServer

log = logging.getLogger(__name__)

BATCH: Final = 64
"""Datagrams read before anybody else in the loop gets a turn."""
_QUERY_BYTES: Final = 4096
"""A query is never longer; what is gets cut and is then malformed."""
_BUFFER_BYTES: Final = 4 << 20
_ANY: Final = frozenset({"0.0.0.0", "::"})
_IP_PKTINFO: Final = 8
"""Linux; the socket module of Python 3.11 does not have it for IPv4."""
_ANCILLARY_BYTES: Final = 64

Sender = Any
"""What a socket takes to send a reply back: an address, for a wildcard socket with the ancillary data to add."""


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
        self._is_any = host in _ANY
        if self._is_any:
            # A machine has many addresses; the reply must come from the one that was asked, or the client drops it.
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer from now on."""
        self._loop = loop
        loop.add_reader(self._sock.fileno(), self._read_any if self._is_any else self._read)

    def close(self) -> None:
        """Stop and close the socket."""
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop = None
        self._sock.close()

    def _read(self) -> None:
        receive, send = self._sock.recvfrom, self._sock.sendto
        responder = self._server.responder
        responder.begin()
        respond = responder.respond
        for _ in range(BATCH):
            try:
                data, sender = receive(_QUERY_BYTES)
            except BlockingIOError:
                return
            except OSError as exc:
                # An ICMP error of an earlier reply; it says nothing about this socket.
                log.debug("udp receive: %s", exc)
                continue
            reply = respond(data, sender[0])
            if isinstance(reply, bytes):
                try:
                    send(reply, sender)
                except OSError as exc:
                    self._lost(exc)
            elif reply is not None:
                self._server.defer(reply, functools.partial(self._send, sender))

    def _send(self, sender: Sender, reply: bytes) -> None:
        if self._loop is None:
            return
        try:
            self._sock.sendto(reply, sender)
        except OSError as exc:
            self._lost(exc)

    def _read_any(self) -> None:
        receive = self._sock.recvmsg
        responder = self._server.responder
        responder.begin()
        respond = responder.respond
        for _ in range(BATCH):
            try:
                data, ancillary, _, sender = receive(_QUERY_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as exc:
                log.debug("udp receive: %s", exc)
                continue
            reply = respond(data, sender[0])
            if reply is None:
                continue
            back = (sender, [_back(*item) for item in ancillary])
            if isinstance(reply, bytes):
                self._send_any(back, reply)
            else:
                self._server.defer(reply, functools.partial(self._send_any, back))

    def _send_any(self, back: Sender, reply: bytes) -> None:
        if self._loop is None:
            return
        sender, ancillary = back
        try:
            self._sock.sendmsg((reply,), ancillary, 0, sender)
        except OSError as exc:
            self._lost(exc)

    def _lost(self, exc: OSError) -> None:
        self._server.dropped += 1
        log.debug("udp reply dropped: %s", exc)


def _back(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """Return the ancillary data that sends a reply from where its query arrived. Source: ip(7), ipv6(7)."""
    if level == socket.IPPROTO_IP:
        # struct in_pktinfo {int ifindex; in_addr spec_dst; in_addr addr}: any interface, that source address.
        return level, kind, bytes(4) + data[4:8] + bytes(4)
    return level, kind, data
