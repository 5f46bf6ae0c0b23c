"""Ownership of fields: updates, apply, conflicts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import Malformed, WaypostError
from waypost.wire.kube import fieldsets, managed_fields
from waypost.wire.kube.bodies import FieldValidation, conform
from waypost.wire.kube.resources import BUILT_IN, Resource
from waypost.wire.kube.status import ApiError

NOW_S = 1_795_406_400.0
CONFIGMAPS = next(one for one in BUILT_IN if one.plural == "configmaps")
CSRS = next(one for one in BUILT_IN if one.plural == "certificatesigningrequests")


def made(of: Resource = CONFIGMAPS, **more: Any) -> Any:
    metadata = {"name": "x"} | more.pop("metadata", {})
    body = {"metadata": metadata} | more
    return conform(body, resource=of, field_validation=FieldValidation.STRICT).object


def update(live: Any, new: Any, manager: str, of: Resource = CONFIGMAPS, **more: Any) -> Any:
    return managed_fields.updated(
        live, new, resource=of, manager=manager, **({"now_s": NOW_S} | more)
    )


def apply(live: Any, config: Any, manager: str, of: Resource = CONFIGMAPS, **more: Any) -> Any:
    return managed_fields.applied(
        live, config, resource=of, manager=manager, **({"now_s": NOW_S} | more)
    )


def owned(value: Any) -> dict[str, Any]:
    return {
        f"{one['manager']}/{one['operation']}": one["fieldsV1"]
        for one in value["metadata"].get("managedFields", ())
    }


def carried(live: Any, **more: Any) -> Any:
    """Return a change of an object as a client sends it: with the managedFields it read."""
    changed = made(**more)
    changed["metadata"] = changed["metadata"] | {"managedFields": live["metadata"]["managedFields"]}
    return changed


def test_updates_take_what_they_change() -> None:
    first = update(None, made(data={"a": "1", "b": "1"}), "one")
    assert owned(first) == {"one/Update": {"f:data": {".": {}, "f:a": {}, "f:b": {}}}}
    second = update(
        first, carried(first, data={"a": "2", "b": "1", "c": "3"}), "two", now_s=NOW_S + 60
    )
    assert owned(second) == {
        "one/Update": {"f:data": {".": {}, "f:b": {}}},
        "two/Update": {"f:data": {"f:a": {}, "f:c": {}}},
    }
    third = update(second, carried(second, data={"b": "1"}), "three")
    assert owned(third) == {"one/Update": {"f:data": {".": {}, "f:b": {}}}}


def test_no_change_keeps_owners_and_time() -> None:
    first = update(None, made(data={"a": "1"}), "one")
    again = update(first, made(data={"a": "1"}), "two", now_s=NOW_S + 60)
    assert again["metadata"]["managedFields"] == first["metadata"]["managedFields"]
    assert first["metadata"]["managedFields"][0]["time"] == "2026-11-23T04:00:00Z"


def test_cleared_managed_fields_start_anew() -> None:
    first = update(None, made(data={"a": "1"}), "one")
    cleared = made(data={"a": "1"})
    cleared["metadata"]["managedFields"] = [{}]
    assert owned(update(first, cleared, "two")) == {}


def test_bad_managed_fields_are_refused() -> None:
    first = update(None, made(data={"a": "1"}), "one")
    for wrong in (
        {"operation": "Odd"},
        {"operation": "Update", "fieldsV1": {"odd": {}}},
        {"operation": "Update", "fieldsV1": {"k:1": {}}},
    ):
        bad = made(data={"a": "2"})
        bad["metadata"]["managedFields"] = [wrong]
        with pytest.raises(ApiError) as caught:
            update(first, bad, "two")
        assert caught.value.status.code == 400


def test_many_updaters_become_ancient() -> None:
    value = update(None, made(data={"k0": "0"}), "m0")
    for at in range(1, 14):
        data = {f"k{one}": "0" for one in range(at + 1)}
        value = update(value, carried(value, data=data), f"m{at}", now_s=NOW_S + at)
    found = owned(value)
    assert len(found) == managed_fields.MAX_UPDATE_MANAGERS
    assert found["ancient-changes/Update"] == {
        "f:data": {".": {}} | {f"f:k{at}": {} for at in range(5)}
    }


def test_entries_of_keyed_lists() -> None:
    condition = {"type": "Approved", "status": "True"}
    value = update(
        None,
        made(CSRS, status={"conditions": [condition]}),
        "kubectl",
        CSRS,
        subresource="approval",
    )
    entry = value["metadata"]["managedFields"][0]
    assert entry["subresource"] == "approval"
    assert entry["fieldsV1"] == {
        "f:status": {
            "f:conditions": {
                ".": {},
                'k:{"type":"Approved"}': {".": {}, "f:status": {}, "f:type": {}},
            }
        }
    }


def test_apply_shares_equal_values_and_removes_given_up_ones() -> None:
    one = apply(None, made(data={"a": "1", "b": "1"}), "one")
    two = apply(one, made(data={"a": "1"}), "two")
    assert owned(two) == {
        "one/Apply": {"f:data": {"f:a": {}, "f:b": {}}},
        "two/Apply": {"f:data": {"f:a": {}}},
    }
    three = apply(two, made(data={"b": "1"}), "one")
    assert three["data"] == {"a": "1", "b": "1"}  # the other one still wants it
    four = apply(three, made(), "one")
    assert four["data"] == {"a": "1"}
    assert "one/Apply" not in owned(four)
    assert "data" not in apply(four, made(), "two")


def test_apply_again_changes_nothing() -> None:
    one = apply(None, made(data={"a": "1"}), "one")
    assert apply(one, made(data={"a": "1"}), "one", now_s=NOW_S + 60) == one


def test_conflicts_with_updates_name_version_and_time() -> None:
    live = update(None, made(data={"a": "1", "b": "1"}), "edit")
    with pytest.raises(ApiError) as caught:
        apply(live, made(data={"a": "2", "b": "2", "c": "3"}), "one")
    who = '"edit" using v1 at 2026-11-23T04:00:00Z'
    assert caught.value.status.message == (
        f"Apply failed with 2 conflicts: conflicts with {who}:\n- .data.a\n- .data.b"
    )
    assert caught.value.status.details is not None
    assert [one.field for one in caught.value.status.details.causes] == [".data.a", ".data.b"]
    forced = apply(live, made(data={"a": "2", "b": "2", "c": "3"}), "one", force=True)
    assert owned(forced) == {
        "one/Apply": {"f:data": {"f:a": {}, "f:b": {}, "f:c": {}}},
        "edit/Update": {"f:data": {}},
    }


def test_first_apply_to_an_unmanaged_object() -> None:
    live = made(data={"a": "1"})
    with pytest.raises(
        ApiError, match=r'conflict with "before-first-apply" using v1 at .*: .data.a'
    ):
        apply(live, made(data={"a": "2"}), "one")
    assert apply(live, made(data={"b": "2"}), "one")["data"] == {"a": "1", "b": "2"}


def test_apply_must_not_say_managed_fields() -> None:
    config = made()
    config["metadata"]["managedFields"] = [{"manager": "x"}]
    with pytest.raises(ApiError, match=r"metadata\.managedFields must be nil"):
        apply(None, config, "one")


def test_finalizers_are_a_set() -> None:
    one = apply(None, made(metadata={"finalizers": ["a/b"]}), "one")
    two = apply(one, made(metadata={"finalizers": ["c/d"]}), "two")
    assert two["metadata"]["finalizers"] == ["a/b", "c/d"]
    assert owned(two)["two/Apply"] == {"f:metadata": {"f:finalizers": {'v:"c/d"': {}}}}
    assert apply(two, made(), "one")["metadata"]["finalizers"] == ["c/d"]


def test_names_of_managers() -> None:
    assert managed_fields.manager_name("", user_agent="kubectl/v1.37.1 (linux)") == "kubectl"
    assert managed_fields.manager_name("me", user_agent="x") == "me"
    assert managed_fields.manager_name("", user_agent="") == "unknown"
    for wrong in ("x" * 129, "a\nb"):
        with pytest.raises(ApiError) as caught:
            managed_fields.check_field_manager(wrong, options_kind="CreateOptions")
        assert caught.value.status.code == 422


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("f:metadata", "f:labels", "f:a.b/c"), ".metadata.labels.a.b/c"),
        (("f:secrets", 'k:{"name":"x"}', "f:uid"), '.secrets[name="x"].uid'),
        (("f:finalizers", 'v:"x"'), '.finalizers[="x"]'),
        (("f:l", "i:3"), ".l[3]"),
    ],
)
def test_paths_for_people(path: fieldsets.Path, text: str) -> None:
    assert fieldsets.path_text(path) == text


FIELDS = st.recursive(
    st.just({}),
    lambda below: st.dictionaries(
        st.sampled_from(["f:a", "f:b", "f:", 'k:{"n":1}', 'v:"x"', "v:2", "i:0"]),
        below,
        min_size=1,
        max_size=3,
    ),
    max_leaves=8,
)


@given(FIELDS)
def test_field_sets_come_back(tree: Any) -> None:
    found = fieldsets.from_fields_v1(tree)
    assert fieldsets.from_fields_v1(fieldsets.to_fields_v1(found)) == found


@given(
    st.recursive(
        st.just({}) | st.none() | st.integers(),
        lambda below: st.dictionaries(st.text(max_size=4), below),
        max_leaves=5,
    )
)
def test_any_tree_is_read_or_refused(tree: Any) -> None:
    try:
        found = fieldsets.from_fields_v1(tree)
    except Malformed:
        return
    for path in found:
        fieldsets.path_text(path)


OBJECTS = st.builds(
    lambda data, labels, finalizers: made(
        data=data, metadata={"labels": labels, "finalizers": finalizers}
    ),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3),
    st.lists(st.sampled_from(["x/a", "x/b", "x/c"]), unique=True, max_size=3),
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["one", "two", "three"]), st.booleans(), OBJECTS),
        min_size=1,
        max_size=6,
    )
)
def test_every_history_holds_together(steps: list[tuple[str, bool, Any]]) -> None:
    live = None
    for manager, is_apply, value in steps:
        try:
            if is_apply:
                live = apply(live, value, manager, force=True)
                for key, one in value.get("data", {}).items():
                    assert live["data"][key] == one
            else:
                live = update(live, value, manager)
                bare = live | {
                    "metadata": {k: v for k, v in live["metadata"].items() if k != "managedFields"}
                }
                assert bare == value
        except WaypostError as error:
            raise AssertionError(error) from error
        place = fieldsets.root(CONFIGMAPS.schema)
        there = fieldsets.with_parents(frozenset(fieldsets.leaves(live, place)))
        for fields, _ in managed_fields.read_owners(live).values():
            assert {path for path in fields if path not in there} == set()
        json.dumps(live)
