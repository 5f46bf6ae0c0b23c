"""`waypost setup dns` on a machine with a real agent, the real libc and a real Docker engine."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .machine import ADDRESS, SERVICE, UPSTREAM, Machine, machine

pytestmark = [pytest.mark.needs("ip"), pytest.mark.timeout(300)]

BEFORE = f"search lan\nnameserver {UPSTREAM}\noptions timeout:1 rotate\n"
RESOLVED = "/usr/lib/systemd/systemd-resolved"
RECORD = "/var/lib/waypost/setup/dns.json"


AS_FILE_AND_AS_MOUNT = pytest.mark.parametrize(
    "host", [False, True], ids=["file", "mount"], indirect=True
)


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with machine(resolv_conf_is_mount=getattr(request, "param", False)) as made:
        made.write(made.resolv_conf, BEFORE)
        made.upstream()
        yield made


@pytest.fixture
def engines() -> ModuleType:
    """The module of test engines, which lies with Docker's tests."""
    name = "waypost_tests_docker_engine"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "docker/engine.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def listening(*addresses: str) -> dict[str, Any]:
    return {"addresses": {"dns": " ".join(addresses)}, "ports": {"dns": 53}}


@AS_FILE_AND_AS_MOUNT
def test_the_machines_own_resolver(host: Machine) -> None:
    assert host.addresses("consul.service.lan") == [UPSTREAM]
    assert host.addresses("consul.service.dc1.consul") == []

    refused = host.setup("-only=host", check=False)
    assert refused.returncode == 1
    assert "No agent answers DNS for consul" in refused.stderr

    agent = host.agent(f"-bind={ADDRESS}", **listening("127.0.0.1"))
    shown = host.setup("-only=host", "-dry-run")
    assert (
        "+nameserver 127.0.0.1\n nameserver 10.9.8.53\n-options timeout:1 rotate\n" in shown.stdout
    )
    assert shown.stdout.endswith("Nothing was changed (-dry-run).\n")
    assert host.resolv_conf.read_text() == BEFORE
    assert host.run("ls", "/var/lib").stdout == ""

    host.resolv_conf.chmod(0o664)
    os.chown(host.resolv_conf, 0, 4)
    done = host.setup("-only=host")
    assert f"consul.service.dc1.consul is {ADDRESS} through this machine's resolver" in done.stdout
    after = host.resolv_conf.read_text()
    status = host.resolv_conf.stat()
    assert (status.st_mode & 0o777, status.st_gid) == (0o664, 4)
    assert host.run("stat", "-c%a", RECORD).stdout == "600\n"

    # Names of the domain turn over the instances; other names go on to the server that was there before.
    host.register("web", SERVICE)
    first = [host.addresses("web.service.dc1.consul")[0] for _ in SERVICE]
    assert set(first) == set(SERVICE)
    assert host.addresses("consul.service.lan") == [UPSTREAM]
    assert host.addresses("consul.service") == [UPSTREAM]  # by the search list

    assert "Nothing to change." in host.setup("-only=host").stdout
    assert host.resolv_conf.read_text() == after

    # Started again it finds the same recursors, and never itself.
    host.stop(agent)
    assert host.addresses("consul.service.lan") == [UPSTREAM]
    agent = host.agent(f"-bind={ADDRESS}", **listening("127.0.0.1", ADDRESS))
    with host.only_server("127.0.0.1"):
        assert host.addresses("consul.service.lan") == [UPSTREAM]

    # With another address the file is changed as if from the beginning.
    host.setup("-only=host", f"-address={ADDRESS}")
    assert host.resolv_conf.read_text() == after.replace("127.0.0.1", ADDRESS)
    assert host.addresses("consul.service.dc1.consul") == [ADDRESS]

    assert host.setup("-undo", "-dry-run").stdout.endswith("Nothing was changed (-dry-run).\n")
    host.setup("-undo")
    assert host.resolv_conf.read_text() == BEFORE
    assert host.resolv_conf.stat().st_mode & 0o777 == 0o664
    assert host.addresses("consul.service.dc1.consul") == []
    assert host.run("find", "/var/lib", "-type", "f").stdout == ""
    assert "Nothing to undo" in host.setup("-undo").stdout


