"""The client's rules, without an agent: addresses, targets, answers, blocking queries."""

from __future__ import annotations

import random

import pytest

from waypost.base.errors import Malformed
from waypost.client import api
from waypost.client.blocking import Poll
from waypost.client.call import Call, Response, headers, nothing, target
from waypost.client.errors import UnexpectedResponse, UnreadableResponse
from waypost.client.settings import ClientSettings, Overrides, parse_address, settings_from


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:8500", ("http", "127.0.0.1", 8500, "")),
        ("consul.local:80", ("http", "consul.local", 80, "")),
        ("http://h:1/", ("http", "h", 1, "")),
        ("https://h", ("https", "h", 443, "")),
        ("[::1]:8500", ("http", "::1", 8500, "")),
        (":8500", ("http", "127.0.0.1", 8500, "")),
        ("unix:///run/a.sock", ("http", "", 0, "/run/a.sock")),
    ],
)
def test_addresses(text, parts):
    assert parse_address(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "ftp://x",
        "h:0",
        "h:65536",
        "h:x",
        "h:1:2",
        "[::1",
        "[::1]x",
        "http://u@h:1",
        "h:1/path",
        "unix://",
        "h:١",
    ],
)
def test_addresses_that_are_none(text):
    with pytest.raises(Malformed):
        parse_address(text)


def test_settings_come_from_flags_before_the_environment(tmp_path):
    (tmp_path / "token").write_text("from-file\n")
    environment = {
        "CONSUL_HTTP_ADDR": "env:1",
        "CONSUL_HTTP_TOKEN": "env-token",
        "CONSUL_HTTP_SSL": "true",
        "CONSUL_HTTP_SSL_VERIFY": "false",
        "CONSUL_HTTP_AUTH": "user:pa:ss",
        "CONSUL_CACERT": "/env/ca",
        "CONSUL_TLS_SERVER_NAME": "env-name",
    }
    found = settings_from(environment, overrides=Overrides(ca_file="/flag/ca"))
    assert (found.scheme, found.host, found.port) == ("https", "env", 1)
    assert (found.token, found.basic_auth) == ("env-token", ("user", "pa:ss"))
    assert (found.tls.ca_file, found.tls.server_name, found.tls.verify) == (
        "/flag/ca",
        "env-name",
        False,
    )
    found = settings_from(
        environment,
        overrides=Overrides(address="http://flag:2", token_file=str(tmp_path / "token")),
    )
    assert (found.scheme, found.host, found.token) == ("http", "flag", "from-file")
    assert "from-file" not in repr(found)


def test_defaults():
    found = settings_from({})
    assert (found.scheme, found.authority, found.token, found.tls.verify) == (
        "http",
        "127.0.0.1:8500",
        "",
        True,
    )


def test_settings_that_cannot_be_read():
    with pytest.raises(Malformed, match='CONSUL_HTTP_SSL="maybe"'):
        settings_from({"CONSUL_HTTP_SSL": "maybe"})
    with pytest.raises(Malformed, match="Error loading token file: open /nope: no such file"):
        settings_from({"CONSUL_HTTP_TOKEN_FILE": "/nope"})


HERE = ClientSettings(
    host="h", port=1, datacenter="dc2", stale=True, token="t", basic_auth=("u", "p")
)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (api.members(), "/v1/agent/members?segment=_all"),
        (api.members(wan=True), "/v1/agent/members?segment=_all&wan=1"),
        (api.kv_list("a b/ü?&%"), "/v1/kv/a%20b/%C3%BC%3F&%25?dc=dc2&recurse=&stale="),
        (api.kv_keys("a", separator="/"), "/v1/kv/a?dc=dc2&keys=&separator=%2F&stale="),
        (api.kv_put("a", b"", flags=3, cas=0), "/v1/kv/a?cas=0&dc=dc2&flags=3"),
        (api.kv_delete("a"), "/v1/kv/a?dc=dc2"),
        (api.nodes(node_meta=(("k", "v w"),)), "/v1/catalog/nodes?dc=dc2&node-meta=k%3Av+w&stale="),
        (
            api.node_maintenance(enable=True, reason="a b"),
            "/v1/agent/maintenance?enable=true&reason=a+b",
        ),
        (api.event_fire("e", b"", service="s"), "/v1/event/fire/e?dc=dc2&service=s"),
    ],
)
def test_targets(call, expected):
    assert target(call, HERE) == expected


