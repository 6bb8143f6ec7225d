"""Fake Sentinels and primaries, which behave as no real ones can be made to."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.fake_redis import FakeRedis, array, bulk
from tests.support.multiplexers import connector_to, in_seconds
from tests.support.sentinel import NAME
from tests.support.waiting import PATIENCE, eventually_async

from catraca_server.redis.dialer import Dialer
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.link import Server
from catraca_server.redis.sentinel import PrimaryMonitor, Sentinels as Link
from catraca_server.redis.url import StoreUrl


@dataclass
class Opinion:
    """What a Sentinel says about the primary."""

    epoch: int
    name: str
    master: str = ""
    """The primary in its reply to SENTINEL MASTER, if it contradicts itself there."""


@dataclass
class Fakes:
    """Three Sentinels and some servers, which behave as a test wants."""

    directory: Path
    servers: dict[str, FakeRedis] = field(default_factory=dict)
    opinions: list[Opinion] = field(default_factory=list)
    asleep: str = ""
    """The server that does not reply."""
    meanwhile: Callable[[], None] = lambda: None
    """What happens before a server's first reply on a connection."""
    replied: list[str] = field(default_factory=list)
    """The servers that replied about a key, one after the other."""

    def agree(self, epoch: int, name: str) -> None:
        """Has all Sentinels name a server."""
        self.opinions = [Opinion(epoch, name) for _ in range(3)]

    @asynccontextmanager
    async def link(self, *names: str, timeout: float = PATIENCE, replica_acks: int = 0) -> AsyncIterator["FakeLink"]:
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
            server = Server.at(link, timeout_seconds=timeout, on_change=changes.append, replica_acks=replica_acks)
            monitor = PrimaryMonitor(link, server)
            stack.push_async_callback(monitor.stop)
            stack.push_async_callback(server.stop)
            await server.start()
            monitor.start()
            yield FakeLink(server, changes)

    def connections(self) -> dict[str, int]:
        """Returns how many connections there are to which server."""
        return {name: fake.connections for name, fake in self.servers.items() if fake.connections}

    def _server(self, name: str) -> Callable[[list[bytes]], bytes | None]:
        def answer(command: list[bytes]) -> bytes | None:
            if name == self.asleep:
                return b""
            if command[0] == b"INFO":
                self.meanwhile()
            if command[0] == b"GET":
                self.replied.append(name)
                return bulk(name.encode())
            return b":9\r\n" if command[0] == b"WAIT" else None

        return answer

    def sentinel(self, at: int) -> Callable[[list[bytes]], bytes | None]:
        """Returns how a Sentinel answers."""

        def answer(command: list[bytes]) -> bytes | None:
            told = self.opinions[at]
            if command[:2] == [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME"]:
                return array(bulk(told.name.encode()), bulk(b"6379"))
            if command[:2] == [b"SENTINEL", b"MASTER"]:
                known = {"ip": told.master or told.name, "port": "6379", "config-epoch": str(told.epoch)}
                return array(*(bulk(word.encode()) for pair in known.items() for word in pair))
            return None

        return answer


def dialer(url: str) -> Dialer:
    """Returns what connects to a Sentinel."""
    return Dialer(StoreUrl.parse(url))


@dataclass
class FakeLink:
    """A link to fake servers, and what it reported."""

    server: Server
    changes: list[bool]

    async def get(self, *, durable: bool = False) -> str:
        """Reads a key."""
        (replies,) = await self.server.execute([("key", [("GET", "key")])], in_seconds(PATIENCE), durable=durable)
        found: bytes = replies.get(0, bytes)
        return found.decode()

    async def comes_from(self, name: str) -> None:
        """Waits until the reply comes from a certain server."""

        async def does() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await self.get() == name
            return False

        await eventually_async(does, f"{name} answers")

    async def reported(self, *changes: bool) -> None:
        """Waits until it has reported exactly this: connected or not."""

        async def has_reported() -> bool:
            return self.changes == [*changes]

        await eventually_async(has_reported, f"reported {changes}")
