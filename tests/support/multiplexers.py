"""A running multiplexer, for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.multiplexer import Command, Multiplexer
from catraca_server.redis.replies import Replies
from catraca_server.redis.url import StoreUrl


@dataclass
class RunningMultiplexer:
    """A multiplexer, and what it reported of its store: connected or not."""

    multiplexer: Multiplexer
    changes: list[bool] = field(default_factory=list)

    async def execute(self, *commands: Command, within_seconds: float = TIMEOUT_SECONDS) -> Replies:
        """Executes commands with a deadline this many seconds away."""
        return await self.multiplexer.execute(commands, in_seconds(within_seconds))

    async def recovered(self) -> None:
        """Waits until requests are answered again."""

        async def is_available() -> bool:
            try:
                await self.execute()
            except StoreUnavailable:
                return False
            return True

        await eventually_async(is_available, "the store replies again")


def in_seconds(seconds: float) -> float:
    """Returns a deadline."""
    return asyncio.get_running_loop().time() + seconds


def connector_to(url: str) -> RedisConnector:
    """Returns a connector to the server at a URL."""
    return RedisConnector(StoreUrl.parse(url))


@asynccontextmanager
async def running_multiplexer(
    url: str, timeout_seconds: float = TIMEOUT_SECONDS, *, replica_acks: int = 0
) -> AsyncIterator[RunningMultiplexer]:
    """Runs a multiplexer on the store at a URL."""
    changes: list[bool] = []
    multiplexer = Multiplexer(
        connector_to(url), timeout_seconds=timeout_seconds, on_change=changes.append, replica_acks=replica_acks
    )
    await multiplexer.start()
    try:
        yield RunningMultiplexer(multiplexer, changes)
    finally:
        await multiplexer.stop()
