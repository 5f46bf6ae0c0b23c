"""The server over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from waypost.base.errors import Malformed, NotFound, Unavailable
from waypost.surfaces.http.cache import AnswerCache
from waypost.surfaces.http.message import Rendered, Request, Response, text_response
from waypost.surfaces.http.router import BodyLimit, Route, Router
from waypost.surfaces.http.server import Limits, Server, TcpEndpoint, UnixEndpoint

JSON = "application/json"


class Place:
    """Routes that let a test see what happens to a request."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()
        self.stream_closed = asyncio.Event()
        self.chunks_made = 0
        self.bigs = 0
        self.router = Router(
            [
                Route("/now", {"GET": self.now, "HEAD": self.now}),
                Route("/echo", {"PUT": self.echo}, limit=BodyLimit(20)),
                Route("/later/", {"GET": self.later, "PUT": self.later}, is_prefix=True),
                Route("/wait", {"GET": self.wait}),
                Route("/watch", {"GET": self.watch}),
                Route("/big", {"GET": self.big}),
                Route("/stream", {"GET": self.stream, "HEAD": self.stream}),
                Route("/endless", {"GET": self.endless}),
                Route("/broken", {"GET": self.broken}),
                Route("/raise/", {"GET": self.fail}, is_prefix=True),
                Route("/peer", {"GET": self.peer}),
            ]
        )

    def now(self, request: Request) -> Response:
        return Response(body=b"{}", content_type=JSON, headers=(("X-Consul-Index", "7"),))

    def big(self, request: Request) -> Response:
        self.bigs += 1
        return Response(body=b"0123456789" * 1000)

    def echo(self, request: Request) -> Response:
        return Response(body=b"<" + request.body + b">")

    async def later(self, request: Request) -> Response:
        await asyncio.sleep(0.01)
        return text_response(200, request.rest + request.body.decode())

    async def wait(self, request: Request) -> Response:
        self.entered.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return text_response(200, "released")

    async def watch(self, request: Request) -> Response:
        request.may_interrupt = True
        return await self.wait(request)

    def stream(self, request: Request) -> Response:
        return Response(stream=self._chunks(3), content_type="text/event-stream")

    async def _chunks(self, count: int) -> AsyncIterator[bytes]:
        for number in range(count):
            yield b"chunk %d\n" % number
            await asyncio.sleep(0)

    def endless(self, request: Request) -> Response:
        return Response(stream=self._endless())

    async def _endless(self) -> AsyncIterator[bytes]:
        self.entered.set()
        try:
            while True:
                self.chunks_made += 1
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            self.stream_closed.set()

    def broken(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            raise OSError("the source is gone")

        return Response(stream=chunks())

    def fail(self, request: Request) -> Response:
        if request.rest == "late":
            return self._fail_late()  # type: ignore[return-value]
        if request.rest == "malformed":
            raise Malformed("wait: not a duration")
        if request.rest == "header":
            return Response(headers=(("X", "a\r\nb"),))
        raise RuntimeError("a fault of ours")

    async def _fail_late(self) -> Response:
        await asyncio.sleep(0)
        raise NotFound("no such thing")

    def peer(self, request: Request) -> Response:
        p = request.peer
        return text_response(200, f"{p.listener} {p.address} {p.is_unix} {p.pid} {p.uid} {p.gid}")


@asynccontextmanager
async def served(place: Place, **more) -> AsyncIterator[Server]:
    endpoints = more.pop("endpoints", (TcpEndpoint("127.0.0.1", 0),))
    async with Server(place.router, endpoints, **more) as server:
        yield server


@asynccontextmanager
async def dialled(server: Server, *data: bytes):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port("http"))
    try:
        for piece in data:
            writer.write(piece)
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader, *, head: bool = False):
    """Read one answer: status, headers by lower-case name, body."""
    async with asyncio.timeout(5):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(lines[0].split()[1])
        headers = {n.lower(): v.strip() for n, _, v in (x.partition(":") for x in lines[1:] if x)}
        if head:
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
            return status, headers, body
        return status, headers, await reader.readexactly(int(headers.get("content-length", 0)))


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


