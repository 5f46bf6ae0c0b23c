"""Which HTTP server: uvicorn, granian (ASGI and RSGI) or the protocol in `waypost.surfaces.http`.

The same work in each: match a route, ask a gate, answer 1 KB of JSON with Consul's headers. `hit` is
an anonymous GET that the answer cache knows; `token` carries a token header, so that routing, the gate and
the building of the answer are done each time. Rounds are interleaved, since the machine may be noisy.

    python benchmarks/bench_http_servers.py [--rounds 5] [--seconds 2] [--waiters 10000]
    python benchmarks/bench_http_servers.py --tls
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from waypost.surfaces.http.cache import AnswerCache
from waypost.surfaces.http.message import Head, Peer, Rendered, Request, Response
from waypost.surfaces.http.router import Route, Router
from waypost.surfaces.http.server import Limits, OpenTls, Server, TcpEndpoint

KINDS = ("own", "uvicorn", "granian-asgi", "granian-rsgi")
TLS_KINDS = ("tls-ssl", "tls-open")
"""The own server behind Python's ssl, and behind pyOpenSSL (which lets bad client certificates through)."""
TARGET = "/v1/health/service/web?passing"
BODY = json.dumps(
    [{"Node": f"n{i}", "Service": "web", "Port": 8000 + i} for i in range(20)]
).encode()
INDEX = 42
HEADERS = (
    ("X-Consul-Index", str(INDEX)),
    ("X-Consul-Knownleader", "true"),
    ("X-Consul-Lastcontact", "0"),
    ("X-Consul-Effective-Consistency", "leader"),
)
RULES = {("GET", "/v1/health/service/"), ("GET", "/wait"), ("PUT", "/wake")}
PATHS = {"/wait": "/wait", "/wake": "/wake"}


def allowed(method: str, route: str, token: str | None) -> bool:
    """Stand in for the gate: one call with the attributes, one look-up."""
    return (method, route) in RULES and token != "bad"


# -- own -----------------------------------------------------------------------------------------------


def tls_of(kind: str) -> ssl.SSLContext | OpenTls | None:
    if kind == "own":
        return None
    folder = Path(tempfile.mkdtemp())
    files = [str(folder / "cert.pem"), str(folder / "key.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=localhost", "-days", "1", "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    if kind == "tls-open":
        return OpenTls(certificate_file=files[0], key_file=files[1])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


async def serve_own(port: int, kind: str) -> None:
    cache: AnswerCache[int] = AnswerCache(lambda index: index == INDEX)
    woken = asyncio.Event()

    def health(request: Request) -> Rendered:
        if not allowed("GET", "/v1/health/service/", request.headers.get("x-consul-token")):
            raise PermissionError
        answer = Rendered(Response(200, BODY, "application/json", HEADERS))
        if request.head.is_plain:
            cache.put(request.target, answer, validity=INDEX)
        return answer

    async def wait(request: Request) -> Response:
        await woken.wait()
        return Response(200, BODY, "application/json", HEADERS)

    def wake(request: Request) -> Response:
        woken.set()
        return Response()

    def fast(head: Head, peer: Peer) -> Rendered | None:
        return cache.get(head.target) if head.is_plain and peer.is_anonymous else None

    router = Router(
        [
            Route("/v1/health/service/", {"GET": health}, is_prefix=True),
            Route("/wait", {"GET": wait}),
            Route("/wake", {"PUT": wake}),
        ]
    )
    limits = Limits(connections_per_address=100000, connections=100000)
    endpoint = TcpEndpoint("127.0.0.1", port, "bench", tls_of(kind))
    await Server(router, [endpoint], fast=fast, limits=limits).run()


# -- ASGI and RSGI -------------------------------------------------------------------------------------

_asgi_cache: dict[bytes, tuple[int, list[tuple[bytes, bytes]], bytes]] = {}
_woken: asyncio.Event | None = None


def route_of(path: str) -> str:
    if path.startswith("/v1/health/service/"):
        return "/v1/health/service/"
    return PATHS[path]


async def _route(path: str) -> bytes:
    global _woken  # noqa: PLW0603 - an event needs the running loop
    if path == "/wait":
        _woken = _woken or asyncio.Event()
        await _woken.wait()
    elif path == "/wake":
        assert _woken is not None
        _woken.set()
        return b""
    return BODY


async def asgi(scope, receive, send) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    key = scope["raw_path"] + b"?" + scope["query_string"]
    token = next((v for n, v in scope["headers"] if n == b"x-consul-token"), None)
    entry = _asgi_cache.get(key) if token is None else None
    if entry is None or entry[0] != INDEX:
        path = scope["path"]
        route = route_of(path)
        if not allowed(scope["method"], route, None if token is None else token.decode()):
            raise PermissionError
        body = await _route(path)
        headers = [(n.lower().encode(), v.encode()) for n, v in HEADERS]
        headers += [
            (b"content-type", b"application/json"),
            (b"vary", b"accept-encoding"),
            (b"content-length", str(len(body)).encode()),
        ]
        entry = (INDEX, headers, body)
        if token is None and route == "/v1/health/service/":
            _asgi_cache[key] = entry
    await send({"type": "http.response.start", "status": 200, "headers": entry[1]})
    await send({"type": "http.response.body", "body": entry[2]})


_rsgi_cache: dict[tuple[str, str], tuple[int, list[tuple[str, str]], bytes]] = {}


class Rsgi:
    async def __rsgi__(self, scope, proto) -> None:
        key = (scope.path, scope.query_string)
        token = scope.headers.get("x-consul-token")
        entry = _rsgi_cache.get(key) if token is None else None
        if entry is None or entry[0] != INDEX:
            route = route_of(scope.path)
            if not allowed(scope.method, route, token):
                raise PermissionError
            body = await _route(scope.path)
            headers = [(n.lower(), v) for n, v in HEADERS]
            headers += [("content-type", "application/json"), ("vary", "accept-encoding")]
            entry = (INDEX, headers, body)
            if token is None and route == "/v1/health/service/":
                _rsgi_cache[key] = entry
        proto.response_bytes(200, entry[1], entry[2])


rsgi = Rsgi()


# -- measuring -----------------------------------------------------------------------------------------


def serve(kind: str, port: int) -> None:
    if kind == "own" or kind in TLS_KINDS:
        uvloop.run(serve_own(port, kind))
    elif kind == "uvicorn":
        import uvicorn

        uvicorn.run(
            asgi, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False,
            log_level="error", backlog=4096,
        )  # fmt: skip
    else:
        from granian import Granian

        interface = kind.partition("-")[2]
        sys.path.insert(0, str(Path(__file__).parent))
        Granian(
            f"bench_http_servers:{interface}", address="127.0.0.1", port=port, interface=interface,
            loop="uvloop", log_enabled=False, workers=1, backlog=4096, backpressure=20000,
            websockets=False, http="1",
        ).serve()  # fmt: skip


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(kind: str) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind, "--port", str(port)], start_new_session=True
    )
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process, port
    raise SystemExit(f"{kind} does not start")


