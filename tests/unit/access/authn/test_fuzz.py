"""Whatever strangers send: none of it lets them in, none of it raises, none of it reaches a log."""

from __future__ import annotations

import base64
import json
import logging

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from waypost.access.actor import ANONYMOUS, Actor
from waypost.access.authn.bootstrap import BootstrapTokens
from waypost.access.authn.certificate import ClientCertificate, FrontProxy
from waypost.access.authn.chain import Chain
from waypost.access.authn.impersonation import impersonation
from waypost.access.authn.oidc import FixedKeys, OidcSettings, OidcTokens, parse_key_set
from waypost.access.authn.records import Credentials
from waypost.access.authn.secret_files import BasicPasswords, StaticTokens, read_records
from waypost.access.authn.service_account import (
    DEFAULT_ISSUER,
    LEGACY_ISSUER,
    ServiceAccountTokens,
    TokenIssuer,
    TokenRequest,
    key_set,
)
from waypost.access.pki.keys import generate_key
from waypost.access.pki.signer import read_request
from waypost.access.pki.verify import ClientVerifier
from waypost.base.errors import Malformed
from waypost.wire import kubeconfig

KEY = generate_key("RSA-2048")
ISSUER = "https://idp.example"
NOW_S = 1_795_407_048.0
ODD = st.text(st.characters(codec=None), max_size=60)  # surrogates as well
quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def chain(world, store):
    store.put("serviceaccounts", "n1", "bot", uid="u")
    store.put_secret(
        "kube-system", "bootstrap-token-abcdef", {}, kind="bootstrap.kubernetes.io/token"
    )
    keys = parse_key_set(
        json.dumps(key_set([KEY.public_key()])).encode(), name="jwks", algorithms=("RS256",)
    )
    return Chain(
        authenticators=[
            FrontProxy(ClientVerifier([world.proxies.certificate])),
            BasicPasswords.parse("pw-4711,carol,1", name="b"),
            ClientCertificate(ClientVerifier([world.ca.certificate])),
        ],
        tokens=[
            StaticTokens.parse("tok-4711,alice,1", name="t"),
            ServiceAccountTokens(store, keys=[KEY.public_key()]),
            BootstrapTokens(store),
            OidcTokens(OidcSettings(issuer=ISSUER, client_ids=("w",)), source=FixedKeys(keys)),
        ],
    )


def stranger(chain, **credentials):
    found = chain.authenticate_now(Credentials(**credentials), now_s=NOW_S)
    assert found is not None
    assert found.actor is None or found.actor.user == ANONYMOUS, credentials
    return found


def part(value):
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.one_of(
            st.sampled_from(["none", "None", "HS256", "RS256", "ES256", "PS256", "EdDSA", ""]),
            st.integers(),
            st.none(),
            st.lists(st.just("RS256"), max_size=2),
        ),
        "kid": st.one_of(st.text(max_size=8), st.integers(), st.none()),
        "b64": st.booleans(),
        "crit": st.one_of(st.lists(st.sampled_from(["b64", "exp", "x"])), st.text(max_size=3)),
        "typ": st.text(max_size=3),
        "jku": st.just("http://127.0.0.1:1/keys"),
        "x5c": st.lists(st.text(max_size=5), max_size=2),
    },
)
CLAIMS = st.fixed_dictionaries(
    {"iss": st.sampled_from([DEFAULT_ISSUER, LEGACY_ISSUER, ISSUER, "x"])},
    optional={
        "sub": st.sampled_from(["system:serviceaccount:n1:bot", "x", ""]),
        "aud": st.one_of(st.just([DEFAULT_ISSUER]), st.just("w"), st.integers()),
        "exp": st.one_of(st.integers(), st.floats(), st.text(max_size=3)),
        "kubernetes.io": st.one_of(
            st.just({"namespace": "n1", "serviceaccount": {"name": "bot", "uid": "u"}}),
            st.integers(),
        ),
    },
)


@quick
@given(header=HEADERS, claims=CLAIMS, signature=st.binary(max_size=300))
def test_forged_tokens(chain, header, claims, signature):
    token = (
        f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}.{part(signature)}"
    )
    assert stranger(chain, authorization=f"Bearer {token}").actor is None


@quick
@given(a=st.binary(max_size=80), b=st.binary(max_size=80), c=st.binary(max_size=80))
def test_tokens_of_anything(chain, a, b, c):
    stranger(chain, authorization=f"Bearer {part(a)}.{part(b)}.{part(c)}")


