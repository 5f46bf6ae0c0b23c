"""What the labels and the environment of a container say: Registrator's `SERVICE_…` language.

Pure. Source: Registrator's documentation of container metadata; its rules are kept to the letter except that
tags keep the order they were written in, and that nothing depends on the order of a hash map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

PREFIX: Final = "SERVICE_"
META_PAIRS_MAX: Final = 64
META_KEY_MAX_BYTES: Final = 128
META_VALUE_MAX_BYTES: Final = 512

_INTEGER = re.compile(r"[+-]?[0-9]+\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0080-\u009f\u2028\u2029]")
_META_KEY_BAD = re.compile(r"[^A-Za-z0-9_-]")


class Attributes(msgspec.Struct, frozen=True):
    """The attributes that hold for one port: lower-case key → value as written."""

    values: Mapping[str, str]
    from_port: frozenset[str] = frozenset()
    """Keys whose value was given for this very port (`SERVICE_80_NAME`)."""

    def get(self, key: str) -> str:
        """Return the value, or an empty string."""
        return self.values.get(key, "")


def entries(env: Iterable[str], labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the `SERVICE_` entries as (lower-case key, value), the weaker ones first.

    Environment first, then labels by name, so a label beats the environment and of two labels that differ
    only in letter case the one that sorts last wins, every time.
    """
    found = [
        (name, value) for name, sep, value in (entry.partition("=") for entry in env) if sep
    ] + sorted(labels.items())
    return tuple(
        (name.removeprefix(PREFIX).lower(), value)
        for name, value in found
        if name.startswith(PREFIX) and name != PREFIX
    )


def attributes(found: Iterable[tuple[str, str]], port: str) -> Attributes:
    """Return what holds for the exposed port `port`; its own values beat general ones.

    The number is compared as text: `SERVICE_080_NAME` never means port 80.
    """
    values: dict[str, str] = {}
    from_port: set[str] = set()
    for key, value in found:
        number, sep, rest = key.partition("_")
        if sep and _INTEGER.match(number):
            if number == port:
                values[rest] = value
                from_port.add(rest)
        elif key not in from_port:
            values[key] = value
    return Attributes(values, frozenset(from_port))


def parse_tags(text: str) -> tuple[str, ...]:
    r"""Return the items of a comma-separated list; `\,` is a comma, empty items vanish, order stays."""
    items: list[str] = []
    current: list[str] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char == "\\" and text[position + 1 : position + 2] == ",":
            current.append(",")
            position += 2
            continue
        if char == ",":
            items.append("".join(current))
            current.clear()
        else:
            current.append(char)
        position += 1
    items.append("".join(current))
    return tuple(item for item in items if item)


def has_control(text: str) -> bool:
    """Return whether `text` has characters that could break a line of a log, a file or a protocol."""
    return _CONTROL.search(text) is not None


def printable(text: str, *, at_most_chars: int = 300) -> str:
    """Return `text` as one line for a log: control characters escaped, the rest of a long one left out."""
    line = _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)
    return line if len(line) <= at_most_chars else line[: at_most_chars - 1] + "…"


def cut(text: str, *, at_most_bytes: int) -> str:
    """Return the longest beginning of `text` that fits, without half a character at the end."""
    return text.encode(errors="replace")[:at_most_bytes].decode(errors="ignore")


def clean_meta(values: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return `values` as metadata that Consul's rules accept, and what had to be changed, for the log.

    Keys: other characters than `A-Za-z0-9_-` become `_`, the reserved prefix `consul-` becomes `consul_`, at
    most 128 bytes; values: at most 512 bytes, control characters become blanks; at most 64 pairs. Of two
    keys that become the same the first by name stays. Source: Consul, limits of service metadata.
    """
    meta: dict[str, str] = {}
    changes: list[str] = []
    for key in sorted(values):
        name = cut(_META_KEY_BAD.sub("_", key), at_most_bytes=META_KEY_MAX_BYTES)
        if name.startswith("consul-"):
            name = "consul_" + name.removeprefix("consul-")
        if not name:
            continue
        if name != key:
            changes.append(f"metadata key {key!r} became {name!r}")
        if name in meta:
            changes.append(f"metadata key {key!r} dropped: {name!r} is already there")
            continue
        if len(meta) == META_PAIRS_MAX:
            changes.append(f"metadata key {key!r} dropped: more than {META_PAIRS_MAX}")
            continue
        value = cut(_CONTROL.sub(" ", values[key]), at_most_bytes=META_VALUE_MAX_BYTES)
        if len(value) != len(values[key]):
            changes.append(f"metadata {key!r} cut to {META_VALUE_MAX_BYTES} bytes")
        meta[name] = value
    return meta, tuple(changes)
