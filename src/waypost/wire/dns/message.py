"""DNS messages: what a server must read and write. Source: RFC 1035, 2782 (SRV), 3596 (AAAA), 6891 (EDNS), 7871 (ECS).

Decoders raise nothing but Malformed, whatever the bytes are. Encoders compress names as RFC 1035 §4.1.4 has it:
in owner names and in the data of CNAME, NS, PTR and SOA; the target of an SRV is written out (RFC 2782), but later
names may point at it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from waypost.base.errors import Malformed
from waypost.wire.dns.name import MAX_NAME_BYTES, Name, fold

A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
OPT: Final = 41
DS: Final = 43
AXFR: Final = 252
ANY: Final = 255

IN: Final = 1

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16

QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
CD: Final = 0x0010
OPCODE_MASK: Final = 0x7800

HEADER_BYTES: Final = 12
MAX_MESSAGE_BYTES: Final = 65535
ECS: Final = 8
"""EDNS option code of the client subnet."""

_HEADER = struct.Struct("!6H")
_TYPE_CLASS = struct.Struct("!2H")
_FIXED = struct.Struct("!2HIH")
_SRV = struct.Struct("!3H")
_SOA = struct.Struct("!5I")
_POINTABLE_BYTES = 0x4000


class Header(msgspec.Struct, frozen=True, gc=False):
    """The first 12 bytes."""

    id: int
    flags: int
    questions: int
    answers: int
    authorities: int
    additionals: int

    @property
    def is_response(self) -> bool:
        """Whether it claims to be an answer."""
        return bool(self.flags & QR)

    @property
    def opcode(self) -> int:
        """0 for a query."""
        return (self.flags & OPCODE_MASK) >> 11

    @property
    def rcode(self) -> int:
        """The low four bits of the response code."""
        return self.flags & 0xF


class Question(msgspec.Struct, frozen=True, gc=False):
    """What is asked; the name in the case it was asked in."""

    name: Name
    type: int
    klass: int = IN


class Edns(msgspec.Struct, frozen=True, gc=False):
    """The OPT pseudo-record. `payload_bytes` as sent, which may be below the 512 that it then means."""

    payload_bytes: int
    version: int = 0
    options: tuple[tuple[int, bytes], ...] = ()


class Query(msgspec.Struct, frozen=True, gc=False):
    """A well-formed query with its one question."""

    header: Header
    question: Question
    edns: Edns | None = None


class Srv(msgspec.Struct, frozen=True, gc=False):
    """Data of an SRV record."""

    priority: int
    weight: int
    port: int
    target: Name


class Soa(msgspec.Struct, frozen=True, gc=False):
    """Data of an SOA record; times in seconds."""

    mname: Name
    rname: Name
    serial: int
    refresh_s: int
    retry_s: int
    expire_s: int
    minimum_s: int


Data = bytes | Srv | Soa | Name
"""Data of a record: a name for CNAME, NS and PTR, the wire form for everything that holds no names."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One resource record of class IN. `ttl_s` in whole seconds."""

    name: Name
    type: int
    ttl_s: int
    data: Data


