"""Client of nginx's control socket: which generation answers, new endpoints for one service, hosts told early."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from waypost.base.errors import Unavailable
from waypost.drivers.nginx.backends import Endpoint
from waypost.drivers.nginx.settings import Listen

_LIST_MAX = 512
"""Entries of one list. Longer ones (many instances, or weights that need many repetitions) travel by DNS only."""


class Control:
    """Speaks HTTP over the socket at `path`, one connection a request. Cancel-safe."""

    def __init__(self, path: Path, *, timeout_s: float = 1.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def generation(self) -> int:
        """Return the generation of the configuration of the worker that answers. Raises Unavailable."""
        body = await self._request("GET", "/gen")
        if not body.isdigit():
            raise Unavailable(f"nginx's control socket answered {body[:40]!r}")
        return int(body)

    async def put_endpoints(self, name: str, *, endpoints: Iterable[Endpoint]) -> bool:
        """Make every worker use `endpoints` for upstream `name` from now until three seconds have passed.

        Returns False when the list is too long for this lane. Raises Unavailable when nginx did not take it.
        """
        entries = [
            Listen(one.address, one.port).text() for one in endpoints for _ in range(one.weight)
        ]
        if len(entries) > _LIST_MAX:
            return False
        await self._request("PUT", f"/ep?s={name}", body=" ".join(entries))
        return True

    async def put_hosts(self, hosts: Mapping[str, str]) -> None:
        """Make every worker send the requests for a host that no `server` has to the upstream it stands for, if any.

        Each is known for some seconds (`EARLY_S`) from its first mention or last change. Raises Unavailable when
        nginx did not take all of them.
        """
        await self._request("PUT", "/hosts", body=msgspec.json.encode(hosts).decode("ascii"))

    async def _request(self, method: str, target: str, *, body: str = "") -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(method, target, body.encode("ascii"))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            raise Unavailable(f"nginx's control socket {self._path}: {exc!r}") from exc

    async def _exchange(self, method: str, target: str, body: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        try:
            head = f"{method} {target} HTTP/1.0\r\nHost: waypost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode("ascii") + body)
            answer = await reader.read(65536)
            while chunk := await reader.read(65536):
                answer += chunk
        finally:
            writer.close()
        status, _, rest = answer.partition(b"\r\n")
        if status.split(b" ")[1:2] != [b"200"]:
            raise Unavailable(
                f"nginx's control socket answered {status[:60]!r} to {method} {target}"
            )
        return rest.partition(b"\r\n\r\n")[2]
