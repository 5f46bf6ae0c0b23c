"""How long an identity is remembered: until its end, or until something that it depends on changes."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace

import pytest

from waypost.access.actor import Actor
from waypost.access.authn.chain import Chain
from waypost.access.authn.jws import SignatureVerifier, verification_key
from waypost.access.authn.records import (
    Accepted,
    Authentication,
    Credentials,
    Identity,
    Pending,
    Rejected,
    Skipped,
)
from waypost.access.authn.remembered import Remembered
from waypost.access.authn.secret_files import StaticTokens
from waypost.access.authn.service_account import (
    ServiceAccountTokens,
    TokenIssuer,
    TokenRequest,
)
from waypost.access.pki.keys import generate_key
from waypost.model.kv import KVEntry
from waypost.model.object import Object
from waypost.state.keys import key_of, put
from waypost.state.view import View
from waypost.store.engine import Batch, Event, KeyValue

NOW_S = 1_795_407_048.0
ANNA = Authentication(actor=Actor(user="anna"), is_steady=True)


def stored(resource, name="one", body=b"{}", group=""):
    return Object(group=group, resource=resource, namespace="n", name=name, body=body)


@pytest.fixture
def world():
    """A view that `change` and `delete` write into, a clock, and what is remembered."""
    view = View()
    clock = SimpleNamespace(wall_s=NOW_S)
    clock.wall = clock.now = lambda: clock.wall_s

    def change(record):
        revision = view.revision + 1
        operation = put(record)
        kv = KeyValue(operation.key, operation.value, revision, revision)
        view.apply(Batch(revision, (Event("put", kv),)))

    def delete(record):
        revision = view.revision + 1
        kv = KeyValue(key_of(record), b"", 0, revision)
        view.apply(Batch(revision, (Event("delete", kv),)))

    change(KVEntry(key="a", value=b"1"))
    remembered = Remembered(view, clock=clock)
    return SimpleNamespace(
        view=view, clock=clock, change=change, delete=delete, remembered=remembered
    )


def test_what_is_steady_is_found_again_whatever_else_changes(world):
    world.remembered.put(b"k", ANNA)
    for one in (KVEntry(key="a", value=b"2"), stored("configmaps"), stored("pods", group="x")):
        world.change(one)
        assert world.remembered.get(b"k") is ANNA
    assert world.remembered.get(b"other") is None


@pytest.mark.parametrize("resource", ["serviceaccounts", "secrets", "pods", "nodes"])
def test_what_tokens_depend_on_ends_it(world, resource):
    world.change(stored(resource))
    world.remembered.put(b"k", ANNA)
    assert world.remembered.get(b"k") is ANNA
    world.delete(stored(resource))
    assert world.remembered.get(b"k") is None
    world.remembered.put(b"k", ANNA)
    world.change(stored(resource, "two"))
    assert world.remembered.get(b"k") is None


def test_it_ends_with_the_credential_and_does_not_hold_before_it_was_seen(world):
    found = Authentication(actor=Actor(user="a"), is_steady=True, expires_s=NOW_S + 60)
    world.remembered.put(b"k", found)
    world.clock.wall_s = NOW_S + 59
    assert world.remembered.get(b"k") is found
    world.clock.wall_s = NOW_S + 60
    assert world.remembered.get(b"k") is None
    world.clock.wall_s = NOW_S
    world.remembered.put(b"k", found)
    world.clock.wall_s = NOW_S - 1  # somebody set the clock back
    assert world.remembered.get(b"k") is None


def test_what_is_good_for_a_while_ends_with_it_or_with_the_credential(world):
    for expires_s in (None, NOW_S + 500):
        found = Authentication(
            actor=Actor(user="a"),
            is_steady=True,
            steady_until_s=NOW_S + 120,
            expires_s=expires_s,
        )
        world.clock.wall_s = NOW_S
        world.remembered.put(b"k", found)
        world.clock.wall_s = NOW_S + 119
        assert world.remembered.get(b"k") is found
        world.clock.wall_s = NOW_S + 120
        assert world.remembered.get(b"k") is None


@pytest.mark.parametrize(
    "found",
    [
        Authentication(actor=Actor(user="a")),
        Authentication(actor=None, is_steady=True),
        Authentication(actor=Actor(user="a"), is_steady=True, warning="extra space"),
    ],
)
def test_the_rest_is_not_kept(world, found):
    world.remembered.put(b"k", found)
    assert world.remembered.get(b"k") is None


def test_the_oldest_goes(world):
    for number in range(5000):
        world.remembered.put(number, ANNA)
    assert len(world.remembered) == 4096
    assert world.remembered.get(0) is None
    assert world.remembered.get(4999) is ANNA
    world.remembered.clear()
    assert world.remembered.get(4999) is None


# -- what is steady ----------------------------------------------------------------------------------------------------


class Says:
    """An authenticator with one answer, for certificates and tokens."""

    name = "says"

    def __init__(self, verdict):
        self._verdict = verdict

    def authenticate(self, _credentials, *, now_s):
        return self._verdict

    def authenticate_token(self, _token, *, audiences, now_s):
        return self._verdict


GOOD = Accepted(identity=Identity(user="a"), is_steady=True)


def answer(*verdicts, tokens=()):
    chain = Chain(authenticators=map(Says, verdicts), tokens=map(Says, tokens))
    return chain.authenticate_now(Credentials(authorization="Bearer t"), now_s=NOW_S)


def test_a_chain_is_as_steady_as_all_who_were_asked():
    assert answer(GOOD).is_steady
    assert answer(Skipped("no"), tokens=(Skipped("no"), GOOD)).is_steady
    assert not answer(Accepted(identity=Identity(user="a"))).is_steady
    # A certificate that is not valid yet will come first once it is.
    assert not answer(Rejected(error="not yet"), tokens=(GOOD,)).is_steady
    assert not answer(tokens=(Rejected(error="not yet"), GOOD)).is_steady
    assert answer(tokens=(Pending(lambda: None), GOOD)) is None


def test_static_tokens_are_steady():
    tokens = StaticTokens.parse("t,anna,1\n", name="f")
    assert tokens.authenticate_token("t", audiences=(), now_s=NOW_S).is_steady


def test_a_token_whose_account_is_being_deleted_is_not(store):
    key = generate_key()
    accepts = ServiceAccountTokens(store, keys=[key.public_key()])
    request = TokenRequest(namespace="n", name="s", uid="u", audiences=accepts.audiences)
    token = TokenIssuer(key).issue(request, now_s=NOW_S, token_id="j").token
    store.put("serviceaccounts", "n", "s", uid="u")

    def verdict():
        return accepts.authenticate_token(token, audiences=(), now_s=NOW_S)

    assert verdict().is_steady
    half_a_minute_ago = dt.datetime.fromtimestamp(NOW_S - 30, dt.UTC).isoformat()
    store.put(
        "serviceaccounts", "n", "s", metadata={"uid": "u", "deletionTimestamp": half_a_minute_ago}
    )
    found = verdict()
    assert isinstance(found, Accepted)
    assert not found.is_steady


def test_a_token_of_an_issuer_that_gets_another_key_is_signed_with_it():
    first, second = generate_key(), generate_key()
    issuer = TokenIssuer(first)
    issuer.replace(TokenIssuer(second))
    request = TokenRequest(namespace="n", name="s", uid="u", audiences=("a",))
    token = issuer.issue(request, now_s=NOW_S, token_id="j").token
    assert _verifies(token, second)
    assert not _verifies(token, first)


def _verifies(token, key):
    return SignatureVerifier([verification_key(key.public_key())]).payload(token) is not None
