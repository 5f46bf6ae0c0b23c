"""A machine to be set up: its own network and its own /etc, so that nothing of the real one is touched."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ADDRESS = "10.9.8.7"
UPSTREAM = "10.9.8.53"
"""A name server that knows names below `lan`, and nothing else."""
SERVICE = ("10.9.8.11", "10.9.8.12", "10.9.8.13")
"""Addresses of this machine as well, so that glibc has no reason to prefer one."""
WAYPOST = (sys.executable, "-m", "waypost")


class Machine:
    """Namespaces of network and mounts, held by a process; `run` and `start` work inside."""

    def __init__(self, *, resolv_conf_is_mount: bool = False, mounts: tuple[str, ...] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="wphost-"))
        self.netns = self.folder.name
        self.etc = self.folder / "etc"
        self.daemon_json = self.etc / "docker/daemon.json"
        self._children: list[subprocess.Popen[bytes]] = []
        subprocess.run(["cp", "-a", "/etc", self.etc], check=True)
        self._ip("netns", "add", self.netns)
        resolv_conf = self.folder / "resolv.conf" if resolv_conf_is_mount else None
        to_mount = [f"mount --bind {self.etc} /etc", "mount -t tmpfs none /var/lib", *mounts]
        self.resolv_conf = self.etc / "resolv.conf"
        self.resolv_conf.unlink(missing_ok=True)
        self.resolv_conf.touch()
        if resolv_conf is not None:
            resolv_conf.touch()
            to_mount.append(f"mount --bind {resolv_conf} /etc/resolv.conf")
            self.resolv_conf = resolv_conf
        self._holder = subprocess.Popen(
            [
                "nsenter", f"--net=/run/netns/{self.netns}", "unshare", "--mount",
                "sh", "-ec", "; ".join([*to_mount, "echo ready", "exec sleep infinity"]),
            ],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", "eth0", "type", "bridge")
        for address in (ADDRESS, UPSTREAM, *SERVICE):
            self.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", "10.9.8.1")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self._inside(), *argv], capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def setup(self, *flags: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `waypost setup dns`."""
        return self.run(*WAYPOST, "setup", "dns", *flags, check=check)

    def agent(self, *flags: str, name: str = "agent", **config: Any) -> subprocess.Popen[bytes]:
        """Start an agent and return once it is ready."""
        file, log = self.folder / f"{name}.json", self.folder / f"{name}.log"
        file.write_text(
            json.dumps({"docker": {"enabled": False}, "balancer": {"enabled": False}} | config)
        )
        with log.open("wb") as out:
            child = subprocess.Popen(
                [*self._inside(), *WAYPOST, "agent", "-dev", f"-config-file={file}", *flags],
                stdout=out,
                stderr=out,
            )
        self._children.append(child)
        deadline = time.monotonic() + 30
        while b"agent is ready" not in log.read_bytes():
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        return child

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a program that stays; its log is NAME.log."""
        with (self.folder / f"{Path(argv[0]).name}.log").open("ab") as log:
            child = subprocess.Popen([*self._inside(), *argv], stdout=log, stderr=log)
        self._children.append(child)
        return child

    def upstream(self) -> None:
        """Start the name server of `lan`, a second agent."""
        self.agent(
            "-domain=lan",
            f"-client={UPSTREAM}",
            f"-bind={UPSTREAM}",
            name="upstream",
            ports={"dns": 53},
        )

    def register(self, name: str, addresses: tuple[str, ...]) -> None:
        """Have instances of a service on nodes of their own."""
        for number, address in enumerate(addresses):
            body = {
                "Node": f"node-{number}",
                "Address": address,
                "Service": {"Service": name, "Port": 80},
            }
            request = (
                "import sys, urllib.request as r; r.urlopen(r.Request("
                "'http://127.0.0.1:8500/v1/catalog/register', sys.argv[1].encode(), method='PUT')).read()"
            )
            self.run(sys.executable, "-c", request, json.dumps(body))

    def addresses(self, name: str) -> list[str]:
        """Return what the machine's libc resolves a name to, in its order."""
        found = self.run("getent", "ahostsv4", name, check=False).stdout.splitlines()
        return list(dict.fromkeys(line.split()[0] for line in found))

    @contextlib.contextmanager
    def only_server(self, address: str) -> Iterator[None]:
        """Have libc ask nobody else, so that what it finds has come through that one."""
        before = self.resolv_conf.read_text()
        self.resolv_conf.write_text(f"nameserver {address}\n")
        try:
            yield
        finally:
            self.resolv_conf.write_text(before)

    def stop(self, child: subprocess.Popen[bytes]) -> None:
        child.terminate()
        child.wait(20)

    def close(self) -> None:
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(child)
            child.kill()
            child.wait()
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        self._ip("netns", "del", self.netns)
        shutil.rmtree(self.folder)

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--net"]

    def _ip(self, *argv: str) -> None:
        subprocess.run(["ip", *argv], check=True, capture_output=True)


@contextlib.contextmanager
def machine(
    *, resolv_conf_is_mount: bool = False, mounts: tuple[str, ...] = ()
) -> Iterator[Machine]:
    """Make a machine and take it back, whatever happens; `mounts` are commands."""
    made = Machine(resolv_conf_is_mount=resolv_conf_is_mount, mounts=mounts)
    try:
        yield made
    finally:
        made.close()
