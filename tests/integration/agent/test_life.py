"""Start, readiness, configuration, signals and the end of a real agent process."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from .process import PYTHON, ROOT, Answer, fails, free_ports, running


def test_ready_fast_and_says_where_everything_listens(make_agent):
    # The benchmark holds the figure; here other work shares the machine.
    agent = make_agent("-ui").start()
    assert agent.ready_s() < 5
    text = agent.log()
    assert f"HTTP API: 127.0.0.1:{agent.http}, unix://{agent.data}/waypost.sock" in text
    assert f"web interface: http://127.0.0.1:{agent.http}/ui/" in text
    assert f"DNS: 127.0.0.1:{agent.dns} (udp, tcp), domain consul." in text
    assert "Node name: 't1'" in text
    assert agent.get("/v1/catalog/services") == {"consul": []}
    assert agent.dig("t1.node.consul") == ["127.0.0.1"]
    status, page = agent.call("GET", "/ui/")
    assert status == 200
    assert b"<html" in page
    status, body = agent.call("GET", "/v1/catalog/services")
    assert body == b'{"consul":[]}'


def test_definitions_of_a_config_dir_json_and_hcl(make_agent):
    agent = make_agent()
    (agent.config_dir / "a.json").write_text(
        json.dumps({"service": {"name": "web", "port": 80, "tags": ["http"]}})
    )
    (agent.config_dir / "b.hcl").write_text(
        'service { name = "db" port = 5432 checks = [{ id = "db-ttl" ttl = "1h" status = "passing" }] }\n'
        'service { id = "db-2" name = "db" port = 5433 }\n'
    )
    (agent.config_dir / "README.txt").write_text("not read")
    agent.start()
    assert agent.get("/v1/catalog/services") == {"consul": [], "web": ["http"], "db": []}
    assert set(agent.health("db")) == {"db", "db-2"}
    assert agent.get("/v1/agent/checks")["db-ttl"]["Status"] == "passing"


def test_sighup_takes_definitions_over_and_keeps_the_old_ones_of_a_bad_file(make_agent):
    agent = make_agent()
    file = agent.config_dir / "a.json"
    file.write_text(json.dumps({"service": {"name": "one", "port": 1}}))
    agent.start()
    agent.register("by-api", port=9)
    assert set(agent.get("/v1/catalog/services")) == {"consul", "one", "by-api"}

    file.write_text(json.dumps({"service": {"name": "two", "port": 2}}))
    agent.signal(signal.SIGHUP)
    agent.eventually(lambda: set(agent.get("/v1/catalog/services")), {"consul", "two", "by-api"})

    file.write_text('{"service": {"name": "three", "prot": 3}}')
    agent.signal(signal.SIGHUP)
    agent.eventually(lambda: "the configuration is not taken over" in agent.log())
    said = agent.log().partition("the configuration is not taken over")[2]
    assert str(file) in said
    assert "prot" in said
    assert set(agent.get("/v1/catalog/services")) == {"consul", "two", "by-api"}
    assert agent.alive

    file.unlink()
    agent.signal(signal.SIGHUP)
    agent.eventually(lambda: set(agent.get("/v1/catalog/services")), {"consul", "by-api"})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", '{"servce": {}}', "servce"),
        ("x.json", '{"service": ', "x.json"),
        ("x.hcl", "service { name = ", "x.hcl"),
        ("x.hcl", 'ports { http = "many" }', "ports.http"),
        ("x.hcl", 'log_level = "LOUD"', "LOUD"),
        ("x.hcl", 'service { name = "a" checks = [{ http = "http://x/" }] }', "nterval"),
        ("x.hcl", 'service { name = "a" checks = [{ args = ["true"] interval = "1s" }] }', "cripts"),
        ("x.hcl", 'template { source = "a" contents = "b" }', "template"),
        ("x.hcl", 'dns_config { node_ttl = "soon" }', "node_ttl"),
        ("x.hcl", 'client_addr = "nowhere"', "client_addr"),
    ],
)  # fmt: skip
def test_a_bad_configuration_stops_the_start_with_a_reason(make_agent, name, text, words):
    agent = make_agent()
    (agent.config_dir / name).write_text(text)
    status, said = fails(agent.command)
    assert status == 1
    assert words in said
    assert "Traceback" not in said
    assert not (agent.data / "store").exists()


def test_sigterm_ends_cleanly_and_leaves_no_process(make_agent, upstream):
    agent = make_agent(balancer=True).start()
    one = upstream("one")
    agent.register("web", port=one.port, Tags=["http"])
    agent.eventually(lambda: agent.balanced("web.example.com"), (200, "one"))
    watcher = subprocess.Popen(
        [
            "curl", "-s", "-m", "30", "-o", "/dev/null",
            f"http://127.0.0.1:{agent.http}/v1/catalog/services?index=100000&wait=30s",
        ]
    )  # fmt: skip
    assert agent.nginx_pids()
    session = os.getsid(agent.pid)
    began = time.monotonic()
    assert agent.terminate(within_s=5) == 0
    assert time.monotonic() - began < 5
    watcher.wait(5)
    assert agent.nginx_pids() == []
    left = [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _session(int(entry.name)) == session
    ]
    assert left == []
    assert "agent has ended" in agent.log()
    assert "Traceback" not in agent.log()
    assert not (agent.data / "waypost.sock").exists()
    for port in (agent.http, agent.balancer):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def _session(pid):
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def test_what_was_registered_is_there_after_a_restart(make_agent):
    agent = make_agent().start()
    agent.register("web", port=80, Check={"TTL": "1h", "Status": "passing"})
    agent.put("/v1/kv/a/b", b"value")
    assert agent.terminate() == 0
    agent.start()
    assert agent.health("web") == {"web": "passing"}
    assert agent.call("GET", "/v1/kv/a/b?raw") == (200, b"value")
    assert agent.get("/v1/catalog/nodes")[0]["ID"] in agent.log()


def test_a_second_agent_on_the_same_directory_is_refused(make_agent):
    agent = make_agent().start()
    other = make_agent(data=agent.data)
    status, said = fails(other.command)
    assert status == 1
    assert str(agent.pid) in said
    assert str(agent.data) in said
    assert "Traceback" not in said
    assert agent.get("/v1/catalog/services") == {"consul": []}
    assert (agent.data / "waypost.sock").exists()


@pytest.mark.parametrize("which", ["http", "dns"])
def test_a_port_in_use_is_said(make_agent, which):
    agent = make_agent()
    port = getattr(agent, which)
    with socket.create_server(("127.0.0.1", port)):
        status, said = fails(agent.command)
    assert status == 1
    assert f"127.0.0.1:{port}" in said
    assert "in use" in said
    assert "Traceback" not in said


def test_a_data_directory_that_cannot_be_had(make_agent, tmp_path):
    (tmp_path / "file").write_text("")
    agent = make_agent(data=tmp_path / "file" / "data")
    status, said = fails(agent.command)
    assert status == 1
    assert str(tmp_path / "file") in said
    assert "Traceback" not in said


@pytest.mark.needs("ip")
def test_a_read_only_data_directory(make_agent, tmp_path):
    place = tmp_path / "ro"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(place)], check=True, timeout=10)
    try:
        agent = make_agent(data=place / "data")
        status, said = fails(agent.command)
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=10)
    assert status == 1
    assert str(place) in said
    assert "ead-only" in said
    assert "Traceback" not in said


def test_the_unix_socket_is_for_its_owner_alone(make_agent):
    agent = make_agent().start()
    mode = (agent.data / "waypost.sock").stat().st_mode
    assert stat.S_IMODE(mode) & 0o077 == 0 or stat.S_IMODE(agent.data.stat().st_mode) & 0o077 == 0
    done = subprocess.run(
        [
            "curl", "-s", "-m", "5", "--unix-socket", str(agent.data / "waypost.sock"),
            "http://localhost/v1/agent/self",
        ],
        capture_output=True, timeout=10, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["Config"]["NodeName"] == "t1"


def test_dev_keeps_nothing():
    with running("-dev") as agent:
        assert b"\n" in agent.call("GET", "/v1/catalog/services")[1].strip()
        agent.put("/v1/kv/a", b"1")
        assert agent.terminate() == 0
        agent.start()
        with pytest.raises(Answer, match="404"):
            agent.get("/v1/kv/a")
        assert not agent.data.exists()


def test_open_files_are_limited_by_the_system_alone(make_agent):
    agent = make_agent()
    agent.command = ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", *agent.command]
    agent.start()
    line = next(
        line
        for line in Path(f"/proc/{agent.pid}/limits").read_text().splitlines()
        if line.startswith("Max open files")
    )
    soft, hard = line.split()[3:5]
    assert soft == hard != "256"


def test_flags_override_files(make_agent):
    agent = make_agent("-http-port=" + str(free_ports(1)[0]), '-hcl=datacenter = "dc7"')
    port = int(agent.command[-2].partition("=")[2])
    agent.http = port
    agent.start()
    assert agent.get("/v1/catalog/datacenters") == ["dc7"]


@pytest.mark.needs("nginx")
def test_the_articles_template_renders_and_nginx_takes_it(make_agent, tmp_path, upstream):
    agent = make_agent().start()
    one, two, echo = upstream("one"), upstream("two"), upstream("echo", "tcp")
    agent.register("httpfront", port=one.port, ID="f1", Tags=["http"])
    agent.register("httpfront", port=two.port, ID="f2", Tags=["http"])
    agent.register(f"tcpfront-{agent.tcp}", port=echo.port, Tags=["tcp"])
    out = tmp_path / "out.conf"
    template = (ROOT / "examples/nginx.conf.ctmpl").read_text()
    source = tmp_path / "nginx.conf.ctmpl"
    # Port 80 may be taken on the machine that tests.
    source.write_text(template.replace("listen 80;", f"listen 127.0.0.1:{agent.balancer};"))
    done = subprocess.run(
        [*PYTHON, "template", "-once", f"-consul-addr=127.0.0.1:{agent.http}",
         "-template", f"{source}:{out}:cat {out}"],
        capture_output=True, text=True, timeout=30, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    assert text in done.stdout
    for line in (
        f"server 127.0.0.1:{one.port} max_fails=3",
        f"server 127.0.0.1:{two.port} max_fails=3",
        "server_name httpfront.example.com;",
        f"listen {agent.tcp};",
    ):
        assert line in text
    modules = "/usr/share/nginx/modules-available"
    load = "".join(
        f"include {modules}/{name};\n"
        for name in ("mod-stream.conf",)
        if Path(modules, name).exists()
    )
    wrapped = tmp_path / "test.conf"
    wrapped.write_text(f"pid {tmp_path}/pid;\nerror_log stderr;\n{load}{text}")
    tested = subprocess.run(
        ["/usr/sbin/nginx", "-t", "-c", str(wrapped)], capture_output=True, text=True, timeout=20
    )
    assert tested.returncode == 0, tested.stderr
