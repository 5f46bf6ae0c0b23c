"""Helper functions beyond what the recorded templates show."""

from __future__ import annotations

import pytest

from waypost.base.clock import SystemClock
from waypost.drivers.render import dependency as ask
from waypost.drivers.render import records
from waypost.drivers.render.evaluate import Renderer
from waypost.gotemplate import TemplateError
from waypost.model.catalog import Node, Service
from waypost.model.kv import KVEntry


class Noon(SystemClock):
    def wall(self):
        return 1536571111.25  # 2018-09-10 09:18:31 UTC, a Monday


def instance(node, port, *, meta=None, tags=()):
    return records.health_service(
        Node(node=node, address="10.0.0.1"),
        Service(node=node, id=f"{node}:{port}", name="web", port=port, tags=tags, meta=meta),
        (),
    )


WEB = (
    instance("a", 80, meta={"v": "1", "w": "x.y"}, tags=("t",)),
    instance("b", 81, meta={"v": "20"}, tags=("t", "u")),
)
KNOWN = {
    ask.service("web"): WEB,
    ask.prefix("t"): tuple(
        records.key_pair(KVEntry(key=key, value=b"v"), prefix="t")
        for key in ("t/a", "t/b/c", "t/b/d/e", "t/d/")
    ),
    ask.prefix("none"): (),
}


def evaluate(text, **env):
    return Renderer.parse(text, name="x").evaluate(KNOWN, clock=Noon(), env=env)


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ('{{ range $k, $v := service "web" | byMeta "v|int,w" }}{{ $k }}={{ len $v }} {{ end }}', "00001_x_y=1 00020__no_w_=1 "),
        ('{{ range $k, $v := service "web" | byPort }}{{ $k }}:{{ len $v }} {{ end }}', "80:1 81:1 "),
        ('{{ range $k, $v := service "web" | byTag }}{{ $k }}:{{ len $v }} {{ end }}', "t:2 u:1 "),
        ('{{ range service "web" }}{{ .ServiceMeta.v }}/{{ .Weights.Passing }} {{ end }}', "1/1 20/1 "),
        ('{{ with service "web" }}{{ (index . 0).Checks.AggregatedStatus }}{{ end }}', "passing"),
        ('{{ range $k, $v := tree "t" | byKey }}{{ $k }}:{{ range $n, $p := $v }}{{ $n }}={{ $p.Value }},{{ end }}{{ end }}', "b:c=v,d/e=v,"),
        ('{{ range ls "t" }}{{ .Key }} {{ end }}', "a "),
        ('{{ "a:1, b:2,c" | splitToMap "," ":" }}', "map[a:1 b:2]"),
        ('{{ mergeMap (parseJSON `{"a":1,"m":{"x":1}}`) (parseJSON `{"a":2,"b":3,"m":{"y":2}}`) | toJSON }}', '{"a":1,"b":3,"m":{"x":1,"y":2}}'),
        ('{{ mergeMapWithOverride (parseJSON `{"a":1}`) (parseJSON `{"a":2}`) | toJSON }}', '{"a":2}'),
        ('{{ explodeMap (parseJSON `{"a/b":1,"a/c":2}`) | toJSON }}', '{"a":{"b":1,"c":2}}'),
        ('{{ parseYAML "a: [1, x]\\nb: true" | toJSON }}', '{"a":[1,"x"],"b":true}'),
        ('{{ toUnescapedJSON "<a>" }}{{ toJSON "<a>" }}', '"<a>""\\u003ca\\u003e"'),
        ("{{ minimum 3 2 }} {{ maximum 3 2.5 }} {{ 5 | minimum 7 }}", "2 3 5"),
        ('{{ md5sum "x" }}', "9dd4e461268c8034f5c8564e155c67a6"),
        ('{{ envOrDefault "SET" "d" }}|{{ envOrDefault "NO" "d" }}|{{ env "NO" }}', "|d|"),
        ('{{ trim "x" "xxaxx" }}{{ trimPrefix "a" "ab" }}{{ trimSuffix "b" "ab" }}', "aba"),
        ('{{ timestamp }} {{ timestamp "unix" }} {{ timestamp "Mon Jan _2 15:04:05.000 MST 2006" }} {{ timestamp "3:04PM 02/01/06" }}', "2018-09-10T09:18:31Z 1536571111 Mon Sep 10 09:18:31.250 UTC 2018 9:18AM 10/09/18"),
        ('{{ base64URLEncode "~~?" }} {{ base64URLDecode "fn4_" }}', "fn4_ ~~?"),
        ('{{ regexReplaceAll "a*" "x" "baac" }} {{ regexMatch "(?i)^ABC$" "abc" }} {{ regexMatch "c$" "c\\n" }}', "xbxcx true false"),
        ('{{ regexReplaceAll "[[:digit:]]+" "#" "a12b3" }} {{ regexMatch `\\p{L}+` "é" }}', "a#b# true"),
        ('{{ loop 2 | printf "%T" }} {{ range loop (len "abc") }}{{ . }}{{ end }}', "<-chan int64 012"),
        ("{{ modulo 3 -7 }} {{ divide 2 -7 }} {{ add 1.5 1 }}", "-1 -3 2.5"),
        ('{{ scratch.MapSet "m" "b" 2 }}{{ scratch.MapSet "m" "a" 1 }}{{ scratch.MapValues "m" }}{{ scratch.Key "m" }}', "[1 2]true"),
        ('{{ define "d" }}<{{ . }}>{{ end }}{{ executeTemplate "d" 3 }}', "<3>"),
        ('{{ toTOML (parseJSON `{"a":[{"x":1},{"x":2}],"b c":"q"}`) }}', '"b c" = "q"\n\n[[a]]\n  x = 1.0\n\n[[a]]\n  x = 2.0'),
    ],
)  # fmt: skip
def test_function(text, output):
    evaluation = evaluate(text, SET="")
    assert evaluation.missing == ()
    assert evaluation.text == output


