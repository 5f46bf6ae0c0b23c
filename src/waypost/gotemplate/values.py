"""Go values as Python objects, as far as templates can tell them apart.

| Go                        | Python                                                        |
|---------------------------|---------------------------------------------------------------|
| no value (reflect.Value{})| `INVALID`                                                     |
| nil interface             | `None`                                                        |
| nil pointer of a type     | `NilPointer`                                                  |
| bool, float64, complex128 | `bool`, `float`, `complex`                                    |
| int                       | `int`; other integer types: `Int64`, `Uint64`, `Uint8`        |
| string                    | `str`; bytes that are not UTF-8 are kept by `surrogateescape` |
| []interface {}            | `list`, `tuple`; other slices: `Slice` with its type           |
| map[string]interface {}   | `dict`; other maps: `Map` with its type                       |
| struct                    | subclasses of `Struct`, seen as pointers unless told otherwise |
| channel                   | `Channel`                                                     |
| func                      | `Function`                                                    |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec

ANY: Final = "interface {}"
VALUE: Final = "reflect.Value"
"""Parameter type of functions that see values as they are, `INVALID` included."""
STRING: Final = "string"
STRINGS: Final = "[]string"
LIST: Final = "[]interface {}"
MAP: Final = "map[string]interface {}"
INTEGER: Final = "any integer"
"""Parameter type that takes every integer, and a string of digits; in error texts it is `int64`."""
INTERFACE: Final = "interface"
"""The kind of a nil interface."""


class Invalid:
    """The type of `INVALID`: no value at all, printed as `<no value>`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "INVALID"

    def __bool__(self) -> bool:
        return False


INVALID: Final = Invalid()


class SizedInt(int):
    """An integer of a Go type other than `int`. Values wrap around as in Go: use `wrap`."""

    go_type: ClassVar[str] = "int"
    bits: ClassVar[int] = 64
    signed: ClassVar[bool] = True
    __slots__ = ()


class Int64(SizedInt):
    """A Go int64."""

    go_type = "int64"
    __slots__ = ()


class Uint64(SizedInt):
    """A Go uint64."""

    go_type = "uint64"
    signed = False
    __slots__ = ()


class Uint8(SizedInt):
    """A Go uint8, what indexing a string gives."""

    go_type = "uint8"
    bits = 8
    signed = False
    __slots__ = ()


def wrap_int64(number: int) -> Int64:
    """Return the number modulo 2**64 as Go's int64."""
    return Int64((number + 2**63) % 2**64 - 2**63)


def wrap_uint64(number: int) -> Uint64:
    """Return the number modulo 2**64 as Go's uint64."""
    return Uint64(number % 2**64)


class Slice(list[Any]):
    """A slice of a type other than `[]interface {}`; `underlying` is what a named type is made of."""

    __slots__ = ("go_type", "underlying")

    def __init__(self, items: Iterable[Any] = (), *, go_type: str, underlying: str = "") -> None:
        super().__init__(items)
        self.go_type = go_type
        self.underlying = underlying or go_type

    def of(self, items: Iterable[Any]) -> Slice:
        """Return another slice of the same type."""
        return Slice(items, go_type=self.go_type, underlying=self.underlying)


def strings(items: Iterable[str] = ()) -> Slice:
    """Return a `[]string`."""
    return Slice(items, go_type=STRINGS)


class Map(dict[Any, Any]):
    """A map of a type other than `map[string]interface {}`; `zero` is its element's zero value."""

    __slots__ = ("go_type", "key_type", "zero")

    def __init__(
        self,
        items: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (),
        *,
        go_type: str,
        zero: Any = None,
        key_type: str = STRING,
    ) -> None:
        super().__init__(items)
        self.go_type = go_type
        self.zero = zero
        self.key_type = key_type


def string_map(items: Mapping[str, str] | None) -> Map:
    """Return a `map[string]string`."""
    return Map(items or {}, go_type="map[string]string", zero="")


class NilPointer:
    """A nil pointer of a known type."""

    __slots__ = ("fields", "go_type")

    def __init__(self, go_type: str, *, fields: frozenset[str] = frozenset()) -> None:
        self.go_type = go_type
        self.fields = fields

    def __bool__(self) -> bool:
        return False


class Channel:
    """A receive-only channel: its values can be taken once, in order."""

    __slots__ = ("go_type", "items")

    def __init__(self, items: Iterator[Any], *, go_type: str) -> None:
        self.items = items
        self.go_type = go_type


class Function:
    """A function a template may call.

    `params` are the Go types of the fixed parameters, `variadic` the element type of the last one or "".
    `call` gets the arguments as values of this module and raises FunctionError.
    """

    __slots__ = ("call", "go_type", "name", "params", "variadic")

    def __init__(
        self, name: str, call: Callable[..., Any], params: Sequence[str] = (), variadic: str = ""
    ) -> None:
        self.name = name
        self.call = call
        self.params = tuple(params)
        self.variadic = variadic
        inside = [*self.params, *(["..." + variadic] if variadic else [])]
        self.go_type = f"func({', '.join(inside)}) ({ANY}, error)"


