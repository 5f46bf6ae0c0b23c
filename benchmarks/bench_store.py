"""Writes a second and their latency, per engine and number of concurrent callers.

    python benchmarks/bench_store.py [--engine sqlite] [--callers 1,16,64,256] [--seconds 2] [--keys 10000]

Each write is a compare-and-set transaction of 200 B on a random key of its own caller, as a catalog update is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import tempfile
import time
from pathlib import Path

import uvloop

from waypost.base.clock import SystemClock
from waypost.store.engine import Compare, Engine, Put, Txn
from waypost.store.open import make_engine

VALUE = b"v" * 200


async def preload(engine: Engine, keys: int) -> None:
    for at in range(0, keys, 1000):
        last = min(at + 1000, keys)
        await engine.commit(Txn(then=tuple(Put(b"k%08d" % i, VALUE) for i in range(at, last))))


async def measure(engine: Engine, callers: int, keys: int, seconds: float) -> str:
    latencies_s: list[float] = []
    end = time.perf_counter() + seconds

    async def call(number: int) -> None:
        rng = random.Random(number)
        revisions: dict[bytes, int] = {}
        while (start := time.perf_counter()) < end:
            key = b"k%08d" % (rng.randrange(keys // callers) * callers + number)
            modified = revisions.get(key)
            when = () if modified is None else (Compare(key, "modify", "==", modified),)
            result = await engine.commit(Txn(when=when, then=(Put(key, VALUE),)))
            assert result.succeeded
            revisions[key] = result.revision
            latencies_s.append(time.perf_counter() - start)
            await asyncio.sleep(0)

    cpu = time.process_time()
    start = time.perf_counter()
    async with asyncio.TaskGroup() as tg:
        for number in range(callers):
            tg.create_task(call(number))
    took_s = time.perf_counter() - start
    cpu_us = (time.process_time() - cpu) * 1e6 / len(latencies_s)
    latencies_s.sort()
    p50, p99 = (latencies_s[int(len(latencies_s) * p)] * 1000 for p in (0.5, 0.99))
    return (
        f"{callers:>4} callers {len(latencies_s) / took_s:>9,.0f} writes/s"
        f"   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   CPU {cpu_us:6.1f} us"
    )


async def bench(location: str, args: argparse.Namespace) -> None:
    engine = make_engine(location, clock=SystemClock())
    await engine.open()
    await preload(engine, args.keys)
    watched = 0

    async def follow() -> None:
        nonlocal watched
        async for _ in engine.watch(after=await engine.read_index()):
            watched += 1

    follower = asyncio.create_task(follow())
    for callers in args.callers:
        print(f"{location.partition(':')[0]:8}", await measure(engine, callers, args.keys, args.seconds))  # fmt: skip
    start = time.perf_counter()
    page = await engine.range(b"\0", b"\xff")
    load_s = time.perf_counter() - start
    await engine.close()
    await follower
    start = time.perf_counter()
    await engine.open()
    open_s = time.perf_counter() - start
    await engine.close()
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'':8} load {len(page.items):,} keys {load_s * 1000:.0f} ms, open {open_s * 1000:.0f} ms, watched {watched:,}, peak RSS {rss_mb:.0f} MB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["memory", "sqlite"], action="append")
    parser.add_argument("--callers", type=lambda t: list(map(int, t.split(","))), default=[1, 16, 64, 256])  # fmt: skip
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--keys", type=int, default=10_000)
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {args.keys:,} keys")
    for name in args.engine or ["memory", "sqlite"]:
        with tempfile.TemporaryDirectory(prefix="waypost-bench-") as directory:
            location = f"sqlite:{Path(directory) / 'store'}" if name == "sqlite" else name
            uvloop.run(bench(location, args))


if __name__ == "__main__":
    main()
