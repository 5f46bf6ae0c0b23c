"""The language: what templates give, and the texts of their errors."""

from __future__ import annotations

from typing import ClassVar

import pytest

from waypost.gotemplate import ExecuteError, Limits, ParseError, Template
from waypost.gotemplate.values import Int64, Map, Slice, Struct, Uint64, string_map, strings


def render(text, data=None, **options):
    return Template.parse(text, **options).execute(data)


@pytest.mark.parametrize(
    ("text", "data", "output"),
    [
        ("a {{- 1 -}} b", None, "a1b"),
        ("{{-3}}", None, "-3"),
        ("a{{/* x }} */}}b{{- /* y */ -}} c", None, "abc"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ end }}{{ $x }}", None, "1"),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", None, "2"),
        ("{{ if false }}a{{ else if true }}b{{ else }}c{{ end }}", None, "b"),
        ('{{ with "" }}a{{ else with "b" }}{{ . }}{{ else }}c{{ end }}', None, "b"),
        ("{{ range 3 }}{{ . }}{{ end }}", None, "012"),
        ("{{ range $i, $e := . }}{{ $i }}{{ $e }}{{ end }}", [7, 8], "0718"),
        ("{{ range . }}{{ if eq . 2 }}{{ continue }}{{ end }}{{ . }}{{ end }}", [1, 2, 3], "13"),
        ("{{ range . }}{{ if eq . 2 }}{{ break }}{{ end }}{{ . }}{{ end }}", [1, 2, 3], "1"),
        (
            "{{ range $k, $v := . }}{{ $k }}{{ $v }} {{ end }}",
            {"b": 1, "B": 2, "é": 3},
            "B2 b1 é3 ",
        ),
        ("{{ .a.b }}|{{ .zz }}", {"a": {"b": None}}, "<no value>|<no value>"),
        ('{{ define "t" }}<{{ . }}>{{ end }}{{ template "t" 1 }}', None, "<1>"),
        ('{{ block "t" 5 }}{{ . }}{{ end }}{{ template "t" 6 }}', None, "56"),
        (
            "{{ 'a' }} {{ 0x1F }} {{ 1_000 }} {{ 1e3 }} {{ 1e6 }} {{ 2i }}",
            None,
            "97 31 1000 1000 1e+06 (0+2i)",
        ),
        ("{{ . }}", [1, "x", None, [2.5]], "[1 x <nil> [2.5]]"),
        ('{{ len "é" }} {{ index "é" 0 }} {{ slice "abc" 1 2 }}', None, "2 195 b"),
        ('{{ print 1 2 "a" 3 4 }}|{{ println "a" 1 }}', None, "1 2a3 4|a 1\n"),
        ("{{ and 0 (index . 9) }}{{ or 1 (index . 9) }}", [], "01"),
        (
            '{{ eq 1 2 1 }} {{ ne "a" "b" }} {{ lt 1 2 }} {{ ge "b" "a" }}',
            None,
            "true true true true",
        ),
        ("{{ (index . 0).x }}", [{"x": 3}], "3"),
        ('{{ "q" | printf "%s-%s" "p" }}', None, "p-q"),
        ("{{ range . }}x{{ else }}none{{ end }}", [], "none"),
        ("{{ print nil }}", None, "<nil>"),
    ],
)
def test_output(text, data, output):
    assert render(text, data) == output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ if }}", ":1: missing value for if"),
        ("{{ 1 | | 2 }}", ':1: unexpected "|" in command'),
        ("{{ 1 | 2 }}", ":1: non executable command in pipeline stage 2"),
        ("\n\n{{ $y }}", ':3: undefined variable "$y"'),
        ("{{ ) }}", ':1: unexpected ")" in command'),
        ("{{ a:b }}", ":1: expected :="),
        ("{{/* x", ":1: unclosed comment"),
        ("{{ 3k }}", ':1: bad number syntax: "3k"'),
        ("{{ \x00 }}", ":1: unrecognized character in action: U+0000"),
        ("{{ '' }}", ":1: invalid syntax"),
        ("{{ 'ab' }}", ":1: malformed character constant: 'ab'"),
        ("{{ continue }}", ":1: {{continue}} outside {{range}}"),
        ('{{ template "a" $n }}', ':1: undefined variable "$n"'),
        ("{{ define x }}{{ end }}", ':1: unexpected "x" in define clause'),
        ("{{ with 1 }}{{ else if 2 }}{{ end }}", ":1: unexpected <if> in input"),
        ("{{ end }}", ":1: unexpected {{end}}"),
        ("{{ range $a, 3 }}{{ end }}", ":1: range can only initialize variables"),
    ],
)
def test_parse_error(text, message):
    with pytest.raises(ParseError) as raised:
        Template.parse(text, functions={"a": Template.parse("")._functions["print"]})
    assert str(raised.value) == f"template: {message}"


class Node(Struct, frozen=True, rename="pascal"):
    go_name: ClassVar[str] = "dependency.Node"

    address: str
    tags: Slice
    port: int = 0


