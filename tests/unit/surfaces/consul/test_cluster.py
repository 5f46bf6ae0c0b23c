"""What the surfaces show of a cluster: members that come and go, servers, leaders, and how old an answer is."""

from __future__ import annotations

import json
import math

import pytest

from waypost.base.errors import NoLeader, Rejected
from waypost.cluster.snapshots import Snapshots
from waypost.domain.agent import LocalNode, plan_self
from waypost.domain.cluster import FarServer, Server, ServerHealth
from waypost.domain.member import plan_health
from waypost.surfaces.http.message import Rendered

from .test_api import AWAY, running


class Group:
    """Three servers, of which this agent's is the second."""

    def __init__(self):
        self.leader = "s1"
        self.is_leader = False
        self.knows_leader = True
        self.contact_s = 0.0
        self.calls = []
        self.refuses = ""
        self.sick = ""

    def leader_address(self):
        return f"10.0.0.1{self.leader[1:]}:8300" if self.knows_leader else ""

    def last_contact_s(self):
        return self.contact_s

    async def servers(self):
        if not self.knows_leader:
            msg = "No cluster leader"
            raise NoLeader(msg)
        return [
            Server(
                id=f"id{n}", node=f"s{n}", address=f"10.0.0.1{n}:8300",
                is_leader=self.leader == f"s{n}", is_voter=n < 3,
            )
            for n in (1, 2, 3)
        ]  # fmt: skip

    async def health(self):
        return [
            ServerHealth(
                server=one, is_healthy=one.id != self.sick, contact_s=contact_s, term=7,
                index=900 + n, since_s=1_700_000_000.0,
            )
            for n, (one, contact_s) in enumerate(
                zip(await self.servers(), (0.0, 0.0153, None), strict=True)
            )
        ]  # fmt: skip

    def _called(self, *what):
        self.calls.append(what)
        if self.refuses:
            raise Rejected(self.refuses)

    async def join(self, address):
        self._called("join", address)

    async def sign_off(self):
        return False

    async def leave(self):
        self._called("leave")

    async def remove_server(self, server_id):
        self._called("remove", server_id)

    async def transfer_leader(self, server_id):
        self._called("transfer", server_id)


@pytest.fixture
async def group():
    return Group()


@pytest.fixture
async def api(group):
    async with running(cluster=group) as one:
        yield one


async def add(api, name, *, server=True, alive=True):
    number = name[1:]
    local = LocalNode(
        node=name, id=f"id{number}", address=f"10.0.0.1{number}", datacenter="dc1", server=server
    )
    await api.state.commit(lambda view: plan_self(view, local, judged=True))
    if not alive:
        await api.state.commit(lambda view: plan_health(view, name, alive=False))


async def body(api, method, target, data=b"", **more):
    status, text = await api.text(method, target, data, **more)
    assert status == 200, text
    return json.loads(text) if text else None


async def statuses(api):
    found = await body(api, "GET", "/v1/agent/members")
    return {one["Name"]: (one["Status"], one["Tags"]["role"]) for one in found}


async def test_members_are_alive_failed_or_left(api, group):
    await add(api, "s1")
    await add(api, "s2", alive=False)
    await add(api, "c3", server=False, alive=False)
    assert await statuses(api) == {"s1": (1, "consul"), "s2": (4, "consul"), "c3": (4, "node")}
    wan = await body(api, "GET", "/v1/agent/members?wan=1")
    assert [one["Name"] for one in wan] == ["s1.dc1", "s2.dc1"]

    assert await body(api, "PUT", "/v1/agent/force-leave/C3") is None
    assert group.calls == []
    assert await statuses(api) == {"s1": (1, "consul"), "s2": (4, "consul"), "c3": (3, "node")}
    assert [n["Node"] for n in await body(api, "GET", "/v1/catalog/nodes")] == ["s1", "s2"]

    # A server that failed leaves the group of servers with it.
    assert await body(api, "PUT", "/v1/agent/force-leave/s2") is None
    assert group.calls == [("remove", "id2")]
    assert (await statuses(api))["s2"] == (3, "consul")
    assert await body(api, "PUT", "/v1/agent/force-leave/c3?prune=1") is None
    assert set(await statuses(api)) == {"s1", "s2"}
    assert await api.text("PUT", "/v1/agent/force-leave/c3") == (
        500,
        "agent: No node found with name 'c3'",
    )
    status, _ = await api.text("PUT", "/v1/agent/force-leave/s1", peer=AWAY)
    assert status == 403


