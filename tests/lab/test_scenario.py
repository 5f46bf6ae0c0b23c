"""The whole platform on three hosts of this machine, as an operator sets it up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .lab import Lab, known_labs, sweep
from .scenario import run

pytestmark = [pytest.mark.slow, pytest.mark.needs("docker", "etcd", "ip", "dig", "busybox")]


@pytest.mark.needs("nginx")
@pytest.mark.timeout(300)
def test_the_scenario_on_three_hosts(capfd):
    assert run(hosts=3) == 0, capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.timeout(60)
def test_nothing_stays_behind_of_a_lab_that_is_ended(number):
    source = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from lab.lab import Lab\n"
        "with Lab(hosts=2) as lab:\n"
        "    lab[0].spawn('sleeper', ['sleep', '1000'])\n"
        "    print(lab.id, *(one.process.pid for one in lab), flush=True)\n"
        "    time.sleep(60)\n"
    )
    tests = os.fspath(Path(__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", source, tests], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    name, *pids = child.stdout.readline().decode().split()
    assert len(pids) == 2
    child.send_signal(number)
    child.communicate(timeout=30)
    if number == signal.SIGKILL:
        sweep()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert name not in {lab.id for lab in known_labs()}
    assert not list(Path("/sys/fs/cgroup").glob(f"*{name}")) + list(
        Path("/dev/shm").glob(f"*{name}")
    )
    assert name.encode() not in Path("/proc/self/mountinfo").read_bytes()


@pytest.mark.timeout(60)
def test_hosts_can_be_cut_healed_slowed_and_lose_power():
    def answers(lab, place=0, target=1):
        ping = ("busybox", "ping", "-c", "1", "-W", "1", lab[target].address)
        done = lab[place].run(*ping, check=False)
        return float(done.out.partition("time=")[2].split()[0]) if not done.status else None

    with Lab(hosts=2) as lab:
        assert answers(lab) is not None
        lab[1].cut()
        assert answers(lab) is None
        lab[1].heal()
        assert answers(lab) is not None
        lab[1].slow(0.08)
        assert answers(lab) >= 80
        lab[1].heal()
        assert answers(lab) < 80
        for break_one_way in (lab[1].mute, lab[1].deafen):
            break_one_way()
            assert answers(lab) is None
            assert answers(lab, 1, 0) is None
            lab[1].heal()
            assert answers(lab) < 80
        heard = ("sh", "-c", "grep eth0 /proc/net/dev | awk '{print $3}'")
        lab[1].mute()
        before = int(lab[1].run(*heard).out)
        answers(lab)
        assert int(lab[1].run(*heard).out) > before, "what others send arrives"
        lab[1].heal()
        lab[1].slow(0.0, loss=1.0)
        assert answers(lab) is None
        lab[1].heal()
        lab[1].run("sh", "-c", "echo kept >/var/lib/waypost/file; echo lost >/run/file")
        lab[1].power_off()
        assert answers(lab) is None
        lab[1].boot()
        assert answers(lab) is not None
        assert lab[1].run("cat", "/var/lib/waypost/file").out == "kept\n"
        assert lab[1].run("cat", "/run/file", check=False).status
        assert lab[0].run("hostname").out == "consul-1\n"
        assert lab[1].run("cat", "/etc/resolv.conf").out.startswith("nameserver 127.0.0.1")
