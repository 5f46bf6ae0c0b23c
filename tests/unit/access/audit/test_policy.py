from __future__ import annotations

from typing import Any

import pytest

from waypost.access.actor import Actor, node_actor
from waypost.access.audit.policy import (
    Level,
    Policy,
    ResourceRule,
    Rule,
    Stage,
    default_policy,
    matches,
    parse_policy,
)
from waypost.access.authn import anonymous
from waypost.access.gate import GROUP, Attributes
from waypost.base.errors import Malformed

ANNA = Actor(user="anna", groups=("dev", "system:authenticated"))
WEB = Attributes("update", "services", "web", group=GROUP)
SECRET = Attributes("get", "secrets", "s", group="", namespace="prod")
STATUS = Attributes("get", "pods", "p", group="", namespace="prod", subresource="status")
HEALTH = Attributes("get", path="/healthz", group="")


def rule(**fields: Any) -> Rule:
    return Rule(level=Level.METADATA, **fields)


@pytest.mark.parametrize(
    ("one", "asked", "path", "expected"),
    [
        (rule(), WEB, "/v1/x", True),
        (rule(users=("anna",)), WEB, "/", True),
        (rule(users=("berta",)), WEB, "/", False),
        (rule(groups=("dev", "ops")), WEB, "/", True),
        (rule(groups=("ops",)), WEB, "/", False),
        (rule(verbs=("get",)), WEB, "/", False),
        (rule(resources=(ResourceRule(GROUP),)), WEB, "/", True),
        (rule(resources=(ResourceRule(""),)), WEB, "/", False),
        (rule(resources=(ResourceRule(GROUP, ("services",), ("web",)),)), WEB, "/", True),
        (rule(resources=(ResourceRule(GROUP, ("services",), ("db",)),)), WEB, "/", False),
        (rule(resources=(ResourceRule("", ("pods",)),)), STATUS, "/api/v1/x", False),
        (rule(resources=(ResourceRule("", ("pods/status",)),)), STATUS, "/api/v1/x", True),
        (rule(resources=(ResourceRule("", ("pods/*",)),)), STATUS, "/api/v1/x", True),
        (rule(resources=(ResourceRule("", ("*/status",)),)), STATUS, "/api/v1/x", True),
        (rule(resources=(ResourceRule("", ("*",)),)), STATUS, "/api/v1/x", True),
        (rule(namespaces=("prod",)), SECRET, "/api/v1/x", True),
        (rule(namespaces=("test",)), SECRET, "/api/v1/x", False),
        (rule(namespaces=("",)), WEB, "/", True),
        (rule(namespaces=("",)), HEALTH, "/healthz", False),
        (rule(paths=("/healthz*",)), HEALTH, "/healthz", True),
        (rule(paths=("*",)), HEALTH, "/healthz", True),
        (rule(paths=("/livez",)), HEALTH, "/healthz", False),
        (rule(paths=("*",)), SECRET, "/api/v1/namespaces/prod/secrets/s", False),
        (rule(paths=("/v1/agent/*",)), WEB, "/v1/agent/service/register", True),
    ],
)
def test_what_a_rule_is_for(one: Rule, asked: Attributes, path: str, expected: bool) -> None:
    assert matches(one, ANNA, asked, path) is expected


def test_nobody_matches_only_rules_without_users() -> None:
    assert not matches(rule(groups=("system:unauthenticated",)), None, WEB, "/")
    assert matches(rule(), None, WEB, "/")


def test_the_first_rule_wins_and_without_one_nothing_is_written() -> None:
    policy = Policy(
        (Rule(level=Level.NONE, verbs=("get",)), Rule(level=Level.REQUEST, users=("anna",)))
    )
    assert policy.decide(ANNA, SECRET, "/").level is Level.NONE
    assert policy.decide(ANNA, WEB, "/").level is Level.REQUEST
    assert policy.decide(node_actor("n"), WEB, "/").level is Level.NONE


def test_a_file() -> None:
    policy = parse_policy(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {
                    "level": "RequestResponse",
                    "resources": [{"group": GROUP, "resources": ["services"]}],
                    "omitStages": ["Panic"],
                },
                {"level": "Metadata", "userGroups": ["dev"], "nonResourceURLs": ["/v1/kv/*"]},
            ],
        },
        name="p.yaml",
    )
    found = policy.decide(ANNA, WEB, "/")
    assert found.level is Level.REQUEST_RESPONSE
    assert found.omits == {Stage.REQUEST_RECEIVED, Stage.PANIC}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "Polizei"}, "expected kind Policy"),
        ({"rules": []}, "name at least one"),
        ({"rules": [{"level": "Full"}]}, r"rules\[0\].level: 'Full' is none of None, Metadata"),
        ({"rules": [{"level": "None", "verb": ["get"]}]}, "unknown field `verb`"),
        (
            {"rules": [{"level": "None", "omitStages": ["End"]}]},
            r"rules\[0\].omitStages\[0\]: 'End'",
        ),
        (
            {"rules": [{"level": "None", "nonResourceURLs": ["/a*b"]}]},
            r"nonResourceURLs\[0\]: '/a\*b' must start with /",
        ),
        (
            {"rules": [{"level": "None", "nonResourceURLs": ["/a"], "namespaces": ["x"]}]},
            "not for both",
        ),
        (
            {"rules": [{"level": "None", "resources": [{"resourceNames": ["x"]}]}]},
            "resourceNames need resources",
        ),
    ],
)
def test_a_wrong_file_says_where(change: dict[str, Any], text: str) -> None:
    document = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "rules": [{"level": "None"}],
    } | change
    with pytest.raises(Malformed, match=f"p.yaml.*{text}"):
        parse_policy(document, name="p.yaml")


@pytest.mark.parametrize(
    ("actor", "asked", "path", "level"),
    [
        (anonymous("127.0.0.1"), Attributes("list", "services"), "/v1/a", Level.NONE),
        (anonymous("10.0.0.9"), Attributes("get", "nodes", "n"), "/v1/a", Level.NONE),
        (anonymous("10.0.0.9"), WEB, "/v1/agent/service/register", Level.METADATA),
        (ANNA, Attributes("list", "services"), "/v1/catalog/services", Level.METADATA),
        (ANNA, Attributes("get", path="/v1/kv/a"), "/v1/kv/a", Level.METADATA),
        (ANNA, SECRET, "/api/v1/namespaces/prod/secrets/s", Level.METADATA),
        (ANNA, Attributes("get", path="/apis/x", group=""), "/apis/x", Level.NONE),
        (ANNA, Attributes("get", path="/ui/", group=""), "/ui/", Level.NONE),
        (None, Attributes("list", "services"), "/v1/a", Level.METADATA),
    ],
)
def test_the_default_writes_everything_but_looking_for_services(
    actor: Actor | None, asked: Attributes, path: str, level: Level
) -> None:
    assert default_policy().decide(actor, asked, path).level is level
