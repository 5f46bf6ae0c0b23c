"""Real etcd processes on loopback: one or several, plain or with mutual TLS, to be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from waypost.store.etcd import EtcdTls

READY_S = 20.0

ETCD = os.environ.get("WAYPOST_TEST_ETCD", "etcd")
"""The program that is tested with: another version's path."""


def free_ports(count: int) -> list[int]:
    """Ports that are free now, below those that the kernel gives away: a member that is down keeps its own."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


class EtcdServer:
    """One member. Its data stay over `kill()` and `start()`."""

    def __init__(self, name: str, directory: Path, *, tls: EtcdTls | None = None) -> None:
        scheme = "https" if tls else "http"
        peer, client = free_ports(2)
        self.name = name
        self.directory = directory
        self.peer_url = f"{scheme}://127.0.0.1:{peer}"
        self.url = f"{scheme}://127.0.0.1:{client}"
        self.tls = tls
        self.command: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def configure(
        self,
        initial: str,
        *,
        state: str = "new",
        heartbeat_ms: int = 100,
        flags: tuple[str, ...] = (),
    ) -> None:
        """Fix the command line. `initial`: name=peer URL of all, joined with commas."""
        self.command = [
            ETCD, "--name", self.name, "--data-dir", str(self.directory / self.name),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", initial, "--initial-cluster-state", state,
            "--initial-cluster-token", str(self.directory),
            "--heartbeat-interval", str(heartbeat_ms), "--election-timeout", str(heartbeat_ms * 10),
            "--max-txn-ops", "4096", "--pre-vote", "--strict-reconfig-check=false",
            "--log-level", "warn", *flags,
        ]  # fmt: skip
        if self.tls:
            self.command += [
                "--cert-file", str(self.tls.certificate_file), "--key-file", str(self.tls.key_file),
                "--trusted-ca-file", str(self.tls.ca_file), "--client-cert-auth",
                "--peer-cert-file", str(self.tls.certificate_file), "--peer-key-file", str(self.tls.key_file),
                "--peer-trusted-ca-file", str(self.tls.ca_file), "--peer-client-cert-auth",
            ]  # fmt: skip

    def start(self) -> None:
        assert self.process is None
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD")}
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9; safe when it is dead already."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def post(self, path: str, body: dict[str, Any], *, timeout_s: float = 2.0) -> dict[str, Any]:
        """One request, by nothing of ours."""
        context = None
        if self.tls:
            context = ssl.create_default_context(cafile=str(self.tls.ca_file))
            context.load_cert_chain(self.tls.certificate_file, self.tls.key_file)
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=timeout_s, context=context) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def status(self) -> dict[str, Any]:
        return self.post("/v3/maintenance/status", {})

    def is_leader(self) -> bool:
        try:
            status = self.status()
        except OSError:
            return False
        return bool(status.get("leader")) and status["leader"] == status["header"]["member_id"]


class EtcdCluster:
    """Members that know each other."""

    def __init__(
        self,
        directory: Path,
        *,
        count: int = 1,
        tls: EtcdTls | None = None,
        heartbeat_ms: int = 100,
        flags: tuple[str, ...] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.servers = [EtcdServer(f"m{i}", directory, tls=tls) for i in range(count)]
        initial = ",".join(f"{s.name}={s.peer_url}" for s in self.servers)
        for server in self.servers:
            server.configure(initial, heartbeat_ms=heartbeat_ms, flags=flags)

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def start(self) -> None:
        for server in self.servers:
            if server.process is None:
                server.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until every running member answers with a quorum."""
        end = time.monotonic() + READY_S
        for server in self.servers:
            while server.process is not None:
                try:
                    server.post("/v3/kv/range", {"key": "AA=="})
                    break
                except OSError:
                    if server.process.poll() is not None or time.monotonic() > end:
                        raise
                    time.sleep(0.05)

    def leader(self) -> EtcdServer:
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            for server in self.servers:
                if server.process is not None and server.is_leader():
                    return server
            time.sleep(0.05)
        msg = "no leader"
        raise TimeoutError(msg)

    def followers(self) -> list[EtcdServer]:
        leader = self.leader()
        return [server for server in self.servers if server is not leader]

    def stop(self) -> None:
        for server in self.servers:
            server.kill()


@contextlib.contextmanager
def running(directory: Path, **settings: Any) -> Iterator[EtcdCluster]:
    """A cluster while the block runs; its data go afterwards."""
    cluster = EtcdCluster(directory, **settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)
