"""The stores that every store test runs on: fakeredis with a clock of its own, and a real Valkey of each kind."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import fakeredis._socket._base
import fakeredis.commands_mixins.server_mixin
import fakeredis.model._stream
import pytest
from redis.asyncio.connection import AbstractConnection
from tests.support.cluster import Cluster, slot_of
from tests.support.sentinel import Sentinels

from catraca_server.domain.audit import Audit, NoAudit
from catraca_server.domain.call import Call
from catraca_server.domain.limits import Policy
from catraca_server.domain.tokens import Tokens
from catraca_server.operations.ending import Ending
from catraca_server.operations.sessions import Sessions
from catraca_server.operations.telling import Telling
from catraca_server.operations.users import UserSessions
from catraca_server.redis.dialer import Dialer, memory_connector
from catraca_server.redis.link import Link, Server
from catraca_server.redis.open import open_link
from catraca_server.redis.url import StoreUrl
from catraca_server.store import attempts
from catraca_server.store.feed import RedisFeed
from catraca_server.store.keys import Keys
from catraca_server.store.sessions import RedisSessionStore
from catraca_server.store.user_index import RedisUserIndex

STORE_TIMEOUT_SECONDS = 5
"""For tests that are not about timeouts: a slow machine must not fail them."""


class Backend:
    """A store that tests can inspect and move through time."""

    has_info = True
    """Whether its INFO gives a replication id."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connections: dict[str, AbstractConnection] = {}

    async def command(self, *args: str | bytes | int) -> Any:
        """Runs a command over a connection of its own, as an operator would."""
        return await self._run(self.url, *args)

    async def _run(self, url: str, *args: str | bytes | int) -> Any:
        if url not in self._connections:
            self._connections[url] = await self._connect(url)
        connection = self._connections[url]
        await connection.send_command(*args)
        return await connection.read_response(disable_decoding=True)

    async def _connect(self, url: str) -> AbstractConnection:
        return await Dialer(StoreUrl.parse(url))()

    @asynccontextmanager
    async def link(self) -> AsyncIterator[Link]:
        """Opens a link to it, as a server does."""
        url = StoreUrl.parse(self.url)
        async with open_link(url, timeout_seconds=STORE_TIMEOUT_SECONDS, on_change=lambda _: None) as (link, _):
            yield link

    async def close(self) -> None:
        """Closes those connections."""
        for connection in self._connections.values():
            await connection.disconnect()

    async def now(self) -> int:
        """Returns the store's clock, in Unix milliseconds."""
        seconds, microseconds = await self.command("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def keys(self) -> dict[str, int]:
        """Returns every key with its PTTL: milliseconds, or -1 without an expiry."""
        ttls = {name.decode(): await self.command("PTTL", name) for name in sorted(await self.command("KEYS", "*"))}
        # -2: the key has expired meanwhile.
        return {name: ttl for name, ttl in ttls.items() if ttl != -2}

    async def travel(self, milliseconds: int) -> None:
        """Lets time pass for all sessions.

        The clock of a real store cannot be set, so everything in it is moved into the past, which looks the same.
        """
        for key in await self.command("KEYS", "*session*:*"):
            expiry = await self.command("PEXPIRETIME", key)
            if expiry < 0:
                continue  # The key has expired meanwhile.
            if key.startswith(b"session:"):
                data = await self.command("GET", key)
                if data is None:
                    continue
                await self.command("SET", key, _moved_back(data, milliseconds), "KEEPTTL")
            else:
                entries = await self.command("ZRANGE", key, 0, -1, "WITHSCORES")
                for session_id, score in zip(entries[::2], entries[1::2], strict=True):
                    await self.command("ZADD", key, attempts.moved(int(float(score)), -milliseconds), session_id)
            await self.command("PEXPIREAT", key, max(expiry - milliseconds, 1))


def _moved_back(data: bytes, milliseconds: int) -> bytes:
    record = json.loads(data)
    if attempts.is_tombstone(data):
        return attempts.tombstone(attempts.moved(record["void"], -milliseconds), record["user_id"])
    record["login_at"] -= milliseconds
    record["absolute_expire_at"] -= milliseconds
    for rotated in record.get("retired", ()):
        rotated["grace_until"] -= milliseconds
    return json.dumps(record).encode()


class FakeClock:
    """The clock of every fakeredis of this process: it moves when it is set, and by a microsecond when it is read."""

    def __init__(self, patch: pytest.MonkeyPatch, unix_ms: int = 1_790_000_000_000) -> None:
        self.microseconds = unix_ms * 1000
        clock = SimpleNamespace(time=self._time, monotonic=time.monotonic, sleep=time.sleep)
        for module in (fakeredis._socket._base, fakeredis.commands_mixins.server_mixin, fakeredis.model._stream):
            patch.setattr(module, "time", clock)

    def _time(self) -> float:
        self.microseconds += 1
        return self.microseconds / 1e6


class FakeBackend(Backend):
    """A new, empty fakeredis with a clock of its own."""

    has_info = False

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__("memory:")
        self._connector = memory_connector()
        self._clock = FakeClock(patch)

    @asynccontextmanager
    async def link(self) -> AsyncIterator[Link]:
        """Opens a link to it."""
        server = Server.at(self._connector, timeout_seconds=STORE_TIMEOUT_SECONDS, on_change=lambda _: None)
        await server.start()
        try:
            yield server
        finally:
            await server.stop()

    async def travel(self, milliseconds: int) -> None:
        """Moves the clock."""
        self._clock.microseconds += milliseconds * 1000

    async def _connect(self, _url: str) -> AbstractConnection:
        return await self._connector()


class SentinelBackend(Backend):
    """A primary under Sentinel."""

    def __init__(self, sentinels: Sentinels) -> None:
        super().__init__(sentinels.url)
        self._primary = f"redis://{sentinels.primary.address}"

    async def command(self, *args: str | bytes | int) -> Any:
        """Runs a command on the primary."""
        return await self._run(self._primary, *args)


class ClusterBackend(Backend):
    """A cluster, whose slots do not move during a test."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.url)
        self._cluster = cluster
        self._all = [f"redis://{node.address}" for node in cluster.primaries]
        self._owners: dict[int, str] = {}

    async def command(self, *args: str | bytes | int) -> Any:
        """Runs a command on the node that has its key; without a key, on every primary where that makes sense."""
        match args:
            case ("TIME", *_):
                return await self._run(self._all[0], *args)
            case ("KEYS", *_):
                return [key for url in self._all for key in await self._run(url, *args)]
            case ("FLUSHALL", *_) | ("EVAL", _, 0, *_):
                replies = [await self._run(url, *args) for url in self._all]
                return sum(replies) if args[0] == "EVAL" else replies[0]
            case ("EVAL", _, 1, key, *_) | (_, key, *_):
                return await self._run(self._owner(key), *args)
        raise AssertionError(args)

    def _owner(self, key: str | bytes | int) -> str:
        assert not isinstance(key, int)
        slot = slot_of(key)
        if slot not in self._owners:
            self._owners[slot] = f"redis://{self._cluster.node_of(key).address}"
        return self._owners[slot]


@dataclass(frozen=True)
class Stores:
    """The three parts of the store's contract."""

    sessions: RedisSessionStore
    index: RedisUserIndex
    feed: RedisFeed

    @classmethod
    def over(cls, link: Link, *, prefix: str = "", has_pexpiretime: bool = True, has_info: bool = True) -> "Stores":
        """Returns the store over a link."""
        keys = Keys(prefix)
        return cls(
            RedisSessionStore(link, keys, has_pexpiretime=has_pexpiretime),
            RedisUserIndex(link, keys),
            RedisFeed(link, keys, has_info=has_info),
        )


@asynccontextmanager
async def stores(backend: Backend, *, prefix: str = "", has_pexpiretime: bool = True) -> AsyncIterator[Stores]:
    """Opens the store on a backend."""
    async with backend.link() as link:
        yield Stores.over(link, prefix=prefix, has_pexpiretime=has_pexpiretime, has_info=backend.has_info)


NO_AUDIT = NoAudit()


@dataclass(frozen=True)
class Operations:
    """All operations over one store, as the service puts them together."""

    sessions: Sessions
    users: UserSessions
    policy: Policy

    @classmethod
    def over(cls, made: Stores, *, audit: Audit = NO_AUDIT, **policy: Any) -> "Operations":
        """Returns the operations over stores; other keyword arguments are of the policy."""
        lifetimes = {"default_ttl_ms": 86_400_000, "default_idle_timeout_ms": 1_800_000, "max_ttl_ms": 30 * 86_400_000}
        made_policy = Policy(**{**lifetimes, **policy})
        tokens = Tokens(secrets.token_bytes)
        telling = Telling(made.feed, audit)
        ending = Ending(made.sessions, made.index, telling)
        parts = made.sessions, made.index, ending, tokens, made_policy
        return cls(
            Sessions(*parts, feed=telling),
            UserSessions(*parts, feed=telling),
            made_policy,
        )

    async def listed(self, user_id: str, size: int = 500) -> list[str]:
        """Returns the ids of a user's live sessions, newest first, read in pages of this size."""
        found: list[str] = []
        before = None
        while True:
            page = await self.users.page(user_id, before, size, a_call())
            found += [stored.session.session_id for stored in page.sessions]
            before = page.next_before
            if before is None:
                return found


def a_call(seconds: float = 60) -> Call:
    """Returns a call with this much time left, by default more than any test takes."""
    return Call(deadline=asyncio.get_running_loop().time() + seconds)
