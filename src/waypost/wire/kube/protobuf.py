r"""The protobuf form of objects: an envelope `k8s\0`, then `runtime.Unknown` with the object in it.

A small codec driven by the schema, without generated code. kubectl 1.31 and newer send their typed
requests this way. Source: "Protobuf encoding" in the Kubernetes API concepts; protobuf wire format.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.wire.kube.schema import SCHEMA
from waypost.wire.kube.schema.conform import parse_time
from waypost.wire.kube.schema.types import META, Field, Message, Scalar, Schema, Shape
from waypost.wire.kube.values import JsonObject, check_depth, decode_json, encode_json

MAGIC: Final = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK64: Final = 2**64 - 1
_MAX_VARINT: Final = 70
"""Bits of ten groups of seven."""
_LIST_META: Final = META + "ListMeta"

Value = int | bytes
Entry = tuple[int, int, Value]
"""Field number, wire type, value."""


# -- the wire --------------------------------------------------------------------------------------


def entries(body: bytes) -> Iterator[Entry]:
    """Yield the fields of a message; raises Malformed if it is cut or no protobuf."""
    at, end = 0, len(body)
    while at < end:
        key, at = _varint(body, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise Malformed("proto: illegal tag 0")
        value: Value
        if wire == _VARINT:
            value, at = _varint(body, at)
        elif wire == _BYTES:
            length, at = _varint(body, at)
            value, at = _cut(body, at, length)
        elif wire == _FIXED64:
            value, at = _cut(body, at, 8)
        elif wire == _FIXED32:
            value, at = _cut(body, at, 4)
        else:
            raise Malformed(f"proto: illegal wireType {wire}")
        yield number, wire, value


def _cut(body: bytes, at: int, length: int) -> tuple[bytes, int]:
    if length > len(body) - at:
        raise Malformed("unexpected EOF")
    return body[at : at + length], at + length


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for end in range(at, len(body)):
        byte = body[end]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, end + 1
        shift += 7
        if shift >= _MAX_VARINT:
            raise Malformed("proto: integer overflow")
    raise Malformed("unexpected EOF")


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it; negative ones as 64 bits."""
    value &= _MASK64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_field(number: int, value: bytes) -> bytes:
    """Return a field of bytes, a text or a message."""
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def int_field(number: int, value: int) -> bytes:
    """Return a field that is a number or a bool."""
    return varint(number << 3 | _VARINT) + varint(value)


# -- the envelope ----------------------------------------------------------------------------------


class Envelope(msgspec.Struct, frozen=True):
    """What the envelope says and the bytes in it."""

    api_version: str
    kind: str
    raw: bytes


def open_envelope(body: bytes) -> Envelope:
    """Return the parts of an envelope; raises Malformed."""
    if not body.startswith(MAGIC):
        raise Malformed(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
        )
    api_version = kind = ""
    raw = b""
    for number, wire, value in entries(body[len(MAGIC) :]):
        if wire != _BYTES or not isinstance(value, bytes):
            continue
        if number == 1:
            for inner, _, text in entries(value):
                if inner == 1:
                    api_version = _text(text)
                elif inner == 2:
                    kind = _text(text)
        elif number == 2:
            raw = value
    return Envelope(api_version, kind, raw)


def close_envelope(*, api_version: str, kind: str, raw: bytes) -> bytes:
    """Return the envelope of an encoded object."""
    meta = bytes_field(1, api_version.encode()) + bytes_field(2, kind.encode())
    return (
        MAGIC
        + bytes_field(1, meta)
        + bytes_field(2, raw)
        + bytes_field(3, b"")
        + bytes_field(4, b"")
    )


# -- messages --------------------------------------------------------------------------------------


