"""Which servers are kept on disk."""

from __future__ import annotations

import pytest

from waypost.cluster.directory import to_remember
from waypost.cluster.records import ServerFacts


def server(key: str, address: str = "10.0.0.1") -> ServerFacts:
    return ServerFacts(
        id=key,
        node=key,
        datacenter="dc1",
        address=address,
        cluster_port=8301,
        server_port=8300,
        store_port=8303,
    )


A, B, C = server("a"), server("b"), server("c")
A_MOVED = server("a", "10.0.0.9")


@pytest.mark.parametrize(
    ("before", "heard", "members", "kept"),
    [
        pytest.param((), (), set(), None, id="nobody"),
        pytest.param((A, B), (), {"a", "b"}, None, id="nobody is heard of: the disk knows best"),
        pytest.param((), (B, A), set(), (A, B), id="the first are kept, by id"),
        pytest.param((A, B), (B, A), {"a", "b"}, None, id="all the same"),
        pytest.param((A, B), (A,), set(), None, id="one not heard of yet, no list yet"),
        pytest.param((A, B), (A,), {"a", "b"}, (A,), id="one not heard of, by the list"),
        pytest.param((A, B), (A, B, C), {"a", "b"}, None, id="one that the store does not list"),
        pytest.param((A, B), (A_MOVED,), set(), (A_MOVED, B), id="one moved"),
        pytest.param((A,), (A, B), {"a", "b"}, (A, B), id="one more"),
    ],
)
def test_to_remember(
    before: tuple[ServerFacts, ...],
    heard: tuple[ServerFacts, ...],
    members: set[str],
    kept: tuple[ServerFacts, ...] | None,
) -> None:
    assert to_remember(before, heard, members=members) == kept
