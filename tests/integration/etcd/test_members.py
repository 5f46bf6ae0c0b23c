"""Membership, maintenance and mutual TLS of real members."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from waypost.base.errors import Conflict, NoLeader, NotFound, Unavailable
from waypost.store.engine import Put, Txn
from waypost.store.etcd import EtcdTls
from waypost.store.etcd import tls as tls_module

from .certificates import Authority
from .conftest import in_thread, make, opened
from .server import EtcdCluster, EtcdServer

pytestmark = pytest.mark.needs("etcd")


async def test_a_member_joins_leads_and_goes(three: EtcdCluster, directory: Path) -> None:
    async with opened(three.urls) as engine:
        await engine.commit(Txn(then=(Put(b"a", b"1"),)))
        members = engine.members
        new = EtcdServer("m3", directory)
        added = await members.add_learner(new.peer_url)
        assert (added.is_learner, added.is_started, added.peer_urls) == (
            True,
            False,
            (new.peer_url,),
        )
        with pytest.raises((Conflict, Unavailable)):
            await members.promote(added.id)
        initial = ",".join(f"{s.name}={s.peer_url}" for s in (*three.servers, new))
        new.configure(initial, state="existing", heartbeat_ms=50)
        new.start()
        three.servers.append(new)
        for _ in range(100):
            try:
                await members.promote(added.id)
                break
            except (Conflict, NoLeader):
                await asyncio.sleep(0.1)
        listed = {m.id: m for m in await members.list()}
        assert len(listed) == 4
        assert (listed[added.id].is_learner, listed[added.id].name) == (False, "m3")
        await in_thread(three.wait_ready)
        await members.move_leader(added.id)
        status = await members.endpoint_status(new.url)
        assert status.leader_id == status.member_id == added.id
        assert status.version.startswith("3.")
        assert status.revision >= 2
        assert status.db_size_bytes > 0
        await members.move_leader(next(i for i in listed if i != added.id))
        await members.remove(added.id)
        assert len(await members.list()) == 3
        with pytest.raises(NotFound):
            await members.remove(added.id)
        assert await members.alarms() == ()
        for server in three.servers[:3]:
            await members.defragment(server.url)
        assert (await engine.range(b"a")).items[0].value == b"1"


async def test_a_snapshot_can_be_restored_from(one: EtcdCluster, directory: Path) -> None:
    async with opened(one.urls) as engine:
        value = os.urandom(100_000)
        for i in range(5):
            await engine.commit(Txn(then=(Put(b"%d" % i, value),)))
        blobs = [blob async for blob in engine.members.snapshot(one.urls[0])]
    file = directory / "snapshot"
    file.write_bytes(b"".join(blobs))
    assert len(blobs) > 5
    check = subprocess.run(
        ["etcdctl", "snapshot", "restore", str(file), "--data-dir", str(directory / "restored")],
        env=os.environ | {"ETCDCTL_API": "3"},
        capture_output=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr


async def test_over_mutual_tls_with_certificates_that_are_renewed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls_module, "LOOK_S", 0.0)
    caplog.set_level("INFO", logger="waypost.store.etcd.tls")
    authority = Authority(directory / "pki")
    server, client = authority.issue("server"), authority.issue("client")
    stranger = Authority(directory / "other").issue("stranger")
    cluster = EtcdCluster(directory / "data", tls=server)
    try:
        await in_thread(cluster.start)
        async with opened(cluster.urls, tls=client) as engine:
            watch = engine.watch(after=await engine.read_index())
            await engine.commit(Txn(then=(Put(b"a", b"1"),)))
            assert (await anext(watch)).events[0].kv.key == b"a"
            client.certificate_file.write_bytes(b"half")
            await engine.commit(Txn(then=(Put(b"a", b"2"),)))
            assert "not read again" in caplog.text
            authority.issue("client")
            await engine.commit(Txn(then=(Put(b"a", b"3"),)))
            assert "certificates for etcd read again" in caplog.text
        monkeypatch.setattr("waypost.store.etcd.engine.TIMEOUT_S", 1.0)
        wrong = EtcdTls(
            ca_file=authority.file,
            certificate_file=stranger.certificate_file,
            key_file=stranger.key_file,
        )
        with pytest.raises(NoLeader):
            await make(cluster.urls, tls=wrong).open()
        with pytest.raises(NoLeader, match="certificate verify failed"):
            await make(cluster.urls, tls=stranger).open()
        missing = EtcdTls(ca_file=authority.file, certificate_file=directory / "no", key_file=directory / "no")  # fmt: skip
        with pytest.raises(Unavailable, match="cannot be used"):
            await make(cluster.urls, tls=missing).open()
    finally:
        cluster.stop()
