"""Recorded answers of a real Consul agent, asked again over real sockets.

Two groups of the same catalog: `default` (no dns_config) and `tuned` (the settings in `TUNED`, with a recursor).
What changes from answer to answer is compared as such: order, which of many answers a limit left, the SOA serial.
"""

import asyncio
import json
import random
import re
import threading
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from waypost.base.clock import SystemClock
from waypost.model.catalog import Check, Node, Service, Weights
from waypost.state.keys import encode, key_of
from waypost.state.view import View
from waypost.store.engine import KeyValue
from waypost.surfaces.dns.catalog import Found, OpenAdmission
from waypost.surfaces.dns.server import DnsServer
from waypost.surfaces.dns.settings import DnsSettings, SoaSettings

DATA = Path(__file__).parent / "data" / "queries.jsonl"
ROWS = [json.loads(line) for line in DATA.read_text().splitlines()]
QUERIES = [row for row in ROWS if row["type"] == "query"]
REPEATS = 12
SERVER_PORT = {"default": 23604, "tuned": 23614}


def tuned(recursor):
    return DnsSettings(
        alt_domain="alt.test",
        recursors=(f"127.0.0.1:{recursor}",),
        node_ttl_s=30,
        service_ttl_s={"*": 5, "api": 60, "add*": 7},
        soa=SoaSettings(refresh_s=1, retry_s=2, expire_s=3, min_ttl_s=4),
        enable_truncate=True,
        only_passing=True,
        enable_additional_node_meta_txt=False,
    )


def catalog(group):
    """Return a view of what was registered, and the prepared queries."""
    records = {}

    def add(record):
        records[key_of(record)] = record

    meta = {"env": "prod", "consul-network-segment": ""}
    add(Node(node="dnsrec", address="127.0.0.1", datacenter="dc1", meta=meta))
    add(Service(node="dnsrec", id="consul", name="consul", port=SERVER_PORT[group]))
    add(Check(node="dnsrec", check_id="serfHealth", name="Serf", status="passing"))
    queries = []
    for row in ROWS:
        if row["type"] != "register":
            continue
        body = row["body"]
        if row["path"] == "/v1/query":
            queries.append(body)
            continue
        if not body.get("SkipNodeUpdate"):
            address, meta = body["Address"], body.get("NodeMeta")
            add(Node(node=body["Node"], address=address, datacenter="dc1", meta=meta))
        if service := body.get("Service"):
            weights = service.get("Weights", {"Passing": 1, "Warning": 1})
            add(
                Service(
                    node=body["Node"],
                    id=service["ID"],
                    name=service["Service"],
                    tags=tuple(service.get("Tags", ())),
                    address=service.get("Address", ""),
                    port=service["Port"],
                    weights=Weights(weights["Passing"], weights["Warning"]),
                )
            )
        if check := body.get("Check"):
            add(
                Check(
                    node=body["Node"],
                    check_id=check["CheckID"],
                    name=check["Name"],
                    status=check["Status"],
                    service_id=check.get("ServiceID", ""),
                )
            )
    view = View()
    view.load(
        [KeyValue(key, encode(record), 1, 1) for key, record in records.items()],
        revision=len(records),
    )
    return view, PreparedQueries(queries)


class PreparedQueries:
    """The recorded definitions, as far as the recorded queries use them."""

    def __init__(self, definitions):
        self.definitions = definitions

    def find(self, kind, name, /, *, catalog):
        if kind != "query":
            return None
        for definition in self.definitions:
            service = definition["Service"]["Service"]
            if template := definition.get("Template"):
                match = re.match(template["Regexp"], name)
                if not name.startswith(definition["Name"]) or match is None:
                    continue
                service = service.replace("${match(1)}", match[1])
            elif definition["Name"] != name:
                continue
            ttl = definition.get("DNS", {}).get("TTL")
            bad = (
                {"critical", "warning"}
                if definition["Service"].get("OnlyPassing")
                else {"critical"}
            )
            wanted = set(definition["Service"].get("Tags", ()))
            return Found(
                instances=tuple(
                    instance
                    for instance in catalog.instances(service)
                    if bad.isdisjoint(check.status for check in instance.checks)
                    and wanted <= set(instance.service.tags)
                ),
                topics=(("health", service),),
                service=service,
                ttl_s=float(ttl.removesuffix("s")) if ttl else None,
            )
        return None


