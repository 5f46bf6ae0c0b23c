"""Tables of fields, and decoding of JSON by them as Go's encoding/json does it for Consul's types.

Keys are compared without regard to case, `null` leaves a field as it is, an unknown field or a value of another type
is an error in Go's words. A table is *custom* where Consul's type decodes itself: then an error inside of it is shown
with the path of the field outside only, and stops everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from waypost.base.duration import parse_ns
from waypost.base.errors import Malformed
from waypost.wire.consul.gojson import Number, parse, quote

_INT64_MAX = 2**63 - 1
_INT64_MIN = -(2**63)


class _Mismatch(Malformed):
    """A value of another type than the field has."""

    def __init__(self, value: str, go_type: str, *, struct: str = "", field: str = "") -> None:
        self.value, self.go_type, self.struct, self.field = value, go_type, struct, field
        if struct or field:
            where = f"struct field {struct}.{field}"
            text = f"json: cannot unmarshal {value} into Go {where} of type {go_type}"
        else:
            text = f"json: cannot unmarshal {value} into Go value of type {go_type}"
        super().__init__(text)


def _word(value: object, *, numeric: bool = False) -> str:
    """Return what Go calls the JSON value; a number that does not fit is shown with its digits."""
    match value:
        case str():
            return "string"
        case bool():
            return "bool"
        case list():
            return "array"
        case dict():
            return "object"
        case Number():
            return f"number {value.literal}" if numeric else "number"
    return f"number {value}" if numeric else "number"


class Where(NamedTuple):
    """Where the decoder is: Go's name of the innermost struct and the fields that led there."""

    struct: str = ""
    path: tuple[str, ...] = ()


class Errors:
    """The first error of one decoding; Go goes on after it and reports it at the end."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.first: Malformed | None = None

    def save(self, error: Malformed) -> None:
        """Keep `error` if it is the first."""
        if self.first is None:
            self.first = error

    def mismatch(self, value: object, go_type: str, where: Where, *, numeric: bool = False) -> None:
        """Note that `value` is not of `go_type`."""
        word = _word(value, numeric=numeric)
        self.save(_Mismatch(word, go_type, struct=where.struct, field=".".join(where.path)))


class Type:
    """A Go type that a field can have."""

    go: str

    def read(self, value: Any, where: Where, errors: Errors) -> Any:
        """Return what `value` (not None) decodes to, or None when it does not fit."""
        raise NotImplementedError


class Text(Type):
    """A string."""

    def __init__(self, go: str = "string") -> None:
        self.go = go

    def read(self, value: Any, where: Where, errors: Errors) -> str | None:
        """See Type."""
        if isinstance(value, str):
            return value
        errors.mismatch(value, self.go, where)
        return None


class Integer(Type):
    """An int, or an uint64 when `unsigned`."""

    def __init__(self, *, unsigned: bool = False) -> None:
        self.go = "uint64" if unsigned else "int"
        self._low = 0 if unsigned else -(2**63)
        self._high = 2**64 - 1 if unsigned else _INT64_MAX

    def read(self, value: Any, where: Where, errors: Errors) -> int | None:
        """See Type."""
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and self._low <= value <= self._high
        ):
            return value
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        errors.mismatch(value, self.go, where, numeric=numeric)
        return None


class Boolean(Type):
    """A bool."""

    go = "bool"

    def read(self, value: Any, where: Where, errors: Errors) -> bool | None:
        """See Type."""
        if isinstance(value, bool):
            return value
        errors.mismatch(value, self.go, where)
        return None


class Anything(Type):
    """Any value, kept as it is."""

    go = "interface {}"

    def read(self, value: Any, where: Where, errors: Errors) -> Any:
        """See Type."""
        return value


class Duration(Type):
    """A Go duration or a number of nanoseconds; other types count as not given. Returns nanoseconds."""

    go = "interface {}"

    def read(self, value: Any, where: Where, errors: Errors) -> int | None:
        """See Type. Raises Malformed with Go's words for a bad duration."""
        if isinstance(value, bool):
            return None
        if isinstance(value, str):
            return parse_ns(value)
        if isinstance(value, int | float):
            if not _INT64_MIN <= value <= _INT64_MAX:  # not a number is neither
                raise Malformed(
                    "time: invalid duration: a number of more nanoseconds than there are"
                )
            return int(value)
        return None


class Bytes(Type):
    """Base64, without regard to what is wrong where: Consul says input byte 0. Returns text still encoded."""

    go = "[]uint8"

    def read(self, value: Any, where: Where, errors: Errors) -> str | None:
        """See Type."""
        if isinstance(value, str):
            return value
        errors.mismatch(value, self.go, where)
        return None


