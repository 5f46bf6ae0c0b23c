"""The program's outermost edge: which command, which exit status, no tracebacks."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from waypost import __version__
from waypost.base.errors import Malformed
from waypost.cli import main as program
from waypost.cli.completion import candidates


def _modules():
    found = []
    for name in program.COMMANDS:
        module = "waypost.cli." + name.replace("-", "_")
        if importlib.util.find_spec(module) is not None:
            found.append(pytest.param(name, module, id=name))
    return found


@pytest.mark.parametrize(("name", "module"), _modules())
def test_every_command_keeps_the_contract(name, module):
    found = importlib.import_module(module)
    summary = program.COMMANDS[name]
    assert summary == found.SUMMARY
    assert callable(found.run)


@pytest.mark.parametrize(("name", "module"), _modules())
def test_every_command_has_help(name, module, capsys):
    assert program.main([name, "-h"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"Usage: waypost {name}")
    assert shown.err == ""


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        ([], 127),
        (["nope"], 127),
        (["-h"], 0),
        (["--help"], 0),
        (["-version"], 0),
        (["version", "-x"], 1),
    ],
)
def test_exit_status(argv, status, capsys):
    assert program.main(argv) == status
    shown = capsys.readouterr()
    assert bool(shown.out) == (status == 0)
    assert bool(shown.err) == (status != 0)


def test_a_misspelt_command_gets_a_suggestion(capsys):
    assert program.main(["member"]) == 127
    assert 'Did you mean "members"?' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "text"),
    [
        (Malformed("line 3 is wrong"), 1, "line 3 is wrong\n"),
        (
            ValueError("two\nlines"),
            1,
            "Error: ValueError: two lines (WAYPOST_DEBUG=1 shows where)\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_whatever_happens_is_one_line(raised, status, text, monkeypatch, capsys):
    def fail(_argv):
        raise raised

    monkeypatch.setattr("waypost.cli.version.run", fail)
    monkeypatch.delenv("WAYPOST_DEBUG", raising=False)
    assert program.main(["version"]) == status
    assert capsys.readouterr().err == text


def test_debug_shows_where(monkeypatch):
    def fail(_argv):
        raise ValueError("here")

    monkeypatch.setattr("waypost.cli.version.run", fail)
    monkeypatch.setenv("WAYPOST_DEBUG", "1")
    with pytest.raises(ValueError, match="here"):
        program.main(["version"])


def test_version(capsys):
    assert program.main(["version"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"waypost v{__version__}"
    assert program.main(["version", "-format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["Version"] == __version__
    assert program.main(["version", "-format=xml"]) == 1


def test_version_imports_nothing_heavy():
    code = (
        "import sys; from waypost.cli.main import main; main(['version']);"
        "print(sorted({'msgspec', 'http.client', 'aiohttp', 'asyncio', 'json'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away_is_no_failure():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "waypost.cli.main", "-h"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mem"], ["members"]),
        (["kv", ""], ["delete", "export", "get", "import", "put"]),
        (["kv", "get", "-det"], ["-detailed"]),
        (["kv", "get", "--sep"], ["--separator="]),
        (["operator", "raft", "list"], ["list-peers"]),
        (["kv", "nope", "-"], []),
        (["nope", "-"], []),
        (["kv", "get", "some"], []),
    ],
)
def test_completion(words, expected):
    assert candidates(words) == expected
