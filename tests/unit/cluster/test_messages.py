"""Messages between machines: read or refused, and without secrets in a log."""

from __future__ import annotations

import msgspec
import pytest

from waypost.base.errors import Malformed
from waypost.cluster.messages import (
    AboutMember,
    AccessAnswer,
    Hello,
    Join,
    JoinAnswer,
    Secrets,
    decode,
    encode,
)
from waypost.cluster.records import VERSION, ServerFacts

FACTS = ServerFacts(
    id="a", node="n", datacenter="dc1", address="192.0.2.1", cluster_port=1, server_port=2, store_port=3
)  # fmt: skip


def test_what_is_written_is_read() -> None:
    hello = Hello(sender=FACTS, servers=(FACTS,), roster=("1f",))
    assert decode(encode(hello), Hello, what="hello") == hello


def test_fields_of_a_later_version_are_ignored_and_a_later_version_is_refused() -> None:
    values = {"version": VERSION, "member": "x", "later": 1}
    found = decode(msgspec.msgpack.encode(values), AboutMember, what="remove")
    assert found == AboutMember(member="x")
    values = {"version": VERSION + 1, "member": ["changed"]}
    with pytest.raises(Malformed, match=f"remove: version {VERSION + 1} of the protocol; this machine knows {VERSION}"):  # fmt: skip
        decode(msgspec.msgpack.encode(values), AboutMember, what="remove")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"GET / HTTP/1.1", b"\x80"])
def test_other_bytes_are_refused_with_the_place(data: bytes) -> None:
    with pytest.raises(Malformed, match="hello: not a message of this protocol"):
        decode(data, Hello, what="hello")


def test_no_secret_is_shown() -> None:
    secrets = Secrets(
        authority_pem=b"pem",
        authority_key=b"S3CRET",
        store_authority_pem=b"pem",
        store_authority_key=b"S3CRET",
        pki={"sa.key": b"S3CRET"},
    )
    for one in (
        secrets,
        Join(sender=FACTS, token="abcdef.S3CRET"),
        JoinAnswer(secrets=secrets),
        AccessAnswer(files={"sa.key": b"S3CRET"}),
    ):
        assert "S3CRET" not in repr(one)
