"""One run of a check: ask, and say what came back in the words of Consul's agent.

A probe never raises for what the other side does; that is its result. Cancelling it ends what it started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from waypost.model.catalog import CRITICAL, PASSING, WARNING, CheckDefinition

if TYPE_CHECKING:
    import aiohttp

_NETWORK_TIMEOUT_S: Final = 10.0
_SCRIPT_TIMEOUT_S: Final = 30.0
_TOO_MANY_REQUESTS: Final = 429


class Result(msgspec.Struct, frozen=True):
    """What one run came to."""

    status: str
    output: str


DockerExec = Callable[[str, tuple[str, ...]], Awaitable[tuple[int, bytes]]]
"""Runs a command in a container: (container id, argv) → (exit code, output). Raises WaypostError."""


def timeout_s(definition: CheckDefinition, *, default: float) -> float:
    """Return the seconds one run may take."""
    return definition.timeout_ns / 1e9 if definition.timeout_ns > 0 else default


class HttpProber:
    """HTTP checks over one client that keeps no connection, so that every run proves a new one."""

    def __init__(self) -> None:
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    def _session(self, *, verify: bool) -> aiohttp.ClientSession:
        import aiohttp

        if verify not in self._sessions:
            context: ssl.SSLContext | bool = True
            if not verify:
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._sessions[verify] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, ssl=context, limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
            )
        return self._sessions[verify]

    async def close(self) -> None:
        """Close the client."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def probe(self, definition: CheckDefinition) -> Result:
        """Ask a URL: 2xx passing, 429 warning, anything else critical. Redirects are followed."""
        import aiohttp

        method = definition.method or "GET"
        headers = [
            ("User-Agent", "Consul Health Check"),
            ("Accept", "text/plain, text/*, */*"),
        ]
        given = {name.lower() for name in definition.header or {}}
        headers = [(name, value) for name, value in headers if name.lower() not in given]
        headers += [
            (name, value) for name, values in (definition.header or {}).items() for value in values
        ]
        limit = timeout_s(definition, default=_NETWORK_TIMEOUT_S)
        try:
            async with self._session(verify=not definition.tls_skip_verify).request(
                method,
                definition.http,
                headers=headers,
                data=definition.body.encode() or None,
                timeout=aiohttp.ClientTimeout(total=limit),
            ) as response:
                body = await response.content.read(definition.output_max_size)
                text = body.decode("utf-8", "replace")
                output = (
                    f"HTTP {method} {definition.http}: {response.status} {response.reason} "
                    f"Output: {text}"
                )
                if 200 <= response.status < 300:
                    return Result(PASSING, output)
                if response.status == _TOO_MANY_REQUESTS:
                    return Result(WARNING, output)
                return Result(CRITICAL, output)
        except TimeoutError:
            verb = method.capitalize()
            return Result(
                CRITICAL,
                f'{verb} "{definition.http}": context deadline exceeded '
                "(Client.Timeout exceeded while awaiting headers)",
            )
        except aiohttp.ClientConnectorError as error:
            where = f"{error.host}:{error.port}"
            return Result(
                CRITICAL,
                f'{method.capitalize()} "{definition.http}": dial tcp {where}: '
                f"{_reason(error.os_error)}",
            )
        except (aiohttp.ClientError, ValueError, OSError) as error:
            return Result(CRITICAL, f'{method.capitalize()} "{definition.http}": {error}')


async def probe_tcp(definition: CheckDefinition) -> Result:
    """Open a connection: passing when it is accepted."""
    host, _, port = definition.tcp.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "localhost"
    limit = timeout_s(definition, default=_NETWORK_TIMEOUT_S)
    try:
        async with asyncio.timeout(limit):
            _, writer = await asyncio.open_connection(host, int(port))
    except TimeoutError:
        return Result(CRITICAL, f"dial tcp {definition.tcp}: i/o timeout")
    except (OSError, ValueError, OverflowError) as error:
        return Result(CRITICAL, f"dial tcp {definition.tcp}: {_reason(error)}")
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return Result(PASSING, f"TCP connect {definition.tcp}: Success")


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connect: connection refused"
    if isinstance(error, OSError) and error.strerror:
        return f"connect: {error.strerror.lower()}"
    return str(error) or type(error).__name__


async def probe_script(definition: CheckDefinition) -> Result:
    """Run a program: exit 0 passing, 1 warning, anything else critical. Its whole process group ends with it."""
    limit = timeout_s(definition, default=_SCRIPT_TIMEOUT_S)
    try:
        process = await asyncio.create_subprocess_exec(
            *definition.args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return Result(CRITICAL, f"{definition.args[0]}: {error}")
    tail = _Tail(definition.output_max_size)
    try:
        async with asyncio.timeout(limit):
            assert process.stdout is not None
            while chunk := await process.stdout.read(65536):
                tail.feed(chunk)
            code = await process.wait()
    except TimeoutError:
        return Result(CRITICAL, f"Timed out ({limit:g}s) running check")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await process.wait()
    return Result(exit_status(code), tail.text())


def exit_status(code: int) -> str:
    """Return the status that an exit code stands for. Source: Consul script checks, Nagios convention."""
    return {0: PASSING, 1: WARNING}.get(code, CRITICAL)


class _Tail:
    """Keeps the last bytes of an output and how many there were."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = b""
        self._seen = 0

    def feed(self, chunk: bytes) -> None:
        self._seen += len(chunk)
        self._kept = (self._kept + chunk)[-self._limit :]

    def text(self) -> str:
        text = self._kept.decode("utf-8", "replace")
        if self._seen > self._limit:
            return f"Captured {self._limit} of {self._seen} bytes\n...\n{text}"
        return text


async def probe_docker(definition: CheckDefinition, execute: DockerExec) -> Result:
    """Run a program in a container; exit codes as for scripts."""
    from waypost.base.errors import WaypostError

    command = definition.args or (definition.shell or "/bin/sh",)
    limit = timeout_s(definition, default=_NETWORK_TIMEOUT_S)
    try:
        async with asyncio.timeout(limit):
            code, output = await execute(definition.docker_container_id, command)
    except TimeoutError:
        return Result(CRITICAL, f"Timed out ({limit:g}s) running check")
    except WaypostError as error:
        return Result(CRITICAL, str(error))
    tail = _Tail(definition.output_max_size)
    tail.feed(output)
    return Result(exit_status(code), tail.text())
