"""What each kind must look like."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import WaypostError
from waypost.wire.kube.bodies import JSON, FieldValidation, conform, decode_body, with_defaults
from waypost.wire.kube.resources import BUILT_IN, Resource
from waypost.wire.kube.validate import (
    create_errors,
    review_errors,
    token_request_errors,
    update_errors,
)


def resource(plural: str) -> Resource:
    return next(one for one in BUILT_IN if one.plural == plural)


def made(of: Resource, *, sub: str = "", **body: Any) -> Any:
    metadata = (
        {"name": "x"} | ({"namespace": "n"} if of.namespaced else {}) | body.pop("metadata", {})
    )
    raw = json.dumps({"metadata": metadata} | body).encode()
    found = decode_body(
        raw, media_type=JSON, resource=of, subresource=sub, field_validation=FieldValidation.STRICT
    )
    return with_defaults(found.object, resource=of, subresource=sub)


def faults(plural: str, **body: Any) -> list[str]:
    of = resource(plural)
    return [one.text for one in create_errors(made(of, **body), resource=of)]


REQUEST = base64.b64encode(b"-----BEGIN CERTIFICATE REQUEST-----\n").decode()
CSR = {"request": REQUEST, "signerName": "example.com/x", "usages": ["client auth"]}
HOOK = {
    "name": "a.example.com", "clientConfig": {"url": "https://h/p"}, "sideEffects": "None", "admissionReviewVersions": ["v1"],
    "rules": [{"operations": ["CREATE"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}],
}  # fmt: skip


def hook(**more: Any) -> dict[str, Any]:
    return {"webhooks": [HOOK | more]}


@pytest.mark.parametrize(
    ("plural", "body"),
    [
        ("roles", {"metadata": {"name": "A:b c"}}),
        ("secrets", {"data": {"a.b": "YQ=="}, "metadata": {"labels": {"a.b/c": "", "d": "E-1"}, "finalizers": ["a/b"]}}),
        ("configmaps", {"data": {"a": "x"}, "binaryData": {"b": "YQ=="}}),
        ("namespaces", {}),
        ("serviceaccounts", {"metadata": {"annotations": {"A/b": "c"}}}),
        ("certificatesigningrequests", {"spec": CSR}),
        ("leases", {"spec": {"leaseDurationSeconds": 1}}),
        ("validatingwebhookconfigurations", hook()),
        ("mutatingwebhookconfigurations", hook(reinvocationPolicy="IfNeeded", clientConfig={"service": {"name": "s", "namespace": "n"}})),
    ],
)  # fmt: skip
def test_good_ones(plural: str, body: Any) -> None:
    assert faults(plural, **body) == []


@pytest.mark.parametrize(
    ("plural", "body", "start"),
    [
        ("roles", {"metadata": {"name": ".."}}, "metadata.name: Invalid value: \"..\": may not be '..'"),
        ("secrets", {"metadata": {"name": "a" * 254}}, f'metadata.name: Invalid value: "{"a" * 254}": must be no more than 253 characters'),
        ("secrets", {"metadata": {"labels": {"/x": "v"}}}, 'metadata.labels: Invalid value: "/x": prefix part must be non-empty'),
        ("secrets", {"metadata": {"labels": {"a/b/c": "v"}}}, 'metadata.labels: Invalid value: "a/b/c": a qualified name must consist of'),
        ("secrets", {"metadata": {"labels": {"a": "v" * 64}}}, f'metadata.labels: Invalid value: "{"v" * 64}": must be no more than 63 characters'),
        ("secrets", {"metadata": {"annotations": {"a": "v" * 262144}}}, "metadata.annotations: Too long: must have at most 262144 bytes"),
        ("secrets", {"metadata": {"finalizers": ["a b"]}}, 'metadata.finalizers: Invalid value: "a b": name part must consist'),
        ("secrets", {"metadata": {"ownerReferences": [{"kind": "K", "name": "n", "apiVersion": "v1"}]}}, 'metadata.ownerReferences.uid: Invalid value: "": uid must not be empty'),
        ("namespaces", {"metadata": {"namespace": "n"}}, "metadata.namespace: Forbidden: not allowed on this type"),
        ("secrets", {"data": {"a b": "YQ=="}}, 'data[a b]: Invalid value: "a b": a valid config key must consist of'),
        ("secrets", {"data": {"..a": "YQ=="}}, "data[..a]: Invalid value: \"..a\": must not start with '..'"),
        ("secrets", {"type": "kubernetes.io/tls", "data": {"tls.crt": "YQ=="}}, "data[tls.key]: Required value"),
        ("secrets", {"type": "kubernetes.io/service-account-token"}, "metadata.annotations[kubernetes.io/service-account.name]: Required value"),
        ("secrets", {"data": {"a": base64.b64encode(b"x" * (2**20 + 1)).decode()}}, "data: Too long: must have at most 1048576 bytes"),
        ("configmaps", {"data": {"a": "x"}, "binaryData": {"a": "YQ=="}}, 'data[a]: Invalid value: "a": duplicate of key present in binaryData'),
        ("leases", {"spec": {"leaseDurationSeconds": 0}}, "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"),
        ("certificatesigningrequests", {"spec": CSR | {"usages": []}}, "spec.usages: Required value: usages is required"),
        ("certificatesigningrequests", {"spec": CSR | {"usages": ["fly"]}}, 'spec.usages[0]: Unsupported value: "fly": supported values: "any", '),
        ("certificatesigningrequests", {"spec": CSR | {"request": "YQ=="}}, "spec.request: Invalid value: [97]: PEM block type must be CERTIFICATE REQUEST"),
        ("certificatesigningrequests", {"spec": CSR | {"signerName": "x"}}, 'spec.signerName: Invalid value: "x": must be a fully qualified domain and path of the form'),
        ("certificatesigningrequests", {"spec": CSR | {"expirationSeconds": 599}}, "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds"),
        ("certificatesigningrequests", {"spec": CSR, "status": {"conditions": [{"type": "Approved", "status": "False"}]}}, 'status.conditions[0].status: Unsupported value: "False": supported values: "True"'),
        ("validatingwebhookconfigurations", hook(name="x"), 'webhooks[0].name: Invalid value: "x": should be a domain with at least three segments'),
        ("validatingwebhookconfigurations", hook(clientConfig={}), "webhooks[0].clientConfig: Required value: exactly one of url or service is required"),
        ("validatingwebhookconfigurations", hook(clientConfig={"url": "http://x"}), "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme"),
        ("validatingwebhookconfigurations", hook(timeoutSeconds=31), "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"),
        ("validatingwebhookconfigurations", hook(sideEffects="Some"), 'webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun"'),
        ("validatingwebhookconfigurations", hook(admissionReviewVersions=["v9"]), "webhooks[0].admissionReviewVersions: Invalid value: "),
        ("validatingwebhookconfigurations", {"webhooks": [HOOK, HOOK]}, 'webhooks[1].name: Duplicate value: "a.example.com"'),
        ("validatingwebhookconfigurations", hook(rules=[{"operations": ["FLY"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}]), 'webhooks[0].rules[0].operations[0]: Unsupported value: "FLY"'),
    ],
)  # fmt: skip
def test_one_fault(plural: str, body: Any, start: str) -> None:
    found = faults(plural, **body)
    assert len(found) == 1
    assert found[0].startswith(start)


def test_approved_and_denied() -> None:
    conditions = [{"type": kind, "status": "True"} for kind in ("Approved", "Denied")]
    assert faults("certificatesigningrequests", spec=CSR, status={"conditions": conditions}) == [
        'status.conditions[1].type: Invalid value: "Denied": Approved and Denied conditions are mutually exclusive'
    ]


def test_generated_names_are_judged_by_their_beginning() -> None:
    secrets = resource("secrets")
    value = made(secrets, metadata={"generateName": "g-", "name": "g-abcde"})
    assert create_errors(value, resource=secrets) == []
    value = made(secrets, metadata={"generateName": "G-", "name": "g-abcde"})
    assert create_errors(value, resource=secrets)[0].field == "metadata.generateName"


def test_updates() -> None:
    secrets = resource("secrets")
    live = made(secrets, type="a", data={"k": "YQ=="}, immutable=True, metadata={"uid": "u"})

    def changed(**body: Any) -> list[str]:
        value = made(secrets, **({"type": "a", "data": {"k": "YQ=="}, "immutable": True} | body))
        return [one.text for one in update_errors(live, value, resource=secrets)]

    assert changed() == []
    assert changed(metadata={"uid": "q"}) == [
        'metadata.uid: Invalid value: "q": field is immutable'
    ]
    assert changed(type="b") == ['type: Invalid value: "b": field is immutable']
    assert changed(data={}) == ["data: Forbidden: field is immutable when `immutable` is set"]
    assert changed(immutable=None) == [
        "immutable: Forbidden: field is immutable when `immutable` is set"
    ]
    live["metadata"]["deletionTimestamp"] = "2026-11-23T04:00:00Z"
    assert changed(metadata={"finalizers": ["a/b"]}) == [
        "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new "
        'finalizers []string{"a/b"}'
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (
            60,
            "spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes",
        ),
        (
            2**33,
            "spec.expirationSeconds: Invalid value: 8589934592: may not specify a duration larger than 2^32 seconds",
        ),
        (600, ""),
    ],
)
def test_token_requests(seconds: int, text: str) -> None:
    value = made(
        resource("serviceaccounts"),
        sub="token",
        spec={"audiences": [], "expirationSeconds": seconds},
    )
    assert [one.text for one in token_request_errors(value)] == ([text] if text else [])


def test_reviews() -> None:
    reviews = resource("subjectaccessreviews")
    on_resource = {"resourceAttributes": {"verb": "get"}}
    assert review_errors(made(reviews, spec=on_resource | {"user": "u"}), resource=reviews) == []
    found = [one.text for one in review_errors(made(reviews, spec={}), resource=reviews)]
    assert found == [
        "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        'spec.user: Invalid value: "": at least one of user or group must be specified',
    ]
    local = resource("localsubjectaccessreviews")
    value = made(local, spec=on_resource | {"user": "u"}, metadata={"namespace": "n"})
    assert [one.field for one in review_errors(value, resource=local)] == [
        "spec.resourceAttributes.namespace"
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["metadata", "name", "labels", "annotations", "finalizers", "ownerReferences", "data", "type", "immutable", "spec", "status", "conditions", "webhooks", "rules", "clientConfig", "url", "service", "port", "usages", "signerName", "request", "expirationSeconds", "user", "resourceAttributes"]
        ),
        below,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(VALUES, VALUES, st.sampled_from(list(BUILT_IN)))
def test_any_object_is_judged(value: Any, other: Any, of: Resource) -> None:
    try:
        pair = [
            with_defaults(
                conform(one, resource=of, field_validation=FieldValidation.WARN).object, resource=of
            )
            for one in (value, other)
        ]
    except WaypostError:
        return
    create_errors(pair[0], resource=of)
    update_errors(pair[0], pair[1], resource=of)
    review_errors(pair[0], resource=of)
