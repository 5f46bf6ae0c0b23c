"""The example files are what they say: the agent takes them."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

from waypost.cli.agent import AgentFlags, overrides
from waypost.cli.flags import parse
from waypost.cli.main import main

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_configuration_is_valid(capsys):
    assert main(["validate", str(EXAMPLES / "waypost.hcl")]) == 0
    assert "valid" in capsys.readouterr().out


def test_the_unit_starts_an_agent_with_flags_that_exist():
    program, command, *flags = shlex.split(_unit()["ExecStart"])
    assert (Path(program).name, command) == ("waypost", "agent")
    settings, rest = parse(AgentFlags, flags)
    assert rest == []
    assert overrides(settings)["data_dir"] == "/var/lib/waypost"
    assert settings.config_dir == ("/etc/waypost",)


def test_the_unit_leaves_nginx_alone_when_the_agent_crashes():
    unit = _unit()
    assert unit["KillMode"] == "process"
    assert unit["Restart"] == "on-failure"


def _unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(EXAMPLES / "waypost.service")
    return parser["Service"]
