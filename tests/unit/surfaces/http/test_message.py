from __future__ import annotations

import gzip

import pytest

from waypost.base import errors
from waypost.surfaces.http.message import (
    GZIP_MIN_BYTES,
    Head,
    Headers,
    Peer,
    Query,
    Rendered,
    Response,
    text_response,
)
from waypost.surfaces.http.status import error_response, status_of


def head(target: str, *headers: tuple[str, str], method: str = "GET") -> Head:
    raw = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in headers]
    return Head(method=method, target=target.encode("latin-1"), headers=Headers(raw))


@pytest.mark.parametrize(
    ("raw", "pairs", "error"),
    [
        ("", (), None),
        ("a", (("a", ""),), None),
        ("a=", (("a", ""),), None),
        ("=b", (("", "b"),), None),
        ("a=1&b=2&a=3", (("a", "1"), ("b", "2"), ("a", "3")), None),
        ("a=1;b=2", (("a", "1"), ("b", "2")), None),
        ("a=b=c", (("a", "b=c"),), None),
        ("&&a&", (("a", ""),), None),
        ("a+b=c+d", (("a b", "c d"),), None),
        ("a%20b=c%2Bd", (("a b", "c+d"),), None),
        ("n=%E4%B8%AD", (("n", "中"),), None),
        ("n=%ff", (("n", "\ufffd"),), None),
        ("%zz", (), 'invalid URL escape "%zz"'),
        ("a=1&b=%2&c=%", (("a", "1"),), 'invalid URL escape "%2"'),
        ("a=%&b", (("b", ""),), 'invalid URL escape "%"'),
    ],
)
def test_query_follows_go(raw: str, pairs: tuple[tuple[str, str], ...], error: str | None) -> None:
    query = Query(raw)
    assert query.pairs == pairs
    assert query.error == error


def test_query_access() -> None:
    query = Query("tag=a&stale&tag=b")
    assert query.get("tag") == "a"
    assert query.all("tag") == ("a", "b")
    assert "stale" in query
    assert query.get("stale", "x") == ""
    assert query.get("wait", "5m") == "5m"
    assert query.all("wait") == ()
    assert not Query("")


def test_secrets_stay_out_of_text() -> None:
    one = head("/v1/kv/a?token=s3cr3t&dc=x&TOKEN=other", ("X-Consul-Token", "s3cr3t"))
    assert one.loggable() == "GET /v1/kv/a?token=<hidden>&dc=x&TOKEN=<hidden>"
    assert "s3cr3t" not in repr(one.headers) + repr(one.query)
    assert head("/v1/kv/a?%74oken=x&tok%45N=y;a%20b=c").loggable() == (
        "GET /v1/kv/a?%74oken=<hidden>&tok%45N=<hidden>;a%20b=c"
    )
    assert head("/mytoken=1").loggable() == "GET /mytoken=1"
    assert head("/\x1b[31m").loggable() == "GET '/\\x1b[31m'"


def test_headers_ignore_case_and_keep_order() -> None:
    headers = Headers([(b"X-A", b"1"), (b"x-a", b"2"), (b"B", b"\xe9")])
    assert headers.get("X-a") == "1"
    assert headers.all("X-A") == ("1", "2")
    assert headers.get("b") == "é"
    assert headers.get("c") is None
    assert "B" in headers
    assert list(headers) == [("x-a", "1"), ("x-a", "2"), ("b", "é")]


@pytest.mark.parametrize(
    ("target", "raw_path", "path"),
    [
        ("/v1/kv/a%2Fb?x", "/v1/kv/a%2Fb", "/v1/kv/a/b"),
        ("/a+b", "/a+b", "/a+b"),
        ("/%E4%B8%AD", "/%E4%B8%AD", "/中"),
        ("http://host:1/a?b", "/a", "/a"),
        ("http://host", "/", "/"),
        ("/a#frag", "/a", "/a"),
    ],
)
def test_path(target: str, raw_path: str, path: str) -> None:
    one = head(target)
    assert one.raw_path == raw_path
    assert one.path == path


@pytest.mark.parametrize("target", ["/%zz", "/%", "/%a", "/%ff", "/\xff"])
def test_bad_path(target: str) -> None:
    with pytest.raises(errors.Malformed):
        _ = head(target).path


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.5", True),
        ("*", True),
        ("GZIP", True),
        ("gzip;q=0", False),
        ("gzip; q=0.00", False),
        ("identity", False),
        ("", False),
    ],
)
def test_accepts_gzip(value: str, accepted: bool) -> None:
    assert head("/", ("Accept-Encoding", value)).accepts_gzip is accepted


