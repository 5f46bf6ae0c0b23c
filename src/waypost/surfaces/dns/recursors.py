"""Asking other name servers: forwarding whole queries, and the addresses of host names.

Every query goes out with a random id from a fresh socket (so from a random port), and an answer counts only when it
comes from the server asked, with that id and that question; anything else on the socket is ignored (RFC 5452).
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Sequence

from waypost.base.errors import Malformed, Unavailable
from waypost.surfaces.dns.settings import DnsSettings, Upstream, parse_upstream
from waypost.wire.dns import message as wire
from waypost.wire.dns.message import Question, Record
from waypost.wire.dns.name import Name

log = logging.getLogger(__name__)

IN_FLIGHT = 512
"""Queries to upstreams at one time. One more is answered SERVFAIL at once: the client has other servers or asks
again, and a dead upstream cannot eat all sockets."""


class Recursors:
    """The upstreams of one set of settings. `rng` must not be guessable (`random.SystemRandom`)."""

    def __init__(self, settings: DnsSettings, *, rng: random.Random) -> None:
        if settings.recursor_strategy not in ("sequential", "random"):
            msg = f'recursor_strategy: {settings.recursor_strategy!r} is neither "sequential" nor "random"'
            raise Malformed(msg)
        self._upstreams = tuple(parse_upstream(text) for text in settings.recursors)
        self._shuffles = settings.recursor_strategy == "random"
        self._timeout_s = settings.recursor_timeout_s
        self._rng = rng
        self._in_flight = 0

    async def forward(self, query: bytes, question: Question, *, tcp: bool) -> bytes:
        """Return the first good answer to a client's query, as received, with the client's id.

        Raises Unavailable when no upstream has one: each timed out or failed, or too many queries are under way.
        """
        if self._in_flight >= IN_FLIGHT:
            msg = f"{IN_FLIGHT} queries to recursors are under way"
            raise Unavailable(msg)
        self._in_flight += 1
        try:
            for upstream in self._order():
                reply = await self._ask(upstream, query, question, tcp=tcp)
                if reply is not None:
                    return query[:2] + reply[2:]
        finally:
            self._in_flight -= 1
        msg = f"no recursor answered for {question.name!r}"
        raise Unavailable(msg)

    async def addresses(self, name: Name) -> tuple[Record, ...]:
        """Return the CNAME, A and AAAA records of a host name; empty when nobody has any. Asks for A, as Consul does."""
        question = Question(name, wire.A)
        try:
            reply = await self.forward(wire.encode_query(0, question), question, tcp=False)
            return wire.decode_reply(reply).answer
        except (Unavailable, Malformed) as exc:
            log.debug("addresses of a host name unknown: %s", exc)
            return ()

    def _order(self) -> Sequence[Upstream]:
        if not self._shuffles:
            return self._upstreams
        return self._rng.sample(self._upstreams, len(self._upstreams))

    async def _ask(
        self, upstream: Upstream, query: bytes, question: Question, *, tcp: bool
    ) -> bytes | None:
        """Return the upstream's answer, None when it has none that is worth passing on."""
        sent = self._rng.getrandbits(16).to_bytes(2, "big") + query[2:]
        exchange = _over_tcp if tcp else _over_udp
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await exchange(upstream, sent, question)
        except TimeoutError:
            log.debug("recursor %s did not answer in %gs", upstream.host, self._timeout_s)
            return None
        except OSError as exc:
            log.debug("recursor %s cannot be asked: %s", upstream.host, exc)
            return None
        if reply is None or wire.decode_header(reply).rcode not in (wire.NOERROR, wire.NXDOMAIN):
            return None
        return reply


def is_answer_to(reply: bytes, *, sent: bytes, question: Question) -> bool:
    """Return whether `reply` answers what was sent: same id, same question, and readable."""
    if reply[:2] != sent[:2]:
        return False
    try:
        decoded = wire.decode_reply(reply)
    except Malformed:
        return False
    if not decoded.header.is_response:
        return False
    if decoded.question is None:
        # Failures may come without the question; they are only ever a reason to ask the next server.
        return decoded.header.rcode not in (wire.NOERROR, wire.NXDOMAIN)
    return wire.is_same_question(decoded.question, question)


async def _over_udp(upstream: Upstream, sent: bytes, question: Question) -> bytes | None:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in upstream.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0)
        sock.connect((upstream.host, upstream.port))
        await loop.sock_sendall(sock, sent)
        while True:
            reply = await loop.sock_recv(sock, wire.MAX_MESSAGE_BYTES)
            if is_answer_to(reply, sent=sent, question=question):
                return reply


async def _over_tcp(upstream: Upstream, sent: bytes, question: Question) -> bytes | None:
    reader, writer = await asyncio.open_connection(upstream.host, upstream.port)
    try:
        writer.write(len(sent).to_bytes(2, "big") + sent)
        await writer.drain()
        length = int.from_bytes(await reader.readexactly(2), "big")
        reply = await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return None
    finally:
        writer.close()
    return reply if is_answer_to(reply, sent=sent, question=question) else None