def test_blocking_parameters_and_headers():
    call = Call(method="GET", path="/x", decode=nothing)
    assert target(call, HERE, index=7, wait_s=60) == "/x?dc=dc2&index=7&stale=&wait=60000ms"
    found = headers(call, HERE)
    assert (found["X-Consul-Token"], found["Authorization"]) == ("t", "Basic dTpw")


def _answer(status: int, body: bytes, **found: str) -> Response:
    return Response(status, found, body)


def test_kv_answers():
    body = b'[{"LockIndex":1,"Key":"a","Flags":18446744073709551615,"Value":"aGk=","CreateIndex":3,"ModifyIndex":4,"Session":"s"}]'
    entry = api.kv_get("a").read(_answer(200, body))
    assert entry is not None
    assert (entry.value, entry.flags, entry.session, entry.modify_index) == (
        b"hi",
        2**64 - 1,
        "s",
        4,
    )
    assert api.kv_get("a").read(_answer(404, b"")) is None
    assert api.kv_list("a").read(_answer(404, b"")) == []
    assert api.kv_get("a").read(_answer(200, body.replace(b'"aGk="', b"null"))).value == b""
    assert api.kv_put("a", b"").read(_answer(200, b"true")) is True
    assert api.kv_put("a", b"").read(_answer(200, b"false")) is False


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (500, b"No cluster leader", "Unexpected response code: 500 (No cluster leader)"),
        (403, b"Permission denied", "Unexpected response code: 403 (Permission denied)"),
        (404, b"page not found", "Unexpected response code: 404 (page not found)"),
    ],
)
def test_answers_that_are_errors(status, body, text):
    with pytest.raises(UnexpectedResponse) as caught:
        api.kv_get("a").read(_answer(status, body))
    assert (str(caught.value), caught.value.status) == (text, status)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"a":1}', b'[{"Value":"!"}]', b'[{"Key":"a","Value":"!"}]']
)
def test_answers_that_cannot_be_read(body):
    with pytest.raises(UnreadableResponse):
        api.kv_get("a").read(_answer(200, body))


def test_null_is_an_empty_list():
    assert api.members().read(_answer(200, b"null")) == []
    assert api.services_of_node("x").read(_answer(200, b"null\n")).services is None


def test_the_index_of_an_answer():
    assert _answer(200, b"", **{"x-consul-index": "12"}).index == 12
    assert _answer(200, b"").index == 0
    assert _answer(200, b"", **{"x-consul-index": "-1"}).index == 0


@pytest.mark.parametrize(
    ("indexes", "asked", "changed"),
    [
        ([5, 5, 6], [0, 5, 5], [True, False, True]),
        ([0, 0, 3], [0, 1, 1], [True, False, True]),
        ([9, 4, 4, 4], [0, 9, 0, 4], [True, False, True, False]),
        ([1, 2], [0, 1], [True, True]),
    ],
)
def test_blocking_queries(indexes, asked, changed):
    poll, seen_asked, seen_changed = Poll(), [], []
    for index in indexes:
        seen_asked.append(poll.index)
        poll, is_new = poll.answered(index)
        seen_changed.append(is_new)
    assert (seen_asked, seen_changed) == (asked, changed)


def test_failures_wait_longer_and_longer_and_keep_the_index():
    rng = random.Random(1)
    poll, _ = Poll().answered(7)
    delays = []
    for _ in range(12):
        poll, delay_s = poll.failed(rng)
        delays.append(delay_s)
    assert poll.index == 7
    assert 0.1 <= delays[0] <= 0.2
    assert 15 <= delays[-1] <= 30
    assert poll.answered(8)[0].failures == 0
