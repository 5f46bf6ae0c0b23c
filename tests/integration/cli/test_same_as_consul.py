"""Every command answers as Consul's own program does, given the same agent in the same state."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from .conftest import Agent, Ask, settled

pytestmark = pytest.mark.needs("consul")


def _same(waypost: Ask, consul: Ask, args: list[str], **how) -> None:
    theirs = consul(*args, **how)
    ours = waypost(*args, **how)
    assert ours.status == theirs.status, ours.err
    ours_out, theirs_out = settled(ours.out), settled(theirs.out)
    if args == ["maint"]:
        # Consul's program shows the maintenance of node and services in no particular order.
        ours_out, theirs_out = (sorted(out.split("\n\n")) for out in (ours_out, theirs_out))
    assert ours_out == theirs_out
    assert settled(ours.err) == settled(theirs.err)


@pytest.fixture(scope="module", autouse=True)
def _filled(agent: Agent) -> None:
    import urllib.request

    def put(path: str, body: bytes) -> None:
        request = urllib.request.Request(f"http://{agent.address}{path}", data=body, method="PUT")
        urllib.request.urlopen(request, timeout=5).close()

    put("/v1/kv/foo", b"bar")
    put("/v1/kv/empty", b"")
    put("/v1/kv/dir/one?flags=18446744073709551615", b"1")
    put("/v1/kv/dir/two", b"two words")
    put("/v1/kv/dir/sub/three", b"<&> \xe4\xb8")
    put("/v1/kv/sp%20ace/%C3%BC%3F", b"odd")
    put("/v1/agent/service/register", b'{"Name":"web","Tags":["v1","a"],"Port":80}')
    put("/v1/agent/service/register", b'{"Name":"redis-cache","Port":6379}')


READING = [
    "members", "members -detailed", "members -wan", "members -status=alive", "members -status=left", "members extra",
    "members --status alive -detailed=false", "members -segment=_all",
    "catalog datacenters", "catalog datacenters extra", "catalog nodes", "catalog nodes -detailed",
    "catalog nodes extra", "catalog nodes -service=consul", "catalog nodes -service=nope", "catalog nodes -near=_agent",
    "catalog nodes -node-meta=a=b", "catalog nodes -filter=bad", "catalog nodes -filter=Node==n1",
    "catalog nodes -datacenter=nowhere", "catalog nodes -service=web -detailed", "catalog nodes -stale",
    "catalog services", "catalog services -tags", "catalog services -node=n1", "catalog services -node=nope",
    "catalog services -node=n1 -tags", "catalog services -node-meta=a=b", "catalog services x y",
    "kv get", "kv get foo", "kv get /foo", "kv get nope", "kv get foo bar", "kv get empty", "kv get -detailed foo",
    "kv get -detailed empty", "kv get -base64 foo", "kv get -base64 -detailed foo", "kv get -recurse",
    "kv get -recurse dir/", "kv get -recurse -detailed dir", "kv get -recurse -base64 dir", "kv get -recurse nope",
    "kv get -keys", "kv get -keys dir", "kv get -keys dir/", "kv get -keys -separator= dir", "kv get -keys nope",
    "kv get -keys -separator=u", "kv get -stale foo", "kv get dir/sub/three",
    "kv export", "kv export dir", "kv export /dir", "kv export nope", "kv export a b",
    "info", "info extra", "maint", "maint extra", "maint -enable -disable", "maint -reason=x", "maint -service=web",
    "maint -disable -reason=x", "maint -service=nope -enable", "maint -service=nope -disable",
    "operator raft list-peers", "operator raft list-peers extra", "operator raft list-peers -datacenter=nowhere",
    "operator raft remove-peer", "operator raft remove-peer -id=x", "operator raft remove-peer -address=x",
    "operator raft remove-peer -address=x -id=y",
    "reload", "force-leave nope", "force-leave -prune nope", "event -name=x -tag=t",
    "event -name=deploy", "event -name=deploy -service=web -tag=v1 payload", "join 127.0.0.1:1",
    "join 127.0.0.1:1 127.0.0.1:2", "monitor -log-level=bogus",
    "watch -type=bogus", "watch -type=key", "watch -type=key -key=foo", "watch -type=key -key=nope",
    "watch -type=keyprefix", "watch -type=keyprefix -prefix=dir", "watch -type=keyprefix -prefix=nope",
    "watch -type=services", "watch -type=nodes", "watch -type=service",
    "watch -type=service -service=nope",
    "watch -type=service -service=web -passingonly=maybe", "watch -type=checks -service=web",
    "watch -type=checks -state=critical", "watch -type=checks -service=web -state=any", "watch -type=event -name=none",
    "watch -type=key -key=foo -name=x", "watch -type=key -key=foo -prefix=x",
]  # fmt: skip


@pytest.mark.parametrize("line", READING)
def test_reading(line: str, waypost: Ask, consul: Ask) -> None:
    _same(waypost, consul, line.split())


@pytest.mark.parametrize(
    "args",
    [
        ["members", "-status="],
        ["kv", "get", "sp ace/ü?"],
        ["kv", "get", ""],
        ["kv", "get", "-keys", ""],
    ],
)
def test_reading_with_odd_arguments(args: list[str], waypost: Ask, consul: Ask) -> None:
    _same(waypost, consul, args)


WRITING = [
    "kv put", "kv put a b c", "kv put new", "kv put new value", "kv put -flags=7 new v", "kv put /lead v",
    "kv put -cas new v", "kv put -cas -modify-index=1 new v", "kv put -cas -modify-index=0 new v",
    "kv put -acquire new v", "kv put -release new v", "kv put -release -session=abc new v", "kv put -session=x new v",
    "kv put -acquire -session=bad new v", "kv put new @/nope", "kv put -base64 new aGk=",
    "kv delete", "kv delete a b", "kv delete nope", "kv delete -recurse nope", "kv delete -cas new",
    "kv delete -cas -modify-index=1 new", "kv delete -cas -recurse -modify-index=1 new",
    "kv delete -modify-index=1 new", "kv delete new", "kv delete /new",
    "kv import", "kv import a b", "kv import []", "kv import @/nope",
    'kv import [{"key":"new","flags":3,"value":"aGk="}]',
    "services register", "services register -name=x -port=80 -tag=a -tag=b -meta=k=v -address=1.2.3.4",
    "services register -name=x file.json", "services register nope.json", "services register -id=x",
    "services register -name=x -tagged-address=lan=1.2.3.4", "services register -name=x -tagged-address=lan=1.2.3.4:80",
    "services deregister", "services deregister -id=x", "services deregister -id=x file.json",
    "services deregister -id=nope", "services deregister nope.json",
    "maint -enable", "maint", "maint -enable -service=web -reason=because", "maint", "maint -disable",
    "maint -disable -service=web",
]  # fmt: skip


@pytest.mark.parametrize("line", WRITING)
def test_writing(line: str, agent: Agent, waypost: Ask, consul: Ask) -> None:
    # Each program finds the same state: what one leaves behind the other would leave as well.
    _same(waypost, consul, line.split(" "))


def test_values_are_written_as_they_are(tmp_path: Path, waypost: Ask, consul: Ask) -> None:
    value = bytes(range(256)) + b"\n"
    (tmp_path / "value").write_bytes(value)
    for how in (["@value"], ["-"]):
        assert waypost("kv", "put", "raw", *how, stdin=value).status == 0
        for ask in (waypost, consul):
            assert ask("kv", "get", "raw").out == value + b"\n"
    assert waypost("kv", "put", "-base64", "raw", base64.b64encode(value).decode()).status == 0
    assert consul("kv", "get", "raw").out == value + b"\n"
    # Consul's -detailed takes a tab in the value for the end of a column.
    assert waypost("kv", "get", "-detailed", "raw").out.endswith(
        b"\nValue            " + value + b"\n"
    )


def test_an_error_of_kv_tells_the_reason(waypost: Ask, consul: Ask) -> None:
    theirs, ours = (ask("kv", "get", "-datacenter=nowhere", "foo") for ask in (consul, waypost))
    assert ours.err == theirs.err.rstrip("\n") + " (No path to datacenter)\n"


def _without_zeros(value):
    """Consul's program prints the fields it knows, ours those of the answer; they differ in zeros."""
    if isinstance(value, list):
        return [_without_zeros(item) for item in value]
    if isinstance(value, dict):
        return {
            k: kept
            for k, v in value.items()
            if (kept := _without_zeros(v)) not in (None, "", "0s", 0, {}, [], False)
        }
    return value