class Struct(msgspec.Struct, frozen=True):
    """A Go struct. Its encoded field names are Go's; the order of fields is the order of printing.

    `go_name` is the type's name without `*`; `go_pointer` tells whether templates see a pointer to it.
    `go_methods` are methods a template may call: name → function of the struct and the arguments.
    """

    go_name: ClassVar[str] = ""
    go_pointer: ClassVar[bool] = True
    go_methods: ClassVar[Mapping[str, Function]] = {}
    go_later: ClassVar[frozenset[str]] = frozenset()
    """Fields that can be read, but are left out when the whole struct is shown."""


_FIELDS: dict[type[Struct], dict[str, str]] = {}


def fields_of(record: Struct | type[Struct]) -> dict[str, str]:
    """Return Go field name → attribute, in the order of declaration."""
    cls = record if isinstance(record, type) else type(record)
    known = _FIELDS.get(cls)
    if known is None:
        known = dict(zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True))
        _FIELDS[cls] = known
    return known


def shown_fields(record: Struct) -> dict[str, Any]:
    """Return Go field name → value of the fields that printing and JSON show."""
    later = record.go_later
    return {
        name: getattr(record, attribute)
        for name, attribute in fields_of(record).items()
        if name not in later
    }


def nil_pointer(cls: type[Struct]) -> NilPointer:
    """Return the nil pointer to a struct type."""
    return NilPointer("*" + cls.go_name, fields=frozenset(fields_of(cls)))


_PLAIN_TYPES: Final[dict[type, str]] = {
    bool: "bool",
    int: "int",
    float: "float64",
    complex: "complex128",
    str: STRING,
    list: LIST,
    tuple: LIST,
    dict: MAP,
}
_PLAIN_KINDS: Final[dict[type, str]] = {
    bool: "bool",
    int: "int",
    Int64: "int",
    Uint64: "uint",
    Uint8: "uint",
    float: "float",
    complex: "complex",
    str: "string",
    list: "slice",
    tuple: "slice",
    Slice: "slice",
    dict: "map",
    Map: "map",
    Channel: "chan",
    Function: "func",
    NilPointer: "ptr",
    type(None): INTERFACE,
    Invalid: "invalid",
}


def type_of(value: Any) -> str:
    """Return the Go name of a value's type, as `%T` prints it (`<nil>` for no value)."""
    plain = _PLAIN_TYPES.get(type(value))
    if plain is not None:
        return plain
    if value is None or value is INVALID:
        return "<nil>"
    if isinstance(value, Struct):
        return ("*" if value.go_pointer else "") + value.go_name
    named = getattr(value, "go_type", "")
    if named:
        return str(named)
    for plain_type, name in _PLAIN_TYPES.items():
        if isinstance(value, plain_type):
            return name
    return type(value).__name__


def kind_of(value: Any) -> str:
    """Return the kind: bool int uint float complex string slice map struct ptr chan func interface invalid."""
    kind = _PLAIN_KINDS.get(type(value))
    if kind is not None:
        return kind
    if isinstance(value, Struct):
        return "struct"
    for plain_type, name in _PLAIN_KINDS.items():
        if isinstance(value, plain_type):
            return name
    return "struct"


def underlying_of(value: Any) -> str:
    """Return the name of the type a value's type is made of."""
    if isinstance(value, Slice):
        return value.underlying
    return type_of(value)


def truth(value: Any) -> bool:
    """Tell whether Go's `if` takes the value for true."""
    if isinstance(value, (bool, int, float, complex, str, list, dict, tuple)):
        return bool(value)
    return value is not None and value is not INVALID and not isinstance(value, NilPointer)


def can_be_nil(go_type: str) -> bool:
    """Tell whether nil may be passed for a parameter of this type."""
    return go_type in (ANY, VALUE) or go_type.startswith(("[]", "map[", "*", "<-chan", "func"))


def zero_of(go_type: str) -> Any:
    """Return the zero value of a type that can be nil."""
    if go_type == VALUE:
        return INVALID
    if go_type == ANY:
        return None
    if go_type == LIST:
        return []
    if go_type.startswith("[]"):
        return Slice((), go_type=go_type)
    if go_type.startswith("map["):
        return {} if go_type == MAP else Map({}, go_type=go_type)
    return NilPointer(go_type)


def to_bytes(text: str) -> bytes:
    """Return the bytes of a Go string."""
    return text.encode("utf-8", "surrogateescape")


def from_bytes(raw: bytes) -> str:
    """Return a Go string of any bytes."""
    return raw.decode("utf-8", "surrogateescape")


def byte_length(text: str) -> int:
    """Return the length of a Go string."""
    return len(text) if text.isascii() else len(to_bytes(text))


def _class_of(key: Any) -> int:
    if key is None:
        return 0
    if isinstance(key, (bool,)):
        return 3
    if isinstance(key, int):
        return 1
    if isinstance(key, float):
        return 2
    if isinstance(key, str):
        return 4
    return 5


def _sort_key(key: Any) -> tuple[int, Any]:
    order = _class_of(key)
    if isinstance(key, str):
        return order, to_bytes(key)
    if isinstance(key, float) and key != key:
        return order, float("-inf")
    if order in (1, 2, 3):
        return order, key
    return order, repr(key)


def sorted_keys(mapping: Mapping[Any, Any]) -> list[Any]:
    """Return a map's keys in the order Go prints and ranges over them."""
    keys = list(mapping)
    try:
        if all(type(key) is str and key.isascii() for key in keys):
            return sorted(keys)
        return sorted(keys, key=_sort_key)
    except TypeError:
        return sorted(keys, key=repr)
