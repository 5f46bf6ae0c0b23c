"""A real Consul in development mode, on loopback and free ports."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Consul:
    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="wp-consul-"))
        self.socket = self.root / "http.sock"
        self.port, *self._ports = free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"consul://127.0.0.1:{self.port}"

    def start(self) -> Consul:
        server, lan, wan = self._ports
        log = (self.root / "log").open("ab")
        self._process = subprocess.Popen(
            [
                "consul", "agent", "-dev", "-bind=127.0.0.1", "-node=consul1", "-log-level=warn",
                "-hcl", f'addresses {{ http = "127.0.0.1 unix://{self.socket}" }}', f"-http-port={self.port}", "-dns-port=-1",
                "-grpc-port=-1", f"-server-port={server}", f"-serf-lan-port={lan}",
                f"-serf-wan-port={wan}", "-enable-script-checks",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError, ValueError):
                if self.get("/v1/status/leader"):
                    return self
            if time.monotonic() > deadline or self._process.poll() is not None:
                text = (self.root / "log").read_text()[-2000:]
                self.stop()
                raise RuntimeError(f"consul did not start: {text}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as got:
            return json.loads(got.read())

    def put(self, path: str, body: Any = None) -> None:
        data = json.dumps(body).encode() if body is not None else b""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, method="PUT"
        )
        urllib.request.urlopen(request, timeout=5).close()

    def services(self) -> dict[str, Any]:
        return self.get("/v1/agent/services")

    def until(self, condition: Any, within_s: float = 10) -> Any:
        deadline = time.monotonic() + within_s
        while True:
            found = condition(self)
            if found:
                return found
            assert time.monotonic() < deadline, f"not in time; there is {list(self.services())}"
            time.sleep(0.02)


@contextlib.contextmanager
def running_consul() -> Iterator[Consul]:
    one = Consul()
    try:
        yield one.start()
    finally:
        one.close()
