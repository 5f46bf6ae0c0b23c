"""What a start does not pay for."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = "cryptography jwt OpenSSL yaml aiohttp prometheus_client dns waypost.store.etcd waypost.drivers.render.runner"


@pytest.mark.parametrize("module", ["waypost.agent.main", "waypost.cli.kv", "waypost.cli.members"])
def test_what_only_some_agents_need_is_not_loaded(module: str):
    code = f"import sys, {module}; print(*(one for one in {HEAVY.split()!r} if one in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
