"""Real agents as servers and clients of clusters, on loopback addresses of one machine."""

import contextlib
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from tests.integration.agent.process import AgentProcess, Answer, environment, free_ports

pytestmark = pytest.mark.needs("etcd", "dig")

CLUSTER = {"cluster": {"heartbeat": "50ms", "election_timeout": "500ms", "failure_timeout": "3s"}}
TOKEN = "abcdef.0123456789abcdef"


class Site:
    """A datacenter whose machines have ports of their own."""

    def __init__(self, stack, name="dc1"):
        self.stack = stack
        self.name = name

    def make(self, node, *flags, config=None):
        lan, wan, store = free_ports(3)
        ports = {"ports": {"serf_lan": lan, "serf_wan": wan, "store": store}}
        agent = AgentProcess(
            f"-datacenter={self.name}",
            *flags,
            config={**CLUSTER, **(config or {}), **ports},
            node=node,
        )
        self.stack.callback(agent.close)
        agent.lan, agent.wan = f"127.0.0.1:{lan}", f"127.0.0.1:{wan}"
        return agent


def ask(agent, method, path, body=None):
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode() if body else None
    request = urllib.request.Request(
        f"http://127.0.0.1:{agent.http}{path}", data=data, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        raise Answer(error.code, error.read().decode()) from None


def get(agent, path):
    return json.loads(ask(agent, "GET", path))


def put(agent, key, value):
    return ask(agent, "PUT", f"/v1/kv/{key}", value) == "true"


def value(agent, key, more=""):
    return ask(agent, "GET", f"/v1/kv/{key}?raw{more}")


def peers(agent):
    found = get(agent, "/v1/operator/raft/configuration")["Servers"]
    return sorted(one["Node"] for one in found if one["Voter"])


def statuses(agent):
    names = {1: "alive", 3: "left", 4: "failed"}
    return {one["Name"]: names[one["Status"]] for one in get(agent, "/v1/agent/members")}


def command(agent, *words):
    return subprocess.run(
        [sys.executable, "-m", "waypost", *words],
        env=environment()
        | {"CONSUL_HTTP_ADDR": f"127.0.0.1:{agent.http}", "HOME": str(agent.folder)},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture(scope="module")
def site():
    with contextlib.ExitStack() as stack:
        yield Site(stack)


@pytest.fixture(scope="module")
def three(site):
    first = site.make("s1", "-server", "-bootstrap-expect=3")
    first.spawn()
    first.eventually(lambda: refusal(first, "GET", "/v1/kv/a"), (500, "No cluster leader"))
    assert get(first, "/v1/catalog/services?stale") == {}
    others = [
        site.make(node, "-server", "-bootstrap-expect=3", f"-join={first.lan}")
        for node in ("s2", "s3")
    ]
    for one in others:
        one.spawn()
    for one in (first, *others):
        one.wait_ready(within_s=40)
    first.eventually(lambda: peers(first), ["s1", "s2", "s3"])
    return [first, *others]


def refusal(agent, method, path, body=None):
    """Return status and text of a refusal; 200 where there is none."""
    try:
        return 200, ask(agent, method, path, body)
    except Answer as answer:
        return answer.status, answer.text


def test_three_servers_agree_and_see_each_others_writes(three):
    for n, one in enumerate(three):
        assert put(one, f"from/{n}", f"value {n}") is True
    for one in three:
        assert [value(one, f"from/{n}") for n in range(3)] == ["value 0", "value 1", "value 2"]
        assert set(statuses(one).values()) == {"alive"}
        assert len(get(one, "/v1/catalog/service/consul")) == 3
    leaders = {get(one, "/v1/status/leader") for one in three}
    assert len(leaders) == 1
    shown = command(three[1], "operator", "raft", "list-peers")
    assert (
        len(re.findall(r"^s[123] .* (?:leader|follower) +true +3$", shown.stdout, re.MULTILINE))
        == 3
    )


def test_a_client_joins_with_a_token_and_is_a_whole_agent(three, site):
    stranger = site.make("c1", f"-join={three[0].lan}")
    stranger.spawn()
    stranger.eventually(lambda: "needs a token" in stranger.tail(), True)
    stranger.kill()

    made = command(three[1], "token", "create", TOKEN)
    assert made.stdout.strip() == TOKEN, made.stderr
    client = site.make("c2", f"-join={three[0].lan}", f"-join-token={TOKEN}").start(within_s=30)
    put(three[2], "seen", "by all")
    client.eventually(lambda: value(client, "seen"), "by all")
    assert put(client, "written/by", "a client") is True
    assert value(three[1], "written/by") == "a client"
    ask(client, "PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    [entry] = get(three[0], "/v1/catalog/service/web")
    assert (entry["Node"], entry["ServicePort"]) == ("c2", 80)
    assert statuses(three[0])["c2"] == "alive"
    assert get(client, "/api/v1/namespaces")["kind"] == "NamespaceList"

    client.kill()
    three[0].eventually(lambda: statuses(three[0])["c2"], "failed", within_s=20)
    assert get(three[0], "/v1/health/service/web?passing") == []
    # Its certificate is enough now.
    client.start(within_s=30)
    three[0].eventually(lambda: statuses(three[0])["c2"], "alive", within_s=20)
    assert command(client, "leave").returncode == 0
    three[0].eventually(lambda: statuses(three[0])["c2"], "left", within_s=20)


def test_the_cluster_goes_on_without_a_server_and_takes_it_back(three):
    leader = get(three[0], "/v1/status/leader")
    [dead] = [one for one in three if leader.endswith(f":{one.server}")]
    alive = [one for one in three if one is not dead]
    dead.kill()
    for n, one in enumerate(alive):
        one.eventually(lambda one=one, n=n: put(one, f"after/{n}", "x"), True, within_s=20)
        assert value(one, "from/0") == "value 0"
    alive[0].eventually(lambda: statuses(alive[0])[dead.node], "failed", within_s=20)
    dead.start(within_s=40)
    dead.eventually(lambda: value(dead, "after/1"), "x", within_s=20)
    alive[0].eventually(lambda: statuses(alive[0])[dead.node], "alive", within_s=20)


def test_without_a_quorum_reads_go_on_and_writes_are_refused(three):
    keeper, *gone = three
    for one in gone:
        one.kill()
    keeper.eventually(lambda: refusal(keeper, "PUT", "/v1/kv/x", "y")[0], 500, within_s=30)
    assert ask(keeper, "GET", "/v1/kv/from/0?raw&stale") == "value 0"
    assert get(keeper, "/v1/catalog/services?stale")["consul"] == []
    for one in gone:
        one.start(within_s=60)
    for one in three:
        one.eventually(lambda one=one: put(one, "again", one.node), True, within_s=30)


def test_a_whole_cluster_comes_back_after_kill(three):
    before = {key: value(three[0], key) for key in get(three[0], "/v1/kv/?keys")}
    for one in three:
        one.kill()
    for one in three:
        one.spawn()
    for one in three:
        one.wait_ready(within_s=60)
    for one in three:
        assert {key: value(one, key) for key in get(one, "/v1/kv/?keys")} == before


def test_another_datacenter_answers_for_itself(three, site):
    other = Site(site.stack, "dc2").make(
        "far", "-server", "-bootstrap-expect=1", f"-join-wan={three[0].wan}"
    )
    other.start(within_s=40)
    put(other, "where", "far away")
    three[0].eventually(
        lambda: get(three[0], "/v1/catalog/datacenters"), ["dc1", "dc2"], within_s=20
    )
    nodes = get(three[0], "/v1/catalog/nodes?dc=dc2")
    assert [one["Node"] for one in nodes] == ["far"]
    other.eventually(lambda: len(get(other, "/v1/catalog/nodes?dc=dc1")) >= 3, within_s=20)
    three[0].eventually(lambda: three[0].dig("consul.service.dc2.consul"), ["127.0.0.1"])
    # It is judged there, where this is a program of the same machine.
    assert value(three[0], "where", "&dc=dc2") == "far away"
    assert refusal(three[0], "GET", "/v1/catalog/nodes?dc=dc3") == (500, "No path to datacenter")


def test_who_joins_a_protected_cluster_gets_its_access_control():
    with contextlib.ExitStack() as stack:
        site = Site(stack)
        first = site.make("p1", "-server", "-bootstrap-expect=1")
        first.data.mkdir()
        [port] = free_ports(1)
        words = [f"-data-dir={first.data}", f"-port={port}", "-node=p1", "-advertise=127.0.0.1"]
        made = command(first, "init", *words)
        assert made.returncode == 0, made.stderr
        https = json.dumps({"ports": {"https": port}})
        first.config_dir.joinpath("10.json").write_text(https)
        first.start(within_s=30)
        operator = f"-kubeconfig={first.data / 'operator.conf'}"
        words = ["token", "create", operator, "-print-join-command", TOKEN]
        # The leader has to write the policy first that lets an operator do this.
        line = first.eventually(lambda: (done := command(first, *words)).returncode == 0 and done)
        pin = line.stdout.split()[-1]
        assert pin.startswith("sha256:"), line.stderr

        [port] = free_ports(1)
        second = site.make(
            "p2",
            "-server",
            f"-join={first.lan}",
            f"-join-token={TOKEN}",
            f"-discovery-token-ca-cert-hash={pin}",
            f"-https-port={port}",
        )
        second.spawn()
        second.eventually(lambda: b"starting again" in second.this_log(), True, within_s=30)
        second.wait_ready(within_s=30)
        assert (second.data / "pki" / "apiserver.crt").exists()
        assert refusal(second, "PUT", "/v1/kv/a", "x")[0] == 403
        assert refusal(first, "PUT", "/v1/kv/a", "x")[0] == 403
        shown = command(first, "token", "list", operator)
        assert "abcdef" in shown.stdout, shown.stderr


def test_the_survivor_of_a_disaster_goes_on():
    with contextlib.ExitStack() as stack:
        site = Site(stack)
        first = site.make("d1", "-server", "-bootstrap-expect=2")
        second = site.make("d2", "-server", "-bootstrap-expect=2", f"-join={first.lan}")
        for one in (first, second):
            one.spawn()
        for one in (first, second):
            one.wait_ready(within_s=40)
        put(first, "kept", "value")
        adopted = command(first, "init", f"-data-dir={first.data}", "-node=d1", "-dry-run")
        assert "the cluster's own" in adopted.stdout, adopted.stderr
        words = ["operator", "recover", f"-data-dir={first.data}", f"-server-port={first.server}"]
        assert "is in use" in command(first, *words).stderr
        first.kill()
        second.kill()
        first.eventually(lambda: "is in use" in command(first, *words).stderr, False)
        first.start(within_s=40)
        assert value(first, "kept") == "value"
        assert peers(first) == ["d1"]
        put(first, "goes", "on")
        second.start(within_s=60)
        second.eventually(lambda: value(second, "goes"), "on", within_s=20)


def test_settings_that_cannot_be_are_said_in_one_line(tmp_path):
    for words, text in (
        (["-dev", "-bootstrap-expect=3"], "not allowed in dev mode"),
        (["-dev", "-join=127.0.0.1"], "cannot join"),
        ([f"-data-dir={tmp_path / 'x'}", "-bootstrap-expect=1", "-encrypt=abc"], "encrypt"),
        ([f"-data-dir={tmp_path / 'y'}", "-server", "-join=a b"], "not an address"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "waypost", "agent", *words],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 1
        assert text in done.stderr + done.stdout
        assert "Traceback" not in done.stderr + done.stdout


def test_json_of_members_is_consuls(three):
    member = get(three[0], "/v1/agent/members")[0]
    assert json.dumps(sorted(member)) == json.dumps(
        sorted(
            [
                "Name",
                "Addr",
                "Port",
                "Tags",
                "Status",
                "ProtocolMin",
                "ProtocolMax",
                "ProtocolCur",
                "DelegateMin",
                "DelegateMax",
                "DelegateCur",
            ]
        )
    )