@pytest.mark.parametrize(
    ("one", "plain"),
    [
        (head("/v1/kv/a", ("Host", "x"), ("User-Agent", "y"), ("Accept-Encoding", "gzip")), True),
        (head("/v1/kv/a?stale&index=3", ("Host", "x")), True),
        (head("/v1/kv/a", ("Host", "x"), method="HEAD"), False),
        (head("/v1/kv/a", ("X-Consul-Token", "x")), False),
        (head("/v1/kv/a", ("Authorization", "x")), False),
        (head("/v1/kv/a", ("Cookie", "x")), False),
        (head("/v1/kv/a", ("Impersonate-User", "x")), False),
        (head("/v1/kv/a", ("Cache-Control", "max-age=1")), False),
        (head("/v1/kv/a?token=x"), False),
        (head("/v1/kv/a?%74oken=x"), False),
    ],
)
def test_is_plain(one: Head, plain: bool) -> None:
    assert one.is_plain is plain


def test_peer_identity() -> None:
    assert Peer(listener="http", address="::1", port=1).is_anonymous
    assert not Peer(listener="unix", is_unix=True, uid=0).is_anonymous
    shown = Peer(listener="https", is_tls=True, certificates_der=(b"leaf", b"issuer"))
    assert not shown.is_anonymous
    assert shown.certificate_der == b"leaf"
    assert Peer(listener="http").certificate_der is None


def test_rendered_forms() -> None:
    small = Rendered(Response(body=b"{}", content_type="application/json", headers=(("A", "b"),)))
    assert small.tail(gzip=False) == (
        b"Content-Type: application/json\r\nA: b\r\nVary: Accept-Encoding\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    assert small.tail(gzip=True) is small.tail(gzip=False)
    assert small.head(gzip=False) + b"{}" == small.tail(gzip=False)
    body = b"0123456789" * (GZIP_MIN_BYTES // 10 + 1)
    large = Rendered(Response(body=body))
    lines, _, packed = large.tail(gzip=True).partition(b"\r\n\r\n")
    assert gzip.decompress(packed) == body
    assert b"Content-Encoding: gzip\r\nContent-Length: %d" % len(packed) in lines
    assert large.tail(gzip=True) is large.tail(gzip=True)
    assert b"Content-Encoding" not in large.tail(gzip=False)
    assert Rendered(Response(status=204, vary=False)).tail(gzip=False) == b"\r\n"


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "a\nb", "a\rb"])
def test_headers_cannot_be_injected(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        Rendered(Response(headers=(("X", value),)))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Malformed("x"), 400),
        (errors.Unauthenticated("x"), 401),
        (errors.Forbidden("x"), 403),
        (errors.NotFound("x"), 404),
        (errors.Conflict("x"), 409),
        (errors.TooLarge("x"), 413),
        (errors.Rejected("x"), 500),
        (errors.Unavailable("x"), 500),
        (errors.NoLeader("No cluster leader"), 500),
        (errors.WaypostError("x"), 500),
    ],
)
def test_status_of(error: errors.WaypostError, status: int) -> None:
    assert status_of(error) == status
    assert error_response(error) == text_response(status, str(error))


def simple(*headers, target=b"/v1/a", method="GET"):
    return Head(method=method, target=target, headers=Headers(headers))


def test_a_credential_makes_a_request_simple_and_not_plain():
    host, token = (b"Host", b"h"), (b"X-Consul-Token", b"t")
    assert simple(host).is_plain
    assert simple(host).is_simple
    for one in (token, (b"Authorization", b"Bearer t")):
        assert simple(host, one).is_simple
        assert not simple(host, one).is_plain
    for head in (
        simple(host, token, (b"Impersonate-User", b"x")),
        simple(host, token, (b"Cookie", b"x")),
        simple(host, token, method="HEAD"),
        simple(host, token, target=b"/v1/a?token=x"),
        simple(host, token, target=b"/v1/a?%74oken=x"),
    ):
        assert not head.is_simple


def test_a_digest_stands_for_the_credential():
    bearer, consul = (b"Authorization", b"t"), (b"X-Consul-Token", b"t")
    assert simple().credential == b""
    found = [simple(*one).credential for one in ((bearer,), (consul,), (bearer, consul))]
    assert len(set(found)) == 3
    assert all(isinstance(one, bytes) and len(one) == 32 for one in found)
    assert simple(consul, target=b"/v1/b").credential == found[1]
    # The first one counts, as for whoever authenticates.
    assert simple(consul, (b"X-Consul-Token", b"u")).credential == found[1]
    for target in (b"/v1/a?token=t", b"/v1/a?Token=", b"/v1/a?%74oken=t"):
        assert simple(consul, target=target).credential is None
