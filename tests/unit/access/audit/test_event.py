from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.access.actor import Actor
from waypost.access.audit.event import (
    Answered,
    Exchange,
    annotations_of,
    bodies_allowed,
    event_line,
    shown_body,
    shown_uri,
)
from waypost.access.audit.policy import Level, Stage
from waypost.access.authz.decision import Grant, Step
from waypost.access.authz.records import PolicyRule, Subject
from waypost.access.gate import GROUP, Attributes

ANNA = Actor(user="anna", groups=("dev",), uid="7", extra={"k": ("v",)})
PUT_WEB = Attributes("update", "services", "web", group=GROUP, version="v1")


def exchange(asked: Attributes = PUT_WEB, *, level: Level = Level.METADATA) -> Exchange:
    return Exchange(
        audit_id="id-1",
        level=level,
        uri="/v1/agent/service/register",
        asked=asked,
        actor=ANNA,
        received_s=1_700_000_000.25,
        address="10.0.0.1",
        user_agent="curl",
    )


def event(**fields: Any) -> dict[str, Any]:
    answered = Answered(status=200, at_s=1_700_000_001.0, **fields)
    line = event_line(exchange(level=Level.REQUEST_RESPONSE), Stage.RESPONSE_COMPLETE, answered)
    assert line.endswith(b"}\n")
    found: dict[str, Any] = json.loads(line)
    return found


def test_an_event_has_the_fields_of_kube() -> None:
    assert event(annotations={"authorization.k8s.io/decision": "allow"}) == {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "RequestResponse",
        "auditID": "id-1",
        "stage": "ResponseComplete",
        "requestURI": "/v1/agent/service/register",
        "verb": "update",
        "user": {"username": "anna", "uid": "7", "groups": ["dev"], "extra": {"k": ["v"]}},
        "sourceIPs": ["10.0.0.1"],
        "userAgent": "curl",
        "objectRef": {
            "resource": "services",
            "name": "web",
            "apiGroup": GROUP,
            "apiVersion": "v1",
        },
        "responseStatus": {"metadata": {}, "code": 200},
        "requestReceivedTimestamp": "2023-11-14T22:13:20.250000Z",
        "stageTimestamp": "2023-11-14T22:13:21.000000Z",
        "annotations": {"authorization.k8s.io/decision": "allow"},
    }


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", "/p"),
        ("token=abc", "/p?token=REDACTED"),
        ("a=1&token=abc&b=2", "/p?a=1&token=REDACTED&b=2"),
        ("a=1;TOKEN=abc", "/p?a=1;TOKEN=REDACTED"),
        ("access_token=abc&client_secret=x", "/p?access_token=REDACTED&client_secret=REDACTED"),
        ("tok%65n=abc", "/p?tok%65n=REDACTED"),
        ("a=1&%74%4fken=abc;x=2", "/p?a=1&%74%4fken=REDACTED;x=2"),
        ("client+key=abc&tok%ffen=abc", "/p?client+key=abc&tok%ffen=REDACTED"),
        ("%2574oken=abc", "/p?%2574oken=abc"),
        ("node%2dmeta=rack:2", "/p?node%2dmeta=rack:2"),
        ("token=a=b", "/p?token=REDACTED"),
        ("keys&separator=/", "/p?keys&separator=/"),
    ],
)
def test_secrets_in_a_target_are_taken_out(query: str, shown: str) -> None:
    assert shown_uri("/p", query) == shown


@pytest.mark.parametrize(
    "asked",
    [
        Attributes("create", "secrets", group="", namespace="x"),
        Attributes("create", "serviceaccounts", "a", group="", subresource="token"),
        Attributes("create", "tokenreviews", group="authentication.k8s.io"),
        Attributes("update", path="/v1/kv/a"),
        Attributes("update", "transactions"),
        Attributes("create", "events", "deploy"),
    ],
)
def test_some_bodies_are_never_written_whatever_the_policy_says(asked: Attributes) -> None:
    assert not bodies_allowed(asked)
    answered = Answered(
        status=200, at_s=1.0, request_body=b'{"a":"hidden"}', response_body=b'{"b":"hidden"}'
    )
    line = event_line(
        exchange(asked, level=Level.REQUEST_RESPONSE), Stage.RESPONSE_COMPLETE, answered
    )
    assert b"hidden" not in line


