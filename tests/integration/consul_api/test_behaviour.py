"""What must hold of the API beyond the recorded answers: waking up, durability, access."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time

from .conftest import running_agent


async def get(port, path, *, headers=""):
    """Send a GET on its own connection; return status, index and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode())
    raw = await reader.read()
    writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    names = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), int(names.get("x-consul-index", 0)), body


async def test_many_waiters_wake_at_once_and_only_for_their_service(tmp_path):
    with running_agent(tmp_path, "-dev") as agent:
        agent.put(
            "/v1/catalog/register",
            {"Node": "a", "Address": "1.1.1.1", "Service": {"Service": "db"}},
        )
        _, index, _ = await get(agent.port, "/v1/health/service/db")
        waiting = [
            asyncio.create_task(get(agent.port, f"/v1/health/service/db?index={index}&wait=30s"))
            for _ in range(150)
        ]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in waiting)
        await asyncio.to_thread(
            agent.put,
            "/v1/catalog/register",
            {"Node": "z", "Address": "2.2.2.2", "Service": {"Service": "other"}},
        )
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting), "another service woke them"
        began = time.monotonic()
        await asyncio.to_thread(
            agent.put,
            "/v1/catalog/register",
            {"Node": "b", "Address": "1.1.1.2", "Service": {"Service": "db"}},
        )
        answers = await asyncio.gather(*waiting)
        assert time.monotonic() - began < 2
        assert {len(json.loads(body)) for _, _, body in answers} == {2}
        assert len({new for _, new, _ in answers}) == 1


async def test_a_kept_answer_changes_with_what_it_shows(tmp_path):
    with running_agent(tmp_path, "-dev") as agent:
        seen = []
        for number in range(20):
            await asyncio.to_thread(agent.put, "/v1/kv/k", str(number).encode())
            _, _, body = await get(agent.port, "/v1/kv/k?raw")
            seen.append(int(body))
            _, _, body = await get(agent.port, "/v1/kv/k?raw")
            seen.append(int(body))
        assert seen == sorted([*range(20), *range(20)])
        await asyncio.to_thread(agent.send, "DELETE", "/v1/kv/k")
        status, _, _ = await get(agent.port, "/v1/kv/k?raw")
        assert status == 404


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    data = f"-data-dir={tmp_path / 'data'}"
    with running_agent(tmp_path, data) as agent:
        port = agent.port
        agent.put("/v1/kv/kept", b"yes")
        agent.put(
            "/v1/agent/service/register",
            {"Name": "web", "Port": 80, "Check": {"TTL": "10m", "Status": "passing"}},
        )
        session = json.loads(agent.put("/v1/session/create", {"TTL": "60s"}))["ID"]
        agent.put(f"/v1/kv/lock?acquire={session}", b"x")
        before = agent.json("/v1/kv/lock")
        os.kill(agent.process.pid, signal.SIGKILL)
        agent.process.wait()
    with running_agent(tmp_path, data, port=port) as agent:
        assert agent.send("GET", "/v1/kv/kept?raw")[2] == b"yes"
        assert agent.json("/v1/kv/lock") == before
        assert agent.json("/v1/health/service/web")[0]["Service"]["Port"] == 80
        assert [s["ID"] for s in agent.json("/v1/session/list")] == [session]


def test_a_session_ends_with_its_check(agent):
    agent.put(
        "/v1/agent/check/register", {"ID": "own", "Name": "own", "TTL": "10m", "Status": "passing"}
    )
    made = agent.put(
        "/v1/session/create", {"Checks": ["own"], "LockDelay": "0s", "Behavior": "delete"}
    )
    session = json.loads(made)["ID"]
    agent.put(f"/v1/kv/held?acquire={session}", b"x")
    agent.put("/v1/agent/check/fail/own")
    deadline = time.monotonic() + 5
    while agent.json(f"/v1/session/info/{session}"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert agent.send("GET", "/v1/kv/held")[0] == 404


def test_hash_blocking_wakes_on_a_change_and_ends_on_removal(agent):
    agent.put("/v1/agent/service/register", {"Name": "h", "Port": 1})
    known = agent.json("/v1/agent/service/h")["ContentHash"]
    began = time.monotonic()
    same = agent.json(f"/v1/agent/service/h?hash={known}&wait=500ms")
    assert same["ContentHash"] == known
    assert time.monotonic() - began >= 0.5
    agent.put("/v1/agent/service/register", {"Name": "h", "Port": 2})
    assert agent.json(f"/v1/agent/service/h?hash={known}&wait=10s")["Port"] == 2
    agent.put("/v1/agent/service/deregister/h")
    assert agent.send("GET", f"/v1/agent/service/h?hash={known}")[0] == 404


def test_a_missing_family_says_so(agent):
    status, _, body = agent.send("GET", "/v1/query")
    assert (status, body) == (501, b"This agent does not support prepared queries yet")


def test_monitor_streams_the_log(agent):
    with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as connection:
        connection.sendall(b"GET /v1/agent/monitor?loglevel=debug HTTP/1.1\r\nHost: x\r\n\r\n")
        received = connection.recv(4096)
        deadline = time.monotonic() + 10
        while b"[DEBUG]" not in received and b"[INFO]" not in received:
            assert time.monotonic() < deadline
            agent.json("/v1/agent/members")
            connection.settimeout(0.5)
            try:
                received += connection.recv(4096)
            except TimeoutError:
                continue
    assert received.startswith(b"HTTP/1.1 200 OK")