def stop(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rss_mb(process: subprocess.Popen[bytes]) -> float:
    """Sum over the process group's members."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == process.pid:
                pages = int((entry / "statm").read_text().split()[1])
                total += pages * resource.getpagesize()
        except (OSError, ProcessLookupError):
            continue
    return total / 2**20


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """User and system time of the process group's members."""
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == process.pid:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except (OSError, ProcessLookupError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def wrk(port: int, *, seconds: int, token: bool, scheme: str) -> tuple[float, int]:
    """Return requests a second and how many there were."""
    command = ["wrk", "-t1", "-c64", f"-d{seconds}s"]
    if token:
        command += ["-H", "X-Consul-Token: 8f246b77-f3e1-ff88-5b48-8ec93abf3e05"]
    out = subprocess.run(
        [*command, f"{scheme}://127.0.0.1:{port}{TARGET}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if "Non-2xx" in out:
        raise SystemExit(out)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", out)
    count = re.search(r"(\d+) requests in", out)
    assert rate
    assert count
    return float(rate.group(1)), int(count.group(1))


class Waiter(asyncio.Protocol):
    """A client that counts itself out when its answer is complete."""

    def __init__(self, left: list[int], done: asyncio.Future[None]) -> None:
        self.left = left
        self.done = done
        self.size = 0

    def connection_made(self, transport) -> None:
        transport.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        if data.endswith(BODY[-20:]):
            self.left[0] -= 1
            if not self.left[0]:
                self.done.set_result(None)


async def _waiters(port: int, count: int, process: subprocess.Popen[bytes]) -> tuple[float, float]:
    loop = asyncio.get_running_loop()
    before = rss_mb(process)
    left = [count]
    done = loop.create_future()
    transports = []
    for _ in range(count):
        transport, _ = await loop.create_connection(lambda: Waiter(left, done), "127.0.0.1", port)
        transports.append(transport)
    await asyncio.sleep(1)
    after = rss_mb(process)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    begin = time.monotonic()
    writer.write(b"PUT /wake HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    async with asyncio.timeout(60):
        await done
    took_ms = (time.monotonic() - begin) * 1e3
    for transport in (*transports, writer):
        transport.close()
    await asyncio.sleep(0.5)
    return (after - before) * 1024 / count, took_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--waiters", type=int, default=10000)
    parser.add_argument("--serve", choices=KINDS + TLS_KINDS)
    parser.add_argument("--tls", action="store_true", help="compare the two ways to TLS instead")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if args.serve:
        serve(args.serve, args.port)
        return
    rates: dict[tuple[str, str], list[float]] = {}
    costs_us: dict[tuple[str, str], list[float]] = {}
    kinds = TLS_KINDS if args.tls else KINDS
    scheme = "https" if args.tls else "http"
    servers = {kind: start(kind) for kind in kinds}
    try:
        for _ in range(args.rounds):
            for case in ("hit", "token"):
                for kind, (process, port) in servers.items():
                    before_s = cpu_s(process)
                    rate, count = wrk(
                        port, seconds=args.seconds, token=case == "token", scheme=scheme
                    )
                    cost_us = (cpu_s(process) - before_s) / count * 1e6
                    costs_us.setdefault((kind, case), []).append(cost_us)
                    rates.setdefault((kind, case), []).append(rate)
        print(
            f"{'server':14} {'case':6} {'median/s':>9} {'1st is':>7}  {'min..max':>15}  CPU us  RSS MB"
        )
        for case in ("hit", "token"):
            for kind, (process, _) in servers.items():
                values = rates[kind, case]
                pairs = zip(rates[kinds[0], case], values, strict=True)
                ratio = statistics.median(first / other for first, other in pairs)
                print(
                    f"{kind:14} {case:6} {statistics.median(values):9.0f} {ratio:6.2f}x  "
                    f"{min(values):7.0f}..{max(values):.0f}  "
                    f"{statistics.median(costs_us[kind, case]):6.1f}  {rss_mb(process):5.1f}"
                )
        if args.waiters and not args.tls:
            print(
                f"{args.waiters} idle waiters: KB a waiter, ms from the change to the last answer"
            )
            for kind, (process, port) in servers.items():
                size_kb, took_ms = uvloop.run(_waiters(port, args.waiters, process))
                print(f"{kind:14} {size_kb:6.1f} KB {took_ms:7.0f} ms")
    finally:
        for process, _ in servers.values():
            stop(process)


if __name__ == "__main__":
    main()