class Elsewhere:
    def names(self):
        return ("near", "far")

    def far_servers(self):
        return [
            FarServer(
                node=node, id=f"id-{node}", datacenter=dc, address="10.9.0.1", port=9302,
                server_port=9300, status=status, trip_s=trip_s,
            )
            for dc, node, status, trip_s in (
                ("far", "f1", "alive", 0.08), ("far", "f2", "failed", None), ("near", "m1", "left", 0.02)
            )
        ]  # fmt: skip


def _rtt_s(one, other):
    """As Consul's program computes it."""
    return math.dist(one["Vec"], other["Vec"]) + one["Height"] + other["Height"]


async def test_servers_of_other_datacenters_are_members_of_the_wan(group):
    async with running(cluster=group, elsewhere=Elsewhere()) as api:
        await add(api, "s1")
        await add(api, "s2", alive=False)
        await add(api, "c3", server=False)
        wan = await body(api, "GET", "/v1/agent/members?wan=1")
        assert [(one["Name"], one["Status"], one["Port"], one["Tags"]["dc"]) for one in wan] == [
            ("s1.dc1", 1, 8302, "dc1"),
            ("s2.dc1", 4, 8302, "dc1"),
            ("f1.far", 1, 9302, "far"),
            ("f2.far", 4, 9302, "far"),
            ("m1.near", 3, 9302, "near"),
        ]
        assert wan[2]["Tags"] == {**wan[0]["Tags"], "dc": "far", "id": "id-f1", "port": "9300"}
        assert await statuses(api) == {"s1": (1, "consul"), "s2": (4, "consul"), "c3": (1, "node")}
        # The own one, then the nearest first.
        assert await body(api, "GET", "/v1/catalog/datacenters") == ["dc1", "near", "far"]
        maps = await body(api, "GET", "/v1/coordinate/datacenters")
        assert [(one["Datacenter"], [c["Node"] for c in one["Coordinates"]]) for one in maps] == [
            ("dc1", ["s1", "s2"]), ("near", ["m1"]), ("far", ["f1"]),
        ]  # fmt: skip
        places = [one["Coordinates"][0]["Coord"] for one in maps]
        assert _rtt_s(places[0], places[1]) == pytest.approx(0.02)
        assert _rtt_s(places[0], places[2]) == pytest.approx(0.08)
        _, text = await api.text("GET", "/v1/operator/keyring")
        assert text == (
            "10 errors occurred:\n\t* WAN error: 5/5 nodes reported failure"
            + "".join(
                f"\n\t* {name}: Keyring is empty (encryption not enabled)"
                for name in ("s1.dc1", "s2.dc1", "f1.far", "f2.far", "m1.near")
            )
            + "\n\t* dc1 (LAN) error: 3/3 nodes reported failure"
            + "".join(
                f"\n\t* {name}: Keyring is empty (encryption not enabled)"
                for name in ("c3", "s1", "s2")
            )
            + "\n\n"
        )


async def test_each_server_has_its_entry(api):
    for name in ("s1", "s2", "s3"):
        await add(api, name)
    await add(api, "c4", server=False)
    found = await body(api, "GET", "/v1/catalog/service/consul")
    assert [(one["Node"], one["Address"], one["ServicePort"]) for one in found] == [
        ("s1", "10.0.0.11", 8300), ("s2", "10.0.0.12", 8300), ("s3", "10.0.0.13", 8300),
    ]  # fmt: skip
    await body(api, "PUT", "/v1/agent/force-leave/s3")
    assert len(await body(api, "GET", "/v1/catalog/service/consul")) == 2


