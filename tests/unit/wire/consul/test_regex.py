"""Regular expressions against the answers of Go's regexp, as Consul gives them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import Malformed
from waypost.wire.consul.regex import Regex

ROWS = json.loads((Path(__file__).parent / "data" / "regex.json").read_text())["rows"]
# Unicode scripts are not known to Python's own tables; they are refused by name.
UNSUPPORTED = {"\\p{Greek}"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["pattern"])
def test_as_recorded(row):
    if row["pattern"] in UNSUPPORTED:
        with pytest.raises(Malformed, match="invalid character class range"):
            Regex(row["pattern"])
        return
    try:
        matches, error = Regex(row["pattern"]).search("rec1"), None
    except Malformed as raised:
        matches, error = None, str(raised)
    assert (matches, error) == (row["matches"], row["error"])


def test_no_expression_takes_exponential_time():
    started = time.perf_counter()
    assert not Regex("(a+)+$").search("a" * 4096 + "b")
    assert not Regex("(a|a)*b").search("a" * 4096)
    assert not Regex("(x+x+)+y").search("x" * 4096)
    assert time.perf_counter() - started < 2


def test_size_is_bounded():
    with pytest.raises(Malformed, match="expression too large"):
        Regex("[a-z]{1,1000}" * 10)
    with pytest.raises(Malformed, match="nests too deeply"):
        Regex("(" * 10_000)


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", r"\b", "^", "$", "c"])


def _extend(inner):
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{0,2}", "{2}"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
    )


@given(st.recursive(ATOMS, _extend, max_leaves=6), st.text("abc1 \n", max_size=6))
def test_agrees_with_pythons_re_where_both_mean_the_same(pattern, text):
    # Go's $ is Python's \Z; everything else used here means the same in both.
    python = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    assert Regex(pattern).search(text) == (python.search(text) is not None)
