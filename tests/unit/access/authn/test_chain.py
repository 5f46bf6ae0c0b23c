"""The union of authenticators: order, errors, anonymous. The table is a real kube-apiserver's (1.20)."""

from __future__ import annotations

import base64

import pytest

from waypost.access.actor import AUTHENTICATED, LOCAL, MASTERS, UNAUTHENTICATED
from waypost.access.authn.certificate import ClientCertificate, FrontProxy
from waypost.access.authn.chain import (
    EXTRA_SPACE_WARNING,
    AnonymousRule,
    Chain,
    bearer_token,
)
from waypost.access.authn.records import (
    Accepted,
    Credentials,
    Identity,
    Outcome,
    Pending,
    Rejected,
    Skipped,
)
from waypost.access.authn.request import credentials_of, is_credential_field
from waypost.access.authn.secret_files import BasicPasswords, StaticTokens
from waypost.access.authz.text import aggregate
from waypost.access.pki.issue import Usage
from waypost.access.pki.verify import ClientVerifier

TOKENS = (
    "tok-alice,alice,u1\ntok-dave,dave,u2,system:masters\ntok-un,eve,u3,system:unauthenticated\n"
)


def chain_of(world, **changes):
    parts = {
        "authenticators": [ClientCertificate(ClientVerifier([world.ca.certificate]))],
        "tokens": [StaticTokens.parse(TOKENS, name="tokens.csv")],
    }
    return Chain(**{**parts, **changes})


def answer(chain, now_s, **credentials):
    found = chain.authenticate_now(Credentials(**credentials), now_s=now_s)
    assert found is not None
    return found


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


ANONYMOUS = "system:anonymous"


@pytest.mark.parametrize(
    ("certificate", "authorization", "user"),
    [
        ("", "", ANONYMOUS),
        ("", "Bearer bad", None),
        ("", "Bearer tok-alice", "alice"),
        ("", "bearer tok-alice", "alice"),
        ("", "BEARER tok-alice", "alice"),
        ("", "Bearer tok-alice extra", "alice"),
        ("", "  Bearer tok-alice  ", "alice"),
        ("", "Bearer ", ANONYMOUS),
        ("", "Bearer", ANONYMOUS),
        ("", "Bearer  tok-alice", ANONYMOUS),
        ("", "Bearertok-alice", ANONYMOUS),
        ("", "Basic YTpi", ANONYMOUS),
        ("", "Negotiate abc", ANONYMOUS),
        ("good", "", "bob"),
        ("good", "Bearer bad", "bob"),
        ("good", "Bearer tok-alice", "bob"),
        ("wrong CA", "", None),
        ("wrong CA", "Bearer tok-alice", "alice"),
        ("wrong CA", "Bearer bad", None),
        ("expired", "", None),
        ("expired", "Bearer tok-alice", "alice"),
        ("not yet", "", None),
        ("server only", "", None),
        ("no EKU", "", "bob"),
        ("no CN", "", ANONYMOUS),
        ("no CN", "Bearer tok-alice", "alice"),
    ],
)
def test_what_a_kube_apiserver_answers(world, certificate, authorization, user):
    kinds = {
        "": lambda: (),
        "good": lambda: world.client("bob"),
        "wrong CA": lambda: world.client("bob", authority=world.other),
        "expired": lambda: world.client("bob", issued_s=world.now_s - 7200, validity_s=3600),
        "not yet": lambda: world.client("bob", issued_s=world.now_s + 3600),
        "server only": lambda: world.client("bob", usages=(Usage.SERVER,)),
        "no EKU": lambda: world.client("bob", usages=()),
        "no CN": lambda: world.client(subject=world.name([])),
    }
    found = answer(
        chain_of(world),
        world.now_s,
        certificates_der=kinds[certificate](),
        authorization=authorization,
    )
    assert (found.actor.user if found.actor else None) == user
    assert bool(found.error) == (user is None)
    if found.actor:
        expected = UNAUTHENTICATED if user == ANONYMOUS else AUTHENTICATED
        assert found.actor.groups[-1] == expected


