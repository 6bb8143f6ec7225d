"""How the service runs until it is told to stop."""

import gc
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from catraca_server.runtime.run import run_until_stopped


async def test_the_collector_is_spared_what_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once everything has started: full collections would stop calls for tens of milliseconds."""
    steps: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: steps.append("collected"))
    monkeypatch.setattr(gc, "freeze", lambda: steps.append("frozen"))

    @asynccontextmanager
    async def service() -> AsyncIterator[str]:
        steps.append("started")
        yield "address"
        steps.append("stopped")

    def announce(address: str) -> None:
        steps.append(address)
        os.kill(os.getpid(), signal.SIGTERM)

    await run_until_stopped(service(), announce)
    assert steps == ["started", "collected", "frozen", "address", "stopped"]
