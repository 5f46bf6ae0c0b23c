"""Tokens of an OpenID Connect issuer."""

from __future__ import annotations

import asyncio
import json

import jwt
import pytest

from waypost.access.authn.jws import sign
from waypost.access.authn.oidc import (
    FetchedKeys,
    FixedKeys,
    OidcSettings,
    OidcTokens,
    parse_key_set,
)
from waypost.access.authn.records import Accepted, Pending, Rejected, Skipped
from waypost.access.authn.service_account import key_set
from waypost.access.pki.keys import generate_key
from waypost.base.errors import Malformed, Unavailable

ISSUER = "https://idp.example"
NOW_S = 1_795_407_048.0
KEY = generate_key("RSA-2048")
ALGORITHMS = ("RS256",)
CLAIMS = {"iss": ISSUER, "sub": "42", "aud": "waypost", "exp": NOW_S + 60, "iat": NOW_S}


def jwks(*keys):
    return json.dumps(key_set(key.public_key() for key in keys)).encode()


def token(key=KEY, **changes):
    claims = {k: v for k, v in {**CLAIMS, **changes}.items() if v is not None}
    return sign(json.dumps(claims).encode(), key)


def oidc(source=None, **changes):
    settings = OidcSettings(**{"issuer": ISSUER, "client_ids": ("waypost",), **changes})
    fixed = FixedKeys(parse_key_set(jwks(KEY), name="jwks", algorithms=ALGORITHMS))
    return OidcTokens(settings, source=source or fixed)


def ask(authenticator, text):
    return authenticator.authenticate_token(text, audiences=(), now_s=NOW_S)


@pytest.mark.parametrize(
    ("settings", "claims", "user", "groups"),
    [
        ({}, {}, f"{ISSUER}#42", ()),
        ({"username_prefix": "-"}, {}, "42", ()),
        ({"username_prefix": "oidc:"}, {}, "oidc:42", ()),
        ({"username_claim": "email"}, {"email": "a@b"}, "a@b", ()),
        ({"username_claim": "email"}, {"email": "a@b", "email_verified": True}, "a@b", ()),
        ({"groups_claim": "g"}, {"g": "one"}, f"{ISSUER}#42", ("one",)),
        (
            {"groups_claim": "g", "groups_prefix": "o:"},
            {"g": ["a", "b"]},
            f"{ISSUER}#42",
            ("o:a", "o:b"),
        ),
        ({"groups_claim": "g"}, {}, f"{ISSUER}#42", ()),
        ({"required_claims": (("hd", "x"),)}, {"hd": "x"}, f"{ISSUER}#42", ()),
        ({}, {"aud": ["else", "waypost"]}, f"{ISSUER}#42", ()),
    ],
)
def test_claims_become_user_and_groups(settings, claims, user, groups):
    verdict = ask(oidc(**settings), token(**claims))
    assert isinstance(verdict, Accepted), verdict
    assert (verdict.identity.user, verdict.identity.groups) == (user, groups)
    assert verdict.identity.expires_s == NOW_S + 60


@pytest.mark.parametrize(
    ("settings", "claims", "error"),
    [
        ({}, {"exp": NOW_S}, "token is expired"),
        ({}, {"exp": None}, "no claim exp"),
        ({}, {"exp": True}, "no claim exp"),
        ({}, {"exp": 10**400}, "no claim exp"),
        ({}, {"exp": "9999999999"}, "no claim exp"),
        ({}, {"nbf": NOW_S + 61}, "nbf"),
        ({}, {"nbf": "x"}, "nbf"),
        ({}, {"aud": "else"}, "audience"),
        ({}, {"aud": ["else"]}, "audience"),
        ({}, {"aud": None}, "audience"),
        ({}, {"aud": {"waypost": 1}}, "audience"),
        ({}, {"sub": None}, "claim not present"),
        ({}, {"sub": ""}, "claim not present"),
        ({}, {"sub": 42}, "claim not present"),
        ({"username_claim": "email"}, {"email": "a", "email_verified": False}, "not verified"),
        ({"username_claim": "email"}, {"email": "a", "email_verified": "true"}, "not verified"),
        ({"groups_claim": "g"}, {"g": {"a": 1}}, "parse groups"),
        ({"groups_claim": "g"}, {"g": ["a", 1]}, "parse groups"),
        ({"required_claims": (("hd", "x"),)}, {"hd": "y"}, "does not match"),
        ({"required_claims": (("hd", "x"),)}, {}, "not present"),
    ],
)
def test_claims_that_are_not_believed(settings, claims, error):
    verdict = ask(oidc(**settings), token(**claims))
    assert isinstance(verdict, Rejected)
    assert error in verdict.error


def test_other_issuers_and_keys():
    assert isinstance(ask(oidc(), token(iss="https://other")), Skipped)
    assert isinstance(ask(oidc(), "abc"), Skipped)
    assert isinstance(ask(oidc(), token(generate_key("RSA-2048"))), Rejected)
    ec = generate_key()
    with pytest.raises(Malformed):
        parse_key_set(jwks(ec), name="jwks", algorithms=ALGORITHMS)
    keys = parse_key_set(jwks(ec), name="jwks", algorithms=("ES256",))
    assert isinstance(ask(oidc(FixedKeys(keys)), token(ec)), Accepted)