async def test_servers(api, group):
    await add(api, "s1")
    await add(api, "s2")
    assert await body(api, "GET", "/v1/status/leader") == "10.0.0.11:8300"
    peers = ["10.0.0.11:8300", "10.0.0.12:8300", "10.0.0.13:8300"]
    assert await body(api, "GET", "/v1/status/peers") == peers
    found = (await body(api, "GET", "/v1/operator/raft/configuration"))["Servers"]
    assert [(one["ID"], one["Leader"], one["Voter"]) for one in found] == [
        ("id1", True, True), ("id2", False, True), ("id3", False, False),
    ]  # fmt: skip
    status, text = await api.text("GET", "/v1/operator/autopilot/health")
    health = json.loads(text)
    assert (status, health["Healthy"], health["FailureTolerance"]) == (429, False, 0)
    assert [one["SerfStatus"] for one in health["Servers"]] == ["alive", "alive", "failed"]
    assert await api.text("DELETE", "/v1/operator/raft/peer?address=10.0.0.13:8300") == (200, "")
    assert await api.text("DELETE", "/v1/operator/raft/peer?id=ID2") == (200, "")
    assert await body(api, "POST", "/v1/operator/raft/transfer-leader?id=id2") == {"Success": True}
    assert await body(api, "POST", "/v1/operator/raft/transfer-leader") == {"Success": True}
    assert group.calls == [
        ("remove", "id3"), ("remove", "id2"), ("transfer", "id2"), ("transfer", ""),
    ]  # fmt: skip
    assert await api.text("POST", "/v1/operator/raft/transfer-leader?id=x") == (
        500,
        'id "x" was not found in the Raft configuration',
    )


async def test_without_a_leader(api, group):
    group.knows_leader = False
    assert await body(api, "GET", "/v1/status/leader") == ""
    assert await api.text("GET", "/v1/operator/raft/configuration") == (500, "No cluster leader")


async def test_joining(api, group):
    import asyncio

    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        assert await api.text("PUT", f"/v1/agent/join/{address}") == (200, "")
        group.refuses = f"Failed to join {address}: no answer in time"
        assert await api.text("PUT", f"/v1/agent/join/{address}") == (
            500,
            f"1 error occurred:\n\t* Failed to join {address}: no answer in time\n\n",
        )
    assert group.calls == [("join", address)] * 2


async def test_leaving(api, group):
    await api.api._context.domain.agent.ensure_self()
    ended = []

    async def end():
        ended.append(api.state.view.node("n1"))

    api.api._context.leave = end
    group.refuses = "the others would have no quorum"
    assert await api.text("PUT", "/v1/agent/leave") == (500, group.refuses)
    assert not ended
    assert await statuses(api) == {"n1": (1, "consul")}
    group.refuses = ""
    assert await api.text("PUT", "/v1/agent/leave") == (200, "")
    assert ended == [None]
    assert await statuses(api) == {"n1": (3, "consul")}


async def test_stats(api, group):
    await add(api, "s1")
    await add(api, "s2", alive=False)
    group.contact_s = 0.0321
    stats = (await body(api, "GET", "/v1/agent/self"))["Stats"]
    assert stats["consul"]["leader"] == "false"
    assert stats["consul"]["leader_addr"] == "10.0.0.11:8300"
    assert (stats["raft"]["state"], stats["raft"]["last_contact"]) == ("Follower", "32.1ms")
    assert stats["serf_lan"] == {"members": "2", "failed": "1", "left": "0"}
    group.contact_s = math.inf
    stats = (await body(api, "GET", "/v1/agent/self"))["Stats"]
    assert stats["raft"]["last_contact"] == "never"


def headers_of(answer):
    if isinstance(answer, Rendered):
        lines = answer.head(gzip=False).decode().splitlines()
        pairs = dict(line.split(": ", 1) for line in lines if ": " in line)
    else:
        pairs = dict(answer.headers)
    return pairs["X-Consul-Knownleader"], pairs["X-Consul-Lastcontact"]


