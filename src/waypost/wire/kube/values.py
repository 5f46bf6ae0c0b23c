"""JSON values as the kube-style API moves them, and the words of Go in which its errors speak.

Objects travel as plain JSON objects (`JsonObject`): patches, field ownership and pruning work on any
field, known or not, so a record per kind would only be in their way. `schema` says what is allowed in
one. Every function here leaves its arguments unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.base.quoting import escaped, quoted

JsonObject = dict[str, Any]
"""A JSON object; its values are None, bool, int, float, str, list and `JsonObject`."""

MAX_DEPTH: Final = 200
"""Deeper documents are refused: no object of this API nests more than a dozen levels."""

_LONE_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class DuplicateKeys(dict[str, Any]):
    """An object that named a key more than once; the last value counts, as in Go."""

    __slots__ = ("duplicates",)

    def __init__(self, pairs: list[tuple[str, Any]], duplicates: tuple[str, ...]) -> None:
        super().__init__(pairs)
        self.duplicates = duplicates


def _from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    again: list[str] = []
    for key, _ in pairs:
        if key in seen:
            again.append(key)
        seen.add(key)
    return DuplicateKeys(pairs, tuple(dict.fromkeys(again)))


def _refuse_constant(name: str) -> Any:
    raise Malformed(f"invalid character '{name[0]}' looking for beginning of value")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_from_pairs, parse_constant=_refuse_constant, strict=True
)


def decode_json(body: bytes) -> Any:
    """Return the JSON value in `body`; an object with repeated keys comes as `DuplicateKeys`.

    Bytes that are no UTF-8 and lone surrogates become U+FFFD, as in Go. Raises Malformed with the text
    Go's decoder has for it (`invalid character 'b' looking for beginning of object key string`).
    """
    text = body.decode("utf-8", "replace")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as exc:
        raise Malformed(json_error_text(exc.msg, text, exc.pos)) from exc
    except RecursionError as exc:
        raise Malformed("exceeded max depth") from exc
    except ValueError as exc:  # an integer of thousands of digits
        raise Malformed("json: a number is too long") from exc
    if _LONE_SURROGATE.search(text):
        value = _whole_characters(value)
    check_depth(value)
    return value


_PLACES: Final = (
    ("Expecting property name", "looking for beginning of object key string"),
    ("Illegal trailing comma before end of object", "looking for beginning of object key string"),
    ("Expecting ':'", "after object key"),
    ("Expecting ','", "after object key:value pair"),
    ("Extra data", "after top-level value"),
    ("Invalid control character", "in string literal"),
    ("Invalid \\escape", "in string escape code"),
    ("Invalid \\u", "in \\u hexadecimal character escape"),
)
"""What Python's decoder says, and Go's words for where it is."""


def json_error_text(message: str, text: str, at: int) -> str:
    """Return what Go says where Python's decoder says `message` at offset `at` of `text`."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    if at >= len(text) or message.startswith("Unterminated"):
        return "unexpected end of JSON input"
    places = (place for start, place in _PLACES if message.startswith(start))
    where = next(places, "looking for beginning of value")
    return f"invalid character {quoted_rune(text[at])} {where}"


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_characters(one) for one in value]
    if isinstance(value, dict):
        pairs = [(_whole_characters(key), _whole_characters(one)) for key, one in value.items()]
        if isinstance(value, DuplicateKeys):
            return DuplicateKeys(pairs, value.duplicates)
        return dict(pairs)
    return value


def check_depth(value: Any, *, limit: int = MAX_DEPTH) -> None:
    """Raise Malformed if `value` nests deeper than `limit`; afterwards recursion over it is safe."""
    level = [value]
    for _ in range(limit):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(v for v in one.values() if isinstance(v, (dict, list)))
            elif isinstance(one, list):
                below.extend(v for v in one if isinstance(v, (dict, list)))
        if not below:
            return
        level = below
    raise Malformed("exceeded max depth")


_ENCODER: Final = msgspec.json.Encoder()


def encode_json(value: Any) -> bytes:
    """Return `value` as compact JSON in the order of its keys."""
    return _ENCODER.encode(value)


def copied(value: Any) -> Any:
    """Return a deep copy of a JSON value."""
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    if isinstance(value, list):
        return [copied(one) for one in value]
    return value


def equal(left: Any, right: Any) -> bool:
    """Tell whether two JSON values are the same; unlike `==`, true is not 1, but 1 is 1.0."""
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(equal(one, right[key]) for key, one in left.items())
        )
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)


def json_type(value: Any) -> str:
    """Return the JSON type of `value` as Go names it: `string`, `number`, `bool`, `array`, `object`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else "number"


def quoted_rune(char: str) -> str:
    """Return a character as Go's JSON errors print it, in single quotes."""
    if char == "'":
        return "'\\''"
    return "'\"'" if char == '"' else f"'{escaped(char)}'"


def quoted_list(texts: Iterable[str]) -> str:
    """Return strings as a Go value in an error of validation: `[]string{"a", "b"}`."""
    return "[]string{" + ", ".join(map(quoted, texts)) + "}"
