"""Finding the primary that Sentinels monitor, and noticing when another server becomes the primary."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from catraca_server.redis.errors import StoreProblem, StoreUnavailable
from catraca_server.redis.link import Server
from catraca_server.redis.multiplexer import Command, Connector
from catraca_server.redis.replies import described
from catraca_server.redis.url import Address

logger = logging.getLogger(__name__)

POLL_PAUSE_SECONDS = 1.0
"""Between two polls for the primary while the one in use answers: it may have been cut off and replaced."""

STRAGGLER_TIMEOUT_SECONDS = 0.05
"""How long to wait for the other Sentinels once a majority has answered."""

_Opinion: TypeAlias = "asyncio.Task[tuple[int, Address]]"


class Sentinels:
    """Connects to the primary that a group of Sentinels names.

    All are asked at once; a majority has to answer, and the newest answer counts, by the configuration epoch, which
    every failover raises. So a Sentinel that has been cut off without knowing it does no harm.
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
        self.on_move: Callable[[str, StoreProblem], None] = lambda _, __: None
        """Called when a connection goes to another primary than before, so that those to the former one are closed."""

    async def __call__(self) -> AbstractConnection:
        """Returns a new connection to the primary, without a timeout of its own. Raises StoreUnavailable."""
        address = await self.primary()
        connection = await self._primary_at(address)()
        try:
            # This server may have stalled and been replaced before it answered, without knowing it.
            await self._check_still_primary(address)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if self._connected_to not in (None, address):
            self.on_move(_moved_to(address), StoreProblem.NOT_PRIMARY)
        self._connected_to = address
        return connection

    async def primary(self) -> Address:
        """Asks who the primary is. Raises StoreUnavailable if no majority answers."""
        opinions = [asyncio.create_task(self._ask(sentinel)) for sentinel in self._sentinels]
        try:
            await self._wait_for_majority(opinions)
            # The majority may be Sentinels that have not heard of a failover yet.
            await asyncio.wait(opinions, timeout=STRAGGLER_TIMEOUT_SECONDS)
            return max(task.result() for task in opinions if _has_answered(task))[1]
        finally:
            for task in opinions:
                task.cancel()
            await asyncio.gather(*opinions, return_exceptions=True)

    async def _wait_for_majority(self, opinions: Sequence[_Opinion]) -> None:
        failures: list[str] = []
        for done in asyncio.as_completed(opinions):
            try:
                await done
            except StoreUnavailable as error:
                failures.append(str(error))
            if 2 * sum(map(_has_answered, opinions)) > len(opinions):
                return
        raise StoreUnavailable(
            f"no majority of the Sentinels names a primary {self._name!r}: {'; '.join(failures)}",
            StoreProblem.CANNOT_CONNECT,
        )

    async def _check_still_primary(self, address: Address) -> None:
        if await self.primary() != address:
            raise StoreUnavailable(f"{address} is no longer the primary", StoreProblem.NOT_PRIMARY)

    async def change(self) -> str | None:
        """Returns what has changed, if the primary is not the server that was connected to last."""
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(POLL_PAUSE_SECONDS):
                address = await self.primary()
            if address != self._connected_to:
                return _moved_to(address)
        return None

    async def _ask(self, sentinel: Connector) -> tuple[int, Address]:
        try:
            connection = await sentinel()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error), StoreProblem.CANNOT_CONNECT) from error
        try:
            # The Sentinel that leads a failover contradicts itself until it is over: MASTER has the new epoch and the
            # old address. Each command gets one of the two right; sent together, they describe the same moment.
            ask_address: Command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
            ask_epoch: Command = ("SENTINEL", "MASTER", self._name)
            await connection.send_packed_command([pack_command(ask_address) + pack_command(ask_epoch)])
            address = await connection.read_response(disable_decoding=True)
            return _epoch_and_address(address, await connection.read_response(disable_decoding=True))
        except ResponseError as error:
            raise StoreUnavailable(f"a Sentinel refused: {described(error)}", StoreProblem.REFUSED) from error
        except (RedisError, OSError) as error:
            raise StoreUnavailable(
                f"a Sentinel did not answer: {type(error).__name__}", StoreProblem.CANNOT_CONNECT
            ) from error
        finally:
            await connection.disconnect(nowait=True)


class PrimaryMonitor:
    """Notices what a connection that still answers does not show: that its server was cut off and replaced."""

    def __init__(self, sentinels: Sentinels, server: Server) -> None:
        self._sentinels = sentinels
        self._server = server
        sentinels.on_move = server.invalidate
        self._polling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to poll the Sentinels."""
        self._polling = asyncio.create_task(self._poll(), name="sentinel-poll")

    async def stop(self) -> None:
        """Stops polling."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_PAUSE_SECONDS)
            try:
                if change := await self._sentinels.change():
                    self._server.invalidate(change, StoreProblem.NOT_PRIMARY)
            except Exception:
                logger.exception("defect in polling the Sentinels; going on")


def _has_answered(opinion: _Opinion) -> bool:
    return opinion.done() and opinion.exception() is None


def _moved_to(address: Address) -> str:
    return f"the Sentinels have made {address} the primary"


def _epoch_and_address(address: Any, properties: Any) -> tuple[int, Address]:
    """Reads what a Sentinel knows about a primary: its configuration epoch and address."""
    try:
        host, port = address
        epoch = int(dict(zip(properties[::2], properties[1::2], strict=True))[b"config-epoch"])
        return epoch, Address(host.decode(), int(port))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise StoreUnavailable("malformed Sentinel reply", StoreProblem.MALFORMED_REPLY) from error
