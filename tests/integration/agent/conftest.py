from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .process import AgentProcess, Upstream


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
def make_agent() -> Iterator[Callable[..., AgentProcess]]:
    """Make an agent that is not started yet; everything is taken back after the test."""
    made: list[AgentProcess] = []

    def make(*flags: str, **options: Any) -> AgentProcess:
        made.append(AgentProcess(*flags, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    """One running agent for a module, with the balancer and without containers; scripts are allowed."""
    one = AgentProcess("-ui", "-enable-script-checks", balancer=True)
    try:
        yield one.start()
    finally:
        one.close()


@pytest.fixture
def upstream() -> Iterator[Callable[..., Upstream]]:
    """Start a server that says its name."""
    made: list[Upstream] = []

    def make(name: str, kind: str = "http") -> Upstream:
        made.append(Upstream(name, kind))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def sample_engine() -> Iterator[Any]:
    """A Docker engine of our own with the sample images."""
    from waypost.samples import image

    docker = load(Path(__file__).parents[1] / "docker/engine.py", "waypost_tests_docker_engine")
    with docker.running_engine() as engine:
        image.build(str(engine.socket))
        yield engine
