"""The HTTP client for etcd's gateway, against servers that say exactly these bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from waypost.store.etcd.http import BUFFER_BYTES, UNIX, Broken, Connections

HEADERS = {"Content-Type": "application/json"}

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers every request of a connection with `answers`, the last one over and over; `pieces` a write each."""

    def __init__(self, *answers: bytes, size: int = 1 << 16, closes: bool = False) -> None:
        self.answers = answers
        self.size = size
        self.closes = closes
        self.connections = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.requests.append(head + await reader.readexactly(size))
                answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
                for at in range(0, len(answer), self.size):
                    writer.write(answer[at : at + self.size])
                    await writer.drain()
                    if len(answer) > self.size:
                        await asyncio.sleep(0)
                if self.closes:
                    break


@contextlib.asynccontextmanager
async def asking(
    serve: Serve, *, socket: Path | None = None
) -> AsyncIterator[tuple[Connections, str]]:
    tasks: list[asyncio.Task[None]] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    if socket is None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        server = await asyncio.start_unix_server(accept, socket)
        url = f"{UNIX}{socket}"
    connections = Connections(tls=None, connect_s=5.0)
    try:
        yield connections, url
    finally:
        connections.close()
        server.close()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        await asyncio.sleep(0)  # the transports are gone


def answer(body: bytes, *, status: str = "200 OK", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status.encode(),
        more,
        len(body),
        body,
    )


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfirs\r\n7\r\nt, rest\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
async def test_answers_in_any_pieces_over_one_connection(size: int) -> None:
    server = Server(answer(b"one"), CHUNKED, answer(b"", status="503 Away"), size=size)
    async with asking(server.serve) as (connections, url):
        ask = [await connections.post(url, "/v3/x", b"{}", HEADERS) for _ in range(3)]
        assert ask == [(200, b"one"), (200, b"first, rest"), (503, b"")]
        assert server.connections == 1
        host = url.removeprefix("http://").encode()
        head = b"POST /v3/x HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n" % host
        assert server.requests[0] == head + b"Content-Length: 2\r\n\r\n{}"


async def test_asked_at_once_each_has_its_own_connection_and_they_are_used_again() -> None:
    server = Server(answer(b"x"))
    async with asking(server.serve) as (connections, url):
        for _ in range(2):
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(connections.post(url, "/", b"", HEADERS))
        assert (server.connections, len(server.requests)) == (5, 10)


async def test_a_connection_that_the_server_gives_up_is_not_used_again() -> None:
    server = Server(answer(b"x", more=b"Connection: close\r\n"))
    async with asking(server.serve) as (connections, url):
        for _ in range(3):
            assert await connections.post(url, "/", b"", HEADERS) == (200, b"x")
        assert server.connections == 3


async def test_a_connection_that_ends_while_nothing_is_asked_is_not_used_again() -> None:
    server = Server(answer(b"x"), closes=True)
    async with asking(server.serve) as (connections, url):
        for _ in range(3):
            assert await connections.post(url, "/", b"", HEADERS) == (200, b"x")
            await asyncio.sleep(0.02)
        assert server.connections == 3


async def test_what_nobody_asked_for_ends_the_connection() -> None:
    server = Server(answer(b"x") + b"HTTP/1.1 408 Late\r\n\r\n", answer(b"y"))
    async with asking(server.serve) as (connections, url):
        assert await connections.post(url, "/", b"", HEADERS) == (200, b"x")
        await asyncio.sleep(0.02)
        assert await connections.post(url, "/", b"", HEADERS) == (200, b"y")
        assert server.connections == 2


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", answer(b"whole")[:-2]])
async def test_an_answer_that_breaks_off_may_have_been_acted_upon(said: bytes) -> None:
    async with asking(Server(said, closes=True).serve) as (connections, url):
        with pytest.raises(Broken) as caught:
            await connections.post(url, "/", b"", HEADERS)
        assert caught.value.is_sent


async def test_what_is_not_http_is_no_answer() -> None:
    async with asking(Server(b"SSH-2.0-OpenSSH_9.2\r\n").serve) as (connections, url):
        with pytest.raises(Broken) as caught:
            await connections.post(url, "/", b"", HEADERS)
        assert caught.value.is_sent


async def test_a_server_that_is_not_there_got_nothing(tmp_path: Path) -> None:
    async with asking(Server(answer(b"")).serve) as (_, url):
        pass
    connections = Connections(tls=None, connect_s=1.0)
    for endpoint in (url, f"{UNIX}{tmp_path}/none"):
        with pytest.raises(Broken) as caught:
            await connections.post(endpoint, "/", b"", HEADERS)
        assert not caught.value.is_sent


async def test_a_socket(tmp_path: Path) -> None:
    server = Server(answer(b"here"))
    async with asking(server.serve, socket=tmp_path / "etcd:1") as (connections, url):
        for _ in range(2):
            assert await connections.post(url, "/", b"", HEADERS) == (200, b"here")
    assert server.connections == 1
    assert b"\r\nHost: localhost\r\n" in server.requests[0]


async def test_who_gives_up_waiting_leaves_no_connection_behind() -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                pass
        ended.set()

    async with asking(silent) as (connections, url):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connections.post(url, "/", b"", HEADERS)
        async with asyncio.timeout(5.0):
            await ended.wait()


async def test_a_stream_comes_as_it_is_said_and_may_break() -> None:
    go_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n")

    async with (
        asking(serve) as (connections, url),
        connections.stream(url, "/", b"", HEADERS) as found,
    ):
        assert found.status == 200
        chunks = found.chunks()
        assert await anext(chunks) == b"one"
        go_on.set()
        assert await anext(chunks) == b"two"
        with pytest.raises(Broken):
            await anext(chunks)


async def test_nothing_is_read_on_while_nobody_takes_it() -> None:
    piece, sent = b"1000\r\n" + b"x" * 4096 + b"\r\n", 0
    pieces = 16_384  # 64 MiB

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(pieces):
            writer.write(piece)
            await writer.drain()
            sent += 4096
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with asking(serve) as (connections, url):
        async with connections.stream(url, "/", b"", HEADERS) as found:
            chunks = found.chunks()
            got = len(await anext(chunks))
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.2)
            # The kernel's buffers of both ends hold some megabytes.
            assert sent < BUFFER_BYTES + 32 * 2**20
            async for chunk in chunks:
                got += len(chunk)
        assert got == pieces * 4096
