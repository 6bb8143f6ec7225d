"""How the store reaches Redis: it sends requests about keys over a link, which knows which server has them.

A `Server` is a link to one server; which one that is may change (see `sentinel`). A cluster (see `cluster`) is a link
to many, and each key is on one of them. Both use multiplexers, and neither knows what the requests are about.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from hiredis import pack_command

from catraca_server.redis.errors import StoreProblem
from catraca_server.redis.multiplexer import Command, Connector, Multiplexer
from catraca_server.redis.observer import NO_OBSERVER, StoreObserver
from catraca_server.redis.replies import Replies

Request: TypeAlias = tuple[str, Sequence[Command]]
"""A key, and commands about that key: either one that writes, or any number that only read."""

Part: TypeAlias = tuple[Sequence[int], Replies]
"""The positions of keys that were read from one server, and two replies for each key, in order."""


class KeyReads:
    """Two read-only commands, sent for each of many keys; both take a key and nothing else.

    A driver packs commands one by one. That would cost more than everything else in reading a thousand sessions.
    """

    count: int = 2

    def __init__(self, first: str, second: str) -> None:
        self._commands = (first, second)
        self._heads: dict[int, tuple[str, str]] = {}
        """What comes before the key in each command, by the length of the key."""

    def pack(self, keys: Sequence[str]) -> bytes:
        """Returns the commands for each key, in order."""
        packed = []
        heads = self._heads
        for key in keys:
            first, second = heads.get(len(key)) or self._head(len(key))
            packed.append(f"{first}{key}{second}{key}")
        text = "".join(packed) + "\r\n"
        if text.isascii():
            # Each head begins with the end of the line before.
            return text[2:].encode()
        # A length counts bytes, not characters. Only a prefix that the operator chose can be other than ASCII.
        return b"".join(pack_command(command) for key in keys for command in self.commands(key))

    def commands(self, key: str) -> Sequence[Command]:
        """Returns the commands for one key."""
        return [(name, key) for name in self._commands]

    def _head(self, length: int) -> tuple[str, str]:
        first, second = (f"\r\n*2\r\n${len(name)}\r\n{name}\r\n${length}\r\n" for name in self._commands)
        self._heads[length] = (first, second)
        return first, second


class Link(Protocol):
    """The way to a store."""

    replicates: bool = False
    """Whether `durable` waits for replicas at all."""

    @property
    def waiting_commands(self) -> int:
        """How many commands wait to be sent."""
        return 0

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Returns the replies to each request, in order.

        With `durable` it returns only once as many replicas as the operator wants have what was written. Earlier writes
        by other calls are covered only if these requests write something, too. Raises StoreUnavailable, NotDurable if
        too few replicas have it, Overloaded; some of the requests may have been executed then.

        A request whose connection is closed is repeated, and its replies say so (see `Replies.repeated`). A repeated
        write that finds its work done writes nothing, and then `durable` promises nothing about it.
        """

    def together(self, keys: Sequence[str]) -> Sequence[Sequence[int]]:
        """Returns which keys can be read together: those that are on one server, by their positions.

        What is read together fails together. Raises StoreUnavailable if it is not known where a key is.
        """
        return (range(len(keys)),)

    async def read(self, keys: Sequence[str], reads: KeyReads, deadline: float) -> Sequence[Part]:
        """Reads two things about each of many keys; a link may know a cheaper way than this one."""
        results = await self.execute([(key, reads.commands(key)) for key in keys], deadline)
        return [((at,), replies) for at, replies in enumerate(results)]


class Server:
    """A link to one server: over one multiplexer, or over two, so that only what needs replicas waits for them."""

    def __init__(self, plain: Multiplexer, durable: Multiplexer | None = None) -> None:
        self.replicates = durable is not None
        self._plain = plain
        self._durable = durable or plain

    @classmethod
    def at(
        cls,
        connect: Connector,
        *,
        timeout_seconds: float,
        on_change: Callable[[bool], None],
        replica_acks: int = 0,
        observer: StoreObserver = NO_OBSERVER,
    ) -> "Server":
        """Returns a link to whatever `connect` connects to."""
        plain = Multiplexer(connect, timeout_seconds=timeout_seconds, on_change=on_change, observer=observer)
        if not replica_acks:
            return cls(plain)
        # It reports no state of its own: the two connections fail together.
        durable = Multiplexer(
            connect,
            timeout_seconds=timeout_seconds,
            on_change=lambda _: None,
            replica_acks=replica_acks,
            observer=observer,
        )
        return cls(plain, durable)

    @property
    def waiting_commands(self) -> int:
        """How many commands wait to be sent."""
        return sum(multiplexer.waiting_commands for multiplexer in {self._plain, self._durable})

    async def start(self) -> None:
        """Connects. Raises what `connect` raises, or TimeoutError."""
        await self._plain.start()
        if self._durable is not self._plain:
            self._durable.begin()

    def begin(self) -> None:
        """Starts to connect, and to answer once connected; `on_change` is called only if that fails."""
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

    def together(self, keys: Sequence[str]) -> Sequence[Sequence[int]]:
        """Returns all keys: they are on one server."""
        return (range(len(keys)),)

    async def read(self, keys: Sequence[str], reads: KeyReads, deadline: float) -> Sequence[Part]:
        """Reads all keys in one request."""
        replies = await self._plain.execute_packed(reads.pack(keys), reads.count * len(keys), deadline)
        return ((range(len(keys)), replies),)
