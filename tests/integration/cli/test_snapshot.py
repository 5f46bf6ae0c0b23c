"""Snapshots of an agent with a store on disk: over HTTP, by our program and by Consul's."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from waypost.wire.snapshot import unpack

from .conftest import free_ports


@contextmanager
def agent(data_dir: Path) -> Iterator[str]:
    """Yield HOST:PORT of an agent with its store in `data_dir`."""
    http, server = free_ports(2)
    command = [
        sys.executable, "-m", "waypost", "agent", "-server", "-node=n1", "-bind=127.0.0.1",
        f"-data-dir={data_dir}", f"-http-port={http}", "-dns-port=-1", f"-server-port={server}",
        "-docker=off", "-balancer=off", "-log-level=WARN",
    ]  # fmt: skip
    log = data_dir.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    address = f"127.0.0.1:{http}"
    try:
        deadline = time.monotonic() + 30
        while not ask(address, "/v1/catalog/service/consul")[1].startswith(b"[{"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(log.read_text())
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(address: str, path: str, *, put: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"http://{address}{path}", data=put, method="GET" if put is None else "PUT"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def waypost(address: str, *args: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "waypost", *args],
        env={**os.environ, "CONSUL_HTTP_ADDR": address},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout, done.stderr


def consul(address: str, *args: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["consul", *args],
        env={**os.environ, "CONSUL_HTTP_ADDR": address},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout, done.stderr


def index_of(address: str) -> int:
    with urllib.request.urlopen(f"http://{address}/v1/kv/?keys") as answer:
        return int(answer.headers["X-Consul-Index"])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agent") / "data"


@pytest.fixture(scope="module")
def address(data_dir: Path) -> Iterator[str]:
    data_dir.mkdir()
    with agent(data_dir) as found:
        yield found


def test_saved_and_restored_by_our_program(address: str, tmp_path: Path) -> None:
    file = tmp_path / "backup.snap"
    for number in range(100):
        ask(address, f"/v1/kv/app/{number}", put=b"before")
    status, out, err = waypost(address, "snapshot", "save", str(file))
    assert (status, err) == (0, "")
    meta = unpack(file.read_bytes()).meta
    assert out == f"Saved and verified snapshot to index {meta.index}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["backup.snap"]

    status, out, _ = waypost(address, "snapshot", "inspect", str(file))
    assert status == 0
    assert out.splitlines() == [
        f"ID           {meta.id}",
        f"Size         {meta.size}",
        f"Index        {meta.index}",
        "Term         1",
        "Version      1",
    ]

    ask(address, "/v1/kv/app/5", put=b"after")
    ask(address, "/v1/kv/new", put=b"after")
    before = index_of(address)
    assert waypost(address, "snapshot", "restore", str(file)) == (0, "Restored snapshot\n", "")
    assert ask(address, "/v1/kv/app/5?raw") == (200, b"before")
    assert ask(address, "/v1/kv/new") == (404, b"")
    assert len(json.loads(ask(address, "/v1/kv/app/?keys")[1])) == 100
    assert index_of(address) > before


def test_errors_are_consuls(address: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.snap"
    file.write_bytes(b"this is not a snapshot at all")
    text = "failed to decompress snapshot: gzip: invalid header"
    assert ask(address, "/v1/snapshot", put=file.read_bytes()) == (500, text.encode())
    status, _, err = waypost(address, "snapshot", "restore", str(file))
    assert (status, err) == (
        1,
        f"Error restoring snapshot: Unexpected response code: 500 ({text})\n",
    )
    status, _, err = waypost(address, "snapshot", "inspect", str(file))
    assert (status, err) == (1, f"Error reading snapshot: {text}\n")
    status, _, err = waypost(address, "snapshot", "save")
    assert status == 1
    assert "Missing FILE argument" in err
    status, _, err = waypost(address, "snapshot", "save", "/nowhere/x.snap")
    assert (status, err) == (
        1,
        "Error writing snapshot file: /nowhere/x.snap: No such file or directory\n",
    )


@pytest.mark.needs("consul")
def test_consuls_program_saves_inspects_and_restores(address: str, tmp_path: Path) -> None:
    file = tmp_path / "consul.snap"
    ask(address, "/v1/kv/a", put=b"1")
    status, out, err = consul(address, "snapshot", "save", str(file))
    assert (status, err) == (0, "")
    assert out.startswith("Saved and verified snapshot to index ")
    ours = waypost(address, "snapshot", "inspect", str(file))
    theirs = consul(address, "snapshot", "inspect", str(file))
    assert theirs[0] == ours[0] == 0
    assert theirs[1].split() == ours[1].split()
    ask(address, "/v1/kv/a", put=b"2")
    assert consul(address, "snapshot", "restore", str(file))[:2] == (0, "Restored snapshot\n")
    assert ask(address, "/v1/kv/a?raw") == (200, b"1")


@pytest.mark.needs("consul")
def test_autopilot_by_both_programs(address: str) -> None:
    set_config = ("operator", "autopilot", "set-config")
    get_config = ("operator", "autopilot", "get-config")
    assert waypost(address, *get_config) == consul(address, *get_config)
    given = ("-cleanup-dead-servers=false", "-last-contact-threshold=300ms", "-max-trailing-logs=9")
    assert waypost(address, *set_config, *given) == (0, "Configuration updated!\n", "")
    status, out, _ = consul(address, *get_config)
    assert status == 0
    assert "CleanupDeadServers = false\nLastContactThreshold = 300ms\nMaxTrailingLogs = 9\n" in out
    assert consul(address, *set_config, "-cleanup-dead-servers=true")[0] == 0
    assert waypost(address, *get_config) == consul(address, *get_config)
    status, out, err = waypost(address, *set_config, "-last-contact-threshold=soon")
    assert status == 1
    assert 'Error parsing autopilot config: time: invalid duration "soon"' in err


def test_the_state_of_the_servers(address: str) -> None:
    status, out, err = waypost(address, "operator", "autopilot", "state")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["Healthy:", "true"] in lines
    assert ["Status:", "leader"] in lines
    status, _, err = waypost(address, "operator", "raft", "transfer-leader")
    assert status == 1
    assert "cannot find peer" in err


def test_without_an_agent(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "x.snap"
    data.mkdir()
    with agent(data) as running:
        ask(running, "/v1/kv/a", put=b"1")
        status, _, err = waypost(running, "snapshot", "save", f"-data-dir={data}", str(file))
        assert status == 1
        assert err.strip()
    status, out, err = waypost("", "snapshot", "save", f"-data-dir={data}", str(file))
    assert (status, err) == (0, "")
    assert out.startswith("Saved and verified snapshot to index ")
    other = tmp_path / "other"
    other.mkdir()
    assert waypost("", "snapshot", "restore", f"-data-dir={other}", str(file)) == (
        0,
        "Restored snapshot\n",
        "",
    )
    with agent(other) as running:
        assert ask(running, "/v1/kv/a?raw") == (200, b"1")
    status, _, err = waypost("", "snapshot", "save", f"-data-dir={tmp_path}/none", str(file))
    assert (status, err) == (1, f"{tmp_path}/none: no such directory\n")
