"""Whole clusters with real etcd: formed, restarted, grown, shrunk, damaged."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from pathlib import Path

import pytest
from tests.integration.cluster.machines import (
    TOKEN,
    Machine,
    all_ready,
    is_member,
    started,
    trio,
    until,
    voters,
)

from waypost.base.errors import NotFound, Unavailable
from waypost.cluster.records import Phase

pytestmark = pytest.mark.needs("etcd")


def ids(*machines: Machine) -> tuple[str, ...]:
    return tuple(one.settings.node_id for one in machines)


def pins(*machines: Machine) -> set[str]:
    return {one.now.trust.pin for one in machines}


async def test_three_form_restart_and_replace(tmp_path: Path) -> None:
    machines = trio(tmp_path)
    one, two, three = machines
    four = Machine(tmp_path, "four", join=(two.contact,), bootstrap_expect=0, join_token=TOKEN)
    async with started(*machines):
        await all_ready(*machines)
        await voters(three, *ids(*machines))
        assert len(pins(*machines)) == 1
        await until(
            lambda: all(m.now.leader() is not None for m in machines), what="all know the leader"
        )
        assert len({m.now.leader().id for m in machines}) == 1
        assert sum(m.now.is_leader for m in machines) == 1

        # One restarts: it needs nobody's permission, and the cluster is the same.
        await two.kill()
        await two.start()
        await all_ready(two)
        assert {m.now.standing.state.cluster for m in machines} == {one.now.standing.state.cluster}

        # All restart at once, without being told where the others are.
        for m in machines:
            await m.kill()
            m.change(join=())
        for m in machines:
            await m.start()
        await all_ready(*machines)
        await voters(one, *ids(*machines))

        # One dies, another comes: it takes the dead one's place.
        await three.kill()
        await four.start()
        try:
            await voters(one, *ids(one, two, four), within_s=20)
            await all_ready(four)
            assert pins(one, four) == pins(one)

            # The dead one comes back with its old data: it was removed, and joins again as a new member.
            await three.start()
            await voters(one, *ids(*machines, four), within_s=20)
        finally:
            await four.stop()


async def test_wiped_left_removed_and_moved(tmp_path: Path) -> None:
    machines = trio(tmp_path)
    one, two, three = machines
    async with started(*machines):
        await all_ready(*machines)
        first = {m.id: m.member_id for m in await voters(one, *ids(*machines))}

        # The store's data is lost, the identity is not: a new member under the same node id, without a token.
        await two.kill()
        shutil.rmtree(two.settings.directory / "etcd")
        await two.start()
        await until(
            lambda: (
                two.now.standing.state.member_id not in ("", first[two.settings.node_id])
                and is_member(two)
            ),
            what="two is a member again",
        )
        again = {m.id: m.member_id for m in await voters(one, *ids(*machines))}
        assert again[two.settings.node_id] != first[two.settings.node_id]

        # Everything is lost: a new machine at the same address needs a token.
        await three.kill()
        shutil.rmtree(three.settings.data_dir)
        old = three.settings.node_id
        three.change(node_id=str(uuid.uuid4()), join=(one.contact,))
        await three.start()
        await until(lambda: three.now.report.said("join"), what="three is refused")
        assert "needs a token" in three.now.report.said("join")
        assert three.now.phase is Phase.NONE
        await three.stop()
        three.change(join_token=TOKEN)
        await three.start()
        await voters(one, *ids(*machines))
        assert old not in ids(*machines)

        # A leader leaves: the leadership goes to another one first.
        leader = next(m for m in machines if m.now.is_leader)
        rest = [m for m in machines if m is not leader]
        await leader.now.leave()
        assert leader.now.phase is Phase.LEFT
        await voters(rest[0], *ids(*rest))

        # An operator removes one that is alive: it notices, and joins again as somebody new.
        before = {m.id: m.member_id for m in await voters(rest[0], *ids(*rest))}
        await rest[0].now.remove_peer(rest[1].settings.node_id)
        await until(
            lambda: (
                rest[1].now.standing.state.member_id not in ("", before[rest[1].settings.node_id])
                and is_member(rest[1])
            ),
            what="the removed one is back",
        )
        await voters(rest[0], *ids(*rest))
        with pytest.raises(NotFound):
            await rest[0].now.remove_peer("nobody")
        other = next(m for m in rest if not m.now.is_leader)
        await other.now.transfer_leader(other.settings.node_id)
        await until(lambda: other.now.is_leader, what="the leadership moves")


async def test_grow_from_one_with_tokens(tmp_path: Path) -> None:
    one = Machine(tmp_path, "one", bootstrap_expect=1)
    two = Machine(
        tmp_path,
        "two",
        bootstrap_expect=0,
        join=(one.contact,),
        join_token="aaaaaa.0123456789abcdef",
    )
    three = Machine(tmp_path, "three", bootstrap_expect=0, join=(one.contact,), join_token=TOKEN)
    client = Machine(
        tmp_path,
        "client",
        bootstrap_expect=0,
        is_server=False,
        join=(one.contact,),
        join_token=TOKEN,
    )
    async with started(one):
        await all_ready(one)
        assert await voters(one, *ids(one))
        async with started(two, three, client):
            await until(lambda: two.now.report.said("join"), what="two is refused")
            assert "not good" in two.now.report.said("join")
            await two.stop()
            two.change(join_token=TOKEN, ca_pin="sha256:" + "0" * 64)
            await two.start()
            await until(lambda: two.now.report.said("join"), what="two refuses")
            assert "the token was not sent" in two.now.report.said("join")
            await two.stop()
            two.change(ca_pin=one.now.trust.pin)
            await two.start()
            await all_ready(two, three, client)
            await voters(one, *ids(one, two, three), within_s=20)

            # The client has the certificate of a node and prefers one server; that one dies.
            assert client.now.phase is Phase.MEMBER
            assert [m.node for m in await client.now.raft()]
            await until(
                lambda: len([s for s in client.now.servers() if s.is_live]) == 3,
                what="client knows three",
            )
            preferred = client.now.servers()[0]
            dead = next(m for m in (one, two, three) if m.settings.node_id == preferred.id)
            await dead.kill()
            await until(
                lambda: client.now.servers()[0].id != preferred.id, what="client fails over"
            )

            # It needs no token any more.
            await client.stop()
            client.change(join_token="", join=())
            await client.start()
            await all_ready(client)


async def test_a_shared_key_keeps_strangers_out(tmp_path: Path) -> None:
    key = "MDEyMzQ1Njc4OWFiY2RlZg=="
    machines = trio(tmp_path, encrypt=key)
    machines[2].change(encrypt="")
    async with started(*machines):
        await until(
            lambda: sum(one.is_live and not one.is_self for one in machines[0].now.servers()) == 1
        )
        await asyncio.sleep(0.5)
        assert [m.now.phase for m in machines] == [Phase.NONE] * 3
        await machines[2].stop()
        machines[2].change(encrypt=key)
        await machines[2].start()
        await all_ready(*machines)


async def test_a_copied_disk(tmp_path: Path) -> None:
    machines = trio(tmp_path)
    one, two, _ = machines
    async with started(*machines):
        await all_ready(*machines)
        await two.stop()
        copy = Machine(tmp_path, "copy", join=(one.contact,))
        shutil.copytree(two.settings.data_dir, copy.settings.data_dir)
        copy.change(node_id=two.settings.node_id)
        await two.start()
        await all_ready(two)
        async with started(copy):
            await until(lambda: "is a copy" in copy.now.report.said("double"), what="it knows")
            assert not copy.now.store.is_running
            await voters(one, *ids(*machines))


async def test_nobody_there(tmp_path: Path) -> None:
    one = Machine(tmp_path, "one", join=("127.0.0.1:1",), retry_max=1, retry_interval_s=0.1)
    async with started(one):
        assert one._task is not None
        with pytest.raises(Unavailable, match="no machine to join answered in 1 attempts"):
            await asyncio.wait_for(asyncio.shield(one._task), 10)
        one._task = None
        await one._server.stop()
