"""The state that a machine saw last, on its disk."""

import asyncio

import msgspec
import pytest

from waypost.agent import last_state
from waypost.agent.last_state import LastStateFile
from waypost.base.clock import SystemClock
from waypost.model.catalog import CRITICAL, PASSING, Check, Node, Service
from waypost.model.kv import KVEntry
from waypost.model.object import Object
from waypost.model.session import Session
from waypost.state.keys import encode, key_of, system_key
from waypost.state.view import View
from waypost.store.engine import Batch, Event, KeyValue

NODE = Node(node="Ünïcode", address="10.0.0.1")
CHECK = Check(node="Ünïcode", check_id="c", name="c", status=PASSING)
RECORDS = (
    NODE,
    Service(node="Ünïcode", id="web", name="web", port=80, tags=("a",)),
    CHECK,
    KVEntry(key="a/ü", value=b"\0\xff", flags=3),
    Session(id="s", node="Ünïcode"),
    Object(group="", resource="secrets", namespace="default", name="x", body=b"{}"),
)


def rows():
    found = [
        KeyValue(key_of(record), encode(record), n + 2, n + 10) for n, record in enumerate(RECORDS)
    ]
    return [*found, KeyValue(system_key("leader", "x"), b"\1", 3, 4)]


@pytest.fixture
def view():
    found = View()
    found.load(rows(), revision=40)
    return found


def file_of(path, view, node_id="n"):
    return LastStateFile(path, view, node_id=node_id, clock=SystemClock())


def test_everything_comes_back_with_its_indexes(tmp_path, view):
    path = tmp_path / "cluster" / "last-state"
    file_of(path, view).write()
    assert path.stat().st_mode & 0o777 == 0o600
    again = View()
    assert file_of(path, again).restore() < 60
    assert again.revision == 40
    assert list(again.records()) == list(view.records())
    assert again.index(("services",)) == 40


def test_what_is_provisional_is_not_kept(tmp_path, view):
    path = tmp_path / "last-state"
    dead = msgspec.structs.replace(CHECK, status=CRITICAL)
    view.cover({key_of(dead): dead})
    file_of(path, view).write()
    again = View()
    file_of(path, again).restore()
    assert again.check("Ünïcode", "c").status == PASSING
    assert view.check("Ünïcode", "c").status == CRITICAL


def test_without_a_file_nothing_is_said(tmp_path, caplog):
    view = View()
    assert file_of(tmp_path / "none", view).restore() is None
    assert view.revision == 0
    assert not caplog.records


@pytest.mark.parametrize("damage", ["cut", "noise", "other node", "other format", "bad record"])
def test_a_file_that_cannot_be_used_is_left_alone(tmp_path, view, caplog, damage):
    path = tmp_path / "last-state"
    file_of(path, view, "other" if damage == "other node" else "n").write()
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-20])
    elif damage == "noise":
        path.write_bytes(b"\xc1" * 100)
    elif damage == "other format":
        path.write_bytes(data[:1] + b"\x63" + data[2:])
    elif damage == "bad record":
        state = msgspec.msgpack.decode(data, type=last_state.LastState)
        bad = KeyValue(b"n\0x", b"no record", 1, 1)
        path.write_bytes(msgspec.msgpack.encode(msgspec.structs.replace(state, rows=(bad,))))
    fresh = View()
    assert file_of(path, fresh).restore() is None
    assert (fresh.revision, fresh.nodes()) == (0, [])
    assert str(path) in caplog.text


async def test_it_follows_the_view_and_is_written_at_the_end(tmp_path, view, monkeypatch):
    monkeypatch.setattr(last_state, "EVERY_S", 0.01)
    path = tmp_path / "last-state"
    running = asyncio.create_task(file_of(path, view).run())
    while not path.exists():
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    stands = path.stat().st_ino
    view.apply(Batch(41, ()))  # nothing of ours
    await asyncio.sleep(0.05)
    assert path.stat().st_ino == stands
    monkeypatch.setattr(last_state, "EVERY_S", 60)
    await asyncio.sleep(0.05)
    gone = KeyValue(key_of(NODE), b"", 0, 42, 0)
    view.apply(Batch(42, (Event("delete", gone),)))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    again = View()
    file_of(path, again).restore()
    assert (again.revision, again.nodes()) == (42, [])


async def test_a_full_disk_is_said_once_and_tried_again(tmp_path, view, monkeypatch, caplog):
    monkeypatch.setattr(last_state, "EVERY_S", 0.01)
    blocker = tmp_path / "cluster"
    blocker.write_text("not a directory")
    path = blocker / "last-state"
    running = asyncio.create_task(file_of(path, view).run())
    await asyncio.sleep(0.1)
    assert caplog.text.count("cannot be kept") == 1
    blocker.unlink()
    async with asyncio.timeout(2):
        while not path.exists():
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
