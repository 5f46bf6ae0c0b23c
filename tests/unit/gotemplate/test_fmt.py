"""printf and its mistakes, checked against what Go prints."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waypost.base.errors import Malformed
from waypost.gotemplate import Template
from waypost.gotemplate.fmt import sprintf
from waypost.gotemplate.strconv import format_float, quote, unquote
from waypost.gotemplate.values import Int64, Uint64, strings


@pytest.mark.parametrize(
    ("template", "args", "output"),
    [
        ("%08.3f|%+.2e|%g", [3.14159, 12345.678, 1e21], "0003.142|+1.23e+04|1e+21"),
        ("%6d|%-6d|%06d|%+d|% d", [42, 42, -42, 42, 42], "    42|42    |-00042|+42| 42"),
        ("%#x %#o %#b %O %#q", [255, 8, 5, 8, "a`b"], '0xff 010 0b101 0o10 "a`b"'),
        ("%x|% x|%#x|%X", ["hi", "hi", "hi", "hi"], "6869|68 69|0x6869|6869"),
        ("%q %+q %#q", ["é\n", "é", "a"], '"é\\n" "\\u00e9" `a`'),
        ("%c %U %#U %q", [233, 233, 233, 233], "é U+00E9 U+00E9 'é' 'é'"),
        ("%v %v", [float("inf"), float("nan")], "+Inf NaN"),
        ("%5t|%-7t|", [True, False], " true|false  |"),
        ("%[3]*.[2]*[1]f|", [12.0, 2, 6], " 12.00|"),
        ("%[2]d %d %[1]d", [1, 2, 3], "2 3 1"),
        ("%s", [[3.0, "x"]], "[%!s(float64=3) x]"),
        ("%q %d", [strings(["a", "b"]), [1, 2]], '["a" "b"] [1 2]'),
        (
            "%v %+v %#v",
            [{"b": 1, "a": None}] * 3,
            'map[a:<nil> b:1] map[a:<nil> b:1] map[string]interface {}{"a":interface {}(nil), "b":1}',
        ),
        ("%T %T %T", [Int64(1), Uint64(1), None], "int64 uint64 <nil>"),
        ("%!d", [3], "%!!(int=3)d"),
        ("%d %s", [None, None], "%!d(<nil>) %!s(<nil>)"),
        ("%[x]d %[0]d", [1], "%!d(BADINDEX) %!d(BADINDEX)"),
        ("%*d", ["a", 3], "%!(BADWIDTH)3"),
        ("%.*f", [-1, 2.0], "%!(BADPREC)2.000000"),
        ("%", [], "%!(NOVERB)"),
        ("%d%%", [1, 2], "1%%!(EXTRA int=2)"),
        ("%x", [-255], "-ff"),
        ("%.3d|%8.3d|%+.3d", [7, 7, 7], "007|     007|+007"),
        ("%x %X", [1.5, -2.0], "0x1.8p+00 -0X1P+01"),
    ],
)
def test_sprintf(template, args, output):
    assert sprintf(template, args) == output


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FORMATS = st.text(alphabet="%+-# 0123456789.*[]vdsqxXTtfeEgGbcoOUp!a", max_size=20)


@given(FORMATS, st.lists(VALUES, max_size=4))
@settings(max_examples=400, deadline=None)
def test_sprintf_never_raises(template, args):
    assert isinstance(sprintf(template, args), str)


TEMPLATES = st.lists(
    st.sampled_from(
        [
            "{{", "}}", "{{-", "-}}", " ", "if", "else", "end", "range", "with", "define", "template", "block",
            "break", "continue", '"t"', "`r`", "'c'", "1", "-2.5", "0x", "1i", "$", "$x", ":=", "=", ",", "|", "(",
            ")", ".", ".A", ".B.C", "nil", "true", "print", "index", "len", "eq", "/*", "*/", "\n", "é", "\x00", "\\",
        ]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@given(TEMPLATES | st.text(max_size=40))
@settings(max_examples=600, deadline=None)
def test_templates_raise_nothing_but_malformed(text):
    try:
        template = Template.parse(text)
        template.execute({"A": [1, {"B": None}], "B": {"C": 2.5}})
    except Malformed:
        pass


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_quoted_text_comes_back(text):
    assert unquote(quote(text)).encode("utf-8", "surrogateescape") == text.encode(
        "utf-8", "surrogateescape"
    )


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back(number):
    assert float(format_float(number)) == number
