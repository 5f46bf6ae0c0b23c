"""The server over real sockets: dig, both transports, recursors, limits, start and stop."""

import asyncio
import contextlib
import socket
import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from waypost.base.errors import Unavailable
from waypost.surfaces.dns.server import DnsLimits
from waypost.surfaces.dns.settings import DnsSettings


def query(name, kind="A", number=0x1234):
    message = dns.message.make_query(name, kind)
    message.id = number
    return message.to_wire()


def reply_to(data, *, rcode=0, address="192.0.2.9"):
    reply = dns.message.make_response(dns.message.from_wire(data))
    reply.set_rcode(rcode)
    if not rcode:
        name = reply.question[0].name
        reply.answer.append(dns.rrset.from_text(name, 123, "IN", "A", address))
    return reply.to_wire()


async def ask_udp(port, data, *, host="127.0.0.1", timeout_s=5):
    loop = asyncio.get_running_loop()
    with socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
    ) as sock:
        sock.setblocking(False)
        sock.connect((host, port))
        await loop.sock_sendall(sock, data)
        async with asyncio.timeout(timeout_s):
            return dns.message.from_wire(await loop.sock_recv(sock, 65535))


async def dig(port, *arguments):
    process = await asyncio.create_subprocess_exec(
        "dig", "@127.0.0.1", "-p", str(port), *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    return out.decode()


@pytest.mark.needs("dig")
async def test_dig_sees_the_servers_rotate(serve):
    async with serve() as (_, port):
        firsts = set()
        for _ in range(6):
            out = await dig(port, "consul.service.dc1.consul", "+short")
            assert sorted(out.split()) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
            firsts.add(out.split()[0])
        assert firsts == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}


@pytest.mark.needs("dig")
@pytest.mark.parametrize(
    "options", [(), ("+tcp",), ("+noedns",), ("+subnet=198.51.100.0/24",), ("+dnssec",)]
)
async def test_dig_asks_in_its_own_ways(serve, options):
    async with serve() as (_, port):
        out = await dig(port, "httpbackend.service.dc1.consul", "SRV", *options)
        assert "status: NOERROR" in out
        assert out.count("IN\tSRV\t1 1 8081 n") == 3
        assert "WARNING" not in out.replace("recursion requested but not available", "").replace(
            ";; WARNING: \n", ""
        )
        out = await dig(port, "-x", "10.0.0.2", "+short", *options)
        assert out.strip() == "n2.node.dc1.consul."
        out = await dig(port, "nope.service.consul", *options)
        assert "status: NXDOMAIN" in out


async def test_many_queries_on_one_connection_in_one_segment(serve):
    async with serve() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = b""
        for number in range(200):
            data = query("httpbackend.service.consul", number=number)
            sent += struct.pack("!H", len(data)) + data
        for at in range(0, len(sent), 1001):
            writer.write(sent[at : at + 1001])
            await writer.drain()
        for number in range(200):
            length = struct.unpack("!H", await reader.readexactly(2))[0]
            reply = dns.message.from_wire(await reader.readexactly(length))
            assert reply.id == number
            assert len(reply.answer[0]) == 3
        writer.close()


async def test_connections_are_bounded_and_idle_ones_closed(serve):
    limits = DnsLimits(connections_per_address=2, idle_s=0.2)
    async with serve(limits=limits) as (server, port):
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, writer in pairs:
            async with asyncio.timeout(3):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
        assert server.dropped == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::1", "::"])
async def test_reply_comes_from_the_address_that_was_asked(serve, host):
    asked = ["127.0.0.1", "127.0.0.7"] if host == "0.0.0.0" else ["::1"]
    async with serve(host=host) as (_, port):
        for address in asked:
            # The client's socket is connected, so a reply from another address would not arrive.
            reply = await ask_udp(port, query("n1.node.consul"), host=address)
            assert reply.answer[0][0].to_text() == "10.0.0.1"


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
async def test_a_taken_port_is_named(serve, kind):
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        transport = "udp" if kind == socket.SOCK_DGRAM else "tcp"
        with pytest.raises(
            Unavailable, match=f"listen {transport} 127.0.0.1:{port}: bind: address already in use"
        ):
            async with serve(port=port):
                pass


