"""The built-in rules. Pure: a change and who wants it in, nothing or a refusal out.

What a kube-apiserver decides in its plugins NamespaceLifecycle and ServiceAccount is decided here with the write itself
(`domain.object_plan`), where it is guarded against who changes the namespace meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission.configuration import configuration_faults
from waypost.access.admission.records import GROUP, Invalid, Review, refused
from waypost.access.authz.node import LEASE_NAMESPACE, node_name
from waypost.access.gate import GROUP as DISCOVERY
from waypost.base.errors import TooLarge
from waypost.base.quoting import quoted
from waypost.model.catalog import Check, Node, Service, fold
from waypost.model.event import UserEvent
from waypost.model.kv import KVEntry
from waypost.model.session import Session

Record = Node | Service | Check | KVEntry | Session | UserEvent
CONSUL: Final = "consul"
"""Name and id of the service that stands for the servers themselves."""
_MAX_PORT: Final = 65535
_DNS_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")
_MASTERS: Final = "system:masters"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How large one record may be. Wide enough for whatever a Consul client sensibly does; they keep one client from
    filling every agent's memory.
    """

    tags: int = 1024
    tag_bytes: int = 64 * 1024
    """All tags of an instance together."""
    meta_bytes: int = 64 * 1024
    """All metadata of a record together, keys and values."""
    name_bytes: int = 512


DEFAULT_LIMITS: Final = Limits()


def check_record(actor: Actor, new: Record, *, limits: Limits) -> None:
    """Refuse what must not be stored. Raises Denied, TooLarge."""
    if isinstance(new, Service):
        _check_registration(actor, new, limits=limits)
    elif isinstance(new, Check):
        _require_own_node(actor, new.node, "checks", new.check_id)
        _require_short(new.check_id, "checks", limits)
    elif isinstance(new, Node):
        _require_own_node(actor, new.node, "nodes", new.node)
        _require_short(new.node, "nodes", limits)
        _require_bounded_meta(new.meta, "nodes", new.node, limits)
    elif isinstance(new, Session):
        _require_own_node(actor, new.node, "sessions", new.id)
        _require_short(new.name, "sessions", limits)
    # Keys and events are bounded by the verbs themselves.


def _check_registration(actor: Actor, new: Service, *, limits: Limits) -> None:
    name = new.name or new.id
    _require_own_node(actor, new.node, "services", name)
    if fold(name) == CONSUL and node_name(actor) is None and _MASTERS not in actor.groups:
        raise _refused(
            "services", name, f"the name {quoted(name)} is reserved for the servers themselves"
        )
    if not 0 <= new.port <= _MAX_PORT:
        raise _refused("services", name, f"port {new.port} is not between 0 and {_MAX_PORT}")
    _require_short(name, "services", limits)
    _require_short(new.id, "services", limits)
    if new.tags:
        _require_bounded_tags(new.tags, name, limits)
    if new.meta:
        _require_bounded_meta(new.meta, "services", name, limits)


def check_removal(actor: Actor, old: Record) -> None:
    """Refuse to remove what is not the actor's. Raises Denied."""
    if isinstance(old, Service):
        _require_own_node(actor, old.node, "services", old.name)
    elif isinstance(old, Check):
        _require_own_node(actor, old.node, "checks", old.check_id)
    elif isinstance(old, Node):
        _require_own_node(actor, old.node, "nodes", old.node)
    elif isinstance(old, Session):
        _require_own_node(actor, old.node, "sessions", old.id)


def _require_own_node(actor: Actor, owner: str, resource: str, name: str) -> None:
    """NodeRestriction: the agent of one node writes nothing of another's."""
    node = node_name(actor)
    if node is None or node == owner or fold(node) == fold(owner):
        return
    raise _refused(
        resource,
        name,
        f"node {quoted(node)} is not allowed to modify {resource} of node {quoted(owner)}",
    )


def _require_short(name: str, resource: str, limits: Limits) -> None:
    # No character has more than four bytes: most names need not be counted.
    if len(name) * 4 > limits.name_bytes and len(name.encode()) > limits.name_bytes:
        raise TooLarge(
            f"a name of {len(name.encode())} bytes for {resource}, at most {limits.name_bytes} are allowed"
        )


def _require_bounded_tags(tags: tuple[str, ...], name: str, limits: Limits) -> None:
    if len(tags) > limits.tags:
        raise TooLarge(
            f"service {quoted(name)} has {len(tags)} tags, at most {limits.tags} are allowed"
        )
    size = sum(map(len, tags))
    if size > limits.tag_bytes:
        raise TooLarge(
            f"service {quoted(name)} has {size} characters of tags, at most {limits.tag_bytes} are allowed"
        )


def _require_bounded_meta(
    meta: Mapping[str, str] | None, resource: str, name: str, limits: Limits
) -> None:
    if not meta:
        return
    size = sum(map(len, meta)) + sum(map(len, meta.values()))
    if size > limits.meta_bytes:
        raise TooLarge(
            f"{resource} {quoted(name)}: {size} characters of metadata, at most {limits.meta_bytes} are allowed"
        )


def _refused(resource: str, name: str, detail: str) -> Exception:
    review = Review(
        operation="UPDATE", group=DISCOVERY, version="v1", kind="", resource=resource, name=name
    )
    return refused(review, detail)


def dns_warning(service: str) -> str:
    """Return why a service cannot be found by DNS under its name, empty when it can."""
    if _DNS_LABEL.match(service):
        return ""
    return (
        f"service {quoted(service)} cannot be found by DNS: a name has letters, digits and dashes, "
        "at most 63 of them"
    )


# -- objects -----------------------------------------------------------------------------------------------------------


def check_object(actor: Actor, review: Review) -> None:
    """Refuse what the rules do not allow of an object. Raises Denied, Invalid."""
    if review.group == GROUP and review.object is not None:
        faults = configuration_faults(review.object)
        if faults:
            raise Invalid(review, faults)
    node = node_name(actor)
    if node is not None:
        _restrict_node(node, review)


def _restrict_node(node: str, review: Review) -> None:
    """NodeRestriction. Source: kube-apiserver's plugin of that name."""
    where = (review.group, review.resource, review.subresource)
    if where == ("coordination.k8s.io", "leases", ""):
        if review.namespace != LEASE_NAMESPACE:
            raise refused(
                review, f"can only access leases in the {quoted(LEASE_NAMESPACE)} system namespace"
            )
        if review.name != node:
            raise refused(
                review, "can only access node lease with the same name as the requesting node"
            )
    elif where == ("", "serviceaccounts", "token"):
        raise refused(review, f"node {quoted(node)} can only request tokens bound to its own pods")
