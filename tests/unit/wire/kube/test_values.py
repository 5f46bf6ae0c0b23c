"""JSON as Go reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.wire.kube.values import DuplicateKeys, decode_json, encode_json, equal


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "unexpected end of JSON input"),
        (b'{"a":', "unexpected end of JSON input"),
        (b'{"a', "unexpected end of JSON input"),
        (b"{bad", "invalid character 'b' looking for beginning of object key string"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 2}', "invalid character '2' after object key:value pair"),
        (b"{} x", "invalid character 'x' after top-level value"),
        (b'"\x01"', "invalid character '\\x01' in string literal"),
        (b'"\\q"', "invalid character '\\\\' in string escape code"),
        (b"tru", "invalid character 't' looking for beginning of value"),
        (b"NaN", "invalid character 'N' looking for beginning of value"),
        (b"1" * 5000, "json: a number is too long"),
        (b"[" * 100_000, "exceeded max depth"),
        (b"[" * 300 + b"]" * 300, "exceeded max depth"),
    ],
)
def test_errors(body: bytes, text: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode_json(body)
    assert str(caught.value) == text


def test_repeated_keys_are_noticed() -> None:
    found = decode_json(b'{"a":1,"b":{"c":1,"c":2,"c":3},"a":4}')
    assert isinstance(found, DuplicateKeys)
    assert found == {"a": 4, "b": {"c": 3}}
    assert found.duplicates == ("a",)
    assert found["b"].duplicates == ("c",)


def test_characters_that_are_none() -> None:
    found = decode_json(b'{"\\ud800x":"\\udfff \xff \\ud83d\\ude00","k":1,"k":2}')
    assert found == {"\ufffdx": "\ufffd \ufffd \U0001f600", "k": 2}
    assert found.duplicates == ("k",)
    encode_json(found)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, True, False), (0, False, False), (1, 1.0, True), ([1], [1], True), ([1], [True], False), ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"b": 1}, False), (None, {}, False), ([], {}, False), ("a", "a", True),
    ],
)  # fmt: skip
def test_equality(left: Any, right: Any, expected: bool) -> None:
    assert equal(left, right) is expected


def test_quoting() -> None:
    assert quoted('a"b\\c\n\x01é\u200b') == r'"a\"b\\c\n\x01é\u200b"'


@given(st.binary(max_size=60) | st.text('{}[]",:\\udD8019 ', max_size=40).map(str.encode))
def test_anything_is_read_or_refused(body: bytes) -> None:
    try:
        value = decode_json(body)
    except Malformed:
        return
    encode_json(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
        lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    )
)
def test_values_come_back(value: Any) -> None:
    assert equal(decode_json(json.dumps(value).encode()), value)
    assert equal(decode_json(encode_json(value)), value)