@pytest.mark.parametrize(
    "line",
    [
        "watch -type=service -service=web",
        "watch -type=service -service=web -tag=v1 -passingonly=true",
        "watch -type=service -service=consul",
        "watch -type=checks",
        "watch -type=checks -state=passing",
    ],
)
def test_a_watch_prints_the_same_facts(line: str, waypost: Ask, consul: Ask) -> None:
    theirs, ours = consul(*line.split()), waypost(*line.split())
    assert (ours.status, theirs.status) == (0, 0)
    assert _without_zeros(json.loads(ours.out)) == _without_zeros(json.loads(theirs.out))


def test_base64_that_is_none_is_refused(waypost: Ask) -> None:
    # Consul says so and writes all the same, and ends with status 0.
    done = waypost("kv", "put", "-base64", "refused", "!!")
    assert (done.status, done.err.startswith("Error! Cannot base 64 decode data: ")) == (1, True)
    assert waypost("kv", "get", "refused").status == 1


def test_check_and_set(waypost: Ask, consul: Ask) -> None:
    assert waypost("kv", "put", "counter", "1").status == 0
    index = json.loads(waypost("watch", "-type=key", "-key=counter").out)["ModifyIndex"]
    assert waypost("kv", "put", "-cas", f"-modify-index={index}", "counter", "2").status == 0
    lost = waypost("kv", "put", "-cas", f"-modify-index={index}", "counter", "3")
    assert (lost.status, lost.err) == (1, "Error! Did not write to counter: CAS failed\n")
    assert consul("kv", "get", "counter").out == b"2\n"


