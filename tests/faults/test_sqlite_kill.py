"""kill -9 at any moment loses nothing that was acknowledged, and leaves nothing half-done.

The number of kills is WAYPOST_KILLS (25). The full proof is WAYPOST_KILLS=200.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from waypost.base.clock import SystemClock
from waypost.store.engine import Put, Txn
from waypost.store.sqlite import SqliteEngine

from .kill_writer import REPORT, key

WRITER = Path(__file__).parent / "kill_writer.py"
KILLS = int(os.environ.get("WAYPOST_KILLS", "25"))
FRESH_EVERY = 25
"""Kills after which a new store is begun, so that checking it stays fast."""


def run_and_kill(directory: Path, run: int, after_s: float) -> tuple[int, dict[bytes, int]]:
    """Start the writer, kill it `after_s` after it opened the store; return its first revision and what it was told."""
    process = subprocess.Popen(
        [sys.executable, str(WRITER), str(directory), str(run)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        data = bytearray()
        deadline = time.monotonic() + 30
        killed = False
        while True:
            readable, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not readable and not killed:
                assert data, "the writer did not open the store"
                process.send_signal(signal.SIGKILL)
                killed = True
                deadline = time.monotonic() + 30
                continue
            chunk = os.read(pipe, 65536)
            if not chunk:
                break
            if not data:
                deadline = time.monotonic() + after_s
            data += chunk
        assert killed, f"the writer ended by itself: {process.wait()}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    reports = list(REPORT.iter_unpack(bytes(data)))
    return reports[0][2], {key(run, t, n): revision for t, n, revision in reports[1:]}


def check(directory: Path, acknowledged: dict[bytes, int]) -> int:
    """Look at the files with SQLite itself; return the store's revision."""
    with sqlite3.connect(directory / "store.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (revision,) = db.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()
        rows = dict(db.execute("SELECT k, mrev FROM kv WHERE k >= x'77'"))
        counters = db.execute("SELECT v, ver, mrev FROM kv WHERE k < x'77'").fetchall()
    db.close()
    lost = [k for k, r in acknowledged.items() if rows.get(k) != r]
    assert not lost, f"{len(lost)} acknowledged writes are lost, such as {lost[:3]}"
    assert sorted(rows.values()) == list(range(2, revision + 1)), "revisions have a gap"
    written = set(rows.values())
    for count, version, modified in counters:
        assert int(count) == version, "a counter was counted twice or not at all"
        assert modified in written, "half a transaction is there"
    return revision


@pytest.mark.timeout(30 + 2 * KILLS)
async def test_kill_9_loses_nothing_acknowledged(tmp_path: Path) -> None:
    rng = random.Random(20201)
    total = {"acknowledged": 0, "unacknowledged": 0, "kills": 0}
    acknowledged: dict[bytes, int] = {}
    directory, revision = tmp_path / "0", 1
    for run in range(KILLS):
        if run % FRESH_EVERY == 0:
            directory, revision = tmp_path / str(run), 1
            acknowledged = {}
        first, told = run_and_kill(directory, run, rng.uniform(0.0, 0.12))
        assert first == revision, "a revision moved while nobody wrote"
        acknowledged |= told
        revision = check(directory, acknowledged)
        total["kills"] += 1
        total["acknowledged"] += len(told)
        total["unacknowledged"] += revision - first - len(told)
    engine = SqliteEngine(directory, clock=SystemClock())
    await engine.open()
    try:
        assert await engine.read_index() == revision
        result = await engine.commit(Txn(then=(Put(b"w/after", b""),)))
        assert result.revision == revision + 1
    finally:
        await engine.close()
    assert total["acknowledged"] > 50 * KILLS, "the writer hardly wrote, so this proved little"
    print(total)
