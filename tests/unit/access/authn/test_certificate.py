"""Client certificates and front proxies: whom they make of a connection, and why they refuse it."""

from __future__ import annotations

import datetime as dt
import hashlib
import inspect

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from waypost.access.authn.certificate import (
    CREDENTIAL_ID,
    UID_OID,
    ClientCertificate,
    FrontProxy,
    extra_fields,
)
from waypost.access.authn.records import Accepted, Credentials, Rejected, Skipped
from waypost.access.pki.issue import Subject, Usage, make_authority
from waypost.access.pki.keys import generate_key
from waypost.access.pki.verify import ClientVerifier, Untrusted


@pytest.fixture
def x509_of(world):
    authenticator = ClientCertificate(ClientVerifier([world.ca.certificate]))

    def ask(chain, now_s=world.now_s):
        return authenticator.authenticate(Credentials(certificates_der=chain), now_s=now_s)

    return ask


def test_cn_is_the_user_and_every_o_a_group_in_order(world, x509_of):
    chain = world.client("alice", "ops", "a,b", "dev")
    verdict = x509_of(chain)
    assert isinstance(verdict, Accepted)
    assert verdict.identity.user == "alice"
    assert verdict.identity.groups == ("ops", "a,b", "dev")
    digest = hashlib.sha256(chain[0]).hexdigest()
    assert verdict.identity.extra == {CREDENTIAL_ID: (f"X509SHA256={digest}",)}


def test_the_uid_of_a_certificate(world, x509_of):
    parts = [(NameOID.COMMON_NAME, "alice"), (x509.ObjectIdentifier(UID_OID), "u-1")]
    name = world.name([x509.NameAttribute(oid, value) for oid, value in parts])
    assert x509_of(world.client(subject=name)).identity.uid == "u-1"
    name = world.name([x509.NameAttribute(oid, value) for oid, value in [*parts, parts[1]]])
    assert x509_of(world.client(subject=name)).identity.uid == ""


@pytest.mark.parametrize("algorithm", ["ECDSA-P256", "ECDSA-P384", "RSA-2048"])
def test_kinds_of_keys(world, x509_of, algorithm):
    assert isinstance(x509_of(world.client(key=generate_key(algorithm))), Accepted)


UNKNOWN = "x509: certificate signed by unknown authority"
USAGE = "x509: certificate specifies an incompatible key usage"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"authority": "other"}, UNKNOWN),
        ({"authority": "proxies"}, UNKNOWN),
        ({"usages": (Usage.SERVER,)}, USAGE),
        (
            {"issued_s": -7200, "validity_s": 3600},
            "x509: certificate has expired or is not yet valid: current time "
            "2026-11-23T04:10:48Z is after 2026-11-23T03:10:48Z",
        ),
        (
            {"issued_s": 3600},
            "x509: certificate has expired or is not yet valid: current time "
            "2026-11-23T04:10:48Z is before 2026-11-23T05:05:48Z",
        ),
    ],
)
def test_the_reason_is_named(world, x509_of, changes, reason):
    changes = dict(changes)
    if "authority" in changes:
        changes["authority"] = getattr(world, changes["authority"])
    if "issued_s" in changes:
        changes["issued_s"] += world.now_s
    verdict = x509_of(world.client(**changes))
    assert isinstance(verdict, Rejected)
    assert verdict.error.startswith("verifying certificate SN=")
    assert verdict.error.endswith(f" failed: {reason}")


def test_a_remembered_certificate_still_expires(world, x509_of):
    chain = world.client(validity_s=3600)
    assert isinstance(x509_of(chain), Accepted)
    assert isinstance(x509_of(chain, now_s=world.now_s + 3599), Accepted)
    assert isinstance(x509_of(chain, now_s=world.now_s + 3602), Rejected)
    assert isinstance(x509_of(chain, now_s=world.now_s - 3600), Rejected)


def test_a_certificate_that_is_not_good_yet_becomes_good(world, x509_of):
    chain = world.client(issued_s=world.now_s + 301)
    assert isinstance(x509_of(chain), Rejected)
    assert isinstance(x509_of(chain, now_s=world.now_s + 1.0), Accepted)


def test_another_authority_takes_over(world):
    authenticator = ClientCertificate(ClientVerifier([world.ca.certificate]))
    credentials = Credentials(certificates_der=world.client())
    assert isinstance(authenticator.authenticate(credentials, now_s=world.now_s), Accepted)
    authenticator.replace(ClientVerifier([world.other.certificate]))
    assert isinstance(authenticator.authenticate(credentials, now_s=world.now_s), Rejected)


def test_a_bundle_of_authorities(world):
    pem = world.other.pem + world.ca.pem
    verifier = ClientVerifier.from_pem(pem)
    for authority in (world.ca, world.other):
        found = verifier.verify(world.client(authority=authority), now_s=world.now_s)
        assert not isinstance(found, Untrusted)


