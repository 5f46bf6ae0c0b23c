"""Service-account tokens: issued, verified, revoked, exchanged keys. Texts and claims are a real kube-apiserver's."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from waypost.access.authn.jws import (
    SignatureVerifier,
    algorithm_of,
    issuer_of,
    key_id,
    load_keys,
    sign,
    verification_key,
)
from waypost.access.authn.records import Accepted, Rejected, Skipped
from waypost.access.authn.service_account import (
    DEFAULT_ISSUER,
    IssuedToken,
    Reference,
    ServiceAccountTokens,
    TokenIssuer,
    TokenRequest,
    discovery_document,
    expiration_problem,
    key_set,
)
from waypost.access.pki.keys import generate_key, private_pem, public_pem
from waypost.base.errors import Malformed

NOW_S = 1_795_407_048.0
KEY = generate_key("RSA-2048")
UID = "72f66fa1-abb4-4967-a269-838551eb93c7"


def request(**changes):
    given = {"namespace": "n1", "name": "bot", "uid": UID, "audiences": (DEFAULT_ISSUER,)}
    return TokenRequest(**{**given, **changes})


def issued(key=KEY, *, issuer=DEFAULT_ISSUER, now_s=NOW_S, **changes):
    return (
        TokenIssuer(key, issuer=issuer).issue(request(**changes), now_s=now_s, token_id="j-1").token
    )


@pytest.fixture
def tokens(store):
    store.put("serviceaccounts", "n1", "bot", uid=UID)
    return ServiceAccountTokens(store, keys=[KEY.public_key()])


def ask(tokens, token, *, now_s=NOW_S, audiences=()):
    return tokens.authenticate_token(token, audiences=audiences, now_s=now_s)


def test_the_claims_of_a_bound_token():
    header, claims, _ = issued().split(".")

    def decoded(part):
        return json.loads(base64.urlsafe_b64decode(part + "=="))

    assert decoded(header) == {"alg": "RS256", "kid": key_id(KEY.public_key())}
    assert decoded(claims) == {
        "aud": [DEFAULT_ISSUER],
        "exp": 1795410648,
        "iat": 1795407048,
        "iss": DEFAULT_ISSUER,
        "jti": "j-1",
        "kubernetes.io": {"namespace": "n1", "serviceaccount": {"name": "bot", "uid": UID}},
        "nbf": 1795407048,
        "sub": "system:serviceaccount:n1:bot",
    }


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("RSA-2048", "RS256"), ("ECDSA-P256", "ES256"), ("ECDSA-P384", "ES384")]
)
def test_who_it_is(store, kind, algorithm):
    key = generate_key(kind)
    assert algorithm_of(key) == algorithm
    store.put("serviceaccounts", "n1", "bot", uid=UID)
    verdict = ask(ServiceAccountTokens(store, keys=[key.public_key()]), issued(key))
    assert isinstance(verdict, Accepted)
    identity = verdict.identity
    assert (identity.user, identity.uid) == ("system:serviceaccount:n1:bot", UID)
    assert identity.groups == ("system:serviceaccounts", "system:serviceaccounts:n1")
    assert identity.extra == {"authentication.kubernetes.io/credential-id": ("JTI=j-1",)}
    assert identity.audiences == (DEFAULT_ISSUER,)
    assert identity.expires_s == NOW_S + 3600


def test_audiences(tokens):
    other = issued(audiences=("x", "y"))
    assert ask(tokens, other) == Rejected(
        error=f'token audiences ["x" "y"] is invalid for the target audiences ["{DEFAULT_ISSUER}"]'
    )
    assert ask(tokens, other, audiences=("y", "z")).identity.audiences == ("y",)
    assert ask(tokens, issued(), audiences=("zzz",)) == Rejected(
        error=f'token audiences ["{DEFAULT_ISSUER}"] is invalid for the target audiences ["zzz"]'
    )
    assert isinstance(ask(tokens, issued(audiences=())), Accepted), "empty: this server's"


@pytest.mark.parametrize(
    ("at_s", "error"),
    [
        (0, ""),
        (3600 + 59, ""),
        (3600 + 61, "service account token has expired"),
        (-59, ""),
        (-61, "service account token is not valid yet"),
    ],
)
def test_time(tokens, at_s, error):
    verdict = ask(tokens, issued(), now_s=NOW_S + at_s)
    assert getattr(verdict, "error", "") == error


def test_a_bad_signature(tokens):
    head, body, signature = issued().split(".")
    swapped = ("B" if signature[0] == "A" else "A") + signature[1:]
    for token in (
        f"{head}.{body}.{swapped}",
        f"{head}.{body}.",
        issued(generate_key("RSA-2048")),
        issued(generate_key()),
    ):
        verdict = ask(tokens, token)
        assert isinstance(verdict, Rejected)
        assert verdict.error == "square/go-jose: error in cryptographic primitive"


def _unsigned(header, body=None):
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    body = body or issued().split(".")[1]
    return f"{part(header)}.{body}"


def test_tricks_with_the_algorithm(tokens):
    pem = public_pem(KEY.public_key())
    body = issued().split(".")[1]
    confused = _unsigned({"alg": "HS256"}, body)
    mac = hmac.new(pem, confused.encode(), "sha256").digest()
    confused += "." + base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
    embedded_key = generate_key("RSA-2048")
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(embedded_key.public_key(), as_dict=True)
    embedded = jwt.PyJWS().encode(
        base64.urlsafe_b64decode(body + "=="), embedded_key, "RS256", headers={"jwk": jwk}
    )
    for token in (
        _unsigned({"alg": "none"}, body) + ".",
        _unsigned({"alg": "None"}, body) + ".",
        _unsigned({"alg": ["RS256"]}, body) + "." + issued().split(".")[2],
        _unsigned({}, body) + ".",
        confused,
        embedded,
    ):
        assert isinstance(ask(tokens, token), Rejected), token


def test_other_tokens_are_not_ours(tokens):
    assert isinstance(ask(tokens, issued(issuer="https://elsewhere")), Skipped)
    for token in ("", "abc", "a.b", "a.b.c", "a.b.c.d", "..", "é.é.é", "a.W10.c", "a.e30.c"):
        assert isinstance(ask(tokens, token), Skipped)


def test_deleting_the_account_ends_its_tokens(store, tokens):
    token = issued()
    store.delete("serviceaccounts", "n1", "bot")
    assert ask(tokens, token) == Rejected(error='serviceaccounts "bot" not found')
    store.put("serviceaccounts", "n1", "bot", uid="another")
    assert ask(tokens, token) == Rejected(
        error=f"service account UID (another) does not match claim ({UID})"
    )
    deleted = {"deletionTimestamp": "2026-11-23T04:10:00Z"}
    store.put("serviceaccounts", "n1", "bot", uid=UID, metadata=deleted)
    assert isinstance(ask(tokens, token), Accepted), "48 s ago"
    assert ask(tokens, token, now_s=NOW_S + 13) == Rejected(
        error="service account n1/bot has been deleted"
    )


@pytest.mark.parametrize(("kind", "namespace"), [("secret", "n1"), ("pod", "n1"), ("node", "")])
def test_deleting_what_it_is_bound_to_ends_a_token(store, tokens, kind, namespace):
    token = issued(bound_kind=kind, bound=Reference("thing", "u-9"))
    gone = Rejected(error="service account token has been invalidated")
    assert ask(tokens, token) == gone
    store.put(kind + "s", namespace, "thing", uid="u-9")
    verdict = ask(tokens, token)
    assert isinstance(verdict, Accepted)
    if kind in ("pod", "node"):
        assert verdict.identity.extra[f"authentication.kubernetes.io/{kind}-name"] == ("thing",)
        assert verdict.identity.extra[f"authentication.kubernetes.io/{kind}-uid"] == ("u-9",)
    store.put(kind + "s", namespace, "thing", uid="u-10")
    assert ask(tokens, token) == Rejected(
        error=f"{kind} UID (u-10) does not match service account {kind} ref claim (u-9)"
    )
    store.delete(kind + "s", namespace, "thing")
    assert ask(tokens, token) == gone


def test_a_pod_s_token_names_its_node_but_does_not_depend_on_it(store, tokens):
    store.put("pods", "n1", "p", uid="u")
    token = issued(
        bound_kind="pod", bound=Reference("p", "u"), bound_node=Reference("node1", "n-u")
    )
    extra = ask(tokens, token).identity.extra
    assert extra["authentication.kubernetes.io/node-name"] == ("node1",)


# -- legacy ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def legacy(store, tokens):
    token = TokenIssuer(KEY).issue_legacy(namespace="n1", name="bot", uid=UID, secret="bot-token-x")
    store.put_secret(
        "n1", "bot-token-x", {"token": token}, kind="kubernetes.io/service-account-token"
    )
    return token


def test_legacy_tokens(tokens, legacy):
    verdict = ask(tokens, legacy)
    assert verdict.identity.user == "system:serviceaccount:n1:bot"
    assert verdict.identity.expires_s is None
    assert isinstance(ask(tokens, legacy, now_s=NOW_S * 2), Accepted)
    assert ask(tokens, legacy, audiences=("x",)) == Rejected(
        error='token audiences [] is invalid for the target audiences ["x"]'
    )


def test_legacy_tokens_live_in_their_secret(store, tokens, legacy):
    kind = "kubernetes.io/service-account-token"
    store.put_secret("n1", "bot-token-x", {"token": legacy[:-1]}, kind=kind)
    assert ask(tokens, legacy).error == "service account token does not match server's copy"
    store.put_secret(
        "n1",
        "bot-token-x",
        {"token": legacy},
        kind=kind,
        labels={"kubernetes.io/legacy-token-invalid-since": "2026-01-01"},
    )
    assert "marked invalid" in ask(tokens, legacy).error
    store.delete("secrets", "n1", "bot-token-x")
    assert ask(tokens, legacy).error == "service account token has been invalidated"


def test_legacy_tokens_die_with_their_account(store, tokens, legacy):
    store.put("serviceaccounts", "n1", "bot", uid="new")
    assert isinstance(ask(tokens, legacy), Rejected)


@pytest.mark.parametrize(
    ("missing", "error"),
    [
        ("sub", "sub claim is missing"),
        ("kubernetes.io/serviceaccount/namespace", "namespace claim is missing"),
        ("kubernetes.io/serviceaccount/secret.name", "secretName claim is missing"),
        (
            "kubernetes.io/serviceaccount/service-account.name",
            "serviceAccountName claim is missing",
        ),
        ("kubernetes.io/serviceaccount/service-account.uid", "serviceAccountUID claim is missing"),
    ],
)
def test_legacy_claims(tokens, legacy, missing, error):
    claims = json.loads(base64.urlsafe_b64decode(legacy.split(".")[1] + "=="))
    del claims[missing]
    assert ask(tokens, sign(json.dumps(claims).encode(), KEY)) == Rejected(error=error)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_are_exchanged_one_after_the_other(tokens):
    new = generate_key()
    old_token, new_token = issued(), issued(new)
    assert isinstance(ask(tokens, new_token), Rejected)
    tokens.replace_keys([KEY.public_key(), new.public_key()])
    assert isinstance(ask(tokens, old_token), Accepted)
    assert isinstance(ask(tokens, new_token), Accepted)
    tokens.replace_keys([new.public_key()])
    assert isinstance(ask(tokens, old_token), Rejected)
    assert isinstance(ask(tokens, new_token), Accepted)


def test_several_issuers(store):
    store.put("serviceaccounts", "n1", "bot", uid=UID)
    both = ServiceAccountTokens(
        store, keys=[KEY.public_key()], issuers=("https://new", "https://old")
    )
    for issuer in ("https://new", "https://old"):
        token = issued(issuer=issuer, audiences=("https://new",))
        assert isinstance(ask(both, token), Accepted)


def test_keys_of_a_pem_file(world):
    second = generate_key()
    pem = public_pem(KEY.public_key()) + private_pem(second) + world.ca.pem
    numbers = [one.public_numbers() for one in load_keys(pem, name="f")]
    expected = [KEY.public_key(), second.public_key(), world.ca.certificate.public_key()]
    assert numbers == [one.public_numbers() for one in expected]


@pytest.mark.parametrize(
    "pem",
    [b"", b"junk", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"],
)
def test_files_without_keys(pem):
    with pytest.raises(Malformed, match=r"^f: "):
        load_keys(pem, name="f")


def test_a_curve_that_jws_does_not_know():
    with pytest.raises(Malformed, match="secp256k1"):
        TokenIssuer(ec.generate_private_key(ec.SECP256K1()))


def test_the_key_id_is_only_a_hint():
    wrong_id = jwt.PyJWS().encode(b'{"iss":"x"}', KEY, "RS256", headers={"kid": "nope"})
    keys = [verification_key(generate_key().public_key()), verification_key(KEY.public_key())]
    assert SignatureVerifier(keys).payload(wrong_id) == b'{"iss":"x"}'
    assert issuer_of(wrong_id) == "x"


def test_our_keys_as_others_read_them(tokens):
    keys = [KEY.public_key(), generate_key().public_key()]
    document = key_set(keys)
    assert [one["kid"] for one in document["keys"]] == [key_id(one) for one in keys]
    key = jwt.PyJWKSet.from_dict(document)[key_id(KEY.public_key())]
    claims = jwt.decode(
        issued(now_s=4e9),
        key,
        audience=DEFAULT_ISSUER,
        options={"verify_iat": False, "verify_nbf": False},
    )
    assert claims["sub"] == "system:serviceaccount:n1:bot"
    assert isinstance(keys[0], rsa.RSAPublicKey)
    assert "d" not in document["keys"][0]
    found = discovery_document(issuer="https://i", jwks_uri="https://i/jwks", keys=keys)
    assert found["id_token_signing_alg_values_supported"] == ["ES256", "RS256"]


@pytest.mark.parametrize(
    ("seconds", "problem"),
    [
        (600, ""),
        (1 << 32, ""),
        (599, "may not specify a duration less than 10 minutes"),
        ((1 << 32) + 1, "may not specify a duration larger than 2^32 seconds"),
    ],
)
def test_how_long_a_token_may_live(seconds, problem):
    assert expiration_problem(seconds) == problem


def test_a_token_does_not_show():
    assert "abc" not in repr(IssuedToken("abc", 1))


def test_ids_of_keys_are_kube_s():
    der = KEY.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")
    assert key_id(KEY.public_key()) == digest
