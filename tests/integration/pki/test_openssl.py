"""What `waypost init` makes, in the eyes of OpenSSL: chains, purposes, names, a real TLS handshake."""

from __future__ import annotations

import base64
import os
import re
import socket
import ssl
import subprocess
import sys
import threading

import pytest
import yaml

pytestmark = pytest.mark.needs("openssl")


def waypost(*args, **environment):
    return subprocess.run(
        [sys.executable, "-m", "waypost", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def openssl(*args, data=None):
    return subprocess.run(["openssl", *args], capture_output=True, input=data, timeout=60)


@pytest.fixture(scope="module", params=["ECDSA-P256", "RSA-2048"])
def data_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki") / "data"
    done = waypost(
        "init",
        f"-data-dir={folder}",
        "-advertise=192.0.2.10",
        "-extra-san=waypost.example.com",
        "-node=node1",
        f"-key-algorithm={request.param}",
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return folder


def client_pair(data_dir, name, folder):
    config = yaml.safe_load((data_dir / name).read_text())
    user = config["users"][0]["user"]
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
    key.write_bytes(base64.b64decode(user["client-key-data"]))
    return certificate, key


def test_the_chain_and_the_purposes(data_dir, tmp_path):
    ca, serving = data_dir / "pki/ca.crt", data_dir / "pki/apiserver.crt"
    admin, _ = client_pair(data_dir, "admin.conf", tmp_path)

    def verify(path, *flags):
        return openssl("verify", "-x509_strict", "-CAfile", ca, *flags, path).returncode

    assert verify(ca) == 0
    assert verify(serving, "-purpose", "sslserver", "-verify_hostname", "localhost") == 0
    assert verify(serving, "-verify_hostname", "waypost.example.com") == 0
    assert verify(serving, "-verify_hostname", "server.dc1.consul") == 0
    assert verify(serving, "-verify_ip", "192.0.2.10") == 0
    assert verify(serving, "-verify_ip", "127.0.0.1") == 0
    assert verify(serving, "-verify_ip", "::1") == 0
    assert verify(serving, "-verify_hostname", "example.com") != 0
    assert verify(serving, "-purpose", "sslclient") != 0
    assert verify(admin, "-purpose", "sslclient") == 0
    assert verify(admin, "-purpose", "sslserver") != 0


def test_subjects_and_keys(data_dir, tmp_path):
    admin, key = client_pair(data_dir, "admin.conf", tmp_path)
    subject = openssl("x509", "-in", admin, "-noout", "-subject").stdout.decode()
    assert re.sub(r"\s", "", subject) == "subject=O=system:masters,CN=kubernetes-admin"
    for certificate, private in (
        (admin, key),
        (data_dir / "pki/ca.crt", data_dir / "pki/ca.key"),
        (data_dir / "pki/apiserver.crt", data_dir / "pki/apiserver.key"),
    ):
        public = openssl("x509", "-in", certificate, "-noout", "-pubkey").stdout
        assert public == openssl("pkey", "-in", private, "-pubout").stdout
    public = openssl("pkey", "-in", data_dir / "pki/sa.key", "-pubout").stdout
    assert public == (data_dir / "pki/sa.pub").read_bytes()


def test_the_pin_is_what_the_documented_pipeline_gives(data_dir):
    printed = waypost("init", f"-data-dir={data_dir}", "-advertise=192.0.2.10", "-node=node1")
    public = openssl("x509", "-in", data_dir / "pki/ca.crt", "-noout", "-pubkey").stdout
    der = openssl("pkey", "-pubin", "-outform", "der", data=public).stdout
    digest = openssl("dgst", "-sha256", "-hex", data=der).stdout.decode().split()[-1]
    assert f"sha256:{digest}" in printed.stdout


def test_a_handshake_with_both_certificates(data_dir, tmp_path):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(data_dir / "pki/apiserver.crt", data_dir / "pki/apiserver.key")
    server.load_verify_locations(data_dir / "pki/ca.crt")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(data_dir / "pki/ca.crt"))
    client.load_cert_chain(*client_pair(data_dir, "node.conf", tmp_path))
    found = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with server.wrap_socket(connection, server_side=True) as tls:
                found["subject"] = dict(part[0] for part in tls.getpeercert()["subject"])
                tls.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            socket.create_connection(listener.getsockname()) as raw,
            client.wrap_socket(raw, server_hostname="localhost") as tls,
        ):
            assert tls.recv(5) == b"hello"
        thread.join(timeout=10)
    assert found["subject"] == {
        "organizationName": "system:nodes",
        "commonName": "system:node:node1",
    }


def test_check_and_renew(data_dir):
    given = f"-data-dir={data_dir}"
    checked = waypost("certs", "check", given)
    assert checked.returncode == 0, checked
    assert "apiserver" in checked.stdout
    assert waypost("certs", "check", given, "-warn=9000h").returncode == 2
    before = (data_dir / "pki/apiserver.crt").read_bytes()
    renewed = waypost("certs", "renew", given, "-validity=2h", "apiserver")
    assert renewed.returncode == 0, renewed
    assert renewed.stdout.startswith("certificate for serving the API renewed")
    assert (data_dir / "pki/apiserver.crt").read_bytes() != before
    chain = ("verify", "-CAfile", data_dir / "pki/ca.crt")
    assert openssl(*chain, data_dir / "pki/apiserver.crt").returncode == 0
    assert re.search(r"^apiserver .* 1h ", waypost("certs", "check", given).stdout, re.MULTILINE)
    assert waypost("certs", "renew", given, "all").returncode == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("init",), "-data-dir is required"),
        (("init", "-data-dir=DIR", "-advertise=x"), '"x" is no IP address'),
        (("init", "-data-dir=DIR", "-advertise=0.0.0.0"), "no address that others can reach"),
        (("init", "-data-dir=DIR", "-extra-san=a b"), '"a b" is neither a DNS name'),
        (("init", "-data-dir=DIR", "-key-algorithm=DSA"), 'unknown key algorithm "DSA"'),
        (("init", "-data-dir=DIR", "-phase=x"), 'there is no "x"'),
        (("init", "-data-dir=DIR", "-endpoint=a:b"), "is not host:port"),
        (("init", "-data-dir=DIR", "-validity=1s"), "for an hour at least"),
        (("certs", "check"), "-data-dir is required"),
        (("certs", "renew", "-data-dir=DIR"), "give all, or some of"),
        (("certs", "renew", "-data-dir=DIR", "apiserver"), "no certificate authority here"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, args, message):
    done = waypost(*(one.replace("DIR", str(tmp_path / "none")) for one in args))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "none" / "pki" / "ca.crt").exists()


def test_a_check_without_anything(tmp_path):
    done = waypost("certs", "check", f"-data-dir={tmp_path}", "-format=json")
    assert done.returncode == 2
    assert '"Problem": "missing"' in done.stdout
