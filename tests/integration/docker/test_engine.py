"""The fixture takes back what it makes, also of an engine that was killed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.needs("docker", "busybox")]


def links() -> str:
    return subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout


def test_nothing_is_left(running_engine: Any) -> None:
    with running_engine() as engine:
        root = str(engine.root)
        engine.docker("network", "create", "inner")
        engine.run("--name", "web", "--network", "inner", "-p", f"{engine.port(0)}:80")
        bridges = [engine.bridge, *engine._user_bridges()]
        assert len(bridges) == 2
        assert all(name in links() for name in bridges)
        engine.kill()
    assert not any(name in links() for name in bridges)
    assert root not in Path("/proc/self/mountinfo").read_text()
    assert not Path(root).exists()
    running = [p for p in Path("/proc").iterdir() if p.name.isdigit()]
    assert not any(root.encode() in _command(folder) for folder in running)


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""
