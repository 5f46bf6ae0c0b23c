"""Before `waypost init`: the loopback port is open, for kubectl as for everybody on the machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def address(tmp_path_factory, free_ports, wait_for):
    folder = tmp_path_factory.mktemp("open")
    http, server = free_ports(2)
    config = folder / "agent.json"
    config.write_text(
        f'{{"ports": {{"http": {http}, "dns": -1, "server": {server}}},'
        '"balancer": {"enabled": false}, "docker": {"enabled": false}}'
    )
    log = folder / "log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "waypost",
                "agent",
                "-dev",
                f"-config-file={config}",
                "-node=n1",
            ],
            stdout=out,
            stderr=out,
        )
    try:
        wait_for(log, process)
        yield f"http://127.0.0.1:{http}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        shutil.rmtree(folder)


@pytest.mark.parametrize("wanted", ["new", "1.20"])
def test_no_credential_is_needed(address, find_kubectl, tmp_path, wanted):
    path = find_kubectl(wanted)

    def run(*args):
        command = [
            path,
            "--kubeconfig=/dev/null",
            f"--cache-dir={tmp_path}",
            f"--server={address}",
            *args,
        ]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(tmp_path)},
            timeout=30,
        )

    assert "kube-system" in run("get", "ns").stdout
    made = run("create", "configmap", f"c-{wanted.replace('.', '')}", "--from-literal=k=v")
    assert made.stdout.endswith(" created\n"), made
    assert run("auth", "can-i", "delete", "secrets").stdout == "yes\n"