class Sections(msgspec.Struct, frozen=True, gc=False):
    """The records of a message by section."""

    answer: Sequence[Record] = ()
    authority: Sequence[Record] = ()
    additional: Sequence[Record] = ()


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole answer of another server, as far as it is understood."""

    header: Header
    question: Question | None
    answer: tuple[Record, ...]


# -- reading -------------------------------------------------------------------------------------------------------------


def decode_header(data: bytes) -> Header:
    """Return the header. Raises Malformed below 12 bytes."""
    if len(data) < HEADER_BYTES:
        msg = f"message of {len(data)} bytes has no header"
        raise Malformed(msg)
    return Header(*_HEADER.unpack_from(data))


def decode_query(data: bytes) -> Query:
    """Return a query with exactly one question.

    As lenient as the DNS library of Go that Consul answers with: bytes after the last record are ignored and a
    message that ends early between two records is taken as it is. Raises Malformed for everything else.
    """
    header = decode_header(data)
    if header.questions != 1:
        msg = f"query with {header.questions} questions"
        raise Malformed(msg)
    if header.answers > 1 or header.authorities > 1 or header.additionals > 2:
        msg = "query with too many records"
        raise Malformed(msg)
    name, at = decode_name(data, HEADER_BYTES)
    if at + 4 > len(data):
        msg = "question ends early"
        raise Malformed(msg)
    question = Question(name, *_TYPE_CLASS.unpack_from(data, at))
    at += 4
    edns: Edns | None = None
    for _ in range(header.answers + header.authorities + header.additionals):
        if at == len(data):
            break
        _, at = decode_name(data, at)
        kind, klass, ttl, length, at = _fixed(data, at)
        if kind == OPT and edns is None:
            edns = Edns(klass, (ttl >> 16) & 0xFF, _options(data[at : at + length]))
        at += length
    return Query(header, question, edns)


def decode_reply(data: bytes) -> Reply:
    """Return the header, the first question and the A, AAAA and CNAME records of the answer section.

    Raises Malformed.
    """
    header = decode_header(data)
    at = HEADER_BYTES
    question: Question | None = None
    for _ in range(header.questions):
        name, at = decode_name(data, at)
        if at + 4 > len(data):
            msg = "question ends early"
            raise Malformed(msg)
        question = question or Question(name, *_TYPE_CLASS.unpack_from(data, at))
        at += 4
    answer: list[Record] = []
    for _ in range(header.answers):
        name, at = decode_name(data, at)
        kind, klass, ttl_s, length, at = _fixed(data, at)
        if klass == IN:
            if kind == CNAME:
                target, end = decode_name(data, at)
                if end != at + length:
                    msg = "CNAME data has a wrong length"
                    raise Malformed(msg)
                answer.append(Record(name, kind, ttl_s, target))
            elif (kind, length) in ((A, 4), (AAAA, 16)):
                answer.append(Record(name, kind, ttl_s, data[at : at + length]))
        at += length
    return Reply(header, question, tuple(answer))


def decode_name(data: bytes, at: int) -> tuple[Name, int]:
    """Return the name at an offset and the offset behind it. Raises Malformed; a pointer must lead backwards."""
    labels: list[bytes] = []
    end = 0
    length = 1
    lowest = at
    size = len(data)
    while True:
        if at >= size:
            msg = "name ends early"
            raise Malformed(msg)
        count = data[at]
        if count == 0:
            return tuple(labels), end or at + 1
        if count >= 0xC0:
            if at + 1 >= size:
                msg = "name ends early"
                raise Malformed(msg)
            end = end or at + 2
            at = (count & 0x3F) << 8 | data[at + 1]
            if at >= lowest:
                # Strictly backwards, so that no message can send us in circles.
                msg = "name has a pointer that does not lead backwards"
                raise Malformed(msg)
            lowest = at
            continue
        if count > 63:
            msg = f"name has a label of unknown kind {count >> 6}"
            raise Malformed(msg)
        label = data[at + 1 : at + 1 + count]
        if len(label) < count:
            msg = "label ends early"
            raise Malformed(msg)
        length += 1 + count
        if length > MAX_NAME_BYTES:
            msg = f"name is over {MAX_NAME_BYTES} bytes"
            raise Malformed(msg)
        labels.append(label)
        at += 1 + count


def _fixed(data: bytes, at: int) -> tuple[int, int, int, int, int]:
    """Return type, class, TTL, data length and the offset of the data, which is all there."""
    if at + 10 > len(data):
        msg = "record ends early"
        raise Malformed(msg)
    kind, klass, ttl_s, length = _FIXED.unpack_from(data, at)
    if at + 10 + length > len(data):
        msg = "record data ends early"
        raise Malformed(msg)
    return kind, klass, ttl_s, length, at + 10


def _options(data: bytes) -> tuple[tuple[int, bytes], ...]:
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            msg = "EDNS option ends early"
            raise Malformed(msg)
        code, length = _TYPE_CLASS.unpack_from(data, at)
        at += 4
        if at + length > len(data):
            msg = "EDNS option ends early"
            raise Malformed(msg)
        found.append((code, data[at : at + length]))
        at += length
    return tuple(found)


def is_same_question(one: Question, other: Question) -> bool:
    """Return whether two questions are the same, whatever the case of the name."""
    return (
        one.type == other.type and one.klass == other.klass and fold(one.name) == fold(other.name)
    )


def check_client_subnet(data: bytes) -> None:
    """Raise Malformed unless `data` is a client subnet as a query may carry it. Source: RFC 7871 §6."""
    if len(data) < 4:
        msg = "client subnet option ends early"
        raise Malformed(msg)
    family = int.from_bytes(data[:2], "big")
    source = data[2]
    if family not in (1, 2) or source > (32 if family == 1 else 128):
        msg = "client subnet option has an unknown family or a wrong prefix length"
        raise Malformed(msg)
    if len(data) - 4 < (source + 7) // 8:
        msg = "client subnet option has an address shorter than its prefix"
        raise Malformed(msg)


# -- writing -------------------------------------------------------------------------------------------------------------


def encode_query(query_id: int, question: Question, *, flags: int = RD) -> bytes:
    """Return a plain query."""
    return encode_message(query_id, flags, question, Sections())


def encode_header_only(query_id: int, flags: int) -> bytes:
    """Return a message of 12 bytes, the answer to what could not be read."""
    return _HEADER.pack(query_id, flags, 0, 0, 0, 0)


def encode_message(
    query_id: int,
    flags: int,
    question: Question,
    sections: Sections,
    *,
    edns: Edns | None = None,
    compress: bool = True,
) -> bytes:
    """Return the message. Names must be valid (see `parse_name`); the caller sees to the size."""
    writer = _Writer(compress=compress)
    out = writer.out
    out += _HEADER.pack(
        query_id,
        flags,
        1,
        len(sections.answer),
        len(sections.authority),
        len(sections.additional) + (edns is not None),
    )
    writer.name(question.name)
    out += _TYPE_CLASS.pack(question.type, question.klass)
    for section in (sections.answer, sections.authority, sections.additional):
        for record in section:
            writer.record(record)
    if edns is not None:
        options = b"".join(_TYPE_CLASS.pack(code, len(data)) + data for code, data in edns.options)
        out += b"\0" + _FIXED.pack(OPT, edns.payload_bytes, edns.version << 16, len(options))
        out += options
    return bytes(out)


def txt_data(text: bytes) -> bytes:
    """Return TXT data of one text, in as many strings of 255 bytes as it takes."""
    if len(text) <= 255:
        return bytes((len(text),)) + text
    parts = [text[at : at + 255] for at in range(0, len(text), 255)]
    return b"".join(bytes((len(part),)) + part for part in parts)


class _Writer:
    def __init__(self, *, compress: bool) -> None:
        self.out = bytearray()
        self._compress = compress
        self._offsets: dict[Name, int] = {}

    def name(self, name: Name, *, may_point: bool = True) -> None:
        """Append a name: as a pointer where one may be used, and note where its parts are."""
        out = self.out
        offsets = self._offsets
        for position in range(len(name)):
            rest = name[position:]
            known = offsets.get(rest)
            if known is not None:
                if may_point and self._compress:
                    out += (0xC000 | known).to_bytes(2, "big")
                    return
            elif len(out) < _POINTABLE_BYTES:
                offsets[rest] = len(out)
            label = name[position]
            out.append(len(label))
            out += label
        out.append(0)

    def record(self, record: Record) -> None:
        out = self.out
        self.name(record.name)
        data = record.data
        if isinstance(data, bytes):
            out += _FIXED.pack(record.type, IN, record.ttl_s, len(data))
            out += data
            return
        out += _FIXED.pack(record.type, IN, record.ttl_s, 0)
        start = len(out)
        if isinstance(data, Srv):
            out += _SRV.pack(data.priority, data.weight, data.port)
            self.name(data.target, may_point=False)
        elif isinstance(data, Soa):
            self.name(data.mname)
            self.name(data.rname)
            out += _SOA.pack(
                data.serial, data.refresh_s, data.retry_s, data.expire_s, data.minimum_s
            )
        else:
            self.name(data)
        out[start - 2 : start] = (len(out) - start).to_bytes(2, "big")