@quick
@given(at=st.integers(0, 2000), to=st.characters(codec="ascii"))
def test_a_good_token_with_one_character_changed(chain, at, to):
    good = TokenIssuer(KEY).issue(
        TokenRequest(namespace="n1", name="bot", uid="u", audiences=(DEFAULT_ISSUER,)),
        now_s=NOW_S,
        token_id="j",
    )
    at %= len(good.token)
    changed = good.token[:at] + to + good.token[at + 1 :]
    found = chain.authenticate_now(Credentials(consul_token=changed), now_s=NOW_S)
    # The last character of a base64 part may carry bits that mean nothing.
    same = [base64.urlsafe_b64decode(one + "==") for one in good.token.split(".")]
    try:
        said = [base64.urlsafe_b64decode(one + "==") for one in changed.split(".")]
    except ValueError:
        said = []
    assert found.actor is None or said == same


@quick
@given(text=ODD, token=ODD)
def test_headers_of_anything(chain, text, token):
    stranger(chain, authorization=text)
    stranger(chain, authorization=f"Bearer {text}")
    stranger(chain, authorization=f"Basic {text}")
    stranger(chain, consul_token=token)


@quick
@given(user=ODD, password=ODD)
def test_basic_of_anything(chain, user, password):
    pair = f"{user}:{password}".encode("utf-8", "surrogatepass")
    stranger(chain, authorization="Basic " + base64.b64encode(pair).decode())


@pytest.fixture
def certificate(world):
    return world.client("alice", "system:masters", key=KEY)[0]


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # what it is worth is decided here
@quick
@given(data=st.data())
def test_certificates_with_bytes_changed(chain, certificate, data):
    der = bytearray(certificate)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(der) - 1))
        der[at] ^= data.draw(st.integers(1, 255))
    assume(bytes(der) != certificate)
    extra = data.draw(st.lists(st.binary(max_size=50), max_size=3))
    stranger(chain, certificates_der=(bytes(der), *extra))


@quick
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_certificates_of_anything(chain, ders):
    stranger(chain, certificates_der=tuple(ders), remote_headers={"x-remote-user": ("root",)})


@quick
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["Impersonate-User", "Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-%"]
            ),
            ODD,
        ),
        max_size=5,
    )
)
def test_impersonation_always_asks_for_every_part(fields):
    try:
        found = impersonation(fields, requester=Actor(user="x"))
    except Malformed:
        return
    if found is not None:
        groups = [value for name, value in fields if name == "Impersonate-Group"]
        asked = [one.name for one in found.attributes if one.resource == "groups"]
        assert asked == groups


@quick
@given(st.text(st.sampled_from('a,"\n\r #ü'), max_size=30))
def test_csv_of_anything(text):
    try:
        records = read_records(text, name="f")
    except Malformed:
        return
    assert all(fields for _, fields in records)


@quick
@given(
    st.one_of(
        st.binary(max_size=80),
        st.text(st.sampled_from("abk:-[]{}&*!|>'\"% \n\t0123#?,"), max_size=60).map(str.encode),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["clusters", "users", "contexts", "name", "user", "token"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=10,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_kubeconfigs_of_anything(data):
    try:
        config = kubeconfig.parse(data, name="f")
    except Malformed:
        return
    assert kubeconfig.parse(kubeconfig.to_yaml(config).encode(), name="g") == config


@quick
@given(st.binary(max_size=200))
def test_requests_of_anything(data):
    wrapped = (
        b"-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.encodebytes(data)
        + b"-----END CERTIFICATE REQUEST-----\n"
    )
    for pem in (data, wrapped):
        with pytest.raises(Malformed):
            read_request(pem)


def test_no_secret_reaches_a_log_or_a_trace(chain, world, caplog):
    caplog.set_level(logging.DEBUG)
    good = TokenIssuer(KEY).issue(
        TokenRequest(namespace="n1", name="bot", uid="u", audiences=("x",)), now_s=0, token_id="j"
    )
    secrets = ["tok-4711", "tok-4712", "pw-4711", "pw-4712", "abcdef.0123456789abcdef", good.token]
    shown = []
    for secret in secrets:
        pair = base64.b64encode(f"carol:{secret}".encode()).decode()
        for credentials in (
            Credentials(authorization=f"Bearer {secret}"),
            Credentials(authorization=f"Basic {pair}"),
            Credentials(consul_token=secret, certificates_der=world.client(authority=world.other)),
        ):
            found = chain.authenticate_now(credentials, now_s=NOW_S)
            shown += [repr(credentials), f"{credentials}", repr(found)]
            assert pair not in shown[-1]
    everything = caplog.text + "".join(shown)
    for secret in secrets:
        assert secret not in everything
        assert secret.split(".")[-1] not in everything
