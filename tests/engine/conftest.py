"""The engine is tested on the loop that the service runs on, and on asyncio's own."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Has every test run on both."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
