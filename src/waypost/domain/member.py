"""Members of a cluster: the nodes that have an agent, alive, failed or left.

A member is alive while its node's `serfHealth` check passes and failed while it is critical; in a cluster the leader
decides that. One that left is out of the catalog; a note about it stays for a while, so that operators see that it
went on purpose, and so that what programs registered with its agent is there again if it comes back: such a
registration lives nowhere else.

Source: Consul HTTP API, agent/members and agent/force-leave.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from waypost.base.errors import Malformed, WaypostError
from waypost.domain.agent import CONSUL_SERVICE, HEALTHY, LocalAgent
from waypost.domain.catalog import delete_node
from waypost.domain.cluster import ClusterView, agents
from waypost.domain.planning import Draft
from waypost.model.catalog import (
    CRITICAL,
    PASSING,
    SERF_HEALTH_ID,
    Check,
    Node,
    Service,
    fold,
)
from waypost.state.keys import check_key, node_key, system_key
from waypost.state.state import Plan, State
from waypost.state.view import SystemEntry, View

log = logging.getLogger(__name__)

Status = Literal["alive", "left", "failed"]

UNREACHABLE: Final = "Agent not live or unreachable"
"""Output of the `serfHealth` of a failed member, as Consul words it; `HEALTHY` is the other."""

LEFT: Final = "left"
"""Owner of the notes about members that left, in the view's system entries."""
_API: Final = "api"


class LeftMember(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is remembered of a node whose agent left: who it was, and what programs had registered with it."""

    node: str
    id: str
    address: str
    datacenter: str = ""
    server_port: int = 0
    services: tuple[Service, ...] = ()
    checks: tuple[Check, ...] = ()


def left_member(entry: SystemEntry) -> LeftMember:
    """Return the note of a system entry. Raises Malformed when it cannot be read."""
    try:
        return msgspec.msgpack.decode(entry.value, type=LeftMember)
    except msgspec.MsgspecError as error:
        msg = f"the note about a member that left, {entry.name!r}, cannot be read: {error}"
        raise Malformed(msg) from error


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One member. `server_port` is 0 for an agent that is no server."""

    node: str
    id: str
    address: str
    datacenter: str
    status: Status
    server_port: int = 0


def members(view: View) -> list[Member]:
    """Return all members by name, those that left at the end."""
    return [*_present(view), *left_members(view)]


def _present(view: View) -> Iterator[Member]:
    for node in agents(view):
        health = view.check(node.node, SERF_HEALTH_ID)
        service = view.service(node.node, CONSUL_SERVICE)
        yield Member(
            node=node.node,
            id=node.id,
            address=node.address,
            datacenter=node.datacenter,
            status="alive" if health is not None and health.status == PASSING else "failed",
            server_port=service.port if service is not None else 0,
        )


def left_members(view: View) -> list[Member]:
    """Return the members that left and are remembered, by name."""
    found = []
    for entry in view.system_below(LEFT + "\0"):
        left = left_member(entry)
        if view.node(left.node) is None:
            found.append(
                Member(
                    node=left.node,
                    id=left.id,
                    address=left.address,
                    datacenter=left.datacenter,
                    status="left",
                    server_port=left.server_port,
                )
            )
    return sorted(found, key=lambda member: member.node)


def plan_health(view: View, node: str, *, alive: bool) -> Plan[bool]:
    """Decide the `serfHealth` of a node; the answer is whether it has one."""
    old = view.check(node, SERF_HEALTH_ID)
    if old is None:
        return Plan(answer=False)
    draft = Draft()
    status, output = (PASSING, HEALTHY) if alive else (CRITICAL, UNREACHABLE)
    draft.replace(old, msgspec.structs.replace(old, status=status, output=output))
    return draft.plan(answer=True)


def plan_leave(view: View, name: str, *, forget: bool = False) -> Plan[bool]:
    """Decide that a member has left: its node goes with everything on it, a note stays unless `forget`.

    The answer is whether there was such a member; with `forget` one that left before counts.
    """
    draft = Draft()
    node = view.node(name)
    note = view.system(f"{LEFT}\0{fold(name)}")
    is_member = node is not None and view.check(name, SERF_HEALTH_ID) is not None
    if node is not None and is_member:
        delete_node(node, draft)
        draft.guard(check_key(node.node, SERF_HEALTH_ID), view.check(node.node, SERF_HEALTH_ID))
        if not forget:
            value = msgspec.msgpack.encode(_note(view, node))
            key = system_key(LEFT, fold(name))
            draft.write(key, value, revision=note.modify_index if note else 0)
    if forget and note is not None:
        draft.erase(system_key(LEFT, fold(name)), revision=note.modify_index)
    return draft.plan(answer=is_member or (forget and note is not None))


def _note(view: View, node: Node) -> LeftMember:
    services = view.node_services(node.node)
    server = services.get(CONSUL_SERVICE)
    kept = {one.id: one for one in services.values() if one.owner == _API}
    return LeftMember(
        node=node.node,
        id=node.id,
        address=node.address,
        datacenter=node.datacenter,
        server_port=server.port if server is not None else 0,
        services=tuple(
            msgspec.structs.replace(one, create_index=0, modify_index=0) for one in kept.values()
        ),
        checks=tuple(
            msgspec.structs.replace(one, create_index=0, modify_index=0)
            for one in view.node_checks(node.node).values()
            if one.owner == _API and (not one.service_id or one.service_id in kept)
        ),
    )


def returned(view: View) -> list[str]:
    """Return the nodes that are in the catalog again although there is a note that they left, by name."""
    notes = view.system_below(LEFT + "\0")
    found = [view.node(entry.name.partition("\0")[2]) for entry in notes]
    return sorted(node.node for node in found if node is not None)


def plan_return(view: View, name: str) -> Plan[bool]:
    """Decide that a member is back: what programs had registered with it is there again, the note is not.

    Nothing comes back to another machine under the same name. The answer is whether it was away.
    """
    node, entry = view.node(name), view.system(f"{LEFT}\0{fold(name)}")
    if node is None or entry is None:
        return Plan(answer=False)
    draft = Draft()
    draft.guard(node_key(node.node), node)
    draft.erase(system_key(LEFT, fold(name)), revision=entry.modify_index)
    try:
        left = left_member(entry)
    except Malformed as error:
        log.warning("%s; it is forgotten", error)
        return draft.plan(answer=True)
    if left.id.lower() == node.id.lower():
        for service in left.services:
            if view.service(node.node, service.id) is None:
                draft.replace(None, msgspec.structs.replace(service, node=node.node))
        for check in left.checks:
            if view.check(node.node, check.check_id) is None:
                draft.replace(None, msgspec.structs.replace(check, node=node.node))
    return draft.plan(answer=True)


async def depart(state: State, agent: LocalAgent, cluster: ClusterView) -> None:
    """Take this machine out of its cluster: its node out of the catalog at once, then its server out of the group.

    When the group cannot do without the server everything stays as it was. Raises Rejected then, Unavailable.
    """
    agent.start_leaving()
    name = agent.local.node
    signed_off = False
    try:
        signed_off = await cluster.sign_off()
        if not signed_off:
            await state.commit(lambda view: plan_leave(view, name))
        await cluster.leave()
    except WaypostError:
        agent.stay()
        await agent.ensure_self()
        if not signed_off:  # else the leader does it
            await state.commit(lambda view: plan_return(view, name))
        raise
