"""Running agents for the tests of this directory."""

from __future__ import annotations

import pytest

from .stack import running_api


@pytest.fixture(scope="session")
def dev_api():
    """Port of an agent in dev mode: indented JSON, nothing kept."""
    with running_api(indent=True) as port:
        yield port


@pytest.fixture(scope="session")
def server_api():
    """Port of an agent in server mode: compact JSON."""
    with running_api(indent=False) as port:
        yield port
