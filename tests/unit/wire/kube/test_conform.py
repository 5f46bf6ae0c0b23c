"""Decoding, pruning, defaults: what becomes of a body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import WaypostError
from waypost.wire.kube.bodies import (
    JSON,
    PROTOBUF,
    YAML,
    Body,
    DeleteOptions,
    FieldValidation,
    conform,
    decode_body,
    decode_delete_options,
    encode_body,
    parse_field_validation,
    with_defaults,
)
from waypost.wire.kube.resources import BUILT_IN, Resource
from waypost.wire.kube.status import ApiError


def resource(plural: str) -> Resource:
    return next(one for one in BUILT_IN if one.plural == plural)


ROLES, CLUSTERROLES, CSRS = (
    resource("roles"),
    resource("clusterroles"),
    resource("certificatesigningrequests"),
)


def decode(
    body: Any,
    *,
    of: Resource = CLUSTERROLES,
    how: str = "Warn",
    media_type: str = JSON,
    sub: str = "",
) -> Body:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_body(
        raw,
        media_type=media_type,
        resource=of,
        subresource=sub,
        field_validation=FieldValidation(how),
    )


def refusal(*args: Any, **more: Any) -> str:
    with pytest.raises(ApiError) as caught:
        decode(*args, **more)
    assert caught.value.status.code == 400
    assert caught.value.status.reason == "BadRequest"
    return caught.value.status.message


def test_kind_and_version_come_from_the_url() -> None:
    assert decode({"metadata": {"name": "a"}}).object == {
        "kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "a"}, "rules": None,
    }  # fmt: skip


HEAD = 'ClusterRole in version "v1" cannot be handled as a ClusterRole: '


def test_unknown_fields_by_mode() -> None:
    body = {"rulez": [], "rules": [{"verbs": ["get"], "verb": 1}], "metadata": {"lable": {}}}
    faults = (
        'unknown field "rulez"',
        'unknown field "rules[0].verb"',
        'unknown field "metadata.lable"',
    )
    assert decode(body).warnings == faults
    assert decode(body, how="Ignore").warnings == ()
    assert refusal(body, how="Strict") == HEAD + "strict decoding error: " + ", ".join(faults)
    assert decode(body).object["rules"] == [{"verbs": ["get"]}]


@pytest.mark.parametrize("media_type", [JSON, YAML])
def test_repeated_fields(media_type: str) -> None:
    body = b'{"metadata": {"name": "a", "name": "b", "labels": {"x": "1", "x": "2"}}, "rules": [{"verbs": [], "verbs": ["get"]}]}'
    if media_type == YAML:
        body = b"# not JSON\n" + body
    found = decode(body, media_type=media_type)
    assert found.warnings == (
        'duplicate field "metadata.name"', 'duplicate field "metadata.labels.x"', 'duplicate field "rules[0].verbs"',
    )  # fmt: skip
    assert found.object["metadata"] == {"name": "b", "labels": {"x": "2"}}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"rules": "x"}, "json: cannot unmarshal string into Go struct field ClusterRole.rules of type []v1.PolicyRule"),
        ({"rules": ["x"]}, "json: cannot unmarshal string into Go struct field ClusterRole.rules of type v1.PolicyRule"),
        ({"rules": [{"verbs": "get"}]}, "json: cannot unmarshal string into Go struct field PolicyRule.rules.verbs of type []string"),
        ({"metadata": {"labels": {"a": 1}}}, "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"),
        ({"metadata": {"generation": 1.5}}, "json: cannot unmarshal number 1.5 into Go struct field ObjectMeta.metadata.generation of type int64"),
        ({"metadata": {"generation": 2**63}}, "json: cannot unmarshal number 9223372036854775808 into Go struct field ObjectMeta.metadata.generation of type int64"),
        ({"metadata": []}, "json: cannot unmarshal array into Go struct field ClusterRole.metadata of type v1.ObjectMeta"),
        ({"metadata": {"creationTimestamp": "x"}}, 'parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006"'),
        ([], "json: cannot unmarshal array into Go value of type v1.ClusterRole"),
    ],
)  # fmt: skip
def test_wrong_types(body: Any, text: str) -> None:
    assert refusal(body) == HEAD + text


def test_unreadable_bodies() -> None:
    start = "the object provided is unrecognized (must be of type ClusterRole): "
    assert (
        refusal(b"")
        == start
        + "couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)"
    )
    assert refusal(b"a: [", media_type=YAML).startswith(
        start + "error converting YAML to JSON: yaml: line 1: "
    )
    assert refusal(b"junk", media_type=PROTOBUF).startswith(
        start + "provided data does not appear to be a protobuf"
    )


@pytest.mark.parametrize(
    ("kind", "version", "text"),
    [
        ("Secret", "v1", "converting (v1.Secret) to (rbac.ClusterRole): unknown conversion"),
        (
            "Pod",
            "v1",
            'no kind "Pod" is registered for version "v1" in scheme "pkg/api/legacyscheme/scheme.go:30"',
        ),
    ],
)
def test_wrong_kinds(kind: str, version: str, text: str) -> None:
    head = f'{kind} in version "{version}" cannot be handled as a ClusterRole: '
    assert refusal({"kind": kind, "apiVersion": version}) == head + text


def test_times_bytes_and_order_have_one_form() -> None:
    one = decode(
        {
            "status": {"certificate": "YQ==\n", "conditions": [{"status": "True", "type": "Approved"}]},
            "spec": {"signerName": "a.b/c", "request": "YQ==", "extra": {"k": ["v"]}},
            "metadata": {"labels": {"b": "2", "a": "1"}, "creationTimestamp": "2026-11-23T06:24:29.5+02:00", "annotations": {}},
        },
        of=CSRS,
    ).object  # fmt: skip
    assert list(one) == ["kind", "apiVersion", "metadata", "spec", "status"]
    assert list(one["metadata"]) == ["creationTimestamp", "labels"]
    assert list(one["metadata"]["labels"]) == ["a", "b"]
    assert one["metadata"]["creationTimestamp"] == "2026-11-23T04:24:29Z"
    assert one["status"]["certificate"] == "YQ=="
    assert list(one["spec"]) == ["request", "signerName", "extra"]


def test_microseconds_of_a_lease() -> None:
    found = decode(
        {"spec": {"renewTime": "2026-11-23T04:24:29.123Z", "leaseDurationSeconds": 0}},
        of=resource("leases"),
    )
    assert found.object["spec"] == {
        "leaseDurationSeconds": 0,
        "renewTime": "2026-11-23T04:24:29.123000Z",
    }


def test_defaults() -> None:
    def made(plural: str, body: Any) -> Any:
        of = resource(plural)
        return with_defaults(decode(body, of=of).object, resource=of)

    secret = made("secrets", {"data": {"a": "YQ=="}, "stringData": {"b": "b", "a": "c"}})
    assert (secret["type"], secret["data"]) == ("Opaque", {"a": "Yw==", "b": "Yg=="})
    assert "stringData" not in secret
    space = made("namespaces", {"metadata": {"name": "n"}})
    assert space["spec"] == {"finalizers": ["kubernetes"]}
    assert space["status"] == {"phase": "Active"}
    assert space["metadata"]["labels"] == {"kubernetes.io/metadata.name": "n"}
    hook = made(
        "validatingwebhookconfigurations",
        {
            "webhooks": [
                {"name": "a.b.c", "clientConfig": {"service": {}}, "rules": [{"operations": ["*"]}]}
            ]
        },
    )
    assert hook["webhooks"][0]["timeoutSeconds"] == 10
    assert hook["webhooks"][0]["namespaceSelector"] == {}
    assert hook["webhooks"][0]["clientConfig"]["service"]["port"] == 443
    assert hook["webhooks"][0]["rules"] == [{"operations": ["*"], "scope": "*"}]
    bound = made(
        "rolebindings",
        {"subjects": [{"kind": "Group", "name": "g"}, {"kind": "ServiceAccount", "name": "s"}]},
    )
    assert [one.get("apiGroup") for one in bound["subjects"]] == ["rbac.authorization.k8s.io", None]
    assert bound["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "", "name": ""}


def test_token_request_at_its_subresource() -> None:
    of = resource("serviceaccounts")
    found = decode({"spec": {"audiences": []}}, of=of, sub="token").object
    assert found["kind"] == "TokenRequest"
    assert with_defaults(found, resource=of, subresource="token")["spec"] == {
        "audiences": None, "expirationSeconds": 3600, "boundObjectRef": None,
    }  # fmt: skip


def test_field_validation_parameter() -> None:
    assert parse_field_validation("", options_kind="CreateOptions") is FieldValidation.WARN
    with pytest.raises(ApiError) as caught:
        parse_field_validation("Loud", options_kind="CreateOptions")
    assert caught.value.status.message == (
        'CreateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "Loud": '
        'supported values: "Ignore", "Warn", "Strict"'
    )


def test_delete_options() -> None:
    def options(body: bytes = b"", **query: str) -> DeleteOptions:
        return decode_delete_options(
            body, media_type=JSON, query={key: [one] for key, one in query.items()}
        )

    assert options() == DeleteOptions()
    assert options(propagationPolicy="Orphan", gracePeriodSeconds="5") == DeleteOptions(
        propagation_policy="Orphan", grace_period_s=5
    )
    body = b'{"propagationPolicy":"Background","dryRun":["All"],"preconditions":{"uid":"u","resourceVersion":"7"}}'
    assert options(body) == DeleteOptions(
        dry_run=True, propagation_policy="Background", uid="u", resource_version="7"
    )
    assert options(b'{"orphanDependents":true}').propagation_policy == "Orphan"
    with pytest.raises(ApiError) as caught:
        options(b'{"propagationPolicy":"Foo"}')
    assert caught.value.status.message == (
        'DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: "Foo": supported values: '
        '"Foreground", "Background", "Orphan", "nil"'
    )


@pytest.mark.parametrize("media_type", [JSON, YAML, PROTOBUF])
def test_bodies_come_back(media_type: str) -> None:
    body = {
        "metadata": {"name": "x", "labels": {"a": "1"}, "creationTimestamp": "2026-11-23T04:24:29Z", "finalizers": ["a/b"]},
        "spec": {"request": "YQ==", "signerName": "a.b/c", "expirationSeconds": 600, "usages": ["client auth"], "extra": {"k": ["v", ""]}},
        "status": {"conditions": [{"type": "Approved", "status": "True", "lastUpdateTime": "2026-11-23T04:24:29Z"}]},
    }  # fmt: skip
    one = decode(body, of=CSRS).object
    again = decode(
        encode_body(one, media_type=media_type), of=CSRS, media_type=media_type, how="Strict"
    )
    assert again.object == one
    assert list(again.object) == list(one)


def test_yaml_in_braces() -> None:
    assert decode(b"{metadata: {name: a}}", media_type=YAML).object["metadata"] == {"name": "a"}


def test_yaml_keeps_dates_and_refuses_bombs() -> None:
    found = decode(
        b"metadata:\n  name: a\n  annotations: {d: 2026-11-23, n: '1'}\n", media_type=YAML
    )
    assert found.object["metadata"]["annotations"] == {"d": "2026-11-23", "n": "1"}
    bomb = b"a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (at, at, b",".join([b"*a%d" % (at - 1)] * 10)) for at in range(1, 12)
    )
    assert "excessive aliasing" in refusal(bomb, media_type=YAML)
    assert "exceeded max depth" in refusal(b"&a [*a]", media_type=YAML)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=4)
    | st.dictionaries(
        st.sampled_from(["metadata", "name", "labels", "rules", "verbs", "spec", "status", "data", "subjects", "webhooks", "kind"])
        | st.text(max_size=3),
        below,
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@given(JSON_VALUES, st.sampled_from(list(BUILT_IN)))
def test_any_value_fits_or_is_refused(value: Any, of: Resource) -> None:
    try:
        found = conform(value, resource=of, field_validation=FieldValidation.WARN).object
    except WaypostError:
        return
    again = conform(found, resource=of, field_validation=FieldValidation.STRICT)
    assert again.object == found
    filled = with_defaults(found, resource=of)
    assert with_defaults(filled, resource=of) == filled
    encode_body(filled, media_type=JSON)


@given(
    st.binary(max_size=200),
    st.sampled_from([JSON, YAML, PROTOBUF]),
    st.sampled_from(list(BUILT_IN)),
)
def test_garbage_is_refused(body: bytes, media_type: str, of: Resource) -> None:
    if media_type == PROTOBUF:
        body = b"k8s\x00" + body
    try:
        found = decode(body, of=of, media_type=media_type)
    except WaypostError:
        return
    encode_body(found.object, media_type=JSON)


@given(st.data())
def test_damaged_protobuf_is_refused(data: st.DataObject) -> None:
    body = decode(
        {"metadata": {"name": "x", "labels": {"a": "1"}, "managedFields": [{"fieldsV1": {"f:a": {}}, "time": "2026-11-23T04:24:29Z"}]},
         "spec": {"request": "YQ==", "extra": {"k": ["v"]}}, "status": {"conditions": [{"type": "A", "status": "True"}]}},
        of=CSRS,
    ).object  # fmt: skip
    raw = bytearray(encode_body(body, media_type=PROTOBUF))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(raw), of=CSRS, media_type=PROTOBUF)
    except WaypostError:
        return
