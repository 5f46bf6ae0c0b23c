from __future__ import annotations

import asyncio

import uvloop


def pytest_asyncio_loop_factories():
    """The agent runs on uvloop; asyncio's own loop shows what only happens to work."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