NODE = Node("10.0.0.1", strings(["a", "b"]), 80)


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        (
            "{{ .a.b.c }}",
            {"a": {}},
            ':1:5: executing "" at <.a.b.c>: nil pointer evaluating interface {}.c',
        ),
        (
            "{{ .Foo }}",
            NODE,
            ':1:3: executing "" at <.Foo>: can\'t evaluate field Foo in type *dependency.Node',
        ),
        ("é{{ len 3 }}", None, ':1:5: executing "" at <len 3>: error calling len: len of type int'),
        (
            "{{ index . 1 }}",
            [1],
            ':1:3: executing "" at <index . 1>: error calling index: reflect: slice index out of range',
        ),
        (
            '{{ define "d" }}\n {{ lt 1 "a" }}{{ end }}{{ template "d" }}',
            None,
            ':2:4: executing "d" at <lt 1 "a">: error calling lt: incompatible types for comparison',
        ),
        (
            "{{ print 1 2 | len 3 }}",
            None,
            ':1:15: executing "" at <len>: wrong number of args for len: want 1 got 2',
        ),
        ("{{ printf 3 }}", None, ':1:10: executing "" at <3>: expected string; found 3'),
        (
            "{{ 3 | printf }}",
            None,
            ':1:7: executing "" at <printf>: wrong type for value; expected string; got int',
        ),
        (
            '{{ template "x" }}',
            None,
            ':1:12: executing "" at <{{template "x"}}>: template "x" not defined',
        ),
        (
            "{{ range true }}{{ end }}",
            None,
            ':1:9: executing "" at <true>: range can\'t iterate over true',
        ),
        (
            "{{ (1) 2 }}",
            None,
            ':1:3: executing "" at <(1) 2>: can\'t give argument to non-function 1',
        ),
        (
            "{{ .Port 3 }}",
            NODE,
            ':1:3: executing "" at <.Port>: Port has arguments but cannot be invoked as function',
        ),
    ],
)
def test_execute_error(text, data, message):
    with pytest.raises(ExecuteError) as raised:
        render(text, data)
    assert str(raised.value) == f"template: {message}"


def test_structs_print_as_pointers():
    assert render("{{ . }}|{{ printf `%v %+v %T` . . . }}", NODE) == (
        "{10.0.0.1 [a b] 80}|&{10.0.0.1 [a b] 80} &{Address:10.0.0.1 Tags:[a b] Port:80} *dependency.Node"
    )


def test_missing_keys_by_type_and_option():
    assert render("[{{ .x }}]", string_map({})) == "[]"
    assert render("[{{ .x }}]", Map({}, go_type="map[string]int", zero=0)) == "[0]"
    with pytest.raises(ExecuteError, match='map has no entry for key "x"'):
        render("{{ .x }}", {}, missing_key="error")


def test_delimiters():
    assert render("<< 1 >> {{ 2 }} <<- 3 ->> x", delimiters=("<<", ">>")) == "1 {{ 2 }}3x"


def test_sized_integers_compare_but_are_not_interchangeable():
    assert render("{{ eq . 3 }} {{ lt -1 . }}", Uint64(3)) == "true true"
    assert render("{{ printf `%T %d` . . }}", Int64(5)) == "int64 5"


def test_recursion_stops_at_gos_depth():
    text = '{{ define "r" }}{{ template "r" . }}{{ end }}{{ template "r" 1 }}'
    with pytest.raises(ExecuteError, match=r"exceeded maximum template depth \(100000\)"):
        render(text)


def test_deep_recursion_that_ends_is_fine():
    text = (
        '{{ define "r" }}{{ range . }}{{ template "r" . }}x{{ end }}{{ end }}{{ template "r" . }}'
    )
    data = []
    for _ in range(3000):
        data = [data]
    assert render(text, data) == "x" * 3000


@pytest.mark.parametrize(
    ("text", "limits", "message"),
    [
        ("{{ range 100 }}{{ end }}", Limits(iterations=99), "too many iterations"),
        ("{{ range 100 }}abc{{ end }}", Limits(output_chars=200), "output is longer than 200"),
        (
            '{{ $s := "ab" }}{{ range 99 }}{{ $s = print $s $s }}{{ end }}',
            Limits(output_chars=500),
            "result of print",
        ),
        (
            '{{ define "a" }}{{ template "a" }}{{ end }}{{ template "a" }}',
            Limits(depth=50),
            r"depth \(50\)",
        ),
    ],
)
def test_limits(text, limits, message):
    with pytest.raises(ExecuteError, match=message):
        Template.parse(text).execute(limits=limits)


def test_nesting_is_refused_not_crashed():
    for text in ("{{ " + "(" * 5000, "{{ if 1 }}" * 5000, "{{ if 1 }}" + "{{ else if 1 }}" * 5000):
        with pytest.raises(ParseError):
            Template.parse(text)
