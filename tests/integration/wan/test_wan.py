"""Two datacenters over real TLS: meeting, forwarding requests and DNS, and whom they do not believe."""

import asyncio
import contextlib
import random
import time

import aiohttp
import dns.message
import dns.rcode
import pytest
from yarl import URL

from waypost.access.gate import ExposureAuthorizer, Gate
from waypost.access.pki.issue import Names, Subject, Usage, certificate_pem, issue, make_authority
from waypost.access.pki.keys import generate_key, private_pem
from waypost.agent.wiring import GatedCatalog
from waypost.base.clock import SystemClock
from waypost.base.errors import Forbidden, Unavailable
from waypost.cluster.wan import Datacenter, Wan, WanServer
from waypost.model.catalog import Node
from waypost.state.keys import put
from waypost.state.view import View
from waypost.store.engine import KeyValue
from waypost.surfaces.cluster.wan import Elsewhere, WanRoutes
from waypost.surfaces.dns.server import DnsServer
from waypost.surfaces.dns.settings import DnsSettings
from waypost.surfaces.http.message import Response
from waypost.surfaces.http.router import Route, Router
from waypost.surfaces.http.server import OpenTls, Server, TcpEndpoint

CLOCK = SystemClock()


def catalog(name, address):
    view = View()
    operation = put(Node(node=name, address=address))
    view.load([KeyValue(operation.key, operation.value, 2, 2)], revision=2)
    return GatedCatalog(view, Gate(ExposureAuthorizer()))


class Site:
    """One datacenter of one server: its HTTP application on loopback and on the WAN port, and its DNS."""

    def __init__(self, name, folder, *, join=(), key=b""):
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(exist_ok=True)
        self.asked = []
        self._make_certificates()
        self.wan = Wan(
            datacenter=name,
            own=self.own,
            join=join,
            default_port=8302,
            path=self.folder / "wan.json",
            key=key,
            interval_s=0.1,
            clock=CLOCK,
            rng=random.Random(1),
        )
        self.dns = DnsServer(
            DnsSettings(datacenter=name),
            catalog(f"node-{name}", "192.0.2.7"),
            [("127.0.0.1", 0)],
            datacenters=self.wan,
        )
        routes = [
            Route("/v1/echo", {"GET": self.echo, "PUT": self.echo}),
            Route("/v1/catalog/register", {"PUT": self.echo}),
            Route("/v1/large", {"GET": self.large}),
        ]
        app = Router([*routes, *WanRoutes(self.wan, answer_dns=self.dns.answer).routes()])
        tls = OpenTls(
            certificate_file=str(self.folder / "serving.crt"),
            key_file=str(self.folder / "serving.key"),
        )
        self.server = Server(
            Elsewhere(app, self.wan, datacenter=name),
            [TcpEndpoint("127.0.0.1", 0), TcpEndpoint("127.0.0.1", 0, "wan", tls)],
        )

    def _make_certificates(self):
        now_s = time.time()
        self.authority = make_authority(generate_key(), common_name=self.name, now_s=now_s)
        key = generate_key()
        leaf = issue(
            self.authority,
            key.public_key(),
            subject=Subject("server").to_x509(),
            usages=[Usage.SERVER],
            names=Names.of(["127.0.0.1"]),
            now_s=now_s,
        )
        (self.folder / "serving.crt").write_bytes(certificate_pem(leaf))
        (self.folder / "serving.key").write_bytes(private_pem(key))

    @property
    def ports(self):
        return [int(address.rpartition(":")[2]) for address in self.server.addresses]

    def own(self):
        if len(self.server.addresses) < 2:
            return None
        me = WanServer(f"server-{self.name}", f"id-{self.name}", "127.0.0.1", self.ports[1])
        return Datacenter(self.authority.pem.decode(), (me,))

    def echo(self, request):
        self.asked.append(request)
        text = f"{self.name} {request.method} {request.head.loggable()} {request.peer.listener}"
        return Response(
            status=201,
            body=text.encode() + b" " + request.body,
            content_type="text/x-echo",
            headers=(("X-Consul-Index", "7"),),
        )

    async def large(self, request):
        async def chunks():
            for _ in range(64):
                yield b"x" * 65536

        return Response(stream=chunks())

    @contextlib.asynccontextmanager
    async def running(self):
        async with self.server, self.dns, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one()) for one in (self.server.run, self.dns.run, self.wan.run)
            ]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()

    async def call(self, method, target, *, body=b"", headers=None):
        url = URL(f"http://127.0.0.1:{self.ports[0]}{target}", encoded=True)
        async with aiohttp.ClientSession() as session:
            answer = await session.request(method, url, data=body, headers=headers)
            return answer.status, await answer.read(), answer.headers


async def known(site, name, *, within_s=5.0):
    async with asyncio.timeout(within_s):
        while not site.wan.knows(name):
            await asyncio.sleep(0.02)


