"""What etcd's answers mean: errors, watches, versions, endpoints."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from waypost.base.clock import SystemClock
from waypost.base.errors import Malformed, Unavailable
from waypost.store.engine import Batch, Event, KeyValue
from waypost.store.etcd import EtcdEngine
from waypost.store.etcd.endpoints import Endpoints, check_url
from waypost.store.etcd.failure import Failure, parse_failure
from waypost.store.etcd.feed import batches, messages
from waypost.store.etcd.versions import check_version, judge, parse_version
from waypost.store.open import make_engine


@pytest.mark.parametrize(
    ("code", "text", "outcome"),
    [
        (3, "etcdserver: duplicate key given in txn request", "refused"),
        (3, "etcdserver: request is too large", "refused"),
        (5, "etcdserver: requested lease not found", "refused"),
        (8, "etcdserver: mvcc: database space exceeded", "refused"),
        (11, "etcdserver: mvcc: required revision has been compacted", "refused"),
        (8, "etcdserver: too many requests", "not_applied"),
        (14, "etcdserver: no leader", "not_applied"),
        (14, "etcdserver: rpc not supported for learner", "not_applied"),
        (14, "etcdserver: request timed out", "unknown"),
        (14, "etcdserver: request timed out, possibly due to previous leader failure", "unknown"),
        (14, "etcdserver: leader changed", "unknown"),
        (14, "transport is closing", "unknown"),
        (13, "etcdserver: corrupt cluster", "unknown"),
        (4, "context deadline exceeded", "unknown"),
        (1, "context canceled", "unknown"),
        (2, "etcdserver: server stopped", "unknown"),
        (99, "something new", "unknown"),
    ],
)
def test_error_table(code: int, text: str, outcome: str) -> None:
    for body in (
        {"error": text, "message": text, "code": code},
        {"error": {"grpc_code": code, "http_code": 503, "message": text, "http_status": "x"}},
    ):
        failure = parse_failure(json.dumps(body).encode(), status=503, endpoint="http://a")
        assert (failure.outcome, failure.code, failure.text) == (outcome, code, text)
        assert str(failure) == f"http://a: {text}"


@pytest.mark.parametrize("body", [b"", b"Not Found\n", b"<html>", b"{}", b"[1]", b'{"error":3}'])
def test_what_is_not_etcds_is_unknown(body: bytes) -> None:
    failure = parse_failure(body, status=404, endpoint="http://a")
    assert failure.outcome == "unknown"
    assert "HTTP status 404" in failure.text
    assert "does not look like etcd" in failure.text


def event(key: bytes, revision: int, kind: str = "PUT") -> dict[str, object]:
    from base64 import b64encode

    kv = {"key": b64encode(key).decode(), "mod_revision": str(revision)}
    if kind == "PUT":
        kv |= {"create_revision": str(revision), "version": "1", "value": "dg=="}
    return {"kv": kv} | ({} if kind == "PUT" else {"type": kind})


async def lines(*responses: dict[str, object]) -> AsyncIterator[bytes]:
    for response in responses:
        yield json.dumps({"result": {"header": {"revision": "9"}} | response}).encode()


async def test_fragments_are_joined_and_revisions_kept_together() -> None:
    a, b, mark = event(b"a", 5), event(b"b", 5, "DELETE"), event(b"_\0lane\0p", 6)
    stream = lines(
        {"created": True},
        {"fragment": True, "events": [event(b"old", 4), a]},
        {"fragment": True, "events": [b]},
        {"events": [mark, event(b"c", 7)]},
        {"events": [event(b"d", 8)]},
    )
    got = [r async for r in messages(stream, "e")]
    assert [len(r.events) for r in got] == [0, 5, 1]
    assert list(batches(got[1].events, after=4)) == [
        Batch(5, (Event("put", KeyValue(b"a", b"v", 5, 5)), Event("delete", KeyValue(b"b", b"", 0, 5, 0)))),
        Batch(6, ()),
        Batch(7, (Event("put", KeyValue(b"c", b"v", 7, 7)),)),
    ]  # fmt: skip
    assert list(batches(got[1].events, after=7)) == []
    assert list(batches([], after=7)) == []


async def test_an_error_within_a_watch_is_one() -> None:
    async def broken(line: bytes) -> AsyncIterator[bytes]:
        yield line

    with pytest.raises(Failure, match="no leader"):
        [_ async for _ in messages(broken(b'{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}'), "e")]  # fmt: skip
    with pytest.raises(Failure, match="cannot be read"):
        [_ async for _ in messages(broken(b"{"), "e")]


@pytest.mark.parametrize(
    ("text", "version", "grade"),
    [
        ("3.4.22", (3, 4, 22), "unsafe"),
        ("3.4.23", (3, 4, 23), "flawed"),
        ("3.4.37", (3, 4, 37), "flawed"),
        ("3.5.0", (3, 5, 0), "unsafe"),
        ("3.5.2", (3, 5, 2), "unsafe"),
        ("3.5.3", (3, 5, 3), "flawed"),
        ("3.5.19", (3, 5, 19), "flawed"),
        ("3.5.20", (3, 5, 20), "good"),
        ("3.5.24", (3, 5, 24), "good"),
        ("3.6.0-rc.1", (3, 6, 0), "good"),
        ("3.6.5+git", (3, 6, 5), "good"),
    ],
)
def test_versions(
    text: str, version: tuple[int, int, int], grade: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert parse_version(text) == version
    assert judge(version).grade == grade
    check_version(text, endpoint="http://a")
    assert bool(caplog.records) is (grade != "good")


def test_versions_that_cannot_work(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unavailable, match=r"etcd 3\.3\.25 at http://a: too old; waypost needs"):
        check_version("3.3.25", endpoint="http://a")
    check_version("devel", endpoint="http://a")
    assert "cannot be read: 'devel'" in caplog.text


class Clock(SystemClock):
    time_s = 0.0

    def now(self) -> float:
        return self.time_s


def test_endpoints_rest_after_a_failure_and_the_first_is_preferred() -> None:
    clock = Clock()
    known = ["http://a/", "http://b", "http://c"]
    endpoints = Endpoints(lambda: known, clock)
    assert endpoints.pick() == "http://a"
    assert endpoints.pick(but="http://a") == "http://b"
    endpoints.failed("http://a")
    assert endpoints.pick() == "http://b"
    clock.time_s = 1
    endpoints.failed("http://b")
    endpoints.failed("http://c")
    assert not endpoints.rested()
    assert endpoints.pick() == "http://a"
    clock.time_s = 1.5
    endpoints.failed("http://a")
    assert endpoints.pick() == "http://b"
    clock.time_s = 3.1
    assert endpoints.rested()
    assert endpoints.pick() == "http://b"
    clock.time_s = 3.6
    assert endpoints.pick() == "http://a"
    endpoints.failed("http://a")
    endpoints.works("http://a")
    assert endpoints.pick() == "http://a"
    known.clear()
    assert endpoints.pick() is None
    assert not endpoints.rested()
    known.append("http://z")
    assert endpoints.pick(but="http://z") == "http://z"


@pytest.mark.parametrize("url", ["", "a:2379", "ftp://a", "http://", "http://a/x", "https://u@a", "https://a b"])  # fmt: skip
def test_a_wrong_endpoint_is_refused(url: str) -> None:
    with pytest.raises(Malformed, match="etcd endpoint"):
        check_url(url)


def test_locations() -> None:
    engine = make_engine("etcd:https://a:2379, https://b:2379/", clock=SystemClock())
    assert isinstance(engine, EtcdEngine)
    assert engine.gateway.endpoints.all() == ("https://a:2379", "https://b:2379")
    with pytest.raises(Malformed, match="needs endpoints"):
        make_engine("etcd:", clock=SystemClock())
    with pytest.raises(Malformed, match="etcd endpoint 'a:2379'"):
        make_engine("etcd:a:2379", clock=SystemClock())