def test_levels_decide_which_bodies_are_written() -> None:
    answered = Answered(status=200, at_s=1.0, request_body=b'{"a":1}', response_body=b'{"b":2}')
    found = {}
    for level in Level:
        line = event_line(exchange(level=level), Stage.RESPONSE_COMPLETE, answered)
        found[level] = [k for k in ("requestObject", "responseObject") if k in json.loads(line)]
    assert found == {
        Level.NONE: [],
        Level.METADATA: [],
        Level.REQUEST: ["requestObject"],
        Level.REQUEST_RESPONSE: ["requestObject", "responseObject"],
    }


def test_values_that_sound_like_secrets_are_taken_out_of_bodies() -> None:
    body = {
        "Name": "web",
        "Token": "hidden",
        "Check": {"Header": {"Authorization": ["hidden"], "Accept": ["x"]}},
        "env": [{"name": "DB_PASSWORD", "value": "hidden"}, {"name": "A", "value": "seen"}],
        "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hidden"}},
        "privateKey": "hidden",
        "automountServiceAccountToken": False,
    }
    shown = shown_body(json.dumps(body).encode())
    assert "hidden" not in json.dumps(shown)
    assert shown["Check"]["Header"]["Accept"] == ["x"]
    assert shown["env"][1]["value"] == "seen"
    assert shown["automountServiceAccountToken"] is False


@pytest.mark.parametrize("body", [b"\x00proto", b"a: 1", b"[" * 100_000])
def test_what_is_no_json_is_named_by_its_size(body: bytes) -> None:
    assert list(shown_body(body)) == ["omitted"]


@given(st.text(), st.text(max_size=50))
def test_a_line_is_one_line_and_json_whatever_is_asked(name: str, query: str) -> None:
    asked = Attributes("update", "services", name, group=GROUP)
    made = Exchange(
        audit_id="x",
        level=Level.REQUEST,
        uri=shown_uri("/p", query),
        asked=asked,
        actor=None,
        received_s=0.0,
    )
    line = event_line(made, Stage.REQUEST_RECEIVED)
    assert line.count(b"\n") == 1
    assert json.loads(line)["user"] == {}


def test_a_message_does_not_repeat_a_token() -> None:
    answered = Answered(status=400, at_s=1.0, message="Conflicting flags: cas=1&token=hidden&x=2")
    line = event_line(exchange(), Stage.RESPONSE_COMPLETE, answered)
    assert b"hidden" not in line
    assert json.loads(line)["responseStatus"]["message"].endswith("token=REDACTED&x=2")


def test_annotations_show_the_way_through_the_policy() -> None:
    grant = Grant(
        binding_kind="RoleBinding",
        namespace="prod",
        binding="devs",
        subject=Subject(kind="Group", name="dev"),
        role_kind="Role",
        role="editor",
        rule_index=2,
        rule=PolicyRule(verbs=("get",), api_groups=("",), resources=("pods",)),
    )
    step = Step(authorizer="RBAC", verdict="allow", reason="because", grant=grant)
    assert annotations_of(step, is_allowed=True, reason="because") == {
        "authorization.k8s.io/decision": "allow",
        "authorization.k8s.io/reason": "because",
        "access.waypost.io/authorizer": "RBAC",
        "access.waypost.io/binding": "RoleBinding prod/devs",
        "access.waypost.io/role": "Role editor",
        "access.waypost.io/rule": '2: {APIGroups:[""], Resources:["pods"], Verbs:["get"]}',
    }
    refused = annotations_of(None, is_allowed=False, reason="")
    assert refused["authorization.k8s.io/decision"] == "forbid"
