"""How the store reaches Redis: it sends requests about keys over a link, which knows which server has them.

A `Server` is a link to one server; which one that is may change (see `sentinel`). A cluster (see `cluster`) is a link
to many, and each key is on one of them. Both use multiplexers, and neither knows what the requests are about.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from catraca_server.redis.errors import StoreProblem
from catraca_server.redis.multiplexer import Command, Connector, Multiplexer
from catraca_server.redis.replies import Replies

Request: TypeAlias = tuple[str, Sequence[Command]]
"""A key, and commands about that key: either one that writes, or any number that only read."""


class Link(Protocol):
    """The way to a store."""

    replicates: bool = False
    """Whether `durable` waits for replicas at all."""

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Returns the replies to each request, in order.

        With `durable` it returns only once as many replicas as the operator wants have what was written; what others
        wrote before counts only if these requests write something, too. Raises StoreUnavailable, NotDurable if too few
        have it, Overloaded; some of many requests may have been executed then.

        A request whose connection is closed is repeated, and its replies say so (see `Replies.repeated`). A write that
        then finds its work done writes nothing, and `durable` says nothing about it.
        """


class Server:
    """A link to one server: over one multiplexer, or over two, so that only what needs replicas waits for them."""

    def __init__(self, plain: Multiplexer, durable: Multiplexer | None = None) -> None:
        self.replicates = durable is not None
        self._plain = plain
        self._durable = durable or plain

    @classmethod
    def at(
        cls, connect: Connector, *, timeout_seconds: float, on_change: Callable[[bool], None], replica_acks: int = 0
    ) -> "Server":
        """Returns a link to whatever `connect` connects to."""
        plain = Multiplexer(connect, timeout_seconds=timeout_seconds, on_change=on_change)
        if not replica_acks:
            return cls(plain)
        # Its health is that of the other: they fail together.
        durable = Multiplexer(
            connect, timeout_seconds=timeout_seconds, on_change=lambda _: None, replica_acks=replica_acks
        )
        return cls(plain, durable)

    async def start(self) -> None:
        """Connects. Raises what `connect` raises, or TimeoutError."""
        await self._plain.start()
        if self._durable is not self._plain:
            self._durable.begin()

    def begin(self) -> None:
        """Starts to connect, and to answer once connected; `on_change` is told only if that fails."""
        for multiplexer in {self._plain, self._durable}:
            multiplexer.begin()

    async def stop(self) -> None:
        """Closes its connections, and fails what still waits."""
        await asyncio.gather(*(multiplexer.stop() for multiplexer in {self._plain, self._durable}))

    def invalidate(self, why: str, problem: StoreProblem = StoreProblem.MALFORMED_REPLY) -> None:
        """Has its connections closed and new ones made."""
        for multiplexer in {self._plain, self._durable}:
            multiplexer.invalidate(why, problem)

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Sends all requests at once."""
        multiplexer = self._durable if durable else self._plain
        if len(requests) == 1:
            return (await multiplexer.execute(requests[0][1], deadline),)
        commands = [command for _, commands in requests for command in commands]
        return (await multiplexer.execute(commands, deadline)).split([len(commands) for _, commands in requests])