def test_an_unusable_name_is_an_error_where_a_front_proxy_looks_too(world):
    proxy = FrontProxy(ClientVerifier([world.proxies.certificate]))
    x509 = ClientCertificate(ClientVerifier([world.ca.certificate]))
    chain = chain_of(world, authenticators=[proxy, x509])
    nameless = world.client(subject=world.name([]))
    assert answer(chain, world.now_s, certificates_der=nameless).actor is None
    assert answer(chain, world.now_s, certificates_der=world.client("bob")).actor.user == "bob"


def test_the_space_before_a_token_gets_a_warning(world):
    found = answer(chain_of(world), world.now_s, authorization="Bearer  tok-alice")
    assert found.warning == EXTRA_SPACE_WARNING
    assert answer(chain_of(world), world.now_s, authorization="Bearer tok-alice").warning == ""


def test_groups_that_are_added(world):
    chain = chain_of(world)
    assert answer(chain, 0.0, authorization="Bearer tok-dave").actor.groups == (
        MASTERS,
        AUTHENTICATED,
    )
    assert answer(chain, 0.0, authorization="Bearer tok-un").actor.groups == (UNAUTHENTICATED,)
    assert answer(chain, 0.0, address="192.0.2.1").actor.groups == (UNAUTHENTICATED,)
    assert answer(chain, 0.0, address="127.0.0.1").actor.groups == (UNAUTHENTICATED, LOCAL)


def test_basic_comes_before_the_certificate(world):
    passwords = BasicPasswords.parse("pw,carol,u9,g1", name="basic.csv")
    x509 = ClientCertificate(ClientVerifier([world.ca.certificate]))
    chain = chain_of(world, authenticators=[passwords, x509])
    both = {"certificates_der": world.client("bob")}
    assert answer(chain, world.now_s, authorization=basic("carol:pw"), **both).actor.user == "carol"
    assert answer(chain, world.now_s, authorization=basic("carol:no"), **both).actor.user == "bob"
    alone = answer(chain, world.now_s, authorization=basic("carol:no"))
    assert alone.actor is None
    assert alone.error == "invalid username/password combination"


def test_the_unix_socket_stands_in_for_anonymous_only(world):
    chain = chain_of(world, anonymous_rule=AnonymousRule(enabled=False), owner_uid=7)
    unix = {"is_unix": True, "unix_uid": 7}
    assert MASTERS in answer(chain, 0.0, **unix).actor.groups
    assert answer(chain, 0.0, authorization="Bearer tok-alice", **unix).actor.user == "alice"
    assert answer(chain, 0.0, authorization="Bearer bad", **unix).actor is None
    assert MASTERS not in answer(chain, 0.0, is_unix=True, unix_uid=8).actor.groups
    assert answer(chain, 0.0, is_unix=True, unix_uid=None).actor is None


def test_consul_tokens_are_bearer_tokens(world):
    chain = chain_of(world)
    assert answer(chain, 0.0, consul_token="tok-alice").actor.user == "alice"
    first = answer(chain, 0.0, consul_token="tok-dave", authorization="Bearer tok-alice")
    assert first.actor.user == "dave"
    assert answer(chain, 0.0, consul_token="bad").actor is None


@pytest.mark.parametrize(
    ("rule", "path", "allowed"),
    [
        (AnonymousRule(), "/v1/kv/a", True),
        (AnonymousRule(enabled=False), "/healthz", False),
        (AnonymousRule(paths=("/healthz",)), "/healthz", True),
        (AnonymousRule(paths=("/healthz",)), "/healthz/x", False),
    ],
)
def test_where_anonymous_may_come(world, rule, path, allowed):
    chain = chain_of(world, anonymous_rule=rule)
    found = chain.authenticate_now(Credentials(), now_s=0.0, path=path)
    assert (found.actor is not None) == allowed