@pytest.fixture
async def sites(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(Site("dc1", tmp_path).running())
        join = [f"127.0.0.1:{one.ports[1]}"]
        two = await stack.enter_async_context(Site("dc2", tmp_path, join=join).running())
        await known(one, "dc2")
        await known(two, "dc1")
        yield one, two


async def test_joining_one_way_makes_both_known_and_is_kept(sites, tmp_path):
    one, _ = sites
    assert one.wan.names() == ("dc2",)
    again = Site("dc1", tmp_path)
    assert [server.node for server in again.wan.servers("dc2")] == ["server-dc2"]


async def test_a_request_for_the_other_goes_there_as_it_came(sites):
    one, two = sites
    status, body, headers = await one.call(
        "PUT", "/v1/echo?dc=dc2&x=a%2Fb", body=b"data", headers={"X-Consul-Token": "secret"}
    )
    assert (status, body) == (201, b"dc2 PUT PUT /v1/echo?dc=dc2&x=a%2Fb wan data")
    assert headers["X-Consul-Index"] == "7"
    assert headers["Content-Type"] == "text/x-echo"
    assert two.asked[0].headers.get("x-consul-token") == "secret"
    assert not one.asked


async def test_a_body_may_name_the_datacenter(sites):
    one, two = sites
    body = b'{"Datacenter":"DC2","Node":"n"}'
    assert (await one.call("PUT", "/v1/catalog/register", body=body))[1].startswith(b"dc2 ")
    assert (await one.call("PUT", "/v1/catalog/register", body=b"{"))[1].startswith(b"dc1 ")
    assert len(two.asked) == 1


async def test_own_and_unknown_datacenters_are_answered_here(sites):
    one, _ = sites
    for target in ("/v1/echo", "/v1/echo?dc=dc1", "/v1/echo?dc=DC1", "/v1/echo?dc=nowhere"):
        assert (await one.call("GET", target))[1].startswith(b"dc1 ")


async def test_large_answers_stream(sites):
    status, body, _ = await sites[0].call("GET", "/v1/large?dc=dc2")
    assert (status, len(body)) == (200, 64 * 65536)


async def test_a_dead_datacenter_is_said_to_be_one(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(Site("dc1", tmp_path).running())
        async with Site("dc2", tmp_path, join=[f"127.0.0.1:{one.ports[1]}"]).running():
            await known(one, "dc2")
        status, body, _ = await one.call("GET", "/v1/echo?dc=dc2")
        assert status == 500
        assert b"dc2" in body
        reply = await one.dns.answer(
            dns.message.make_query("node-dc2.node.dc2.consul", "A").to_wire(), "127.0.0.1", False
        )
        assert dns.message.from_wire(reply).rcode() == dns.rcode.SERVFAIL


async def test_names_of_the_other_datacenter_resolve(sites):
    one, _ = sites
    for name, expected in (
        ("node-dc2.node.dc2.consul", "192.0.2.7"),
        ("node-dc1.node.consul", "192.0.2.7"),
        ("nobody.node.dc2.consul", None),
        ("node-dc2.node.dc3.consul", None),
    ):
        query = dns.message.make_query(name, "A")
        reply = dns.message.from_wire(await one.dns.answer(query.to_wire(), "127.0.0.1", False))
        assert reply.id == query.id
        if expected is None:
            assert reply.rcode() == dns.rcode.NXDOMAIN
        else:
            assert reply.answer[0][0].to_text() == expected


async def test_whoever_has_another_authority_is_not_asked(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(Site("dc1", tmp_path).running())
        async with Site("dc2", tmp_path, join=[f"127.0.0.1:{one.ports[1]}"]).running() as two:
            await known(one, "dc2")
            old = two.own()
        # The same name and place, but certificates of a new authority.
        false = await stack.enter_async_context(Site("dc2", tmp_path).running())
        claimed = Datacenter(old.ca_pem, false.own().servers)
        one.wan.heard(one.wan.hello().__class__(datacenter="dc2", datacenters={"dc2": claimed}))
        with pytest.raises(Unavailable):
            await one.wan.dns("dc2", b"x" * 20, tcp=False)
        status, _, _ = await one.call(
            "PUT", "/v1/echo?dc=dc2", headers={"X-Consul-Token": "secret"}
        )
        assert status == 500
        assert not false.asked


async def test_a_shared_key_keeps_others_out(tmp_path):
    key = bytes(32)
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(Site("dc1", tmp_path, key=key).running())
        join = [f"127.0.0.1:{one.ports[1]}"]
        two = await stack.enter_async_context(Site("dc2", tmp_path, join=join).running())
        three = await stack.enter_async_context(Site("dc3", tmp_path, join=join, key=key).running())
        await known(one, "dc3")
        assert not one.wan.knows("dc2")
        assert not two.wan.knows("dc1")
        with pytest.raises(Forbidden):
            three.wan.heard(two.wan.hello())
