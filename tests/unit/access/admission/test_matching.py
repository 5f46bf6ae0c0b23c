from __future__ import annotations

import pytest

from waypost.access.admission.configuration import Rule, Webhook
from waypost.access.admission.matching import covers, is_asked
from waypost.access.admission.records import Review
from waypost.access.authz.records import LabelSelector


def review(operation="CREATE", resource="configmaps", group="", **more):
    return Review(
        operation=operation, group=group, version="v1", kind="K", resource=resource, **more
    )


def rule(operations="*", groups="*", versions="*", resources="*/*", scope="*"):
    def of(text):
        return frozenset(text.split())

    return Rule(
        operations=of(operations),
        groups=of(groups),
        versions=of(versions),
        resources=of(resources),
        scope=scope,
    )


SUB = review(resource="pods", subresource="status")


@pytest.mark.parametrize(
    ("one", "asked", "expected"),
    [
        (rule(), review(), True),
        (rule(operations="CREATE UPDATE"), review(), True),
        (rule(operations="UPDATE"), review(), False),
        (rule(groups=""), review(), False),
        (Rule(operations=frozenset("*"), groups=frozenset([""]), versions=frozenset("*"),
              resources=frozenset("*")), review(), True),
        (rule(groups="apps"), review(), False),
        (rule(groups="apps"), review(group="apps"), True),
        (rule(versions="v2"), review(), False),
        (rule(versions="v1 v2"), review(), True),
        (rule(resources="configmaps"), review(), True),
        (rule(resources="secrets"), review(), False),
        (rule(resources="*"), review(), True),
        (rule(resources="*"), SUB, False),
        (rule(resources="pods"), SUB, False),
        (rule(resources="pods/*"), SUB, True),
        (rule(resources="pods/*"), review(resource="pods"), False),
        (rule(resources="pods/status"), SUB, True),
        (rule(resources="*/status"), SUB, True),
        (rule(resources="*/scale"), SUB, False),
        (rule(resources="*/*"), SUB, True),
        (rule(scope="Namespaced"), review(namespace="a"), True),
        (rule(scope="Namespaced"), review(), False),
        (rule(scope="Cluster"), review(namespace="a"), False),
        (rule(scope="Cluster"), review(), True),
        (rule(scope="Cluster"), review(resource="namespaces", namespace="a"), True),
        (rule(scope="Namespaced"), review(resource="namespaces", namespace="a"), False),
    ],
)  # fmt: skip
def test_rules(one, asked, expected):
    assert covers(one, asked) is expected


PROD = LabelSelector(match_labels={"env": "prod"})
LABELS = {"prod": {"env": "prod"}, "dev": {"env": "dev"}}


def labels_of(namespace):
    return LABELS.get(namespace, {})


def labelled(**labels):
    return {"metadata": {"labels": labels}}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (review(namespace="prod"), True),
        (review(namespace="dev"), False),
        (review(namespace="gone"), False),
        (review(resource="clusterroles"), True),
        (review(resource="namespaces", object=labelled(env="prod")), True),
        (review(resource="namespaces", object=labelled(env="dev")), False),
        (review("DELETE", "namespaces", namespace="x", old=labelled(env="prod")), True),
    ],
)
def test_namespace_selector(asked, expected):
    webhook = Webhook(
        configuration="c", name="w", mutates=False, rules=(rule(),), namespace_selector=PROD
    )
    assert is_asked(webhook, asked, labels_of) is expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (review(object=labelled(env="prod")), True),
        (review(object=labelled()), False),
        (review(object={"metadata": {"labels": None}}), False),
        (review("UPDATE", object=labelled(), old=labelled(env="prod")), True),
        (review("DELETE", old=labelled(env="prod")), True),
        (review("DELETE", old={}), False),
    ],
)
def test_object_selector(asked, expected):
    webhook = Webhook(
        configuration="c", name="w", mutates=False, rules=(rule(),), object_selector=PROD
    )
    assert is_asked(webhook, asked, labels_of) is expected


def test_configurations_are_never_reviewed():
    webhook = Webhook(configuration="c", name="w", mutates=False, rules=(rule(),))
    assert not is_asked(webhook, review(group="admissionregistration.k8s.io"), labels_of)


def test_one_of_several_rules_is_enough():
    rules = (rule(resources="secrets"), rule(resources="configmaps"))
    webhook = Webhook(configuration="c", name="w", mutates=False, rules=rules)
    assert is_asked(webhook, review(), labels_of)
    assert not is_asked(webhook, review(resource="pods"), labels_of)
