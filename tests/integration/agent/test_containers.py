"""The sample containers on a real Docker engine: registered, resolved, balanced, and gone again."""

from __future__ import annotations

import re
import socket
import time

import pytest

pytestmark = [pytest.mark.needs("docker", "nginx", "dig"), pytest.mark.timeout(120)]

BACKEND, FRONT, TCP = (
    f"waypost/{name}:v1.0.0" for name in ("httpbackend", "httpfront", "tcpfront")
)


@pytest.fixture(scope="module")
def agent(sample_engine):
    from .process import AgentProcess

    # Containers reach the bridge's address only: services and DNS for them are there.
    gateway = sample_engine.gateway
    config = {"bind_addr": gateway, "addresses": {"dns": f"127.0.0.1 {gateway}:53"}}
    one = AgentProcess("-ui", balancer=True, docker=sample_engine.host, config=config)
    try:
        one.start()
        one.eventually(lambda: "Listening for Docker events" in one.log())
        yield one
    finally:
        one.close()


@pytest.fixture(autouse=True)
def nothing_left(sample_engine, agent):
    yield
    sample_engine.remove_all()
    agent.eventually(lambda: agent.get("/v1/catalog/services"), {"consul": []})


def start(engine, image, name, *, tags="", flags=("-P",)):
    labels = ["-l", f"SERVICE_NAME={name}", *(["-l", f"SERVICE_TAGS={tags}"] if tags else [])]
    return engine.docker("run", "-d", *labels, *flags, image)


def instances(agent, name):
    return agent.get(f"/v1/catalog/service/{name}")


def echo(port, line=b"hello\n"):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(line)
        client.settimeout(5)
        return client.recv(1000)


def fronts(agent, count=20):
    """Return which instances answered `count` requests through the balancer."""
    seen = set()
    for _ in range(count):
        status, text = agent.balanced("httpfront.example.com")
        assert status == 200, text
        found = re.search(r"instance: ([0-9a-f]{12})", text)
        assert found, text
        seen.add(found[1])
    return seen


def test_a_container_registers_within_a_second_and_its_name_resolves(agent, sample_engine):
    began = time.monotonic()
    made = start(
        sample_engine, BACKEND, "httpbackend", flags=("-p", f"{sample_engine.port(1)}:8081")
    )
    started = time.monotonic()
    agent.eventually(lambda: len(instances(agent, "httpbackend")), 1)
    assert time.monotonic() - started < 1, f"docker run itself took {started - began:.1f} s"
    (one,) = instances(agent, "httpbackend")
    assert one["ServicePort"] == sample_engine.port(1)
    assert re.fullmatch(r".+:.+:8081", one["ServiceID"])
    assert agent.dig("httpbackend.service.dc1.consul") == [sample_engine.gateway]
    (srv,) = agent.dig("httpbackend.service.dc1.consul", "SRV")
    assert srv.startswith(f"1 1 {sample_engine.port(1)} ")
    assert agent.dig(srv.split()[3]) == [sample_engine.gateway]

    sample_engine.docker("stop", "-t", "1", made)
    agent.eventually(lambda: instances(agent, "httpbackend"), [])
    assert agent.dig("httpbackend.service.dc1.consul") == []


def test_http_is_balanced_over_what_runs(agent, sample_engine):
    made = [start(sample_engine, BACKEND, "httpfront", tags="http") for _ in range(3)]
    agent.eventually(lambda: len(instances(agent, "httpfront")), 3)
    short = {one[:12] for one in made}
    agent.eventually(lambda: agent.balanced("httpfront.example.com")[0] != 503)
    agent.eventually(lambda: fronts(agent), short)

    gone = made.pop()
    sample_engine.docker("stop", "-t", "1", gone)
    agent.eventually(lambda: fronts(agent), short - {gone[:12]})
    more = start(sample_engine, BACKEND, "httpfront", tags="http")
    agent.eventually(lambda: fronts(agent), (short - {gone[:12]}) | {more[:12]})


def test_the_front_finds_the_backend_by_its_name_whichever_came_first(agent, sample_engine):
    port = sample_engine.port(2)
    flags = (
        "-P",
        "--dns",
        sample_engine.gateway,
        "-e",
        f"BACKEND=httpbackend.service.dc1.consul:{port}",
    )
    start(sample_engine, FRONT, "httpfront", tags="http", flags=flags)
    agent.eventually(lambda: agent.balanced("httpfront.example.com")[0], 502)
    start(sample_engine, BACKEND, "httpbackend", flags=("-p", f"{port}:8081"))

    def backend_answers():
        # Docker's proxy takes connections before the program in the container listens, and drops them.
        status, text = agent.balanced("httpfront.example.com")
        assert "this is httpfrontservice" in text
        return status, "resp: [this is httpbackendservice" in text

    agent.eventually(backend_answers, (200, True))


