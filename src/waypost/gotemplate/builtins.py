"""The functions every Go template has. Source: Go package text/template, "Functions".

`and` and `or` are listed for their signatures; the compiler evaluates them, because they stop early.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from waypost.gotemplate import fmt, strconv
from waypost.gotemplate.errors import FunctionError
from waypost.gotemplate.values import (
    ANY,
    INVALID,
    STRING,
    VALUE,
    Function,
    Map,
    Slice,
    byte_length,
    from_bytes,
    kind_of,
    to_bytes,
    truth,
    type_of,
)
from waypost.gotemplate.values import Uint8 as _Uint8


def _or(*args: Any) -> Any:
    return next((arg for arg in args if truth(arg)), args[-1])


def _and(*args: Any) -> Any:
    return next((arg for arg in args if not truth(arg)), args[-1])


def _len(value: Any) -> int:
    kind = kind_of(value)
    if kind == "string":
        return byte_length(value)
    if kind in ("slice", "map"):
        return len(value)
    if kind == "chan":
        return 0
    if kind in ("invalid", "interface"):
        raise FunctionError("reflect: call of reflect.Value.Type on zero Value")
    if kind == "ptr":
        raise FunctionError("len of nil pointer")
    raise FunctionError(f"len of type {type_of(value)}")


def _position(index: Any, length: int, *, end: bool = False) -> int:
    kind = kind_of(index)
    if kind not in ("int", "uint"):
        if kind in ("invalid", "interface"):
            raise FunctionError("cannot index slice/array with nil")
        raise FunctionError(f"cannot index slice/array with type {type_of(index)}")
    number = int(index)
    if number < 0 or number > length or (number == length and not end):
        raise _OutOfRange(number)
    return number


class _OutOfRange(FunctionError):
    def __init__(self, number: int) -> None:
        super().__init__(f"index out of range: {number}")
        self.number = number


def _index(value: Any, *keys: Any) -> Any:
    if value is INVALID or value is None:
        raise FunctionError("index of untyped nil")
    for key in keys:
        kind = kind_of(value)
        if kind in ("interface", "ptr", "invalid"):
            raise FunctionError("index of nil pointer")
        if kind in ("slice", "string"):
            value = _index_list(value, key, is_string=kind == "string")
        elif kind == "map":
            value = _index_map(value, key)
        else:
            raise FunctionError(f"can't index item of type {type_of(value)}")
    return value


def _index_list(value: Any, key: Any, *, is_string: bool) -> Any:
    raw = to_bytes(value) if is_string else value
    try:
        at = _position(key, len(raw))
    except _OutOfRange as exc:
        if exc.number < 0:
            raise
        what = "string" if is_string else "slice"
        raise FunctionError(f"reflect: {what} index out of range") from exc
    return _Uint8(raw[at]) if is_string else raw[at]


def _index_map(value: dict[Any, Any], key: Any) -> Any:
    key_type = value.key_type if isinstance(value, Map) else STRING
    if key is INVALID:
        key = None
    if key_type not in (ANY, type_of(key)):
        if key is None:
            raise FunctionError(f"value is nil; should be of type {key_type}")
        if key_type == "int" and kind_of(key) in ("int", "uint"):
            key = int(key)
        else:
            raise FunctionError(f"value has type {type_of(key)}; should be {key_type}")
    try:
        if key in value:
            return value[key]
    except TypeError as exc:
        raise FunctionError(f"runtime error: hash of unhashable type {type_of(key)}") from exc
    return value.zero if isinstance(value, Map) else None


def _slice(value: Any, *bounds: Any) -> Any:
    kind = kind_of(value)
    if value is INVALID or value is None:
        raise FunctionError("slice of untyped nil")
    if len(bounds) > 3:
        raise FunctionError(f"too many slice indexes: {len(bounds)}")
    if kind == "string":
        if len(bounds) == 3:
            raise FunctionError("cannot 3-index slice a string")
        raw: Any = to_bytes(value)
    elif kind == "slice":
        raw = value
    else:
        raise FunctionError(f"can't slice item of type {type_of(value)}")
    places = [_position(bound, len(raw), end=True) for bound in bounds]
    begin = places[0] if places else 0
    end = places[1] if len(places) > 1 else len(raw)
    if begin > end:
        raise FunctionError(f"invalid slice index: {begin} > {end}")
    if len(places) == 3 and end > places[2]:
        raise FunctionError(f"invalid slice index: {end} > {places[2]}")
    if kind == "string":
        return from_bytes(raw[begin:end])
    return value.of(raw[begin:end]) if isinstance(value, Slice) else list(raw[begin:end])


# Comparison

_NUMBERS: Final = ("int", "uint")
_BASIC: Final = ("bool", "int", "uint", "float", "complex", "string")
_INCOMPATIBLE: Final = "incompatible types for comparison"
_INVALID_TYPE: Final = "invalid type for comparison"


def _missing(value: Any) -> bool:
    return value is INVALID or value is None


def _eq(first: Any, *others: Any) -> bool:
    _comparable(first)
    if not others:
        raise FunctionError("missing argument for comparison")
    kind = kind_of(first)
    for other in others:
        other_kind = kind_of(other)
        if kind == other_kind and kind in _BASIC:
            if first == other:
                return True
        elif kind in _NUMBERS and other_kind in _NUMBERS:
            if int(first) == int(other):
                return True
        elif _missing(first) or _missing(other):
            if (_missing(first) and _missing(other)) or (_is_nil(first) and _is_nil(other)):
                return True
        elif kind in _BASIC or other_kind in _BASIC:
            raise FunctionError(_INCOMPATIBLE)
        else:
            _comparable(other)
            if first is other or (kind == "ptr" and other_kind == "ptr"):
                return True
    return False


def _is_nil(value: Any) -> bool:
    return _missing(value) or kind_of(value) == "ptr"


def _comparable(value: Any) -> None:
    if kind_of(value) in ("slice", "map", "func"):
        raise FunctionError(f"non-comparable type {fmt.sprintf('%s', [value])}: {type_of(value)}")


def _ne(first: Any, second: Any) -> bool:
    return not _eq(first, second)


def _lt(first: Any, second: Any) -> bool:
    kind, other = _order_kind(first), _order_kind(second)
    if kind != other and not (kind in _NUMBERS and other in _NUMBERS):
        raise FunctionError(_INCOMPATIBLE)
    if kind in ("bool", "complex"):
        raise FunctionError(_INVALID_TYPE)
    if kind == "string":
        return to_bytes(first) < to_bytes(second)
    return bool(first < second)


def _order_kind(value: Any) -> str:
    kind = kind_of(value)
    if kind not in _BASIC:
        raise FunctionError(_INVALID_TYPE)
    return kind


def _le(first: Any, second: Any) -> bool:
    return _lt(first, second) or _eq(first, second)


def _gt(first: Any, second: Any) -> bool:
    return not _le(first, second)


def _ge(first: Any, second: Any) -> bool:
    return not _lt(first, second)


# Text


def _nil_text(args: tuple[Any, ...]) -> list[Any]:
    return ["<no value>" if _missing(arg) else arg for arg in args]


def _join(args: tuple[Any, ...]) -> str:
    if len(args) == 1 and isinstance(args[0], str):
        return args[0]
    # Go prints the arguments as an action would: a pointer to a struct is followed once.
    shown = [
        fmt.struct_body(arg, "v") if kind_of(arg) == "struct" and hasattr(arg, "go_name") else arg
        for arg in _nil_text(args)
    ]
    return fmt.sprint(shown)


_HTML: Final = {
    "\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;",
}  # fmt: skip
_HTML_SPECIAL: Final = re.compile("[\0\"'&<>]")


def html_escape(text: str) -> str:
    """Return Go's `template.HTMLEscapeString`."""
    return _HTML_SPECIAL.sub(lambda match: _HTML[match.group()], text)


