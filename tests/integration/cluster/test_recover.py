"""Most servers are lost: the survivor goes on alone, and the others join it when they come back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.integration.cluster.machines import Machine, all_ready, started, trio, voters

from waypost.base.clock import SystemClock
from waypost.base.errors import Conflict, NotFound
from waypost.cluster.records import Phase
from waypost.cluster.recover import recover

pytestmark = pytest.mark.needs("etcd")


async def test_one_survivor(tmp_path: Path) -> None:
    machines = trio(tmp_path)
    one, two, three = machines
    ids = tuple(m.settings.node_id for m in machines)
    clock, rng = SystemClock(), random.Random(1)
    async with started(*machines):
        await all_ready(*machines)
        await voters(one, *ids)
        with pytest.raises(Conflict, match="stop the agent first"):
            await recover(one.settings, clock=clock, rng=rng)
        for m in machines:
            await m.kill()
        found = await recover(one.settings, clock=clock, rng=rng)
        assert (found.epoch, found.removed) == (1, 2)
        await one.start()
        await all_ready(one)
        assert [m.id for m in await voters(one, ids[0])] == [ids[0]]
        # The lost ones come back with all that they had.
        await two.start()
        await three.start()
        await voters(one, *ids, within_s=30)
        assert {m.now.phase for m in machines} == {Phase.MEMBER}
        assert {m.now.standing.state.epoch for m in machines} == {1}


async def test_nothing_to_recover(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "one")
    with pytest.raises(NotFound, match="no data of a server"):
        await recover(machine.settings, clock=SystemClock(), rng=random.Random(1))
