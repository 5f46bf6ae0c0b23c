"""From the bytes of a query to the bytes of its reply, for both transports.

What the catalog alone can answer is answered at once; what needs other servers comes back as `Deferred`, to be
finished by a task.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Forbidden, Malformed, Unavailable
from waypost.surfaces.dns.cache import Entry, ReplyCache, newest
from waypost.surfaces.dns.catalog import Admission, Catalog, Datacenters, Finder
from waypost.surfaces.dns.lookup import Answer, Lookup, Turn
from waypost.surfaces.dns.recursors import Recursors
from waypost.surfaces.dns.render import render, render_error
from waypost.surfaces.dns.reverse import ReverseIndex
from waypost.surfaces.dns.settings import DnsSettings
from waypost.wire.dns import message as wire
from waypost.wire.dns.message import Query, Record
from waypost.wire.dns.name import Name, fold

log = logging.getLogger(__name__)

PEERS: Final = 4096
"""So many peers' admissions are remembered; then all are asked for again."""
_MAX_KEY_BYTES: Final = 512
_MAX_RESOLVE_ROUNDS: Final = 4
_ARPA: Final[Name] = (b"arpa",)


class Zone:
    """What one kind of peer sees: a catalog and what was made of it."""

    __slots__ = ("catalog", "reversed_by", "tcp", "udp")

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.udp = ReplyCache()
        self.tcp = ReplyCache()
        self.reversed_by = ReverseIndex()


class Deferred(msgspec.Struct, frozen=True):
    """A query that other servers must help with; give it to `finish`."""

    data: bytes
    query: Query
    zone: Zone
    tcp: bool
    names: tuple[Name, ...] = ()
    """Host names to find addresses for; none: the query is forwarded as it is."""
    datacenter: str = ""
    """Which other datacenter answers it; "" = the recursors."""


