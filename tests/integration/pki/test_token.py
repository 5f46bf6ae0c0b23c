"""`waypost token`: offline, and against a server that speaks the kube API's few calls that it needs."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest

from waypost.access.authn.bootstrap import parse_token
from waypost.access.pki.issue import Names
from waypost.access.pki.setup import InitSettings, Layout, initialise
from waypost.base.clock import SystemClock
from waypost.cli.main import main


class Api(BaseHTTPRequestHandler):
    """Stores secrets; lets in whoever TLS verified."""

    secrets: dict[str, dict]

    def log_message(self, *args):
        pass

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def missing(self, name):
        self.answer(404, {"kind": "Status", "message": f'secrets "{name}" not found'})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        if name in self.secrets:
            self.answer(409, {"kind": "Status", "message": f'secrets "{name}" already exists'})
            return
        self.secrets[name] = body
        self.answer(201, body)

    def do_GET(self):
        assert self.path.endswith("?fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken")
        self.answer(200, {"kind": "SecretList", "items": list(self.secrets.values())})

    def do_DELETE(self):
        name = self.path.rpartition("/")[2]
        if self.secrets.pop(name, None) is None:
            self.missing(name)
        else:
            self.answer(200, {"kind": "Status", "status": "Success"})


@pytest.fixture
def cluster(tmp_path):
    layout = Layout(tmp_path / "data")
    handler = type("Handler", (Api,), {"secrets": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    initialise(
        InitSettings(
            node="n",
            server=f"https://127.0.0.1:{server.server_port}",
            names=Names(addresses=(ip_address("127.0.0.1"),)),
        ),
        layout,
        now_s=SystemClock().wall(),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(layout.certificate("apiserver"), layout.key("apiserver"))
    context.load_verify_locations(layout.certificate("ca"))
    context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield layout, handler.secrets
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def token(capsys):
    def run(*args):
        status = main(["token", *args])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_generate_needs_nobody(token):
    status, out, err = token("generate")
    assert (status, err) == (0, "")
    assert parse_token(out.strip())
    assert token("generate")[1] != out


def test_a_dry_run_prints_the_secret(token):
    status, out, _ = token("create", "-dry-run", "-ttl=1h", "abcdef.0123456789abcdef")
    assert status == 0
    secret = json.loads(out)
    assert secret["metadata"] == {"name": "bootstrap-token-abcdef", "namespace": "kube-system"}
    assert base64.b64decode(secret["data"]["token-secret"]) == b"0123456789abcdef"


def test_the_life_of_a_token(token, cluster):
    layout, secrets = cluster
    config = f"-kubeconfig={layout.kubeconfig('admin.conf')}"
    status, out, err = token(
        "create", config, "-description=third machine", "-usages=authentication"
    )
    assert (status, err) == (0, "")
    made = parse_token(out.strip())
    assert list(secrets) == [made.secret_name]
    status, out, _ = token("list", config)
    assert status == 0
    head, line = out.splitlines()
    assert head.split() == ["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA", "GROUPS"]
    assert line.split()[:2] == [made.id, "23h"]
    assert "third machine" in line
    assert made.secret not in out
    assert token("create", config, made.text)[2] == (
        f'error: secrets "{made.secret_name}" already exists\n'
    )
    assert token("delete", config, made.id)[1] == f'bootstrap token "{made.id}" deleted\n'
    assert secrets == {}
    status, _, err = token("delete", config, made.text)
    assert (status, err) == (1, f'error: secrets "{made.secret_name}" not found\n')


def test_the_join_command(token, cluster):
    layout, _ = cluster
    config = f"-kubeconfig={layout.kubeconfig('operator.conf')}"
    _, out, _ = token("create", config, "-print-join-command", "abcdef.0123456789abcdef")
    words = out.split()
    assert words[:4] == ["waypost", "agent", "-data-dir", "/var/lib/waypost"]
    assert words[4:8] == ["-join", "127.0.0.1", "-join-token", "abcdef.0123456789abcdef"]
    assert words[8] == "-discovery-token-ca-cert-hash"
    assert words[9].startswith("sha256:")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("create", "abc"), "not of the form"),
        (("create", "-dry-run", "-groups=system:masters"), "is invalid"),
        (("create", "-dry-run", "-usages=x"), "unknown usage"),
        (("create", "-dry-run", "-ttl=-1s"), "must not be negative"),
        (("delete",), "give the token"),
        (("list", "-kubeconfig=/nonexistent"), "no such file"),
    ],
)
def test_what_is_wrong_is_told(token, args, message):
    status, out, err = token(*args)
    assert (status, out) == (1, "")
    assert message in err


def test_a_server_that_is_not_there(token, tmp_path):
    path = tmp_path / "c"
    path.write_text(
        json.dumps(
            {
                "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1"}}],
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": "sekret"}}],
                "current-context": "c",
            }
        )
    )
    status, _, err = token("list", f"-kubeconfig={path}")
    assert status == 1
    assert err.startswith("error: http://127.0.0.1:1: ")
    assert "sekret" not in err
