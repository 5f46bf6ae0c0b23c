"""What a running agent takes from its files: on SIGHUP, by `waypost reload`, and by itself."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.integration.access.conftest import Protected

from waypost.access.pki.issue import (
    Authority,
    Subject,
    Usage,
    certificate_pem,
    issue,
    load_authority,
    make_authority,
)
from waypost.access.pki.keys import generate_key, private_pem, public_pem
from waypost.access.pki.setup import Layout, renew

TAKEN = "access control: read again"
REFUSED = "the configuration is not taken over"
REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
JSON = {"Content-Type": "application/json"}


@contextlib.contextmanager
def started(*flags: str, before: Callable[[Protected], None] | None = None) -> Iterator[Protected]:
    agent = Protected()
    try:
        agent.process.command += flags
        if before is not None:
            before(agent)
        agent.process.start()
        yield agent
    finally:
        agent.process.close()


def secret(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def hang_up(agent: Protected, wanted: str = TAKEN) -> str:
    """Send SIGHUP; return the line of the log that says what came of it."""
    log = agent.process.log_file
    start = log.stat().st_size
    agent.process.signal(signal.SIGHUP)

    def line() -> str:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode().splitlines()
        return next((one for one in lines if wanted in one), "")

    found = agent.process.eventually(line, within_s=5)
    assert isinstance(found, str)
    return found


class Open:
    """A connection that stays open."""

    def __init__(self, agent: Protected, *, tls: ssl.SSLContext | None = None) -> None:
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPConnection("127.0.0.1", agent.process.http, timeout=10)
            if tls is None
            else http.client.HTTPSConnection("127.0.0.1", agent.https, context=tls, timeout=10)
        )
        self._connection.connect()
        self._socket = self._connection.sock

    def get(self, target: str, **headers: str) -> tuple[int, Any]:
        self._connection.request("GET", target, headers=headers)
        answer = self._connection.getresponse()
        body = answer.read()
        assert self._connection.sock is self._socket, "the agent closed the connection"
        return answer.status, json.loads(body) if answer.status == 200 else body.decode()

    def user(self, **headers: str) -> str:
        """Return who the agent says this is; "" for nobody."""
        status, body = self.get("/v1/waypost/auth/whoami", **headers)
        return body["user"] if status == 200 else ""

    def close(self) -> None:
        self._connection.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def shown(agent: Protected) -> x509.Certificate:
    """Return the certificate that a new connection gets."""
    pem = ssl.get_server_certificate(("127.0.0.1", agent.https))
    return x509.load_pem_x509_certificate(pem.encode())


def authority(name: str = "others") -> Authority:
    return make_authority(generate_key(), common_name=name, now_s=time.time())


def client_of(
    folder: Path, ca: Authority, user: str, *groups: str, life_s: float = 3600
) -> ssl.SSLContext:
    """Return a context that shows a certificate of `ca`."""
    key = generate_key()
    certificate = issue(
        ca,
        key.public_key(),
        subject=Subject(user, groups).to_x509(),
        usages=(Usage.CLIENT,),
        now_s=time.time(),
        validity_s=life_s,
    )
    path = folder / f"{user}.pem"
    path.write_bytes(certificate_pem(certificate) + private_pem(key))
    context = ssl._create_unverified_context()
    context.load_cert_chain(path)
    return context


# -- who ---------------------------------------------------------------------------------------------------------------


def test_a_removed_token_fails_with_the_next_request_of_an_open_connection() -> None:
    hot = "/v1/catalog/services"
    with started() as agent:
        tokens = agent.folder / "tokens.csv"
        connection = Open(agent)
        for _ in range(3):  # the third comes from memory
            assert connection.get(hot, **bearer("token-of-web"))[0] == 200
        assert connection.user(**bearer("token-of-new")) == ""
        secret(tokens, 'token-of-new,new,1,"a"\ntoken-of-ops,renamed,1002,"ops"\n')
        assert connection.get(hot, **bearer("token-of-web"))[0] == 200
        line = hang_up(agent)
        assert str(tokens) in line
        assert connection.get(hot, **bearer("token-of-web"))[0] == 401
        assert connection.user(**bearer("token-of-new")) == "new"
        assert connection.user(**{"X-Consul-Token": "token-of-ops"}) == "renamed"
        connection.close()


def test_a_bad_file_changes_nothing_and_is_named(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords.csv"
    basic = {"Authorization": "Basic " + base64.b64encode(b"anna:new").decode()}
    old = {"Authorization": "Basic " + base64.b64encode(b"anna:old").decode()}
    secret(passwords, "old,anna,1\n")
    with started(f"-basic-auth-file={passwords}") as agent:
        tokens = agent.folder / "tokens.csv"
        connection = Open(agent)
        before = tokens.read_text()
        secret(passwords, "new,anna,1\n")
        secret(tokens, "token-of-web\n")
        assert f"token file '{tokens}' must have at least 3 columns" in hang_up(agent, REFUSED)
        done = agent.waypost("reload", agent.admin, expect=1)
        assert "must have at least 3 columns" in done.stderr
        assert "token-of-web" not in agent.process.log_file.read_text()
        assert connection.user(**bearer("token-of-web")) == "web-team"
        assert (connection.user(**old), connection.user(**basic)) == ("anna", "")

        tokens.write_text(before)
        tokens.chmod(0o644)
        assert f"{tokens}: mode 0644" in hang_up(agent, REFUSED)
        tokens.chmod(0o600)
        agent.waypost("reload", agent.admin)
        assert (connection.user(**old), connection.user(**basic)) == ("", "anna")
        connection.close()


def test_authorities_of_clients_and_of_proxies_come_and_go(tmp_path: Path) -> None:
    ours, others, proxies = authority("ours"), authority(), authority("proxies")
    bundle, proxy_ca = tmp_path / "clients.pem", tmp_path / "proxies.pem"
    bundle.write_bytes(ours.pem)
    proxy_ca.write_bytes(ours.pem)
    with started(f"-client-ca-file={bundle}", f"-requestheader-client-ca-file={proxy_ca}") as agent:
        client = Open(agent, tls=client_of(tmp_path, others, "carl"))
        proxy = Open(agent, tls=client_of(tmp_path, proxies, "proxy"))
        named = {"X-Remote-User": "dora"}
        assert (client.user(), proxy.user(**named)) == ("", "")
        bundle.write_bytes(ours.pem + others.pem)
        proxy_ca.write_bytes(proxies.pem)
        hang_up(agent)
        assert (client.user(), proxy.user(**named)) == ("carl", "dora")
        bundle.write_text("no certificate")
        assert f"{bundle}: no PEM certificate" in hang_up(agent, REFUSED)
        assert client.user() == "carl"
        bundle.write_bytes(ours.pem)
        hang_up(agent)
        assert client.user() == ""
        client.close()
        proxy.close()


def test_a_certificate_is_believed_until_it_ends(tmp_path: Path) -> None:
    """Also on a connection that is asked again and again, so that who it is was remembered."""
    ca = authority()
    bundle = tmp_path / "clients.pem"
    bundle.write_bytes(ca.pem)
    with started(f"-client-ca-file={bundle}") as agent:
        client = Open(agent, tls=client_of(tmp_path, ca, "carl", life_s=4))
        end = time.monotonic() + 10
        statuses: list[int] = []
        while time.monotonic() < end and (not statuses or statuses[-1] == 200):
            statuses.append(client.get("/v1/catalog/services")[0])
            time.sleep(0.05)
        assert len(statuses) > 20
        assert set(statuses[:-1]) == {200}
        assert statuses[-1] == 401
        client.close()


def account_token(agent: Protected) -> str:
    answer = agent.ask(
        "POST",
        "/api/v1/namespaces/default/serviceaccounts/default/token",
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
        over="unix",
        headers=JSON,
    )
    assert answer.status == 201, answer.body
    return str(answer.json["status"]["token"])


def test_service_account_keys_are_exchanged() -> None:
    user = "system:serviceaccount:default:default"
    with started() as agent:
        layout = Layout(agent.process.data)
        connection = Open(agent)
        first = account_token(agent)
        assert connection.user(**bearer(first)) == user
        fresh = generate_key()
        old_public = layout.token_public_keys.read_text()
        layout.token_public_keys.write_text(public_pem(fresh.public_key()).decode() + old_public)
        layout.key("sa").write_bytes(private_pem(fresh))
        hang_up(agent)
        second = account_token(agent)
        assert first.split(".")[0] != second.split(".")[0]  # another key's id
        for token in (first, second):
            assert connection.user(**bearer(token)) == user
        keys = agent.ask("GET", "/openid/v1/jwks", over="unix").json["keys"]
        assert len(keys) == 2
        layout.token_public_keys.write_bytes(public_pem(fresh.public_key()))
        hang_up(agent)
        assert connection.user(**bearer(first)) == ""
        assert connection.user(**bearer(second)) == user
        # What a token depends on counts at once, however often it was good.
        agent.ask("DELETE", "/api/v1/namespaces/default/serviceaccounts/default", over="unix")
        assert connection.user(**bearer(second)) == ""
        connection.close()


# -- may they ----------------------------------------------------------------------------------------------------------


def policy(user: str) -> str:
    spec = {"user": user, "nonResourcePath": "/v1/kv/*"}
    kind = {"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy"}
    return json.dumps({**kind, "spec": spec}) + "\n"


def test_the_policy_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "policy.jsonl"
    path.write_text(policy("web-team"))
    flags = ("-authorization-mode=Node,RBAC,ABAC", f"-authorization-policy-file={path}")
    with started(*flags) as agent:
        connection = Open(agent)

        def statuses() -> list[int]:
            users = ("token-of-web", "token-of-ops")
            return [connection.get("/v1/kv/a", **bearer(user))[0] for user in users]

        assert agent.ask("PUT", "/v1/kv/a", body=b"1", over="unix").status == 200
        assert statuses() == statuses() == [200, 403]
        path.write_text(policy("ops"))
        hang_up(agent)
        assert statuses() == [403, 200]
        path.write_text("{")
        assert str(path) in hang_up(agent, REFUSED)
        assert statuses() == [403, 200]
        connection.close()


class Hook:
    """A webhook that knows every token, and says that it is `user`'s."""

    def __init__(self, user: str) -> None:
        self.calls = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.calls += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                status = {"authenticated": True, "user": {"username": user}}
                review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
                body = json.dumps({**review, "status": status}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def kubeconfig(self) -> str:
        url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [{"name": "k", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            }
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def test_another_webhook_is_asked_although_the_first_answer_is_fresh(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        hooks = [Hook("anna"), Hook("bert")]
        for hook in hooks:
            stack.callback(hook.close)
        path = tmp_path / "hook.json"
        secret(path, hooks[0].kubeconfig)
        flag = f"-authentication-token-webhook-config-file={path}"
        agent = stack.enter_context(started(flag))
        connection = Open(agent)
        stack.callback(connection.close)
        assert [connection.user(**bearer("some-token")) for _ in range(3)] == ["anna"] * 3
        assert hooks[0].calls == 1
        secret(path, hooks[1].kubeconfig)
        hang_up(agent)
        assert connection.user(**bearer("some-token")) == "bert"
        assert (hooks[0].calls, hooks[1].calls) == (1, 1)


def test_a_setting_that_needs_a_start_is_said_and_the_rest_taken(tmp_path: Path) -> None:
    def configure(agent: Protected, mode: str) -> None:
        access = {"authorization_mode": mode, "anonymous_auth": mode == "Node,RBAC"}
        (agent.process.config_dir / "10-access.json").write_text(json.dumps({"access": access}))

    with started(before=lambda agent: configure(agent, "Node,RBAC")) as agent:
        connection = Open(agent)
        assert connection.get("/v1/catalog/services")[0] == 200
        configure(agent, "AlwaysAllow")
        line = hang_up(agent, "changes count when the agent is started again")
        assert "access.authorization_mode" in line
        agent.process.eventually(lambda: connection.get("/v1/catalog/services")[0], 401)
        assert connection.get("/v1/kv/a", **bearer("token-of-web"))[0] == 403
        connection.close()


# -- certificates ------------------------------------------------------------------------------------------------------


def test_a_renewed_serving_certificate_reaches_new_connections_only() -> None:
    with started() as agent:
        old = shown(agent)
        connection = Open(agent, tls=ssl._create_unverified_context())
        agent.waypost("certs", "renew", f"-data-dir={agent.process.data}", "apiserver")
        assert shown(agent) == old
        agent.waypost("reload", agent.admin)
        assert shown(agent) != old
        assert connection.get("/v1/catalog/services")[0] == 200
        layout = Layout(agent.process.data)
        layout.key("apiserver").write_bytes(private_pem(generate_key()))
        assert "key values mismatch" in hang_up(agent, REFUSED)
        assert shown(agent) != old
        assert connection.get("/v1/catalog/services")[0] == 200
        connection.close()


def test_the_agent_renews_its_serving_certificate_by_itself() -> None:
    def nearly_due(agent: Protected) -> None:
        # Valid since five minutes before now, so two thirds of 455 s are over in about 3 s.
        layout = Layout(agent.process.data)
        renew(("apiserver",), layout, now_s=time.time(), algorithm="ECDSA-P384", validity_s=155)

    with started(before=nearly_due) as agent:
        first = shown(agent)
        connection = Open(agent, tls=ssl._create_unverified_context())
        agent.process.eventually(lambda: shown(agent) != first, within_s=15)
        second = shown(agent)
        assert second.subject == first.subject
        assert second.not_valid_after_utc > first.not_valid_after_utc
        key = second.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp384r1"
        names = x509.SubjectAlternativeName
        assert (
            second.extensions.get_extension_for_class(names).value
            == first.extensions.get_extension_for_class(names).value
        )
        on_disk = Layout(agent.process.data).certificate("apiserver").read_bytes()
        assert x509.load_pem_x509_certificate(on_disk) == second
        assert connection.get("/v1/catalog/services")[0] == 200
        assert "serving certificate renewed" in agent.process.log_file.read_text()
        connection.close()


def test_without_the_key_of_the_authority_the_operator_is_told() -> None:
    def nearly_over(agent: Protected) -> None:
        layout = Layout(agent.process.data)
        renew(("apiserver",), layout, now_s=time.time(), algorithm="ECDSA-P256", validity_s=100)
        layout.key("ca").rename(agent.folder / "ca.key")

    with started(before=nearly_over) as agent:
        first = shown(agent)
        agent.process.eventually(
            lambda: "certificate of the agent's API" in agent.process.log_file.read_text()
        )
        assert shown(agent) == first
        done = agent.waypost("certs", "check", f"-data-dir={agent.process.data}")
        assert "apiserver: two thirds of its life are over; renew it where the key" in done.stdout


def signing_request(name: str) -> dict[str, Any]:
    made = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    pem = made.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": base64.b64encode(pem).decode(),
            "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"],
        },
    }


