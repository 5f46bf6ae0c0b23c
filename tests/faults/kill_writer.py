"""The process that is killed: writes from several tasks, and reports each write once it is acknowledged.

    kill_writer.py DIRECTORY RUN      reports to stdout as records of REPORT

Every transaction creates one key of its own, so the rows' revisions must be 2, 3, 4 … without a gap; every eighth
also counts up a shared counter by compare-and-set.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from pathlib import Path

from waypost.base.clock import SystemClock
from waypost.store.engine import Compare, Put, Txn
from waypost.store.sqlite import SqliteEngine, SqliteSettings

REPORT = struct.Struct("<IIQ")
"""Task, number within the task, revision."""

TASKS = 24


def key(run: int, task: int, number: int) -> bytes:
    return b"w/%d/%d/%d" % (run, task, number)


async def write(engine: SqliteEngine, run: int, task: int) -> None:
    number = 0
    while True:
        own = Put(key(run, task, number), b"%d" % number * (1 + number % 50))
        txn = Txn(then=(own,))
        if number % 8 == 0:
            counter = b"c/%d" % (task % 12)
            items = (await engine.range(counter)).items
            count, seen = (int(items[0].value), items[0].modify_revision) if items else (0, 0)
            txn = Txn(
                when=(Compare(counter, "modify", "==", seen),),
                then=(own, Put(counter, b"%d" % (count + 1))),
            )
        result = await engine.commit(txn)
        if result.succeeded:
            # Less than PIPE_BUF, so one write is whole or not there; the reader always reads on.
            os.write(1, REPORT.pack(task, number, result.revision))
            number += 1


async def main() -> None:
    # A small checkpoint makes kills fall into checkpoints as well.
    engine = SqliteEngine(
        Path(sys.argv[1]),
        clock=SystemClock(),
        settings=SqliteSettings(checkpoint_pages=100, idle_s=0.01),
    )
    await engine.open()
    os.write(1, REPORT.pack(0xFFFFFFFF, 0, await engine.read_index()))
    async with asyncio.TaskGroup() as tg:
        for task in range(TASKS):
            tg.create_task(write(engine, int(sys.argv[2]), task))


if __name__ == "__main__":
    asyncio.run(main())
