"""Label and field selectors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import WaypostError
from waypost.wire.kube.resources import BUILT_IN
from waypost.wire.kube.selectors import (
    label_selector_of,
    parse_field_selector,
    parse_label_selector,
)
from waypost.wire.kube.status import ApiError

SECRETS = next(one for one in BUILT_IN if one.plural == "secrets")
ROLES = next(one for one in BUILT_IN if one.plural == "roles")


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("", {}, True),
        ("a=b", {"a": "b"}, True),
        ("a==b", {"a": "c"}, False),
        ("a=", {"a": ""}, True),
        ("a=,c", {"a": "", "c": "1"}, True),
        ("a!=b", {}, True),
        ("a!=b", {"a": "b"}, False),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("!a", {}, True),
        ("a in (x,y)", {"a": "y"}, True),
        ("a in (x, )", {"a": ""}, True),
        ("a notin (x,y)", {"a": "z"}, True),
        ("a notin (x,y)", {}, True),
        ("x.io/a in(x),b=1", {"x.io/a": "x", "b": "2"}, False),
        ("a>1", {"a": "2"}, True),
        ("a>1", {"a": "1"}, False),
        ("a<10", {"a": "9"}, True),
        ("a<10", {"a": "x"}, False),
        ("a<10", {}, False),
        (" a = b , c ", {"a": "b", "c": ""}, True),
    ],
)
def test_label_selectors(text: str, labels: dict[str, str], expected: bool) -> None:
    assert parse_label_selector(text).matches(labels) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a===b", "found '=', expected: identifier"),
        ("a b", "found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("a in b", "found 'b' expected: '('"),
        ("a in (b", "found '', expected: ',', ')' or identifier"),
        ("a,", "found '', expected: identifier after ','"),
        ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ("a>x", "values[0][a]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer"),
        ("!a=b", "found '=', expected: ',' or 'end of string'"),
    ],
)  # fmt: skip
def test_bad_label_selectors(text: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_label_selector(text)
    assert caught.value.status.message == f"unable to parse requirement: {message}"


def test_selector_objects() -> None:
    found = label_selector_of(
        {
            "matchLabels": {"a": "1"},
            "matchExpressions": [
                {"key": "b", "operator": "In", "values": ["x", "y"]},
                {"key": "c", "operator": "DoesNotExist"},
            ],
        }
    )
    assert found.matches({"a": "1", "b": "x"})
    assert not found.matches({"a": "1", "b": "x", "c": ""})
    assert not found.matches({"a": "1"})
    assert label_selector_of({}).matches({})


OBJECT = {"metadata": {"name": "x", "namespace": "n"}, "type": "Opaque"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("metadata.name=x", True),
        ("metadata.name==y", False),
        ("metadata.name!=x", False),
        ("type=Opaque,metadata.namespace=n", True),
        ("type=a\\,b", False),
        ("type=", False),
    ],
)
def test_field_selectors(text: str, expected: bool) -> None:
    assert parse_field_selector(text, resource=SECRETS).matches(OBJECT) is expected


def test_exact_names() -> None:
    assert parse_field_selector("metadata.name=x", resource=ROLES).name == "x"
    assert parse_field_selector("metadata.name!=x", resource=ROLES).name is None
    assert parse_field_selector("metadata.namespace=n", resource=ROLES).namespace == "n"


@pytest.mark.parametrize(
    ("text", "resource", "message"),
    [
        (
            "foo=1",
            ROLES,
            '"foo" is not a known field selector: only "metadata.name", "metadata.namespace"',
        ),
        ("foo=1", SECRETS, "field label not supported: foo"),
        ("foo", ROLES, "invalid selector: 'foo'; can't understand 'foo'"),
    ],
)
def test_bad_field_selectors(text: str, resource: Any, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_field_selector(text, resource=resource)
    assert caught.value.status.message == message


@given(st.text("ab=!<>(), innot\\.\n", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_label_selector, lambda one: parse_field_selector(one, resource=SECRETS)):
        try:
            parse(text)
        except WaypostError:
            continue
