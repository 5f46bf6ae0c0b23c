"""Shared by every test: what a test needs that may not be installed, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PARTS = {
    "docker": ("dockerd", "docker", "iptables"),
    "nginx": ("nginx",),
    "dig": ("dig",),
    "dnsmasq": ("dnsmasq",),
    "resolved": ("/usr/lib/systemd/systemd-resolved",),
    "consul": ("consul",),
    "chromium": ("chromium", "chromedriver"),
    "wrk": ("wrk",),
    "dnsperf": ("dnsperf",),
    "ip": ("ip",),
    "busybox": ("busybox",),
    "openssl": ("openssl",),
    "kubectl": ("kubectl",),
    "etcd": ("etcd",),
    "prometheus": ("prometheus", "promtool"),
}
"""The programs that each part consists of. Without all of them a test skips; under CI it fails."""

UNPACKAGED = {"consul", "resolved"}
"""Not every system has a package of it, or it would take over the machine's own resolver: its tests run where it can be
had, under CI as well."""

REAL_PARTS = ("contract", "faults", "integration", "lab")
"""Tests below these folders run real stores, engines, proxies and browsers, on a machine that others may be using too."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under CI, give what depends on other programs' speed a second try. It is counted and named as a rerun."""
    if not os.environ.get("CI"):
        return
    folders = tuple(config.rootpath / "tests" / name for name in REAL_PARTS)
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in folders):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=2))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep tests with real parts from running beside each other; all others go file by file to whom has time."""
    from xdist.scheduler import LoadScopeScheduling

    folders = tuple(f"tests/{name}/" for name in REAL_PARTS)

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "real parts" if nodeid.startswith(folders) else nodeid.partition("::")[0]

    return Scheduling(config, log)


def missing(part: str) -> str | None:
    """Return why `part` cannot be used here, or None."""
    for program in PARTS[part]:
        if shutil.which(program) is None and not (Path("/usr/sbin") / program).exists():
            return f"{program} is not installed"
    if part in ("docker", "ip") and os.geteuid() != 0:
        return "needs root"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("long") and not os.environ.get("WAYPOST_ALL_FAULTS"):
        pytest.skip("takes minutes with its like; WAYPOST_ALL_FAULTS=1 runs it")
    for marker in item.iter_markers("needs"):
        for part in marker.args:
            reason = missing(part)
            if reason is not None:
                if os.environ.get("CI") and part not in UNPACKAGED:
                    pytest.fail(f"{part}: {reason}", pytrace=False)
                pytest.skip(f"{part}: {reason}")