def decode_message(raw: bytes, *, message: str, schema: Schema = SCHEMA) -> JsonObject:
    """Return a message as JSON; unknown numbers are skipped, a wrong wire type is Malformed.

    Go writes every text and number that is no pointer, also the empty ones; those are left out.
    """
    decoded: JsonObject = {}
    described = schema.message(message)
    by_number = {one.number: one for one in described.fields if one.number}
    for number, wire, value in entries(raw):
        field = by_number.get(number)
        if field is None:
            continue
        if field.shape is Shape.MAP:
            key, one = _map_entry(_bytes(value, wire, field), field, schema)
            decoded.setdefault(field.name, {})[key] = one
            continue
        one = _decode_value(value, wire, field, schema)
        if field.inline:
            decoded |= one
        elif field.shape is Shape.LIST:
            decoded.setdefault(field.name, []).append(one)
        elif one is not None and (field.pointer or one not in ("", 0)):
            # Fields of one message that come in parts are merged, the others overwritten.
            before = decoded.get(field.name)
            merge = isinstance(one, dict) and isinstance(before, dict)
            decoded[field.name] = before | one if merge else one
    return decoded


def _bytes(value: Value, wire: int, field: Field) -> bytes:
    if wire != _BYTES or not isinstance(value, bytes):
        raise Malformed(f"proto: wrong wireType = {wire} for field {_go_name(field.name)}")
    return value


def _go_name(name: str) -> str:
    return name[:1].upper() + name[1:]


