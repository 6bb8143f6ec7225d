"""The stores that every suite about stores runs over: fakeredis, with a clock of its own, and a real Valkey."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import fakeredis._socket._base
import fakeredis.commands_mixins.server_mixin
import pytest
from redis.asyncio.connection import AbstractConnection
from tests.support.valkey import Valkey

from catraca_server.store.batcher import Batcher, Connector
from catraca_server.store.connect import RedisConnector, memory_connector
from catraca_server.store.keys import Keys
from catraca_server.store.redis_store import RedisSessionStore

STORE_TIMEOUT = 5.0
"""Seconds, for tests that are not about timeouts: a slow machine must not fail them."""


class Backend:
    """A store that tests can look into and move through time."""

    def __init__(self, connector: Connector, jump: Callable[[int], None] | None = None) -> None:
        self.connector = connector
        self._jump = jump
        self._connection: AbstractConnection | None = None

    async def command(self, *words: str | bytes | int) -> Any:
        """Runs a command as an operator would, over a connection of its own."""
        if self._connection is None:
            self._connection = await self.connector()
        await self._connection.send_command(*words)
        return await self._connection.read_response(disable_decoding=True)

    async def close(self) -> None:
        """Closes that connection."""
        if self._connection is not None:
            await self._connection.disconnect()
            self._connection = None

    async def now(self) -> int:
        """Returns the store's clock, in Unix milliseconds."""
        seconds, microseconds = await self.command("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def keys(self) -> dict[str, int]:
        """Returns every key with its time to live in milliseconds, as Redis tells it: -1 is none."""
        ttls = {name.decode(): await self.command("PTTL", name) for name in sorted(await self.command("KEYS", "*"))}
        # -2: it ended while we looked.
        return {name: ttl for name, ttl in ttls.items() if ttl != -2}

    async def travel(self, milliseconds: int) -> None:
        """Lets time pass for all sessions.

        fakeredis has a clock that can be set. For a real store, whose clock cannot, everything that it has is moved
        into the past by as much, which is the same to who looks at it.
        """
        if self._jump is not None:
            self._jump(milliseconds)
            return
        for key in await self.command("KEYS", "session:*"):
            data, expiry = await self.command("GET", key), await self.command("PEXPIRETIME", key)
            if data is None or expiry < 0:
                continue  # It ended by itself meanwhile.
            record = json.loads(data)
            record["login_at"] -= milliseconds
            record["absolute_expire_at"] -= milliseconds
            await self.command("SET", key, json.dumps(record).encode(), "PXAT", max(expiry - milliseconds, 1))


class FakeClock:
    """A clock for fakeredis that moves only when it is told to."""

    def __init__(self) -> None:
        self.milliseconds = 1_790_000_000_000

    def advance(self, milliseconds: int) -> None:
        """Moves on."""
        self.milliseconds += milliseconds

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Makes fakeredis go by this clock."""
        fake = SimpleNamespace(time=lambda: self.milliseconds / 1000, monotonic=time.monotonic, sleep=time.sleep)
        for module in (fakeredis._socket._base, fakeredis.commands_mixins.server_mixin):
            patch.setattr(module, "time", fake)


def fake_backend(patch: pytest.MonkeyPatch) -> Backend:
    """Returns a new, empty fakeredis with a clock of its own."""
    clock = FakeClock()
    clock.install(patch)
    return Backend(memory_connector(), clock.advance)


def valkey_backend(valkey: Valkey) -> Backend:
    """Returns a real Valkey, emptied."""
    valkey.command("FLUSHALL")
    return Backend(RedisConnector(valkey.url))


@asynccontextmanager
async def session_store(
    backend: Backend, *, prefix: str = "", tells_expiry: bool = True, timeout: float = STORE_TIMEOUT
) -> AsyncIterator[RedisSessionStore]:
    """Opens the session store on a backend."""
    batcher = Batcher(backend.connector, timeout=timeout, on_change=lambda _: None)
    await batcher.start()
    try:
        yield RedisSessionStore(batcher, Keys(prefix), tells_expiry=tells_expiry)
    finally:
        await batcher.stop()