async def test_a_stale_answer_says_how_old_it_may_be(group):
    async with running(cluster=group, confirms=True) as api:
        group.contact_s = 0.25
        ask = api.ask
        assert headers_of(await ask("GET", "/v1/catalog/nodes?stale")) == ("true", "200")
        assert headers_of(await ask("GET", "/v1/catalog/nodes")) == ("true", "0")
        group.contact_s, group.knows_leader = 12.34, False
        # The same question while nothing changed: a kept answer must not say what held before.
        assert headers_of(await ask("GET", "/v1/catalog/nodes?stale")) == ("false", "12300")
        group.contact_s = math.inf
        assert headers_of(await ask("GET", "/v1/catalog/nodes?stale")) == ("false", "0")


async def test_a_read_that_cannot_be_confirmed(group):
    async with running(cluster=group, confirms=True) as api:

        async def nobody():
            msg = "etcd has no leader"
            raise NoLeader(msg)

        api.state.confirm = nobody
        answer = await api.ask("GET", "/v1/catalog/nodes")
        assert (answer.status, answer.body) == (500, b"No cluster leader")
        assert dict(answer.headers)["X-Consul-Index"] == "1"
        assert (await api.ask("GET", "/v1/catalog/nodes?stale")).status == 200


async def test_snapshots_are_for_servers(api):
    assert await api.text("GET", "/v1/snapshot") == (
        500,
        "this agent does not hold the store; ask a server",
    )
    api.api._context.snapshots = Snapshots(api.state, clock=api.clock)
    await api.ask("PUT", "/v1/kv/a", b"1")
    saved = await api.ask("GET", "/v1/snapshot")
    await api.ask("PUT", "/v1/kv/a", b"2")
    assert (await api.ask("PUT", "/v1/snapshot", saved.body)).status == 200
    assert (await api.text("GET", "/v1/kv/a?raw"))[1] == "1"
    assert (await api.ask("PUT", "/v1/snapshot", saved.body, peer=AWAY)).status == 403
    assert api.rules.asked[-1].group == "store.waypost.io"


async def test_autopilot_over_http(api):
    assert await body(api, "PUT", "/v1/operator/autopilot/configuration", {"MinQuorum": 3}) is True
    found = await body(api, "GET", "/v1/operator/autopilot/configuration")
    assert (found["MinQuorum"], found["ServerStabilizationTime"]) == (3, "0s")
    cas = "/v1/operator/autopilot/configuration?cas="
    assert await body(api, "PUT", cas + "1", {}) is False
    assert await body(api, "PUT", f"{cas}{found['ModifyIndex']}", {}) is True
    status, text = await api.text("PUT", cas + "x", {})
    assert status == 400
    assert text.startswith("Bad request: Error parsing cas value: strconv.ParseUint")


async def test_how_the_servers_are_is_what_the_leader_saw(api, group):
    for name in ("s1", "s2", "s3"):
        await add(api, name)
    health = await body(api, "GET", "/v1/operator/autopilot/health")
    assert (health["Healthy"], health["FailureTolerance"]) == (True, 0)
    assert [
        (one["ID"], one["Leader"], one["Voter"], one["LastContact"], one["LastTerm"], one["LastIndex"])
        for one in health["Servers"]
    ] == [
        ("id1", True, True, "0s", 7, 900),
        ("id2", False, True, "15.3ms", 7, 901),
        ("id3", False, False, "-1ns", 7, 902),
    ]  # fmt: skip
    assert {one["StableSince"] for one in health["Servers"]} == {"2023-11-14T22:13:20Z"}

    # Alive and yet not healthy, and the other way round: 429 in both cases.
    group.sick = "id3"
    status, text = await api.text("GET", "/v1/operator/autopilot/health")
    assert status == 429
    assert [one["Healthy"] for one in json.loads(text)["Servers"]] == [True, True, False]
    group.sick = ""
    await api.state.commit(lambda view: plan_health(view, "s3", alive=False))
    status, text = await api.text("GET", "/v1/operator/autopilot/health")
    assert status == 429
    assert [one["Healthy"] for one in json.loads(text)["Servers"]] == [True, True, False]


async def test_what_consuls_debug_command_looks_for_is_there(api):
    found = await body(api, "GET", "/v1/agent/self")
    assert found["DebugConfig"]["EnableDebug"] is False
    # As Go names it, and not the kernel.
    assert found["Stats"]["runtime"]["arch"] not in ("x86_64", "aarch64")