class Upstream(asyncio.DatagramProtocol):
    """The resolver behind the tuned group, as it was when the answers were recorded."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        query = dns.message.from_wire(data)
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        name = query.question[0].name.to_text()
        if name.startswith("nx"):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif name == "www.example.com.":
            reply.answer += [
                dns.rrset.from_text(name, 300, "IN", "CNAME", "edge.example.net."),
                dns.rrset.from_text("edge.example.net.", 299, "IN", "A", "192.0.2.1", "192.0.2.2"),
            ]
        elif name.startswith("big"):
            many = [f"192.0.2.{i}" for i in range(1, 21)]
            reply.answer.append(dns.rrset.from_text(name, 60, "IN", "A", *many))
        elif query.question[0].rdtype == dns.rdatatype.A:
            reply.answer.append(dns.rrset.from_text(name, 123, "IN", "A", "192.0.2.9"))
        self.transport.sendto(reply.to_wire(), addr)


@pytest.fixture(scope="module")
def served(request):
    """Run the server of a group in a loop of its own; yield (group, port)."""
    started = threading.Event()
    running = {}

    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Upstream, local_addr=("127.0.0.1", 0))
        recursor = transport.get_extra_info("sockname")[1]
        settings = tuned(recursor) if request.param == "tuned" else DnsSettings()
        view, queries = catalog(request.param)
        server = DnsServer(
            settings,
            OpenAdmission(view),
            [("127.0.0.1", 0)],
            finder=queries,
            clock=SystemClock(),
            rng=random.SystemRandom(),
        )
        async with server:
            running.update(port=server.addresses[0][1], loop=loop, task=asyncio.current_task())
            try:
                await server.run(ready=started.set)
            except asyncio.CancelledError:
                transport.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(5)
    yield request.param, running["port"]
    running["loop"].call_soon_threadsafe(running["task"].cancel)
    thread.join(5)
    assert not thread.is_alive()


def ask(row, port):
    message = dns.message.make_query(row["name"], row["qtype"], rdclass=row["qclass"])
    if not row["rd"]:
        message.flags &= ~dns.flags.RD
    if row["edns"]:
        options = []
        if row["ecs"]:
            address, length = row["ecs"].split("/")
            options = [dns.edns.ECSOption(address, int(length), 0)]
        message.use_edns(0, payload=row["edns"], options=options)
    exchange = dns.query.tcp if row["transport"] == "tcp" else dns.query.udp
    return exchange(message, "127.0.0.1", port=port, timeout=5, one_rr_per_rrset=True)


def lines(section):
    texts = [line for rrset in section for line in rrset.to_text().split("\n")]
    return sorted(re.sub(r"( IN SOA \S+ \S+) \d+", r"\1 SERIAL", text) for text in texts)


def recorded_lines(texts):
    return sorted(re.sub(r"( IN SOA \S+ \S+) \d+", r"\1 SERIAL", text) for text in texts)


@pytest.mark.parametrize(
    ("served", "row"),
    [
        pytest.param(
            row["group"], row, id=f"{row['group']}-{row['n']}-{row['name']}-{row['qtype']}"
        )
        for row in QUERIES
    ],
    indirect=["served"],
)
def test_answers_as_recorded(served, row):
    _, port = served
    for _ in range(REPEATS):
        reply = ask(row, port)
        assert dns.rcode.to_text(reply.rcode()) == row["rcode"]
        assert dns.flags.to_text(reply.flags).split() == row["flags"]
        assert [question.to_text() for question in reply.question] == row["question"]
        edns = None
        if reply.edns >= 0:
            options = [option.to_text() for option in reply.options]
            edns = {"payload": reply.payload, "options": options}
        assert edns == row["edns_response"]
        counts = [len(reply.answer), len(reply.authority), len(reply.additional)]
        assert counts in row["answer_counts"]
        assert lines(reply.authority) == recorded_lines(row["authority"])
        if row["sampled"]:
            assert {line.split(" ")[3] for line in lines(reply.answer)} == {
                line.split(" ")[3] for line in row["answer"]
            }
            assert all(
                line.split(" ")[1] == row["answer"][0].split(" ")[1] for line in lines(reply.answer)
            )
        else:
            assert lines(reply.answer) == recorded_lines(row["answer"])
            assert lines(reply.additional) == recorded_lines(row["additional"])
            assert len(reply.wire) == row["wire_size"]


@pytest.mark.parametrize("served", ["default", "tuned"], indirect=True)
def test_sampled_answers_are_of_the_pool_and_reach_all_of_it(served):
    group, port = served
    pools = {}
    for row in QUERIES:
        if row["group"] == group and row["sampled"]:
            for _ in range(60):
                pools.setdefault(row["n"], set()).update(lines(ask(row, port).answer))
    for row in QUERIES:
        if row["group"] == group and row["sampled"]:
            # A recorded pool is what twelve answers happened to show, so it may be smaller than ours.
            assert pools[row["n"]] >= set(row["pool"]), row["name"]