class Responder:
    """Answers queries. Belongs to one event loop; `respond` never blocks.

    `rng` draws the orders of answers and the ids of forwarded queries, so it must not be guessable.
    """

    def __init__(
        self,
        settings: DnsSettings,
        admission: Admission,
        *,
        clock: Clock,
        rng: random.Random,
        finder: Finder | None = None,
        datacenters: Datacenters | None = None,
    ) -> None:
        self._datacenters = datacenters
        self._admission = admission
        self._clock = clock
        self._rng = rng
        self._finder = finder
        self._peers: dict[str, Zone | None] = {}
        self._zones: dict[int, Zone] = {}
        self._generation = admission.generation
        self.configure(settings)

    def configure(self, settings: DnsSettings) -> None:
        """Answer by other settings from now on. Raises Malformed and then keeps the old ones."""
        lookup = Lookup(settings, finder=self._finder)
        self.recursors = Recursors(settings, rng=self._rng)
        self._lookup = lookup
        self.settings = settings
        self.forget()

    def forget(self) -> None:
        """Throw away cached replies and remembered admissions."""
        self._peers.clear()
        self._zones.clear()

    def begin(self) -> None:
        """Call once before a batch of `respond`: notice that admissions may have changed."""
        if self._admission.generation != self._generation:
            self._generation = self._admission.generation
            self.forget()

    def respond(self, data: bytes, peer: str, tcp: bool = False) -> bytes | Deferred | None:  # noqa: FBT001, FBT002
        """Return the reply to a query of `peer` (an IP address), what is left to do for it, or None for silence."""
        try:
            zone = self._peers[peer]
        except KeyError:
            zone = self._admit(peer)
        if zone is None:
            return self._refuse(data)
        entry = (zone.tcp if tcp else zone.udp).entries.get(data[2:])
        if entry is not None and entry.ready > 0 and entry.moment == zone.catalog.moment:
            entry.ready -= 1
            return data[:2] + entry.next_reply()
        try:
            return self._respond(data, zone, tcp=tcp)
        except Unavailable:
            return self._refuse(data, rcode=wire.SERVFAIL)
        except Exception:
            # A fault of ours in one answer; the next query must not suffer.
            log.exception("no answer to a query of %s", peer)
            query = _read(data)
            if not isinstance(query, Query):
                return query
            return render_error(query, self.settings, rcode=wire.SERVFAIL)

    async def finish(self, deferred: Deferred) -> bytes:
        """Return the reply to what could not be answered at once; SERVFAIL when no recursor helps."""
        try:
            return await self._finish(deferred)
        except Exception:
            log.exception("no answer to a deferred query")
            return render_error(deferred.query, self.settings, rcode=wire.SERVFAIL)

    async def _finish(self, deferred: Deferred) -> bytes:
        query = deferred.query
        if deferred.datacenter and self._datacenters is not None:
            name = deferred.datacenter
            try:
                reply = await self._datacenters.dns(name, deferred.data, tcp=deferred.tcp)
            except Unavailable as error:
                log.warning("dns: datacenter %s does not answer: %s", name, error)
                return render_error(query, self.settings, rcode=wire.SERVFAIL)
            return deferred.data[:2] + reply[2:]
        if not deferred.names:
            try:
                return await self.recursors.forward(deferred.data, query.question, tcp=deferred.tcp)
            except Unavailable:
                return render_error(query, self.settings, rcode=wire.SERVFAIL)
        resolved: dict[Name, tuple[Record, ...]] = {}
        wanted = deferred.names
        turn = Turn(self._rng.getrandbits(32))
        try:
            for _ in range(_MAX_RESOLVE_ROUNDS):
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        name: group.create_task(self.recursors.addresses(name)) for name in wanted
                    }
                resolved.update((name, task.result()) for name, task in tasks.items())
                answer = self._answer(query, deferred.zone, turn=turn, resolved=resolved)
                wanted = answer.unresolved
                if not wanted:
                    break
        except Forbidden:
            return render_error(query, self.settings, rcode=wire.REFUSED)
        return render(query, answer, self.settings, tcp=deferred.tcp)

    # -- off the hot path --------------------------------------------------------------------------------------------------

    def _admit(self, peer: str) -> Zone | None:
        if len(self._peers) >= PEERS:
            self._peers.clear()
            self._zones.clear()
        zone: Zone | None
        try:
            catalog = self._admission.catalog(peer)
        except Forbidden:
            zone = None
        else:
            zone = self._zones.get(id(catalog))
            if zone is None:
                zone = self._zones[id(catalog)] = Zone(catalog)
        self._peers[peer] = zone
        return zone

    def _refuse(self, data: bytes, *, rcode: int = wire.REFUSED) -> bytes | None:
        query = _read(data)
        if not isinstance(query, Query):
            return query
        return render_error(query, self.settings, rcode=rcode)

    def _respond(self, data: bytes, zone: Zone, *, tcp: bool) -> bytes | Deferred | None:
        cache = zone.tcp if tcp else zone.udp
        key = data[2:]
        moment = zone.catalog.moment
        now_s = int(self._clock.wall())
        entry = cache.valid(key, zone.catalog, moment=moment, now_s=now_s)
        if entry is not None and entry.is_complete:
            if entry.ready > 0 or entry.second is not None:
                entry.ready -= entry.ready > 0
                return data[:2] + entry.next_reply()
            cache.renew(entry)
        query = _read(data)
        if not isinstance(query, Query):
            return query
        if query.edns is not None and query.edns.version > 0:
            return render_error(query, self.settings, rcode=wire.BADVERS)
        plain = _without_options(query)
        if plain is not None:
            # A cookie differs in every query and changes nothing: such clients share the cached orders, too.
            reply = self._respond(plain, zone, tcp=tcp)
            if isinstance(reply, Deferred):
                return msgspec.structs.replace(reply, data=data)
            return reply
        datacenter = self._datacenter_of(query)
        if datacenter:
            return Deferred(data, query, zone, tcp, datacenter=datacenter)
        turn = entry.turn if entry is not None else Turn(self._rng.getrandbits(32))
        try:
            answer = self._answer(query, zone, turn=turn, now_s=now_s)
        except Forbidden:
            return render_error(query, self.settings, rcode=wire.REFUSED)
        if answer.elsewhere:
            return self._elsewhere(data, query, zone, tcp=tcp)
        if answer.unresolved:
            return Deferred(data, query, zone, tcp, answer.unresolved)
        reply = render(query, answer, self.settings, tcp=tcp)
        is_plain = query.edns is None or not query.edns.options
        # Before the first moment a topic's index is what the first change will make it.
        if is_plain and len(key) <= _MAX_KEY_BYTES and moment > 0:
            self._keep(cache, key, entry, answer, reply[2:], turn=turn, zone=zone, now_s=now_s)
        return reply

    def _answer(
        self,
        query: Query,
        zone: Zone,
        *,
        turn: Turn,
        now_s: int | None = None,
        resolved: dict[Name, tuple[Record, ...]] | None = None,
    ) -> Answer:
        return self._lookup.answer(
            query.question,
            zone.catalog,
            arrange=turn.arrange,
            now_s=int(self._clock.wall()) if now_s is None else now_s,
            has_edns=query.edns is not None,
            resolved=resolved,
            reversed_by=zone.reversed_by,
        )

    def _datacenter_of(self, query: Query) -> str:
        """Return the other datacenter that answers a query, "" for none."""
        if self._datacenters is None:
            return ""
        name = self._lookup.datacenter_of(query.question)
        return name if name and self._datacenters.knows(name) else ""

    def _elsewhere(self, data: bytes, query: Query, zone: Zone, *, tcp: bool) -> bytes | Deferred:
        if self.settings.recursors:
            return Deferred(data, query, zone, tcp)
        is_reverse = fold(query.question.name)[-1:] == _ARPA
        rcode = wire.SERVFAIL if is_reverse else wire.REFUSED
        return render_error(query, self.settings, rcode=rcode)

    def _keep(
        self,
        cache: ReplyCache,
        key: bytes,
        entry: Entry | None,
        answer: Answer,
        reply: bytes,
        *,
        turn: Turn,
        zone: Zone,
        now_s: int,
    ) -> None:
        if entry is not None:
            cache.grew(entry.add(reply, width=answer.width))
            return
        entry = Entry(
            moment=zone.catalog.moment,
            index=newest(zone.catalog, answer.topics),
            topics=answer.topics,
            turn=turn,
            second=now_s if answer.has_serial else None,
        )
        entry.add(reply, width=answer.width)
        cache.put(key, entry)


def _without_options(query: Query) -> bytes | None:
    """Return a query with the same reply but without EDNS options; None when there are none, or one that matters."""
    edns = query.edns
    if edns is None or not edns.options or any(code == wire.ECS for code, _ in edns.options):
        return None
    return wire.encode_message(
        query.header.id,
        query.header.flags,
        query.question,
        wire.Sections(),
        edns=wire.Edns(edns.payload_bytes),
    )


def _read(data: bytes) -> Query | bytes | None:
    """Return the query, the reply to what is none, or None for what gets silence: too short, or a reply itself."""
    if len(data) < wire.HEADER_BYTES:
        return None
    header = wire.decode_header(data)
    if header.is_response:
        # Never answer an answer: two servers could send errors to each other for ever.
        return None
    flags = wire.QR | header.flags & (wire.OPCODE_MASK | wire.RD)
    if header.opcode != 0:
        return wire.encode_header_only(header.id, flags | wire.NOTIMP)
    try:
        query = wire.decode_query(data)
        if query.edns is not None:
            for code, option in query.edns.options:
                if code == wire.ECS:
                    wire.check_client_subnet(option)
    except Malformed:
        return wire.encode_header_only(header.id, flags | wire.FORMERR)
    return query
