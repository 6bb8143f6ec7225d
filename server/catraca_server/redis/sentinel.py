"""Finding the primary that Sentinels watch, and noticing that it has become another one."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from catraca_server.redis.dialer import Address
from catraca_server.redis.link import Server
from catraca_server.redis.multiplexer import Command, Connector
from catraca_server.store import StoreUnavailable

WATCH_PAUSE = 1.0
"""Seconds between two looks at who the primary is, while the one in use answers: it may have been cut off."""

STRAGGLER_PATIENCE = 0.05
"""Seconds for the other Sentinels, once a majority has answered."""

_Asked: TypeAlias = "asyncio.Task[tuple[int, Address]]"


class Sentinels:
    """Connects to the primary that a group of Sentinels names.

    All are asked at once; a majority has to answer, and the newest answer counts: by the configuration epoch, which
    every failover raises. So one Sentinel that has been cut off, and does not know yet, misleads nobody.
    """

    def __init__(
        self,
        name: str,
        sentinels: Sequence[Connector],
        primary_at: Callable[[Address], Connector],
    ) -> None:
        self._name = name
        self._sentinels = sentinels
        self._primary_at = primary_at
        self._connected_to: Address | None = None
        self.on_move: Callable[[str], None] = lambda _: None
        """Told that a connection was made to another primary than the last one: let go of those to the last one."""

    async def __call__(self) -> AbstractConnection:
        """Returns a new connection to the primary. Raises StoreUnavailable; takes as long as it takes."""
        address = await self.primary()
        connection = await self._primary_at(address)()
        try:
            # It may have slept and been replaced before it answered, and does not know.
            await self._confirm(address)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if self._connected_to not in (None, address):
            self.on_move(_moved_to(address))
        self._connected_to = address
        return connection

    async def primary(self) -> Address:
        """Asks who the primary is. Raises StoreUnavailable if no majority answers, or nobody knows it."""
        asked = [asyncio.create_task(self._ask(sentinel)) for sentinel in self._sentinels]
        try:
            await self._wait_for_majority(asked)
            # Which may be those who have not heard yet.
            await asyncio.wait(asked, timeout=STRAGGLER_PATIENCE)
            return max(task.result() for task in asked if _has_answered(task))[1]
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _wait_for_majority(self, asked: Sequence[_Asked]) -> None:
        failures: list[str] = []
        for done in asyncio.as_completed(asked):
            try:
                await done
            except StoreUnavailable as error:
                failures.append(str(error))
            if 2 * sum(map(_has_answered, asked)) > len(asked):
                return
        raise StoreUnavailable(f"no majority of the Sentinels names a primary {self._name!r}: {'; '.join(failures)}")

    async def _confirm(self, address: Address) -> None:
        if await self.primary() != address:
            raise StoreUnavailable(f"{address} is the primary no more")

    async def news(self) -> str | None:
        """Returns what is new if the primary is another one than was connected to last."""
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(WATCH_PAUSE):
                address = await self.primary()
            if address != self._connected_to:
                return _moved_to(address)
        return None

    async def _ask(self, sentinel: Connector) -> tuple[int, Address]:
        try:
            connection = await sentinel()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        try:
            # The Sentinel that leads a failover has two opinions until it is over: MASTER has the new epoch and the
            # old address. Of both commands, each has one thing right. Sent as one, they tell of the same moment.
            ask_address: Command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
            ask_epoch: Command = ("SENTINEL", "MASTER", self._name)
            await connection.send_packed_command([pack_command(ask_address) + pack_command(ask_epoch)])
            address = await connection.read_response(disable_decoding=True)
            return _told(address, await connection.read_response(disable_decoding=True))
        except ResponseError as error:
            raise StoreUnavailable(f"a Sentinel answered: {error}") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"a Sentinel did not answer: {type(error).__name__}") from error
        finally:
            await connection.disconnect(nowait=True)


class Watch:
    """Notices what a connection that still answers does not tell: that its server was cut off and replaced."""

    def __init__(self, sentinels: Sentinels, server: Server) -> None:
        self._sentinels = sentinels
        self._server = server
        sentinels.on_move = server.give_up
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to look every now and then."""
        self._watching = asyncio.create_task(self._watch(), name="sentinel-watch")

    async def stop(self) -> None:
        """Looks no more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_PAUSE)
            if news := await self._sentinels.news():
                self._server.give_up(news)


def _has_answered(asked: _Asked) -> bool:
    return asked.done() and asked.exception() is None


def _moved_to(address: Address) -> str:
    return f"the Sentinels have made {address} the primary"


def _told(address: Any, known: Any) -> tuple[int, Address]:
    """Reads what a Sentinel knows of a primary: its configuration epoch and address."""
    try:
        host, port = address
        return int(dict(zip(known[::2], known[1::2], strict=True))[b"config-epoch"]), Address(host.decode(), int(port))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise StoreUnavailable("a Sentinel answered what is no primary") from error
