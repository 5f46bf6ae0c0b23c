"""Keys and certificates of machines: adopted, given, renewed, over, by a clock that the test moves."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.cluster.conftest import HandClock

from waypost.access.pki.issue import Names
from waypost.access.pki.setup import InitSettings, Layout, initialise
from waypost.base.errors import Malformed, NotFound, Unauthenticated
from waypost.cluster.certificates import Certificates
from waypost.cluster.local_store import LocalStore
from waypost.cluster.messages import JoinAnswer, Renew, Secrets
from waypost.cluster.settings import ClusterSettings
from waypost.cluster.transport import PeerClient
from waypost.cluster.trust import NodeCaller, ServerCaller, Stranger, Trust

DAY_S = 86_400.0
YEAR_S = 365 * DAY_S


def settings(
    folder: Path, node: str, *, is_server: bool, address: str = "192.0.2.1"
) -> ClusterSettings:
    return ClusterSettings(
        data_dir=folder / node,
        node=node,
        node_id=f"id-{node}",
        is_server=is_server,
        address=address,
    )


def opened(told: ClusterSettings, clock: HandClock) -> Trust:
    trust = Trust(told, clock=clock)
    trust.open()
    return trust


def founded(
    folder: Path, clock: HandClock, node: str = "s1", *, secrets: Secrets | None = None
) -> Trust:
    """Return a server of a cluster."""
    trust = opened(settings(folder, node, is_server=True), clock)
    trust.found(secrets or trust.propose(), now_s=clock.wall())
    return trust


def joined(folder: Path, clock: HandClock, server: Trust, node: str = "c1") -> Trust:
    """Return a client agent with a certificate of the server's cluster."""
    trust = opened(settings(folder, node, is_server=False), clock)
    certificate = server.sign_node(trust.request(), node=node, now_s=clock.wall())
    trust.accept(authority_pem=server.authority_pem(), certificate_pem_=certificate)
    return trust


def shown(folder: Path, node: str, name: str) -> tuple[bytes, ...]:
    """Return the chain that a machine shows with one of its certificates."""
    pem = (folder / node / "cluster" / f"{name}.crt").read_bytes()
    return (x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER),)


def test_callers_are_known_by_their_certificates(tmp_path: Path, clock: HandClock) -> None:
    one = founded(tmp_path, clock)
    two = founded(tmp_path, clock, "s2", secrets=one.secrets())
    client = joined(tmp_path, clock, one)
    stranger = founded(tmp_path / "elsewhere", clock, "s3")
    assert two.pin == one.pin == client.pin != stranger.pin
    assert two.identify(shown(tmp_path, "s1", "store")) == ServerCaller("id-s1")
    assert two.identify(shown(tmp_path, "c1", "node")) == NodeCaller("c1")
    # What proves nothing more than a key.
    for folder, node, name in (
        (tmp_path, "s1", "serving"),
        (tmp_path / "elsewhere", "s3", "store"),
    ):
        assert isinstance(two.identify(shown(folder, node, name)), Stranger)
    assert two.identify(()) == Stranger()
    assert two.identify((b"no certificate",)) == Stranger()
    clock.advance(2 * YEAR_S)
    assert isinstance(two.identify(shown(tmp_path, "s1", "store")), Stranger)
    assert isinstance(two.identify(shown(tmp_path, "c1", "node")), Stranger)


def test_the_name_of_a_node_is_not_what_it_asks_for(tmp_path: Path, clock: HandClock) -> None:
    server = founded(tmp_path, clock)
    client = opened(settings(tmp_path, "boss", is_server=False), clock)
    certificate = server.sign_node(client.request(), node="c9", now_s=clock.wall())
    assert "system:node:c9" in x509.load_pem_x509_certificate(certificate).subject.rfc4514_string()
    client.accept(authority_pem=server.authority_pem(), certificate_pem_=certificate)
    assert not client.node_is_usable(now_s=clock.wall())
    with pytest.raises(Malformed, match="cannot be read"):
        server.sign_node(b"nonsense", node="c9", now_s=clock.wall())
    other = joined(tmp_path, clock, server, "c2")
    with pytest.raises(Malformed, match="not a certificate for this node's key"):
        other.accept(authority_pem=server.authority_pem(), certificate_pem_=certificate)
    assert other.node_is_usable(now_s=clock.wall())


def of_client(
    folder: Path, clock: HandClock, client: Trust, server: Trust
) -> tuple[Certificates, list[str]]:
    """Return what renews a client's certificate by asking the server, and a list of what was asked."""
    told = settings(folder, "c1", is_server=False)
    asked: list[str] = []

    async def ask(message: Renew) -> JoinAnswer:
        asked.append("renew")
        return JoinAnswer(
            authority_pem=server.authority_pem(),
            certificate_pem=server.sign_node(message.csr_pem, node="c1", now_s=clock.wall()),
        )

    store = LocalStore(told, trust=client, clock=clock, rng=random.Random(1))
    peer_client = PeerClient(client, datacenter="dc1")
    return (
        Certificates(
            told, trust=client, client=peer_client, store=store, clock=clock, ask_servers=ask
        ),
        asked,
    )


