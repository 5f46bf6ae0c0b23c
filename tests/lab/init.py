"""Process 1 of a host of the lab: its mounts, its jobs, and the end of everything when it ends.

Started by `unshare` inside fresh pid, mount, network, host name and IPC namespaces. It runs with the standard library
alone (`python -S init.py SETTINGS`), so that a host starts quickly. The kernel ends every process of a pid namespace
with its process 1, and removes mounts and interfaces with the last process that uses them: whoever kills this one
process has cleaned up the host, whatever ran on it.

Jobs (the agent, dockerd) are children of this process. They are started and signalled by one-line JSON requests on a
unix socket; see `_Init.answer`.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_LOOK_S = 2.0


def prepare(settings: dict[str, Any]) -> None:
    """Give the host a name and files of its own. Everything is undone by the end of the mount namespace."""
    folder = Path(settings["folder"])
    socket.sethostname(settings["name"])
    _mount("proc", "/proc", kind="proc")
    keep = os.fspath(folder)
    for point in reversed(_mount_points()):
        # Other people's container engines: holding their mounts would keep them from cleaning up.
        if point.startswith(("/tmp/", "/var/lib/docker/", "/run/")) and not point.startswith(keep):
            subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL, check=False)
    _bind(folder / "etc", "/etc")
    _bind(Path(settings["docker"]), "/var/lib/docker")
    for name in ("lib/containerd", "lib/nginx", "log"):
        _bind(folder / "var" / name, f"/var/{name}")
    Path("/var/log/nginx").mkdir(exist_ok=True)
    _mount("tmpfs", "/run", kind="tmpfs", options="mode=755")
    data = settings["data"]
    if settings.get("disk"):
        Path(data).mkdir(parents=True, exist_ok=True)
        _mount(settings["disk"], data, kind="ext4", options="loop")
    else:
        _bind(folder / "data", data)


def _mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines]


def _bind(source: Path, target: str) -> None:
    source.mkdir(parents=True, exist_ok=True)
    Path(target).mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", os.fspath(source), target], check=True)


def _mount(source: str, target: str, *, kind: str, options: str = "") -> None:
    flags = ["-o", options] if options else []
    subprocess.run(["mount", "-t", kind, *flags, source, target], check=True)


class _Init:
    """Starts jobs, reaps everything, answers requests."""

    def __init__(self, listener: socket.socket, *, lifeline: int, mark: Path) -> None:
        self._listener = listener
        self._mark = mark
        self._jobs: dict[str, dict[str, Any]] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._wake, wake = socket.socketpair()
        wake.setblocking(False)
        self._wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._wake_end = wake
        self._lifeline = lifeline
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def run(self) -> None:
        """Serve until the lifeline is cut, SIGTERM comes, or the lab's files are gone."""
        chosen = selectors.DefaultSelector()
        chosen.register(self._listener, selectors.EVENT_READ, "listener")
        chosen.register(self._wake, selectors.EVENT_READ, "wake")
        if self._lifeline >= 0:
            chosen.register(self._lifeline, selectors.EVENT_READ, "lifeline")
        while self._mark.exists():
            for key, _ in chosen.select(_LOOK_S):
                if key.data == "lifeline":
                    # Nothing is ever written to it: this is the end of the lab's own process.
                    return
                if key.data == "wake":
                    self._wake.recv(4096)
                if key.data == "listener":
                    self._serve()
            self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for job in self._jobs.values():
                if job["pid"] == pid and job["status"] is None:
                    job["status"] = os.waitstatus_to_exitcode(status)
                    job["ended"] = time.time()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(10)
            try:
                with connection.makefile("rb") as stream:
                    line = stream.readline()
                answer = self.answer(json.loads(line))
            except (OSError, ValueError, KeyError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            try:
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                # Whoever only wanted to know our pid does not wait for an answer.
                return

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says: `spawn` a job, `signal` a job or all programs of a name, tell the `jobs`."""
        what = request["do"]
        if what == "spawn":
            return self._spawn(request)
        if what == "signal":
            return {"pids": self._signal(request)}
        if what == "jobs":
            self._reap()
            return {"jobs": self._jobs, "programs": _programs()}
        return {"error": f"unknown request {what!r}"}

    def _spawn(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["name"]
        old = self._jobs.get(name)
        if old is not None and old["status"] is None:
            return {"error": f"{name} runs already as {old['pid']}"}
        with Path(request["log"]).open("ab") as log:
            child = subprocess.Popen(
                request["argv"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=request["env"],
                cwd="/",
                start_new_session=True,
            )
        # Kept and never asked: the one place that waits for children is `_reap`.
        child.returncode = 0
        self._jobs[name] = {
            "pid": child.pid,
            "status": None,
            "argv": request["argv"],
            "started": time.time(),
            "ended": None,
        }
        return {"pid": child.pid}

    def _signal(self, request: dict[str, Any]) -> list[int]:
        number = int(request["signal"])
        if "job" in request:
            job = self._jobs.get(request["job"])
            pids = [job["pid"]] if job is not None and job["status"] is None else []
        else:
            names = set(request["programs"])
            pids = [pid for pid, name in _programs() if name in names]
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return pids


def _programs() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != "1":
            try:
                found.append((int(entry.name), (entry / "comm").read_text().strip()))
            except OSError:
                continue
    return sorted(found)


def main() -> None:
    """Prepare, say `ready` on the first pipe, run; the second pipe is the lifeline (-1: none)."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    ready, lifeline = int(sys.argv[2]), int(sys.argv[3])
    if settings["kind"] == "host":
        prepare(settings)
    path = Path(settings["folder"]) / "init.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(path))
        listener.listen(64)
        os.write(ready, b"ready\n")
        os.close(ready)
        _Init(listener, lifeline=lifeline, mark=Path(sys.argv[1])).run()
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
