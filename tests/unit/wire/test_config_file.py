"""Configuration files: JSON and HCL to the same values."""

import pytest

from waypost.base.errors import Malformed
from waypost.wire.config_file import blocks, parse_text, read_file


@pytest.mark.parametrize(
    ("hcl", "value"),
    [
        ('a = 1 b = "x"', {"a": 1, "b": "x"}),
        ('s { n = "a" } s { n = "b" }', {"s": [{"n": "a"}, {"n": "b"}]}),
        # Equal inner blocks of two outer ones must not run together.
        (
            's { n = "a" c { t = "1" } }\ns { n = "b" c { t = "2" } c { t = "3" } }',
            {"s": [{"n": "a", "c": {"t": "1"}}, {"n": "b", "c": [{"t": "2"}, {"t": "3"}]}]},
        ),
        (
            't { "*" = "5s" "api" = "6s" } # why\nu = [1, 2] // so',
            {"t": {"*": "5s", "api": "6s"}, "u": [1, 2]},
        ),
        ("a = true\na = false", {"a": False}),
    ],
)
def test_hcl(hcl, value):
    assert parse_text(hcl, name="f", is_json=False) == value


@pytest.mark.parametrize(
    ("text", "is_json", "message"),
    [
        ("a = [", False, "failed to parse f: Unexpected end of file"),
        ('{"a": }', True, "failed to parse f: line 1, column 7: Expecting value"),
        ("[1]", True, "failed to parse f: the file must hold an object, not list"),
    ],
)
def test_what_is_wrong_and_where(text, is_json, message):
    with pytest.raises(Malformed) as caught:
        parse_text(text, name="f", is_json=is_json)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        Malformed,
        match=r"config: Open failed on .*nope.hcl. open .*nope.hcl: no such file or directory",
    ):
        read_file(tmp_path / "nope.hcl")


def test_blocks_are_a_list_however_often_they_stand():
    assert blocks({"a": 1}, where="f") == [{"a": 1}]
    assert blocks([{"a": 1}, {}], where="f") == [{"a": 1}, {}]
    with pytest.raises(Malformed, match="f: expected a block"):
        blocks("x", where="f")
