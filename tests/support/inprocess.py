"""The service inside the test's own process, where its log and its tasks can be looked at."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from catraca_server.app import running
from catraca_server.settings import load


@asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[str]:
    """Runs the service on a free port and yields its target; `store_url="memory:"` sets CATRACA_STORE_URL."""
    twins = {f"CATRACA_{name.upper()}": value for name, value in settings.items()}
    async with running(load({}, {"CATRACA_PORT": "0", **twins}).settings, {}) as target:
        yield target
