"""One host of the lab: a machine with its own address, files, Docker engine, agent and nginx, that can be broken."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from waypost.samples import image

from .place import Done, LabError, Place, Process, Reply, process

if TYPE_CHECKING:
    from .lab import Lab

DATA: Final = "/var/lib/waypost"
"""The agent's data directory on every host."""
DOMAIN: Final = "example.com"
_SERVER: Final = {"waypost": "etcd", "consul": "consul"}
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "etcd": ("etcd",),
    "nginx": ("nginx",),
    "docker": ("dockerd", "containerd"),
    "consul": ("consul",),
}
"""Parts that may be killed and frozen beside the agent, and the names of their programs."""


class Host:
    """A host. `boot` switches it on; after `power_off` its files are still there, as after a power cut."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab = lab
        self.number = number
        self.name = f"consul-{number}"
        self.address = f"{lab.network}.{number}"
        self.folder = lab.folder / f"h{number}"
        self.docker_folder = lab.engines / f"h{number}"
        self.log_folder = self.folder / "log"
        self.process: Process | None = None
        self._parent: subprocess.Popen[bytes] | None = None
        self.agent = Agent(self)
        self.is_cut = False
        self.is_mute = False
        self.is_deaf = False
        self.slowed_s = 0.0
        self.ran: list[str] = []
        """What ran when the power was cut: `docker`, `agent`."""

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"

    # -- power -----------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        return self.process is not None and self.process.alive

    def boot(self) -> Host:
        """Switch on: namespaces, address, resolver; nothing runs yet. Does nothing where it is on already."""
        if self.is_on:
            return self
        self._make_files()
        self._parent, self.process = start_init(
            {
                "kind": "host",
                "name": self.name,
                "folder": os.fspath(self.folder),
                "docker": os.fspath(self.docker_folder),
                "data": DATA,
                "disk": os.fspath(self.folder / "disk") if self.lab.disk_mb else "",
            },
            folder=self.folder,
            namespaces=("--pid", "--net", "--mount", "--uts", "--ipc"),
            lifeline=self.lab.lifeline,
        )
        self.lab.plug_in(self)
        self.lab.save()
        return self

    def power_off(self) -> None:
        """Cut the power: every process ends at once, memory and /run are lost, disks stay."""
        if self.process is not None:
            self.ran = [part for part in ("docker", "agent") if self._runs(part)]
            end_init(self.process, self._parent)
        self._parent = self.process = None
        self.slowed_s, self.is_deaf = 0.0, False
        self.lab.unplug(self)
        self.lab.save()

    def restart(self) -> None:
        """Power off, boot, and start what ran before: Docker if it was there, then the agent."""
        self.power_off()
        self.boot()
        if "docker" in self.ran:
            self.start_docker()
        if "agent" in self.ran:
            self.agent.start_again()

    def wipe(self) -> None:
        """End the agent and lose its data directory; Docker and its containers stay."""
        self.agent.kill()
        self.run("find", DATA, "-mindepth", "1", "-delete")

    @property
    def place(self) -> Place:
        """Where programs and sockets of this host are made. Raises LabError when it is off."""
        if self.process is None:
            raise LabError(f"{self.name} is off")
        return Place(self.process.pid, self.lab.environment)

    def _make_files(self) -> None:
        self.log_folder.mkdir(parents=True, exist_ok=True)
        disk = self.folder / "disk"
        if self.lab.disk_mb and not disk.exists():
            with disk.open("wb") as file:
                file.truncate(self.lab.disk_mb << 20)
            made = subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", disk], capture_output=True)
            if made.returncode:
                raise LabError(f"mkfs.ext4: {made.stderr.decode(errors='replace')}")
        etc = self.folder / "etc"
        if etc.exists():
            return
        # Everything may be changed by whoever sets the host up; the machine's own files stay as they are.
        subprocess.run(["cp", "-a", "/etc", etc], check=True)
        (etc / "docker").mkdir(exist_ok=True)
        (etc / "docker/key.json").unlink(
            missing_ok=True
        )  # the identity of the machine's own engine
        self._write("etc/hostname", f"{self.name}\n")
        self._write("etc/hosts", f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        self._write("etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:3\n")
        self._write("etc/docker/daemon.json", json.dumps(self._docker_settings(), indent=2))

    def _docker_settings(self) -> dict[str, Any]:
        return {
            "dns": [self.address],
            # No init system is asked, and what stays behind of a killed engine can be found.
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": f"/{self.lab.cgroup}/{self.name}",
        }

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_text(text)

    # -- jobs ------------------------------------------------------------------------------------------------------

    def spawn(self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        """Start a program that stays; its log is `log(name)`. Return its pid on this host."""
        answer = self._ask(
            {
                "do": "spawn",
                "name": name,
                "argv": list(argv),
                "env": {**self.lab.environment, **(env or {})},
                "log": os.fspath(self.log_folder / f"{name}.log"),
            }
        )
        return int(answer["pid"])

    def signal(self, part: str, number: signal.Signals) -> list[int]:
        """Send a signal to the agent itself or to all programs of a part; return the pids it went to."""
        if not self.is_on:
            return []
        request: dict[str, Any] = {"do": "signal", "signal": int(number)}
        request |= {"job": "agent"} if part == "agent" else {"programs": PARTS[part]}
        return [int(pid) for pid in self._ask(request)["pids"]]

    def jobs(self) -> dict[str, Any]:
        """Return {"jobs": {name: {pid, status, started, ended}}, "programs": [[pid, name], …]}."""
        return self._ask({"do": "jobs"})

    def log(self, name: str) -> str:
        """Return the log of a job, of all starts."""
        with contextlib.suppress(OSError):
            return (self.log_folder / f"{name}.log").read_text(errors="replace")
        return ""

    def _runs(self, part: str) -> bool:
        if not self.is_on:
            return False
        known = self.jobs()
        if part in PARTS:
            return any(name in PARTS[part] for _, name in known["programs"])
        job = known["jobs"].get(part)
        return job is not None and job["status"] is None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self.is_on:
            raise LabError(f"{self.name} is off")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(15)
            try:
                client.connect(os.fspath(self.folder / "init.sock"))
                client.sendall(json.dumps(request).encode() + b"\n")
                with client.makefile("rb") as stream:
                    answer = json.loads(stream.readline())
            except (OSError, ValueError) as error:
                raise LabError(f"{self.name}: {request['do']}: {error}") from None
        if "error" in answer:
            raise LabError(f"{self.name}: {request['do']}: {answer['error']}")
        return dict(answer)

    # -- breaking things -------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut it off from all others, without a word to it: its own address still answers to itself."""
        self.lab.cut(self)

    def mute(self) -> None:
        """Lose everything that it sends to others; what they send arrives."""
        self.lab.mute(self)

    def deafen(self) -> None:
        """Lose everything that others send to it; what it sends arrives."""
        self.lab.deafen(self)

    def heal(self) -> None:
        """End `cut`, `mute`, `deafen` and `slow`."""
        self.lab.heal(self)

    def slow(self, delay_s: float, *, loss: float = 0.0) -> None:
        """Delay everything that this host sends by `delay_s`, and lose a share of it (0 to 1)."""
        self.lab.slow(self, delay_s, loss=loss)

    def kill(self, part: str = "") -> None:
        """`kill -9` a part (agent, etcd, nginx, docker, consul); without one: cut the power."""
        if not part:
            self.power_off()
        elif part == "agent":
            self.agent.kill()
        else:
            self.signal(part, signal.SIGKILL)

    def freeze(self, part: str = "") -> None:
        """Stop a part in the middle of whatever it does; without one the agent and its etcd (or Consul)."""
        for one in (part,) if part else ("agent", "etcd"):
            self.signal(one, signal.SIGSTOP)

    def thaw(self, part: str = "") -> None:
        """End `freeze`."""
        for one in (part,) if part else ("etcd", "agent"):
            self.signal(one, signal.SIGCONT)

    def fill_disk(self) -> int:
        """Fill the file system of the data directory to the last byte; return how many bytes that took."""
        if not self.lab.disk_mb:
            raise LabError("only a lab with disk_mb has disks that may be filled")
        filler = f"{DATA}/filler"
        self.run(
            "sh", "-c", f"cat /dev/zero >{filler} 2>/dev/null; sync {filler} 2>/dev/null; true"
        )
        return int(self.run("stat", "-c", "%s", filler).out)

    def free_disk(self) -> None:
        """Remove what `fill_disk` wrote."""
        self.run("rm", "-f", f"{DATA}/filler")

    # -- asking ----------------------------------------------------------------------------------------------------

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout_s: float = 60.0,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a program on this host to its end. Raises LabError."""
        return self.place.run(*argv, check=check, timeout_s=timeout_s, stdin=stdin, env=env)

    def http(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        port: int = 8500,
        address: str = "127.0.0.1",
        timeout_s: float = 10.0,
    ) -> Reply:
        """Return what this host's agent answers to a program on this host. Raises OSError, HTTPException."""
        return self.place.request(
            method, address, port, path, body=body, headers=headers, timeout_s=timeout_s
        )

    def get(self, path: str, *, timeout_s: float = 10.0) -> Any:
        """GET and decode. Raises LabError."""
        with _as_lab_errors(f"{self.name}: GET {path}"):
            return self.http(path, timeout_s=timeout_s).json()

    def put(self, path: str, body: Any = None, *, timeout_s: float = 10.0) -> Any:
        """PUT and decode (None when empty). Raises LabError."""
        with _as_lab_errors(f"{self.name}: PUT {path}"):
            reply = self.http(path, method="PUT", body=body, timeout_s=timeout_s)
            return reply.json() if reply.body.strip() or reply.status != 200 else None

    def dig(self, name: str, kind: str = "A", *options: str) -> list[str]:
        """Return dig's short answer, line by line, of the host's own resolver."""
        done = self.run("dig", "+short", "+time=2", "+tries=1", *options, name, kind, check=False)
        return [line for line in done.out.splitlines() if not line.startswith(";")]

    def curl(self, *arguments: str, check: bool = True) -> str:
        """Return what `curl -sS ARGUMENTS` prints. Raises LabError."""
        return self.run("curl", "-sS", "--max-time", "10", *arguments, check=check).out

    def docker(self, *arguments: str, check: bool = True, timeout_s: float = 120.0) -> str:
        """Return what the docker command prints, without the last newline. Raises LabError."""
        done = self.run("docker", *arguments, check=check, timeout_s=timeout_s)
        return done.out.rstrip("\n")

    def eventually(
        self, probe: Callable[..., Any], wanted: Any = None, *, within_s: float = 10.0
    ) -> Any:
        """Return what `probe` returns once it equals `wanted` (or is true, without one). Raises LabError."""
        return eventually(probe, wanted, within_s=within_s)

    # -- Docker ----------------------------------------------------------------------------------------------------

    @property
    def docker_socket(self) -> Path:
        """The engine's socket as programs outside the host reach it."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root/run/docker.sock")

    def start_docker(self, *, within_s: float = 40.0) -> None:
        """Start the engine as the distribution does, with /etc/docker/daemon.json. Raises LabError."""
        for left in ("/run/docker.pid", "/run/docker/containerd/containerd.pid"):
            self.run("rm", "-f", left)
        self.spawn("docker", ["dockerd"])
        deadline = time.monotonic() + within_s
        while self.run("docker", "version", check=False, timeout_s=20).status:
            if not self._runs("docker") or time.monotonic() > deadline:
                raise LabError(f"{self.name}: dockerd: {self.log('docker')[-2000:]}")
            time.sleep(0.05)

    def stop_docker(self) -> None:
        """Stop the engine as an init system does; its containers end with it. Raises LabError."""
        self.signal("docker", signal.SIGTERM)
        eventually(lambda: not self._runs("docker"), within_s=30)

    def make_images(self) -> None:
        """Make the sample services' images, without any registry. Raises LabError."""
        try:
            image.build(os.fspath(self.docker_socket))
        except (OSError, RuntimeError) as error:
            raise LabError(f"{self.name}: {error}") from None


