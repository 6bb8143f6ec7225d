"""Fake Sentinels and primaries, which behave in ways that real ones rarely do."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.fake_redis import FakeRedis, array, bulk
from tests.support.multiplexers import connector_to, in_seconds
from tests.support.sentinel import NAME
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.redis.dialer import Dialer
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.link import Server
from catraca_server.redis.sentinel import PrimaryMonitor, Sentinels as Link
from catraca_server.redis.url import StoreUrl


@dataclass
class View:
    """The primary as a Sentinel sees it."""

    epoch: int
    name: str
    master: str = ""
    """The primary in its reply to SENTINEL MASTER, if that is a different one."""


@dataclass
class Fakes:
    """Three Sentinels and some servers, whose behaviour a test defines."""

    directory: Path
    servers: dict[str, FakeRedis] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    stalled: str = ""
    """The server that does not reply."""
    on_info: Callable[[], None] = lambda: None
    """Runs before a server replies to INFO, its first reply on a connection."""
    replied: list[str] = field(default_factory=list)
    """The names of the servers that replied to GET, in order."""

    def agree(self, epoch: int, name: str) -> None:
        """Makes all Sentinels name a server."""
        self.views = [View(epoch, name) for _ in range(3)]

    @asynccontextmanager
    async def link(
        self, *names: str, timeout_seconds: float = TIMEOUT_SECONDS, replica_acks: int = 0
    ) -> AsyncIterator["FakeLink"]:
        """Runs servers of these names, Sentinels that name the first, and a link to whatever they name."""
        self.agree(1, names[0])
        async with AsyncExitStack() as stack:
            for name in names:
                self.servers[name] = await stack.enter_async_context(
                    FakeRedis(self.directory / name, self._server(name))
                )
            sentinels = [
                await stack.enter_async_context(FakeRedis(self.directory / str(at), self.sentinel(at)))
                for at in range(3)
            ]
            changes: list[bool] = []
            link = Link(
                NAME, [dialer(each.url) for each in sentinels], lambda at: connector_to(self.servers[at.host].url)
            )
            server = Server.at(
                link, timeout_seconds=timeout_seconds, on_change=changes.append, replica_acks=replica_acks
            )
            monitor = PrimaryMonitor(link, server)
            stack.push_async_callback(monitor.stop)
            stack.push_async_callback(server.stop)
            await server.start()
            monitor.start()
            yield FakeLink(server, changes)

    def connections(self) -> dict[str, int]:
        """Returns how many connections there are to each server."""
        return {name: fake.connections for name, fake in self.servers.items() if fake.connections}

    def _server(self, name: str) -> Callable[[list[bytes]], bytes | None]:
        def reply_to(command: list[bytes]) -> bytes | None:
            if name == self.stalled:
                return b""
            if command[0] == b"INFO":
                self.on_info()
            if command[0] == b"GET":
                self.replied.append(name)
                return bulk(name.encode())
            return b":9\r\n" if command[0] == b"WAIT" else None

        return reply_to

    def sentinel(self, at: int) -> Callable[[list[bytes]], bytes | None]:
        """Returns how a Sentinel replies."""

        def reply_to(command: list[bytes]) -> bytes | None:
            view = self.views[at]
            if command[:2] == [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME"]:
                return array(bulk(view.name.encode()), bulk(b"6379"))
            if command[:2] == [b"SENTINEL", b"MASTER"]:
                known = {"ip": view.master or view.name, "port": "6379", "config-epoch": str(view.epoch)}
                return array(*(bulk(word.encode()) for pair in known.items() for word in pair))
            return None

        return reply_to


def dialer(url: str) -> Dialer:
    """Returns a dialer to a Sentinel."""
    return Dialer(StoreUrl.parse(url))


@dataclass
class FakeLink:
    """A link to fake servers, and what it reported."""

    server: Server
    changes: list[bool]

    async def get(self, *, durable: bool = False) -> str:
        """Reads a key."""
        (replies,) = await self.server.execute(
            [("key", [("GET", "key")])], in_seconds(TIMEOUT_SECONDS), durable=durable
        )
        found: bytes = replies.get(0, bytes)
        return found.decode()

    async def comes_from(self, name: str) -> None:
        """Waits until the reply comes from this server."""

        async def is_there() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await self.get() == name
            return False

        await eventually_async(is_there, f"{name} replies")

    async def reported(self, *changes: bool) -> None:
        """Waits until it has reported exactly this: connected or not."""

        async def has_reported() -> bool:
            return self.changes == [*changes]

        await eventually_async(has_reported, f"reported {changes}")
