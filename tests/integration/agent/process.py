"""A real `waypost agent` process for tests: free ports, its own directory, its log in every failure.

The directory's name is short: nginx's control socket lies in it, and a socket's name may have 107 bytes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

READY = re.compile(rb"agent is ready after ([0-9.]+) s")
PYTHON = (sys.executable, "-m", "waypost")
ROOT = Path(__file__).parents[3]
_BYTECODE = tempfile.TemporaryDirectory(prefix="wpa-bytecode-")
"""As an installed package has it; a checkout whose bytecode may not be written would compile at every start."""


def free_ports(count: int) -> list[int]:
    """Return ports that are free for TCP and UDP, below the range from which the kernel gives ports by itself."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(11000, 20000)
        if port in found:
            continue
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    if kind == socket.SOCK_STREAM:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("0.0.0.0", port))
        except OSError:
            continue
        found.append(port)
    return found


def environment() -> dict[str, str]:
    """Return the environment for an agent: of its own bytecode, and without the caller's Docker engine."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DOCKER_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    return kept | {"PYTHONPYCACHEPREFIX": _BYTECODE.name}


class Answer(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class AgentProcess:
    """One agent in one directory; may be started, stopped and killed many times on the same ports.

    `config` is written as a configuration file; `docker` is the engine's address, without one containers are off.
    """

    def __init__(
        self,
        *flags: str,
        config: Mapping[str, Any] | None = None,
        docker: str = "",
        balancer: bool = False,
        folder: Path | None = None,
        data: Path | None = None,
        node: str = "t1",
    ) -> None:
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="wpa-"))
        self.data = data or self.folder / "data"
        self.config_dir = self.folder / "conf"
        self.config_dir.mkdir(exist_ok=True)
        self.log_file = self.folder / "agent.log"
        self.http, self.dns, self.balancer, self.tls, self.tcp, self.server = free_ports(6)
        self.node = node
        self.process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0
        base: dict[str, Any] = {
            "bind_addr": "127.0.0.1",
            "ports": {"http": self.http, "dns": self.dns, "server": self.server},
            "docker": {"enabled": True, "host": docker} if docker else {"enabled": False},
            "balancer": {
                "enabled": balancer,
                "listen": [f"127.0.0.1:{self.balancer}"],
                "tls_listen": [f"127.0.0.1:{self.tls}"],
                "tcp_addresses": ["127.0.0.1"],
            },
        }
        for key, value in (config or {}).items():
            base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
        (self.config_dir / "00-base.json").write_text(json.dumps(base))
        self.command = [
            *PYTHON,
            "agent",
            f"-node={node}",
            f"-config-dir={self.config_dir}",
            *([] if "-dev" in flags else [f"-data-dir={self.data}"]),
            *flags,
        ]

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, *, within_s: float = 20.0) -> AgentProcess:
        """Start and return once the agent says that it is ready; an AssertionError shows the log."""
        self.spawn()
        self.wait_ready(within_s=within_s)
        return self

    def spawn(self) -> None:
        """Start and return at once."""
        self._log_offset = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment(),
            )

    def wait_ready(self, *, within_s: float = 20.0) -> None:
        """Return once this start says that it is ready."""
        assert self.process is not None
        deadline = time.monotonic() + within_s
        while not READY.search(self.this_log()):
            assert self.process.poll() is None, f"the agent ended:\n{self.tail()}"
            assert time.monotonic() < deadline, f"not ready within {within_s} s:\n{self.tail()}"
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, of the agent alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def terminate(self, *, within_s: float = 10.0) -> int:
        """SIGTERM; return the exit status."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still there {within_s} s after SIGTERM:\n{self.tail()}"
            ) from None

    def close(self) -> None:
        """End everything, and remove the directory."""
        if self.alive:
            assert self.process is not None
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        for pid in self.nginx_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for outside in self._nginx_files_outside():
            shutil.rmtree(outside, ignore_errors=True)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _nginx_files_outside(self) -> set[str]:
        """Return nginx's temporary directory in /run, which an agent that was killed could not remove."""
        with contextlib.suppress(OSError):
            text = (self.data / "nginx/nginx.conf").read_text()
            return set(re.findall(r"/run/waypost-nginx-[0-9a-f]+", text))
        return set()

    # -- what it says ----------------------------------------------------------------------------------------------

    def log(self) -> str:
        """Return the whole log, of all starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def this_log(self) -> bytes:
        """Return the log since the last start."""
        with self.log_file.open("rb") as file:
            file.seek(self._log_offset)
            return file.read()

    def tail(self) -> str:
        return self.log()[-6000:]

    def ready_s(self) -> float:
        """Return the time to readiness as the agent measured it."""
        found = READY.search(self.this_log())
        assert found is not None
        return float(found[1])

    # -- asking ----------------------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> tuple[int, bytes]:
        """Return status and body of one request; a dict or list is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=timeout_s)
        try:
            data = json.dumps(body).encode() if isinstance(body, dict | list) else body
            connection.request(method, path, data, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """GET and decode JSON; raises Answer."""
        status, text = self.call("GET", path)
        if status != 200:
            raise Answer(status, text.decode(errors="replace"))
        return json.loads(text)

    def put(self, path: str, body: Any = None) -> Any:
        """PUT and decode JSON (None when empty); raises Answer."""
        status, text = self.call("PUT", path, body)
        if status != 200:
            raise Answer(status, text.decode(errors="replace"))
        return json.loads(text) if text.strip() else None

    def register(self, name: str, *, port: int, **more: Any) -> None:
        """Register a service of this node at 127.0.0.1:`port`."""
        self.put(
            "/v1/agent/service/register",
            {"Name": name, "Address": "127.0.0.1", "Port": port, **more},
        )

    def health(self, service: str) -> dict[str, str]:
        """Return the worst status of each instance of a service, by id."""
        order = ("passing", "warning", "critical")
        return {
            one["Service"]["ID"]: max((c["Status"] for c in one["Checks"]), key=order.index)
            for one in self.get(f"/v1/health/service/{service}")
        }

    def dig(self, name: str, kind: str = "A", *options: str) -> list[str]:
        """Return dig's short answer, line by line."""
        done = subprocess.run(
            [
                "dig", "+short", "+time=2", "+tries=1", "@127.0.0.1", "-p", str(self.dns),
                name, kind, *options,
            ],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
        return done.stdout.split("\n")[:-1]

    def balanced(self, host: str, path: str = "/") -> tuple[int, str]:
        """Return status and text of a request through the balancer; status 0 = no connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.balancer, timeout=5)
        try:
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()

    def nginx_pids(self) -> list[int]:
        """Return the processes that run in nginx's directory: masters and workers."""
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _belongs(entry, self.data / "nginx")
        ]

    def nginx_master(self) -> int:
        """Return the pid in nginx's pid file, 0 without one."""
        try:
            return int((self.data / "nginx/run/nginx.pid").read_text())
        except (OSError, ValueError):
            return 0

    def eventually(
        self, probe: Callable[[], Any], wanted: Any = None, *, within_s: float = 10.0
    ) -> Any:
        """Return what `probe` returns once it equals `wanted` (or is true, without one)."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                seen = probe()
            except (Answer, OSError, http.client.HTTPException) as error:
                seen = error
            good = not isinstance(seen, Exception) and (
                bool(seen) if wanted is None else seen == wanted
            )
            if good:
                return seen
            if time.monotonic() > deadline:
                msg = f"after {within_s} s still {seen!r} instead of {wanted!r}\n{self.tail()}"
                raise AssertionError(msg)
            time.sleep(0.02)


def _belongs(entry: Path, folder: Path) -> bool:
    try:
        line = (entry / "cmdline").read_bytes()
        return line.startswith(b"nginx:") and (
            os.fsencode(folder) in line or (entry / "cwd").resolve() == folder
        )
    except OSError:
        return False


@contextlib.contextmanager
def running(*flags: str, **options: Any) -> Iterator[AgentProcess]:
    """Start an agent and take everything back at the end, whatever happens."""
    agent = AgentProcess(*flags, **options)
    try:
        yield agent.start()
    finally:
        agent.close()


class Upstream:
    """A process that answers HTTP or echoes TCP with its name, on a port of its own.

    A process and not a thread: it must go on while the test's own threads are busy.
    """

    _SOURCE = """
import asyncio, sys
name, kind, port = sys.argv[1].encode(), sys.argv[2], int(sys.argv[3])
async def http(reader, writer):
    try:
        while True:
            await reader.readuntil(b"\\r\\n\\r\\n")
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(name), name))
    except (OSError, asyncio.IncompleteReadError):
        pass
    writer.close()
async def tcp(reader, writer):
    while line := await reader.readline():
        writer.write(name + b" " + line)
    writer.close()
async def main():
    server = await asyncio.start_server(http if kind == "http" else tcp, "127.0.0.1", port, backlog=1024)
    print("up", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""

    def __init__(self, name: str, kind: str = "http") -> None:
        (self.port,) = free_ports(1)
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._SOURCE, name, kind, str(self.port)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"up\n"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(5)
        assert self._process.stdout is not None
        self._process.stdout.close()


def fails(command: Sequence[str], *, timeout_s: float = 15.0) -> tuple[int, str]:
    """Run a command that is expected to end by itself; return status and everything it said."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        check=False,
        env=environment(),
    )
    return done.returncode, done.stdout + done.stderr