class Agent:
    """The agent of a host, started with the flags as people type them."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.program = "waypost"
        self.command: list[str] = []
        self.more: tuple[str, ...] = ()
        """The flags beside those of the article."""
        self.environment: dict[str, str] = {}

    def flags(self, *, expect: int = 0, join: str = "") -> list[str]:
        """Return the flags of a server: those of the article, word by word."""
        host = self.host
        return [
            "-server",
            "-ui",
            "-dns-port=53",
            *([f"-bootstrap-expect={expect}"] if expect else []),
            f"-data-dir={DATA}",
            f"-node={host.name}",
            "-client=0.0.0.0",
            f"-bind={host.address}",
            "-datacenter=dc1",
            *(["-join", join] if join else []),
        ]

    def start(
        self,
        *more: str,
        expect: int = 0,
        join: str = "",
        program: str = "waypost",
        fake_clock: bool = False,
    ) -> Agent:
        """Start it and return once its HTTP API answers, whatever it answers. Raises LabError."""
        self.program, self.more = program, more
        self.command = [program, "agent", *self.flags(expect=expect, join=join), *more]
        self.environment = self._fake_clock() if fake_clock else {}
        self.host.lab.save()
        return self.start_again()

    def start_again(self, *, within_s: float = 30.0) -> Agent:
        """Start it as it was started the last time. Raises LabError."""
        self.spawn()
        self.wait_listening(within_s=within_s)
        return self

    def spawn(self) -> None:
        """Start it as the last time and return at once."""
        self.host.spawn("agent", self.command, env=self.environment)

    def wait_listening(self, *, within_s: float = 30.0) -> None:
        """Return once the HTTP API answers. Raises LabError with the end of the log."""
        deadline = time.monotonic() + within_s
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.host.http("/v1/status/leader", timeout_s=2)
                return
            if not self.runs:
                raise LabError(f"{self.host.name}: the agent ended:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.host.name}: no answer in {within_s} s:\n{self.tail()}")
            time.sleep(0.02)

    @property
    def runs(self) -> bool:
        return self.host._runs("agent")

    def stop(self, *, within_s: float = 15.0) -> None:
        """SIGTERM, and wait for the end. Raises LabError."""
        self.host.signal("agent", signal.SIGTERM)
        eventually(lambda: not self.runs, within_s=within_s)

    def kill(self) -> None:
        """`kill -9` the agent alone, and wait until it is gone with its children."""
        if not self.host.is_on:
            return
        self.host.signal("agent", signal.SIGKILL)
        server = _SERVER[self.program]
        eventually(
            lambda: (
                not self.runs
                and not any(name == server for _, name in self.host.jobs()["programs"])
            ),
            within_s=10.0,
        )

    def log(self) -> str:
        return self.host.log("agent")

    def tail(self) -> str:
        return self.log()[-5000:]

    def leader(self) -> str:
        """Return the leader's address as this agent knows it, "" for none or no answer."""
        try:
            answer = self.host.http("/v1/status/leader", timeout_s=3)
            return str(answer.json()) if answer.status == 200 else ""
        except (OSError, http.client.HTTPException, LabError):
            return ""

    # -- its clock -------------------------------------------------------------------------------------------------

    def _fake_clock(self) -> dict[str, str]:
        library = fake_clock_library()
        if library is None:
            raise LabError("libfaketime is not installed (apt-get install faketime)")
        self.shift_clock(0.0)
        return {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": os.fspath(self.host.folder / "clock"),
            "FAKETIME_NO_CACHE": "1",
            # A jump of the time of day leaves the monotonic clock alone.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def shift_clock(self, seconds: float) -> None:
        """Let the time of day jump; for an agent started with `fake_clock`."""
        file = self.host.folder / "clock"
        new = file.with_suffix(".new")
        new.write_text(f"{seconds:+.3f}\n")
        new.rename(file)


def fake_clock_library() -> str | None:
    """Return the path of libfaketime, None where it is not installed."""
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib"):
        for path in Path(folder).glob("**/faketime/libfaketime.so.1"):
            return os.fspath(path)
    return None


def eventually(probe: Callable[..., Any], wanted: Any = None, *, within_s: float = 10.0) -> Any:
    """Return what `probe` returns once it equals `wanted` (or is true, without one). Raises LabError."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            seen = probe()
        except (LabError, OSError, http.client.HTTPException, ValueError, LookupError) as error:
            seen = error
        good = not isinstance(seen, Exception) and (
            bool(seen) if wanted is None else seen == wanted
        )
        if good:
            return seen
        if time.monotonic() > deadline:
            instead = "" if wanted is None else f" instead of {wanted!r}"
            raise LabError(f"after {within_s} s still {seen!r}{instead}")
        time.sleep(0.05)


@contextlib.contextmanager
def _as_lab_errors(what: str) -> Any:
    try:
        yield
    except (OSError, http.client.HTTPException, LabError) as error:
        raise LabError(f"{what}: {error}") from None


def start_init(
    settings: dict[str, Any], *, folder: Path, namespaces: Sequence[str], lifeline: int
) -> tuple[subprocess.Popen[bytes], Process]:
    """Start process 1 of new namespaces; return its parent and itself as seen from here. Raises LabError."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    file.write_text(json.dumps(settings))
    (folder / "init.sock").unlink(missing_ok=True)
    ready, told = os.pipe()
    log = folder / "init.log"
    try:
        with log.open("ab") as out:
            parent = subprocess.Popen(
                [
                    "unshare", "--fork", *namespaces,
                    *(["--propagation", "private"] if "--mount" in namespaces else []),
                    sys.executable, "-S", "-E", os.fspath(Path(__file__).with_name("init.py")),
                    os.fspath(file), str(told), str(lifeline),
                ],
                pass_fds=[told] + ([lifeline] if lifeline >= 0 else []),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd="/",
            )  # fmt: skip
        os.close(told)
        told = -1
        with os.fdopen(ready, "rb") as stream:
            ready = -1
            said = stream.readline()
    finally:
        for fd in (ready, told):
            if fd >= 0:
                os.close(fd)
    if said != b"ready\n":
        parent.kill()
        parent.wait()
        raise LabError(f"no namespaces: {log.read_text(errors='replace')[-2000:]}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(os.fspath(folder / "init.sock"))
        # The kernel translates the listener's pid into the namespace of the one who asks.
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return parent, process(int.from_bytes(peer[:4], sys.byteorder))


def end_init(one: Process, parent: subprocess.Popen[bytes] | None, *, within_s: float = 10) -> None:
    """End a process 1 and with it everything in its namespaces. Raises LabError when it stays."""
    if one.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    deadline = time.monotonic() + within_s
    while one.alive:
        if time.monotonic() > deadline:
            raise LabError(f"process {one.pid} does not end")
        time.sleep(0.01)
    if parent is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            parent.wait(within_s)


def remove_tree(folder: Path) -> None:
    """Remove a directory that may for a moment still be in use."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(folder)
