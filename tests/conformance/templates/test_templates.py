"""Every recorded template through the whole runner: output file, exit status, error text, standard output."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path

import pytest

from waypost.cli.template import EXIT_INTERRUPTED, serve
from waypost.cli.template_settings import read_options

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from deviations import ACCEPTED, NO_VAULT  # noqa: E402
from world import DATA, load  # noqa: E402

CATALOG, WORLD = load()
CASES = sorted(path.stem for path in DATA.glob("*.tmpl"))


def test_all_cases_are_here():
    assert len(CASES) == 207
    assert set(ACCEPTED) | set(NO_VAULT) <= set(CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case not in NO_VAULT])
async def test_case(case, tmp_path, monkeypatch, caplog, capfdbinary):
    meta = json.loads((DATA / f"{case}.meta.json").read_text(encoding="utf-8"))
    recorded = DATA / f"{case}.expected"
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{case}.tmpl").write_bytes((DATA / f"{case}.tmpl").read_bytes())
    for name, text in CATALOG["files"].items():
        (tmp_path / name).write_bytes(text.encode())
    stanza = {**(meta.get("options") or {}), "source": f"{case}.tmpl", "destination": "out"}
    plan = read_options(
        {
            "template": [stanza],
            "once": True,
            "dry": "-dry" in (meta.get("args") or []),
            "consul": {"retry": {"enabled": False}},
        },
        env={},
    )
    env = {"PATH": os.environ["PATH"], **CATALOG["env"], **(meta.get("env") or {})}
    monkeypatch.setattr(logging.getLogger("waypost"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="waypost")
    try:
        async with asyncio.timeout(0.5 if meta["timed_out"] else 20):
            status = await serve(plan, source=WORLD, env=env)
    except TimeoutError:
        status = EXIT_INTERRUPTED

    out = tmp_path / "out"
    written = out.read_bytes() if out.exists() else None
    if case in ACCEPTED:
        assert (status, written) == (0, ACCEPTED[case][1])
        return
    assert status == meta["exit"]
    assert written == (recorded.read_bytes() if recorded.exists() else None)
    if meta["timed_out"]:
        return
    levels = {"WARNING": "WARN", "ERROR": "ERR"}
    lines = []
    for record in caplog.records:
        lines += f"[{levels[record.levelname]}] {record.getMessage()}".splitlines()
    assert lines == meta["stderr"]
    shown = capfdbinary.readouterr().out.decode()
    assert shown == meta.get("stdout", "")