def test_tcp_is_balanced_on_its_port(agent, sample_engine):
    name = f"tcpfront-{agent.tcp}"
    made = [start(sample_engine, TCP, name, tags="tcp") for _ in range(2)]
    agent.eventually(lambda: len(instances(agent, name)), 2)
    answers = []

    def both_answered():
        # TCP follows DNS, so the second instance may come up to a second after the first.
        answers.append(echo(agent.tcp))
        return all(any(one[:12].encode() in answer for answer in answers) for one in made)

    agent.eventually(both_answered)


def test_containers_that_were_there_before_and_went_while_nobody_looked(make_agent, sample_engine):
    kept = start(sample_engine, BACKEND, "kept")
    lost = start(sample_engine, BACKEND, "lost")
    agent = make_agent(docker=sample_engine.host).start()
    agent.eventually(lambda: set(agent.get("/v1/catalog/services")), {"consul", "kept", "lost"})
    agent.terminate()
    sample_engine.docker("rm", "-f", lost)
    late = start(sample_engine, BACKEND, "late")
    agent.start()
    agent.eventually(lambda: set(agent.get("/v1/catalog/services")), {"consul", "kept", "late"})
    for one in (kept, late):
        sample_engine.docker("rm", "-f", one)
    agent.eventually(lambda: agent.get("/v1/catalog/services"), {"consul": []})


def test_a_container_without_published_ports_is_named_in_the_log(agent, sample_engine):
    made = start(sample_engine, BACKEND, "hidden", flags=())
    agent.eventually(lambda: f"ignored: {made[:12]}" in agent.log() or made[:12] in agent.log())
    line = next(line for line in agent.log().splitlines() if made[:12] in line)
    assert "ignored" in line
    assert "hidden" not in agent.get("/v1/catalog/services")


@pytest.mark.parametrize(
    "name",
    [
        "evil; } server { listen 0.0.0.0:1; }",
        'evil"\n}',
        "evil{{ . }}",
        "evil$host",
        "../../etc/passwd",
    ],
)
def test_a_label_cannot_break_out_of_the_balancers_configuration(agent, sample_engine, name):
    start(sample_engine, BACKEND, "httpfront", tags="http")
    agent.eventually(lambda: agent.balanced("httpfront.example.com")[0], 200)
    known = len(agent.log())
    made = start(sample_engine, BACKEND, name, tags="http,}\nserver{")
    # Either the registrator or the balancer says why it is not served.
    agent.eventually(lambda: made[:12] in agent.log()[known:])
    agent.eventually(
        lambda: any(words in agent.log()[known:] for words in ("not registered", "no host label"))
    )
    time.sleep(0.3)
    assert fronts(agent, count=4)
    text = (agent.data / "nginx/nginx.conf").read_text()
    for part in ("listen 0.0.0.0:1;", "}\n}\nserver{", "passwd", "$host;\n}"):
        assert part not in text
    # And one that comes later is served as well.
    started = start(sample_engine, BACKEND, "httpfront", tags="http")
    agent.eventually(lambda: started[:12] in fronts(agent))


def test_script_checks_of_labels_need_the_operators_word(make_agent, sample_engine, tmp_path):
    mark = tmp_path / "ran"
    label = f"SERVICE_CHECK_SCRIPT=touch {mark}"
    sample_engine.docker(
        "run", "-d", "-P", "-l", "SERVICE_NAME=scripted", "-l", label,
        "-l", "SERVICE_CHECK_INTERVAL=1s", BACKEND,
    )  # fmt: skip
    refusing = make_agent(docker=sample_engine.host).start()
    refusing.eventually(lambda: "scripted" in refusing.get("/v1/catalog/services"))
    refusing.eventually(
        lambda: any(
            "cript" in check["Output"] and "enable_script_checks" in check["Output"]
            for check in refusing.get("/v1/agent/checks").values()
        )
    )
    time.sleep(1.5)
    assert not mark.exists()
    refusing.terminate()
    allowing = make_agent("-enable-script-checks", docker=sample_engine.host).start()
    allowing.eventually(mark.exists)
    allowing.eventually(lambda: list(allowing.health("scripted").values()), ["passing"])


def test_py_consul_unmodified(agent, sample_engine):
    consul = pytest.importorskip("consul")
    client = consul.Consul(host="127.0.0.1", port=agent.http)
    start(sample_engine, BACKEND, "httpbackend", tags="a,b")
    agent.eventually(lambda: "httpbackend" in client.catalog.services()[1])
    index, services = client.catalog.services()
    assert services == {"consul": [], "httpbackend": ["a", "b"]}
    assert int(index) > 0
    _, health = client.health.service("httpbackend", passing=True)
    assert health[0]["Service"]["Tags"] == ["a", "b"]
    assert client.kv.put("py/consul", "works")
    assert client.kv.get("py/consul")[1]["Value"] == b"works"
    assert client.kv.delete("py", recurse=True)
    assert client.agent.service.register("by-py", port=5, tags=["x"])
    assert "by-py" in client.agent.services()
    assert client.agent.service.deregister("by-py")
