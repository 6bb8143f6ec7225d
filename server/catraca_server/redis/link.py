"""How the store's two faces reach Redis: they ask about keys over a link, which knows who has them.

A `Server` is a link to one server; which one that is may change (see `sentinel`). A cluster (see `cluster`) is a link
to many, and each key is on one of them. Both ask through batchers, and neither knows what it asks.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from catraca_server.redis.multiplexer import Answer, Batcher, Command, Connector

Question: TypeAlias = tuple[str, Sequence[Command]]
"""A key, and commands about that key: either one that writes, or any number that only read."""


class Link(Protocol):
    """The way to a store."""

    waits: bool = False
    """Whether `durable` takes replicas at all."""

    async def ask(self, questions: Sequence[Question], deadline: float, *, durable: bool = False) -> Sequence[Answer]:
        """Asks, and returns an answer to each question, in order.

        With `durable` it answers only once as many replicas as the operator wants have what was written; what was
        written before by others counts only if these questions write something, too. Raises StoreUnavailable,
        NotDurable if too few have it, Overloaded; of many questions some may have been answered then.
        """


class Server:
    """A link to one server: by one batcher, or by two, so that only what has to wait for replicas does."""

    def __init__(self, plain: Batcher, durable: Batcher | None = None) -> None:
        self.waits = durable is not None
        self._plain = plain
        self._durable = durable or plain

    @classmethod
    def at(
        cls, connect: Connector, *, timeout: float, on_change: Callable[[bool], None], replica_acks: int = 0
    ) -> "Server":
        """Returns a link to whatever `connect` connects to."""
        plain = Batcher(connect, timeout=timeout, on_change=on_change)
        if not replica_acks:
            return cls(plain)
        # Its health is that of the other: they fail together.
        return cls(plain, Batcher(connect, timeout=timeout, on_change=lambda _: None, replica_acks=replica_acks))

    async def start(self) -> None:
        """Connects. Raises what `connect` raises, or TimeoutError."""
        await self._plain.start()
        if self._durable is not self._plain:
            self._durable.begin()

    def begin(self) -> None:
        """Starts to connect, and to answer once it has; `on_change` is told only if that fails."""
        for batcher in {self._plain, self._durable}:
            batcher.begin()

    async def stop(self) -> None:
        """Closes its connections. What still waits is failed."""
        await asyncio.gather(*(batcher.stop() for batcher in {self._plain, self._durable}))

    def give_up(self, why: str) -> None:
        """Has its connections closed and new ones made."""
        for batcher in {self._plain, self._durable}:
            batcher.give_up(why)

    async def ask(self, questions: Sequence[Question], deadline: float, *, durable: bool = False) -> Sequence[Answer]:
        """Asks all questions at once."""
        batcher = self._durable if durable else self._plain
        if len(questions) == 1:
            return (await batcher.ask(questions[0][1], deadline),)
        answer = await batcher.ask([command for _, commands in questions for command in commands], deadline)
        replies = iter(answer.replies)
        return [Answer(answer.now, [next(replies) for _ in commands], answer.source) for _, commands in questions]
