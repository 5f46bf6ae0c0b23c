"""Whatever is sent: the agent stays up, stores nothing of it, and says what is wrong."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import struct
import subprocess
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .process import PYTHON, AgentProcess


@pytest.fixture(scope="module")
def agent():
    # What is asked for in `limits` is what a test can reach: the connections of one client.
    one = AgentProcess("-ui", config={"limits": {"http_max_conns_per_client": 100}})
    try:
        yield one.start()
    finally:
        one.close()


@pytest.fixture(autouse=True)
def unharmed(agent):
    """The same process answers afterwards, and the catalog and the keys are as they were."""
    pid = agent.pid
    before = stored(agent)
    yield
    assert agent.alive, agent.tail()
    assert agent.pid == pid
    assert stored(agent) == before
    assert agent.dig("t1.node.consul") == ["127.0.0.1"]
    assert "Traceback" not in agent.log(), agent.tail()


def stored(agent):
    return (
        agent.get("/v1/catalog/services"),
        [one["Node"] for one in agent.get("/v1/catalog/nodes")],
        agent.call("GET", "/v1/kv/?keys"),
        agent.get("/v1/agent/services"),
        agent.get("/v1/agent/checks"),
    )


def raw(agent, data, *, wait_s=2.0):
    """Send bytes to the HTTP port, return what comes until the end or the time."""
    with socket.create_connection(("127.0.0.1", agent.http), timeout=wait_s) as client:
        with contextlib.suppress(OSError):
            client.sendall(data)
        answer = b""
        with contextlib.suppress(OSError):
            while chunk := client.recv(65536):
                answer += chunk
                if b"\r\n\r\n" in answer:
                    break
        return answer


REGISTER = "/v1/agent/service/register"


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (REGISTER, b"{", "decode"),
        (REGISTER, b"", ""),
        (REGISTER, b"[]", ""),
        (REGISTER, b'"text"', ""),
        (REGISTER, b"\xff\xfe\x00", ""),
        (REGISTER, b"{}", "name"),
        (REGISTER, b'{"Name": 5}', ""),
        (REGISTER, b'{"Name": "a", "Port": "eighty"}', ""),
        (REGISTER, b'{"Name": "a", "Port": 1.5}', ""),
        (REGISTER, b'{"Name": "a", "Tags": "http"}', ""),
        (REGISTER, b'{"Name": "a", "Tags": [1]}', ""),
        (REGISTER, b'{"Name": "a", "Prot": 80}', "Prot"),
        (REGISTER, b'{"Name": "a", "Check": {"HTTP": "http://x/"}}', "nterval"),
        (REGISTER, b'{"Name": "a", "Check": {"TTL": "soon"}}', "soon"),
        (REGISTER, b'{"Name": "a", "Check": {"Args": ["true"], "Interval": "1s"}}', "cript"),
        (REGISTER, b'{"Name": "a", "Meta": {"k": 1}}', ""),
        (REGISTER, b'{"Name": "a", "Meta": {"k\\u0000": "v"}}', ""),
        (REGISTER, b"[" * 100_000, ""),
        ("/v1/agent/check/register", b'{"Name": "c"}', ""),
        ("/v1/agent/check/register", b'{"Name": "c", "TTL": "1s", "ServiceID": "none"}', "none"),
        ("/v1/agent/check/register", b'{"Name": "c", "TCP": "x:1", "Interval": "-1s"}', ""),
        ("/v1/agent/check/update/none", b'{"Status": "great"}', "great"),
        ("/v1/catalog/register", b'{"Node": "n"}', ""),
        ("/v1/catalog/register", b'{"Node": "n", "Address": 5}', ""),
        ("/v1/catalog/register", b"null", ""),
        ("/v1/catalog/deregister", b"{}", ""),
        ("/v1/session/create", b'{"TTL": "1ns"}', ""),
        ("/v1/session/create", b'{"Behavior": "explode"}', ""),
        ("/v1/session/create", b'{"Checks": ["nobody"]}', ""),
        ("/v1/txn", b"{}", ""),
        ("/v1/txn", b'[{"KV": {"Verb": "explode", "Key": "a"}}]', ""),
        ("/v1/txn", b'[{"KV": {"Verb": "set", "Key": "a", "Value": "!"}}]', ""),
        ("/v1/txn", json.dumps([{"KV": {"Verb": "get", "Key": "a"}}] * 65).encode(), "too many"),
        ("/v1/kv/big", b"x" * (512 * 1024 + 1), "524288"),
        ("/v1/kv/a?cas=soon", b"x", "soon"),
        ("/v1/kv/a?flags=-1", b"x", "-1"),
        ("/v1/kv/a?acquire=nobody", b"x", ""),
        ("/v1/kv/", b"x", "ey"),
        ("/v1/event/fire/", b"", ""),
        ("/v1/agent/maintenance", b"", "enable"),
        ("/v1/agent/service/maintenance/none?enable=true", b"", "none"),
    ],
)  # fmt: skip
def test_bodies(agent, path, body, words):
    status, text = agent.call("PUT", path, body)
    said = text.decode()
    assert 400 <= status < 600, said
    assert status != 503
    assert said.strip(), "an error without a reason"
    assert words.lower() in said.lower()
    assert len(said) < 2000


@pytest.mark.parametrize(
    "path",
    [
        "/v1/health/service/x?index=soon", "/v1/health/service/x?wait=soon&index=1",
        "/v1/health/service/x?filter=%3D%3D", "/v1/catalog/service/x?dc=mars",
        "/v1/health/state/great", "/v1/kv/..%2f..%2fetc%2fpasswd", "/v1/kv/%00", "/v1/kv/a?raw",
        "/ui/../../etc/passwd", "/ui/..%2f..%2fetc%2fpasswd", "/ui/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd", "/v1/", "/v1/none", "/%", "/%zz", "/v1/catalog/service/%ff%fe",
        "/" + "a" * 3000, "/v1/internal/ui/nodes?dc=%00", "/v1/agent/service/..%2f",
    ],
)  # fmt: skip
def test_paths(agent, path):
    status, text = agent.call("GET", path)
    assert 200 <= status < 600
    assert b"root:" not in text
    if "passwd" in path or path in ("/v1/none", "/%zz"):
        assert status >= 300, text


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n", b"\x00" * 100, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"PUT /v1/kv/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT /v1/kv/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"PUT /v1/kv/x HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"G" * 100_000, b"OPTIONS * HTTP/1.1\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"BREW /v1/kv/x HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=range(18),
)  # fmt: skip
def test_broken_http(agent, data):
    answer = raw(agent, data, wait_s=0.5)
    assert answer == b"" or re_status(answer) >= 200
    if answer and not data.startswith((b"OPTIONS", b"GET / HTTP/9")):
        assert re_status(answer) >= 300


def re_status(answer):
    assert answer.startswith(b"HTTP/1."), answer[:100]
    return int(answer.split()[1])


def test_half_open_connections_do_not_keep_others_out(agent):
    held = []
    try:
        for _ in range(60):
            client = socket.create_connection(("127.0.0.1", agent.http), timeout=2)
            client.sendall(b"PUT /v1/kv/half HTTP/1.1\r\nContent-Length: 10\r\n\r\nhal")
            held.append(client)
        for _ in range(20):
            client = socket.create_connection(("127.0.0.1", agent.dns), timeout=2)
            client.sendall(b"\x00")
            held.append(client)
        began = time.monotonic()
        assert agent.get("/v1/catalog/services") == {"consul": []}
        assert agent.dig("t1.node.consul", "A", "+tcp") == ["127.0.0.1"]
        assert time.monotonic() - began < 5
    finally:
        for client in held:
            # A reset instead of an end.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()


def test_too_many_connections_of_one_client_are_refused_and_recover(agent):
    held = [socket.create_connection(("127.0.0.1", agent.http), timeout=2) for _ in range(130)]
    for client in held:
        client.close()
    agent.eventually(lambda: agent.get("/v1/catalog/services"), {"consul": []})


def test_broken_dns_over_udp_and_tcp(agent):
    rng = random.Random(5)
    good = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"\x02t1\x04node\x06consul\0\0\x01\0\x01"
    packets = [
        b"", b"\0", good[:11], good[:-1], good[:12] + b"\xc0\x0c\0\x01\0\x01",
        good[:12] + b"\x3f" * 600, struct.pack(">6H", 7, 0x8180, 1, 1, 1, 1) + good[12:],
        struct.pack(">6H", 7, 0x0100, 65535, 65535, 65535, 65535) + good[12:],
        struct.pack(">6H", 7, 0x7800, 1, 0, 0, 0) + good[12:],
        struct.pack(">6H", 7, 0x0100, 0, 0, 0, 0),
        good + b"\0\0\x29\xff\xff\0\0\0\0\xff\xff",
        *(rng.randbytes(rng.randrange(1, 600)) for _ in range(300)),
    ]  # fmt: skip
    for n in range(300):
        broken = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        packets.append(bytes(broken))
        del n
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for packet in packets:
            client.sendto(packet, ("127.0.0.1", agent.dns))
        client.settimeout(5)
        client.sendto(struct.pack(">H", 4711) + good[2:], ("127.0.0.1", agent.dns))
        deadline = time.monotonic() + 5
        while client.recv(4096)[:2] != struct.pack(">H", 4711):
            assert time.monotonic() < deadline
    for packet in packets[:60]:
        with socket.create_connection(("127.0.0.1", agent.dns), timeout=2) as client:
            client.sendall(struct.pack(">H", len(packet)) + packet)
    with socket.create_connection(("127.0.0.1", agent.dns), timeout=2) as client:
        client.sendall(b"\xff\xff" + b"\0" * 100)


# -- any JSON on any endpoint ----------------------------------------------------------------------------------------

ENDPOINTS = (
    REGISTER, "/v1/agent/check/register", "/v1/agent/check/update/x", "/v1/catalog/register",
    "/v1/catalog/deregister", "/v1/txn", "/v1/session/create", "/v1/agent/check/pass/x",
    "/v1/session/destroy/x", "/v1/session/renew/x", "/v1/query", "/v1/acl/token", "/v1/config",
)  # fmt: skip
KEYS = st.sampled_from(
    ["Name", "ID", "Port", "Tags", "Check", "Checks", "Node", "Address", "Service", "Meta", "TTL", "KV",
     "Verb", "Key", "Value", "Weights", "Proxy", "Connect", "Status", "Interval", "HTTP", "Behavior"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(ENDPOINTS), body=st.one_of(VALUES, st.binary(max_size=60)))
def test_garbage(agent, path, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, text = agent.call("PUT", path, data)
    assert 200 <= status < 600
    if status == 200:
        undo(agent)
    else:
        assert text.strip()
        assert b"Traceback" not in text


def undo(agent):
    """Take out what was good enough to be stored after all."""
    for one in agent.get("/v1/agent/checks"):
        agent.call("PUT", f"/v1/agent/check/deregister/{quoted(one)}")
    for one in agent.get("/v1/agent/services"):
        if one != "consul":
            agent.call("PUT", f"/v1/agent/service/deregister/{quoted(one)}")
    for one in agent.get("/v1/catalog/nodes"):
        if one["Node"] != "t1":
            agent.call("PUT", "/v1/catalog/deregister", {"Node": one["Node"]})
    agent.call("DELETE", "/v1/kv/?recurse")


def quoted(text):
    from urllib.parse import quote

    return quote(text, safe="")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(["GET", "DELETE", "POST", "HEAD"]),
    path=st.sampled_from(
        ["catalog/service/", "health/service/", "health/node/", "health/state/", "kv/", "session/info/",
         "agent/health/service/id/", "internal/ui/", "event/list", "coordinate/node/", ""]
    ),
    rest=st.text(max_size=20).map(quoted),
    query=st.dictionaries(
        st.sampled_from(["filter", "near", "node-meta", "tag", "dc", "index", "keys", "separator", "cas"]),
        st.text(max_size=12).map(quoted), max_size=3,
    ),
)  # fmt: skip
def test_garbage_in_questions(agent, method, path, rest, query):
    question = "&".join(f"{key}={value}" for key, value in query.items())
    status, _ = agent.call(method, f"/v1/{path}{rest}?{question}&wait=1ms")
    assert 200 <= status < 600


# -- templates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ range }}", "range"),
        ("{{ if }", ""),
        ("{{ nosuch 1 }}", "nosuch"),
        ("{{ end }}", "end"),
        ('{{ "open }}', ""),
        ("{{ index 1 2 }}", "index"),
    ],
)
def test_a_broken_template_is_said_and_nothing_is_written(agent, tmp_path, text, words):
    source, out = tmp_path / "t.ctmpl", tmp_path / "out"
    source.write_text(text)
    done = subprocess.run(
        [*PYTHON, "template", "-once", f"-consul-addr=127.0.0.1:{agent.http}", "-template", f"{source}:{out}"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode != 0
    assert words in done.stderr
    assert "t.ctmpl" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_broken_template_of_the_agent_does_not_touch_the_rest(make_agent, tmp_path):
    agent = make_agent()
    (tmp_path / "t.ctmpl").write_text("{{ range }}")
    (agent.config_dir / "t.json").write_text(
        json.dumps(
            {"template": {"source": str(tmp_path / "t.ctmpl"), "destination": str(tmp_path / "o")}}
        )
    )
    agent.start()
    agent.eventually(lambda: "t.ctmpl" in agent.log())
    agent.register("web", port=1)
    assert agent.dig("web.service.consul") == ["127.0.0.1"]
    assert not (tmp_path / "o").exists()
    agent.signal(signal.SIGTERM)
    assert agent.terminate() == 0
