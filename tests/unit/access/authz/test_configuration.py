"""Order and settings of authorizers, and what is wrong with them."""

from __future__ import annotations

import copy

import pytest

from waypost.access.authz.configuration import parse_configuration, parse_modes
from waypost.base.errors import Malformed

FILE = {
    "apiVersion": "apiserver.config.k8s.io/v1",
    "kind": "AuthorizationConfiguration",
    "authorizers": [
        {
            "type": "Webhook",
            "name": "hook.example",
            "webhook": {
                "timeout": "3s",
                "subjectAccessReviewVersion": "v1",
                "matchConditionSubjectAccessReviewVersion": "v1",
                "failurePolicy": "Deny",
                "authorizedTTL": "1m",
                "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/etc/hook.conf"},
            },
        },
        {"type": "Node", "name": "node"},
        {"type": "RBAC", "name": "rbac"},
    ],
}


def test_modes_keep_their_order():
    assert [one.mode for one in parse_modes("RBAC, Node")] == ["RBAC", "Node"]


@pytest.mark.parametrize("text", ["", "RBAC,", "rbac", "RBAC,RBAC", "Node;RBAC"])
def test_bad_modes_are_told(text: str):
    with pytest.raises(Malformed, match="authorization mode"):
        parse_modes(text)


def test_a_file():
    webhook, node, rbac = parse_configuration(FILE)
    assert (node.mode, rbac.mode) == ("Node", "RBAC")
    assert webhook.name == "hook.example"
    assert webhook.webhook is not None
    assert webhook.webhook.timeout_s == 3
    assert webhook.webhook.authorized_ttl_s == 60
    assert webhook.webhook.unauthorized_ttl_s == 30
    assert webhook.webhook.failure_policy == "Deny"
    assert webhook.webhook.kubeconfig == "/etc/hook.conf"


def _with(path: str, value: object) -> dict:
    document = copy.deepcopy(FILE)
    *parents, last = path.split(".")
    place: dict = document
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]  # type: ignore[index]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (_with("kind", "Config"), "expected kind AuthorizationConfiguration"),
        (_with("authorizers", []), "at least one"),
        (_with("authorizers.1.name", "rbac"), "authorizers[2].name: 'rbac' is given more than once"),
        (_with("authorizers.1.type", "RBAC"), "authorizers[2].type: 'RBAC' is given more than once"),
        (_with("authorizers.1.type", "node"), "authorizers[1].type: 'node' is not known"),
        (_with("authorizers.1.name", ""), "authorizers[1].name: required"),
        (_with("authorizers.1.type", "Webhook"), "authorizers[1].webhook: required"),
        (_with("authorizers.0.webhook.timeout", "31s"), "authorizers[0].webhook.timeout: must be"),
        (_with("authorizers.0.webhook.timeout", "3"), "authorizers[0].webhook.timeout: "),
        (_with("authorizers.0.webhook.failurePolicy", "Ignore"), "failurePolicy: must be"),
        (_with("authorizers.0.webhook.subjectAccessReviewVersion", "v1beta1"), "must be"),
        (_with("authorizers.0.webhook.connectionInfo", {}), "connectionInfo: "),
        (_with("authorizers.0.webhook.matchConditions", [{"expression": "true"}]), "not supported"),
        (_with("authorizers.0.webhook.timeOut", "3s"), "unknown field `timeOut`"),
    ],
)  # fmt: skip
def test_faults_are_told_with_their_place(document: dict, said: str):
    with pytest.raises(Malformed) as raised:
        parse_configuration(document)
    assert said in str(raised.value)
