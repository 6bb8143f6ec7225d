"""Both clients behind one interface, for scenarios that run over both."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from catraca import AsyncSessionClient, Session, SessionClient


class Caller:
    """Either client, called the same way: awaited, the sync one from a thread."""

    def __init__(self, client: SessionClient | AsyncSessionClient) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self.client, name)

        async def call(*positional: Any, **named: Any) -> Any:
            if isinstance(self.client, SessionClient):
                return await asyncio.to_thread(method, *positional, **named)
            return await method(*positional, **named)

        return call

    async def list_sessions(self, *positional: Any, **named: Any) -> list[Session]:
        """Returns all sessions of the listing."""
        if isinstance(self.client, SessionClient):
            listing = self.client.list_sessions(*positional, **named)
            return await asyncio.to_thread(list, listing)
        return [session async for session in self.client.list_sessions(*positional, **named)]


@asynccontextmanager
async def closing(caller: Caller) -> AsyncIterator[Caller]:
    """Closes the client at the end."""
    try:
        yield caller
    finally:
        await caller.close()