async def fetch(server: Server, request: bytes):
    async with dialled(server, request) as (reader, _):
        return await answer(reader)


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def test_a_connection_answers_many() -> None:
    async with served(Place()) as server, dialled(server) as (reader, writer):
        for _ in range(3):  # the second and third come from the memo
            writer.write(get("/now"))
            status, headers, body = await answer(reader)
            assert (status, body) == (200, b"{}")
            assert headers["x-consul-index"] == "7"
            assert headers["content-type"] == JSON
            assert headers["vary"] == "Accept-Encoding"
            assert headers["date"].endswith(" GMT")
            assert "connection" not in headers
        assert len(server.memo) == 1
        writer.write(get("/now", method="HEAD"))
        status, headers, _ = await answer(reader, head=True)
        assert (status, headers["content-length"]) == (200, "2")
        writer.write(get("/now", "Connection: close"))
        status, headers, _ = await answer(reader)
        assert headers["connection"] == "close"
        assert await rest(reader) == b""


async def test_http_1_0() -> None:
    async with served(Place()) as server:
        async with dialled(server, b"GET /now HTTP/1.0\r\n\r\n") as (reader, _):
            assert (await answer(reader))[0] == 200
            assert await rest(reader) == b""
        keep = b"GET /now HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        async with dialled(server, keep) as (reader, writer):
            assert (await answer(reader))[1]["connection"] == "keep-alive"
            writer.write(b"GET /stream HTTP/1.0\r\n\r\n")
            text = await rest(reader)
            assert text.endswith(b"\r\n\r\nchunk 0\nchunk 1\nchunk 2\n")
            assert b"chunked" not in text


async def test_pipelined_answers_come_in_order() -> None:
    count = 60  # more than may wait, so reading pauses and resumes
    paths = [f"/later/{n}" if n % 3 else "/now" for n in range(count)]
    async with served(Place()) as server, dialled(server) as (reader, writer):
        for path in paths:
            writer.write(get(path))
            if path.endswith("7"):
                await asyncio.sleep(0.001)
        for path in paths:
            _, _, body = await answer(reader)
            assert body == (b"{}" if path == "/now" else path.removeprefix("/later/").encode())


async def test_who_takes_no_answers_gets_no_more_of_them() -> None:
    place = Place()
    count = 4000  # 40 MB of answers
    async with served(place) as server, dialled(server) as (reader, writer):
        writer.write(get("/big") * count)
        made = -1
        while made != place.bigs:
            made = place.bigs
            await asyncio.sleep(0.2)
        assert 0 < made < count // 2
        for _ in range(count):
            assert len((await answer(reader))[2]) == 10000
        writer.write(get("/now"))
        assert (await answer(reader))[2] == b"{}"


async def test_a_half_closed_client_gets_every_answer() -> None:
    request = get("/later/1") + get("/now") + get("/later/2")
    async with served(Place()) as server, dialled(server, request) as (reader, writer):
        writer.write_eof()
        assert [(await answer(reader))[2] for _ in range(3)] == [b"1", b"{}", b"2"]
        assert await rest(reader) == b""


async def test_split_at_every_byte() -> None:
    text = (
        b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        b"PUT /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nde\r\n1;x=y\r\nf\r\n0\r\nTrailer: t\r\n\r\n" + get("/now")
    )
    async with served(Place()) as server:
        for at in range(1, len(text)):
            async with dialled(server, text[:at]) as (reader, writer):
                await asyncio.sleep(0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, 1)
                await asyncio.sleep(0.001)
                writer.write(text[at:])
                bodies = [(await answer(reader))[2] for _ in range(3)]
                assert bodies == [b"<abc>", b"<def>", b"{}"], at
        async with dialled(server) as (reader, writer):
            for at in range(len(text)):
                writer.write(text[at : at + 1])
                await asyncio.sleep(0.0005)
            bodies = [(await answer(reader))[2] for _ in range(3)]
            assert bodies == [b"<abc>", b"<def>", b"{}"]


async def test_expect_continue() -> None:
    head = b"PUT /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    async with served(Place()) as server:
        async with dialled(server, head % 3) as (reader, writer):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"abc")
            assert (await answer(reader))[2] == b"<abc>"
            writer.write(get("/later/1") + head % 1)  # the second waits for its turn
            assert (await answer(reader))[2] == b"1"
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"z")
            assert (await answer(reader))[2] == b"<z>"
        async with dialled(server, head % 21) as (reader, _):
            assert (await answer(reader))[0] == 413


