from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import Malformed
from waypost.drivers.host.daemon_json import members, value_of, with_value, without

NAME = "/etc/docker/daemon.json"
DNS = ["172.17.0.1"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", '{\n  "dns": ["172.17.0.1"]\n}\n'),
        (" \n", '{\n  "dns": ["172.17.0.1"]\n}\n'),
        ("{}", '{\n  "dns": ["172.17.0.1"]\n}'),
        ("{\n}\n", '{\n  "dns": ["172.17.0.1"]\n}\n'),
        ('{"a":1}', '{"dns": ["172.17.0.1"], "a":1}'),
        ('{ "a": 1 }\n', '{ "dns": ["172.17.0.1"], "a": 1 }\n'),
        (
            '{\n    "b": {"dns": ["x"]},\n    "a": [1,\n2]\n}',
            '{\n    "dns": ["172.17.0.1"],\n    "b": {"dns": ["x"]},\n    "a": [1,\n2]\n}',
        ),
        ('{\r\n\t"a": 1\r\n}', '{\r\n\t"dns": ["172.17.0.1"],\r\n\t"a": 1\r\n}'),
        (
            '{\n "a": 1,\n "dns": [ "1.1.1.1" ],\n "z": 0}',
            '{\n "a": 1,\n "dns": ["172.17.0.1"],\n "z": 0}',
        ),
        ('{"dns": [\n  "172.17.0.1"\n]}', '{"dns": [\n  "172.17.0.1"\n]}'),
        # Of two the last one counts.
        ('{"dns": [], "dns": []}', '{"dns": [], "dns": ["172.17.0.1"]}'),
        ('{"ä": "\\u00e4", "x": 1e400}', '{"dns": ["172.17.0.1"], "ä": "\\u00e4", "x": 1e400}'),
    ],
)
def test_one_key_is_set_and_the_rest_stays_byte_for_byte(text, wanted):
    assert with_value(text, "dns", DNS, name=NAME) == wanted
    assert value_of(wanted, "dns", name=NAME) == DNS
    assert with_value(wanted, "dns", DNS, name=NAME) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"dns": 1}', "{}"),
        ('{\n  "dns": 1\n}\n', "{}\n"),
        ('{"dns": 1, "a": 2}', '{"a": 2}'),
        ('{"a": 2, "dns": 1}', '{"a": 2}'),
        ('{"a": 2,\n "dns": 1,\n "b": 3}', '{"a": 2,\n "b": 3}'),
        ('{"dns": 1, "a": 2, "dns": 3}', '{"a": 2}'),
        ('{"a": {"dns": 1}}', '{"a": {"dns": 1}}'),
        ("", ""),
    ],
)
def test_a_key_is_taken_out_with_its_comma(text, wanted):
    assert without(text, "dns", name=NAME) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,}', "line 1 column"),
        ('{"a": 1', "no valid JSON"),
        ("[1]", "does not hold a JSON object"),
        ("// c\n{}", "no valid JSON"),
        ('{"a": "\x01"}', "no valid JSON"),
    ],
)
def test_what_docker_would_not_start_with_is_refused(text, words):
    with pytest.raises(Malformed, match=words) as caught:
        members(text, name=NAME)
    assert NAME in str(caught.value)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), _VALUES),
    st.sampled_from([None, 0, 2, "\t"]),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :")]),
)
def test_any_object_keeps_its_other_keys_in_order(settings, indent, separators):
    text = json.dumps(settings, indent=indent, separators=separators)
    after = with_value(text, "dns", DNS, name=NAME)
    wanted = settings | {"dns": DNS}
    assert json.loads(after) == wanted
    kept = [key for key in settings if key != "dns"]
    assert [key for key in json.loads(after) if key != "dns"] == kept
    back = without(after, "dns", name=NAME)
    assert json.loads(back) == {key: settings[key] for key in kept}
    if settings and "dns" not in settings:
        assert back == text
