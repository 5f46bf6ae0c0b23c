"""The words and bytes of the kube-style API beside recorded ones of kube-apiserver 1.20 and kubectl 1.37."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from waypost.wire.kube import (
    managed_fields,
    meta,
    patch,
    protobuf,
    selectors,
    status,
    table,
    validate,
)
from waypost.wire.kube.bodies import (
    JSON,
    FieldValidation,
    decode_body,
    decode_delete_options,
    parse_dry_run,
    with_defaults,
)
from waypost.wire.kube.resources import BUILT_IN, RBAC, Resource
from waypost.wire.kube.schema import SCHEMA, Scalar, Shape
from waypost.wire.kube.schema.conform import conform

DATA = Path(__file__).parent / "data"
NOW_S = 1_795_406_400.0


def recorded() -> dict[str, str]:
    """Return the recorded Status bodies by title; long ones are cut at 1500 characters."""
    lines = (DATA / "errors-kube-apiserver-1.20.txt").read_text().splitlines()
    found = {}
    for head, answer in itertools.pairwise(lines):
        if head.startswith("## ") and answer.startswith("   "):
            body = answer.strip().partition(" ")[2]
            if body.startswith("{") and '"Status"' in body:
                found[head[3:].partition(" |")[0]] = body
    return found


RECORDED = recorded()


def resource(plural: str) -> Resource:
    return next(one for one in BUILT_IN if one.plural == plural)


ROLES, CLUSTERROLES, SECRETS = resource("roles"), resource("clusterroles"), resource("secrets")


def decode(body: bytes, of: Resource = CLUSTERROLES, **more: Any) -> Any:
    return decode_body(
        body, media_type=JSON, resource=of, field_validation=FieldValidation.WARN, **more
    ).object


def refuse_invalid(of: Resource, **metadata: Any) -> None:
    value = with_defaults(decode(json.dumps({"metadata": metadata}).encode(), of), resource=of)
    errors = validate.create_errors(value, resource=of)
    raise status.invalid(of.kind, metadata.get("name", ""), errors, group=of.group)


def refuse(error: status.ApiError) -> None:
    raise error


UID = "b8ca2909-5896-449f-a84b-d2294836c5a7"
LIVE = {"kind": "ClusterRole", "apiVersion": CLUSTERROLES.group_version, "metadata": {"name": "t9"}}

REFUSALS: dict[str, Callable[[], Any]] = {
    "404 obj": lambda: refuse(status.not_found("clusterroles", "nope", group=RBAC)),
    "404 core obj": lambda: refuse(status.not_found("secrets", "nope")),
    "404 unknown resource": lambda: refuse(status.no_such_resource()),
    "409 exists": lambda: refuse(status.already_exists("clusterroles", "t1", group=RBAC)),
    "409 conflict": lambda: refuse(status.conflict("clusterroles", "t1", group=RBAC)),
    "409 delete precond": lambda: refuse(
        status.conflict(
            "ClusterRole", "t1", group=RBAC, detail=status.uid_precondition_text(asked="x", found=UID)
        )
    ),
    "409 delete rv precond": lambda: refuse(
        status.conflict(
            "ClusterRole", "t1", group=RBAC,
            detail=status.version_precondition_text(asked="1", found="190"),
        )
    ),
    "400 name mismatch": lambda: meta.check_url(
        {"metadata": {"name": "t1"}}, resource=CLUSTERROLES, namespace="", name="other"
    ),
    "400 bad json": lambda: decode(b"{bad"),
    "400 wrong kind": lambda: decode(b'{"kind":"Role","apiVersion":"rbac.authorization.k8s.io/v1"}'),
    "400 ns mismatch": lambda: meta.check_url(
        {"metadata": {"name": "a", "namespace": "b"}}, resource=ROLES, namespace="default", name=""
    ),
    "404 ns missing": lambda: refuse(status.not_found("namespaces", "nons")),
    "422 no name": lambda: refuse_invalid(CLUSTERROLES),
    "422 bad name slash": lambda: refuse_invalid(CLUSTERROLES, name="a/b"),
    "422 bad name pct": lambda: refuse_invalid(CLUSTERROLES, name="a%b"),
    "422 name dot": lambda: refuse_invalid(CLUSTERROLES, name="."),
    "bad secret name": lambda: refuse_invalid(SECRETS, name="Bad_Name", namespace="default"),
    "bad ns name": lambda: refuse_invalid(resource("namespaces"), name="Bad.Name"),
    "405": lambda: refuse(status.method_not_allowed()),
    "415b": lambda: refuse(status.unsupported_media_type()),
    "bad watch rv": lambda: refuse(
        status.unexpected(meta.revision_error("abc", "invalid syntax"))
    ),
    "bad labelSelector": lambda: selectors.parse_label_selector("a===b"),
    "bad fieldSelector": lambda: selectors.parse_field_selector("foo=bar", resource=CLUSTERROLES),
    "bad continue": lambda: meta.parse_continue("zzz"),
    "bad dryrun": lambda: parse_dry_run(["yes"], options_kind="CreateOptions"),
    "ssa no fm": lambda: managed_fields.check_field_manager("", options_kind="PatchOptions", is_apply=True),
    "bad json patch": lambda: patch.patched(
        LIVE, b'[{"op":"remove","path":"/nope"}]', media_type=patch.JSON_PATCH, resource=CLUSTERROLES
    ),
    "bad json patch test": lambda: patch.patched(
        LIVE, b'[{"op":"test","path":"/metadata/name","value":"x"}]',
        media_type=patch.JSON_PATCH, resource=CLUSTERROLES,
    ),
    "bad delete body": lambda: decode_delete_options(
        b'{"kind":"Foo","apiVersion":"v1"}', media_type=JSON, query={}
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", REFUSALS)
def test_refusal_is_the_recorded_one(title: str) -> None:
    with pytest.raises(status.ApiError) as caught:
        REFUSALS[title]()
    assert caught.value.status.body() == json.loads(RECORDED[title])


def test_bad_label_is_the_recorded_one() -> None:
    """Recorded without the label the server itself gives a namespace since 1.21."""
    namespaces = resource("namespaces")
    value = decode(b'{"metadata":{"name":"a","labels":{"a b":"c d"}}}', namespaces)
    errors = validate.create_errors(value, resource=namespaces)
    body = status.invalid("Namespace", "a", errors).status.body()
    assert json.dumps(body).startswith(RECORDED["bad label"])


def test_delete_is_the_recorded_one() -> None:
    found = status.deleted("clusterroles", "t1", group=RBAC, uid=UID).body()
    assert found == json.loads(RECORDED["delete ns obj"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (status.too_old_resource_version(1, oldest=2017), "too old resource version: 1 (2017)"),
        (
            status.too_large_resource_version(999999999, current=2317),
            "Timeout: Too large resource version: 999999999, current: 2317",
        ),
        (
            status.namespace_terminating("roles", "a", group=RBAC, namespace="tmpns"),
            'roles.rbac.authorization.k8s.io "a" is forbidden: unable to create new content in namespace tmpns '
            "because it is being terminated",
        ),
    ],
)
def test_other_messages(error: status.ApiError, message: str) -> None:
    assert error.status.message == message


# -- protobuf ------------------------------------------------------------------------------------------------------------

SCALARS = {
    Scalar.TIME: "Time",
    Scalar.MICRO_TIME: "MicroTime",
    Scalar.FIELDS: "FieldsV1",
    Scalar.TEXTS: "ExtraValue",
}
PROTO = json.loads((DATA / "proto-fields.json").read_text())
KNOWN = [name for name in SCHEMA.messages if "k8s." + name.replace("io.k8s.", "io.") in PROTO]


def test_most_messages_are_recorded() -> None:
    assert len(KNOWN) >= 60


@pytest.mark.parametrize("name", KNOWN)
def test_field_numbers_are_the_recorded_ones(name: str) -> None:
    described = {}
    for one in SCHEMA.message(name).fields:
        of = (
            SCALARS.get(one.of, one.of.value)
            if isinstance(one.of, Scalar)
            else one.of.rpartition(".")[2]
        )
        kind = {Shape.ONE: "optional", Shape.LIST: "repeated", Shape.MAP: "map"}[one.shape]
        described[str(one.number)] = [one.name.lower(), of, kind]
    found = {
        number: [json_name.lower(), of.removeprefix("map:").rpartition(".")[2], kind]
        for number, (json_name, of, kind) in PROTO["k8s." + name.replace("io.k8s.", "io.")].items()
        if json_name != "shardInfo"  # of sharded watches, which nothing here has
    }
    assert described == found


KUBECTL = json.loads((DATA / "kubectl-1.37-protobuf.json").read_text())


@pytest.mark.parametrize("name", KUBECTL)
def test_requests_of_kubectl_come_out_byte_for_byte(name: str) -> None:
    body = bytes.fromhex(KUBECTL[name]["body"])
    envelope = protobuf.open_envelope(body)
    found = next((one.schema for one in BUILT_IN if one.kind == envelope.kind), "")
    message = found or f"io.k8s.api.authentication.v1.{envelope.kind}"
    value = protobuf.decode_object(envelope, message=message)
    fitted = conform(value, message=message)
    assert fitted.faults == ()
    assert protobuf.encode_object(fitted.value, message=message) == body


def test_role_of_kubectl() -> None:
    body = bytes.fromhex(KUBECTL["create-role"]["body"])
    found = decode_body(
        body, media_type="application/vnd.kubernetes.protobuf", resource=ROLES,
        field_validation=FieldValidation.STRICT,
    )  # fmt: skip
    assert found.object == {
        "kind": "Role",
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "metadata": {"name": "r1"},
        "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "secrets"]}],
    }


# -- managed fields and tables -------------------------------------------------------------------------------------------


def rule(verb: str) -> list[dict[str, list[str]]]:
    return [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]


def role(**more: Any) -> dict[str, Any]:
    labels = more.pop("labels", None)
    metadata = {"name": "ssa1", "namespace": "n1"} | ({"labels": labels} if labels else {})
    return decode(json.dumps({"metadata": metadata} | more).encode(), ROLES)


def fields_of(value: dict[str, Any]) -> list[tuple[str, str, Any]]:
    return [
        (one["manager"], one["operation"], one["fieldsV1"])
        for one in value["metadata"].get("managedFields", ())
    ]


def apply(live: Any, config: Any, manager: str, **more: Any) -> Any:
    return managed_fields.applied(
        live, config, resource=ROLES, manager=manager, now_s=NOW_S, **more
    )


def test_server_side_apply_as_recorded() -> None:
    first = apply(None, role(labels={"a": "1"}, rules=rule("get")), "m1")
    owned = {"f:metadata": {"f:labels": {"f:a": {}}}, "f:rules": {}}
    assert fields_of(first) == [("m1", "Apply", owned)]

    theirs = role(labels={"b": "2"}, rules=rule("list"))
    with pytest.raises(status.ApiError) as caught:
        apply(first, theirs, "m2")
    assert caught.value.status.body() == {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": 'Apply failed with 1 conflict: conflict with "m1": .rules', "reason": "Conflict",
        "details": {
            "causes": [
                {"reason": "FieldManagerConflict", "message": 'conflict with "m1"', "field": ".rules"}
            ]
        },
        "code": 409,
    }  # fmt: skip

    forced = apply(first, theirs, "m2", force=True)
    after = [
        ("m1", "Apply", {"f:metadata": {"f:labels": {"f:a": {}}}}),
        ("m2", "Apply", {"f:metadata": {"f:labels": {"f:b": {}}}, "f:rules": {}}),
    ]
    assert fields_of(forced) == after
    assert forced["metadata"]["labels"] == {"a": "1", "b": "2"}
    assert forced["rules"] == rule("list")

    given_up = apply(forced, role(labels={"a": "1"}), "m1")
    assert given_up["rules"] == rule("list")
    assert fields_of(given_up) == after

    removed = apply(given_up, role(labels={"b": "2"}), "m2")
    assert removed["rules"] is None


def test_binding_of_a_create_as_recorded() -> None:
    of = resource("clusterrolebindings")
    body = {
        "metadata": {"name": "x"},
        "subjects": [{"kind": "User", "name": "s"}],
        "roleRef": {"kind": "ClusterRole", "name": "r"},
    }
    new = with_defaults(decode(json.dumps(body).encode(), of), resource=of)
    assert new["subjects"] == [{"kind": "User", "apiGroup": RBAC, "name": "s"}]
    found = managed_fields.updated(None, new, resource=of, manager="probe", now_s=NOW_S)
    owned = {"f:roleRef": {"f:apiGroup": {}, "f:kind": {}, "f:name": {}}, "f:subjects": {}}
    assert fields_of(found) == [("probe", "Update", owned)]


def test_secret_of_a_controller_as_recorded() -> None:
    body = {
        "metadata": {
            "name": "bot-token", "namespace": "n1",
            "annotations": {"kubernetes.io/service-account.name": "bot", "kubernetes.io/service-account.uid": "u"},
        },
        "type": "kubernetes.io/service-account-token",
        "data": {"ca.crt": "YQ==", "namespace": "YQ==", "token": "YQ=="},
    }  # fmt: skip
    new = with_defaults(decode(json.dumps(body).encode(), SECRETS), resource=SECRETS)
    found = managed_fields.updated(None, new, resource=SECRETS, manager="kcm", now_s=NOW_S)
    assert fields_of(found)[0][2] == {
        "f:data": {".": {}, "f:ca.crt": {}, "f:namespace": {}, "f:token": {}},
        "f:metadata": {
            "f:annotations": {
                ".": {},
                "f:kubernetes.io/service-account.name": {},
                "f:kubernetes.io/service-account.uid": {},
            }
        },
        "f:type": {},
    }


@pytest.mark.parametrize(
    ("plural", "columns"),
    [
        ("roles", ["Name", "Created At"]),
        ("rolebindings", ["Name", "Role", "Age", "Users w", "Groups w", "ServiceAccounts w"]),
        ("serviceaccounts", ["Name", "Secrets", "Age"]),
        ("namespaces", ["Name", "Status", "Age"]),
        ("secrets", ["Name", "Type", "Data", "Age"]),
        ("configmaps", ["Name", "Data", "Age"]),
        ("certificatesigningrequests", ["Name", "Age", "SignerName", "Requestor", "RequestedDuration", "Condition"]),
    ],
)  # fmt: skip
def test_columns_as_recorded(plural: str, columns: list[str]) -> None:
    found = table.render(resource(plural), [], now_s=NOW_S, metadata={})
    assert [one["name"] + " w" * one["priority"] for one in found["columnDefinitions"]] == columns


def test_continue_token_as_recorded() -> None:
    text = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MjMyMiwic3RhcnQiOiJhZG1pblx1MDAwMCJ9"
    assert meta.parse_continue(text) == meta.Continue(revision=2322, start="admin")
    assert meta.Continue(revision=2322, start="admin").text() == text
