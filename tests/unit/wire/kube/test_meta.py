"""Names, metadata, revisions, tokens; tables; content negotiation; discovery."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import Malformed, WaypostError
from waypost.wire.kube import discovery, meta, table
from waypost.wire.kube.negotiate import Representation, body_type, negotiate, wants_pretty
from waypost.wire.kube.resources import BUILT_IN, RBAC, Resource
from waypost.wire.kube.schema import SCHEMA, openapi
from waypost.wire.kube.status import ApiError

NOW_S = 1_795_406_400.0


def resource(plural: str) -> Resource:
    return next(one for one in BUILT_IN if one.plural == plural)


ROLES, HOOKS = resource("roles"), resource("validatingwebhookconfigurations")


def test_generated_names() -> None:
    rng = random.Random(1)
    name = meta.generated_name("g-", rng=rng)
    assert name.startswith("g-")
    assert len(name) == 7
    assert set(name[2:]) <= set(meta.NAME_LETTERS)
    assert len(meta.generated_name("x" * 80, rng=rng)) == 63


@pytest.mark.parametrize(
    ("text", "at_s"),
    [
        ("2026-11-23T04:00:00Z", NOW_S),
        ("2026-11-23T04:00:00+00:00", NOW_S),
        ("2026-11-23t06:00:00.000+02:00", NOW_S),
        ("2026-11-23 04:00:00Z", None),
        ("2026-13-23T04:00:00Z", None),
        ("0001-01-01T00:00:00+02:00", None),
        ("", None),
    ],
)
def test_times(text: str, at_s: float | None) -> None:
    assert meta.time_s(text) == at_s


def test_new_and_changed_objects() -> None:
    sent = {
        "kind": "Role", "apiVersion": "x/v1",
        "metadata": {"labels": {"a": "1"}, "uid": "theirs", "resourceVersion": "9", "generation": 7, "deletionTimestamp": "x"},
        "rules": None,
    }  # fmt: skip
    made = meta.new_object(sent, resource=ROLES, namespace="n", name="r", uid="u", now_s=NOW_S)
    assert made["metadata"] == {
        "name": "r", "namespace": "n", "uid": "u", "creationTimestamp": "2026-11-23T04:00:00Z", "labels": {"a": "1"},
    }  # fmt: skip
    assert list(made) == ["kind", "apiVersion", "metadata", "rules"]
    changed = meta.changed_object(
        made, {"metadata": {"name": "other", "uid": "q"}, "rules": []}, resource=ROLES
    )
    assert changed["metadata"] == {
        key: one for key, one in made["metadata"].items() if key != "labels"
    }
    assert not meta.same_but_metadata(made, changed)
    assert meta.same_but_metadata(
        made, made | {"metadata": made["metadata"] | {"resourceVersion": "7"}}
    )
    assert sent["metadata"]["uid"] == "theirs"


def test_generation_counts_changes_of_what_is_wanted() -> None:
    made = meta.new_object(
        {"webhooks": []}, resource=HOOKS, namespace="", name="h", uid="u", now_s=NOW_S
    )
    assert made["metadata"]["generation"] == 1
    same = meta.changed_object(
        made, {"metadata": {"labels": {"a": "1"}}, "webhooks": []}, resource=HOOKS
    )
    assert same["metadata"]["generation"] == 1
    assert (
        meta.changed_object(same, {"webhooks": [{}]}, resource=HOOKS)["metadata"]["generation"] == 2
    )


def test_marked_deleted_keeps_zero() -> None:
    live = {"metadata": {"name": "r", "finalizers": ["a/b"], "creationTimestamp": "t"}}
    marked = meta.marked_deleted(live, now_s=NOW_S)
    assert marked["metadata"] == {
        "name": "r", "creationTimestamp": "t", "deletionTimestamp": "2026-11-23T04:00:00Z",
        "deletionGracePeriodSeconds": 0, "finalizers": ["a/b"],
    }  # fmt: skip
    assert meta.marked_deleted(marked, now_s=NOW_S + 9) is marked
    kept = meta.changed_object(marked, {"metadata": {"labels": {"a": "1"}}}, resource=ROLES)
    assert kept["metadata"]["deletionGracePeriodSeconds"] == 0


def test_stored_and_read() -> None:
    value = {
        "kind": "Role",
        "metadata": {"name": "r", "uid": "u", "resourceVersion": "3", "creationTimestamp": "t"},
    }
    body = meta.stored_body(value)
    assert b"resourceVersion" not in body
    assert meta.read_body(body, modify_index=3) == value
    assert list(meta.read_body(body, modify_index=3)["metadata"]) == [
        "name",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ]
    with pytest.raises(Malformed):
        meta.read_body(b"[]", modify_index=1)


def test_lists() -> None:
    item = {"kind": "Role", "apiVersion": "v", "metadata": {"name": "r"}}
    assert meta.object_list(ROLES, [item], revision=7, continue_token="c", remaining=2) == {
        "kind": "RoleList", "apiVersion": f"{RBAC}/v1",
        "metadata": {"resourceVersion": "7", "continue": "c", "remainingItemCount": 2},
        "items": [{"metadata": {"name": "r"}}],
    }  # fmt: skip


@pytest.mark.parametrize("text", ["abc", "-1", "1.0", "٣", "18446744073709551616", "9" * 5000])
def test_bad_revisions(text: str) -> None:
    with pytest.raises(Malformed):
        meta.parse_resource_version(text)


def test_revisions() -> None:
    assert meta.parse_resource_version("") is None
    assert meta.parse_resource_version("0") == 0
    assert meta.parse_resource_version("18446744073709551615") == 2**64 - 1


@given(
    st.integers(1, 2**63),
    st.text(min_size=1, max_size=9).filter(lambda one: not one.endswith("\0")),
)
def test_continue_tokens_come_back(revision: int, start: str) -> None:
    token = meta.Continue(revision=revision, start=start)
    assert meta.parse_continue(token.text()) == token


@given(st.text(max_size=12) | st.text("eyJ2IjoibWV0YS5rOHMuaW8vdjEi", max_size=12))
def test_any_continue_token_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="invalid continue token"):
        meta.parse_continue(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"), (0, "0s"), (119, "119s"), (125, "2m5s"), (120, "2m"), (330, "5m30s"), (599, "9m59s"), (600, "10m"),
        (5400, "90m"), (10800, "3h"), (19200, "5h20m"), (28800, "8h"), (108000, "30h"), (2 * 86400, "2d"),
        (3 * 86400 + 4 * 3600, "3d4h"), (8 * 86400, "8d"), (400 * 86400, "400d"), (730 * 86400, "2y"), (800 * 86400, "2y70d"), (9 * 365 * 86400, "9y"),
    ],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert table.age_text(seconds) == text


def cells(plural: str, value: Any) -> Any:
    value = {"metadata": {"name": "x", "creationTimestamp": "2026-11-23T03:59:00Z"}} | value
    return table.render(resource(plural), [value], now_s=NOW_S, metadata={})["rows"][0]["cells"]


@pytest.mark.parametrize(
    ("plural", "value", "expected"),
    [
        ("roles", {}, ["x", "2026-11-23T03:59:00Z"]),
        (
            "rolebindings",
            {
                "roleRef": {"kind": "Role", "name": "r"},
                "subjects": [
                    {"kind": "User", "name": "a"}, {"kind": "User", "name": "b"}, {"kind": "Group", "name": "g"},
                    {"kind": "ServiceAccount", "name": "s", "namespace": "n"},
                ],
            },
            ["x", "Role/r", "60s", "a, b", "g", "n/s"],
        ),
        ("secrets", {"type": "Opaque", "data": {"a": "", "b": ""}}, ["x", "Opaque", 2, "60s"]),
        ("configmaps", {"data": {"a": ""}, "binaryData": {"b": ""}}, ["x", 2, "60s"]),
        ("namespaces", {"status": {"phase": "Active"}}, ["x", "Active", "60s"]),
        ("certificatesigningrequests", {}, ["x", "60s", "", "", "<none>", "Pending"]),
        (
            "certificatesigningrequests",
            {
                "spec": {"signerName": "a/b", "username": "u", "expirationSeconds": 86400},
                "status": {"conditions": [{"type": "Approved"}], "certificate": "YQ=="},
            },
            ["x", "60s", "a/b", "u", "24h", "Approved,Issued"],
        ),
        ("certificatesigningrequests", {"status": {"conditions": [{"type": "Failed"}, {"type": "Approved"}]}}, ["x", "60s", "", "", "<none>", "Approved,Failed"]),
        ("leases", {"spec": {"holderIdentity": "h"}}, ["x", "h", "60s"]),
        ("validatingwebhookconfigurations", {"webhooks": [{}, {}]}, ["x", 2, "60s"]),
    ],
)  # fmt: skip
def test_rows(plural: str, value: Any, expected: Any) -> None:
    assert cells(plural, value) == expected


def test_table_forms() -> None:
    value = {"kind": "Role", "metadata": {"name": "x"}}

    def row(include: str) -> Any:
        return table.render(ROLES, [value], now_s=NOW_S, metadata={}, include_object=include)[
            "rows"
        ][0]["object"]

    assert row("Metadata") == {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"name": "x"},
    }
    assert row("Object") == value
    assert row("None") is None
    assert (
        table.render(ROLES, [], now_s=NOW_S, metadata={}, columns=False)["columnDefinitions"]
        is None
    )


KUBECTL = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"


@pytest.mark.parametrize(
    ("accept", "media_type", "convert"),
    [
        ("", "application/json", ""),
        ("*/*", "application/json", ""),
        ("text/html,*/*;q=0.1", "application/json", ""),
        (KUBECTL, "application/json", "Table"),
        ("application/vnd.kubernetes.protobuf,application/json", "application/json", ""),
        ("application/json;q=0.1,application/yaml", "application/yaml", ""),
        (
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            "application/json",
            "PartialObjectMetadataList",
        ),
        ("application/json;as=Odd;g=x;v=v1, application/json", "application/json", ""),
    ],
)
def test_accept(accept: str, media_type: str, convert: str) -> None:
    version = "v1" if convert else ""
    assert negotiate(accept) == Representation(
        media_type=media_type, convert=convert, version=version
    )


@pytest.mark.parametrize(
    "accept", ["text/html", "application/vnd.kubernetes.protobuf", "application/json;q=0", ",;"]
)
def test_accept_of_nothing_we_have(accept: str) -> None:
    with pytest.raises(ApiError) as caught:
        negotiate(accept)
    assert caught.value.status.code == 406


def test_aggregated_discovery_is_negotiated() -> None:
    found = negotiate(
        discovery.AGGREGATED + ",application/json", converts=("APIGroupDiscoveryList",)
    )
    assert (found.convert, found.version) == ("APIGroupDiscoveryList", "v2")


def test_body_types() -> None:
    assert body_type("") == "application/json"
    assert body_type("application/json; charset=utf-8") == "application/json"
    with pytest.raises(ApiError):
        body_type("application/x-www-form-urlencoded")
    assert wants_pretty("", user_agent="")
    assert not wants_pretty("false", user_agent="curl/8")
    assert wants_pretty(None, user_agent="curl/8")
    assert not wants_pretty(None, user_agent="kubectl/v1")


@given(st.text(max_size=30) | st.text("application/json;,q=as.*", max_size=30))
def test_any_accept_is_read_or_refused(accept: str) -> None:
    try:
        negotiate(accept)
    except WaypostError:
        return


def test_discovery_speaks_of_every_resource_once() -> None:
    plain = set()
    for group, version in BUILT_IN.group_versions():
        found = discovery.api_resources(group, version)
        assert found is not None
        plain |= {(found["groupVersion"], one["name"]) for one in found["resources"]}
    assert {(one.group_version, one.plural) for one in BUILT_IN} <= plain
    assert ("v1", "serviceaccounts/token") in plain
    aggregated = [
        (one["resource"], version["version"])
        for core in (True, False)
        for group in discovery.aggregated(core=core)["items"]
        for version in group["versions"]
        for one in version["resources"]
    ]
    assert sorted(aggregated) == sorted((one.plural, one.version) for one in BUILT_IN)
    assert discovery.api_resources("nope", "v1") is None
    assert discovery.api_group("nope") is None
    assert discovery.api_group(RBAC)["preferredVersion"] == {
        "groupVersion": f"{RBAC}/v1",
        "version": "v1",
    }  # type: ignore[index]
    token = discovery.api_resources("", "v1")["resources"][-1]  # type: ignore[index]
    assert token == {
        "name": "serviceaccounts/token", "singularName": "", "namespaced": True, "group": "authentication.k8s.io",
        "version": "v1", "kind": "TokenRequest", "verbs": ["create"],
    }  # fmt: skip


# -- OpenAPI -------------------------------------------------------------------------------------------------------------


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(references(one) for one in value.values()))
    return set().union(*(references(one) for one in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize(("group", "version"), BUILT_IN.group_versions())
def test_v3_documents_are_complete(group: str, version: str) -> None:
    document = openapi.v3_document(group, version, server_version="v1")
    assert document is not None
    known = document["components"]["schemas"]
    assert {one.rpartition("/")[2] for one in references(document)} <= known.keys()
    for one in BUILT_IN.of_group_version(group, version):
        entry = {"group": group, "kind": one.kind, "version": version}
        assert entry in known[one.schema]["x-kubernetes-group-version-kind"]
        path = one.list_path(namespace="{namespace}" if one.namespaced else "")
        if "patch" in one.verbs:
            patched = document["paths"][path + "/{name}"]["patch"]
            assert patched["x-kubernetes-group-version-kind"] == entry
            assert {"dryRun", "fieldValidation", "force"} <= {
                each["name"] for each in patched["parameters"]
            }


def test_v3_index_changes_with_its_documents() -> None:
    one, other = (openapi.v3_index(version=version)["paths"] for version in ("v1", "v2"))
    assert one.keys() == other.keys()
    assert one["apis/rbac.authorization.k8s.io/v1"] != other["apis/rbac.authorization.k8s.io/v1"]
    assert openapi.v3_document("nope", "v1", server_version="v1") is None


def test_v2_has_merge_keys_and_every_field() -> None:
    document = openapi.v2_document(server_version="v1")
    known = document["definitions"]
    assert {one.rpartition("/")[2] for one in references(document)} <= known.keys()
    secrets = known["io.k8s.api.core.v1.ServiceAccount"]["properties"]["secrets"]
    assert secrets["x-kubernetes-patch-merge-key"] == "name"
    assert secrets["x-kubernetes-patch-strategy"] == "merge"
    for name, fields in ((name, SCHEMA.fields(name)) for name in SCHEMA.messages):
        if name in known:
            assert fields.keys() <= known[name]["properties"].keys()
    assert openapi.v2_protobuf(document).startswith(b"\x0a\x032.0\x12")
