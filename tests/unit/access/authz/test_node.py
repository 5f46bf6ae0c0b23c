"""What nodes may do to the catalog: read it all, write what is their own."""

from __future__ import annotations

import pytest

from waypost.access.actor import Actor, node_actor
from waypost.access.authz.bootstrap import node_rules
from waypost.access.authz.node import NodeAuthorizer, node_name
from waypost.access.gate import Attributes

NODE = node_actor("Web-1")


def verdict(asked: Attributes, actor: Actor = NODE) -> tuple[str, str]:
    step = NodeAuthorizer(node_rules()).authorize(actor, asked)
    return step.verdict, step.reason


@pytest.mark.parametrize("resource", ["nodes", "services", "checks", "sessions", "queries"])
@pytest.mark.parametrize("verb", ["get", "list", "watch"])
def test_nodes_read_the_whole_catalog(verb: str, resource: str):
    assert verdict(Attributes(verb, resource, "anything", node="other")) == ("allow", "")


@pytest.mark.parametrize(
    "asked",
    [
        Attributes("update", "nodes", "web-1"),
        Attributes("delete", "nodes", "WEB-1"),
        Attributes("update", "services", "app", node="web-1"),
        Attributes("delete", "checks", "c", node="web-1"),
        Attributes("create", "sessions", "web-1"),
        Attributes("update", "sessions", "0a1b", node="web-1"),
        Attributes(
            "update",
            "leases",
            "Web-1",
            group="coordination.k8s.io",
            namespace="kube-node-lease",
        ),
        Attributes("create", "certificatesigningrequests", group="certificates.k8s.io"),
    ],
)
def test_nodes_write_their_own(asked: Attributes):
    assert verdict(asked) == ("allow", "")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            Attributes("update", "nodes", "web-2"),
            "node 'Web-1' cannot change nodes of 'web-2', only its own",
        ),
        (
            Attributes("update", "services", "app", node="web-2"),
            "node 'Web-1' cannot change services of 'web-2', only its own",
        ),
        # A name alone says nothing about whose it is, even when it is that of the node.
        (
            Attributes("update", "services", "web-1"),
            "node 'Web-1' can only change its own services, and the request names no node",
        ),
        (
            Attributes("delete", "sessions", "0a1b"),
            "node 'Web-1' can only change its own sessions, and the request names no node",
        ),
        # What is asked about is the object's node, not the name in the URL.
        (
            Attributes("update", "nodes", "web-1", node="web-2"),
            "node 'Web-1' cannot change nodes of 'web-2', only its own",
        ),
        (Attributes("create", "events", "deploy", node="web-1"), ""),
        (Attributes("update", "operators"), ""),
        (Attributes("escalate", "nodes", "web-1"), ""),
        (Attributes("get", path="/v1/kv/secret"), ""),
        (
            Attributes(
                "update",
                "leases",
                "web-2",
                group="coordination.k8s.io",
                namespace="kube-node-lease",
            ),
            "can only access node lease with the same name as the requesting node",
        ),
        (Attributes("get", "secrets", "s", group="", namespace="n"), "no relationship found between node 'Web-1' and this object"),
        (Attributes("update", "clusterroles", "r", group="rbac.authorization.k8s.io"), ""),
    ],
)  # fmt: skip
def test_nothing_else(asked: Attributes, reason: str):
    assert verdict(asked) == ("no-opinion", reason)


@pytest.mark.parametrize(
    "actor",
    [
        Actor(user="system:node:web-1"),
        Actor(user="web-1", groups=("system:nodes",)),
        Actor(user="system:node", groups=("system:nodes",)),
    ],
)
def test_others_are_not_nodes(actor: Actor):
    assert node_name(actor) is None
    assert verdict(Attributes("update", "nodes", "web-1"), actor) == ("no-opinion", "")
