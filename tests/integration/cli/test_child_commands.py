"""Commands that run a command of the user: `watch` and `lock`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from .conftest import Agent, Ask, settled

pytestmark = pytest.mark.needs("consul")


@pytest.mark.parametrize(
    "args",
    [
        ["lock"], ["lock", "a"], ["lock", "-n=0", "lk", "x"], ["lock", "-timeout=-1s", "lk", "a"],
        ["lock", "-monitor-retry=-1", "lk", "a"], ["lock", "lk", "exit 3"], ["lock", "-child-exit-code", "lk", "exit 3"],
        ["lock", "-verbose", "lk", "echo hi; exit 3"], ["lock", "-verbose", "-n=2", "sem", "echo hi"],
        ["lock", "-verbose", "-n=3", "sem", "echo", "hi"], ["lock", "-shell=false", "lk", "no-such-command"],
        ["lock", "lk", "echo $CONSUL_LOCK_HELD"], ["lock", "-pass-stdin", "lk", "cat"], ["lock", "lk", "cat"],
        ["watch", "-type=services", "cat >&2; exit 3"], ["watch", "-type=services", "-shell=false", "no-such-command"],
    ],
)  # fmt: skip
def test_same_as_consul(args: list[str], waypost: Ask, consul: Ask) -> None:
    theirs, ours = consul(*args, stdin=b"from stdin\n"), waypost(*args, stdin=b"from stdin\n")
    assert (ours.status, settled(ours.out)) == (theirs.status, settled(theirs.out))
    assert ours.err.splitlines()[:1] == theirs.err.splitlines()[:1]


@pytest.fixture(params=["waypost", "consul"])
def holder(request: pytest.FixtureRequest) -> list[str]:
    """Whose program holds the lock that ours competes for."""
    return [sys.executable, "-m", "waypost.cli.main"] if request.param == "waypost" else ["consul"]


@pytest.mark.parametrize("options", [[], ["-n=2"]])
def test_a_held_lock_keeps_others_out(
    options: list[str], holder: list[str], agent: Agent, waypost: Ask, tmp_path: Path
) -> None:
    prefix = f"held-{Path(holder[0]).name}-{len(options)}"
    environment = {**os.environ, "CONSUL_HTTP_ADDR": agent.address}
    places = 2 if options else 1
    holders = [
        subprocess.Popen(
            [*holder, "lock", *options, prefix, f"touch in{n}; while [ ! -e out ]; do sleep 0.1; done"],
            env=environment, cwd=tmp_path,
        )
        for n in range(places)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not all((tmp_path / f"in{n}").exists() for n in range(places)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        kept_out = waypost("lock", *options, "-timeout=1s", prefix, "echo no")
        assert (kept_out.status, kept_out.out) == (1, b"")
        assert kept_out.err == "Shutdown triggered or timeout during lock acquisition\n"
    finally:
        (tmp_path / "out").touch()
        for process in holders:
            process.wait(20)
    assert [process.returncode for process in holders] == [0] * places
    # Released by the end of its holder, it is free at once.
    assert waypost("lock", *options, "-timeout=10s", prefix, "echo yes").out == b"yes\n"
    assert waypost("kv", "get", "-keys", prefix).out == b""


def test_a_lost_lock_ends_the_command(agent: Agent, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "waypost.cli.main", "lock", "lost", "touch in; exec sleep 60"],
        env={**os.environ, "CONSUL_HTTP_ADDR": agent.address}, cwd=tmp_path, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "in").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with urllib.request.urlopen(
            f"http://{agent.address}/v1/kv/lost/.lock", timeout=5
        ) as answer:
            session = json.load(answer)[0]["Session"]
        request = urllib.request.Request(
            f"http://{agent.address}/v1/session/destroy/{session}", method="PUT"
        )
        urllib.request.urlopen(request, timeout=5).close()
        _, error = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert error.decode().splitlines()[-1] == "Lock lost, the command was ended"


def test_a_watch_runs_its_command_for_every_change(
    agent: Agent, waypost: Ask, tmp_path: Path
) -> None:
    waypost("kv", "put", "watched", "one")
    process = subprocess.Popen(
        [sys.executable, "-m", "waypost.cli.main", "watch", "-type=key", "-key=watched", "cat; echo $CONSUL_INDEX"],
        env={**os.environ, "CONSUL_HTTP_ADDR": agent.address}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        seen = []
        for value in ("two", "three", ""):
            entry, index = json.loads(process.stdout.readline()), int(process.stdout.readline())
            seen.append((entry["Value"], index == entry["ModifyIndex"]))
            if value:
                # The same value again changes nothing, and wakes nobody.
                waypost("kv", "put", "watched", {"two": "one", "three": "two"}[value])
                waypost("kv", "put", "watched", value)
        assert seen == [("b25l", True), ("dHdv", True), ("dGhyZWU=", True)]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_log_is_followed_until_the_reader_goes(agent: Agent) -> None:
    if agent.kind == "waypost":
        pytest.skip("our agent writes no line for a read; its monitor has tests of its own")
    process = subprocess.Popen(
        [sys.executable, "-m", "waypost.cli.main", "monitor", "-log-level=debug"],
        env={**os.environ, "CONSUL_HTTP_ADDR": agent.address}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        # The stream begins with the agent's next line: asking for something makes one.
        time.sleep(0.5)
        urllib.request.urlopen(f"http://{agent.address}/v1/agent/self", timeout=5).close()
        assert b"[DEBUG]" in process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=10)