def test_other_programs_lines_survive_undo(host: Machine) -> None:
    host.agent(f"-bind={ADDRESS}", **listening("127.0.0.1"))
    host.setup("-only=host")
    text = host.resolv_conf.read_text()
    host.write(host.resolv_conf, text.replace("search lan", "search lan home"))
    undone = host.setup("-undo")
    assert "was changed since" in undone.stdout
    assert host.resolv_conf.read_text() == BEFORE.replace("search lan", "search lan home")


def test_an_agent_on_another_port_is_told_what_is_missing(host: Machine) -> None:
    host.agent(f"-bind={ADDRESS}")
    refused = host.setup("-only=host", check=False)
    assert refused.returncode == 1
    assert refused.stderr == (
        "The agent answers DNS on port 8600, but resolv.conf cannot name a port. Start it with -dns-port=53 (ports.dns in its"
        " configuration) and repeat this.\n"
    )
    assert host.resolv_conf.read_text() == BEFORE


def test_whoever_is_not_root_changes_nothing(host: Machine) -> None:
    host.agent(f"-bind={ADDRESS}", **listening("127.0.0.1"))
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    flags = (sys.executable, "-m", "waypost", "setup", "dns", "-only=host")
    refused = host.run(*as_nobody, *flags, check=False)
    assert refused.returncode == 1
    assert "run it as root" in refused.stderr
    assert "+nameserver 127.0.0.1" in host.run(*as_nobody, *flags, "-dry-run").stdout
    assert host.resolv_conf.read_text() == BEFORE


def eventually(probe: Callable[[], Any], wanted: Any) -> None:
    deadline = time.monotonic() + 10
    while (found := probe()) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@pytest.mark.needs("resolved")
def test_systemd_resolved_sends_the_domains_names_on(
    prepare_resolved: Callable[[Machine], None],
) -> None:
    with machine(mounts=("mount -t tmpfs none /run",)) as host:
        prepare_resolved(host)
        host.upstream()
        resolved = host.start(RESOLVED)
        eventually(lambda: host.addresses("consul.service.lan"), [UPSTREAM])

        # Its own servers would be asked for the domain's names as well.
        agent = host.agent(f"-bind={ADDRESS}")
        refused = host.setup("-only=host", check=False)
        assert f"Start it with -recursor={UPSTREAM}" in refused.stderr
        host.stop(agent)
        host.agent(f"-bind={ADDRESS}", f"-recursor={UPSTREAM}")

        done = host.setup("-only=host")
        assert (
            "Left to you: restart systemd-resolved" in done.stdout
        )  # there is no init system here
        host.stop(resolved)
        resolved = host.start(RESOLVED)
        eventually(lambda: host.addresses("consul.service.dc1.consul"), [ADDRESS])
        assert host.addresses("consul.service.lan") == [UPSTREAM]
        again = host.setup("-only=host").stdout
        assert "Nothing to change." in again
        assert f"consul.service.dc1.consul is {ADDRESS}" in again

        host.setup("-undo")
        assert not (host.etc / "systemd/resolved.conf.d").exists()
        host.stop(resolved)
        host.start(RESOLVED)
        eventually(lambda: host.addresses("consul.service.lan"), [UPSTREAM])
        assert host.addresses("consul.service.dc1.consul") == []


@pytest.fixture
def prepare_resolved() -> Callable[[Machine], None]:
    def prepare(host: Machine) -> None:
        host.resolv_conf.unlink()
        host.resolv_conf.symlink_to("../run/systemd/resolve/stub-resolv.conf")
        host.write(host.etc / "systemd/resolved.conf", f"[Resolve]\nDNS={UPSTREAM}\nDNSSEC=no\n")
        shutil.rmtree(host.etc / "systemd/resolved.conf.d", ignore_errors=True)
        with (host.etc / "passwd").open("a") as file:
            file.write("systemd-resolve:x:64123:64123::/:/usr/sbin/nologin\n")
        with (host.etc / "group").open("a") as file:
            file.write("systemd-resolve:x:64123:\n")
        host.run("install", "-d", "-o64123", "-g64123", "/run/systemd/resolve")

    return prepare


