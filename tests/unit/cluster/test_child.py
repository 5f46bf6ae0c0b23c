"""The store's process: which program, with which flags, what its log says."""

from __future__ import annotations

import asyncio
import logging
import stat
from pathlib import Path

import pytest

from waypost.base.clock import SystemClock
from waypost.base.errors import Malformed
from waypost.cluster.child import (
    Binary,
    EtcdChild,
    arguments,
    find_binary,
    has_data,
    local_endpoint,
    parse_line,
    remove_data,
)
from waypost.cluster.settings import ClusterSettings
from waypost.store.etcd.tls import EtcdTls

TLS = EtcdTls(ca_file=Path("/c/ca"), certificate_file=Path("/c/crt"), key_file=Path("/c/key"))


def flags(version: tuple[int, int, int] = (3, 4, 23), **changes: object) -> dict[str, str]:
    values = {"address": "192.0.2.1", "bind": "", **changes}
    told = ClusterSettings(
        data_dir=Path("/data"),
        node="n",
        node_id="id",
        is_server=True,
        address=str(values["address"]),
        bind=str(values["bind"]),
    )
    found = arguments(
        told, version=version, tls=TLS, initial_cluster="id=u", is_new=True, token="t"
    )
    return dict(one.removeprefix("--").split("=", 1) for one in found)


def test_a_store_is_closed_to_strangers() -> None:
    found = flags()
    assert found["client-cert-auth"] == found["peer-client-cert-auth"] == "true"
    assert found["trusted-ca-file"] == found["peer-trusted-ca-file"] == "/c/ca"
    assert found["peer-cert-allowed-cn"] == "server"
    at = ["https://127.0.0.1:8303", "https://192.0.2.1:8303", "unix://etcd:1"]
    assert found["listen-client-urls"].split(",") == at
    assert not [value for value in found.values() if value.startswith("http:")]


@pytest.mark.parametrize(
    ("bind", "urls"),
    [
        ("0.0.0.0", "https://0.0.0.0:8303"),
        ("127.0.0.1", "https://127.0.0.1:8303"),
        ("2001:db8::1", "https://127.0.0.1:8303,https://[2001:db8::1]:8303"),
    ],
)
def test_no_address_twice(bind: str, urls: str) -> None:
    assert flags(bind=bind)["listen-client-urls"] == f"{urls},unix://etcd:1"


def test_flags_that_later_versions_renamed() -> None:
    old, new = flags((3, 5, 24)), flags((3, 6, 0))
    assert old["experimental-peer-skip-client-san-verification"] == "true"
    assert new["peer-skip-client-san-verification"] == "true"
    assert new["feature-gates"] == "InitialCorruptCheck=true"
    assert not [name for name in new if name.startswith("experimental-")]


def program(folder: Path, text: str) -> str:
    path = folder / "etcd"
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return str(path)


async def test_a_program_is_looked_at_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Malformed, match="install the package etcd-server"):
        await find_binary(str(tmp_path / "none"))
    for text, reason in (
        ("etcd Version: 3.3.25", "etcd 3.3.25: too old"),
        ("etcd Version: 3.5.1", "etcd 3.5.1: can lose data after a crash"),
        ("hello", "does not say which version of etcd it is"),
    ):
        with pytest.raises(Malformed, match=reason):
            await find_binary(program(tmp_path, text))
    found = await find_binary(program(tmp_path, "etcd Version: 3.5.24"))
    assert (found.version, found.text) == ((3, 5, 24), "3.5.24")
    assert not caplog.records
    await find_binary(program(tmp_path, "etcd Version: 3.5.9"))
    assert "before an upgrade to 3.6" in caplog.text


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        (b'{"level":"warn","msg":"slow"}\n', logging.DEBUG, "slow"),
        (b'{"level":"error","msg":"bad","error":"why"}\n', logging.WARNING, "bad: why"),
        (b'{"level":"fatal","msg":"end"}\n', logging.ERROR, "end"),
        (b"panic: at the disk\n", logging.DEBUG, "panic: at the disk"),
        (b"\xff!\n", logging.DEBUG, "\\ufffd!"),
    ],
)
def test_what_etcd_says(line: bytes, level: int, text: str) -> None:
    assert parse_line(line) == (level, text)


def test_data_is_found_and_removed_in_one_step(tmp_path: Path) -> None:
    folder = tmp_path / "etcd"
    assert not has_data(folder)
    (folder / "member" / "wal").mkdir(parents=True)
    assert not has_data(folder)
    (folder / "member" / "wal" / "0.wal").touch()
    assert has_data(folder)
    # What an earlier attempt left behind is no hindrance.
    (tmp_path / "etcd.removed" / "member").mkdir(parents=True)
    remove_data(folder)
    assert list(tmp_path.iterdir()) == []
    remove_data(folder)


def at(data_dir: Path) -> ClusterSettings:
    return ClusterSettings(
        data_dir=data_dir, node="n", node_id="id", is_server=True, address="192.0.2.1", bind=""
    )


def test_its_own_agent_comes_by_a_socket_if_the_path_is_not_too_long(tmp_path: Path) -> None:
    assert local_endpoint(at(Path("/data"))) == "unix:/data/cluster/local/etcd:1"
    assert local_endpoint(at(tmp_path / ("long" * 25))) == "https://127.0.0.1:8303"


async def test_the_sockets_directory_is_closed_and_the_old_socket_gone(tmp_path: Path) -> None:
    data, local = tmp_path / "etcd", tmp_path / "local"
    local.mkdir(mode=0o755)
    (local / "etcd:1").touch()
    script = tmp_path / "program"
    script.write_text("#!/bin/sh\n[ ! -e etcd:1 ] && pwd >started\nexec sleep 30\n")
    script.chmod(0o755)
    child = EtcdChild(Binary(script, (3, 5, 24)), data, clock=SystemClock())
    assert await child.start(())
    try:
        async with asyncio.timeout(5.0):
            while not (local / "started").exists():
                await asyncio.sleep(0.01)
        assert stat.S_IMODE(local.stat().st_mode) == 0o700
    finally:
        await child.stop()