def test_hmac():
    import hashlib
    import hmac

    expected = hmac.new(b"k", b"m", hashlib.sha256).hexdigest()
    assert evaluate('{{ hmacSHA256Hex "m" "k" }}').text == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{{ mustEnv "NO" }}', "environment variable NO is not set or is empty"),
        ('{{ secret "a" }}', "error calling secret: no Vault configured"),
        ('{{ regexMatch "a(?=b)" "x" }}', "error parsing regexp: invalid or unsupported Perl syntax: `(?=`"),
        ('{{ regexMatch "a**" "x" }}', "error parsing regexp: invalid nested repetition operator: `**`"),
        ('{{ regexMatch "[a" "x" }}', "error parsing regexp: missing closing ]: `[a`"),
        ('{{ regexMatch `\\8` "x" }}', "error parsing regexp: invalid escape sequence: `\\8`"),
        ('{{ regexMatch "*" "x" }}', "error parsing regexp: missing argument to repetition operator: `*`"),
        ('{{ parseJSON `{"a" 1}` }}', "invalid character '1' after object key"),
        ("{{ parseJSON `[1,]` }}", "invalid character ']' looking for beginning of value"),
        ("{{ parseJSON `1 2` }}", "invalid character '2' after top-level value"),
        ("{{ parseJSON `tru` }}", "unexpected end of JSON input"),
        ('{{ plugin "nosuch-program" }}', 'exec "nosuch-program": exec: "nosuch-program": executable file not found in $PATH'),
        ("{{ loop 1 2 3 }}", "loop: wrong number of arguments, expected 1 or 2, but got 3"),
        ('{{ base64Decode "ab" }}', "illegal base64 data"),
        ('{{ define "d" }}{{ executeTemplate "d" }}{{ end }}{{ executeTemplate "d" }}', "execute each other more than 50 deep"),
    ],
)  # fmt: skip
def test_function_error(text, message):
    with pytest.raises(TemplateError) as raised:
        evaluate(text, PATH="/usr/bin:/bin")
    assert message in str(raised.value)


def test_missing_data_is_named_and_errors_on_it_wait():
    evaluation = evaluate('{{ (index (service "other") 0).ID }}{{ key "k" }}')
    assert [str(each) for each in evaluation.missing] == ["health.service(other|passing)"]
    evaluation = evaluate(
        '{{ key "k" }}{{ keyOrDefault "l" "d" }}{{ range services }}{{ end }}{{ with node }}x{{ end }}'
    )
    assert [str(each) for each in evaluation.missing] == [
        "kv.block(k)",
        "kv.get(l)",
        "catalog.services",
        "catalog.node",
    ]


def test_safe_functions_wait_for_something():
    assert evaluate('{{ safeLs "none" }}').missing == (ask.prefix("none"),)
    assert evaluate('{{ safeTree "t" | len }}').text == "3"
