"""Snapshots over every engine of one process: what is in them, and what restoring does."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import stat
import tarfile
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from waypost.base.errors import Malformed, Rejected
from waypost.cluster.leadership import plan_claim
from waypost.cluster.snapshots import (
    Schedule,
    ScheduleSettings,
    Snapshots,
    chunks,
    differences,
    interrupted,
    open_snapshot,
    surplus,
    write_snapshot,
)
from waypost.domain.agent import plan_self
from waypost.domain.cluster import Autopilot, autopilot, plan_autopilot
from waypost.domain.event import plan_share
from waypost.model.event import UserEvent
from waypost.model.kv import KVEntry
from waypost.model.object import Object
from waypost.state.keys import OBJECT, put
from waypost.state.state import State
from waypost.store.engine import Delete, KeyValue, Put, Txn
from waypost.store.memory import MemoryEngine
from waypost.store.sqlite import SqliteEngine
from waypost.wire.snapshot import decode_state, encode_state, make_meta, pack, unpack

from .test_liveness import HandClock, local


class NoLongTxns(MemoryEngine):
    """An engine of which not every transaction is one: as far as restores know, not in this process."""

    def __init__(self, clock):
        super().__init__(clock)
        self.sizes = []
        self.fails_at = -1

    async def commit(self, txn):
        self.sizes.append(len(txn.then))
        if len(self.sizes) == self.fails_at:
            msg = "power cut"
            raise OSError(msg)
        return await super().commit(txn)

    async def status(self):
        found = await super().status()
        return msgspec.structs.replace(found, engine="etcd")


@asynccontextmanager
async def opened(engine):
    await engine.open()
    state = State(engine)
    await state.load()
    task = asyncio.create_task(state.run())
    try:
        yield state
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await engine.close()


@pytest.fixture(params=["memory", "sqlite", "several"])
async def state(request, tmp_path):
    clock = HandClock()
    engine = {
        "memory": lambda: MemoryEngine(clock),
        "sqlite": lambda: SqliteEngine(tmp_path / "store", clock=clock),
        "several": lambda: NoLongTxns(clock),
    }[request.param]()
    async with opened(engine) as found:
        yield found


async def write(state, *records):
    result = await state.engine.commit(Txn(then=tuple(put(one) for one in records)))
    await state.reached(result.revision)


def role(name, body=b"{}"):
    return Object(group="rbac.authorization.k8s.io", resource="clusterroles", name=name, body=body)


def kv(key, value=b"v"):
    return KVEntry(key=key, value=value, flags=7)


async def test_everything_comes_back(state):
    clock = HandClock()
    snapshots = Snapshots(state, clock=clock, term=lambda: 3)
    await state.commit(lambda view: plan_self(view, local()))
    await state.commit(lambda v: plan_autopilot(v, Autopilot(max_trailing_logs=9), at_index=None))
    await write(state, kv("a"), kv("b/ü", bytes(range(256))), role("admin", b'{"x":1}'))
    saved_at = state.view.revision
    revision, archive = await snapshots.save()
    assert revision == saved_at
    meta = unpack(archive).meta
    assert (meta.index, meta.term, meta.version) == (saved_at, 3, 1)
    assert meta.id == f"3-{saved_at}-1800000000000"

    await write(state, kv("a", b"changed"), kv("new"), role("other"))
    await state.engine.commit(Txn(then=(Delete(put(role("admin")).key),)))
    before = state.view.revision
    await snapshots.restore(archive)
    view = state.view
    assert view.revision > before
    assert [(one.key, one.value, one.flags) for one in view.kv_below("")] == [
        ("a", b"v", 7),
        ("b/ü", bytes(range(256)), 7),
    ]
    found = view.objects("rbac.authorization.k8s.io", "clusterroles")
    assert [(one.name, one.body) for one in found] == [("admin", b'{"x":1}')]
    assert view.node("n1").id == local().id
    assert autopilot(view).max_trailing_logs == 9
    assert interrupted(view) == ""
    # Nothing that is as it was is written again, so its index stays.
    assert view.kv("b/ü").modify_index <= saved_at
    await snapshots.restore(archive)
    assert state.view.revision == view.revision


async def test_what_belongs_to_the_moment_stays_out_and_stays(state):
    snapshots = Snapshots(state, clock=HandClock())
    await state.commit(lambda view: plan_claim(view, server_id="old", node="s1"))
    await state.commit(lambda view: plan_share(view, UserEvent(id="0" * 36, name="e")))
    lease = await state.engine.grant(ttl_s=100)
    await state.engine.commit(Txn(then=(Put(b"k\0leased", b"\x81\xa3key\xa6leased", lease),)))
    await write(state, kv("a"))
    _, archive = await snapshots.save()
    _, values = open_snapshot(archive)
    assert list(values) == [b"k\0a"]
    await state.commit(lambda view: plan_claim(view, server_id="new", node="s2"))
    await snapshots.restore(archive)
    assert b"new" in state.view.system("leader").value


async def test_restoring_many_keys(state):
    """More than one transaction of etcd takes; an engine of this process takes them as one all the same."""
    await write(state, *(kv(f"old/{n}", b"x" * 300) for n in range(3000)), role("one"))
    _, archive = await Snapshots(state, clock=HandClock()).save()
    await state.engine.commit(Txn(then=(Delete(b"k\0", b"k\1"),)))
    await write(state, *(kv(f"new/{n}") for n in range(1000)), role("two"))
    before = state.view.revision
    await Snapshots(state, clock=HandClock()).restore(archive)
    assert len(state.view.kv_below("old/")) == 3000
    assert state.view.kv_below("new/") == []
    assert [o.name for o in state.view.objects("rbac.authorization.k8s.io", "clusterroles")] == [
        "one"
    ]
    assert interrupted(state.view) == ""
    taken = state.view.revision - before
    if isinstance(state.engine, NoLongTxns):
        assert taken > 3
        assert max(state.engine.sizes[-taken:]) <= 1025
    else:
        assert taken == 1


async def test_a_restore_that_was_cut_off_is_told_and_completed_by_another():
    engine = NoLongTxns(HandClock())
    async with opened(engine) as state:
        await write(state, *(kv(f"old/{n}", b"x" * 300) for n in range(3000)))
        _, archive = await Snapshots(state, clock=HandClock()).save()
        await state.engine.commit(Txn(then=(Delete(b"k\0", b"k\1"),)))
        engine.fails_at = len(engine.sizes) + 2
        with pytest.raises(OSError, match="power cut"):
            await write_snapshot(engine, archive, wall_s=0.0)
        await asyncio.sleep(0.01)
        assert 0 < len(state.view.kv_below("old/")) < 3000
        assert interrupted(state.view) == unpack(archive).meta.id
        await Snapshots(state, clock=HandClock()).restore(archive)
        assert len(state.view.kv_below("old/")) == 3000
        assert interrupted(state.view) == ""


def test_chunks_put_the_policy_first_as_one_and_additions_before_removals():
    policy = [Put(OBJECT + b"%d" % n, b"x" * 100) for n in range(50)]
    keys = [Put(b"k\0%d" % n, b"x" * 100_000) for n in range(20)]
    gone = [Delete(OBJECT + b"gone"), Delete(b"k\0gone")]
    note = Put(b"_\0restore", b"")
    found = chunks([*keys, *policy], gone, note=note)
    assert found[0] == (note, *policy, gone[0])
    assert found[-1] == (Delete(note.key),)
    assert found[-2][-1] == gone[1]
    flat = [one for part in found[1:-1] for one in part]
    assert flat == [*keys, gone[1]]
    assert all(
        sum(len(one.value) for one in part if isinstance(one, Put)) < 2**20 for part in found
    )


def test_differences():
    present = [
        KeyValue(b"k\0a", b"1", 1, 1),
        KeyValue(b"k\0b", b"1", 1, 1),
        KeyValue(b"zz", b"", 1, 1),
    ]
    puts, deletes = differences(present, {b"k\0a": b"1", b"k\0c": b"2"})
    assert (puts, deletes) == ([Put(b"k\0c", b"2")], [Delete(b"k\0b")])


# -- the file ----------------------------------------------------------------------------------------------------------


def archive_of(*items):
    state = encode_state(items)
    return pack(make_meta(index=5, term=2, wall_s=1.5, size=len(state)), state, wall_s=1.5)


def test_the_archive_is_consuls():
    with tarfile.open(fileobj=io.BytesIO(archive_of((b"k\0a", b"\x81\xa3key\xa1a")))) as tar:
        assert tar.getnames() == ["meta.json", "state.bin", "SHA256SUMS"]
        assert {one.mode for one in tar} == {0o600}
        meta = tar.extractfile("meta.json").read()
    assert msgspec.json.decode(meta)["ID"] == "2-5-1500"


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536, 70000])
def test_the_state_is_read_as_it_was_written(size):
    items = {b"k\0a": b"x" * size, b"k\0" + b"b" * size: b""}
    assert decode_state(encode_state(items.items())) == items


def damaged(change):
    archive = archive_of((b"k\0a", b"\x81\xa3key\xa1a"), (b"k\0b", os.urandom(3000)))
    return change(archive)


def repacked(**files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "failed to decompress snapshot: EOF"),
        (b"garbage", "failed to decompress snapshot: unexpected EOF"),
        (
            b"garbage that is longer than a header",
            "failed to decompress snapshot: gzip: invalid header",
        ),
        (damaged(lambda data: data[:-2000]), "failed to read snapshot: "),
        (damaged(lambda data: data[:200] + b"\0" * 50 + data[250:]), "failed to read snapshot: "),
        (gzip.compress(b"no tar at all" * 100), "failed to read snapshot: "),
        (repacked(meta_json=b"{}"), "failed to read snapshot: state.bin, SHA256SUMS is missing"),
        (repacked(**{"../evil": b""}), "failed to read snapshot: unexpected file '../evil'"),
        (
            repacked(meta_json=b"{}", state_bin=b"x", SHA256SUMS=b"00  state.bin\n"),
            'failed to read snapshot: hash check failed for "meta.json"',
        ),
        (archive_of((b"z\0", b"")), "key b'z\\x00' is not part of snapshots"),
        (archive_of((b"k\0a", b"\xff")), "stored value of key b'k\\x00a' cannot be read"),
        (archive_of((b"_\0leader", b"")), "is not part of snapshots"),
    ],
    # Packed data hold the time: names made of them would differ between processes.
    ids=lambda value: value if isinstance(value, str) else "data",
)
async def test_bad_files_change_nothing(data, error):
    async with opened(MemoryEngine(HandClock())) as state:
        before = state.view.revision
        with pytest.raises(Rejected) as raised:
            await Snapshots(state, clock=HandClock()).restore(data)
        assert error in str(raised.value)
        assert state.view.revision == before


def test_a_damaged_state_is_malformed_at_every_cut():
    state = encode_state([(b"k\0a", b"value"), (b"k\0b", b"x" * 300)])
    whole = {len(encode_state([])), len(encode_state([(b"k\0a", b"value")])), len(state)}
    for cut in range(len(state)):
        if cut in whole:
            continue
        with pytest.raises(Malformed):
            decode_state(state[:cut])


# -- on schedule -------------------------------------------------------------------------------------------------------


def test_the_oldest_go_first():
    names = ["waypost-20260101T000000Z-9.snap", "waypost-20260102T000000Z-10.snap", "mine.snap"]
    assert surplus(names, keep=1) == [names[0]]
    assert surplus(names, keep=2) == []


async def test_a_schedule_keeps_so_many_for_their_owner_only(tmp_path):
    clock = HandClock()
    folder = tmp_path / "snapshots"
    async with opened(MemoryEngine(clock)) as state:
        await write(state, kv("a"))
        settings = ScheduleSettings(folder=folder, every_s=10, keep=2)
        schedule = Schedule(Snapshots(state, clock=clock), settings, clock=clock)
        taken = []
        for second in range(4):
            clock.wall = lambda second=second: 1.8e9 + second
            taken.append(await schedule.take())
        assert sorted(folder.iterdir()) == taken[2:]
        assert stat.S_IMODE(taken[3].stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert open_snapshot(taken[3].read_bytes())[1].keys() == {b"k\0a"}
        os.utime(taken[3], (1.8e9, 1.8e9))
        os.utime(taken[2], (1.8e9 - 50, 1.8e9 - 50))
        clock.wall = lambda: 1.8e9 + 4
        assert schedule._first_wait_s() == pytest.approx(6.0)
        clock.wall = lambda: 1.8e9 - 1e6  # the clock was put back
        assert schedule._first_wait_s() == 10