def test_exports_are_exchanged(tmp_path: Path, waypost: Ask, consul: Ask) -> None:
    exported = waypost("kv", "export", "dir/").out
    moved = exported.replace(b'"dir/', b'"moved/')
    imported = waypost("kv", "import", "-", stdin=moved)
    assert imported.status == 0
    (tmp_path / "export.json").write_bytes(moved)
    assert consul("kv", "import", "@export.json").out == imported.out
    assert consul("kv", "export", "moved/").out == moved


DEFINITIONS = {
    "full.json": json.dumps({
        "service": {
            "id": "full-1", "name": "full", "port": 81, "tags": ["t"], "meta": {"snake_key": "v"}, "address": "10.0.0.1",
            "weights": {"passing": 3, "warning": 2}, "enable_tag_override": True,
            "tagged_addresses": {"lan": {"address": "1.1.1.1", "port": 3}},
            "checks": [
                {"id": "c1", "http": "http://127.0.0.1:1/", "interval": "10s", "timeout": "1s", "header": {"A": ["b"]},
                 "method": "HEAD", "notes": "n", "deregister_critical_service_after": "90m"},
                {"ttl": "15s", "name": "t", "status": "passing"},
            ],
        }
    }),
    "blocks.hcl": """
        service {
          name = "in-hcl"
          port = 80
          check { tcp = "127.0.0.1:80" interval = "5s" }
        }
        services { name = "h2" tags = ["x", "y"] }
        services { name = "h3" meta { a = "b" } weights { passing = 7 warning = 1 } }
    """,
    "sidecar.json": json.dumps({
        "services": [
            {"name": "side", "port": 80, "connect": {"native": True}},
            {"name": "side-proxy", "kind": "connect-proxy", "port": 81, "proxy": {
                "destination_service_name": "side", "local_service_port": 80, "config": {"snake_key": 1},
                "upstreams": [{"destination_name": "db", "local_bind_port": 9191}]}},
        ]
    }),
    "two.json": '{"services":[{"name":"s1"},{"name":"s2","port":1}]}',
}  # fmt: skip


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definition_files_register_the_same(
    name: str, tmp_path: Path, agent: Agent, waypost: Ask, consul: Ask
) -> None:
    import urllib.request

    if agent.kind == "waypost" and name == "sidecar.json":
        pytest.skip("our agent has no sidecar proxies")
    (tmp_path / name).write_text(DEFINITIONS[name])

    def state() -> tuple[object, object]:
        found = []
        for path in ("services", "checks"):
            with urllib.request.urlopen(
                f"http://{agent.address}/v1/agent/{path}", timeout=5
            ) as answer:
                found.append(json.load(answer))
        for check in found[1].values():
            check.pop("Output")  # whether the first probe has run already
        return found[0], found[1]

    seen = []
    for ask in (consul, waypost):
        registered = ask("services", "register", name)
        after = state()
        deregistered = ask("services", "deregister", name)
        seen.append((registered, after, deregistered, state()))
    assert seen[0] == seen[1]
    assert seen[0][0].status == 0


