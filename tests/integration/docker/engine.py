"""A private Docker engine for tests, and what goes with it.

Needs: root, Linux with bridges and overlayfs, the programs dockerd (20.10 or newer), containerd, runc, docker,
ip and a static busybox; no registry, no network. Nothing of the machine is changed that is not taken back:
iptables and ip_forward stay as they are (published ports go through docker's userland proxy, which works on
every address of the host), the bridge and its subnet are unique to one engine, everything else is below one
temporary directory. Several engines, of several test processes, can run at the same time. With `netns` the
engine runs inside a network namespace that the caller made, where iptables may be used as well.

A start takes about half a second; `engine` (session scope) starts one for a whole test run, `fresh_engine`
one for a test that kills or restarts it.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

IMAGE = "waypost-test/box"
"""`FROM scratch` with a static busybox as entry point; EXPOSE 80."""

_SLOT_LOCKS = Path(tempfile.gettempdir()) / "waypost-test-docker-slots"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Slot:
    """A number nobody else on this machine has now: it makes the bridge's name and subnet unique."""

    def __init__(self) -> None:
        import fcntl

        _SLOT_LOCKS.mkdir(exist_ok=True)
        for number in range(1, 250):
            file = (_SLOT_LOCKS / str(number)).open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            self.number, self._file = number, file
            return
        raise RuntimeError("no free slot for a Docker engine")

    def release(self) -> None:
        self._file.close()


