"""Durations as Go writes them (`1h2m3.5s`), the form of Consul's API and configuration.

Source: Go `time.ParseDuration` and `Duration.String`, of which the error texts are repeated by Consul.
"""

from __future__ import annotations

import re
from fractions import Fraction

from waypost.base.errors import Malformed

_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_MAX_NS = 2**63 - 1


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse_ns(text: str) -> int:
    """Return the nanoseconds of a Go duration such as `"1m30s"` or `"-1.5h"`.

    Raises Malformed with Go's own words (`time: missing unit in duration "10"`).
    """
    bad = Malformed(f"time: invalid duration {_quote(text)}")
    rest = text
    negative = rest.startswith("-")
    if rest[:1] in ("-", "+"):
        rest = rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise bad
    total = Fraction(0)
    while rest:
        match = _PART.match(rest)
        if match is None:
            raise bad
        whole, fraction, unit = match.group(1), match.group(2), match.group(3)
        if not whole and not fraction:
            raise bad
        if not unit:
            raise Malformed(f"time: missing unit in duration {_quote(text)}")
        if unit not in _UNIT_NS:
            raise Malformed(f"time: unknown unit {_quote(unit)} in duration {_quote(text)}")
        value = Fraction(int(whole or "0"))
        if fraction:
            value += Fraction(int(fraction), 10 ** len(fraction))
        total += value * _UNIT_NS[unit]
        rest = rest[match.end() :]
    ns = int(total)
    if ns > _MAX_NS:
        raise bad
    return -ns if negative else ns


def parse_s(text: str) -> float:
    """Return the seconds of a Go duration; see `parse_ns`."""
    return parse_ns(text) / 1e9


def format_ns(ns: int) -> str:
    """Return the nanoseconds as Go prints them: `1m30s`, `1.5s`, `200ms`, `0s`."""
    if ns == 0:
        return "0s"
    sign = "-" if ns < 0 else ""
    ns = abs(ns)
    if ns < 10**9:
        for unit, size in (("ms", 10**6), ("µs", 10**3)):
            if ns >= size:
                return sign + _decimal(ns, size) + unit
        return f"{sign}{ns}ns"
    hours, ns = divmod(ns, 3600 * 10**9)
    minutes, ns = divmod(ns, 60 * 10**9)
    out = sign
    if hours:
        out += f"{hours}h"
    if hours or minutes:
        out += f"{minutes}m"
    return out + _decimal(ns, 10**9) + "s"


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    if not rest:
        return str(whole)
    digits = len(str(size)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0")