async def test_a_clients_certificate_is_renewed_at_two_thirds(
    tmp_path: Path, clock: HandClock
) -> None:
    server = founded(tmp_path, clock)
    client = joined(tmp_path, clock, server)
    certificates, asked = of_client(tmp_path, clock, client, server)
    changed: list[int] = []
    certificates.on_serving_changed = lambda: changed.append(1)
    key = (tmp_path / "c1/cluster/node.key").read_bytes()
    clock.advance(YEAR_S * 2 / 3 - DAY_S)
    assert not await certificates.renew()
    assert not asked
    assert not changed
    clock.advance(2 * DAY_S)
    before = shown(tmp_path, "c1", "node")
    assert await certificates.renew()
    assert asked == ["renew"]
    assert changed == [1]
    assert shown(tmp_path, "c1", "node") != before
    assert (tmp_path / "c1/cluster/node.key").read_bytes() == key
    assert not await certificates.renew()
    # Good for another year from then on.
    clock.advance(YEAR_S - DAY_S)
    assert client.node_is_usable(now_s=clock.wall())
    assert server.identify(shown(tmp_path, "c1", "node")) == NodeCaller("c1")
    clock.advance(2 * DAY_S)
    assert not client.node_is_usable(now_s=clock.wall())


def test_a_servers_certificates_are_renewed_and_its_key_stays(
    tmp_path: Path, clock: HandClock
) -> None:
    server = founded(tmp_path, clock)
    fingerprint = server.fingerprint
    before = [shown(tmp_path, "s1", name) for name in ("serving", "store")]
    assert not server.refresh(now_s=clock.wall())
    clock.advance(YEAR_S * 2 / 3 + DAY_S)
    assert server.refresh(now_s=clock.wall())
    after = [shown(tmp_path, "s1", name) for name in ("serving", "store")]
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert server.fingerprint == fingerprint
    assert server.identify(after[1]) == ServerCaller("id-s1")
    # A machine that moved shows its new address.
    moved = opened(settings(tmp_path, "s1", is_server=True, address="192.0.2.77"), clock)
    assert moved.refresh(now_s=clock.wall())
    assert not moved.refresh(now_s=clock.wall())


def init(folder: Path, node: str, clock: HandClock) -> str:
    told = InitSettings(node=node, server="https://192.0.2.1:8501", names=Names.of([node]))
    return initialise(told, Layout(folder / node), now_s=clock.wall()).pin


def test_the_authority_of_waypost_init_becomes_the_clusters(
    tmp_path: Path, clock: HandClock
) -> None:
    (tmp_path / "s1").mkdir()
    pin = init(tmp_path, "s1", clock)
    one = opened(settings(tmp_path, "s1", is_server=True), clock)
    assert one.own_authority == pin
    with pytest.raises(NotFound, match="belongs to no cluster yet"):
        one.authority_pem()
    one.found(one.propose(), now_s=clock.wall())
    assert one.pin == pin
    two = founded(tmp_path, clock, "s2", secrets=one.secrets())
    for name in ("ca.crt", "ca.key", "sa.key", "sa.pub"):
        given = (tmp_path / "s2/pki" / name).read_bytes()
        assert given == (tmp_path / "s1/pki" / name).read_bytes()
    assert not (tmp_path / "s2/pki/apiserver.crt").exists()
    assert two.own_authority == pin


def test_waypost_init_on_a_member_takes_the_clusters_authority(
    tmp_path: Path, clock: HandClock
) -> None:
    one = founded(tmp_path, clock)
    assert one.secrets().pki == {}
    assert init(tmp_path, "s1", clock) == one.pin == one.own_authority
    pki = one.secrets().pki
    assert set(pki) == {"ca.crt", "ca.key", "sa.key", "sa.pub"}
    # A server that has some already keeps them.
    two = founded(tmp_path, clock, "s2", secrets=one.secrets())
    mine = (tmp_path / "s2/pki/sa.key").read_bytes()
    (tmp_path / "s1/pki/sa.key").unlink()
    (tmp_path / "s1/pki/sa.pub").unlink()
    init(tmp_path, "s1", clock)
    two.found(one.secrets(), now_s=clock.wall())
    assert (tmp_path / "s2/pki/sa.key").read_bytes() == mine


def test_who_joins_looks_at_what_the_server_shows(tmp_path: Path, clock: HandClock) -> None:
    server = founded(tmp_path, clock)
    other = founded(tmp_path / "elsewhere", clock)
    newcomer = opened(settings(tmp_path, "c1", is_server=False), clock)
    [serving] = shown(tmp_path, "s1", "serving")
    assert newcomer.check_server(serving, server.authority_pem()) == server.pin
    with pytest.raises(Unauthenticated):
        newcomer.check_server(serving, other.authority_pem())
    [store] = shown(tmp_path, "s1", "store")
    with pytest.raises(Unauthenticated):
        newcomer.check_server(store, server.authority_pem())
    clock.advance(2 * YEAR_S)
    with pytest.raises(Unauthenticated):
        newcomer.check_server(serving, server.authority_pem())