class ListOf(Type):
    """A slice."""

    def __init__(self, item: Type, go: str = "") -> None:
        self.item = item
        self.go = go or "[]" + item.go

    def read(self, value: Any, where: Where, errors: Errors) -> list[Any] | None:
        """See Type."""
        if isinstance(value, list):
            found = [None if v is None else self.item.read(v, where, errors) for v in value]
            if isinstance(self.item, Text):
                return [v if v is not None else "" for v in found]
            return [v for v in found if v is not None]
        errors.mismatch(value, self.go, where)
        return None


class MapOf(Type):
    """A map with string keys."""

    def __init__(self, item: Type, go: str = "") -> None:
        self.item = item
        self.go = go or "map[string]" + item.go

    def read(self, value: Any, where: Where, errors: Errors) -> dict[str, Any] | None:
        """See Type."""
        if not isinstance(value, dict):
            errors.mismatch(value, self.go, where)
            return None
        found: dict[str, Any] = {}
        for key, item in value.items():
            read = None if item is None else self.item.read(item, where, errors)
            if read is not None:
                found[key] = read
            elif item is None:
                found[key] = "" if isinstance(self.item, Text) else {}
        return found


class Record(Type):
    """A struct: a table of fields. `read` returns a dict by the tables' own member names.

    `fields` maps the JSON name to (member, type). `other_names` are further spellings that count only where the main
    one is absent or empty; `lenient` ones are known only when unknown fields are tolerated.
    """

    def __init__(
        self,
        go: str,
        fields: Mapping[str, tuple[str, Type]],
        *,
        other_names: Mapping[str, tuple[str, Type]] | None = None,
        lenient: Mapping[str, tuple[str, Type]] | None = None,
        custom: bool = False,
    ) -> None:
        self.go = go
        self.custom = custom
        # An anonymous struct has no name of its own in a path.
        self._short = "" if go.startswith("struct {") or custom else go.rpartition(".")[2]
        self._fields = {name.lower(): (name, *rest) for name, rest in fields.items()}
        self._other = {name.lower(): (name, *rest) for name, rest in (other_names or {}).items()}
        self._lenient = {name.lower(): (name, *rest) for name, rest in (lenient or {}).items()}

    def read(self, value: Any, where: Where, errors: Errors) -> dict[str, Any] | None:
        """See Type."""
        if not self.custom:
            return self._read(value, where, errors)
        inner = Errors(strict=errors.strict)
        try:
            found = self._read(value, Where(), inner)
            if inner.first is not None:
                raise inner.first
        except _Mismatch as error:
            raise (
                _Mismatch(
                    error.value, error.go_type, struct=where.struct, field=".".join(where.path)
                )
                if where.path
                else error
            ) from None
        return found

    def _find(self, key: str, errors: Errors) -> tuple[str, str, Type, bool] | None:
        """Return (Go name, member, type, whether it is a second spelling) of a key, None to pass over it."""
        folded = key.lower()
        if folded in self._fields:
            return (*self._fields[folded], False)
        if folded in self._other:
            return (*self._other[folded], True)
        if errors.strict:
            errors.save(Malformed(f"json: unknown field {quote(key)}"))
            return None
        return (*self._lenient[folded], True) if folded in self._lenient else None

    def _read(self, value: Any, where: Where, errors: Errors) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            errors.mismatch(value, self.go, where)
            return None
        found: dict[str, Any] = {}
        second: dict[str, Any] = {}
        durations: list[tuple[dict[str, Any], str, Type, Any]] = []
        for key, item in value.items():
            field = self._find(key, errors)
            if field is None or item is None:
                continue
            name, member, type_, is_second = field
            target = second if is_second else found
            if isinstance(type_, Duration):
                durations.append((target, member, type_, item))
                continue
            read = type_.read(item, Where(self._short, (*where.path, name)), errors)
            if read is not None:
                target[member] = read
        if errors.first is None:
            # Durations are converted after the types of all other fields were looked at.
            for target, member, type_, item in durations:
                read = type_.read(item, where, errors)
                if read is not None:
                    target[member] = read
        for member, item in second.items():
            if not found.get(member):
                found[member] = item
        return found


def decode(record: Type, body: bytes, *, strict: bool = True) -> Any:
    """Decode a request body by `record`; an absent or `null` value is an empty dict.

    Raises Malformed in Go's words, without any prefix.
    """
    value = parse(body)
    if value is None:
        return {}
    errors = Errors(strict=strict)
    found = record.read(value, Where(), errors)
    if errors.first is not None:
        raise errors.first
    return found