async def test_stop_frees_the_port(serve):
    async with serve() as (_, port):
        pass
    async with serve(port=port) as (_, again):
        assert again == port
        assert (await ask_udp(port, query("n1.node.consul"))).answer


async def test_garbage_hurts_nobody(serve):
    async with serve() as (_, port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for junk in (b"", b"\0", bytes(12), b"\xff" * 600, query("a.consul")[:-2], bytes(4000)):
                sock.sendto(junk, ("127.0.0.1", port))
            assert (await ask_udp(port, query("n1.node.consul"))).answer


# -- recursors -----------------------------------------------------------------------------------------------------------


async def test_forwarded_with_a_new_id_and_port_each_time(serve, upstream):
    good, address = await upstream(lambda data: [reply_to(data)])
    async with serve(DnsSettings(recursors=(address,))) as (_, port):
        for _ in range(8):
            reply = await ask_udp(port, query("example.com"))
            assert reply.id == 0x1234
            assert reply.answer[0].ttl == 123
            assert not reply.flags & dns.flags.AA
    assert len({data[:2] for data, _ in good.seen}) >= 7
    assert len({addr for _, addr in good.seen}) >= 6


async def test_next_one_when_one_fails_is_silent_or_lies(serve, upstream):
    behaviours = [
        lambda data: [reply_to(data, rcode=dns.rcode.SERVFAIL)],
        lambda data: [reply_to(data, rcode=dns.rcode.REFUSED)],
        lambda data: [],
        lambda data: [
            bytes((data[0] ^ 1, data[1])) + reply_to(data, address="6.6.6.6")[2:],
            reply_to(data[:2] + query("evil.example")[2:], address="6.6.6.6"),
            data,
            b"x",
        ],
    ]
    bad = [(await upstream(behave))[1] for behave in behaviours]
    _, good = await upstream(lambda data: [reply_to(data)])
    settings = DnsSettings(recursors=(*bad, good), recursor_timeout_s=0.3)
    async with serve(settings) as (_, port):
        reply = await ask_udp(port, query("example.com"))
        assert reply.answer[0][0].to_text() == "192.0.2.9"
    async with serve(DnsSettings(recursors=tuple(bad), recursor_timeout_s=0.1)) as (_, port):
        reply = await ask_udp(port, query("example.com"))
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert dns.flags.to_text(reply.flags) == "QR RD RA"


async def test_a_lie_before_the_truth_does_not_win(serve, upstream):
    _, address = await upstream(
        lambda data: [
            bytes((data[0], data[1] ^ 1)) + reply_to(data, address="6.6.6.6")[2:],
            reply_to(data[:2] + query("evil.example")[2:], address="6.6.6.6"),
            reply_to(data),
        ]
    )
    async with serve(DnsSettings(recursors=(address,))) as (_, port):
        assert (await ask_udp(port, query("example.com"))).answer[0][0].to_text() == "192.0.2.9"


async def test_too_many_forwards_fail_fast_and_the_catalog_still_answers(serve, upstream):
    _, silent = await upstream(lambda data: [])
    settings = DnsSettings(recursors=(silent,), recursor_timeout_s=2)
    async with serve(settings, limits=DnsLimits(deferred=20)) as (server, port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(60):
                sock.sendto(query("example.com", number=number), ("127.0.0.1", port))
        reply = await ask_udp(port, query("n1.node.consul"), timeout_s=1)
        assert reply.answer
        assert server.dropped == 40


async def test_forwarded_over_tcp_for_a_tcp_client(serve):
    async def behave(reader, writer):
        length = struct.unpack("!H", await reader.readexactly(2))[0]
        reply = reply_to(await reader.readexactly(length))
        writer.write(struct.pack("!H", len(reply)) + reply)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(behave, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, serve(DnsSettings(recursors=(address,))) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = query("example.com")
        writer.write(struct.pack("!H", len(data)) + data)
        async with asyncio.timeout(5):
            length = struct.unpack("!H", await reader.readexactly(2))[0]
            reply = dns.message.from_wire(await reader.readexactly(length))
        assert reply.answer[0][0].to_text() == "192.0.2.9"
        writer.close()
