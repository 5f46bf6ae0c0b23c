"""TLS with client certificates of every quality, over real sockets with certificates by openssl."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from waypost.base.errors import Malformed, Unauthenticated
from waypost.surfaces.http.message import Request, Response, text_response
from waypost.surfaces.http.router import Route, Router
from waypost.surfaces.http.server import OpenTls, Server, TcpEndpoint, TlsEndpoint


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="session")
def pki(tmp_path_factory) -> Path:
    """A directory with ca, server, alice (good), mallory (self-signed) and old (expired)."""
    where = tmp_path_factory.mktemp("pki")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "mallory"):
        openssl("req", "-x509", *key, "-subj", f"/CN={name}", "-days", "2", "-keyout",
                f"{name}.key", "-out", f"{name}.pem", cwd=where)  # fmt: skip
    (where / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name, days in (("server", "2"), ("alice", "2"), ("old", "-1")):
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out",
                f"{name}.csr", cwd=where)  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-days", days, "-extfile", "san", "-out", f"{name}.pem", cwd=where)  # fmt: skip
    return where


def client(pki: Path, name: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    if name is not None:
        context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    return context


def der(pki: Path, name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((pki / f"{name}.pem").read_text())


def make(pki: Path, tls: OpenTls | TlsEndpoint | ssl.SSLContext) -> Server:
    """Serve routes that believe alice only; `/body` has half a megabyte, `/wait` never answers."""
    good = der(pki, "alice")

    def who(request: Request) -> Response:
        shown = request.peer.certificate_der
        assert request.peer.is_tls
        if shown is None:
            return text_response(200, "anonymous")
        if shown != good:
            raise Unauthenticated(f"{len(request.peer.certificates_der)} bad certificate")
        return text_response(200, "alice")

    async def wait(request: Request) -> Response:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    cancelled = asyncio.Event()
    routes = [
        Route("/who", {"GET": who}),
        Route("/body", {"GET": lambda _: Response(body=b"x" * 500_000)}),
        Route("/echo", {"PUT": lambda request: Response(body=request.body)}),
        Route("/wait", {"GET": wait}),
    ]
    server = Server(Router(routes), [TcpEndpoint("127.0.0.1", 0, "https", tls)])
    server.cancelled = cancelled  # type: ignore[attr-defined]
    return server


def open_tls(pki: Path) -> OpenTls:
    return OpenTls(certificate_file=str(pki / "server.pem"), key_file=str(pki / "server.key"))


def sslcontext(pki: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "server.pem", pki / "server.key")
    context.load_verify_locations(pki / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def fetch(server: Server, request: bytes, context: ssl.SSLContext) -> tuple[int, bytes]:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port("https"), ssl=context, server_hostname="localhost"
        )
        try:
            writer.write(request)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(lines.lower().partition("content-length: ")[2].partition("\r\n")[0])
            return int(lines.split()[1]), await reader.readexactly(length)
        finally:
            writer.close()
            await writer.wait_closed()


async def rest(reader: asyncio.StreamReader) -> bytes:
    with suppress(ConnectionError):
        return await reader.read()
    return b""


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        (None, 200, b"anonymous"),
        ("alice", 200, b"alice"),
        ("mallory", 401, b"1 bad certificate"),
        ("old", 401, b"2 bad certificate"),
    ],
)
async def test_every_certificate_gets_an_answer(pki, version, name, status, body) -> None:
    context = client(pki, name)
    context.minimum_version = context.maximum_version = version
    async with make(pki, open_tls(pki)) as server:
        assert await fetch(server, get("/who"), context) == (status, body)


async def test_an_ordinary_context_works_as_well(pki) -> None:
    async with make(pki, sslcontext(pki)) as server:
        assert await fetch(server, get("/who"), client(pki)) == (200, b"anonymous")
        assert await fetch(server, get("/who"), client(pki, "alice")) == (200, b"alice")


async def test_large_bodies_both_ways(pki) -> None:
    async with make(pki, open_tls(pki)) as server:
        assert await fetch(server, get("/body"), client(pki)) == (200, b"x" * 500_000)
        body = bytes(range(256)) * 4000
        request = b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert await fetch(server, request + body, client(pki)) == (200, body)


@pytest.mark.parametrize("step", [1, 7, 300, 100_000])
async def test_records_may_be_split_and_joined(pki, step: int) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = client(pki).wrap_bio(incoming, outgoing, server_hostname="localhost")
    async with make(pki, open_tls(pki)) as server, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port("https"))

        async def push() -> None:
            data = outgoing.read()
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
                await asyncio.sleep(0.0002)

        while True:
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                await push()
                incoming.write(await reader.read(65536))
            else:
                break
        for request in (get("/who"), get("/body")[:9], get("/body")[9:], get("/who")):
            session.write(request)  # four records
        await push()
        text = b""
        while text.count(b"anonymous") < 2:
            try:
                text += session.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(await reader.read(65536))
        assert text.count(b"x") >= 500_000
        session.write(get("/who"))
        await push()
        while text.count(b"anonymous") < 3:
            try:
                text += session.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(await reader.read(65536))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_client_that_leaves_cancels_the_handler(pki) -> None:
    async with make(pki, open_tls(pki)) as server:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", server.port("https"), ssl=client(pki), server_hostname="localhost"
        )
        writer.write(get("/wait"))
        await asyncio.sleep(0.1)
        assert not server.cancelled.is_set()
        writer.close()
        async with asyncio.timeout(5):
            await server.cancelled.wait()
            while server.connections:
                await asyncio.sleep(0.01)


async def test_noise_instead_of_a_handshake(pki) -> None:
    async with make(pki, open_tls(pki)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port("https"))
        writer.write(get("/who"))
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
        await writer.wait_closed()
        assert await fetch(server, get("/who"), client(pki)) == (200, b"anonymous")


async def test_http_1_1_is_agreed_with_a_client_that_prefers_2(pki) -> None:
    context = client(pki)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with make(pki, open_tls(pki)) as server:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", server.port("https"), ssl=context, server_hostname="localhost"
        )
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.close()
        await writer.wait_closed()


async def test_stop_with_open_connections(pki) -> None:
    server = make(pki, open_tls(pki))
    async with server, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port("https"), ssl=client(pki), server_hostname="localhost"
        )
        await server.stop()  # perhaps before the handshake is done on this side
        assert await rest(reader) == b""
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_unfinished_handshakes_are_bounded_and_dropped_at_stop(pki) -> None:
    async with make(pki, open_tls(pki)) as server, asyncio.timeout(10):
        port = server.port("https")
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(101)]
        assert await rest(silent[100][0]) == b""  # one too many of this address
        for _, writer in silent[:2]:
            writer.close()
        await asyncio.sleep(0.1)
        assert await fetch(server, get("/who"), client(pki)) == (200, b"anonymous")
        await server.stop()
        for reader, writer in silent:
            assert await rest(reader) == b""
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize(
    ("certificate", "key", "text"),
    [
        ("none.pem", "server.key", "none.pem: no such file"),
        ("server.pem", "alice.key", "mismatch"),
        ("server.key", "server.key", "server.key"),
    ],
)
async def test_bad_files_are_named(pki, certificate: str, key: str, text: str) -> None:
    tls = OpenTls(certificate_file=str(pki / certificate), key_file=str(pki / key))
    with pytest.raises(Malformed, match=text):
        async with make(pki, tls):
            pass


async def served(server: Server, context: ssl.SSLContext) -> tuple[bytes, asyncio.StreamWriter]:
    """Open a connection; return the certificate that the server showed."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1", server.port("https"), ssl=context, server_hostname="localhost"
    )
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return shown, writer


async def test_another_certificate_for_new_handshakes_only(pki) -> None:
    endpoint = TlsEndpoint(open_tls(pki))
    async with make(pki, endpoint) as server:
        context = client(pki)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port("https"), ssl=context, server_hostname="localhost"
        )
        endpoint.replace(
            OpenTls(certificate_file=str(pki / "alice.pem"), key_file=str(pki / "alice.key"))
        )
        shown, other = await served(server, context)
        assert shown == der(pki, "alice")
        # What was open goes on, in both directions.
        writer.write(get("/who"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        for one in (writer, other):
            one.close()


async def test_a_bad_pair_changes_nothing(pki) -> None:
    endpoint = TlsEndpoint(open_tls(pki))
    async with make(pki, endpoint) as server:
        with pytest.raises(Malformed, match="key values mismatch"):
            endpoint.replace(
                OpenTls(certificate_file=str(pki / "server.pem"), key_file=str(pki / "alice.key"))
            )
        shown, writer = await served(server, client(pki))
        assert shown == der(pki, "server")
        writer.close()
