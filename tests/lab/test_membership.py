"""Machines that meet, move, are renamed, copied, or vanish in the middle of forming a cluster: nothing is harmed, and each says what is wrong."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from .lab import Lab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("etcd", "ip"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not os.environ.get("WAYPOST_ALL_FAULTS"),
        reason="takes minutes; WAYPOST_ALL_FAULTS=1 runs it",
    ),
]


def writes(host, key="key", within_s=60):
    host.eventually(lambda: host.put(f"/v1/kv/{key}", b"x") is True, within_s=within_s)


def form(*hosts):
    for host in hosts:
        join = "" if host is hosts[0] else hosts[0].address
        host.agent.start(expect=len(hosts), join=join)
    for host in hosts:
        writes(host)


def peers(host):
    """Return the servers as a host sees them: name and address."""
    rows = host.get("/v1/operator/raft/configuration")["Servers"]
    return {one["Node"]: one["Address"].partition(":")[0] for one in rows if one["Voter"]}


def nodes(host):
    return {row["Node"]: row["Address"] for row in host.get("/v1/catalog/nodes")}


def says(host, text, within_s=20):
    host.eventually(lambda: text in host.agent.log(), within_s=within_s)


def test_two_clusters_that_meet_stay_apart():
    with Lab(hosts=2) as lab:
        for host in lab:
            form(host)
            host.put("/v1/kv/whose", host.name.encode())
        one, other = lab
        done = one.run("waypost", "join", other.address, check=False)
        assert done.status == 1
        assert "two clusters cannot be merged" in done.err
        assert other.name in done.err
        one.agent.kill()
        one.agent.start("-join", other.address, expect=1)
        says(one, "two clusters cannot be merged")
        for host in lab:
            writes(host)
            assert host.http("/v1/kv/whose?raw").text == host.name
            assert peers(host) == nodes(host) == {host.name: host.address}


def test_a_server_may_change_its_name_and_its_address():
    with Lab(hosts=3) as lab:
        form(*lab)
        first, _, host = lab
        host.put("/v1/agent/service/register", {"Name": "kept", "Port": 1})

        def renamed(old, new):
            host.agent.command = [word.replace(old, new) for word in host.agent.command]

        host.agent.kill()
        renamed(f"-node={host.name}", "-node=renamed")
        host.agent.start_again()
        for one in lab:
            one.eventually(lambda o=one: nodes(o).get("renamed"), host.address, within_s=30)
            one.eventually(lambda o=one: "consul-3" not in nodes(o) and "consul-3" not in peers(o))
            one.eventually(
                lambda o=one: [row["Node"] for row in o.get("/v1/catalog/service/kept")],
                ["renamed"],
            )
        host.power_off()
        old, host.address = host.address, f"{lab.network}.33"
        host.boot()
        renamed(old, host.address)
        host.agent.start_again()
        for one in lab:
            one.eventually(lambda o=one: peers(o).get("renamed"), host.address, within_s=30)
            one.eventually(lambda o=one: nodes(o).get("renamed"), host.address)
            writes(one)
        # It takes part: with one of the others gone there is a majority.
        first.power_off()
        writes(host)


def test_a_copied_disk_takes_nobodys_place():
    with Lab(hosts=4) as lab:
        first, original, third, copy = lab
        form(first, original, third)
        before = peers(first)
        original.agent.kill()
        data = original.folder / "data"
        shutil.copytree(
            data, copy.folder / "data", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock")
        )
        original.agent.start_again()
        for host in (first, original, third):
            writes(host, "after-the-copy")
        copy.agent.start(expect=3, join=first.address)
        says(copy, "the data directory of one of the two is a copy")
        says(original, "its data directory is a copy. Stop one of the two")
        assert copy.http("/v1/kv/key", method="PUT", body=b"x", timeout_s=20).status == 500
        for host in (first, original, third):
            assert peers(host) == before
            assert copy.name not in nodes(host)
            writes(host)

        # Now nobody can tell that the copy is not the original, moved; but it has missed what was written meanwhile.
        original.power_off()
        writes(first, "without-the-original")
        original.restart()
        says(original, "its data directory is a copy. Stop one of the two")
        copy.power_off()
        for host in (first, original, third):
            host.eventually(lambda h=host: peers(h), before, within_s=60)
            writes(host)
            for key in ("key", "after-the-copy", "without-the-original"):
                host.eventually(lambda h=host, k=key: h.http(f"/v1/kv/{k}?raw").text, "x")
        third.power_off()
        writes(original)


def test_servers_form_a_cluster_without_the_one_that_proposed_it_and_went():
    """Its votes were given, and nobody but itself can know whether it has counted them."""
    with Lab(hosts=4) as lab:
        proposer, *voters = lab.hosts[:3]
        newcomer = lab[3]
        # The lowest id proposes. Slow, so that its votes are there long before anybody hears that they were counted.
        lowest = "00000000-0000-4000-8000-000000000001"
        proposer.slow(0.25)
        proposer.agent.start(f"-node-id={lowest}", expect=3)
        for host in voters:
            host.agent.start(expect=3, join=proposer.address)

        def phases():
            return [phase(host) for host in lab.hosts[:3]]

        proposer.eventually(lambda: phases() == ["committed", "voted", "voted"], within_s=20)
        proposer.power_off()
        assert phases()[1:] == ["voted", "voted"]
        # A third that is new makes it possible to have three again.
        newcomer.agent.start(expect=3, join=voters[0].address)
        lab[1].eventually(
            lambda: any("its plan is taken back" in host.agent.log() for host in voters),
            within_s=60,
        )
        for host in (*voters, newcomer):
            writes(host)
        together = {host.name: host.address for host in (*voters, newcomer)}
        for host in (*voters, newcomer):
            host.eventually(lambda h=host: peers(h), together)
        # It comes back, believing that it is a founder.
        made = voters[0].run("waypost", "token", "create").out.strip()
        proposer.boot()
        proposer.heal()
        proposer.agent.start(f"-node-id={lowest}", f"-join-token={made}", expect=3)
        says(proposer, "the others formed a cluster without this server")
        writes(proposer)
        assert proposer.http("/v1/kv/key?raw").text == "x"
        for host in lab:
            host.eventually(lambda h=host: len(peers(h)), 4, within_s=30)


def phase(host):
    file = host.folder / "data/cluster/cluster.json"
    try:
        return json.loads(file.read_text())["phase"]
    except (OSError, ValueError, KeyError):
        return ""
