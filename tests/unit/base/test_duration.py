"""Durations are Go's, in both directions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.duration import format_ns, parse_ns
from waypost.base.errors import Malformed


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 0),
        ("0s", 0),
        ("10s", 10 * 10**9),
        ("1m30s", 90 * 10**9),
        ("-1.5h", -5400 * 10**9),
        (".5s", 5 * 10**8),
        ("1.s", 10**9),
        ("3ms2µs1ns", 3_002_001),
        ("+2us", 2000),
    ],
)
def test_reads_what_go_reads(text, ns):
    assert parse_ns(text) == ns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("abc", 'time: invalid duration "abc"'),
        ("10", 'time: missing unit in duration "10"'),
        ("10x", 'time: unknown unit "x" in duration "10x"'),
        ("1s.", 'time: invalid duration "1s."'),
        ("-", 'time: invalid duration "-"'),
        ("9999999h", 'time: invalid duration "9999999h"'),
    ],
)
def test_refuses_in_gos_words(text, message):
    with pytest.raises(Malformed) as caught:
        parse_ns(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (90 * 10**9, "1m30s"),
        (15 * 10**8, "1.5s"),
        (2 * 10**8, "200ms"),
        (3600 * 10**9, "1h0m0s"),
        (1500, "1.5µs"),
        (7, "7ns"),
        (-(10**9), "-1s"),
    ],
)
def test_prints_what_go_prints(ns, text):
    assert format_ns(ns) == text


@given(st.integers(min_value=-(2**62), max_value=2**62))
def test_what_is_printed_can_be_read(ns):
    assert parse_ns(format_ns(ns)) == ns
