from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

INTEGRATION = Path(__file__).parents[1] / "integration"


def load(path: Path, name: str) -> ModuleType:
    """Import a module of another test folder (the import mode puts no folder on the path)."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def make_agent() -> Iterator[Callable[..., Any]]:
    """Make an agent that is not started yet; everything is taken back after the test."""
    process = load(INTEGRATION / "agent/process.py", "waypost_tests_agent_process")
    made: list[Any] = []

    def make(*flags: str, **options: Any) -> Any:
        made.append(process.AgentProcess(*flags, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def upstream() -> Iterator[Callable[..., Any]]:
    """Start a server that says its name."""
    process = load(INTEGRATION / "agent/process.py", "waypost_tests_agent_process")
    made: list[Any] = []

    def make(name: str, kind: str = "http") -> Any:
        made.append(process.Upstream(name, kind))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """A Docker engine of our own with the sample images."""
    from waypost.samples import image

    docker = load(INTEGRATION / "docker/engine.py", "waypost_tests_docker_engine")
    with docker.running_engine() as running:
        image.build(str(running.socket))
        yield running