def test_a_key_for_encryption_or_a_shared_secret_verifies_nothing():
    entry = json.loads(jwks(KEY))["keys"][0]
    secret = {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "use": "sig"}
    data = json.dumps({"keys": [{**entry, "use": "enc"}, secret]}).encode()
    with pytest.raises(Malformed, match="holds no key"):
        parse_key_set(data, name="jwks", algorithms=("RS256", "HS256"))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"keys":1}', b'{"keys":[1]}', b"[" * 100_000]
)
def test_key_sets_that_are_none(data):
    with pytest.raises(Malformed):
        parse_key_set(data, name="jwks", algorithms=ALGORITHMS)


class Clock:
    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def wall(self):
        return NOW_S


class Site:
    def __init__(self, *keys):
        self.keys = keys
        self.asked = []
        self.up = True

    async def fetch(self, url):
        self.asked.append(url)
        if not self.up:
            raise Unavailable("down")
        if url.endswith("openid-configuration"):
            return json.dumps({"issuer": ISSUER, "jwks_uri": ISSUER + "/keys"}).encode()
        return jwks(*self.keys)


async def decided(verdict):
    return await verdict.ask() if isinstance(verdict, Pending) else verdict


async def test_keys_are_fetched_once_and_again_when_they_change():
    clock, site, new = Clock(), Site(KEY), generate_key("RSA-2048")
    changes = []
    source = FetchedKeys(
        ISSUER,
        fetch=site.fetch,
        clock=clock,
        algorithms=ALGORITHMS,
        changed=lambda: changes.append(source.keys()),
    )
    authenticator = oidc(source)
    assert isinstance(await decided(ask(authenticator, token())), Accepted)
    assert changes == [source.keys()]
    assert site.asked == [f"{ISSUER}/.well-known/openid-configuration", f"{ISSUER}/keys"]
    assert isinstance(ask(authenticator, token()), Accepted), "no network"
    assert isinstance(ask(authenticator, token(new)), Rejected), "asked a moment ago"
    clock.time = 11.0
    site.keys = (new,)
    assert isinstance(await decided(ask(authenticator, token(new))), Accepted)
    assert isinstance(ask(authenticator, token()), Rejected), "the old key is gone"
    assert len(changes) == 2, "whoever remembers an identity by the old key is told"
    assert changes[1] == source.keys()


async def test_an_issuer_that_is_down():
    site = Site(KEY)
    site.up = False
    clock = Clock()
    source = FetchedKeys(ISSUER, fetch=site.fetch, clock=clock, algorithms=ALGORITHMS)
    verdict = await decided(ask(oidc(source), token()))
    assert isinstance(verdict, Rejected)
    assert "down" in verdict.error
    assert isinstance(ask(oidc(source), token()), Rejected), "not asked again at once"
    site.up, clock.time = True, 20.0
    assert isinstance(await decided(ask(oidc(source), token())), Accepted)


async def test_tokens_that_come_while_keys_are_fetched_wait_for_them():
    site, reached, gate = Site(KEY), asyncio.Event(), asyncio.Event()

    async def fetch(url):
        reached.set()
        await gate.wait()
        return await site.fetch(url)

    source = FetchedKeys(ISSUER, fetch=fetch, clock=Clock(), algorithms=ALGORITHMS)
    authenticator = oidc(source)
    first = asyncio.create_task(decided(ask(authenticator, token())))
    await reached.wait()
    others = [asyncio.create_task(decided(ask(authenticator, token()))) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()  # that client goes away; the next one fetches
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    assert all(isinstance(one, Accepted) for one in await asyncio.gather(*others))
    assert len(site.asked) == 2


async def test_an_issuer_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr("waypost.access.authn.oidc._PATIENCE_S", 0.01)

    async def fetch(url):
        await asyncio.Event().wait()

    source = FetchedKeys(ISSUER, fetch=fetch, clock=Clock(), algorithms=ALGORITHMS)
    verdict = await decided(ask(oidc(source), token()))
    assert isinstance(verdict, Rejected)
    assert "no answer within" in verdict.error
    assert isinstance(ask(oidc(source), token()), Rejected), "not asked again at once"


async def test_a_document_of_another_issuer():
    async def fetch(url):
        return json.dumps({"issuer": "https://evil", "jwks_uri": "x"}).encode()

    source = FetchedKeys(ISSUER, fetch=fetch, clock=Clock(), algorithms=ALGORITHMS)
    with pytest.raises(Unavailable, match="not of the issuer"):
        await source.refresh()


def test_unsigned_tokens():
    none = jwt.encode(CLAIMS, None, algorithm="none")
    assert isinstance(ask(oidc(), none), Rejected)


@pytest.mark.parametrize("expires", [float("nan"), float("inf")])
def test_ends_that_are_no_numbers(expires):
    assert not isinstance(ask(oidc(), token(exp=expires)), Accepted)
