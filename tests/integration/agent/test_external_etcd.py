"""Agents on an etcd that the operator runs, with client certificates, with names and passwords, alive and dead."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from tests.integration.agent.process import Answer, free_ports
from tests.integration.agent.test_cluster import Site, ask, command, get, put, statuses, value
from tests.integration.etcd.certificates import Authority
from tests.integration.etcd.server import running

pytestmark = pytest.mark.needs("etcd")

PATIENCE_S = 60.0
"""A busy machine takes long to start an interpreter."""


@pytest.fixture
def directory():
    path = Path(tempfile.mkdtemp(prefix="wpx-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def secured(directory):
    """An etcd that wants client certificates, and the flags for it."""
    authority = Authority(directory / "pki")
    client = authority.issue("client")
    with running(directory / "etcd", tls=authority.issue("server")) as etcd:
        yield etcd, flags(etcd, client)


@pytest.fixture
def site():
    with contextlib.ExitStack() as stack:
        yield Site(stack)


def flags(etcd, tls=None, **more):
    found = [f"-etcd-servers={','.join(etcd.urls)}"]
    if tls is not None:
        more |= {
            "cafile": tls.ca_file,
            "certfile": tls.certificate_file,
            "keyfile": tls.key_file,
        }
    return found + [f"-etcd-{key.replace('_', '-')}={value}" for key, value in more.items()]


def until(true, *, what, within_s=40.0):
    deadline = time.monotonic() + within_s
    while True:
        try:
            found = true()
        except (OSError, Answer) as error:
            found, what = None, f"{what} ({error})"
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.05)


def leader(agent):
    found = get(agent, "/v1/operator/raft/configuration")["Servers"]
    return next((one["Node"] for one in found if one["Leader"]), "")


def log_of(agent):
    return agent.log_file.read_text()


def test_servers_find_each_other_in_the_store(secured, site):
    _, given = secured
    a, b = (
        site.make("a", *given).start(within_s=PATIENCE_S),
        site.make("b", *given).start(within_s=PATIENCE_S),
    )
    assert until(lambda: leader(a), what="a leader") == leader(b)
    assert put(a, "k", "1")
    assert value(b, "k") == "1"
    until(lambda: statuses(a) == statuses(b) == {"a": "alive", "b": "alive"}, what="both alive")
    assert ask(a, "GET", "/v1/status/leader").strip('"') in get(b, "/v1/status/peers")
    assert len(get(b, "/v1/status/peers")) == 2
    assert {one["Node"] for one in get(b, "/v1/catalog/service/consul")} == {"a", "b"}
    assert get(b, "/v1/operator/autopilot/health")["Healthy"]


def test_a_client_joins_with_a_token_and_goes_on_without_its_server(secured, site):
    _, given = secured
    a, b = (
        site.make("a", *given).start(within_s=PATIENCE_S),
        site.make("b", *given).start(within_s=PATIENCE_S),
    )
    until(lambda: leader(a), what="a leader")
    refused = site.make("x", f"-join={a.lan}")
    refused.spawn()
    token = command(a, "token", "create").stdout.strip()
    c = site.make("c", f"-join={a.lan}", f"-join-token={token}").start(within_s=PATIENCE_S)
    assert put(c, "from-client", "1")
    assert value(b, "from-client") == "1"
    ask(c, "PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    until(lambda: [one["Node"] for one in get(b, "/v1/catalog/service/web")] == ["c"], what="web")
    until(
        lambda: "needs a token" in log_of(refused), what="the refusal of a client without a token"
    )
    a.kill()
    until(lambda: put(c, "after", "1"), what="a write by the other server")
    until(lambda: statuses(b)["a"] == "failed", what="a failed")
    assert statuses(b)["c"] == "alive"


@pytest.mark.long
def test_another_server_leads_when_the_leader_dies_leaves_or_is_told_to(secured, site):
    _, given = secured
    agents = {name: site.make(name, *given).start(within_s=PATIENCE_S) for name in ("a", "b", "c")}
    first = until(lambda: leader(agents["a"]), what="a leader")
    wanted = next(name for name in agents if name != first)
    ids = {}

    def knows_all():
        servers = get(agents[first], "/v1/operator/raft/configuration")["Servers"]
        ids.update({one["Node"]: one["ID"] for one in servers})
        return len(ids) == 3

    until(knows_all, what="three servers")
    until(lambda: set(statuses(agents[first]).values()) == {"alive"}, what="all alive")
    began = time.monotonic()
    ask(agents[wanted], "POST", f"/v1/operator/raft/transfer-leader?id={ids[wanted]}")
    until(lambda: leader(agents[first]) == wanted, what=f"{wanted} leads", within_s=4)
    assert time.monotonic() - began < 4
    agents[wanted].terminate()
    rest = [agents[name] for name in agents if name != wanted]
    others = [agent.node for agent in rest]
    until(lambda: leader(rest[0]) in others, what="a leader after the last left", within_s=4)
    second = leader(rest[0])
    agents[second].kill()
    (last,) = [agents[name] for name in agents if name not in (wanted, second)]
    until(lambda: leader(last) == last.node, what="the last leads", within_s=12)
    assert put(last, "k", "1")
    until(lambda: statuses(last)[second] == "failed", what="the dead one failed", within_s=12)
    removed = command(last, "operator", "raft", "remove-peer", f"-id={ids[second]}")
    assert removed.returncode == 0, removed.stderr
    nodes = [one["Node"] for one in get(last, "/v1/operator/raft/configuration")["Servers"]]
    assert second not in nodes
    kept = command(last, "operator", "raft", "remove-peer", f"-id={ids[last.node]}")
    assert kept.returncode != 0
    assert "is alive" in kept.stdout + kept.stderr


@pytest.mark.long
def test_an_etcd_that_comes_late_and_goes_for_a_while(directory, site):
    with running(directory / "etcd") as etcd:
        etcd.stop()
        a = site.make("a", *flags(etcd))
        a.spawn()
        until(lambda: "etcd takes no writes" in log_of(a), what="the reason in the log")
        assert f"{etcd.urls[0]}: connection refused" in log_of(a)
        with pytest.raises(Answer, match="No cluster leader"):
            value(a, "k")
        etcd.start()
        a.wait_ready(within_s=PATIENCE_S)
        assert put(a, "k", "1")
        etcd.stop()
        until(lambda: ask(a, "GET", "/v1/status/leader").strip() == '""', what="no leader")
        with pytest.raises(Answer, match="500"):
            value(a, "k")
        assert value(a, "k", "&stale") == "1"
        assert a.alive
        etcd.start()
        until(lambda: value(a, "k") == "1", what="a read")
        until(lambda: put(a, "k", "2"), what="a write")
        until(lambda: leader(a) == "a", what="a leads again")


def secure(etcd, prefix="/waypost/"):
    """Switch etcd's authentication on, with a user that may touch nothing but waypost's keys."""
    import base64

    def b64(text):
        return base64.b64encode(text.encode()).decode()

    server = etcd.servers[0]
    for name, password in (("root", "r00t"), ("waypost", "geheim")):
        server.post("/v3/auth/user/add", {"name": name, "password": password})
        server.post("/v3/auth/role/add", {"name": name})
        server.post("/v3/auth/user/grant", {"user": name, "role": name})
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    allowed = {"permType": "READWRITE", "key": b64(prefix), "range_end": b64(end)}
    server.post("/v3/auth/role/grant", {"name": "waypost", "perm": allowed})
    server.post("/v3/auth/enable", {})


def test_a_name_and_a_password(directory, site):
    password = directory / "password"
    password.write_text("geheim\n")
    given = {"username": "waypost", "password_file": password}
    with running(directory / "etcd", flags=("--auth-token-ttl", "3")) as etcd:
        a = site.make("a", *flags(etcd, **given)).start(within_s=PATIENCE_S)
        assert "authentication switched off" in log_of(a)
        assert put(a, "before", "1")
        secure(etcd)
        until(lambda: put(a, "after", "1"), what="a write with a token")
        etcd.servers[0].kill()
        etcd.servers[0].start()
        until(lambda: put(a, "restarted", "1"), what="a write with a new token")
        b = site.make("b", *flags(etcd, **given)).start(within_s=PATIENCE_S)
        assert value(b, "restarted") == "1"
        time.sleep(4)  # longer than a token lives without being used
        assert put(b, "later", "1")
        until(lambda: value(a, "later", "&stale") == "1", what="the watch goes on")

        nameless = site.make("nameless", *flags(etcd))
        elsewhere = site.make("elsewhere", *flags(etcd, prefix="/other/", **given))
        wrong = directory / "wrong"
        wrong.write_text("falsch")
        unknown = site.make("unknown", *flags(etcd, username="waypost", password_file=wrong))
        for agent, words in (
            (nameless, "needs a name and a password"),
            (elsewhere, "permission for all keys with waypost's prefix"),
            (unknown, "invalid user ID or password"),
        ):
            agent.spawn()
            until(lambda a=agent, w=words: w in log_of(a), what=f"{agent.node} is told: {words}")
            assert agent.alive
        assert not any("geheim" in log_of(agent) for agent in (a, b, elsewhere))
        assert "geheim" not in ask(a, "GET", "/v1/agent/self")


@pytest.mark.long
def test_clusters_with_prefixes_of_their_own_share_an_etcd(directory, site):
    with running(directory / "etcd") as etcd:
        one = site.make("one", *flags(etcd, prefix="/one/"), "-encrypt=MDEyMzQ1Njc4OWFiY2RlZg==")
        two = site.make("two", *flags(etcd, prefix="/two"))
        one.start(within_s=PATIENCE_S)
        two.start(within_s=PATIENCE_S)
        assert put(one, "k", "1")
        assert put(two, "k", "2")
        assert (value(one, "k"), value(two, "k")) == ("1", "2")
        assert set(statuses(one)) == {"one"}
        for number in range(20):  # somebody else's keys, with revisions that are nobody's here
            etcd.servers[0].post(
                "/v3/kv/put", {"key": "L3JlZ2lzdHJ5", "value": f"AAA{number % 10}"}
            )
        assert value(one, "k") == "1"
        assert put(one, "k", "3")
        assert value(one, "k") == "3"

        keyless = site.make("keyless", *flags(etcd, prefix="/one/"))
        keyless.spawn()
        until(lambda: not keyless.alive, what="a server without the key ends")
        assert "sealed" in log_of(keyless)
        far = Site(site.stack, "dc2").make("far", *flags(etcd, prefix="/two/"))
        far.spawn()
        until(lambda: not far.alive, what="a server of another datacenter ends")
        assert "need prefixes of their own" in log_of(far)

        # L3R3by8 + "n NUL x": a node's record that is none. Leaving it out could leave out a rule of access control.
        etcd.servers[0].post("/v3/kv/put", {"key": "L3R3by9uAHg=", "value": "AA=="})
        until(lambda: not two.alive, what="a server whose state cannot be read ends")
        assert "stored value of key b'n" in log_of(two)
        assert one.alive


@pytest.mark.long
def test_keys_of_access_control_reach_every_server(secured, site):
    _, given = secured
    a = site.make("a", *given, f"-https-port={free_ports(1)[0]}")
    made = command(a, "init", f"-data-dir={a.data}", "-node=a")
    assert made.returncode == 0, made.stderr
    a.start(within_s=PATIENCE_S)
    b = site.make("b", *given, f"-https-port={free_ports(1)[0]}").start(within_s=PATIENCE_S)
    for name in ("ca.crt", "ca.key", "sa.key", "sa.pub"):
        assert (b.data / "pki" / name).read_bytes() == (a.data / "pki" / name).read_bytes()
    with pytest.raises(Answer, match=r"401|403"):
        put(b, "k", "1")


@pytest.mark.long
def test_an_etcd_that_lost_its_data_gets_the_same_cluster_again(directory, site):
    with running(directory / "etcd") as etcd:
        a = site.make("a", *flags(etcd)).start(within_s=PATIENCE_S)
        until(lambda: leader(a) == "a", what="a leads")
        before = (a.data / "cluster" / "ca.crt").read_bytes()
        etcd.stop()
        shutil.rmtree(directory / "etcd" / "m0")
        etcd.start()
        until(lambda: "put there again" in log_of(a), what="the keys are back", within_s=30)
        until(lambda: put(a, "k", "1"), what="a write")
        b = site.make("b", *flags(etcd)).start(within_s=PATIENCE_S)
        assert (b.data / "cluster" / "ca.crt").read_bytes() == before
        assert value(b, "k") == "1"
