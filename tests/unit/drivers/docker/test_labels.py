from __future__ import annotations

import pytest

from waypost.drivers.docker.labels import (
    attributes,
    clean_meta,
    cut,
    entries,
    parse_tags,
    printable,
)


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("", ()),
        (",,,,", ()),
        ("a,b,c", ("a", "b", "c")),
        (r"foo\,bar", ("foo,bar",)),
        (r"foo,bar\,baz", ("foo", "bar,baz")),
        (r"\,foobar\,", (",foobar,",)),
        (",,,,foo,,,bar,,,", ("foo", "bar")),
        (r",,\,,", (",",)),
        (r"a\b,\\,c", (r"a\b", r"\,c")),
        (" a , b", (" a ", " b")),
        ("a\\", ("a\\",)),
    ],
)
def test_tags(text: str, tags: tuple[str, ...]) -> None:
    assert parse_tags(text) == tags


def test_entries() -> None:
    env = (
        "PATH=/bin",
        "SERVICE_NAME=env",
        "SERVICE_Check_Http=/x=y",
        "SERVICE_EMPTY=",
        "SERVICE_BARE",
        "service_x=1",
    )
    labels = {"SERVICE_NAME": "label", "SERVICE_": "no", "other": "x"}
    assert entries(env, labels) == (
        ("name", "env"),
        ("check_http", "/x=y"),
        ("empty", ""),
        ("name", "label"),
    )


@pytest.mark.parametrize(
    ("found", "port", "values"),
    [
        ((("name", "a"), ("80_name", "b")), "80", {"name": "b"}),
        ((("80_name", "b"), ("name", "a")), "80", {"name": "b"}),
        ((("80_name", "b"), ("name", "a")), "81", {"name": "a"}),
        ((("080_name", "b"),), "80", {}),
        ((("80_name", "env"), ("80_name", "label")), "80", {"name": "label"}),
        ((("80", "x"), ("80_a_b", "y")), "80", {"80": "x", "a_b": "y"}),
        ((("x_80", "1"),), "80", {"x_80": "1"}),
        ((("80_name", ""), ("name", "a")), "80", {"name": ""}),
    ],
)
def test_attributes(found: tuple[tuple[str, str], ...], port: str, values: dict[str, str]) -> None:
    assert attributes(found, port).values == values


def test_letter_case_does_not_depend_on_chance() -> None:
    one = attributes(entries((), {"SERVICE_Name": "mixed", "SERVICE_NAME": "upper"}), "80")
    two = attributes(entries((), {"SERVICE_NAME": "upper", "SERVICE_Name": "mixed"}), "80")
    assert one.values == two.values == {"name": "mixed"}


def test_clean_meta() -> None:
    meta, changes = clean_meta({"a.b": "1", "a_b": "2", "ok": "x\ny", "consul-z": "3", "é": "4"})
    assert meta == {"a_b": "1", "ok": "x y", "consul_z": "3", "_": "4"}
    assert len(changes) == 4
    meta, changes = clean_meta({"v": "ä" * 400, "k" * 200: ""})
    assert len(meta["v"].encode()) <= 512
    assert max(map(len, meta)) == 128
    assert cut("äöü", at_most_bytes=3) == "ä"


def test_printable() -> None:
    assert printable("a\r\nb\x1b[31m\u2028é") == r"a\r\nb\x1b[31m\u2028é"
    assert len(printable("x" * 5000)) == 300
