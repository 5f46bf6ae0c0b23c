"""The client and the registrator against an engine that misbehaves, on a real unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from waypost.base.errors import Malformed, NotFound, Rejected, Unavailable
from waypost.drivers.docker.api import Docker, Endpoint, endpoint
from waypost.drivers.docker.mapping import HostFacts
from waypost.drivers.docker.registrator import Registrator, Settings

FACTS = HostFacts(node="n1", hostname="h1", ip="192.0.2.1")


class FakeEngine:
    """Answers from `containers`; `events` go to every open stream; `broken` is a status for every answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.containers: dict[str, Any] = {}
        self.broken = 0
        self.since: list[str | None] = []
        self.inspected: list[str] = []
        self._streams: list[web.StreamResponse] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/containers/json", self._list)
        app.router.add_get("/containers/{id}/json", self._inspect)
        app.router.add_get("/events", self._events)
        app.router.add_get("/_ping", self._ping)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path)).start()

    async def stop(self) -> None:
        self.hang_up()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def run(self, name: str, **state: Any) -> str:
        full = f"{name}{'0' * 60}"
        self.containers[full] = {
            "Id": full,
            "Name": f"/{name}",
            "Config": {"Image": name, "ExposedPorts": {"80/tcp": {}}},
            "State": {"Running": True, "StartedAt": "2026-01-01T00:00:00Z"} | state,
            "HostConfig": {"NetworkMode": "default"},
            "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "", "HostPort": "8000"}]}},
        }
        return full

    async def say(
        self, action: str, container_id: str, *, raw: bytes | None = None, **attributes: str
    ) -> None:
        event = {
            "Type": "container", "Action": action, "timeNano": 1_700_000_000_000_000_005,
            "Actor": {"ID": container_id, "Attributes": attributes},
        }  # fmt: skip
        for stream in self._streams:
            await stream.write(raw or json.dumps(event).encode() + b"\n")

    def hang_up(self) -> None:
        """End every event stream, as a dockerd that stops does."""
        self._streams.clear()  # their handlers return

    async def _ping(self, request: web.Request) -> web.Response:
        await self._fail(request)
        return web.Response(text="OK")

    async def _fail(self, request: web.Request) -> None:
        if self.broken:
            raise _make(self.broken)

    async def _list(self, request: web.Request) -> web.Response:
        await self._fail(request)
        running = [one for one in self.containers.values() if one["State"]["Running"]]
        return web.json_response(
            [{"Id": c["Id"], "Names": [c["Name"]], "State": "running"} for c in running]
        )

    async def _inspect(self, request: web.Request) -> web.Response:
        await self._fail(request)
        self.inspected.append(request.match_info["id"])
        found = self.containers.get(request.match_info["id"])
        if found is None:
            return web.json_response({"message": "No such container"}, status=404)
        return web.json_response(found)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        await self._fail(request)
        self.since.append(request.query.get("since"))
        stream = web.StreamResponse()
        await stream.prepare(request)
        self._streams.append(stream)
        while stream in self._streams:
            await asyncio.sleep(0.01)
        return stream


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(tmp_path / "d.sock")
    await engine.start()
    yield engine
    await engine.stop()


@contextlib.asynccontextmanager
async def registrator(
    fake: FakeEngine, registry: Any, **settings: Any
) -> AsyncIterator[Registrator]:
    one = Registrator(
        Docker(Endpoint(socket=str(fake.path)), timeout_s=0.5),
        registry,
        facts=FACTS,
        settings=Settings(**({"resync_s": 0} | settings)),
        rng=random.Random(1),
    )
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_stream_ends_and_what_happened_meanwhile(fake, registry):
    first = fake.run("first")
    async with registrator(fake, registry) as one:
        await one.ready()
        await fake.say("start", first)
        await asyncio.sleep(0.05)
        fake.hang_up()
        del fake.containers[first]
        fake.run("second")
        await registry.until(lambda r: list(r.instances) == ["h1:second:80"])
    assert fake.since == [None, "1700000000.000000006"]


async def test_odd_lines_and_unknown_containers(fake, registry):
    async with registrator(fake, registry) as one:
        await one.ready()
        for raw in (
            b"\n",
            b"{}\n",
            b"[1]\n",
            b"not json\n",
            b"\xff\xfe\n",
            b"x" * (2 << 20) + b"\n",
        ):
            await fake.say("", "", raw=raw)
        for action in ("start", "die", "kill", "destroy", "pause", "health_status: healthy"):
            await fake.say(action, "unknown")
        await fake.say("start", "../../etc")
        made = fake.run("web")
        await fake.say("start", made)
        await registry.until(lambda r: len(r.instances) == 1)


async def test_one_start_costs_one_inspect(fake, registry):
    for number in range(5):
        fake.run(f"other{number}")
    async with registrator(fake, registry) as one:
        await one.ready()
        fake.inspected.clear()
        made = fake.run("web")
        await fake.say("start", made)
        await registry.until(lambda r: "h1:web:80" in r.instances)
        assert fake.inspected == [made]
        await fake.say("die", made, exitCode="0")
        await registry.until(lambda r: "h1:web:80" not in r.instances)
        assert fake.inspected == [made]  # a death needs no question


async def test_broken_engine_keeps_what_is(fake, registry):
    made = fake.run("web")
    async with registrator(fake, registry, resync_s=0.05) as one:
        await one.ready()
        fake.broken = 500
        fake.containers.clear()
        await registry.never(lambda r: not r.instances, 0.5)
        fake.broken = 0
        await registry.until(lambda r: not r.instances)
    assert made in fake.inspected


async def test_engine_away_at_the_start(tmp_path, registry):
    fake = FakeEngine(tmp_path / "later.sock")
    fake.run("web")
    async with registrator(fake, registry):
        await asyncio.sleep(0.2)
        await fake.start()
        await registry.until(lambda r: len(r.instances) == 1)
    await fake.stop()


async def test_errors_are_ours(fake, tmp_path):
    async with Docker(Endpoint(socket=str(fake.path)), timeout_s=0.5) as docker:
        await docker.ping()
        with pytest.raises(NotFound, match="No such container"):
            await docker.inspect("nope")
        with pytest.raises(Malformed, match="not a container name"):
            await docker.inspect("../x")
        fake.broken = 503
        with pytest.raises(Unavailable, match="503"):
            await docker.ping()
        fake.broken = 400
        with pytest.raises(Rejected, match="is too old"):
            await docker.containers()
        with pytest.raises(Rejected):
            async for _ in docker.events():
                pass
    async with Docker(Endpoint(socket=str(tmp_path / "none"))) as docker:
        with pytest.raises(Unavailable, match="none"):
            await docker.ping()


async def test_over_tcp_with_a_version(fake):
    app = web.Application()

    async def version(request: web.Request) -> web.Response:
        return web.json_response({"Version": "29.0", "ApiVersion": "1.52", "path": request.path})

    app.router.add_get("/v1.44/version", version)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    env = {"DOCKER_HOST": f"tcp://127.0.0.1:{port}", "DOCKER_API_VERSION": "1.44"}
    try:
        async with Docker(endpoint(env)) as docker:
            assert (await docker.version()).api_version == "1.52"
    finally:
        await runner.cleanup()


def _make(status: int) -> web.HTTPException:
    body = json.dumps({"message": "client version 1.24 is too old"})
    kind = {
        400: web.HTTPBadRequest,
        500: web.HTTPInternalServerError,
        503: web.HTTPServiceUnavailable,
    }
    return kind[status](text=body)
