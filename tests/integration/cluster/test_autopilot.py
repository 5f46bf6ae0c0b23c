"""What the operator decided about the servers, with real etcd."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.integration.cluster.machines import (
    TOKEN,
    Machine,
    all_ready,
    started,
    trio,
    voters,
)

from waypost.base.errors import Unavailable
from waypost.cluster.messages import MemberHealth
from waypost.domain.cluster import Autopilot

pytestmark = pytest.mark.needs("etcd")

PATIENT = 5 * 10**9
"""Nanoseconds of last contact that a busy machine may need."""


async def health(machine: Machine) -> dict[str, MemberHealth]:
    try:
        return {one.id: one for one in await machine.now.health()}
    except Unavailable:
        return {}


async def eventually(machine: Machine, wanted: dict[str, bool]) -> dict[str, MemberHealth]:
    """Wait until these servers are healthy, or not, as `machine` tells it."""
    found: dict[str, MemberHealth] = {}
    try:
        async with asyncio.timeout(25):
            while {key: one.is_healthy for key, one in found.items()} != wanted:
                await asyncio.sleep(0.1)
                found = await health(machine)
    except TimeoutError:
        raise AssertionError(f"wanted {wanted}, found {found}") from None
    return found


async def test_every_server_tells_how_all_are_and_the_operator_decides(tmp_path: Path) -> None:
    machines = trio(tmp_path)
    one, two, three = (m.settings.node_id for m in machines)
    four = Machine(
        tmp_path, "four", join=(machines[0].contact,), bootstrap_expect=0, join_token=TOKEN
    )
    policy = Autopilot(
        last_contact_threshold_ns=PATIENT,
        cleanup_dead_servers=False,
        server_stabilization_time_ns=0,
    )
    async with started(*machines):
        for m in machines:
            m.now.autopilot = lambda: policy
        await all_ready(*machines)
        for m in machines:
            found = await eventually(m, {one: True, two: True, three: True})
            assert len({(h.term, h.since_s > 1e9) for h in found.values()}) == 1
            assert all(h.index > 0 and h.contact_s is not None for h in found.values())

        # A dead one is seen on every other server, and how long ago it was heard of grows.
        dead = next(m for m in machines[1:] if not m.now.is_leader)
        alive = [m for m in machines if m is not dead]
        lost, (first, second) = dead.settings.node_id, (m.settings.node_id for m in alive)
        await dead.kill()
        before = await eventually(alive[0], {first: True, second: True, lost: False})
        await asyncio.sleep(1.2)
        after = await eventually(alive[1], {first: True, second: True, lost: False})
        assert before[lost].why
        assert (after[lost].contact_s or 0.0) > (before[lost].contact_s or 0.0) > 0

        # It may not be removed: whoever comes votes beside it.
        await four.start()
        try:
            fourth = four.settings.node_id
            four.now.autopilot = lambda: policy
            await voters(alive[0], first, second, lost, fourth, within_s=25)
            # Now it may, and among four it is one too many.
            for m in (*alive, four):
                m.now.autopilot = lambda: Autopilot(last_contact_threshold_ns=PATIENT)
            await voters(alive[0], first, second, fourth, within_s=50)
            await eventually(alive[0], {first: True, second: True, fourth: True})
        finally:
            await four.stop()