class Engine:
    """One dockerd. `start`, `stop`, `kill`, `close`; `docker(...)` runs the CLI against it."""

    def __init__(
        self,
        *,
        netns: str = "",
        iptables: bool = False,
        live_restore: bool = False,
        box: bool = True,
    ) -> None:
        self._slot = Slot()
        self.root = Path(tempfile.mkdtemp(prefix=f"wpdk{self._slot.number}-"))
        self.socket = self.root / "docker.sock"
        self.bridge = f"wpdk{self._slot.number}"
        self.gateway = f"10.213.{self._slot.number}.1"
        self.log = self.root / "dockerd.log"
        self._netns = netns
        self._flags = [
            f"--iptables={str(iptables).lower()}",
            "--ip-forward=false",
            "--ip-masq=false",
        ]
        if live_restore:
            self._flags.append("--live-restore")
        self._box = box
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """The value of DOCKER_HOST."""
        return f"unix://{self.socket}"

    @property
    def env(self) -> dict[str, str]:
        """The environment for programs that shall use this engine."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
        return kept | {"DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self.root / "cli")}

    def port(self, number: int) -> int:
        """Return a host port that only this engine's tests use, below the ephemeral range; `number` < 40."""
        assert 0 <= number < 40
        return 21000 + 40 * self._slot.number + number

    def start(self) -> Engine:
        """Start dockerd and wait until it answers; the box image is there afterwards."""
        self._make_bridge()
        command = [
            *self._inside(),
            _program("dockerd"),
            f"--data-root={self.root / 'data'}",
            f"--exec-root={self.root / 'exec'}",
            f"--pidfile={self.root / 'dockerd.pid'}",
            f"--host={self.host}",
            f"--bridge={self.bridge}",
            # User networks come from a pool of our own, too: 16 of them with 14 addresses each.
            f"--default-address-pool=base=10.214.{self._slot.number}.0/24,size=28",
            *self._flags,
        ]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-3000:]
                self.close()
                raise RuntimeError(f"dockerd did not start:\n{tail}")
            time.sleep(0.02)
        if self._box:
            self._import_box()
            self._box = False
        return self

    def stop(self) -> None:
        """Stop dockerd as an init system would: it stops its containers (unless live-restore)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9` of dockerd; its containerd dies with it, the containers live until the next start.

        The pid files go too: an init that reaps no orphans leaves zombies, which dockerd takes for alive.
        """
        self._end(signal.SIGKILL)
        for file in (self.root / "dockerd.pid", self.root / "exec/containerd/containerd.pid"):
            with contextlib.suppress(OSError):
                file.unlink()

    def freeze(self) -> None:
        """Let dockerd hang."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """End `freeze`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Take back everything: containers, processes, mounts, bridges, files."""
        self.thaw()
        if self._process is not None:
            with contextlib.suppress(Exception):
                self.remove_all()
            self._end(signal.SIGTERM)
        for _ in range(50):
            pids = self._left_over()
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._unmount()
        for bridge in (self.bridge, *self._user_bridges()):
            self._ip("link", "del", bridge, check=False)
        shutil.rmtree(self.root, ignore_errors=True)
        self._slot.release()

    def docker(self, *args: str, check: bool = True, stdin: bytes | None = None) -> str:
        """Run the docker CLI; return its output without the last newline."""
        done = subprocess.run(
            ["docker", *args], env=self.env, capture_output=True, input=stdin, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"docker {' '.join(args)}: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode(errors="replace").rstrip("\n")

    def run(self, *args: str, command: Sequence[str] = ("sleep", "600"), image: str = IMAGE) -> str:
        """`docker run -d ARGS IMAGE COMMAND`; return the container id."""
        return self.docker("run", "-d", *args, image, *command)

    def request(self, method: str, path: str, *, body: Any = None, timeout_s: float = 30) -> Any:
        """Speak to the API directly (an exec of the CLI costs 20–50 ms); return the decoded answer."""
        connection = _UnixConnection(self.socket, timeout_s)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {text.decode()}")
            return json.loads(text) if text.strip() else None
        finally:
            connection.close()

    def remove_all(self) -> None:
        """Remove every container and user network."""
        for one in self.request("GET", "/containers/json?all=1"):
            with contextlib.suppress(RuntimeError):
                self.request("DELETE", f"/containers/{one['Id']}?force=1&v=1")
        for one in self.request("GET", "/networks"):
            if one["Name"] not in ("bridge", "host", "none"):
                with contextlib.suppress(RuntimeError):
                    self.request("DELETE", f"/networks/{one['Id']}")

    # --- inside --------------------------------------------------------------------------------------------

    def _inside(self) -> list[str]:
        # Not `ip netns exec`: that mounts another /sys, without the cgroups that dockerd needs.
        return ["nsenter", f"--net=/run/netns/{self._netns}"] if self._netns else []

    def _ip(self, *args: str, check: bool = True) -> None:
        subprocess.run([*self._inside(), "ip", *args], check=check, capture_output=True)

    def _make_bridge(self) -> None:
        # dockerd makes only docker0 by itself; another bridge has to be there.
        self._ip("link", "add", "name", self.bridge, "type", "bridge", check=False)
        self._ip("addr", "replace", f"{self.gateway}/24", "dev", self.bridge)
        self._ip("link", "set", self.bridge, "up")

    def _user_bridges(self) -> list[str]:
        """The bridges of user networks: a dockerd that was killed leaves them. Our address pool tells them."""
        done = subprocess.run(
            [*self._inside(), "ip", "-j", "-4", "addr", "show"], capture_output=True, check=False
        )
        return [
            link["ifname"]
            for link in json.loads(done.stdout or b"[]")
            for address in link.get("addr_info", ())
            if address.get("local", "").startswith(f"10.214.{self._slot.number}.")
        ]

    def _answers(self) -> bool:
        try:
            self.request("GET", "/version", timeout_s=2)
        except (OSError, RuntimeError, ValueError, http.client.HTTPException):
            return False
        return True

    def _import_box(self) -> None:
        busybox = Path(shutil.which("busybox") or "/bin/busybox")
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for folder in ("bin", "tmp", "etc"):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            tar.add(busybox.resolve(), "bin/busybox")
            link = tarfile.TarInfo("bin/sh")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        changes = ['ENTRYPOINT ["/bin/busybox"]', "EXPOSE 80", "ENV PATH=/bin"]
        flags = [part for change in changes for part in ("--change", change)]
        self.docker("import", *flags, "-", IMAGE, stdin=content.getvalue())

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def _left_over(self) -> list[int]:
        """The processes that were started below our directory: containerd, shims, proxies, containers."""
        found: list[int] = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                line = (folder / "cmdline").read_bytes() + (folder / "mountinfo").read_bytes()
            except OSError:
                continue
            if str(self.root).encode() in line and int(folder.name) != os.getpid():
                # Every process of the machine sees our mounts; those of containers see only them.
                own = str(self.root).encode() in (folder / "cmdline").read_bytes()
                if own or self._is_container(folder):
                    found.append(int(folder.name))
        return found

    def _is_container(self, folder: Path) -> bool:
        with contextlib.suppress(OSError):
            first = (folder / "mountinfo").read_text().splitlines()[0]
            return str(self.root) in first
        return False

    def _unmount(self) -> None:
        for _ in range(3):
            lines = Path("/proc/self/mountinfo").read_text().splitlines()
            points = [line.split()[4] for line in lines if str(self.root) in line.split()[4]]
            if not points:
                return
            for point in sorted(points, key=len, reverse=True):
                subprocess.run(["umount", "-l", point], capture_output=True)


def _program(name: str) -> str:
    return shutil.which(name) or f"/usr/sbin/{name}"


@contextlib.contextmanager
def running_engine(**options: Any) -> Iterator[Engine]:
    """Start an engine and take it back at the end, whatever happens."""
    engine = Engine(**options)
    try:
        yield engine.start()
    finally:
        engine.close()
