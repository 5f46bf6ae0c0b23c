"""The client against a real agent: asyncio, Unix sockets, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import time
from pathlib import Path

import pytest

from waypost.client import api
from waypost.client.errors import UnexpectedResponse, Unreachable
from waypost.client.settings import ClientSettings, Overrides, TlsSettings, settings_from
from waypost.client.transport import AsyncClient, Client

from .conftest import Agent, Ask, free_ports

pytestmark = pytest.mark.needs("consul")


def _settings(agent: Agent) -> ClientSettings:
    return settings_from({}, overrides=Overrides(address=agent.address))


async def test_both_clients_read_the_same(agent: Agent) -> None:
    settings = _settings(agent)
    async with AsyncClient(settings) as client:
        assert await client.do(api.kv_put("sp ace/ü?", b"\x00\xff", flags=3))
        entry = await client.do(api.kv_get("sp ace/ü?"))
        nodes = await client.do(api.nodes())
    with Client(settings) as blocking:
        assert blocking.do(api.kv_get("sp ace/ü?")) == entry
        assert blocking.do(api.nodes()) == nodes
    assert entry is not None
    assert (entry.value, entry.flags) == (b"\x00\xff", 3)


async def test_a_watch_yields_every_change(agent: Agent) -> None:
    async with AsyncClient(_settings(agent)) as client, contextlib.AsyncExitStack() as stack:
        await client.do(api.kv_delete("followed"))
        changes = client.watch(api.kv_get("followed"), rng=random.Random(1))
        stack.push_async_callback(changes.aclose)
        async with asyncio.timeout(20):
            assert await anext(changes) is None
            for value in (b"one", b"two"):
                await client.do(api.kv_put("followed", value))
                entry = await anext(changes)
                assert entry is not None
                assert entry.value == value
            await client.do(api.kv_delete("followed"))
            assert await anext(changes) is None


async def test_errors_are_the_same(agent: Agent) -> None:
    nowhere = settings_from({}, overrides=Overrides(address="127.0.0.1:1"))
    secure = settings_from({}, overrides=Overrides(address=f"https://{agent.address}"))
    wrong = settings_from({}, overrides=Overrides(address=agent.address, datacenter="nowhere"))
    for one, kind in ((nowhere, Unreachable), (secure, Unreachable), (wrong, UnexpectedResponse)):
        with Client(one) as client, pytest.raises(kind) as blocking:
            client.do(api.nodes())
        async with AsyncClient(one) as client:
            with pytest.raises(kind) as waiting:
                await client.do(api.nodes())
        assert str(waiting.value) == str(blocking.value)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory):
    """An agent on a Unix socket and on HTTPS with client certificates; yields directory, socket and HTTPS port."""
    directory = tmp_path_factory.mktemp("secured")
    for command in (["ca", "create"], ["cert", "create", "-server"], ["cert", "create", "-client"]):
        subprocess.run(["consul", "tls", *command], cwd=directory, check=True, capture_output=True)
    http, https, server, lan, wan = free_ports(5)
    (directory / "agent.hcl").write_text(f"""
        addresses {{ http = "unix://{directory}/agent.sock" https = "127.0.0.1" }}
        ports {{ http = {http} https = {https} dns = -1 grpc = -1 server = {server} serf_lan = {lan} serf_wan = {wan} }}
        ca_file = "{directory}/consul-agent-ca.pem"
        cert_file = "{directory}/dc1-server-consul-0.pem"
        key_file = "{directory}/dc1-server-consul-0-key.pem"
        verify_incoming_https = true
    """)
    log = (directory / "log").open("wb")
    command = [
        "consul",
        "agent",
        "-dev",
        "-node=n1",
        "-bind=127.0.0.1",
        f"-config-file={directory}/agent.hcl",
    ]
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    log.close()
    try:
        settings = settings_from({}, overrides=Overrides(address=f"unix://{directory}/agent.sock"))
        deadline = time.monotonic() + 30
        while True:
            try:
                with Client(settings) as client:
                    if client.do(api.services()):
                        break
            except (Unreachable, UnexpectedResponse):
                pass
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.1)
        yield directory, directory / "agent.sock", https
    finally:
        process.terminate()
        process.wait(20)


async def test_unix_sockets(secured, waypost: Ask, consul: Ask) -> None:
    _, socket_path, _ = secured
    address = f"unix://{socket_path}"
    async with AsyncClient(settings_from({}, overrides=Overrides(address=address))) as client:
        assert [member.name for member in await client.do(api.members())] == ["n1"]
    for args in (["members"], ["kv", "get", "nope"]):
        env = {"CONSUL_HTTP_ADDR": address}
        assert waypost(*args, env=env) == consul(*args, env=env)


async def test_tls(secured: tuple[Path, Path, int], waypost: Ask, consul: Ask) -> None:
    directory, _, port = secured
    tls = TlsSettings(
        ca_file=f"{directory}/consul-agent-ca.pem",
        client_cert=f"{directory}/dc1-client-consul-0.pem",
        client_key=f"{directory}/dc1-client-consul-0-key.pem",
        server_name="server.dc1.consul",
    )
    async with AsyncClient(
        ClientSettings(scheme="https", host="127.0.0.1", port=port, tls=tls)
    ) as client:
        assert [member.name for member in await client.do(api.members())] == ["n1"]
    flags = [
        f"-http-addr=https://127.0.0.1:{port}", f"-ca-file={tls.ca_file}", f"-client-cert={tls.client_cert}",
        f"-client-key={tls.client_key}", f"-tls-server-name={tls.server_name}",
    ]  # fmt: skip
    assert waypost("members", *flags) == consul("members", *flags)
    # Without the CA, and with a name that the certificate does not have.
    for fewer in ([*flags[:1], *flags[2:]], [*flags[:4], "-tls-server-name=other"]):
        theirs, ours = consul("members", *fewer), waypost("members", *fewer)
        assert (ours.status, theirs.status) == (1, 1)
        assert ours.err.split("x509")[0] == theirs.err.split("x509")[0]
    # Without a client certificate: refused by the agent, not by us.
    refused = waypost("members", *flags[:2], flags[4])
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "certificate" in refused.err
