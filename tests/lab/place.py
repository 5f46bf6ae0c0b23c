"""Being somewhere else on the same machine: programs and sockets in the namespaces of another process."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab, or something in it, did not do what it was told; the text says what was seen."""


class Reply(NamedTuple):
    """An answer of HTTP."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the decoded body. Raises LabError for another status than 200."""
        if self.status != 200:
            raise LabError(f"status {self.status}: {self.text.strip()[:300]}")
        try:
            return json.loads(self.body)
        except ValueError:
            raise LabError(f"no JSON: {self.text[:300]!r}") from None


class Done(NamedTuple):
    """What a program said."""

    status: int
    out: str
    err: str


class Place:
    """The namespaces of process `pid`, which lives as long as the place exists."""

    def __init__(self, pid: int, environment: Mapping[str, str]) -> None:
        self.pid = pid
        self.environment = dict(environment)

    # -- programs --------------------------------------------------------------------------------------------------

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` here."""
        return ["nsenter", f"--target={self.pid}", "-m", "-u", "-i", "-n", "-p", "--wd=/", *argv]

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout_s: float = 60.0,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a program to its end. Raises LabError for a status that is not 0 (unless not `check`) and after `timeout_s`."""
        try:
            done = subprocess.run(
                self.command(argv),
                input=stdin,
                stdin=None if stdin is not None else subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
                env={**self.environment, **(env or {})},
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{' '.join(argv)}: no end after {timeout_s} s") from None
        if check and done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise LabError(f"{' '.join(argv)}: status {done.returncode}: {said}")
        return Done(done.returncode, done.stdout, done.stderr)

    # -- sockets ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Within this block, sockets that this thread makes belong to the place; they stay there afterwards."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            away = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        except OSError as error:
            os.close(home)
            raise LabError(f"the host is off: {error}") from None
        try:
            _set_network(away)
            try:
                yield
            finally:
                _set_network(home)
        finally:
            os.close(away)
            os.close(home)

    def new_socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Return a new IPv4 socket of this place."""
        with self.network():
            return socket.socket(socket.AF_INET, kind)

    def connect(self, host: str, port: int, *, timeout_s: float = 5.0) -> socket.socket:
        """Return a TCP connection made from here to an IP address. Raises OSError."""
        made = self.new_socket()
        try:
            made.settimeout(timeout_s)
            made.connect((host, port))
        except BaseException:
            made.close()
            raise
        return made

    def connection(self, host: str, port: int, *, timeout_s: float = 10.0) -> PlaceConnection:
        """Return an HTTP connection from here, which connects when it is first used."""
        return PlaceConnection(self, host, port, timeout_s=timeout_s)

    def request(
        self,
        method: str,
        host: str,
        port: int,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Reply:
        """Return the answer to one request; a dict or list is sent as JSON. Raises OSError, HTTPException."""
        connection = self.connection(host, port, timeout_s=timeout_s)
        try:
            return connection.ask(method, path, body=body, headers=headers)
        finally:
            connection.close()


class PlaceConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a socket of a place."""

    def __init__(self, place: Place, host: str, port: int, *, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._place = place

    def connect(self) -> None:
        self.sock = self._place.connect(self.host, self.port, timeout_s=float(self.timeout or 10))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(
        self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request and return its answer. Raises OSError, HTTPException; then close the connection."""
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        self.request(method, path, data, dict(headers or {}))
        answer = self.getresponse()
        text = answer.read()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)


def _set_network(fd: int) -> None:
    if _LIBC.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


class Process(NamedTuple):
    """A process that is told apart from a later one with the same number."""

    pid: int
    started: int
    """Clock ticks after the start of the machine: field 22 of /proc/PID/stat."""

    @property
    def alive(self) -> bool:
        """Whether it runs (a zombie does not)."""
        state, started = _stat(self.pid)
        return started == self.started and state not in ("", "Z", "X")


def process(pid: int) -> Process:
    """Return the process that has this number now."""
    return Process(pid, _stat(pid)[1])


def _stat(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", -1
    return fields[0], int(fields[19])
