"""A proxy before etcd that loses answers, so that outcomes are not known; and keeps what was sent, to send it again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class LossyProxy:
    """Speaks HTTP/1.1 with Content-Length from the client; whatever etcd answers is passed on byte by byte."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname, parts.port
        self.url = ""
        self.sent: list[tuple[str, bytes]] = []
        self.lose = 0
        """So many answers to transactions will be lost, after etcd has done what was asked."""
        self.slow_s = 0.0
        """For each 64 KiB of an answer."""
        self.hold: asyncio.Event | None = None
        """Transactions wait here before they are passed on, and on return their senders have gone."""
        self.held: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LossyProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while await self._exchange(reader, writer):
                pass
        except (
            OSError,
            asyncio.IncompleteReadError,
            asyncio.CancelledError,
        ):  # asyncio logs a cancelled handler
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        (length,) = [
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ]
        body = await reader.readexactly(length)
        self.sent.append((path, body))
        if path == "/v3/kv/txn" and self.hold is not None:
            self.held.append(body)
            return False
        from_etcd, to_etcd = await asyncio.open_connection(self._host, self._port)
        try:
            to_etcd.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
            lost = path == "/v3/kv/txn" and self.lose > 0
            if lost:
                self.lose -= 1
                await from_etcd.read()
                return False
            while data := await from_etcd.read(65536):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(self.slow_s * len(data) / 65536)
        finally:
            to_etcd.close()
        return False