def test_the_trace_tells_everything_but_the_secret(world):
    wrong = world.client("bob", authority=world.other)
    found = answer(
        chain_of(world), world.now_s, authorization="Bearer tok-alicf", certificates_der=wrong
    )
    assert [(one.authenticator, one.outcome) for one in found.trace] == [
        ("x509", Outcome.REJECTED),
        ("static token", Outcome.NOT_ATTEMPTED),
    ]
    assert "signed by unknown authority" in found.trace[0].detail
    assert found.error.startswith("[invalid bearer token, verifying certificate SN=")
    assert "tok-alicf" not in repr(found)


def test_an_actor_says_where_it_comes_from(world):
    actor = answer(chain_of(world), world.now_s, authorization="Bearer tok-alice").actor
    assert actor.origin == "static token: tokens.csv, line 1"
    assert actor.uid == "u1"
    found = answer(chain_of(world), world.now_s, certificates_der=world.client("bob", "a", "b"))
    assert found.actor.origin.startswith("x509: CN=bob, serial number ")
    assert found.actor.groups == ("a", "b", AUTHENTICATED)
    assert found.expires_s == pytest.approx(world.now_s + 365 * 86_400, abs=1)


class Asking:
    """An authenticator that needs the network for every token."""

    name = "asking"

    def __init__(self, verdict):
        self.verdict = verdict
        self.asked = 0

    def authenticate_token(self, token, *, audiences, now_s):
        async def ask():
            self.asked += 1
            return self.verdict

        return Pending(ask)


async def test_what_needs_the_network_is_told_apart(world):
    knows = Asking(Accepted(identity=Identity(user="zoe")))
    chain = chain_of(world, tokens=[StaticTokens.parse(TOKENS, name="t"), knows])
    credentials = Credentials(authorization="Bearer remote")
    assert chain.authenticate_now(credentials, now_s=0.0) is None
    assert knows.asked == 0
    found = await chain.authenticate(credentials, now_s=0.0)
    assert (found.actor.user, knows.asked) == ("zoe", 1)
    # Who is known without the network does not wait for it.
    assert answer(chain, 0.0, authorization="Bearer tok-alice").actor.user == "alice"


@pytest.mark.parametrize(
    ("verdicts", "error"),
    [
        ([Rejected(error="hook rejects")], "[invalid bearer token, hook rejects]"),
        ([Skipped("no")], "invalid bearer token"),
        ([Rejected(error="a"), Rejected(error="a")], "[invalid bearer token, a]"),
    ],
)
async def test_review_gives_the_recorded_texts(verdicts, error):
    chain = Chain(tokens=[Asking(one) for one in verdicts])
    found = await chain.review("whatever", now_s=0.0)
    assert found.actor is None
    assert found.error == error


async def test_review_never_says_anonymous():
    assert (await Chain().review("", now_s=0.0)).actor is None


def test_errors_are_joined_as_kube_joins_them():
    assert aggregate(["a"]) == "a"
    assert aggregate(["a", "b", "a"]) == "[a, b]"


def test_the_credentials_of_a_request():
    class Fields(dict):
        def all(self, name):
            return (self[name.lower()],) if name.lower() in self else ()

    fields = Fields({"authorization": "Bearer x", "x-consul-token": "c", "x-remote-user": "zed"})
    plain = credentials_of(fields, remote_fields=("X-Remote-User",), address="192.0.2.1")
    assert plain.remote_headers == {}, "nobody without a certificate may name users"
    assert (plain.authorization, plain.consul_token) == ("Bearer x", "c")
    assert credentials_of(fields, query_token="q").consul_token == "q"
    shown = credentials_of(fields, remote_fields=("X-Remote-User",), certificates_der=(b"d",))
    assert shown.remote_headers == {"x-remote-user": ("zed",)}
    assert "Bearer x" not in repr(shown) + str(shown)
    assert is_credential_field("X-Remote-Extra-Foo")
    assert not is_credential_field("X-Consul-Index")


def test_bearer_token():
    assert bearer_token("Bearer a.b.c") == "a.b.c"
    assert bearer_token("Basic a") == ""
