"""Which requests a client agent passes on."""

from __future__ import annotations

import pytest

from waypost.base.errors import Forbidden
from waypost.surfaces.cluster.forward_routes import forwarded_peer
from waypost.surfaces.http.forward import Forwarded, envelope, is_forwarded
from waypost.surfaces.http.message import Head, Headers, Peer, Request


def ask(
    method: str,
    target: str,
    body: bytes = b"",
    peer: Peer | None = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Request:
    head = Head(method=method, target=target.encode(), headers=Headers(headers))
    return Request(head, body=body, peer=peer or Peer(listener="http"), arrived_s=0)


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("PUT", "/v1/kv/a", True),
        ("DELETE", "/v1/kv/a?recurse", True),
        ("GET", "/v1/kv/a?index=7", True),
        ("GET", "/v1/%6bv/a", True),
        ("GET", "/v1//kv/a", False),
        ("GET", "/v1/kv/%zz", False),
        ("GET", "/v1/x/../kv/a", False),
        ("PUT", "/v1/txn", True),
        ("PUT", "/v1/catalog/register", True),
        ("PUT", "/v1/catalog/deregister", True),
        ("GET", "/v1/catalog/services", False),
        ("GET", "/v1/health/service/web", False),
        ("PUT", "/v1/agent/service/register", False),
        ("PUT", "/v1/agent/leave", False),
        ("PUT", "/v1/event/fire/a", True),
        ("GET", "/v1/event/list", False),
        ("PUT", "/v1/session/destroy/x", True),
        ("PUT", "/v1/session/renew/x", False),
        ("GET", "/v1/session/list", False),
        ("GET", "/v1/operator/raft/configuration", True),
        ("GET", "/v1/snapshot", True),
        ("GET", "/v1/status/leader", False),
        ("POST", "/v1/waypost/auth/explain", True),
        ("GET", "/api", True),
        ("GET", "/api/v1/namespaces", True),
        ("DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterroles/a", True),
        ("GET", "/apisx", False),
        ("GET", "/openapi/v2", True),
        ("GET", "/healthz", False),
        ("GET", "/ui/", False),
        ("GET", "/v1/agent/members", False),
        ("GET", "/v1/agent/members?wan=1", True),
        ("GET", "/v1/agent/members?wan=", False),
        ("GET", "/v1/catalog/datacenters", True),
    ],
)
def test_the_table(method: str, target: str, expected: bool) -> None:
    assert is_forwarded(ask(method, target), node="web-1", has_kv=False) is expected


def test_keys_are_read_here_where_they_are_replicated() -> None:
    assert not is_forwarded(ask("GET", "/v1/kv/a"), node="web-1", has_kv=True)
    assert is_forwarded(ask("PUT", "/v1/kv/a"), node="web-1", has_kv=True)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", False),
        (b"{}", False),
        (b'{"Node": "WEB-1"}', False),
        (b'{"Node": ""}', False),
        (b'{"Node": "other"}', True),
        (b'{"node": "other"}', True),
        (b'{"Node": 7}', False),
        (b"[1]", False),
        (b"{", False),
        (b"\xff", False),
    ],
)
def test_sessions_of_this_machine_are_made_here(body: bytes, expected: bool) -> None:
    request = ask("PUT", "/v1/session/create", body)
    assert is_forwarded(request, node="web-1", has_kv=False) is expected


def test_an_envelope_says_where_a_request_came_from_and_leaves_the_connection_out() -> None:
    headers = ((b"X-Consul-Token", b"t"), (b"Connection", b"close"), (b"Content-Length", b"1"))
    peer = Peer(listener="http", address="10.0.0.7")
    made = envelope(ask("PUT", "/v1/kv/a?x", b"v", peer, headers))
    assert made == Forwarded(
        "PUT", b"/v1/kv/a?x", ((b"x-consul-token", b"t"),), b"v", "10.0.0.7", False
    )
    assert "t" not in repr(made).replace("Forwarded(PUT)", "")
    for local in (Peer(listener="unix", is_unix=True, uid=0), Peer(listener="http", address="::1")):
        assert envelope(ask("GET", "/v1/kv/a", peer=local)).is_local


def test_a_certificate_cannot_be_passed_on() -> None:
    peer = Peer(listener="https", address="10.0.0.7", certificates_der=(b"x",))
    with pytest.raises(Forbidden, match="cannot be passed on"):
        envelope(ask("GET", "/api/v1/pods", peer=peer))
    with pytest.raises(Forbidden, match="cannot be passed on"):
        envelope(ask("GET", "/v1/kv/token?token=", peer=peer))
    assert envelope(ask("GET", "/v1/kv/a?token=t", peer=peer))


@pytest.mark.parametrize(
    ("address", "is_local", "is_protected", "machine", "expected"),
    [
        ("10.0.0.7", False, False, "10.0.0.5", "10.0.0.7"),
        ("10.0.0.7", False, True, "10.0.0.5", "10.0.0.7"),
        ("127.0.0.1", True, False, "10.0.0.5", "127.0.0.1"),
        ("", True, False, "10.0.0.5", "127.0.0.1"),
        ("127.0.0.1", True, True, "10.0.0.5", "10.0.0.5"),
        ("", True, True, "10.0.0.5", "10.0.0.5"),
        ("127.0.0.1", True, True, "127.0.0.1", ""),
        ("127.0.0.1", False, True, "10.0.0.5", ""),
        ("::ffff:127.0.0.1", False, True, "10.0.0.5", ""),
    ],
)
def test_whom_a_forwarded_request_counts_as(
    address: str, is_local: bool, is_protected: bool, machine: str, expected: str
) -> None:
    message = Forwarded("GET", b"/", (), b"", address, is_local)
    peer = forwarded_peer(message, node="web-1", is_protected=is_protected, machine=machine)
    assert peer == Peer(listener="forwarded by web-1", address=expected)
