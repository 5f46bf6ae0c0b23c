"""Certificates as kubeadm makes them; signing requests by the rules of kube's signers."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from waypost.access.pki.issue import (
    Authority,
    Names,
    Subject,
    Usage,
    belongs,
    ca_pin,
    issue,
    load_authority,
    load_certificate,
    make_authority,
    names_of,
    usages_of,
)
from waypost.access.pki.keys import (
    ALGORITHMS,
    generate_key,
    load_private_key,
    private_pem,
    public_pem,
)
from waypost.access.pki.signer import (
    CLIENT,
    NODE_CLIENT,
    NODE_SERVING,
    SigningRequest,
    approval_subresource,
    creation_problem,
    read_request,
    sign,
    signing_problem,
)
from waypost.base.errors import Malformed

NOW_S = 1_795_407_048.0
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def ca():
    return make_authority(generate_key(), common_name="kubernetes", now_s=NOW_S)


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def test_the_authority(ca):
    certificate = ca.certificate
    assert certificate.subject.rfc4514_string() == "CN=kubernetes"
    constraints = extension(certificate, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    usage = extension(certificate, x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert certificate.not_valid_after_utc.timestamp() == NOW_S + 3650 * DAY_S
    der = ca.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert ca.pin == ca_pin(certificate) == f"sha256:{hashlib.sha256(der).hexdigest()}"


def test_a_serving_certificate(ca):
    names = Names.of(["Node1", "localhost", "127.0.0.1", "::1", "127.0.0.1", "*.example.com"])
    found = issue(
        ca,
        generate_key().public_key(),
        subject=Subject("kube-apiserver").to_x509(),
        usages=(Usage.SERVER,),
        names=names,
        now_s=NOW_S,
    )
    assert names_of(found).texts == ("node1", "localhost", "*.example.com", "127.0.0.1", "::1")
    assert usages_of(found) == (Usage.SERVER,)
    assert not extension(found, x509.BasicConstraints).value.ca
    assert extension(found, x509.KeyUsage).critical
    assert found.not_valid_before_utc.timestamp() == NOW_S - 300
    assert found.not_valid_after_utc.timestamp() == NOW_S + 365 * DAY_S
    found.verify_directly_issued_by(ca.certificate)
    authority_key = extension(found, x509.AuthorityKeyIdentifier).value.key_identifier
    assert authority_key == extension(ca.certificate, x509.SubjectKeyIdentifier).value.digest


def test_serial_numbers_are_random_and_short_enough(ca):
    made = {
        issue(
            ca,
            ca.key.public_key(),
            subject=Subject("x").to_x509(),
            usages=(Usage.CLIENT,),
            now_s=NOW_S,
        ).serial_number
        for _ in range(20)
    }
    assert len(made) == 20
    assert all(0 < one < 1 << 159 for one in made)


def test_nothing_outlives_its_authority(ca):
    key = generate_key().public_key()
    late_s = NOW_S + 3649 * DAY_S
    given = {"subject": Subject("x").to_x509(), "usages": (Usage.CLIENT,)}
    found = issue(ca, key, now_s=late_s, **given)
    assert found.not_valid_after_utc == ca.certificate.not_valid_after_utc
    with pytest.raises(Malformed, match="expired"):
        issue(ca, key, now_s=late_s + DAY_S, **given)
    with pytest.raises(Malformed, match="key is not here"):
        issue(Authority(ca.certificate), key, now_s=NOW_S, **given)


@pytest.mark.parametrize("algorithm", ALGORITHMS[:3])
def test_keys(algorithm):
    key = generate_key(algorithm)
    if algorithm.startswith("RSA"):
        assert isinstance(key, rsa.RSAPrivateKey)
        assert key.key_size == int(algorithm[4:])
    else:
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.key_size == int(algorithm[-3:])
    again = load_private_key(private_pem(key), name="k")
    assert public_pem(again.public_key()) == public_pem(key.public_key())


def test_unusable_keys():
    with pytest.raises(Malformed, match='unknown key algorithm "DSA"'):
        generate_key("DSA")
    encrypted = generate_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"pw"),
    )
    for pem in (b"", b"junk", encrypted):
        with pytest.raises(Malformed, match=r"^k: "):
            load_private_key(pem, name="k")


def test_an_authority_of_files(ca):
    key = private_pem(ca.key)
    assert load_authority(ca.pem, key, name="c").pin == ca.pin
    assert load_authority(ca.pem, None, name="c").key is None
    with pytest.raises(Malformed, match="is not the key of c"):
        load_authority(ca.pem, private_pem(generate_key()), name="c", key_name="k")
    leaf = issue(
        ca,
        ca.key.public_key(),
        subject=Subject("x").to_x509(),
        usages=(Usage.CLIENT,),
        now_s=NOW_S,
    )
    with pytest.raises(Malformed, match="not one of a certificate authority"):
        load_authority(leaf.public_bytes(serialization.Encoding.PEM), key, name="c")
    assert not belongs(ca.certificate, generate_key("RSA-2048"))


@pytest.mark.parametrize(
    "text", ["", "a b", "a..b", "-a", "a-", "a/b", "ä", "x" * 64, "*.", "a\n", "1.2.3.4:80"]
)
def test_what_is_no_name(text):
    with pytest.raises(Malformed, match="neither a DNS name nor an IP address"):
        Names.of([text])


def test_subjects():
    name = Subject("kubernetes-admin", ("system:masters", "b")).to_x509()
    assert name.rfc4514_string() == "CN=kubernetes-admin,O=b,O=system:masters"
    for bad in ("", "x" * 65):
        with pytest.raises(Malformed, match="cannot be used"):
            Subject(bad).to_x509()


# -- signing requests --------------------------------------------------------------------------------------------------

NODE = {"cn": "system:node:node1", "o": ("system:nodes",)}


def request_pem(cn="ann", o=(), dns=(), ips=(), emails=(), uris=(), key=None):
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, one) for one in o]
    parts += [x509.NameAttribute(NameOID.COMMON_NAME, cn)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(parts))
    names = [x509.DNSName(one) for one in dns]
    names += [x509.IPAddress(ip_address(one)) for one in ips]
    names += [x509.RFC822Name(one) for one in emails]
    names += [x509.UniformResourceIdentifier(one) for one in uris]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(key or generate_key(), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


CLIENT_USAGES = ("client auth", "digital signature", "key encipherment")
SERVER_USAGES = ("server auth", "digital signature")


@pytest.mark.parametrize(
    ("signer", "usages", "wish", "problem"),
    [
        (CLIENT, CLIENT_USAGES, {}, ""),
        (CLIENT, ("client auth",), {"dns": ("a",)}, ""),
        (CLIENT, ("server auth",), {}, "invalid usage for client certificate: server auth"),
        (CLIENT, ("digital signature",), {}, "missing required usage"),
        (NODE_CLIENT, CLIENT_USAGES, NODE, ""),
        (NODE_CLIENT, CLIENT_USAGES[:2], NODE, ""),
        (NODE_CLIENT, CLIENT_USAGES[:1], NODE, "usages did not match"),
        (NODE_CLIENT, (*CLIENT_USAGES, "server auth"), NODE, "usages did not match"),
        (NODE_CLIENT, CLIENT_USAGES, {**NODE, "o": ("system:masters",)}, "organization in subject"),
        (NODE_CLIENT, CLIENT_USAGES, {**NODE, "o": ("system:nodes", "x")}, "organization"),
        (NODE_CLIENT, CLIENT_USAGES, {**NODE, "o": ()}, "organization in subject"),
        (NODE_CLIENT, CLIENT_USAGES, {**NODE, "cn": "node1"}, "does not begin with system:node:"),
        (NODE_CLIENT, CLIENT_USAGES, {**NODE, "dns": ("a",)}, "DNS subjectAltNames are not"),
        (NODE_CLIENT, CLIENT_USAGES, {**NODE, "ips": ("1.2.3.4",)}, "IP subjectAltNames are not"),
        (NODE_CLIENT, CLIENT_USAGES, {**NODE, "emails": ("a@b",)}, "email subjectAltNames"),
        (NODE_CLIENT, CLIENT_USAGES, {**NODE, "uris": ("x:y",)}, "URI subjectAltNames"),
        (NODE_SERVING, SERVER_USAGES, {**NODE, "dns": ("a",), "ips": ("1.2.3.4",)}, ""),
        (NODE_SERVING, SERVER_USAGES, NODE, "DNS or IP subjectAltName is required"),
        (NODE_SERVING, SERVER_USAGES, {**NODE, "dns": ("a",), "uris": ("x:y",)}, "URI"),
        (NODE_SERVING, CLIENT_USAGES, {**NODE, "dns": ("a",)}, "usages did not match"),
        ("example.com/x", CLIENT_USAGES, {}, 'there is no signer "example.com/x"'),
    ],
)
def test_what_signers_sign(ca, signer, usages, wish, problem):
    request = SigningRequest(request_pem=request_pem(**wish), signer=signer, usages=usages)
    found = signing_problem(request, read_request(request.request_pem))
    assert problem in found
    assert bool(found) == bool(problem)
    if problem:
        with pytest.raises(Malformed, match=re.escape(found)):
            sign(request, ca, now_s=NOW_S)
        return
    certificate = load_certificate(sign(request, ca, now_s=NOW_S), name="c")
    purpose = Usage.SERVER if signer == NODE_SERVING else Usage.CLIENT
    assert usages_of(certificate) == (purpose,)
    assert set(names_of(certificate).texts) == {*wish.get("dns", ()), *wish.get("ips", ())}
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life == dt.timedelta(days=365)


@pytest.mark.parametrize(
    ("seconds", "after_s"), [(600, 600), (28_800, 28_500), (None, 365 * DAY_S - 300)]
)
def test_how_long_signed_certificates_live(ca, seconds, after_s):
    request = SigningRequest(
        request_pem=request_pem(), signer=CLIENT, usages=CLIENT_USAGES, expiration_s=seconds
    )
    certificate = load_certificate(sign(request, ca, now_s=NOW_S), name="c")
    assert certificate.not_valid_after_utc.timestamp() == NOW_S + after_s


def test_too_short_a_life(ca):
    request = SigningRequest(
        request_pem=request_pem(), signer=CLIENT, usages=CLIENT_USAGES, expiration_s=599
    )
    with pytest.raises(Malformed, match="600 seconds"):
        sign(request, ca, now_s=NOW_S)


def test_masters_are_not_asked_for():
    wish = read_request(request_pem(o=("a", "system:masters")))
    request = SigningRequest(request_pem=b"", signer=CLIENT, usages=CLIENT_USAGES)
    assert creation_problem(request, wish) == (
        "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
    )
    assert creation_problem(request, read_request(request_pem(o=("a",)))) == ""


@pytest.mark.parametrize(
    ("signer", "wish", "requester", "right"),
    [
        (NODE_CLIENT, NODE, "system:bootstrap:abcdef", "nodeclient"),
        (NODE_CLIENT, NODE, "system:node:node1", "selfnodeclient"),
        (NODE_CLIENT, NODE, "system:node:node2", "nodeclient"),
        (NODE_CLIENT, {**NODE, "o": ("system:masters",)}, "system:node:node1", ""),
        (NODE_SERVING, {**NODE, "dns": ("a",)}, "system:node:node1", ""),
        (CLIENT, NODE, "system:node:node1", ""),
    ],
)
def test_what_is_approved_unasked(signer, wish, requester, right):
    pem = request_pem(**wish)
    request = SigningRequest(request_pem=pem, signer=signer, usages=CLIENT_USAGES)
    assert approval_subresource(request, read_request(pem), requester=requester) == right


def test_requests_that_are_not_signed():
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(Malformed, match="fewer than 2048"):
        read_request(request_pem(key=weak))
    pem = bytearray(request_pem())
    lines = bytes(pem).splitlines()
    lines[-2] = lines[-2][:4] + (b"A" if lines[-2][4:5] != b"A" else b"B") + lines[-2][5:]
    with pytest.raises(Malformed):
        read_request(b"\n".join(lines))
    with pytest.raises(Malformed, match="too large"):
        read_request(b"x" * 70_000)