def _text(value: Value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _map_entry(raw: bytes, field: Field, schema: Schema) -> tuple[str, Any]:
    key = ""
    one: Any = {} if isinstance(field.of, str) else [] if field.of is Scalar.TEXTS else ""
    for number, wire, value in entries(raw):
        if number == 1:
            key = _text(_bytes(value, wire, field))
        elif number == 2:
            one = _decode_value(value, wire, field, schema)
    return key, one


def _decode_value(value: Value, wire: int, field: Field, schema: Schema) -> Any:
    of = field.of
    if of in (Scalar.BOOL, Scalar.INT32, Scalar.INT64):
        if wire != _VARINT or not isinstance(value, int):
            raise Malformed(f"proto: wrong wireType = {wire} for field {_go_name(field.name)}")
        if of is Scalar.BOOL:
            return value != 0
        return _signed(value, bits=32 if of is Scalar.INT32 else 64)
    raw = _bytes(value, wire, field)
    if isinstance(of, str):
        return decode_message(raw, message=of, schema=schema)
    if of is Scalar.STRING:
        return _text(raw)
    if of is Scalar.BYTES:
        return base64.b64encode(raw).decode()
    if of is Scalar.TEXTS:
        return [_text(one) for number, _, one in entries(raw) if number == 1]
    if of is Scalar.FIELDS:
        return _decode_fields(raw)
    return _decode_time(raw, micro=of is Scalar.MICRO_TIME)


def _signed(value: int, *, bits: int) -> int:
    value &= 2**bits - 1
    return value - 2**bits if value >> (bits - 1) else value


def _decode_fields(raw: bytes) -> Any:
    inner = b"".join(
        one for number, _, one in entries(raw) if number == 1 and isinstance(one, bytes)
    )
    if not inner:
        return None
    value = decode_json(inner)
    if not isinstance(value, dict):
        raise Malformed("fieldsV1: not a JSON object")
    return value


def _decode_time(raw: bytes, *, micro: bool) -> str | None:
    seconds = nanos = 0
    for number, wire, value in entries(raw):
        if wire == _VARINT and isinstance(value, int):
            if number == 1:
                seconds = _signed(value, bits=64)
            elif number == 2:
                nanos = _signed(value, bits=32)
    if not raw:
        return None
    try:
        at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
        at += dt.timedelta(microseconds=nanos // 1000)
    except OverflowError as exc:
        raise Malformed(f"time out of range: {seconds} s") from exc
    shown = at.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    return f"{shown}.{at.microsecond:06d}Z" if micro else shown + "Z"


def encode_message(value: JsonObject, *, message: str, schema: Schema = SCHEMA) -> bytes:
    """Return a conformed object in protobuf, in the order of the field numbers, as Go writes it."""
    parts: list[bytes] = []
    described: Message = schema.message(message)
    for field in sorted(described.fields, key=lambda one: one.number):
        if not field.number:
            continue
        if field.inline:
            parts.append(
                bytes_field(
                    field.number, encode_message(value, message=str(field.of), schema=schema)
                )
            )
            continue
        one = value.get(field.name)
        if field.shape is Shape.LIST:
            parts += [_encode_value(entry, field, schema) for entry in one or ()]
        elif field.shape is Shape.MAP:
            for key, entry in sorted((one or {}).items()):
                inner = bytes_field(1, key.encode()) + _encode_as(entry, field, 2, schema)
                parts.append(bytes_field(field.number, inner))
        elif one is not None:
            parts.append(_encode_value(one, field, schema))
        elif not field.pointer:
            parts.append(_encode_zero(field, schema))
    return b"".join(parts)


def _encode_zero(field: Field, schema: Schema) -> bytes:
    if isinstance(field.of, str):
        return bytes_field(field.number, encode_message({}, message=field.of, schema=schema))
    if field.of in (Scalar.BOOL, Scalar.INT32, Scalar.INT64):
        return int_field(field.number, 0)
    return b"" if field.of is Scalar.BYTES else bytes_field(field.number, b"")


def _encode_value(value: Any, field: Field, schema: Schema) -> bytes:
    return _encode_as(value, field, field.number, schema)


def _encode_as(value: Any, field: Field, number: int, schema: Schema) -> bytes:
    of = field.of
    if isinstance(of, str):
        return bytes_field(number, encode_message(value, message=of, schema=schema))
    if of in (Scalar.BOOL, Scalar.INT32, Scalar.INT64):
        return int_field(number, int(value))
    if of is Scalar.BYTES:
        return bytes_field(number, base64.b64decode(value))
    if of is Scalar.TEXTS:
        return bytes_field(number, b"".join(bytes_field(1, one.encode()) for one in value))
    if of is Scalar.FIELDS:
        return bytes_field(number, bytes_field(1, encode_json(value)))
    if of is Scalar.STRING:
        return bytes_field(number, value.encode())
    return bytes_field(number, _encode_time(value))


def _encode_time(text: str) -> bytes:
    at = parse_time(text)
    if at is None:
        raise Malformed(f"no RFC 3339 time: {text}")
    since = at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    seconds = since.days * 86_400 + since.seconds
    return int_field(1, seconds) + int_field(2, since.microseconds * 1000)


# -- whole bodies ----------------------------------------------------------------------------------


def encode_object(value: JsonObject, *, message: str, schema: Schema = SCHEMA) -> bytes:
    """Return the body of an object with apiVersion and kind."""
    raw = encode_message(value, message=message, schema=schema)
    return close_envelope(api_version=value["apiVersion"], kind=value["kind"], raw=raw)


def encode_list(value: JsonObject, *, message: str, schema: Schema = SCHEMA) -> bytes:
    """Return the body of a list; `message` is that of its items."""
    raw = bytes_field(1, encode_message(value["metadata"], message=_LIST_META, schema=schema))
    for item in value["items"]:
        raw += bytes_field(2, encode_message(item, message=message, schema=schema))
    return close_envelope(api_version=value["apiVersion"], kind=value["kind"], raw=raw)


def decode_object(envelope: Envelope, *, message: str, schema: Schema = SCHEMA) -> JsonObject:
    """Return the object in an envelope with its kind and apiVersion, as JSON; raises Malformed."""
    decoded = decode_message(envelope.raw, message=message, schema=schema)
    check_depth(decoded)
    head: JsonObject = {}
    if envelope.kind:
        head["kind"] = envelope.kind
    if envelope.api_version:
        head["apiVersion"] = envelope.api_version
    return head | decoded
