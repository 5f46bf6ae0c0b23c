"""Fits a JSON value to its schema, as decoding into a Go struct and encoding it again does.

Unknown fields go and are reported, empty values that Go leaves out are left out, values it always
writes are there, times and bytes come in one form, and fields stand in the schema's order. So equal
objects have equal bytes.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.wire.kube.schema import SCHEMA
from waypost.wire.kube.schema.types import Field, Scalar, Schema, Shape
from waypost.wire.kube.values import DuplicateKeys, JsonObject, json_type

MAX_FAULTS: Final = 100
"""More unknown or repeated fields are not listed."""

_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d{1,9})?\d*([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_INT_LIMIT: Final = {Scalar.INT32: 2**31, Scalar.INT64: 2**63}
_ZERO: Final = {
    Scalar.STRING: "", Scalar.INT32: 0, Scalar.INT64: 0, Scalar.BOOL: False, Scalar.BYTES: None,
    Scalar.TIME: None, Scalar.MICRO_TIME: None, Scalar.FIELDS: None, Scalar.TEXTS: None,
}  # fmt: skip
_GO: Final = {
    Scalar.STRING: "string", Scalar.INT32: "int32", Scalar.INT64: "int64", Scalar.BOOL: "bool",
    Scalar.BYTES: "[]uint8", Scalar.TIME: "v1.Time", Scalar.MICRO_TIME: "v1.MicroTime",
    Scalar.FIELDS: "v1.FieldsV1", Scalar.TEXTS: "v1.ExtraValue",
}  # fmt: skip


class Conformed(msgspec.Struct, frozen=True):
    """A value that fits, and what did not fit in what it was made of."""

    value: JsonObject
    faults: tuple[str, ...]
    """`unknown field "rules[0].verb"`, `duplicate field "metadata.name"`, in the order of the document."""


def conform(value: object, *, message: str, schema: Schema = SCHEMA) -> Conformed:
    """Return `value` as an object of `message`; raises Malformed if a value has the wrong type.

    A message that is a kind keeps its apiVersion and kind, empty ones left out.
    """
    walk = _Walk(schema, message)
    if not isinstance(value, dict):
        go = schema.message(message).go_type
        raise Malformed(f"json: cannot unmarshal {json_type(value)} into Go value of type {go}")
    fitted = walk.object(value, message, path="", stack=())
    return Conformed(fitted, tuple(walk.faults))


def strict_text(faults: tuple[str, ...]) -> str:
    """Return the faults as the one text of strict decoding."""
    return "strict decoding error: " + ", ".join(faults)


class _Walk:
    """One pass over a value; collects the faults."""

    def __init__(self, schema: Schema, root: str) -> None:
        self.schema = schema
        self.root = root
        self.faults: list[str] = []

    def _fault(self, text: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(text)

    def object(
        self, value: JsonObject, name: str, *, path: str, stack: tuple[str, ...]
    ) -> JsonObject:
        fields = self.schema.fields(name)
        fitted: JsonObject = {}
        again = value.duplicates if isinstance(value, DuplicateKeys) else ()
        is_kind = self.schema.message(name).is_kind
        for key, one in value.items():
            here = f"{path}.{key}" if path else key
            found = fields.get(key)
            if found is not None:
                fitted[key] = self.field(one, found, name, path=here, stack=(*stack, key))
            elif is_kind and key in ("kind", "apiVersion"):
                fitted[key] = _text(one, _place(name, (*stack, key)))
            else:
                self._fault(f"unknown field {quoted(here)}")
            if key in again:
                self._fault(f"duplicate field {quoted(here)}")
        ordered: JsonObject = {}
        if is_kind:
            for key in ("kind", "apiVersion"):
                if fitted.get(key):
                    ordered[key] = fitted[key]
        for key, found in fields.items():
            one = fitted.get(key)
            if one is None and isinstance(found.of, str) and _always(found):
                one = self.object({}, found.of, path="", stack=())
            if _is_written(one, found):
                ordered[key] = _zero(found) if one is None else one
        return ordered

    def field(
        self, value: Any, field: Field, owner: str, *, path: str, stack: tuple[str, ...]
    ) -> Any:
        if value is None:
            return None
        if field.shape is Shape.ONE:
            return self.one(value, field, owner, path=path, stack=stack)
        if field.shape is Shape.LIST:
            if not isinstance(value, list):
                raise _mismatch(value, _place(owner, stack), self.go_type(field))
            zero = _ZERO[field.of] if isinstance(field.of, Scalar) else {}
            return [
                self.one(
                    zero if one is None else one, field, owner, path=f"{path}[{at}]", stack=stack
                )
                for at, one in enumerate(value)
            ] or None
        if not isinstance(value, dict):
            raise _mismatch(value, _place(owner, stack), self.go_type(field))
        zero = _ZERO[field.of] if isinstance(field.of, Scalar) else {}
        again = value.duplicates if isinstance(value, DuplicateKeys) else ()
        fitted = {}
        for key, one in value.items():
            here = f"{path}.{key}"
            fitted[key] = self.one(
                zero if one is None else one, field, owner, path=here, stack=stack
            )
            if key in again:
                self._fault(f"duplicate field {quoted(here)}")
        return dict(sorted(fitted.items())) or None

    def one(
        self, value: Any, field: Field, owner: str, *, path: str, stack: tuple[str, ...]
    ) -> Any:
        of = field.of
        if isinstance(of, Scalar):
            return _scalar(value, of, _place(owner, stack))
        if not isinstance(value, dict):
            raise _mismatch(value, _place(owner, stack), self.schema.message(of).go_type)
        return self.object(value, of, path=path, stack=stack)

    def go_type(self, field: Field) -> str:
        of = (
            _GO[field.of] if isinstance(field.of, Scalar) else self.schema.message(field.of).go_type
        )
        return {Shape.ONE: "", Shape.LIST: "[]", Shape.MAP: "map[string]"}[field.shape] + of


def _always(field: Field) -> bool:
    return field.shape is Shape.ONE and not field.pointer


def _is_written(value: Any, field: Field) -> bool:
    if field.keep:
        return True
    if value is None:
        return False
    if field.shape is Shape.ONE and isinstance(field.of, Scalar) and not field.pointer:
        return value not in ("", 0)  # False is 0
    return True


def _zero(field: Field) -> Any:
    if field.shape is Shape.ONE and isinstance(field.of, Scalar) and not field.pointer:
        return _ZERO[field.of]
    return None


def _place(owner: str, stack: tuple[str, ...]) -> str:
    return f"Go struct field {owner.rpartition('.')[2]}.{'.'.join(stack)}"


def _mismatch(value: Any, place: str, go_type: str) -> Malformed:
    return Malformed(f"json: cannot unmarshal {json_type(value)} into {place} of type {go_type}")


def _text(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise _mismatch(value, place, "string")


def _scalar(value: Any, of: Scalar, place: str) -> Any:
    if of is Scalar.STRING:
        return _text(value, place)
    if of is Scalar.BOOL:
        if isinstance(value, bool):
            return value
        raise _mismatch(value, place, "bool")
    if of in _INT_LIMIT:
        return _integer(value, of, place)
    if of is Scalar.TEXTS:
        if isinstance(value, list):
            return [_text(one, place) for one in value]
        raise _mismatch(value, place, _GO[of])
    if of is Scalar.FIELDS:
        if isinstance(value, dict):
            return dict(value)
        raise _mismatch(value, place, _GO[of])
    if of is Scalar.BYTES:
        return canonical_base64(_text(value, place))
    if not isinstance(value, str):
        raise Malformed(f"json: cannot unmarshal {json_type(value)} into Go value of type string")
    return canonical_time(value, micro=of is Scalar.MICRO_TIME)


def _integer(value: Any, of: Scalar, place: str) -> int:
    limit = _INT_LIMIT[of]
    if isinstance(value, bool) or not isinstance(value, int):
        if isinstance(value, float):
            raise Malformed(
                f"json: cannot unmarshal number {value!r} into {place} of type {_GO[of]}"
            )
        raise _mismatch(value, place, _GO[of])
    if not -limit <= value < limit:
        raise Malformed(f"json: cannot unmarshal number {value} into {place} of type {_GO[of]}")
    return value


def canonical_base64(text: str) -> str:
    """Return base64 without line breaks; raises Malformed naming the first wrong byte."""
    bare = text.replace("\r", "").replace("\n", "") if "\n" in text or "\r" in text else text
    try:
        base64.b64decode(bare.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as exc:
        wrong = re.search(r"[^A-Za-z0-9+/]", bare)
        at = wrong.start() if wrong else len(bare)
        raise Malformed(f"illegal base64 data at input byte {at}") from exc
    return bare


def canonical_time(text: str, *, micro: bool = False) -> str:
    """Return an RFC 3339 time in UTC with whole seconds, or with six digits more; raises Malformed."""
    found = parse_time(text)
    if found is None:
        layout = "2006-01-02T15:04:05.000000Z07:00" if micro else "2006-01-02T15:04:05Z07:00"
        raise Malformed(
            f"parsing time {quoted(text)} as {quoted(layout)}: cannot parse {quoted(text)} as "
            f"{quoted('2006')}"
        )
    shown = found.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    return f"{shown}.{found.microsecond:06d}Z" if micro else shown + "Z"


def parse_time(text: str) -> dt.datetime | None:
    """Return an RFC 3339 time as UTC, or None if the text is none."""
    parts = _TIME.fullmatch(text)
    if parts is None:
        return None
    day, time, fraction, zone = parts.groups()
    micro = (fraction or ".0")[1:7].ljust(6, "0")
    offset = "+00:00" if zone in "Zz" else zone
    try:
        return dt.datetime.fromisoformat(f"{day}T{time}.{micro}{offset}").astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return None


def with_defaults(value: JsonObject, *, message: str, schema: Schema = SCHEMA) -> JsonObject:
    """Return a conformed object with the scalar defaults its messages declare."""
    filled: JsonObject = {key: value[key] for key in ("kind", "apiVersion") if key in value}
    for name, field in schema.fields(message).items():
        one = value.get(name)
        if one is None or (one == "" and field.default is not None and not field.pointer):
            if field.default is not None:
                filled[name] = field.default
            elif name in value:
                filled[name] = one
            continue
        if isinstance(field.of, str):
            one = _defaults_below(one, field, schema)
        filled[name] = one
    return filled


def _defaults_below(value: Any, field: Field, schema: Schema) -> Any:
    below = str(field.of)
    if field.shape is Shape.ONE:
        return with_defaults(value, message=below, schema=schema)
    if field.shape is Shape.LIST:
        return [with_defaults(one, message=below, schema=schema) for one in value]
    return {key: with_defaults(one, message=below, schema=schema) for key, one in value.items()}
