"""A cluster of fake nodes, which behave as no real ones can be made to."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.fake_redis import FakeRedis, bulk
from tests.support.multiplexers import in_seconds
from tests.support.waiting import PATIENCE, eventually_async

from catraca_server.redis.cluster import Cluster as Link
from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.multiplexer import Connector
from catraca_server.redis.url import Address, StoreUrl


class FakeCluster:
    """Nodes that behave as a test wants. By default all of them have the same view of the slots."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.nodes = {name: FakeRedis(directory / name, self._answering(name)) for name in names}
        for fake in self.nodes.values():
            fake.info["cluster_enabled"] = "1"
        self.default = ""
        """How nodes reply to CLUSTER NODES."""
        self.views: dict[str, str] = {}
        """How single nodes reply that have another view."""
        self.reply: Callable[[str, list[bytes]], bytes | None] = naming
        """How a node replies to any other command."""
        self.asleep = ""
        """The node that does not reply at all."""

    @staticmethod
    def text(*owners: tuple[str, str], epoch: int = 1) -> str:
        """Returns a reply to CLUSTER NODES in which nodes have slots."""
        return "".join(
            f"id-{name} {name}:7000@17000 master - 0 0 {epoch} connected {slots}\n" for name, slots in owners
        )

    def give(self, *owners: tuple[str, str], epoch: int = 1) -> None:
        """Gives slots to nodes."""
        self.default = self.text(*owners, epoch=epoch)

    @asynccontextmanager
    async def link(self, seed: str, timeout: float = PATIENCE) -> AsyncIterator["FakeLink"]:
        """Runs all nodes, and a link with one of them as its seed."""
        async with AsyncExitStack() as stack:
            for fake in self.nodes.values():
                await stack.enter_async_context(fake)
            changes: list[bool] = []
            first = Address(seed, 7000)
            link = Link(
                {first: self._connector(first)}, self._connector, timeout_seconds=timeout, on_change=changes.append
            )
            stack.push_async_callback(link.stop)
            await link.start()
            yield FakeLink(link, changes)

    def requests_to(self, name: str) -> list[bytes]:
        """Returns the commands about keys that a node received."""
        return [command[0] for command in self.nodes[name].commands if command[0] in (b"GET", b"ASKING")]

    def refreshes(self, name: str) -> int:
        """Returns how often a node was asked for its view."""
        return sum(command[0] == b"CLUSTER" for command in self.nodes[name].commands)

    def _connector(self, address: Address) -> Connector:
        return RedisConnector(StoreUrl.parse(self.nodes[address.host].url), of_cluster=True)

    def _answering(self, name: str) -> Callable[[list[bytes]], bytes | None]:
        def answer(command: list[bytes]) -> bytes | None:
            if name == self.asleep:
                return b""
            if command[0] == b"CLUSTER":
                return bulk(self.views.get(name, self.default).encode())
            return self.reply(name, command)

        return answer


@dataclass
class FakeLink:
    """A link to fake nodes, and what it reported."""

    link: Link
    changes: list[bool]

    async def get(self, *keys: str) -> list[str]:
        """Reads keys; by default one whose slot is in the second half."""
        requests = [(key, [("GET", key)]) for key in keys or (KEY,)]
        return [replies.get(0, bytes).decode() for replies in await self.link.execute(requests, in_seconds(PATIENCE))]

    async def comes_from(self, name: str) -> None:
        """Waits until the reply comes from this node; nodes reply with their names."""

        async def does() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await self.get() == [name]
            return False

        await eventually_async(does, f"{name} has the slot")

    async def reported(self, *changes: bool) -> None:
        """Waits until it has reported exactly this: connected or not."""

        async def has_reported() -> bool:
            return self.changes == [*changes]

        await eventually_async(has_reported, f"reported {changes}")


KEY, OTHER_KEY = "key", "b"
ALL, FIRST_HALF, LAST_HALF = "0-16383", "0-8191", "8192-16383"


def naming(name: str, command: list[bytes]) -> bytes | None:
    """Replies to GET with the node's own name."""
    return bulk(name.encode()) if command[0] == b"GET" else None
