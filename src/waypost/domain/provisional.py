"""How what a machine found out while the store took no writes comes to be stored: decided on what is stored by then.

Others may have written meanwhile, if it was only this machine that could not reach the store. What they did stands,
but for what this machine knows better: the results of its own checks, and the services that it registers itself as
long as there is a container or a definition that wants them. The node itself is decided afresh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from waypost.base.errors import Conflict
from waypost.domain.agent import CONSUL_SERVICE, LocalNode, plan_self
from waypost.domain.catalog import delete_service
from waypost.domain.planning import Draft
from waypost.model.catalog import SERF_HEALTH_ID, Check, Service, fold
from waypost.state.keys import CHECK, SERVICE, check_key, service_key
from waypost.state.provisional import Step, Wanted
from waypost.state.view import View
from waypost.store.engine import Txn

OWN: Final = ("docker", "config")
"""Owners of what an agent registers by itself."""
MAX_OPERATIONS: Final = 64
"""In one transaction, unless one service has more checks; etcd takes 128."""


def plan_settle(view: View, wanted: Wanted, *, local: LocalNode) -> Sequence[Step]:
    """Decide how the provisional records `wanted` of a member of a cluster come into the store, of which `view` shows
    what is stored. A service and its checks go together.
    """
    itself = _itself(wanted, local)
    steps = [Step(itself, _plan_self(view, local))] if itself else []
    keys: list[bytes] = []
    draft = Draft()
    for group in _groups(view, wanted.keys() - set(itself), wanted, local):
        if draft.size and draft.size + len(group) > MAX_OPERATIONS:
            steps.append(Step(tuple(keys), draft.plan(None).txn))
            keys, draft = [], Draft()
        keys += group
        for key in group:
            _settle(view, key, wanted, draft, local)
    if keys:
        steps.append(Step(tuple(keys), draft.plan(None).txn))
    return steps


def _itself(wanted: Wanted, local: LocalNode) -> tuple[bytes, ...]:
    """Return the keys that `plan_self` decides about: the node, what stands for it, and what its former name had."""
    node = fold(local.node).encode("utf-8", "surrogateescape") + b"\0"
    itself = (service_key(local.node, CONSUL_SERVICE), check_key(local.node, SERF_HEALTH_ID))
    return tuple(
        key for key in wanted if key in itself or not key.startswith((SERVICE + node, CHECK + node))
    )


def _plan_self(view: View, local: LocalNode) -> Txn | None:
    try:
        return plan_self(view, local, judged=True).txn
    except Conflict:
        return None  # `LocalAgent.run` says so, and tries again


def _groups(
    view: View, keys: set[bytes], wanted: Wanted, local: LocalNode
) -> Iterator[list[bytes]]:
    """Yield the keys that belong together, a service before its checks."""
    groups: dict[str, list[bytes]] = {}
    for key in sorted(keys, reverse=True):
        if key.startswith(SERVICE):
            service_id = _name(key)
        else:
            check = wanted[key] or view.check(local.node, _name(key))
            service_id = check.service_id if isinstance(check, Check) else ""
        groups.setdefault(service_id or repr(key), []).append(key)
    yield from groups.values()


def _name(key: bytes) -> str:
    return key[2:].partition(b"\0")[2].decode("utf-8", "surrogateescape")


def _settle(view: View, key: bytes, wanted: Wanted, draft: Draft, local: LocalNode) -> None:
    record, name = wanted[key], _name(key)
    if key.startswith(SERVICE):
        service = view.service(local.node, name)
        if isinstance(record, Service):
            draft.replace(service, record)
        elif service is not None and service.owner in OWN:
            delete_service(view, service, draft)
        return
    check = view.check(local.node, name)
    if isinstance(record, Check):
        _settle_check(view, check, record, wanted, draft)
    elif check is not None and check.owner in OWN:
        draft.delete(check)


def _settle_check(view: View, old: Check | None, new: Check, wanted: Wanted, draft: Draft) -> None:
    if new.service_id:
        key = service_key(new.node, new.service_id)
        service = view.service(new.node, new.service_id)
        if key not in wanted:
            if service is None:
                return  # it went with its service
            draft.guard(key, service)
        elif wanted[key] is None:
            return
    if new.owner in OWN:
        draft.replace(old, new)
    elif old is not None:
        draft.replace(old, msgspec.structs.replace(old, status=new.status, output=new.output))
