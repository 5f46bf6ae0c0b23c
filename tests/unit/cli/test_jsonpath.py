"""kubectl's JSONPath templates; `tests/integration/pki` compares with the real kubectl."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waypost.base.errors import Malformed
from waypost.cli.config import ViewFlags, flags_first
from waypost.cli.jsonpath import evaluate
from waypost.wire import kubeconfig

VALUES = {
    "items": [
        {"name": "a", "n": 1, "tags": ["x", "y"], "a.b": "dotted"},
        {"name": "b", "n": 2, "on": True},
        {"name": "c", "n": 3, "none": None},
    ],
    "kind": "List",
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{.kind}", "List"),
        (".kind", "List"),
        ("kind", "List"),
        ("{$.kind}", "List"),
        ("a{.kind}b", "aListb"),
        ("{.items[*].name}", "a b c"),
        ("{.items[0].tags}", '["x","y"]'),
        ("{.items[0:2].name}", "a b"),
        ("{.items[-1].name}", "c"),
        ("{.items[::2].name}", "a c"),
        ("{.items[0]['a.b']}", "dotted"),
        ("{.items[0].a\\.b}", "dotted"),
        ("{.items[?(@.n>1)].name}", "b c"),
        ('{.items[?(@.name!="a")].n}', "2 3"),
        ("{.items[?(@.on)].name}", "b"),
        ("{.items[?(@.on==true)].name}", "b"),
        ("{..tags[0]}", "x"),
        ("{.items[2].none}", ""),
        ("{.nothing.at.all}", ""),
        ('{range .items[*]}{.name}{"\\t"}{.n}{"\\n"}{end}', "a\t1\nb\t2\nc\t3\n"),
        ("{range .items[*]}{range .tags[*]}{@};{end}{end}.", "x;y;."),
        ("{'}'}{.kind}", "}List"),
    ],
)
def test_templates(template, text):
    assert evaluate(template, VALUES) == text


@pytest.mark.parametrize(
    "template",
    [
        "{.items",
        "{range .items}",
        "{end}",
        "{.items[}",
        "{.items[9]}",
        "{.items[::0]}",
        '{"a}',
        "{.a b}",
    ],
)
def test_templates_that_are_wrong(template):
    with pytest.raises(Malformed, match="error parsing jsonpath"):
        evaluate(template, VALUES)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("{}[]().*?@=!<>\"'\\:- 0129rangeditms$"), max_size=30))
def test_nothing_but_our_errors(template):
    with suppress(Malformed):
        evaluate(template, VALUES)


def test_no_template():
    with pytest.raises(Malformed, match="no template given"):
        evaluate("", VALUES)


def test_flags_may_stand_behind_arguments():
    assert flags_first(["a", "--raw", "-o", "json", "b", "-context=c"], ViewFlags) == [
        "--raw",
        "-o",
        "json",
        "-context=c",
        "--",
        "a",
        "b",
    ]
    assert flags_first(["a", "--", "-x"], ViewFlags) == ["--", "a", "-x"]


def test_a_kubeconfig_of_aliases_does_not_explode():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for last, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]")
    with pytest.raises(Malformed, match="values that no kubeconfig has"):
        kubeconfig.parse("\n".join(lines).encode(), name="f")
