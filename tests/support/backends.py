"""The stores that every suite about stores runs over: fakeredis, with a clock of its own, and a real Valkey."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn

import fakeredis._socket._base
import fakeredis.commands_mixins.server_mixin
import pytest
from redis.asyncio.connection import AbstractConnection
from tests.support.valkey import Valkey

from catraca_server.requests import Policy
from catraca_server.sessions import Sessions
from catraca_server.store.batcher import Batcher, Connector
from catraca_server.store.connect import RedisConnector, memory_connector
from catraca_server.store.keys import Keys
from catraca_server.store.redis_store import RedisSessionStore
from catraca_server.store.user_index import RedisUserIndex
from catraca_server.tokens import Tokens
from catraca_server.users import UserSessions

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
        for key in await self.command("KEYS", "*session*:*"):
            expiry = await self.command("PEXPIRETIME", key)
            if expiry < 0:
                continue  # It ended by itself meanwhile.
            if key.startswith(b"session:"):
                data = await self.command("GET", key)
                if data is None:
                    continue
                await self.command("SET", key, _moved_back(data, milliseconds), "KEEPTTL")
            else:
                found = await self.command("ZRANGE", key, 0, -1, "WITHSCORES")
                for session_id, score in zip(found[::2], found[1::2], strict=True):
                    number = int(float(score))
                    moved = number - milliseconds * 2000 * (1 if number > 0 else -1)
                    await self.command("ZADD", key, moved, session_id)
            await self.command("PEXPIREAT", key, max(expiry - milliseconds, 1))


def _moved_back(data: bytes, milliseconds: int) -> bytes:
    record = json.loads(data)
    if "void" in record:
        return json.dumps({"void": record["void"] - milliseconds * 2000}, separators=(",", ":")).encode()
    record["login_at"] -= milliseconds
    record["absolute_expire_at"] -= milliseconds
    for retired in record.get("retired", ()):
        retired["grace_until"] -= milliseconds
    return json.dumps(record).encode()


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


@dataclass(frozen=True)
class Stores:
    """The store's two faces."""

    sessions: RedisSessionStore
    index: RedisUserIndex

    @classmethod
    def over(cls, batcher: Batcher, *, prefix: str = "", tells_expiry: bool = True) -> "Stores":
        """Returns the store over a batcher."""
        keys = Keys(prefix)
        return cls(RedisSessionStore(batcher, keys, tells_expiry=tells_expiry), RedisUserIndex(batcher, keys))


@asynccontextmanager
async def stores(backend: Backend, *, prefix: str = "", tells_expiry: bool = True) -> AsyncIterator[Stores]:
    """Opens the store on a backend."""
    async with batcher_of(backend) as batcher:
        yield Stores.over(batcher, prefix=prefix, tells_expiry=tells_expiry)


@asynccontextmanager
async def batcher_of(backend: Backend) -> AsyncIterator[Batcher]:
    """Opens a batcher on a backend."""
    batcher = Batcher(backend.connector, timeout=STORE_TIMEOUT, on_change=lambda _: None)
    await batcher.start()
    try:
        yield batcher
    finally:
        await batcher.stop()


class Interposed(Batcher):
    """A batcher with something between it and who asks it; whoever makes it overrides `ask`."""

    def __init__(self, inner: Batcher) -> None:
        self.inner = inner

    def distrust(self, why: str) -> NoReturn:
        """Passes it on."""
        self.inner.distrust(why)


@dataclass(frozen=True)
class Operations:
    """All operations over one store, as the service puts them together."""

    sessions: Sessions
    users: UserSessions
    policy: Policy

    @classmethod
    def over(cls, made: Stores, **policy: Any) -> "Operations":
        """Returns the operations over stores; keyword arguments are of the policy."""
        lifetimes = {"default_ttl": 86_400_000, "default_idle_timeout": 1_800_000, "max_ttl": 30 * 86_400_000}
        decided = Policy(**{**lifetimes, **policy})
        tokens = Tokens(secrets.token_bytes)
        return cls(
            Sessions(made.sessions, made.index, tokens, decided),
            UserSessions(made.sessions, made.index, tokens, decided),
            decided,
        )


def soon() -> float:
    """Returns a deadline that no test gets near to."""
    return asyncio.get_running_loop().time() + 60