@pytest.mark.needs("dnsmasq")
def test_dnsmasq_sends_the_domains_names_on() -> None:
    with machine(mounts=("mount -t tmpfs none /run", "mkdir /run/dnsmasq")) as host:
        host.write(host.resolv_conf, "nameserver 127.0.0.1\n")
        drop_ins = host.etc / "dnsmasq.d"
        shutil.rmtree(drop_ins, ignore_errors=True)
        drop_ins.mkdir()
        command = (
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--conf-dir=/etc/dnsmasq.d",
            "--pid-file=/run/dnsmasq/dnsmasq.pid", "--no-resolv", f"--server={UPSTREAM}",
            "--listen-address=127.0.0.1", "--bind-interfaces", "--stop-dns-rebind",
            "--rebind-domain-ok=lan", "--user=root",
        )  # fmt: skip
        host.upstream()
        dnsmasq = host.start(*command)
        eventually(lambda: host.addresses("consul.service.lan"), [UPSTREAM])
        host.agent(f"-bind={ADDRESS}")

        # There is no init system here: what restarts dnsmasq may fail, and says so.
        host.setup("-only=host", check=False)
        assert "server=/consul/127.0.0.1#8600\n" in (drop_ins / "waypost.conf").read_text()
        host.stop(dnsmasq)
        dnsmasq = host.start(*command)
        eventually(lambda: host.addresses("consul.service.dc1.consul"), [ADDRESS])
        assert host.addresses("consul.service.lan") == [UPSTREAM]

        # It answers for the domain now, but is not the agent.
        again = host.setup("-only=host").stdout
        assert "Nothing to change." in again
        host.setup("-undo", check=False)
        assert list(drop_ins.iterdir()) == []


@pytest.mark.needs("docker", "busybox")
def test_containers_ask_the_agent(engines: ModuleType) -> None:
    with machine() as host:
        host.write(host.resolv_conf, BEFORE)
        before = '{\n  "log-level": "warn",\n  "labels": ["a=b"]\n}'
        host.write(host.daemon_json, before)
        host.upstream()
        engine = engines.Engine(netns=host.netns)
        engine._flags.append(f"--config-file={host.daemon_json}")
        try:
            engine.start()
            host.agent(f"-bind={ADDRESS}", **listening("127.0.0.1", engine.gateway))
            host.register("web", SERVICE)

            # The engine's own command line tells which file it reads.
            done = host.setup()
            assert f"Changed {host.daemon_json}" in done.stdout
            assert "restart the Docker engine" in done.stdout
            assert json.loads(host.daemon_json.read_text()) == {
                "dns": [engine.gateway],
                "log-level": "warn",
                "labels": ["a=b"],
            }
            engine.stop()
            engine.start()

            def in_container(*command: str) -> str:
                return str(engine.docker("run", "--rm", engines.IMAGE, *command))

            assert f"nameserver {engine.gateway}" in in_container("cat", "/etc/resolv.conf")
            assert ADDRESS in in_container("nslookup", "consul.service.dc1.consul")
            assert UPSTREAM in in_container("nslookup", "consul.service.lan")
            pinged = {
                in_container("ping", "-c1", "-W2", "web.service.dc1.consul")
                .partition("(")[2]
                .partition(")")[0]
                for _ in SERVICE
            }
            assert pinged == set(SERVICE)

            assert "Nothing to change." in host.setup().stdout
            host.setup("-undo")
            assert host.daemon_json.read_text() == before
            assert host.resolv_conf.read_text() == BEFORE
            engine.stop()
            engine.start()
            assert engine.gateway not in in_container("cat", "/etc/resolv.conf")
        finally:
            engine.close()


def test_settings_that_docker_would_not_start_with_are_refused(host: Machine) -> None:
    host.agent(f"-bind={ADDRESS}", **listening("127.0.0.1", ADDRESS))
    host.write(host.daemon_json, '{"labels": ["a=b"],}')
    refused = host.setup(check=False)
    assert refused.returncode == 1
    assert "/etc/docker/daemon.json is no valid JSON" in refused.stderr
    assert host.resolv_conf.read_text() == BEFORE
