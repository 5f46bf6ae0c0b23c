"""A real agent with access control, the real kubectl, and webhooks over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import http.client
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that were free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def find_kubectl() -> str | None:
    """Return the path of a kubectl of 1.30 or later."""
    beside = str(Path(sys.executable).parent / "kubectl")
    for path in (os.environ.get("WAYPOST_KUBECTL", ""), beside, shutil.which("kubectl") or ""):
        if not path or not Path(path).exists():
            continue
        done = subprocess.run([path, "version", "--client"], capture_output=True, text=True)
        found = re.search(r"v1\.(\d+)\.", done.stdout)
        if found and int(found[1]) >= 30:
            return path
    return None


# -- webhooks ------------------------------------------------------------------------------------------------------------


class Certificates:
    """A certificate for 127.0.0.1 and `policy.default.svc`, signed by itself."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "webhook")])
        now = dt.datetime.now(dt.UTC)
        alternatives = [
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.DNSName("policy.default.svc"),
        ]
        found = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.pem = found.public_bytes(serialization.Encoding.PEM)
        self.certificate, self.key = folder / "webhook.crt", folder / "webhook.key"
        self.certificate.write_bytes(self.pem)
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    @property
    def bundle(self) -> str:
        """What goes into `caBundle`."""
        return base64.b64encode(self.pem).decode()


Decide = Callable[[dict[str, Any]], dict[str, Any]]


class Webhook:
    """A webhook server of its own thread. `decide` gives the response for a request; `delay_s` holds it back."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.decide: Decide = lambda _request: {"allowed": True}
        self.delay_s = 0.0
        self.hold: Callable[[dict[str, Any]], threading.Event | None] = lambda _request: None
        """Returns what an answer to a request has to wait for, if anything."""
        self.status = 200
        self.raw: bytes | None = None
        """Sent instead of an answer."""
        self.seen: list[dict[str, Any]] = []
        self.hosts: list[str] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificates.certificate, self.certificates.key)
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._started.set()

    async def _answer(self, request: web.Request) -> web.Response:
        review = await request.json()
        assert (review["apiVersion"], review["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        self.seen.append(review["request"])
        self.hosts.append(request.host)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        held = self.hold(review["request"])
        if held is not None:
            assert await asyncio.to_thread(held.wait, 20)
        if self.raw is not None:
            headers = {"Location": self.url} if 300 <= self.status < 400 else {}
            return web.Response(body=self.raw, status=self.status, headers=headers)
        response = {"uid": review["request"]["uid"], **self.decide(review["request"])}
        return web.json_response(
            {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response},
            status=self.status,
        )

    def forget(self) -> None:
        """Agree to everything again, and forget what was asked."""
        self.decide = lambda _request: {"allowed": True}
        self.delay_s, self.status, self.raw = 0.0, 200, None
        self.hold = lambda _request: None
        self.seen.clear()
        self.hosts.clear()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/review"

    def close(self) -> None:
        async def end() -> None:
            assert self._runner is not None
            await self._runner.cleanup()
            # What is left of TLS connections ends in the loop, or not at all.
            await asyncio.sleep(0.3)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(10)
        self._loop.close()


def patch(*operations: dict[str, Any]) -> dict[str, Any]:
    """Return a response that changes the object."""
    encoded = base64.b64encode(json.dumps(operations).encode()).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": encoded}


def denial(message: str = "", **status: Any) -> dict[str, Any]:
    """Return a response that refuses."""
    return {"allowed": False, "status": {"message": message, **status}}


# -- the agent -----------------------------------------------------------------------------------------------------------


class Cluster:
    """An agent made by `waypost init`, kubectl as its administrator, and Consul's API over its unix socket."""

    def __init__(self, folder: Path, kubectl: str) -> None:
        self.folder = folder
        self.kubectl = kubectl
        http_port, self.https_port, server = free_ports(3)
        self.socket = folder / "s"
        self.data = folder / "data"
        self.audit = folder / "audit.log"
        waypost = [sys.executable, "-m", "waypost"]
        subprocess.run(
            [
                *waypost,
                "init",
                f"-data-dir={self.data}",
                "-advertise=127.0.0.1",
                f"-port={self.https_port}",
            ],
            check=True,
            capture_output=True,
        )
        config = {
            "ports": {"http": http_port, "https": self.https_port, "dns": -1, "server": server},
            "addresses": {"http": f"unix://{self.socket}"},
            "balancer": {"enabled": False},
            "docker": {"enabled": False},
            "access": {"audit_log_path": str(self.audit)},
        }
        (folder / "agent.json").write_text(json.dumps(config))
        self.log_file = folder / "log"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *waypost,
                    "agent",
                    f"-config-file={folder / 'agent.json'}",
                    "-node=n1",
                    "-bind=127.0.0.1",
                    f"-data-dir={self.data}",
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 30
        while "agent is ready" not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)

    # -- asking ----------------------------------------------------------------------------------------------------------

    def run(self, *args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator."""
        return subprocess.run(
            [
                self.kubectl,
                f"--kubeconfig={self.data / 'admin.conf'}",
                f"--cache-dir={self.folder / 'cache'}",
                *args,
            ],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
            env={**os.environ, "HOME": str(self.folder)},
        )

    def ok(self, *args: str, stdin: str | None = None) -> str:
        """Run a kubectl that must succeed; return its output."""
        done = self.run(*args, stdin=stdin)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    def consul(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Return status and text of a request to Consul's API as the machine's operator."""
        connection = http.client.HTTPConnection("localhost", timeout=40)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(40)
        connection.sock.connect(str(self.socket))
        try:
            data = json.dumps(body).encode() if isinstance(body, dict | list) else body
            connection.request(method, path, data)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, text = self.consul("GET", path)
        assert status == 200, (status, text)
        return json.loads(text)

    # -- configuring -----------------------------------------------------------------------------------------------------

    def configure(self, kind: str, name: str, *webhooks: dict[str, Any]) -> None:
        """Create or change a configuration by `kubectl apply`."""
        document = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": f"{kind}WebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": list(webhooks),
        }
        self.ok("apply", "-f", "-", stdin=json.dumps(document))

    def unconfigure(self) -> None:
        """Delete every configuration."""
        for kind in ("mutating", "validating"):
            self.ok("delete", f"{kind}webhookconfigurations", "--all")


def hook(webhook: Webhook, name: str, rule: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return one webhook of a configuration."""
    found: dict[str, Any] = {
        "name": name,
        "clientConfig": {"url": webhook.url, "caBundle": webhook.certificates.bundle},
        "rules": [rule],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    return found | more


def rule(group: str, *resources: str, operations: tuple[str, ...] = ("*",)) -> dict[str, Any]:
    """Return a rule about resources of a group."""
    return {
        "apiGroups": [group],
        "apiVersions": ["*"],
        "resources": list(resources),
        "operations": list(operations),
    }


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def _webhook(certificates: Certificates) -> Iterator[Webhook]:
    one = Webhook(certificates)
    yield one
    one.close()


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    kubectl = find_kubectl()
    if kubectl is None:
        if os.environ.get("CI"):
            pytest.fail("no kubectl here", pytrace=False)
        pytest.skip("no kubectl here")
    one = Cluster(tmp_path_factory.mktemp("a"), kubectl)
    yield one
    one.close()


@pytest.fixture
def webhook(_webhook: Webhook) -> Webhook:
    _webhook.forget()
    return _webhook


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    yield _cluster
    _cluster.unconfigure()
