from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load(name: str) -> ModuleType:
    """Import a module that lies beside this file (the import mode puts no folder on the path)."""
    full = f"waypost_tests_docker_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def session_engine() -> Iterator[Any]:
    with load("engine").running_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def running_engine() -> Any:
    """What starts a further engine: `with running_engine(netns="…", iptables=True) as engine`."""
    return load("engine").running_engine


@pytest.fixture
def engine(session_engine: Any) -> Iterator[Any]:
    """The engine of the test run, without containers at the beginning and at the end."""
    session_engine.remove_all()
    yield session_engine
    session_engine.remove_all()


@pytest.fixture
def fresh_engine() -> Iterator[Any]:
    """An engine that a test may kill, stop and freeze."""
    with load("engine").running_engine() as engine:
        yield engine


@pytest.fixture
def live_restore_engine() -> Iterator[Any]:
    """An engine whose containers outlive it."""
    with load("engine").running_engine(live_restore=True) as engine:
        yield engine


@pytest.fixture
async def registry() -> Any:
    return load("memory").MemoryRegistry()


@pytest.fixture(scope="session")
def session_consul() -> Iterator[Any]:
    with load("consul_agent").running_consul() as consul:
        yield consul


@pytest.fixture
def consul(session_consul: Any) -> Any:
    """A real Consul without services at the beginning."""
    for service_id in session_consul.services():
        session_consul.put(f"/v1/agent/service/deregister/{service_id}")
    return session_consul


@pytest.fixture
def fresh_consul() -> Iterator[Any]:
    """A real Consul that a test may stop."""
    with load("consul_agent").running_consul() as consul:
        yield consul
