"""N hosts on one machine, as namespaces: `with Lab(hosts=3) as lab: lab[0].agent.start(expect=3)`.

A *switch* (a network namespace with a bridge) joins the hosts. Nothing of it is in the machine's own network: no
interface, no route, no packet filter, so labs neither see each other nor anything else. The lab's own view from
outside the hosts, as a client machine of the same network, is `lab.outside`.

Nothing stays behind. Everything that runs does so in the pid namespace of a host, whose process 1 holds the reading end
of a pipe: when the process that made the lab ends, however it ends, the kernel ends all hosts. Files and control groups
carry the lab's id; they are removed at the end, or by the next lab if this one was killed. A lab of the command line
(`keep=True`) lives on without its maker until `down`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import waypost

from .host import Host, end_init, eventually, remove_tree, start_init
from .place import LabError, Place, Process, process

SOURCE: Final = Path(waypost.__file__).parents[1]
"""The hosts run what this process would import."""
PREFIX: Final = "waypost-lab-"
_CGROUPS: Final = Path("/sys/fs/cgroup")
_MEMORY: Final = Path("/dev/shm")
_MEMORY_ENOUGH_BYTES: Final = 3 << 30
_NEEDED: Final = ("ip", "unshare", "nsenter", "mount", "umount")


class Lab:
    """The hosts, counted from 0, and the network between them."""

    def __init__(self, hosts: int = 3, *, keep: bool = False, disk_mb: int = 0, link: bool = False):
        """`keep`: the lab outlives this process; `disk_mb`: each data directory is a disk of that size;
        `link`: the machine itself gets an address in the lab's network, so that its browser reaches the hosts."""
        if os.geteuid() != 0:
            raise LabError("the lab needs root: it makes namespaces")
        for program in _NEEDED:
            if shutil.which(program) is None:
                raise LabError(f"the lab needs {program}")
        self.keep = keep
        self.disk_mb = disk_mb
        self.is_linked = link
        self.hosts: list[Host] = []
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_base()))
        self.id = self.folder.name.removeprefix(PREFIX)
        self.engines = _engines_folder(self.folder)
        self.network = _free_network() if link else "10.77.0"
        self._wanted = hosts
        self._owner = None if keep else process(os.getpid())
        self._switch: Process | None = None
        self._switch_parent: subprocess.Popen[bytes] | None = None
        self._lifeline: tuple[int, int] | None = None
        self._lock = threading.RLock()
        self._old_handlers: dict[int, Any] = {}
        self.save()

    # -- life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread() and not self.keep:
            # SIGTERM ends the process by an exception, so that every `finally` runs.
            self._old_handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, _leave)
        try:
            return self.up()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def up(self) -> Self:
        """Make the switch and switch on all hosts. Raises LabError."""
        sweep()
        if not self.keep:
            self._lifeline = os.pipe()
        self._make_programs()
        self._switch_parent, self._switch = start_init(
            {"kind": "switch", "folder": os.fspath(self.folder / "switch")},
            folder=self.folder / "switch",
            namespaces=("--pid", "--net"),
            lifeline=self.lifeline,
        )
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "br0", "type", "bridge")
        self.ip("addr", "add", f"{self.network}.254/24", "dev", "br0")
        self.ip("link", "set", "br0", "up")
        self._link()
        self.save()
        self.hosts = [Host(self, number) for number in range(1, self._wanted + 1)]
        self.on_all(Host.boot)
        return self

    def add_host(self) -> Host:
        """Add and switch on one more host."""
        host = Host(self, len(self.hosts) + 1)
        self.hosts.append(host)
        return host.boot()

    def close(self) -> None:
        """End and remove everything. Safe at any time and twice."""
        while True:
            try:
                self._close()
                break
            except KeyboardInterrupt:  # impatience is no reason to leave half of it
                continue
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()

    def _close(self) -> None:
        ends = [(one.process, one._parent) for one in self.hosts if one.process is not None]
        if self._switch is not None:
            ends.append((self._switch, self._switch_parent))
        for one, _ in ends:
            if one.alive:
                os.kill(one.pid, signal.SIGKILL)
        for one, parent in ends:
            end_init(one, parent)
        self._switch = None
        for host in self.hosts:
            host.process = None
        lifeline, self._lifeline = self._lifeline, None
        for fd in lifeline or ():
            os.close(fd)
        _remove_cgroups(self.cgroup)
        if self.engines.name == self.folder.name:
            remove_tree(self.engines)
        remove_tree(self.folder)

    @property
    def lifeline(self) -> int:
        """The end of the pipe that hosts hold, -1 for a lab that outlives us."""
        return self._lifeline[0] if self._lifeline is not None else -1

    @property
    def cgroup(self) -> str:
        """The control group below which all containers of this lab are."""
        return f"{PREFIX}{self.id}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of programs on hosts: this checkout's `waypost` comes first, nobody's settings come along."""
        return {
            "PATH": f"{self.folder}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
        }

    def _make_programs(self) -> None:
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / "waypost"
        script.write_text(
            f'#!/bin/sh\nexport PYTHONPATH={SOURCE}\nexec {sys.executable} -m waypost "$@"\n'
        )
        script.chmod(0o755)
        folder.parent.chmod(0o755)  # nginx's workers are `nobody`

    # -- hosts -----------------------------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def __len__(self) -> int:
        return len(self.hosts)

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def host(self, name: str) -> Host:
        """Return the host of this name, number or address. Raises LabError."""
        for one in self.hosts:
            if name in (one.name, str(one.number), one.address, f"h{one.number}"):
                return one
        raise LabError(f"no host {name!r}; there are {', '.join(one.name for one in self.hosts)}")

    def on_all(self, what: Callable[[Host], Any]) -> list[Any]:
        """Do something on all hosts at once; return the results in order. Raises what the first one raises."""
        with ThreadPoolExecutor(max(1, len(self.hosts))) as pool:
            return list(pool.map(what, self.hosts))

    @property
    def outside(self) -> Place:
        """A client machine of the same network, without a resolver."""
        if self._switch is None:
            raise LabError("the lab is down")
        return _Outside(self._switch.pid, self.environment)

    def start_docker(self, *, images: bool = True) -> None:
        """Start Docker on every host, with the sample images. Raises LabError."""
        if images:
            # Made once: importing them costs seconds of a processor for each engine.
            first = self.hosts[0]
            first.start_docker()
            first.make_images()
            first.stop_docker()
            for other in self.hosts[1:]:
                source, target = first.docker_folder, other.docker_folder
                _run(["cp", "-a", "--reflink=auto", f"{source}/.", os.fspath(target)])
                (target / "engine-id").unlink(missing_ok=True)
        self.on_all(Host.start_docker)

    def start_agents(
        self,
        *more: str,
        program: str = "waypost",
        expect: int | None = None,
        fake_clock: bool = False,
    ) -> None:
        """Start an agent on every host, as the article does. Raises LabError."""
        count = len(self.hosts) if expect is None else expect
        for host in self.hosts:
            join = "" if host.number == 1 else self.hosts[0].address
            host.agent.start(
                *more,
                expect=count if count > 1 else 0,
                join=join,
                program=program,
                fake_clock=fake_clock,
            )

    def leader(self) -> Host | None:
        """Return the host whose agent leads, as most agents that can be asked see it."""
        votes = [one.agent.leader().rpartition(":")[0] for one in self.hosts if one.is_on]
        best = max(set(votes) - {""}, key=votes.count, default="")
        return next((one for one in self.hosts if one.address == best), None)

    # -- the network -----------------------------------------------------------------------------------------------

    def ip(self, *arguments: str, check: bool = True) -> None:
        """Run `ip` at the switch. Raises LabError."""
        assert self._switch is not None
        _run(["nsenter", f"--target={self._switch.pid}", "-n", "ip", *arguments], check=check)

    def plug_in(self, host: Host) -> None:
        """Give a host that has just booted its interface."""
        assert host.process is not None
        port, inside = f"h{host.number}", str(host.process.pid)
        with self._lock:
            self.ip("link", "del", port, check=False)
            # The same hardware address after each boot, or others would remember a wrong one for a while.
            card = f"02:77:00:00:00:{host.number:02x}"
            pair = ["type", "veth", "peer", "name", "eth0", "address", card, "netns", inside]
            self.ip("link", "add", port, *pair)
            if not host.is_cut:
                self.ip("link", "set", port, "master", "br0")
            self.ip("link", "set", port, "up")
            for other in self.hosts:
                if other.is_mute and other is not host:
                    self._filter(inside, "-I", other)
        script = (
            f"ip link set lo up; ip addr add {host.address}/24 brd + dev eth0; "
            f"ip link set eth0 up; ip route add default via {self.network}.254"
        )
        _run(["nsenter", f"--target={inside}", "-n", "sh", "-ec", script])

    def unplug(self, host: Host) -> None:
        """Remove the interface of a host that is off."""
        with self._lock:
            self._end_relay(host)
            if self._switch is not None:
                self.ip("link", "del", f"h{host.number}", check=False)

    def cut(self, host: Host) -> None:
        """Take the host's cable out of the bridge; the host sees a link that carries nothing."""
        with self._lock:
            self._end_relay(host)
            host.is_cut, host.slowed_s = True, 0.0
            if host.is_on:
                self.ip("link", "set", f"h{host.number}", "nomaster")
        self.save()

    def mute(self, host: Host) -> None:
        """All others drop what comes from the host, as if it had got lost on the way."""
        with self._lock:
            if not host.is_mute:
                self._filter_all("-I", host)
            host.is_mute = True
        self.save()

    def deafen(self, host: Host) -> None:
        """The host drops what comes from others."""
        assert host.process is not None
        with self._lock:
            if not host.is_deaf:
                self._filter(str(host.process.pid), "-I", None)
            host.is_deaf = True
        self.save()

    def _filter_all(self, how: str, host: Host) -> None:
        assert self._switch is not None
        self._filter(str(self._switch.pid), how, host)
        for other in self.hosts:
            if other is not host and other.is_on:
                assert other.process is not None
                self._filter(str(other.process.pid), how, host)

    @staticmethod
    def _filter(pid: str, how: str, sender: Host | None) -> None:
        """Begin (`-I`) or cease (`-D`) to drop what comes from a sender, or (None) from anybody else."""
        if shutil.which("iptables") is None:
            raise LabError("iptables is not installed")
        which = ["-i", "eth0"] if sender is None else ["-s", sender.address]
        _run(
            [
                "nsenter",
                f"--target={pid}",
                "-n",
                "iptables",
                "-w",
                how,
                "INPUT",
                *which,
                "-j",
                "DROP",
            ]
        )

    def heal(self, host: Host) -> None:
        """Put the cable back, without any delay or loss."""
        with self._lock:
            self._end_relay(host)
            if host.is_mute:
                self._filter_all("-D", host)
            if host.is_deaf:
                assert host.process is not None
                self._filter(str(host.process.pid), "-D", None)
            host.is_cut, host.is_mute, host.is_deaf, host.slowed_s = False, False, False, 0.0
            if host.is_on:
                self.ip("link", "set", f"h{host.number}", "master", "br0")
        self.save()

    def slow(self, host: Host, delay_s: float, *, loss: float = 0.0) -> None:
        """Delay what a host sends and lose a share of it, by the kernel's netem or, where it has none, by a relay."""
        self.heal(host)
        port = f"h{host.number}"
        with self._lock:
            if not self._netem(host, delay_s, loss):
                side = f"r{host.number}"
                self.ip("link", "set", port, "nomaster")
                self.ip("link", "add", side, "type", "veth", "peer", "name", f"{side}b")
                self.ip("link", "set", f"{side}b", "master", "br0")
                self.ip("link", "set", f"{side}b", "up")
                self.ip("link", "set", side, "up")
                self._relay(host, port, side, delay_s, loss)
            host.slowed_s = delay_s
        self.save()

    def _netem(self, host: Host, delay_s: float, loss: float) -> bool:
        assert host.process is not None
        command = ["tc", "qdisc", "add", "dev", "eth0", "root", "netem"]
        command += ["delay", f"{delay_s * 1000:g}ms", "limit", "100000"]
        command += ["loss", f"{loss:.2%}"] if loss else []
        if shutil.which("tc") is None:
            return False
        done = subprocess.run(
            ["nsenter", f"--target={host.process.pid}", "-n", *command],
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def _relay(self, host: Host, port: str, side: str, delay_s: float, loss: float) -> None:
        script = os.fspath(Path(__file__).with_name("relay.py"))
        argv = [sys.executable, "-S", "-E", script, port, side, str(delay_s), str(loss)]
        log = self.folder / f"switch/relay-{host.number}.log"
        log.unlink(missing_ok=True)
        _ask_init(
            self.folder / "switch",
            {
                "do": "spawn",
                "name": f"relay-{host.number}",
                "argv": argv,
                "env": self.environment,
                "log": os.fspath(log),
            },
        )
        eventually(lambda: log.exists() and log.read_text() == "ready\n")

    def _end_relay(self, host: Host) -> None:
        if self._switch is None or not self._switch.alive:
            return
        if host.is_on:
            assert host.process is not None
            inside = ["nsenter", f"--target={host.process.pid}", "-n"]
            _run([*inside, "tc", "qdisc", "del", "dev", "eth0", "root"], check=False)
        job = f"relay-{host.number}"
        _ask_init(self.folder / "switch", {"do": "signal", "job": job, "signal": 9})
        self.ip("link", "del", f"r{host.number}", check=False)

    def _link(self) -> None:
        if not self.is_linked:
            return
        name = f"wplab-{self.id}"[:15]
        assert self._switch is not None
        # It goes by itself with the switch's namespace, which holds the other end.
        pair = ["type", "veth", "peer", "name", "machine", "netns", str(self._switch.pid)]
        _run(["ip", "link", "add", name, *pair])
        _run(["ip", "addr", "add", f"{self.network}.253/24", "dev", name])
        _run(["ip", "link", "set", name, "up"])
        self.ip("link", "set", "machine", "master", "br0")
        self.ip("link", "set", "machine", "up")

    # -- what others need to know ----------------------------------------------------------------------------------

    def save(self) -> None:
        """Write down what runs, for the command line and for whoever has to clean up after us."""
        known = {
            "id": self.id,
            "owner": self._owner,
            "network": self.network,
            "disk_mb": self.disk_mb,
            "engines": os.fspath(self.engines),
            "linked": self.is_linked,
            "switch": self._switch,
            "hosts": [
                {
                    "number": one.number,
                    "process": one.process,
                    "cut": one.is_cut,
                    "mute": one.is_mute,
                    "deaf": one.is_deaf,
                    "slowed_s": one.slowed_s,
                    "ran": one.ran,
                    "program": one.agent.program,
                    "command": one.agent.command,
                    "environment": one.agent.environment,
                }
                for one in self.hosts
            ],
        }
        with self._lock:
            if self.folder.exists():
                new = self.folder / "lab.json.new"
                new.write_text(json.dumps(known))
                new.rename(self.folder / "lab.json")

    @classmethod
    def open(cls, folder: Path) -> Lab:
        """Return the lab that another process made, as it is now. Raises LabError."""
        try:
            known = json.loads((folder / "lab.json").read_text())
        except (OSError, ValueError) as error:
            raise LabError(f"{folder}: {error}") from None
        lab = cls.__new__(cls)
        lab.keep, lab.disk_mb, lab.is_linked = True, known["disk_mb"], known["linked"]
        lab.folder, lab.id, lab.network = folder, known["id"], known["network"]
        lab.engines = Path(known["engines"])
        lab._wanted = len(known["hosts"])
        lab._owner = Process(*known["owner"]) if known["owner"] else None
        lab._switch = Process(*known["switch"]) if known["switch"] else None
        lab._switch_parent, lab._lifeline, lab._lock = None, None, threading.RLock()
        lab._old_handlers, lab.hosts = {}, []
        for one in known["hosts"]:
            host = Host(lab, one["number"])
            host.process = Process(*one["process"]) if one["process"] else None
            host.is_cut, host.is_mute, host.is_deaf = one["cut"], one["mute"], one["deaf"]
            host.slowed_s, host.ran = one["slowed_s"], one["ran"]
            host.agent.program, host.agent.command = one["program"], one["command"]
            host.agent.environment = one["environment"]
            lab.hosts.append(host)
        return lab

    @property
    def is_abandoned(self) -> bool:
        """Whether the process that made it, and had to remove it, is gone."""
        return self._owner is not None and not self._owner.alive


class _Outside(Place):
    """The switch has a network and processes of its own, but the machine's files and name."""

    def command(self, argv: Any) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "-n", "--wd=/", *argv]


