"""From an answer to the bytes of a reply: flags, EDNS, and what is cut so that it fits.

Source: sizes and limits of Consul 1.8.7; RFC 6891 (EDNS), 7871 (client subnet). Two things are kept stricter than
Consul: no UDP reply is longer than the client takes as long as metadata or glue can be left out, and metadata goes
before answers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from waypost.surfaces.dns.lookup import Answer
from waypost.surfaces.dns.settings import DnsSettings
from waypost.wire.dns import message as wire
from waypost.wire.dns.message import Edns, Query, Record, Sections
from waypost.wire.dns.name import Name
from waypost.wire.dns.name import fold as fold_name

PLAIN_UDP_BYTES: Final = 512
MAX_UDP_BYTES: Final = 65507
"""What fits into a UDP datagram over IPv4."""
_MAX_UDP_ANSWERS: Final = 8
_UDP_MARGIN_BYTES: Final = 7
_MAX_TCP_BYTES: Final = 65523
_MAX_TCP_ANSWERS: Final = 4096


def reply_flags(query_flags: int, *, rcode: int, authoritative: bool, recursive: bool) -> int:
    """Return the flags of a reply: QR, opcode, RD and CD as in the query, AA and RA as told."""
    flags = wire.QR | query_flags & (wire.OPCODE_MASK | wire.RD | wire.CD) | rcode & 0xF
    if authoritative:
        flags |= wire.AA
    if recursive:
        flags |= wire.RA
    return flags


def reply_edns(query: Query, *, rcode: int, subnet_matters: bool) -> Edns | None:
    """Return the OPT of the reply: none without one in the query, its payload echoed, of its options the subnet.

    The scope of the subnet is 0 (good for all) unless another subnet may get another answer.
    """
    asked = query.edns
    if asked is None:
        return None
    options: tuple[tuple[int, bytes], ...] = ()
    for code, data in asked.options:
        if code == wire.ECS:
            scope = data[2] if subnet_matters and rcode == wire.NOERROR else 0
            options = ((code, data[:3] + bytes((scope,)) + data[4:]),)
            break
    return Edns(asked.payload_bytes, options=options)


def render(query: Query, answer: Answer, settings: DnsSettings, *, tcp: bool) -> bytes:
    """Return the reply, cut to what the transport and the client take."""
    edns = reply_edns(query, rcode=answer.rcode, subnet_matters=answer.subnet_matters)
    flags = reply_flags(
        query.header.flags,
        rcode=answer.rcode,
        authoritative=True,
        recursive=bool(settings.recursors),
    )
    fit = _Fit(query, edns, compress=not settings.disable_compression)
    sections = Sections(answer.answer, answer.authority, answer.additional)
    if answer.may_cut:
        if tcp:
            sections = fit.tcp(sections)
        else:
            sections = fit.udp(sections, answer_limit=settings.udp_answer_limit)
    if len(sections.answer) < len(answer.answer):
        if settings.enable_truncate:
            flags |= wire.TC
        if not sections.answer and answer.negative is not None:
            sections = Sections((), (answer.negative,), sections.additional)
    return fit.encode(flags, sections)


def render_error(
    query: Query, settings: DnsSettings, *, rcode: int, authoritative: bool = False
) -> bytes:
    """Return a reply that is nothing but a response code. SERVFAIL says RA, as Consul's do."""
    recursive = bool(settings.recursors) or rcode == wire.SERVFAIL
    flags = reply_flags(
        query.header.flags, rcode=rcode, authoritative=authoritative, recursive=recursive
    )
    edns = reply_edns(query, rcode=rcode, subnet_matters=False)
    if edns is not None and rcode > 0xF:
        edns = msgspec.structs.replace(edns, payload_bytes=max(edns.payload_bytes, 512))
        return _extended(query, flags, edns, rcode)
    return wire.encode_message(query.header.id, flags, query.question, Sections(), edns=edns)


def _extended(query: Query, flags: int, edns: Edns, rcode: int) -> bytes:
    """Return a reply with a response code over four bits: the upper eight are in the OPT (RFC 6891 §6.1.3)."""
    plain = wire.encode_message(query.header.id, flags, query.question, Sections(), edns=edns)
    options_bytes = sum(4 + len(data) for _, data in edns.options)
    at = len(plain) - options_bytes - 6
    return plain[:at] + bytes((rcode >> 4,)) + plain[at + 1 :]


class _Fit:
    """Measures and cuts the sections of one reply."""

    def __init__(self, query: Query, edns: Edns | None, *, compress: bool) -> None:
        self._query = query
        self._edns = edns
        self._compress = compress

    def encode(self, flags: int, sections: Sections) -> bytes:
        """Return the reply."""
        return wire.encode_message(
            self._query.header.id,
            flags,
            self._query.question,
            sections,
            edns=self._edns,
            compress=self._compress,
        )

    def udp(self, sections: Sections, *, answer_limit: int) -> Sections:
        """Return what goes out over UDP."""
        asked = self._query.edns
        limit = max(PLAIN_UDP_BYTES, min(asked.payload_bytes, MAX_UDP_BYTES) if asked else 0)
        compress = self._compress
        answers = len(sections.answer)
        most = max(0, min(_MAX_UDP_ANSWERS, answer_limit))
        if limit == PLAIN_UDP_BYTES and answers > most:
            # Once the number is cut, Consul measures without compression.
            compress = False
            sections = _with_answers(sections, most)
        sections = self._shrink(sections, limit - _UDP_MARGIN_BYTES, compress=compress)
        if self._size(sections, compress=self._compress) > limit:
            # One answer with much metadata: the client must at least get the answer.
            sections = _with_answers(sections, len(sections.answer))
        if self._size(sections, compress=self._compress) > limit:
            sections = Sections(sections.answer, sections.authority)
        return sections

    def tcp(self, sections: Sections) -> Sections:
        """Return what goes out over TCP."""
        if len(sections.answer) > _MAX_TCP_ANSWERS:
            sections = _with_answers(sections, _MAX_TCP_ANSWERS)
        return self._shrink(sections, _MAX_TCP_BYTES, compress=self._compress)

    def _shrink(self, sections: Sections, limit: int, *, compress: bool) -> Sections:
        """Return as many answers as fit, at least one; with fewer of them, glue only and no metadata."""
        if len(sections.answer) < 2 or self._size(sections, compress=compress) <= limit:
            return sections
        low, high = 1, len(sections.answer) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._size(_with_answers(sections, middle), compress=compress) > limit:
                high = middle
            else:
                low = middle
        return _with_answers(sections, low)

    def _size(self, sections: Sections, *, compress: bool) -> int:
        return len(
            wire.encode_message(
                0, 0, self._query.question, sections, edns=self._edns, compress=compress
            )
        )


def _with_answers(sections: Sections, count: int) -> Sections:
    """Return the first answers with one record of glue for each distinct SRV target, and nothing else added."""
    answers = sections.answer[:count]
    return Sections(answers, sections.authority, _glue(answers, sections.additional))


def _glue(answers: Sequence[Record], additional: Sequence[Record]) -> list[Record]:
    first: dict[Name, Record] = {}
    for record in additional:
        first.setdefault(fold_name(record.name), record)
    glue: list[Record] = []
    done: set[Name] = set()
    for record in answers:
        if not isinstance(record.data, wire.Srv):
            continue
        target = fold_name(record.data.target)
        while target not in done:
            done.add(target)
            found = first.get(target)
            if found is None:
                break
            glue.append(found)
            if found.type == wire.CNAME and isinstance(found.data, tuple):
                target = fold_name(found.data)
    return glue