WRONG_DEFINITIONS = {
    "key.json": '{"service":{"name":"aj","port":80,"bogus":1}}',
    "checkkey.json": '{"service":{"name":"aj","check":{"script":"x"}}}',
    "type.json": '{"services":[{"name":"s1"},{"name":"s2","port":"x"}]}',
    "nameless.json": '{"service":{"port":3}}',
}


@pytest.mark.parametrize("name", WRONG_DEFINITIONS)
def test_wrong_definition_files_say_the_same(
    name: str, tmp_path: Path, waypost: Ask, consul: Ask
) -> None:
    (tmp_path / name).write_text(WRONG_DEFINITIONS[name])
    theirs, ours = (ask("services", "register", name) for ask in (consul, waypost))
    assert (ours.status, ours.out) == (theirs.status, theirs.out)
    # Consul's type errors point at `service.check.ttl` without saying which check; and end in one more line break.
    assert ours.err.strip() == theirs.err.strip()


@pytest.mark.parametrize("text", ["{", "service { name= ", '{"service": 3}', '{"service": [[]]}'])
@pytest.mark.parametrize("suffix", ["json", "hcl"])
def test_broken_definition_files_name_themselves(
    text: str, suffix: str, tmp_path: Path, waypost: Ask
) -> None:
    (tmp_path / f"broken.{suffix}").write_text(text)
    done = waypost("services", "register", f"broken.{suffix}")
    assert done.status == 1
    assert done.err.startswith(f"Error: failed to parse broken.{suffix}: ")


USAGE = [
    "members -bogus", "members --detailed=x", "members -status", "members --=", "members ---x", "kv put -flags=x a b",
    "kv put -flags=-1 a b", "lock -n=x a b", "lock -n=99999999999999999999 a b", "catalog nodes -node-meta=x",
    "services register -meta=x", "kv get -recurse=maybe x", "kv put -modify-index=0x a b",
]  # fmt: skip


@pytest.mark.parametrize("line", USAGE)
def test_wrong_flags_are_told_in_the_same_words(line: str, waypost: Ask, consul: Ask) -> None:
    theirs, ours = consul(*line.split()), waypost(*line.split())
    assert (ours.status, theirs.status) == (1, 1)
    assert ours.err.splitlines()[0] == theirs.err.splitlines()[0]
    assert "Usage: waypost " in ours.err


@pytest.mark.parametrize(
    "line", ["", "bogus", "-bogus", "kv", "kv bogus", "operator raft", "catalog x"]
)
def test_unknown_commands_have_the_same_status(line: str, waypost: Ask, consul: Ask) -> None:
    theirs, ours = consul(*line.split()), waypost(*line.split())
    assert (ours.status, bool(ours.out)) == (theirs.status, bool(theirs.out))
    assert "Usage: waypost" in ours.err


@pytest.mark.parametrize(
    "line", ["-h", "--help", "kv -h", "kv --help", "kv get -h", "members -help", "--help kv"]
)
def test_help_is_no_error(line: str, waypost: Ask, consul: Ask) -> None:
    theirs, ours = consul(*line.split()), waypost(*line.split())
    assert (ours.status, theirs.status) == (0, 0)
    assert ours.out.startswith(b"Usage: waypost")
    assert ours.err == ""


ADDRESSES = [
    "127.0.0.1:1", "http://127.0.0.1:1", "https://127.0.0.1:1", "[::1]:1", "unix:///nope.sock", "ftp://x", "localhost:1",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "command", ["members", "catalog nodes", "kv get -recurse -stale a&b", "kv put a b", "leave"]
)
def test_no_agent_at_the_address(address: str, command: str, waypost: Ask, consul: Ask) -> None:
    env = {"CONSUL_HTTP_ADDR": address}
    theirs, ours = consul(*command.split(), env=env), waypost(*command.split(), env=env)
    assert (ours.status, ours.out) == (theirs.status, theirs.out)
    # Of a name with two addresses, which one is tried last is the resolver's affair.
    assert ours.err.replace("[::1]", "127.0.0.1") == theirs.err.replace("[::1]", "127.0.0.1")


def test_https_asked_of_an_http_agent(agent: Agent, waypost: Ask, consul: Ask) -> None:
    _same(waypost, consul, ["members", f"-http-addr=https://{agent.address}"])
    _same(
        waypost, consul, ["members", f"-http-addr={agent.address}"], env={"CONSUL_HTTP_SSL": "true"}
    )


def test_a_token_file_that_is_missing(waypost: Ask, consul: Ask) -> None:
    _same(waypost, consul, ["members", "-token-file=/nope"])
