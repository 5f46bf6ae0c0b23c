"""How long the balancer needs: change → first request on the new instance, and last request on the removed one.

    python benchmarks/bench_balancer.py [--binary /usr/sbin/nginx] [--rounds 30]

Four clients ask without pause over fresh connections. Also: a new service until its first answer,
and the number of reloads in a flood of 100 changes in 2 s. Figures are of one machine; compare runs, not machines.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

from waypost.base.clock import SystemClock
from waypost.drivers.nginx.backends import Backend, Endpoint, Feed
from waypost.drivers.nginx.driver import Balancer
from waypost.drivers.nginx.settings import Listen, Settings

SPACING_S = (
    0.05  # a reload a change, to measure one; the flood runs with the default of one a second
)


async def upstream(name: str) -> Endpoint:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name.encode())
                )
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return Endpoint(address="127.0.0.1", port=server.sockets[0].getsockname()[1])


async def ask(port: int, host: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
    finally:
        writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return body if head.startswith("HTTP/1.1 200") else head.split("\r\n")[0]


class Clients:
    def __init__(self, port: int, *, count: int = 4) -> None:
        self.port = port
        self.answers: list[tuple[float, float, str]] = []
        self._tasks = [asyncio.create_task(self._run()) for _ in range(count)]

    async def _run(self) -> None:
        while True:
            began = time.perf_counter()
            name = await ask(self.port, "web.bench")
            self.answers.append((began, time.perf_counter(), name))
            await asyncio.sleep(0)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def show(what: str, values: list[float]) -> None:
    values = sorted(1000 * one for one in values)
    print(
        f"{what:<44} median {statistics.median(values):7.1f} ms   max {values[-1]:7.1f} ms   n={len(values)}"
    )


def web(*endpoints: Endpoint, service: str = "web") -> Backend:
    return Backend(service=service, tags=("http",), endpoints=endpoints)


async def measure(binary: Path | None, rounds: int, prefix: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    a, b = await upstream("a"), await upstream("b")
    feed = Feed()
    settings = Settings(
        prefix=prefix,
        binary=binary,
        listen=(Listen("127.0.0.1", port),),
        allow_loopback=True,
        reload_spacing_s=SPACING_S,
    )
    feed.publish([web(a)])
    balancer = Balancer(settings=settings, feed=feed, clock=SystemClock())
    task = asyncio.create_task(balancer.run())
    await balancer.ready()
    await balancer.settled("web")
    print(f"nginx {balancer.status.nginx_version}, {balancer.status.lane} lane")
    await endpoints(balancer, feed, port, rounds, a, b)
    await new_services(feed, port, max(5, rounds // 3), a)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

    settings = Settings(
        prefix=prefix, binary=binary, listen=(Listen("127.0.0.1", port),), allow_loopback=True
    )
    balancer = Balancer(settings=settings, feed=feed, clock=SystemClock())
    task = asyncio.create_task(balancer.run())
    await balancer.ready()
    before = balancer.status.reloads
    for number in range(100):
        feed.publish([web(*((a,), (a, b), (b,))[number % 3]), web(a, service=f"flood-{number}")])
        await asyncio.sleep(0.02)
    began = time.perf_counter()
    await balancer.settled("flood-99")
    await balancer.settled("web")
    print(
        f"100 changes in 2 s: {balancer.status.reloads - before} reloads, "
        f"settled {1000 * (time.perf_counter() - began):.0f} ms after the last"
    )
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def endpoints(
    balancer: Balancer, feed: Feed, port: int, rounds: int, a: Endpoint, b: Endpoint
) -> None:
    clients = Clients(port)
    first_new, last_old, acks, failed = [], [], [], 0
    try:
        for _ in range(rounds):
            await asyncio.sleep(1.2)
            for backends, wanted, gone in (((a, b), "b", None), ((a,), None, "b")):
                clients.answers.clear()
                began = time.perf_counter()
                feed.publish([web(*backends)])
                await balancer.settled("web")
                acks.append(time.perf_counter() - began)
                await asyncio.sleep(0.3)
                failed += sum(name not in ("a", "b") for *_, name in clients.answers)
                if wanted:
                    first_new.append(
                        min(t for _, t, name in clients.answers if name == wanted) - began
                    )
                if gone:
                    sent = [t for t, _, name in clients.answers if name == gone]
                    last_old.append(max(0.0, max(sent, default=began) - began))
    finally:
        await clients.stop()
    show("change → first answer of the new instance", first_new)
    show("change → last request sent to the removed", last_old)
    show("change → acknowledged", acks)
    print(f"failed requests: {failed}")


async def new_services(feed: Feed, port: int, rounds: int, a: Endpoint) -> None:
    took = []
    for number in range(rounds):
        await asyncio.sleep(0.5)
        began = time.perf_counter()
        feed.publish([web(a), web(a, service=f"new-{number}")])
        while await ask(port, f"new-{number}.bench") != "a":
            await asyncio.sleep(0.001)
        took.append(time.perf_counter() - began)
    show("new service → first answer", took)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO if args.verbose else logging.CRITICAL)
    prefix = Path(tempfile.mkdtemp(prefix="wp-bench-"))
    prefix.chmod(0o755)
    try:
        uvloop.run(measure(args.binary, args.rounds, prefix))
    finally:
        shutil.rmtree(prefix, ignore_errors=True)


if __name__ == "__main__":
    main()
