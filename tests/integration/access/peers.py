"""Servers and certificates that an agent meets: an authority, HTTPS servers of it on the loopback, kubeconfig files."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import ipaddress
import json
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import yaml
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
DAY = dt.timedelta(days=1)


class Pair:
    """A certificate with its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def write(self, path: Path) -> Path:
        """Write certificate and key to one file."""
        path.write_bytes(self.pem + self.key_pem)
        path.chmod(0o600)
        return path


class Authority:
    """An authority that signs what it is told to."""

    def __init__(self, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        self.key = key
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 100 * DAY)
            .not_valid_after(now + 100 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def bundle(self) -> str:
        """The certificate as kubeconfig files hold it."""
        return base64.b64encode(self.pem).decode()

    def issue(
        self,
        name: str = "",
        *organizations: str,
        subject: x509.Name | None = None,
        usages: Iterable[ObjectIdentifier] | None = (CLIENT,),
        start: dt.timedelta = -DAY,
        end: dt.timedelta = DAY,
    ) -> Pair:
        """Return a new certificate with its key; `start` and `end` count from now."""
        if subject is None:
            parts = [(NameOID.COMMON_NAME, name)] if name else []
            parts += [(NameOID.ORGANIZATION_NAME, one) for one in organizations]
            subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + start)
            .not_valid_after(now + end)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        return Pair(builder.sign(self.key, hashes.SHA256()), key)


class Sent:
    """A request that a peer got."""

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Handle = Callable[[Sent], tuple[int, Any]]
"""Returns a status and a body: bytes, or what is sent as JSON."""


class Peer:
    """An HTTPS server with a thread of its own. With `clients` it wants a certificate of that authority."""

    def __init__(
        self,
        authority: Authority,
        handle: Handle,
        *,
        clients: Authority | None = None,
        port: int = 0,
    ) -> None:
        self.handle = handle
        self.seen: list[Sent] = []
        self.port = port
        self._authority = authority
        self._clients = clients
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._failure: OSError | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._start())
        except OSError as exc:
            self._failure = exc
            self._started.set()
            return
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        with tempfile.TemporaryDirectory(prefix="wpp-") as folder:
            pair = self._authority.issue("server", usages=(SERVER,)).write(Path(folder) / "pair")
            context.load_cert_chain(pair)
        if self._clients is not None:
            context.load_verify_locations(cadata=self._clients.pem.decode())
            context.verify_mode = ssl.CERT_REQUIRED
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True
        )
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._started.set()

    async def _answer(self, request: web.Request) -> web.Response:
        sent = Sent(request.method, request.path_qs, dict(request.headers), await request.read())
        self.seen.append(sent)
        status, body = await self._loop.run_in_executor(None, self.handle, sent)
        if isinstance(body, bytes):
            return web.Response(status=status, body=body)
        return web.json_response(body, status=status)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def close(self) -> None:
        """End it. Connections are cut."""

        async def end() -> None:
            assert self._runner is not None
            await self._runner.cleanup()
            await self._loop.shutdown_default_executor()
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def kubeconfig(
    path: Path, *, url: str, authority: Authority, client: Pair | None = None, token: str = ""
) -> Path:
    """Write the file that says where a webhook is and how to be believed there."""
    user: dict[str, str] = {}
    if client is not None:
        user["client-certificate-data"] = base64.b64encode(client.pem).decode()
        user["client-key-data"] = base64.b64encode(client.key_pem).decode()
    if token:
        user["token"] = token
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {
                        "name": "hook",
                        "cluster": {"server": url, "certificate-authority-data": authority.bundle},
                    }
                ],
                "users": [{"name": "agent", "user": user}],
                "contexts": [{"name": "hook", "context": {"cluster": "hook", "user": "agent"}}],
                "current-context": "hook",
            }
        )
    )
    path.chmod(0o600)
    return path
