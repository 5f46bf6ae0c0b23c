"""The Node authorizer: what the agent of one machine may do, and nothing of another's.

A node is who is called `system:node:NAME` and is in the group `system:nodes`. It reads the catalog, writes its own
node entry with the services, checks and sessions on it, renews its lease and its certificate. For resources of the
kube API the rules of a kube-apiserver since 1.32 hold. It only ever allows or has no opinion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from waypost.access.actor import NODES, Actor
from waypost.access.authz.decision import Step
from waypost.access.authz.records import PolicyRule
from waypost.access.authz.table import NONE, RuleTable
from waypost.access.gate import GROUP, READ_VERBS, Attributes
from waypost.base.quoting import quoted
from waypost.model.catalog import fold

PREFIX: Final = "system:node:"
LEASE_NAMESPACE: Final = "kube-node-lease"

_WRITE_VERBS: Final = frozenset({"create", "update", "patch", "delete"})
_READABLE: Final = frozenset(
    {"nodes", "services", "checks", "sessions", "queries", "events", "agents"}
)
_OWNED: Final = frozenset({"nodes", "services", "checks", "sessions"})


class Relations(Protocol):
    """Which objects a node needs for what runs on it."""

    def __call__(self, node: str, resource: str, namespace: str, name: str) -> bool:
        """Return whether `node` is related to the object."""
        ...


def unrelated(node: str, resource: str, namespace: str, name: str) -> bool:
    """Return False: no secrets, volumes or pods belong to a node."""
    return False


def node_name(actor: Actor) -> str | None:
    """Return the name of the node that `actor` is: empty when it does not say, None when it is no node."""
    if NODES not in actor.groups or not actor.user.startswith(PREFIX):
        return None
    return actor.user[len(PREFIX) :]


class NodeAuthorizer:
    """Decides for nodes. `static` are rules that hold for each of them, `related` links nodes to objects."""

    name: Final = "Node"

    def __init__(
        self, static: Sequence[PolicyRule] = (), *, related: Relations = unrelated
    ) -> None:
        self._static = RuleTable(static)
        self._related = related
        self._special: dict[tuple[str, str], Callable[[str, Attributes], str | None]] = {
            ("", "secrets"): self._read_namespaced,
            ("", "configmaps"): self._read_namespaced,
            ("", "persistentvolumeclaims"): self._claim,
            ("", "persistentvolumes"): self._get,
            ("storage.k8s.io", "volumeattachments"): self._get,
            ("", "serviceaccounts"): self._token,
            ("", "pods"): self._pod,
            ("", "nodes"): self._node,
            ("coordination.k8s.io", "leases"): _lease,
            ("storage.k8s.io", "csinodes"): _csi_node,
        }

    def authorize(self, actor: Actor, asked: Attributes) -> Step:
        """Return allow or no opinion."""
        node = node_name(actor)
        if node is None:
            return _NO_OPINION
        if not node:
            return _step(f"unknown node for user {quoted(actor.user)}")
        if asked.group == GROUP and not asked.path:
            return _step(_discovery(node, asked))
        special = None if asked.path else self._special.get((asked.group, asked.resource))
        if special is not None:
            reason = special(node, asked)
            if reason is None or reason:
                return _step(reason)
        return _ALLOW if self._static.find(asked) != NONE else _NO_OPINION

    def _linked(self, node: str, asked: Attributes) -> str | None:
        if not asked.name:
            return "No Object name found"
        if self._related(node, asked.resource, asked.namespace, asked.name):
            return None
        return f"no relationship found between node '{node}' and this object"

    def _read_namespaced(self, node: str, asked: Attributes) -> str | None:
        if asked.verb not in READ_VERBS:
            return "can only read resources of this type"
        if asked.subresource:
            return "cannot read subresource"
        if not asked.namespace:
            return "can only read namespaced object of this type"
        return self._linked(node, asked)

    def _get(self, node: str, asked: Attributes) -> str | None:
        if asked.verb != "get" or asked.subresource:
            return "can only get individual resources of this type"
        return self._linked(node, asked)

    def _claim(self, node: str, asked: Attributes) -> str | None:
        if asked.subresource != "status":
            return self._get(node, asked)
        if asked.verb not in ("update", "patch"):
            return "can only update/patch status subresources"
        return self._linked(node, asked)

    def _token(self, node: str, asked: Attributes) -> str | None:
        if asked.verb != "create" or not asked.name:
            return "can only create tokens for individual service accounts"
        if asked.subresource != "token":
            return "can only create token subresource of serviceaccount"
        return self._linked(node, asked)

    def _pod(self, node: str, asked: Attributes) -> str | None:
        if asked.subresource or asked.verb not in READ_VERBS:
            return ""
        if asked.verb == "get":
            return self._linked(node, asked)
        return "can only list/watch pods with spec.nodeName field selector"

    @staticmethod
    def _node(node: str, asked: Attributes) -> str | None:
        if asked.subresource or asked.verb not in READ_VERBS:
            return ""
        if asked.name == node:
            return None
        if not asked.name:
            return f"node '{node}' cannot read all nodes, only its own Node object"
        return f"node '{node}' cannot read '{asked.name}', only its own Node object"


def _lease(node: str, asked: Attributes) -> str | None:
    if asked.verb not in _WRITE_VERBS | {"get"}:
        return "can only get, create, update, patch, or delete a node lease"
    if asked.namespace != LEASE_NAMESPACE:
        return f"can only access leases in the {quoted(LEASE_NAMESPACE)} system namespace"
    # The name of what is being created is in the body, which admission looks at.
    if asked.verb != "create" and asked.name != node:
        return "can only access node lease with the same name as the requesting node"
    return None


def _csi_node(node: str, asked: Attributes) -> str | None:
    if asked.subresource:
        return "cannot authorize CSINode subresources"
    if asked.verb not in _WRITE_VERBS | {"get"}:
        return "can only get, create, update, patch, or delete a CSINode"
    if asked.verb != "create" and asked.name != node:
        return "can only access CSINode with the same name as the requesting node"
    return None


def _discovery(node: str, asked: Attributes) -> str | None:
    """Return None when a node may do this to the catalog, else why not (empty: it is not for nodes at all)."""
    if asked.verb in READ_VERBS:
        return None if asked.resource in _READABLE else ""
    if asked.resource not in _OWNED or asked.verb not in _WRITE_VERBS:
        return ""
    owner = asked.node
    if not owner and (
        asked.resource == "nodes" or (asked.resource == "sessions" and asked.verb == "create")
    ):
        owner = asked.name
    if not owner:
        return (
            f"node '{node}' can only change its own {asked.resource}, and the request names no node"
        )
    if fold(owner) == fold(node):
        return None
    return f"node '{node}' cannot change {asked.resource} of '{owner}', only its own"


def _step(reason: str | None) -> Step:
    if reason is None:
        return _ALLOW
    return Step(authorizer="Node", verdict="no-opinion", reason=reason) if reason else _NO_OPINION


_ALLOW: Final = Step(authorizer="Node", verdict="allow")
_NO_OPINION: Final = Step(authorizer="Node", verdict="no-opinion")
