"""A cluster of fake nodes, which behave in ways that real ones rarely do."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.fake_redis import FakeRedis, bulk
from tests.support.multiplexers import in_seconds
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.redis.cluster import Cluster as Link
from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.multiplexer import Connector
from catraca_server.redis.url import Address, StoreUrl


class FakeCluster:
    """Nodes whose behaviour a test defines. By default all have the same view of the slots."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.nodes = {name: FakeRedis(directory / name, self._replying(name)) for name in names}
        for fake in self.nodes.values():
            fake.info["cluster_enabled"] = "1"
        self.default = ""
        """The reply to CLUSTER NODES."""
        self.views: dict[str, str] = {}
        """The replies of nodes with a different view, by node name."""
        self.reply_of: Callable[[str, list[bytes]], bytes | None] = reply_with_name
        """Returns the reply of a node to any other command."""
        self.stalled = ""
        """The name of the node that does not reply."""

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
    async def link(self, seed: str, timeout_seconds: float = TIMEOUT_SECONDS) -> AsyncIterator["FakeLink"]:
        """Runs all nodes, and a link with one of them as its seed."""
        async with AsyncExitStack() as stack:
            for fake in self.nodes.values():
                await stack.enter_async_context(fake)
            changes: list[bool] = []
            first = Address(seed, 7000)
            link = Link(
                {first: self._connector(first)},
                self._connector,
                timeout_seconds=timeout_seconds,
                on_change=changes.append,
            )
            stack.push_async_callback(link.stop)
            await link.start()
            yield FakeLink(link, changes)

    def requests_to(self, name: str) -> list[bytes]:
        """Returns the commands about keys that a node received."""
        return [command[0] for command in self.nodes[name].commands if command[0] in (b"GET", b"ASKING")]

    def refreshes(self, name: str) -> int:
        """Returns how often CLUSTER NODES was sent to a node."""
        return sum(command[0] == b"CLUSTER" for command in self.nodes[name].commands)

    def _connector(self, address: Address) -> Connector:
        return RedisConnector(StoreUrl.parse(self.nodes[address.host].url), of_cluster=True)

    def _replying(self, name: str) -> Callable[[list[bytes]], bytes | None]:
        def reply_to(command: list[bytes]) -> bytes | None:
            if name == self.stalled:
                return b""
            if command[0] == b"CLUSTER":
                return bulk(self.views.get(name, self.default).encode())
            return self.reply_of(name, command)

        return reply_to


@dataclass
class FakeLink:
    """A link to fake nodes, and what it reported."""

    link: Link
    changes: list[bool]

    async def get(self, *keys: str) -> list[str]:
        """Reads keys; by default one whose slot is in the second half."""
        requests = [(key, [("GET", key)]) for key in keys or (KEY,)]
        return [
            replies.get(0, bytes).decode() for replies in await self.link.execute(requests, in_seconds(TIMEOUT_SECONDS))
        ]

    async def comes_from(self, name: str) -> None:
        """Waits until the reply comes from this node; nodes reply with their names."""

        async def is_there() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await self.get() == [name]
            return False

        await eventually_async(is_there, f"{name} has the slot")

    async def reported(self, *changes: bool) -> None:
        """Waits until it has reported exactly this: connected or not."""

        async def has_reported() -> bool:
            return self.changes == [*changes]

        await eventually_async(has_reported, f"reported {changes}")


KEY, OTHER_KEY = "key", "b"
ALL, FIRST_HALF, LAST_HALF = "0-16383", "0-8191", "8192-16383"


def reply_with_name(name: str, command: list[bytes]) -> bytes | None:
    """Replies to GET with the node's own name."""
    return bulk(name.encode()) if command[0] == b"GET" else None