@pytest.mark.parametrize(
    ("headers", "body", "size"),
    [
        ("Content-Length: 1000000", b"x" * 1000000, 1000000),
        ("Content-Length: 21", b"", 21),
        ("Transfer-Encoding: chunked", b"15\r\n" + b"x" * 21 + b"\r\n0\r\n\r\n", 21),
    ],
)
async def test_too_large_a_body(headers: str, body: bytes, size: int) -> None:
    async with served(Place()) as server:
        request = get("/echo", headers, method="PUT") + body
        async with dialled(server, request) as (reader, _):
            status, got, text = await answer(reader)
            assert (status, got["connection"]) == (413, "close")
            assert text.decode() == f"Request body({size} bytes) too large, max size: 20 bytes."
        assert (await fetch(server, get("/now")))[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /now\r\n\r\n", 400),
        (b"GET /now HTTP/3.7\r\n\r\n", 400),
        (b"GET /now HTTP/1.1\r\n\r\n", 400),
        (b"GET /now HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /now HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"BREW /now HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (
            b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"PUT /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /now HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 70000, 431),
        (b"GET /now HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70000, 431),
    ],
)
async def test_bad_requests_get_an_answer_and_a_close(data: bytes, status: int) -> None:
    async with served(Place()) as server:
        async with dialled(server, data) as (reader, _):
            got, headers, _ = await answer(reader)
            assert got == status
            assert headers["connection"] == "close"
            assert await rest(reader) == b""
        assert (await fetch(server, get("/now")))[0] == 200


async def test_a_bad_request_waits_for_the_good_one_before() -> None:
    data = get("/later/1") + b"\0\0\0 nonsense\r\n\r\n"
    async with served(Place()) as server, dialled(server, data) as (reader, _):
        assert (await answer(reader))[2] == b"1"
        assert (await answer(reader))[0] == 400
        assert await rest(reader) == b""


async def test_upgrade_is_answered_as_usual() -> None:
    request = get("/now", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
    async with served(Place()) as server, dialled(server, request) as (reader, _):
        status, headers, body = await answer(reader)
        assert (status, headers["connection"], body) == (200, "close", b"{}")


async def test_endless_trailers_are_cut_off() -> None:
    start = get("/echo", "Transfer-Encoding: chunked", method="PUT") + b"0\r\n"
    async with served(Place()) as server, dialled(server, start) as (reader, writer):
        for _ in range(200):
            writer.write(b"X: " + b"y" * 1000 + b"\r\n")
        assert (await answer(reader))[0] == 400


async def test_gzip() -> None:
    async with served(Place()) as server:
        status, headers, body = await fetch(server, get("/big", "Accept-Encoding: gzip"))
        assert headers["content-encoding"] == "gzip"
        assert gzip.decompress(body) == b"0123456789" * 1000
        status, headers, body = await fetch(server, get("/big"))
        assert "content-encoding" not in headers
        assert len(body) == 10000
        status, headers, body = await fetch(server, get("/now", "Accept-Encoding: gzip"))
        assert (status, body) == (200, b"{}")


async def test_errors_become_answers(caplog) -> None:
    async with served(Place()) as server, dialled(server) as (reader, writer):
        writer.write(get("/raise/malformed"))
        status, headers, body = await answer(reader)
        assert (status, body) == (400, b"wait: not a duration")
        assert headers["content-type"] == "text/plain; charset=utf-8"
        writer.write(get("/raise/late"))
        assert (await answer(reader))[::2] == (404, b"no such thing")
        assert not caplog.records
        writer.write(get("/raise/fault?token=s3cr3t"))
        assert (await answer(reader))[0] == 500
        writer.write(get("/raise/header"))
        assert (await answer(reader))[0] == 500
        writer.write(get("/now"))  # the connection goes on
        assert (await answer(reader))[0] == 200
    assert "a fault of ours" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize("path", ["/wait", "/watch"])
async def test_a_client_that_leaves_cancels_the_handler(path: str) -> None:
    place = Place()
    async with served(place) as server, asyncio.timeout(5):
        async with dialled(server, get(path)):
            await place.entered.wait()
        await place.cancelled.wait()
        while server.connections:
            await asyncio.sleep(0.01)


async def test_a_client_that_only_stopped_sending_gets_its_answer() -> None:
    async with served(Place()) as server, dialled(server, get("/later/1")) as (reader, writer):
        writer.write_eof()
        assert (await answer(reader))[2] == b"1"
        assert await rest(reader) == b""


async def test_stream() -> None:
    async with served(Place()) as server, dialled(server, get("/stream")) as (reader, writer):
        status, headers, body = await answer(reader)
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert body == b"chunk 0\nchunk 1\nchunk 2\n"
        writer.write(get("/stream", method="HEAD") + get("/now"))
        assert (await answer(reader, head=True))[0] == 200
        assert (await answer(reader))[2] == b"{}"


async def test_a_stream_waits_for_its_reader_and_ends_with_it() -> None:
    place = Place()
    async with served(place) as server, asyncio.timeout(10):
        async with dialled(server, get("/endless")) as (reader, _):
            await place.entered.wait()
            made = -1
            while made != place.chunks_made:
                made = place.chunks_made
                await asyncio.sleep(0.2)
            assert made < 500  # 32 MB would have filled every buffer
            for _ in range(made):
                await reader.readexactly(65536)
            while place.chunks_made <= made:
                await asyncio.sleep(0.01)
        await place.stream_closed.wait()


async def test_a_stream_that_fails_breaks_off(caplog) -> None:
    async with served(Place()) as server, dialled(server, get("/broken")) as (reader, _):
        text = await rest(reader)
        assert not text.endswith(b"0\r\n\r\n")
    assert "the source is gone" in caplog.text


async def test_fast_answers() -> None:
    place = Place()
    index = 1
    cache: AnswerCache[int] = AnswerCache(lambda made_at: made_at == index)
    calls = 0

    def fast(head, peer):
        nonlocal calls
        calls += 1
        return cache.get(head.target) if head.is_plain and peer.is_anonymous else None

    cache.put(b"/now", Rendered(Response(body=b"cached" * 400)), validity=1)
    async with served(place, fast=fast) as server, dialled(server) as (reader, writer):
        wanted = [
            (get("/now"), b"{}"),  # the first time it is parsed
            (get("/now"), b"cached" * 400),
            (get("/now", "X-Consul-Token: a"), b"{}"),
            (get("/now", "X-Consul-Token: a"), b"{}"),
        ]
        for request, body in wanted:
            writer.write(request)
            assert (await answer(reader))[2] == body
        assert calls == 2
        for _ in range(2):
            writer.write(get("/now", "Accept-Encoding: gzip"))
            _, headers, body = await answer(reader)
        assert headers["content-encoding"] == "gzip"
        assert gzip.decompress(body) == b"cached" * 400
        index = 2
        writer.write(get("/now"))
        assert (await answer(reader))[2] == b"{}"


async def test_a_fast_hook_that_fails_costs_only_its_speed(caplog) -> None:
    def fast(head, peer):
        raise RuntimeError("the hook is broken")

    async with served(Place(), fast=fast) as server, dialled(server) as (reader, writer):
        for _ in range(2):
            writer.write(get("/now"))
            assert (await answer(reader))[2] == b"{}"
    assert "the hook is broken" in caplog.text


async def test_too_many_connections_of_one_address(caplog) -> None:
    limits = Limits(connections_per_address=2, linger_s=0.1)
    async with served(Place(), limits=limits) as server:
        async with (
            dialled(server, get("/now")) as (one, _),
            dialled(server, get("/now")) as (two, _),
        ):
            assert (await answer(one))[0] == 200
            assert (await answer(two))[0] == 200
            for _ in range(3):
                async with dialled(server, get("/now")) as (reader, _):
                    status, _, body = await answer(reader)
                    assert status == 429
                    assert body == (
                        b"Your IP is issuing too many concurrent connections, "
                        b"please rate limit your calls"
                    )
                    assert await rest(reader) == b""
        async with asyncio.timeout(5):
            while server.connections:
                await asyncio.sleep(0.01)
        assert (await fetch(server, get("/now")))[0] == 200
    assert len([r for r in caplog.records if "more than 2 connections" in r.message]) == 1


async def test_too_many_connections_in_all() -> None:
    limits = Limits(connections=1, linger_s=0.1)
    async with served(Place(), limits=limits) as server, dialled(server, get("/now")) as (one, _):
        assert (await answer(one))[0] == 200
        assert (await fetch(server, get("/now")))[0] == 503


def put(path: str, body: bytes, *, length: int, chunked: bool = False) -> bytes:
    """Return a PUT with a part of its body."""
    if chunked:
        field, body = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (len(body), body)
    else:
        field = f"Content-Length: {length}"
    return get(path, field, method="PUT") + body


async def test_large_bodies_are_few_at_once() -> None:
    limits = Limits(large_body_bytes=10, large_bodies=2, linger_s=0.1)
    place = Place()
    async with served(place, limits=limits) as server, asyncio.timeout(15):
        async with (
            dialled(server, put("/echo", b"12345", length=15)) as (one, to_one),
            dialled(server, put("/echo", b"x" * 11, length=0, chunked=True)) as (_, to_two),
        ):
            await asyncio.sleep(0.05)
            for third in (
                put("/echo", b"", length=11),
                put("/echo", b"x" * 11, length=0, chunked=True),
                put("/now", b"", length=11),
            ):
                async with dialled(server, third) as (reader, _):
                    status, got, text = await answer(reader)
                    assert (status, got["connection"]) == (503, "close")
                    assert text == b"too many large requests at once, try again later"
            # Small ones are nobody's business.
            assert (await fetch(server, put("/echo", b"x" * 10, length=10)))[0] == 200
            to_one.write(b"67890abcde")
            assert (await answer(one))[2] == b"<1234567890abcde>"
            # While its handler runs, a body counts.
            to_one.write(get("/wait", "Content-Length: 20") + b"y" * 20)
            await place.entered.wait()
            assert (await fetch(server, put("/echo", b"", length=11)))[0] == 503
            place.release.set()
            assert (await answer(one))[2] == b"released"
            assert (await fetch(server, put("/echo", b"z" * 11, length=11)))[2] == b"<zzzzzzzzzzz>"
            to_two.transport.abort()
        assert (await fetch(server, put("/echo", b"z" * 11, length=11)))[0] == 200
        # Whoever goes away at any moment gives his place back.
        for part in (0, 5, 11):
            for _ in range(3):
                async with dialled(server, put("/later/1", b"z" * part, length=11)) as (_, writer):
                    await asyncio.sleep(0.01)
                    writer.transport.abort()
        await asyncio.sleep(0.05)
        for _ in range(3):
            assert (await fetch(server, put("/echo", b"z" * 11, length=11)))[0] == 200


async def test_slow_clients_are_let_go() -> None:
    limits = Limits(head_s=0.2, body_s=0.2, idle_s=0.2, write_s=0.2, linger_s=0.2)
    place = Place()
    async with served(place, limits=limits) as server, asyncio.timeout(15):
        async with dialled(server, b"GET /") as (reader, writer):
            drip = asyncio.create_task(_drip(writer, b"x"))
            assert (await answer(reader))[0] == 408
            assert await rest(reader) == b""
            await drip
        body = get("/echo", "Content-Length: 5", method="PUT") + b"ab"
        async with dialled(server, body) as (reader, _):
            assert (await answer(reader))[0] == 408
        async with dialled(server, get("/now")) as (reader, _):
            assert (await answer(reader))[0] == 200
            assert await rest(reader) == b""
        async with dialled(server, get("/wait")) as (reader, _):  # waiting is not idling
            await asyncio.sleep(2.5)
            place.release.set()
            assert (await answer(reader))[2] == b"released"
        async with dialled(server, get("/endless")):
            await place.stream_closed.wait()


async def _drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for _ in range(12):
        await asyncio.sleep(0.1)
        writer.write(data)


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    place = Place()
    async with served(place, endpoints=(UnixEndpoint(str(path), mode=0o660),)) as server:
        assert path.stat().st_mode & 0o777 == 0o660
        assert server.addresses == (f"unix://{path}",)
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(get("/peer"))
        _, _, body = await answer(reader)
        assert body.decode() == f"unix  True {os.getpid()} {os.getuid()} {os.getgid()}"
        writer.close()
        await writer.wait_closed()
        with pytest.raises(Unavailable, match=f"listen unix {path}: bind: address already in use"):
            async with served(Place(), endpoints=(UnixEndpoint(str(path)),)):
                pass
        assert path.exists()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with served(Place(), endpoints=(UnixEndpoint(str(path)),)):
        pass
    path.write_text("precious")
    with pytest.raises(Unavailable, match="not a socket"):
        async with served(Place(), endpoints=(UnixEndpoint(str(path)),)):
            pass
    assert path.read_text() == "precious"


async def test_addresses() -> None:
    both = (TcpEndpoint("127.0.0.1", 0), TcpEndpoint("::1", 0, name="six"))
    async with served(Place(), endpoints=both) as server:
        assert server.addresses == (
            f"127.0.0.1:{server.port('http')}",
            f"[::1]:{server.port('six')}",
        )
        reader, writer = await asyncio.open_connection("::1", server.port("six"))
        writer.write(get("/peer"))
        assert (await answer(reader))[2].startswith(b"six ::1 False None")
        writer.close()
        await writer.wait_closed()
        with pytest.raises(KeyError):
            server.port("https")
        taken = f"127.0.0.1:{server.port('http')}"
        with pytest.raises(Unavailable) as caught:
            async with served(Place(), endpoints=(TcpEndpoint("127.0.0.1", server.port("http")),)):
                pass
        assert str(caught.value) == f"listen tcp {taken}: bind: address already in use"
    with pytest.raises(Malformed, match=r"listen tcp: no\.such.host.invalid"):
        async with served(Place(), endpoints=(TcpEndpoint("no.such.host.invalid", 1),)):
            pass


async def test_a_mapped_address_counts_as_ipv4() -> None:
    async with served(Place(), endpoints=(TcpEndpoint("::", 0),)) as server:
        assert (await fetch(server, get("/peer")))[2].startswith(b"http 127.0.0.1 False")


async def test_stop_lets_handlers_end_and_interrupts_waits() -> None:
    place = Place()
    server = Server(
        place.router,
        [TcpEndpoint("127.0.0.1", 0)],
        grace_s=5,
        interrupted=lambda _: text_response(500, "leaving"),
    )
    async with server, asyncio.timeout(10):
        async with (
            dialled(server, get("/wait")) as (slow, _),
            dialled(server) as (idle, _),
            dialled(server, get("/endless")) as (endless, _),
        ):
            await place.entered.wait()
            async with dialled(server, get("/watch")) as (watch, _):
                await asyncio.sleep(0.1)
                stopping = asyncio.create_task(server.stop())
                status, headers, body = await answer(watch)
                assert (status, body) == (500, b"leaving")
                assert headers["connection"] == "close"
            assert await rest(idle) == b""
            assert not stopping.done()
            place.release.set()
            assert (await answer(slow))[2] == b"released"
            assert len(await rest(endless)) > 0
            await stopping
        assert server.connections == 0


async def test_stop_does_not_wait_for_ever() -> None:
    place = Place()
    server = Server(place.router, [TcpEndpoint("127.0.0.1", 0)], grace_s=0.1)
    async with server, dialled(server, get("/wait")) as (reader, _):
        await place.entered.wait()
        async with asyncio.timeout(3):
            await server.stop()
        assert place.cancelled.is_set()
        assert (await answer(reader))[0] == 503


async def test_run_ends_by_cancellation() -> None:
    server = Server(Place().router, [TcpEndpoint("127.0.0.1", 0)])
    task = asyncio.create_task(server.run())
    while not server.addresses:
        await asyncio.sleep(0.01)
    port = server.port("http")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_debug_log_names_each_request(caplog) -> None:
    caplog.set_level(logging.DEBUG, logger="waypost")
    async with served(Place()) as server:
        await fetch(server, get("/now?token=s3cr3t"))
    assert "127.0.0.1 GET /now?token=<hidden>: 200 in" in caplog.text
    assert "s3cr3t" not in caplog.text


PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            get("/now"),
            get("/later/1"),
            get("/stream"),
            get("/echo", "Content-Length: 3", method="PUT"),
            get("/echo", "Transfer-Encoding: chunked", method="PUT"),
            get("/echo", "Expect: 100-continue", "Content-Length: 2", method="PUT"),
            get("/now", "Upgrade: websocket", "Connection: upgrade"),
            get("*", method="OPTIONS"),
            get("host:1", method="CONNECT"),
            b"3\r\nabc\r\n",
            b"0\r\n\r\n",
            b"GET ",
            b"/%ff HTTP/1.1\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"Host: x\r\n",
            b"Content-Length: 99999999999999999999999\r\n\r\n",
        ]
    ),
)


def test_any_bytes_never_end_the_server(caplog) -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(PIECES, max_size=8))
    def feed(pieces: list[bytes]) -> None:
        runner.run(one(pieces))

    async def one(pieces: list[bytes]) -> None:
        async with dialled(server) as (reader, writer):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            with suppress(OSError):  # the server may have closed already
                writer.write_eof()
            text = await rest(reader)
            assert text == b"" or text.startswith(b"HTTP/1.1 ")
        assert (await fetch(server, get("/now")))[::2] == (200, b"{}")

    with asyncio.Runner() as runner:
        server = Server(Place().router, [TcpEndpoint("127.0.0.1", 0)])
        runner.run(server.__aenter__())
        try:
            feed()
        finally:
            runner.run(server.stop())
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR], caplog.text
