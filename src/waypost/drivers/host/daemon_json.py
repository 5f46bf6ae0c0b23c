"""The text of Docker's daemon.json: one key set or taken out, everything else byte for byte as it was. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed

_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder()


class Member(msgspec.Struct, frozen=True):
    """A key of the outermost object, and where it and its value stand in the text."""

    key: str
    value: Any
    key_at: int
    value_at: int
    end: int


def members(text: str, *, name: str) -> tuple[Member, ...]:
    """Return the outermost object's members in order; a file of blanks has none. Raises Malformed with the place."""
    if not text.strip():
        return ()
    try:
        whole = json.loads(text)
    except ValueError as exc:
        raise Malformed(
            f"{name} is no valid JSON, and Docker would not start with it: {exc}"
        ) from exc
    if not isinstance(whole, dict):
        raise Malformed(f"{name} does not hold a JSON object, and Docker would not start with it")
    # The text is known to be right, so that from here on everything is where it is looked for.
    found: list[Member] = []
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        key_at = at
        key, at = _DECODER.raw_decode(text, at)
        value_at = _skip(text, _skip(text, at) + 1)
        value, at = _DECODER.raw_decode(text, value_at)
        found.append(Member(key, value, key_at, value_at, at))
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return tuple(found)


def value_of(text: str, key: str, *, name: str) -> Any:
    """Return the value of a key, None without it. Of two the last one counts, as in Docker. Raises Malformed."""
    return next((one.value for one in reversed(members(text, name=name)) if one.key == key), None)


def with_value(text: str, key: str, value: Any, *, name: str) -> str:
    """Return the text with a key's value, where the key stands or else as the first one. Raises Malformed."""
    found = members(text, name=name)
    written = json.dumps(value, ensure_ascii=False)
    for one in reversed(found):
        if one.key == key:
            return text if one.value == value else text[: one.value_at] + written + text[one.end :]
    entry = f"{json.dumps(key)}: {written}"
    if not text.strip():
        return f"{{\n  {entry}\n}}\n"
    at = text.index("{") + 1
    if not found:
        end = _skip(text, at)
        return f"{text[:at]}\n  {entry}\n{text[end:]}"
    # First, because that is one whole line more: no comma of another line changes.
    return f"{text[:at]}{text[at : found[0].key_at]}{entry},{_gap(text, at, found)}{text[found[0].key_at :]}"


def without(text: str, key: str, *, name: str) -> str:
    """Return the text without a key and what separates it from the others. Raises Malformed."""
    while True:
        found = members(text, name=name)
        place = next((number for number, one in enumerate(found) if one.key == key), None)
        if place is None:
            return text
        if place + 1 < len(found):
            text = text[: found[place].key_at] + text[found[place + 1].key_at :]
        elif place:
            text = text[: found[place - 1].end] + text[found[place].end :]
        else:
            start, end = text.index("{") + 1, found[place].end
            text = text[:start] + text[_skip(text, end) :]


def _gap(text: str, at: int, found: tuple[Member, ...]) -> str:
    """Return what stands before each key: a line break and its indentation, or a blank on one line."""
    blanks = text[at : found[0].key_at]
    return blanks if "\n" in blanks else " "


def _skip(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at