@pytest.mark.parametrize("comes_back", ["reload", "start"])
def test_what_was_approved_without_the_key_is_signed_once_it_is_there(comes_back: str) -> None:
    def without_key(agent: Protected) -> None:
        Layout(agent.process.data).key("ca").rename(agent.folder / "ca.key")

    with started(before=without_key) as agent:
        layout = Layout(agent.process.data)

        def ask(method: str, path: str, body: Any = None) -> Any:
            answer = agent.ask(method, path, body=body, over="unix", headers=JSON)
            assert answer.status in (200, 201), answer.body
            return answer.json

        for name in ("approved", "denied", "undecided"):
            found = ask("POST", REQUESTS, signing_request(name))
            if name != "undecided":
                kind = name.capitalize()
                found["status"] = {"conditions": [{"type": kind, "status": "True"}]}
                ask("PUT", f"{REQUESTS}/{name}/approval", found)
        assert "certificate" not in ask("GET", f"{REQUESTS}/approved")["status"]
        (agent.folder / "ca.key").rename(layout.key("ca"))
        if comes_back == "reload":
            hang_up(agent)
        else:
            agent.process.terminate()
            agent.process.start()
        chain = agent.process.eventually(
            lambda: ask("GET", f"{REQUESTS}/approved")["status"].get("certificate")
        )
        issued = x509.load_pem_x509_certificate(base64.b64decode(chain))
        ca = load_authority(layout.certificate("ca").read_bytes(), None, name="ca")
        issued.verify_directly_issued_by(ca.certificate)
        for name in ("denied", "undecided"):
            status = ask("GET", f"{REQUESTS}/{name}").get("status") or {}
            assert "certificate" not in status