def _html(*args: Any) -> str:
    return html_escape(_join(args))


_JS: Final = {
    "\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D",
}  # fmt: skip


def _js_char(char: str) -> str:
    known = _JS.get(char)
    if known is not None:
        return known
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return f"\\u00{code:02X}" if code < 0x80 else char
    if 0xDC80 <= code <= 0xDCFF:
        return "\\uFFFD"
    return char if code < 0x80 or strconv.is_printable(char) else f"\\u{code:04X}"


def _js(*args: Any) -> str:
    return "".join(map(_js_char, _join(args)))


def query_escape(text: str) -> str:
    """Return Go's `url.QueryEscape`."""
    out = []
    for byte in to_bytes(text):
        char = chr(byte)
        if byte < 0x80 and (char.isalnum() or char in "-_.~"):
            out.append(char)
        else:
            out.append("+" if char == " " else f"%{byte:02X}")
    return "".join(out)


def _urlquery(*args: Any) -> str:
    return query_escape(_join(args))


def _print(*args: Any) -> str:
    return fmt.sprint(args)


def _println(*args: Any) -> str:
    return fmt.sprintln(args)


def _printf(template: str, *args: Any) -> str:
    return fmt.sprintf(template, args)


def _call(function: Any, *args: Any) -> Any:
    if _missing(function):
        raise FunctionError("call of nil")
    if not isinstance(function, Function):
        raise FunctionError(f"non-function of type {type_of(function)}")
    return function.call(*args)


def _not(value: Any) -> bool:
    return not truth(value)


def _functions(
    *table: tuple[str, Callable[..., Any], tuple[str, ...], str],
) -> Mapping[str, Function]:
    return {name: Function(name, call, params, variadic) for name, call, params, variadic in table}


BUILTINS: Final[Mapping[str, Function]] = _functions(
    ("and", _and, (VALUE,), VALUE),
    ("or", _or, (VALUE,), VALUE),
    ("not", _not, (VALUE,), ""),
    ("len", _len, (VALUE,), ""),
    ("index", _index, (VALUE,), VALUE),
    ("slice", _slice, (VALUE,), VALUE),
    ("print", _print, (), ANY),
    ("println", _println, (), ANY),
    ("printf", _printf, (STRING,), ANY),
    ("html", _html, (), ANY),
    ("js", _js, (), ANY),
    ("urlquery", _urlquery, (), ANY),
    ("call", _call, (VALUE,), VALUE),
    ("eq", _eq, (VALUE,), VALUE),
    ("ne", _ne, (VALUE, VALUE), ""),
    ("lt", _lt, (VALUE, VALUE), ""),
    ("le", _le, (VALUE, VALUE), ""),
    ("gt", _gt, (VALUE, VALUE), ""),
    ("ge", _ge, (VALUE, VALUE), ""),
)
