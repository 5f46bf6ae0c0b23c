"""JSON patch, merge patch and strategic merge patch."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import Malformed, WaypostError
from waypost.wire.kube import patch
from waypost.wire.kube.patch import json_patch, merge_patch, strategic
from waypost.wire.kube.resources import BUILT_IN
from waypost.wire.kube.status import ApiError

ACCOUNT = "io.k8s.api.core.v1.ServiceAccount"
ROLE = "io.k8s.api.rbac.v1.Role"
ACCOUNTS = next(one for one in BUILT_IN if one.plural == "serviceaccounts")

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab/~", max_size=2),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.text("ab/~-0", max_size=2), below, max_size=3)
    ),
    max_leaves=10,
)


def json_patched(value: Any, *operations: Any) -> Any:
    return json_patch.applied(value, json_patch.parse(list(operations)))


@pytest.mark.parametrize(
    ("value", "operation", "expected"),
    [  # RFC 6902, appendix A
        ({"foo": "bar"}, {"op": "add", "path": "/baz", "value": "qux"}, {"baz": "qux", "foo": "bar"}),
        ({"foo": ["bar", "baz"]}, {"op": "add", "path": "/foo/1", "value": "qux"}, {"foo": ["bar", "qux", "baz"]}),
        ({"baz": "qux", "foo": "bar"}, {"op": "remove", "path": "/baz"}, {"foo": "bar"}),
        ({"foo": ["bar", "qux", "baz"]}, {"op": "remove", "path": "/foo/1"}, {"foo": ["bar", "baz"]}),
        ({"baz": "qux"}, {"op": "replace", "path": "/baz", "value": "boo"}, {"baz": "boo"}),
        (
            {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
            {"op": "move", "from": "/foo/waldo", "path": "/qux/thud"},
            {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
        ),
        ({"foo": ["all", "grass", "cows", "eat"]}, {"op": "move", "from": "/foo/1", "path": "/foo/3"}, {"foo": ["all", "cows", "eat", "grass"]}),
        ({"foo": "bar"}, {"op": "add", "path": "/child", "value": {"grandchild": {}}}, {"foo": "bar", "child": {"grandchild": {}}}),
        ({"foo": ["bar"]}, {"op": "add", "path": "/foo/-", "value": ["abc", "def"]}, {"foo": ["bar", ["abc", "def"]]}),
        ({"/": 9, "~1": 10}, {"op": "test", "path": "/~01", "value": 10}, {"/": 9, "~1": 10}),
        ({"a": {"b": 1}}, {"op": "copy", "from": "/a", "path": "/c"}, {"a": {"b": 1}, "c": {"b": 1}}),
        ({"a": 1}, {"op": "add", "path": "", "value": {"b": 2}}, {"b": 2}),
        ({"a": None}, {"op": "replace", "path": "/a", "value": None}, {"a": None}),
    ],
)  # fmt: skip
def test_json_patch(value: Any, operation: Any, expected: Any) -> None:
    before = json.dumps(value)
    assert json_patched(value, operation) == expected
    assert json.dumps(value) == before


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/baz", "value": "bar"},
        {"op": "test", "path": "/one", "value": True},
        {"op": "add", "path": "/nope/bat", "value": "x"},
        {"op": "add", "path": "/list/2", "value": "x"},
        {"op": "add", "path": "/list/01", "value": "x"},
        {"op": "replace", "path": "/list/-", "value": "x"},
        {"op": "remove", "path": "/list/1"},
        {"op": "remove", "path": ""},
        {"op": "copy", "from": "/nope", "path": "/x"},
        {"op": "move", "from": "/list", "path": "/list/0"},
    ],
)
def test_json_patch_that_does_not_fit(operation: Any) -> None:
    with pytest.raises(Malformed):
        json_patched({"baz": "qux", "one": 1, "list": ["a"]}, operation)


@pytest.mark.parametrize(
    "value", [{}, [1], [{"op": "x"}], [{"op": "add", "path": "a", "value": 1}], [{"op": "add", "path": "/a"}], [{"op": "move", "path": "/a"}]]
)  # fmt: skip
def test_unreadable_json_patches(value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        patch.patched(
            {}, json.dumps(value).encode(), media_type=patch.JSON_PATCH, resource=ACCOUNTS
        )
    assert caught.value.status.code == 400


def test_copies_do_not_explode() -> None:
    doubling = [{"op": "copy", "from": "", "path": f"/{at}"} for at in range(40)]
    with pytest.raises(Malformed, match="too large"):
        json_patched({"a": 1}, *doubling)


@pytest.mark.parametrize(
    ("value", "change", "expected"),
    [  # RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(value: Any, change: Any, expected: Any) -> None:
    assert merge_patch.merged(value, change) == expected


SECRETS = {"secrets": [{"name": "a"}, {"name": "b"}], "imagePullSecrets": [{"name": "p"}]}


@pytest.mark.parametrize(
    ("value", "change", "expected"),
    [
        (SECRETS, {"secrets": [{"name": "c"}]}, [{"name": "a"}, {"name": "b"}, {"name": "c"}]),
        (SECRETS, {"secrets": [{"name": "a", "uid": "1"}]}, [{"name": "a", "uid": "1"}, {"name": "b"}]),
        (SECRETS, {"secrets": [{"name": "a", "$patch": "delete"}]}, [{"name": "b"}]),
        (SECRETS, {"secrets": [{"$patch": "replace"}, {"name": "z"}]}, [{"name": "z"}]),
        (SECRETS, {"secrets": None}, None),
        (
            SECRETS,
            {"secrets": [{"name": "c"}], "$setElementOrder/secrets": [{"name": "c"}, {"name": "b"}, {"name": "a"}]},
            [{"name": "c"}, {"name": "b"}, {"name": "a"}],
        ),
        ({"secrets": [{"name": "x"}, *SECRETS["secrets"]]}, {"$setElementOrder/secrets": [{"name": "b"}, {"name": "a"}]}, [{"name": "x"}, {"name": "b"}, {"name": "a"}]),
        ({}, {"secrets": [{"name": "a", "uid": None}]}, [{"name": "a"}]),
    ],
)  # fmt: skip
def test_strategic_lists_with_keys(value: Any, change: Any, expected: Any) -> None:
    assert strategic.merged(value, change, message=ACCOUNT).get("secrets") == expected


def test_strategic_metadata() -> None:
    value = {
        "metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}},
        "rules": [{"verbs": ["get"]}],
    }
    change = {
        "metadata": {
            "finalizers": ["b", "c"],
            "$deleteFromPrimitiveList/finalizers": ["a"],
            "labels": {"$patch": "replace", "z": "3"},
        },
        "rules": [{"verbs": ["list"]}],
    }
    assert strategic.merged(value, change, message=ROLE) == {
        "metadata": {"finalizers": ["b", "c"], "labels": {"z": "3"}},
        "rules": [{"verbs": ["list"]}],
    }


def test_strategic_directives() -> None:
    value = {"metadata": {"labels": {"x": "1", "y": "2"}}}

    def labels(change: Any) -> Any:
        return strategic.merged(value, {"metadata": {"labels": change}}, message=ROLE)["metadata"][
            "labels"
        ]

    assert labels({"$patch": "delete"}) == {}
    assert labels({"$retainKeys": ["x"], "x": "9"}) == {"x": "9"}
    assert labels({"$patch": "merge", "z": "3"}) == {"x": "1", "y": "2", "z": "3"}
    for wrong in ({"$patch": "odd"}, {"$retainKeys": 1}, {"$retainKeys": ["x"], "q": "1"}):
        with pytest.raises(Malformed):
            labels(wrong)


@pytest.mark.parametrize(
    "change", [{"secrets": [{"uid": "x"}]}, {"secrets": ["x"]}, {"$setElementOrder/secrets": 1}]
)
def test_strategic_refusals(change: Any) -> None:
    with pytest.raises(ApiError) as caught:
        patch.patched(
            SECRETS,
            json.dumps(change).encode(),
            media_type=patch.STRATEGIC_MERGE_PATCH,
            resource=ACCOUNTS,
        )
    assert caught.value.status.code == 400


def test_content_types() -> None:
    assert patch.patch_type("application/merge-patch+json; charset=utf-8") == patch.MERGE_PATCH
    with pytest.raises(ApiError) as caught:
        patch.patch_type("application/json")
    assert caught.value.status.code == 415


@given(
    st.fixed_dictionaries({}, optional={"metadata": JSON_VALUES, "secrets": JSON_VALUES, "a": JSON_VALUES}),
    st.dictionaries(
        st.sampled_from(["metadata", "secrets", "$patch", "$retainKeys", "$setElementOrder/secrets", "$deleteFromPrimitiveList/secrets", "a"]),
        JSON_VALUES | st.lists(st.dictionaries(st.sampled_from(["name", "$patch", "uid"]), JSON_VALUES | st.sampled_from(["delete", "replace"]))),
    ),
    st.sampled_from([patch.MERGE_PATCH, patch.STRATEGIC_MERGE_PATCH]),
)  # fmt: skip
def test_any_merge_fits_or_is_refused(value: Any, change: Any, media_type: str) -> None:
    before = json.dumps(value)
    with contextlib.suppress(WaypostError):
        patch.patched(value, json.dumps(change).encode(), media_type=media_type, resource=ACCOUNTS)
    assert json.dumps(value) == before


@given(
    JSON_VALUES,
    st.lists(
        st.fixed_dictionaries(
            {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]), "path": st.text("/ab~01-", max_size=5)},
            optional={"from": st.text("/ab~01-", max_size=5), "value": JSON_VALUES},
        ),
        max_size=5,
    ),
)  # fmt: skip
def test_any_json_patch_fits_or_is_refused(value: Any, operations: Any) -> None:
    before = json.dumps(value)
    with contextlib.suppress(WaypostError):
        json_patched(value, *operations)
    assert json.dumps(value) == before


@given(JSON_VALUES, JSON_VALUES)
def test_merge_patch_sets_what_it_says(value: Any, change: Any) -> None:
    found = merge_patch.merged(value, change)
    assert merge_patch.merged(found, change) == found
