"""The DNS server that feeds nginx's upstreams: SRV of services with TTL 0, addresses computed from names.

Only nginx on this machine asks. What nginx makes of an answer decides what may be said (measured with 1.31):
an empty answer or NXDOMAIN empties the upstream for ten seconds, SERVFAIL leaves it as it is. So there is never
an empty answer: a service without instances has the sentinel, and what is not known is SERVFAIL.
Source: RFC 1035, RFC 2782.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import struct
from collections.abc import Callable, Iterable
from typing import Final, cast

import msgspec

from waypost.base.errors import Unavailable
from waypost.drivers.nginx.backends import Endpoint
from waypost.drivers.nginx.config import SRV_SERVICE, ZONE

log = logging.getLogger(__name__)

UDP_MAX_BYTES: Final = 4096
"""What nginx's resolver takes over UDP."""
_TCP_MAX_BYTES: Final = 65535
_ADDRESS_ZONE: Final = "ip.wp"
_ADDRESS_TTL_S: Final = 86_400  # the name is the address, so it never changes

_A, _AAAA, _SRV = 1, 28, 33
_NOERROR, _SERVFAIL, _REFUSED = 0, 2, 5
_SERVICE = re.compile(
    rf"_{SRV_SERVICE}\._tcp\.([a-z0-9-]{{1,63}})\.{re.escape(ZONE)}".encode("ascii")
)
_ADDRESS = re.compile(
    rf"h([0-9a-f]{{8}}|[0-9a-f]{{32}})-[0-9]{{1,5}}\.{re.escape(_ADDRESS_ZONE)}".encode("ascii")
)
_SUFFIX = (
    b"".join(bytes([len(one)]) + one.encode("ascii") for one in _ADDRESS_ZONE.split(".")) + b"\0"
)


class _Entry(msgspec.Struct, frozen=True):
    version: int
    count: int
    body: bytes


class Names:
    """Label of a service → its answer. Answers are encoded once a change, not once a question."""

    def __init__(self, *, on_answer: Callable[[str, int], None] | None = None) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._on_answer = on_answer
        self._version = 0

    def put(self, label: str, *, endpoints: Iterable[Endpoint], sentinel_port: int) -> int:
        """Set the endpoints of `label` and return the version of this answer.

        Without endpoints requests go to `sentinel_port` of 127.0.0.1. The same endpoints keep their version.
        """
        chosen = tuple(endpoints) or (Endpoint(address="127.0.0.1", port=sentinel_port),)
        body = b"".join(_srv(one) for one in chosen)
        key = label.encode("ascii")
        old = self._entries.get(key)
        if old is not None and old.body == body:
            return old.version
        self._version += 1
        self._entries[key] = _Entry(self._version, len(chosen), body)
        return self._version

    def remove(self, label: str) -> None:
        """Forget `label`: it is SERVFAIL from now on, and who still asks keeps what it has."""
        self._entries.pop(label.encode("ascii"), None)

    def answer(self, query: bytes, *, max_bytes: int) -> bytes | None:
        """Return the answer to one message, None for what is no query."""
        parsed = _question(query)
        if parsed is None:
            return None
        name, kind, end = parsed
        question = query[12:end]
        if kind == _SRV and (match := _SERVICE.fullmatch(name)):
            entry = self._entries.get(match[1])
            if entry is None:
                return _message(query, _SERVFAIL, question)
            answer = _message(query, _NOERROR, question, count=entry.count, body=entry.body)
            if len(answer) > max_bytes:
                return _message(query, _NOERROR, question, truncated=True)
            if self._on_answer is not None:
                self._on_answer(match[1].decode("ascii"), entry.version)
            return answer
        if kind in (_A, _AAAA) and (match := _ADDRESS.fullmatch(name)):
            packed = bytes.fromhex(match[1].decode("ascii"))
            if (len(packed) == 4) != (kind == _A):
                return _message(query, _NOERROR, question)
            head = struct.pack("!HHHIH", 0xC00C, kind, 1, _ADDRESS_TTL_S, len(packed))
            return _message(query, _NOERROR, question, count=1, body=head + packed)
        return _message(query, _REFUSED, question)


def _srv(endpoint: Endpoint) -> bytes:
    packed = ipaddress.ip_address(endpoint.address).packed
    # One target a port: nginx's consistent hash is over the target's name.
    target = f"h{packed.hex()}-{endpoint.port}".encode("ascii")
    data = struct.pack("!HHH", 1, endpoint.weight, endpoint.port)
    data += bytes([len(target)]) + target + _SUFFIX
    return struct.pack("!HHHIH", 0xC00C, _SRV, 1, 0, len(data)) + data


def _question(query: bytes) -> tuple[bytes, int, int] | None:
    """Return name (lower-case), type and end of the one question, None when the message is not such."""
    if len(query) < 17 or query[2] & 0xF8 or query[4:6] != b"\0\1":
        return None
    labels = []
    at = 12
    while at < len(query) and (length := query[at]):
        if length > 63 or at + 1 + length >= len(query):
            return None
        labels.append(query[at + 1 : at + 1 + length])
        at += 1 + length
    if at + 5 > len(query):
        return None
    kind, group = struct.unpack_from("!HH", query, at + 1)
    return (b".".join(labels).lower(), kind, at + 5) if group == 1 else None


def _message(
    query: bytes,
    code: int,
    question: bytes,
    *,
    count: int = 0,
    body: bytes = b"",
    truncated: bool = False,
) -> bytes:
    flags = 0x8400 | (0x0200 if truncated else 0) | (query[2] & 1) << 8 | code
    return query[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0) + question + body


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, names: Names) -> None:
        self._names = names
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own transports are not declared as what they are.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._names.answer(data, max_bytes=UDP_MAX_BYTES)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)


class NamesServer:
    """Answers from `names` on 127.0.0.1, UDP and TCP on one port."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def open(self, port: int) -> int:
        """Bind to `port`, or to a free one when it is taken; return the port. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        for candidate in (port, 0, 0, 0, 0):
            try:
                tcp = await asyncio.start_server(self._serve, "127.0.0.1", candidate)
            except OSError:
                continue
            bound = int(tcp.sockets[0].getsockname()[1])
            try:
                udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Udp(self._names), local_addr=("127.0.0.1", bound)
                )
            except OSError:
                tcp.close()
                continue
            self._tcp, self._udp = tcp, udp
            return bound
        raise Unavailable(f"no free port for nginx's DNS on 127.0.0.1 (tried {port} first)")

    async def close(self) -> None:
        """Stop answering."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
            await self._tcp.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5.0):
                while head := await reader.read(2):
                    if len(head) < 2:
                        head += await reader.readexactly(1)
                    query = await reader.readexactly(int.from_bytes(head, "big"))
                    answer = self._names.answer(query, max_bytes=_TCP_MAX_BYTES)
                    if answer is None:
                        return
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            log.debug("DNS connection of nginx: %r", exc)
        finally:
            writer.close()
