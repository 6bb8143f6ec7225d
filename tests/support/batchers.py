"""A batcher at work, for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.waiting import PATIENCE, eventually_async

from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.multiplexer import Answer, Batcher, Command
from catraca_server.store import StoreUnavailable


@dataclass
class Running:
    """A batcher and what it told about its store."""

    batcher: Batcher
    changes: list[bool] = field(default_factory=list)

    async def ask(self, *commands: Command, within: float = PATIENCE) -> Answer:
        """Asks with a deadline that is so many seconds away."""
        return await self.batcher.ask(commands, in_seconds(within))

    async def recovered(self) -> None:
        """Waits until it answers again."""

        async def answers() -> bool:
            try:
                await self.ask()
            except StoreUnavailable:
                return False
            return True

        await eventually_async(answers, "the store answers again")


def in_seconds(seconds: float) -> float:
    """Returns a deadline."""
    return asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def running_batcher(url: str, timeout: float = PATIENCE, *, replica_acks: int = 0) -> AsyncIterator[Running]:
    """Runs a batcher on the store at a URL."""
    changes: list[bool] = []
    batcher = Batcher(RedisConnector(url), timeout=timeout, on_change=changes.append, replica_acks=replica_acks)
    await batcher.start()
    try:
        yield Running(batcher, changes)
    finally:
        await batcher.stop()
