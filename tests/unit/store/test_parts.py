"""The parts that engines are made of."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from waypost.base.clock import SystemClock
from waypost.base.errors import Malformed
from waypost.store.engine import Batch, Compacted, Event, KeyValue
from waypost.store.history import History
from waypost.store.keyspace import KeySpace
from waypost.store.open import ENGINES, make_engine


def batch(revision: int, size: int = 1) -> Batch:
    return Batch(revision, (Event("put", KeyValue(b"k", b"x" * size, 1, revision)),))


def test_key_space_stays_sorted_under_any_writes() -> None:
    rng = random.Random(7)
    space, model = KeySpace(), {}
    for step in range(30_000):
        key = b"%d" % rng.randrange(6000) if step % 3 else b"z%08d" % step
        if rng.random() < 0.35 and model:
            key = rng.choice(list(model)) if step % 50 == 0 else key
            if key in model:
                space.remove(key)
                del model[key]
        else:
            model[key] = KeyValue(key, b"%d" % step, 1, 1)
            space.put(model[key])
        if step % 1000 == 0:
            low, high = sorted((b"%d" % rng.randrange(6000), b"z%08d" % rng.randrange(30_000)))
            assert list(space.span(low, high)) == [model[k] for k in sorted(model) if low <= k < high]  # fmt: skip
    assert [row.key for row in space.span(b"", b"\xff")] == sorted(model)
    assert space.size_bytes == sum(len(k) + len(row.value) for k, row in model.items())
    for key in list(model):
        space.remove(key)
    assert (len(space), space.size_bytes, list(space.span(b"", b"\xff"))) == (0, 0, [])
    with pytest.raises(KeyError):
        space.remove(b"1")


async def test_history_is_bounded_by_bytes_and_keeps_the_last() -> None:
    history = History(keep_batches=100, keep_bytes=10_000)
    history.start(revision=5)
    history.publish([batch(r, size=3000) for r in range(6, 20)])
    assert (history.revision, history.compacted) == (19, 16)
    history.publish([batch(20, size=1_000_000)])
    assert (history.revision, history.compacted) == (20, 19)
    assert (await anext(history.watch(after=19))).revision == 20
    with pytest.raises(Compacted, match="revision 19 is no longer kept, the oldest is 20"):
        await anext(history.watch(after=18))


async def test_history_compacts_no_future() -> None:
    history = History()
    history.start(revision=1)
    history.publish([batch(2)])
    history.compact(before=1000)
    assert history.compacted == 2
    history.publish([batch(3)])
    assert (await anext(history.watch(after=2))).revision == 3


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("etcd3", "unknown engine 'etcd3', expected one of"),
        ("", "unknown engine ''"),
        ("sqlite", "needs a directory"),
        ("sqlite:", "needs a directory"),
        ("memory:/tmp", "takes no location"),
    ],
)
def test_a_location_that_means_nothing(location: str, text: str) -> None:
    with pytest.raises(Malformed, match=text):
        make_engine(location, clock=SystemClock())


async def test_a_location_makes_its_engine(tmp_path: Path) -> None:
    assert set(ENGINES) >= {"memory", "sqlite"}
    for location, name in (("memory", "memory"), (f"sqlite:{tmp_path}/a:b", "sqlite")):
        engine = make_engine(location, clock=SystemClock())
        await engine.open()
        assert (await engine.status()).engine == name
        await engine.close()
    assert (tmp_path / "a:b" / "store.db").exists()
