"""Bootstrap tokens: form, secret, identity, and the signature of cluster-info."""

from __future__ import annotations

import base64
import random

import pytest

from waypost.access.authn.bootstrap import (
    DEFAULT_GROUP,
    BootstrapToken,
    BootstrapTokens,
    generate_token,
    is_signed,
    parse_token,
    parse_token_id,
    sign_detached,
    token_secret,
)
from waypost.access.authn.records import Accepted, Skipped
from waypost.base.errors import Malformed

NOW_S = 1_795_407_048.0
TOKEN = "abcdef.0123456789abcdef"
KIND = "bootstrap.kubernetes.io/token"
GOOD = {
    "token-id": "abcdef",
    "token-secret": "0123456789abcdef",
    "expiration": "2026-11-24T04:00:00Z",
    "usage-bootstrap-authentication": "true",
    "auth-extra-groups": DEFAULT_GROUP,
}


def ask(store, token=TOKEN, now_s=NOW_S):
    return BootstrapTokens(store).authenticate_token(token, audiences=(), now_s=now_s)


def test_who_it_is(store):
    store.put_secret("kube-system", "bootstrap-token-abcdef", GOOD, kind=KIND)
    identity = ask(store).identity
    assert identity.user == "system:bootstrap:abcdef"
    assert identity.groups == ("system:bootstrappers", DEFAULT_GROUP)
    assert identity.expires_s == 1795492800.0


@pytest.mark.parametrize(
    ("changes", "kind", "metadata", "why"),
    [
        ({"token-secret": "0123456789abcdeX"}, KIND, {}, "wrong secret"),
        ({"token-secret": ""}, KIND, {}, "wrong secret"),
        ({"token-id": "abcdeg"}, KIND, {}, "wrong secret"),
        ({"expiration": "2026-11-23T04:10:48Z"}, KIND, {}, "has expired"),
        ({"expiration": "soon"}, KIND, {}, "no readable expiration"),
        ({"usage-bootstrap-authentication": "True"}, KIND, {}, "not for authentication"),
        ({"usage-bootstrap-authentication": ""}, KIND, {}, "not for authentication"),
        ({"auth-extra-groups": "system:masters"}, KIND, {}, "group that is not allowed"),
        ({"auth-extra-groups": f"{DEFAULT_GROUP},x"}, KIND, {}, "group that is not allowed"),
        ({}, "Opaque", {}, "no bootstrap token"),
        ({}, KIND, {"deletionTimestamp": "2026-11-23T04:10:47Z"}, "being deleted"),
    ],
)
def test_secrets_that_do_not_count(store, changes, kind, metadata, why):
    values = {**GOOD, **changes}
    store.put_secret("kube-system", "bootstrap-token-abcdef", values, kind=kind, **metadata)
    verdict = ask(store)
    assert isinstance(verdict, Skipped)
    assert why in verdict.detail
    assert GOOD["token-secret"] not in verdict.detail


def test_for_ever_and_until_deleted(store):
    values = {key: value for key, value in GOOD.items() if key != "expiration"}
    store.put_secret("kube-system", "bootstrap-token-abcdef", values, kind=KIND)
    assert isinstance(ask(store, now_s=NOW_S * 2), Accepted)
    store.delete("secrets", "kube-system", "bootstrap-token-abcdef")
    assert isinstance(ask(store), Skipped)


@pytest.mark.parametrize(
    "text",
    ["", "abcdef", "abcdef.", "abcdef.0123456789abcde", "Abcdef.0123456789abcdef", TOKEN + "\n"],
)
def test_what_is_no_token(store, text):
    assert isinstance(ask(store, text), Skipped)
    with pytest.raises(Malformed) as raised:
        parse_token(text)
    assert "0123456789abcde," not in str(raised.value)


def test_ids():
    assert parse_token_id("abcdef") == "abcdef"
    assert parse_token_id(TOKEN) == "abcdef"
    with pytest.raises(Malformed):
        parse_token_id("abc")


def test_new_tokens_have_the_form_and_differ():
    rng = random.Random(1)
    made = {generate_token(rng).text for _ in range(200)}
    assert len(made) == 200
    assert all(parse_token(one).text == one for one in made)


def test_the_secret_is_what_the_authenticator_reads(store):
    token = generate_token(random.Random(2))
    secret = token_secret(token, expires_s=NOW_S + 60, description="for machine 3")
    store.put("secrets", "kube-system", secret["metadata"]["name"], **_body(secret))
    assert isinstance(ask(store, token.text), Accepted)
    assert isinstance(ask(store, token.text, now_s=NOW_S + 60), Skipped)
    values = {k: base64.b64decode(v).decode() for k, v in secret["data"].items()}
    assert values == {
        "token-id": token.id,
        "token-secret": token.secret,
        "description": "for machine 3",
        "expiration": "2026-11-23T04:11:48Z",
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
        "auth-extra-groups": DEFAULT_GROUP,
    }


def _body(secret):
    return {"type": secret["type"], "data": secret["data"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": ("system:masters",)}, 'bootstrap group "system:masters" is invalid'),
        ({"groups": ("system:bootstrappers:",)}, "is invalid"),
        ({"usages": ("all",)}, 'unknown usage "all"'),
    ],
)
def test_what_a_token_may_not_be(changes, message):
    with pytest.raises(Malformed, match=message):
        token_secret(parse_token(TOKEN), expires_s=None, **changes)


def test_the_signature_of_cluster_info():
    token = parse_token(TOKEN)
    signature = sign_detached("apiVersion: v1\n", token)
    header, empty, _ = signature.split(".")
    assert base64.urlsafe_b64decode(header + "==") == b'{"alg":"HS256","kid":"abcdef"}'
    assert empty == ""
    assert is_signed("apiVersion: v1\n", signature, token)
    assert not is_signed("apiVersion: v2\n", signature, token)
    assert not is_signed("apiVersion: v1\n", signature, BootstrapToken("abcdef", "f" * 16))


def test_secrets_do_not_show():
    assert "0123456789abcdef" not in repr(parse_token(TOKEN))
