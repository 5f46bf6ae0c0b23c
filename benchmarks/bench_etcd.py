"""Transactions, read indexes and watch latency over real etcds on this machine, beside one request per transaction.

    python benchmarks/bench_etcd.py [--members 1,3] [--callers 1,16,64,256] [--seconds 2] [--consul]

Each transaction is a compare-and-set of 200 B on a key of its caller. With --consul a real single `consul` server
answers PUTs of 200 B to /v1/kv beside it, from the same client library. Data are on the disk of the temp directory.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.integration.etcd.server import free_ports, running

from waypost.base.clock import SystemClock
from waypost.store.engine import Compare, Put, Txn
from waypost.store.etcd import EtcdEngine
from waypost.store.etcd.compile import compile_txn
from waypost.store.etcd.messages import TXN, txn_decoder

VALUE = b"v" * 200

Call = Callable[[int, int], Awaitable[None]]
"""Does one thing for caller n, his i-th."""


def percentile(sorted_s: list[float], part: float) -> float:
    return sorted_s[int(len(sorted_s) * part)] * 1000


async def load(call: Call, callers: int, seconds: float) -> tuple[float, str]:
    """Return calls a second, and a line about them."""
    took_s: list[float] = []
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        count = 0
        while (start := time.perf_counter()) < end:
            await call(number, count)
            count += 1
            took_s.append(time.perf_counter() - start)

    cpu = time.process_time()
    start = time.perf_counter()
    async with asyncio.TaskGroup() as tg:
        for number in range(callers):
            tg.create_task(one(number))
    rate = len(took_s) / (time.perf_counter() - start)
    cpu_us = (time.process_time() - cpu) * 1e6 / len(took_s)
    took_s.sort()
    p50, p99 = percentile(took_s, 0.5), percentile(took_s, 0.99)
    return rate, f"{rate:>9,.0f}/s  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  client CPU {cpu_us:6.1f} us"  # fmt: skip


async def bench_etcd(urls: list[str], args: argparse.Namespace) -> dict[int, float]:
    engine = EtcdEngine(urls, process_id="bench", clock=SystemClock(), rng=random.Random())
    await engine.open()
    revisions: dict[bytes, int] = {}

    def next_txn(number: int) -> tuple[bytes, Txn]:
        key = b"k%06d" % number
        when = (Compare(key, "modify", "==", revisions[key]),) if key in revisions else ()
        return key, Txn(when=when, then=(Put(key, VALUE),))

    async def grouped(number: int, _: int) -> None:
        key, txn = next_txn(number)
        result = await engine.commit(txn)
        assert result.succeeded
        revisions[key] = result.revision

    async def alone(number: int, _: int) -> None:
        key, txn = next_txn(number)
        response = await engine.gateway.attempt(TXN, compile_txn(txn).json, into=txn_decoder)
        assert response.succeeded
        revisions[key] = response.header.revision

    async def index(_number: int, _count: int) -> None:
        await engine.read_index()

    rates: dict[int, float] = {}
    name = f"etcd x{len(urls)}"
    for callers in args.callers:
        rates[callers], text = await load(grouped, callers, args.seconds)
        print(f"{name} {callers:>4} callers  grouped txn  {text}")
        single, text = await load(alone, callers, args.seconds)
        print(f"{name} {callers:>4} callers  one by one   {text}  grouped is {rates[callers] / single:.1f}x")  # fmt: skip
        _, text = await load(index, callers, args.seconds / 2)
        print(f"{name} {callers:>4} callers  read index   {text}")
    print(f"{name} watch, 300 paced writes elsewhere: {await watch_latency(engine, urls)}")
    await engine.close()
    return rates


async def watch_latency(engine: EtcdEngine, urls: list[str]) -> str:
    """From just before a write through another engine until this one's watcher has it."""
    writer = EtcdEngine(urls[::-1], process_id="writer", clock=SystemClock(), rng=random.Random())
    await writer.open()
    sent: dict[bytes, float] = {}
    took_s: list[float] = []
    watch = engine.watch(after=await engine.read_index())

    async def follow() -> None:
        async for batch in watch:
            now = time.perf_counter()
            took_s.extend(now - sent[e.kv.key] for e in batch.events)

    task = asyncio.create_task(follow())
    for i in range(300):
        key = b"w%d" % i
        sent[key] = time.perf_counter()
        await writer.commit(Txn(then=(Put(key, VALUE),)))
        await asyncio.sleep(0.003)
    await asyncio.sleep(0.3)
    task.cancel()
    await writer.close()
    took_s.sort()
    return f"{len(took_s)} seen, p50 {percentile(took_s, 0.5):.2f} ms  p99 {percentile(took_s, 0.99):.2f} ms"  # fmt: skip


async def bench_consul(args: argparse.Namespace, directory: Path) -> dict[int, float]:
    http, dns, lan, wan, rpc, grpc = free_ports(6)
    config = f"ports {{ http={http} dns={dns} serf_lan={lan} serf_wan={wan} server={rpc} grpc={grpc} }} limits {{ http_max_conns_per_client = 2000 }}"  # fmt: skip
    (directory / "ports.hcl").write_text(config)
    command = ["consul", "agent", "-server", "-bootstrap-expect=1", "-bind=127.0.0.1", f"-data-dir={directory / 'data'}", f"-config-file={directory / 'ports.hcl'}", "-log-level=err"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rates: dict[int, float] = {}
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{http}", connector=connector
        ) as session:

            async def put(number: int, _: int) -> None:
                async with session.put(f"/v1/kv/k{number}", data=VALUE) as response:
                    assert await response.read() == b"true\n" or response.status == 200, response

            async with asyncio.timeout(30):
                while True:
                    try:
                        async with session.put("/v1/kv/ready", data=b"") as response:
                            if response.status == 200:
                                break
                    except aiohttp.ClientError:
                        pass
                    await asyncio.sleep(0.2)
            for callers in args.callers:
                rates[callers], text = await load(put, callers, args.seconds)
                print(f"consul x1 {callers:>4} callers  KV put       {text}")
    finally:
        process.terminate()
        process.wait(20)
    return rates


async def main(args: argparse.Namespace, directory: Path) -> None:
    rates: dict[int, dict[int, float]] = {}
    for count in args.members:
        with running(directory / f"etcd{count}", count=count) as cluster:
            leader = cluster.leader().url
            urls = [leader, *(url for url in cluster.urls if url != leader)]
            rates[count] = await bench_etcd(urls, args)
    if args.consul and shutil.which("consul"):
        consul = await bench_consul(args, directory)
        for count, ours in rates.items():
            ratios = "  ".join(f"{n}: {ours[n] / consul[n]:.1f}x" for n in args.callers)
            print(f"transactions of etcd x{count} / KV puts of consul x1, by callers  {ratios}")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=numbers, default=[1, 3])
    parser.add_argument("--callers", type=numbers, default=[1, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--consul", action="store_true")
    with tempfile.TemporaryDirectory(prefix="waypost-bench-") as directory, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # fmt: skip
        runner.run(main(parser.parse_args(), Path(directory)))