def _certificate(subject, issuer, public, key, *, now_s, extensions=()):
    start = dt.datetime.fromtimestamp(now_s - 600, dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(Subject(subject).to_x509())
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=30))
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(key, hashes.SHA256())


def _usage(**given):
    names = inspect.signature(x509.KeyUsage).parameters
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})


@pytest.mark.parametrize(
    ("extensions", "good"),
    [
        ([(x509.BasicConstraints(ca=True, path_length=None), True)], True),
        ([(x509.BasicConstraints(ca=False, path_length=None), True)], False),
        ([], False),
        (
            [
                (x509.BasicConstraints(ca=True, path_length=0), True),
                (_usage(digital_signature=True), True),
            ],
            False,
        ),
        (
            [
                (x509.BasicConstraints(ca=True, path_length=0), True),
                (_usage(key_cert_sign=True), True),
            ],
            True,
        ),
        (
            [
                (x509.BasicConstraints(ca=True, path_length=0), True),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            ],
            False,
        ),
    ],
)
def test_intermediates_must_be_authorities_for_clients(world, x509_of, extensions, good):
    key, between_key = generate_key(), generate_key()
    between = _certificate(
        "between",
        world.ca.certificate.subject,
        between_key.public_key(),
        world.ca.key,
        now_s=world.now_s,
        extensions=extensions,
    )
    leaf = _certificate("alice", between.subject, key.public_key(), between_key, now_s=world.now_s)
    chain = tuple(one.public_bytes(serialization.Encoding.DER) for one in (leaf, between))
    assert isinstance(x509_of(chain), Accepted) == good
    assert isinstance(x509_of(chain[:1]), Rejected), "without the intermediate there is no way"


def test_nobody_becomes_an_authority_by_a_client_certificate(world, x509_of):
    mallory = generate_key()
    alice = world.client("mallory", key=mallory)
    forged = _certificate(
        "kubernetes-admin",
        x509.load_der_x509_certificate(alice[0]).subject,
        generate_key().public_key(),
        mallory,
        now_s=world.now_s,
    )
    chain = (forged.public_bytes(serialization.Encoding.DER), alice[0])
    assert isinstance(x509_of(chain), Rejected)


def test_a_forged_signature_under_the_right_name(world, x509_of):
    forged = make_authority(generate_key(), common_name="kubernetes", now_s=world.now_s)
    verdict = x509_of(world.client("kubernetes-admin", "system:masters", authority=forged))
    assert isinstance(verdict, Rejected)
    assert verdict.error.endswith(UNKNOWN)


@pytest.mark.parametrize("chain", [(b"",), (b"junk",), (b"0" * 70_000,), (b"0",) * 9])
def test_junk_is_refused(x509_of, chain):
    assert isinstance(x509_of(chain), Rejected)


# -- front proxy -------------------------------------------------------------------------------------------------------


def proxy_answer(world, fields, *, chain=None, **settings):
    proxy = FrontProxy(ClientVerifier([world.proxies.certificate]), **settings)
    chain = world.client("front-proxy-client", authority=world.proxies) if chain is None else chain
    return proxy.authenticate(
        Credentials(certificates_der=chain, remote_headers=fields), now_s=world.now_s
    )


FIELDS = {
    "x-remote-user": ("zed",),
    "x-remote-group": ("g1", "g2"),
    "x-remote-uid": ("7",),
    "x-remote-extra-scopes%2fa": ("s",),
}


def test_a_proxy_names_the_user(world):
    identity = proxy_answer(world, FIELDS).identity
    assert (identity.user, identity.groups, identity.uid) == ("zed", ("g1", "g2"), "7")
    assert identity.extra == {"scopes/a": ("s",)}


def test_proxies_that_are_not_believed(world):
    assert isinstance(proxy_answer(world, FIELDS, chain=()), Skipped)
    assert isinstance(proxy_answer(world, FIELDS, chain=world.client("x")), Rejected)
    assert isinstance(proxy_answer(world, {}), Skipped)
    refused = proxy_answer(world, FIELDS, allowed_names=("other",))
    assert refused == Rejected(
        error="x509: subject with cn=front-proxy-client is not in the allowed list"
    )
    allowed = proxy_answer(world, FIELDS, allowed_names=("other", "front-proxy-client"))
    assert isinstance(allowed, Accepted)


def test_which_fields_a_proxy_may_set(world):
    proxy = FrontProxy(ClientVerifier([world.proxies.certificate]))
    names = ["X-Remote-User", "Host", "X-REMOTE-Extra-Foo", "X-Remote-Other"]
    assert proxy.fields_in(names) == ("x-remote-user", "x-remote-extra-foo")


def test_extra_keys():
    fields = [("P-A%2Fb", ("1",)), ("p-a%2fB", ("2",)), ("p-bad%zz", ("3",)), ("q-a", ("4",))]
    assert extra_fields(fields, prefixes=("p-",)) == {"a/b": ("1", "2"), "bad%zz": ("3",)}