def known_labs() -> list[Lab]:
    """Return all labs of this machine, of other processes as well."""
    found = []
    for folder in sorted(_base().glob(f"{PREFIX}*")):
        with contextlib.suppress(LabError):
            if folder.stat().st_uid == 0:
                found.append(Lab.open(folder))
    return found


def sweep() -> list[str]:
    """Remove the labs whose makers were killed; return their ids."""
    swept = []
    for lab in known_labs():
        if lab.is_abandoned:
            lab._close()
            swept.append(lab.id)
    return swept


def _base() -> Path:
    return Path(tempfile.gettempdir())


def _engines_folder(folder: Path) -> Path:
    """Return where the engines keep images: in memory where there is enough, which saves seconds at both ends."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(_MEMORY).free > _MEMORY_ENOUGH_BYTES:
            return _MEMORY / folder.name
    return folder / "engines"


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _run(argv: list[str], *, check: bool = True) -> None:
    done = subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise LabError(f"{' '.join(argv)}: {said}")


def _ask_init(folder: Path, request: dict[str, Any]) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect(os.fspath(folder / "init.sock"))
        client.sendall(json.dumps(request).encode() + b"\n")
        with client.makefile("rb") as stream:
            answer = json.loads(stream.readline())
    if "error" in answer:
        raise LabError(str(answer["error"]))


def _free_network() -> str:
    done = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True, check=False)
    taken = done.stdout
    for third in range(256):
        if f"10.77.{third}." not in taken:
            return f"10.77.{third}"
    raise LabError("no free network below 10.77.0.0/16")


def _remove_cgroups(name: str) -> None:
    for top in [_CGROUPS / name, *_CGROUPS.glob(f"*/{name}")]:
        if not top.is_dir():
            continue
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
