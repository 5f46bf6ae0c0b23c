"""Nobody hands out more than they hold: the check before roles and bindings are written.

Source: recorded decisions of kube-apiserver 1.20. Deleting needs no such check, nor does a change of ownerReferences,
finalizers or managedFields alone (`exempt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from waypost.access.actor import MASTERS, Actor
from waypost.access.authz.chain import Chain
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.records import GROUP, RESOURCES, Binding, PolicyRule, Role
from waypost.access.authz.rules import compact, missing, rule_text
from waypost.access.authz.text import aggregate, forbidden_object, quoted_list
from waypost.access.gate import Attributes
from waypost.base.quoting import quoted

_FULL = (
    PolicyRule(verbs=("*",), api_groups=("*",), resources=("*",)),
    PolicyRule(verbs=("*",), non_resource_urls=("*",)),
)
_EXEMPT_METADATA = (
    "ownerReferences",
    "finalizers",
    "managedFields",
    "resourceVersion",
    "generation",
)


class Held(Protocol):
    """What an actor may do already: the whole chain for single questions, RBAC for rules."""

    def may(self, actor: Actor, asked: Attributes) -> bool:
        """Return whether the chain of authorizers allows a request."""
        ...

    def rules(self, actor: Actor, namespace: str) -> tuple[Sequence[PolicyRule], Sequence[str]]:
        """Return the rules an actor holds in a namespace (empty: cluster scope), and what could not be resolved."""
        ...

    def role(self, kind: str, namespace: str, name: str) -> Role | None:
        """Return a role; `namespace` is empty for a ClusterRole."""
        ...


class Holdings:
    """What actors hold by a chain and the RBAC index behind it."""

    def __init__(self, chain: Chain, index: RbacIndex) -> None:
        self._chain = chain
        self._index = index

    def may(self, actor: Actor, asked: Attributes) -> bool:
        """Return whether the chain allows a request; what only a webhook knows it must have been asked before."""
        decision = self._chain.authorize(actor, asked)
        return decision is not None and decision.allowed

    def rules(self, actor: Actor, namespace: str) -> tuple[Sequence[PolicyRule], Sequence[str]]:
        """Return the rules an actor holds in a namespace, and what could not be resolved."""
        return self._index.rules(actor, namespace)

    def role(self, kind: str, namespace: str, name: str) -> Role | None:
        """Return a role."""
        return self._index.role(kind, namespace, name)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a write is refused."""

    status: int
    """403, or 404 when the role of a binding does not exist."""
    message: str
    missing: tuple[PolicyRule, ...] = ()
    """The rules that the actor would have to hold, compacted."""


def exempt(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Return whether an update (whole documents) changes nothing that grants, as a garbage collector's does."""
    return _essence(new) == _essence(old)


def _essence(document: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in document.items()
        if key not in ("apiVersion", "kind") and value not in (None, [], {})
    }
    metadata = kept.get("metadata")
    if isinstance(metadata, Mapping):
        kept["metadata"] = {
            key: value
            for key, value in metadata.items()
            if key not in _EXEMPT_METADATA and value not in (None, [], {})
        }
    return kept


def check_role(
    actor: Actor, held: Held, role: Role, *, old: Role | None, name: str
) -> Refusal | None:
    """Return why `actor` may not write `role` (the whole resulting object), or None.

    `name` is the one in the URL, empty on create: so `escalate` limited by resourceNames never helps to create.
    """
    resource = RESOURCES[role.kind]
    if MASTERS in actor.groups or held.may(
        actor,
        Attributes("escalate", resource, name, group=GROUP, namespace=role.namespace, version="v1"),
    ):
        return None
    refusal = _uncovered(actor, held, role.rules, role.namespace)
    if refusal is None and (
        role.aggregation is not None or (old is not None and old.aggregation is not None)
    ):
        full = _uncovered(actor, held, _FULL, role.namespace)
        if full is not None:
            refusal = ("must have cluster-admin privileges to use the aggregationRule", full[1])
    if refusal is None:
        return None
    detail, lacking = refusal
    return Refusal(
        status=403,
        message=forbidden_object(resource, GROUP, role.name, detail),
        missing=tuple(lacking),
    )


def check_binding(actor: Actor, held: Held, binding: Binding) -> Refusal | None:
    """Return why `actor` may not write `binding`, or None: it needs `bind` on the role, or to hold its rules there."""
    ref = binding.role_ref
    asked = Attributes(
        "bind",
        RESOURCES.get(ref.kind, ""),
        ref.name,
        group=GROUP,
        namespace=binding.namespace,
        version="v1",
    )
    if MASTERS in actor.groups or held.may(actor, asked):
        return None
    role = held.role(ref.kind, binding.namespace if ref.kind == "Role" else "", ref.name)
    if role is None:
        return Refusal(
            status=404, message=f"{ref.kind.lower()}.{GROUP} {quoted(ref.name)} not found"
        )
    refusal = _uncovered(actor, held, role.rules, binding.namespace)
    if refusal is None:
        return None
    detail, lacking = refusal
    return Refusal(
        status=403,
        message=forbidden_object(RESOURCES[binding.kind], GROUP, binding.name, detail),
        missing=tuple(lacking),
    )


def _uncovered(
    actor: Actor, held: Held, wanted: Sequence[PolicyRule], namespace: str
) -> tuple[str, list[PolicyRule]] | None:
    rules, errors = held.rules(actor, namespace)
    lacking = compact(missing(rules, wanted))
    if not lacking:
        return None
    shown = "\n".join(sorted({rule_text(rule) for rule in lacking}))
    text = (
        f"user {quoted(actor.user)} (groups={quoted_list(actor.groups)}) is attempting to grant RBAC permissions "
        f"not currently held:\n{shown}"
    )
    if errors:
        text += f"; resolution errors: [{aggregate(errors)}]"
    return text, lacking
