"""The one way to Redis: a bounded queue, and one task that owns one connection.

Request handlers never await a Redis connection. A handler that is cancelled in the middle of a reply would leave the
rest of it for whoever asks next, which is how other services have shown one user another's data. Here a handler hands
over its commands and a deadline, and awaits a future. The owner takes all that waits, writes it at once, reads the
replies in order and hands them out; a handler that has gone by then is passed over, and its reply is still read. Any
doubt about the connection (a timeout, a reset, a reply that makes no sense) closes it and fails what was in flight.

So a slow moment makes the next batch larger instead of making connections, and 1,000 callers cost little more than one.
Each batch starts with TIME: every answer carries the store's clock, which is the one that decides.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError, ResponseError

from catraca_server.store import NotDurable, Overloaded, StoreUnavailable

logger = logging.getLogger(__name__)

Command = tuple[Any, ...]
"""A command's name and arguments: str, bytes or int."""
Connector = Callable[[], Awaitable[AbstractConnection]]
"""Returns a new connection that is fit for use. Raises StoreUnavailable, RedisError or OSError."""

QUEUE_LIMIT = 32_768
"""Commands that may wait. What a store at its usual pace answers within its timeout, with room for a hiccup."""

BATCH_LIMIT = 4_096
"""Commands in one batch, so that a batch takes milliseconds and the timeout judges the store and not the batch."""

HEARTBEAT = 0.5
"""Seconds after which an idle connection is asked for the time, to see a dead store before a caller does; and any
connection for its role, to see that a primary was made a replica."""

RECONNECT_PAUSE = 0.1
"""Seconds between attempts to connect."""

RECONNECT_PATIENCE = 0.5
"""Seconds for an attempt, if the timeout is not longer: many exchanges, and with Sentinels several servers. Callers
wait no longer for that than their timeout, and while the store is known to be lost, not at all."""

START_PATIENCE = 5.0
"""Seconds for the first connection: a name to be looked up, a machine that is busy starting everything at once."""

COMPLAINT_PAUSE = 1.0
"""Seconds between two log lines about commands that the store refused."""

WAIT_PART = 0.4
"""Of the timeout, for replicas to acknowledge: who has waited for one batch is told in time about the next."""

_TIME = pack_command(("TIME",))
_ROLE = pack_command(("ROLE",))


@dataclass(frozen=True, slots=True)
class Answer:
    """The replies to one caller's commands, in their order. An error reply stands in its place as an exception."""

    now: int
    """The store's clock, in Unix milliseconds, when it began the batch."""
    replies: Sequence[Any]
    source: "Batcher" = field(repr=False)

    def reply(self, at: int, *types: type) -> Any:
        """Returns a reply that is of a type that its command has. Raises StoreUnavailable if it is not one."""
        reply = self.replies[at]
        if isinstance(reply, ResponseError):
            self.source.complain(f"the store refused: {reply}")
            # Its name is in the text where a script ran into it, on Redis 6.2.
            if isinstance(reply, ReadOnlyError) or "READONLY" in str(reply):
                self.distrust("it is a primary no more")
            raise StoreUnavailable(f"the store refused: {reply}")
        if type(reply) not in types:
            self.distrust("a reply that cannot be one to what was asked")
        return reply

    def distrust(self, why: str) -> NoReturn:
        """Has the connection closed that this came over, because it cannot be an answer to what was asked.

        Raises StoreUnavailable: nothing is known.
        """
        self.source.give_up(why)
        raise StoreUnavailable(why)


@dataclass(slots=True)
class _Question:
    packed: bytes
    count: int
    answer: asyncio.Future[Answer]

    def end(self, answer: Answer, error: StoreUnavailable | None) -> None:
        if not self.answer.done():
            if error is None:
                self.answer.set_result(answer)
            else:
                self.answer.set_exception(error)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """Asks the store, for any number of callers at once.

    `timeout` (seconds) is what the store has for connecting and for answering a batch. `on_change` is told when the
    store is found (True) or lost (False). With `replica_acks` each answer waits until so many replicas have all that
    was written before it; a batcher of its own should do that, because everybody behind it waits too.
    """

    def __init__(
        self, connect: Connector, *, timeout: float, on_change: Callable[[bool], None], replica_acks: int = 0
    ) -> None:
        self._connect = connect
        self._timeout = timeout
        self._on_change = on_change
        self._replica_acks = replica_acks
        wait: Command = ("WAIT", replica_acks, int(timeout * 1000 * WAIT_PART))
        self._wait = pack_command(wait)
        self._role_due = 0.0
        self._role_refused = False
        self._waiting: deque[_Question] = deque()
        self._waiting_commands = 0
        self._in_flight: list[_Question] = []
        self._wake = asyncio.Event()
        self._lost: str | None = "not connected yet"
        self._distrusted: str | None = None
        self._complained_at = -COMPLAINT_PAUSE
        self._owner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects and starts to answer. Raises what `connect` raises, or TimeoutError after START_PATIENCE."""
        async with asyncio.timeout(START_PATIENCE):
            connection = await self._connect()
        self._find()
        self._owner = asyncio.create_task(self._own(connection), name="store-owner")
        # Lets it begin: cancelled before that, it could not close the connection.
        await asyncio.sleep(0)

    def begin(self) -> None:
        """Starts to connect, and to answer once it has; `on_change` is told only if that fails."""
        self._lost = None
        self._owner = asyncio.create_task(self._own(None), name="store-owner")

    async def stop(self) -> None:
        """Closes the connection. What still waits is failed."""
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
        self._refuse("shutting down")

    async def ask(self, commands: Sequence[Command], deadline: float) -> Answer:
        """Sends commands and returns their replies by `deadline`, a time of the loop's clock, or the timeout.

        Raises StoreUnavailable if there is no answer by then, and at once while the store is known to be lost; and
        Overloaded if too much is waiting already.
        """
        loop = asyncio.get_running_loop()
        deadline = min(deadline, loop.time() + self._timeout)
        if self._lost is not None:
            raise StoreUnavailable(self._lost)
        if deadline <= loop.time():
            raise StoreUnavailable("the deadline has passed")
        if self._waiting_commands + len(commands) > QUEUE_LIMIT:
            raise Overloaded
        question = _Question(b"".join(map(pack_command, commands)), len(commands), loop.create_future())
        self._waiting.append(question)
        self._waiting_commands += question.count
        self._wake.set()
        timer = loop.call_at(deadline, question.fail, StoreUnavailable("no answer by the deadline"))
        try:
            return await question.answer
        finally:
            timer.cancel()
            # An exception in it refers to this frame, and with it to the whole call, which would be garbage in a cycle.
            del question, timer

    def give_up(self, why: str) -> None:
        """Has the connection closed and a new one made."""
        self._distrusted = why
        self._wake.set()

    def complain(self, what: str) -> None:
        """Logs what is wrong with the store, but not once for every call that suffers from it."""
        now = asyncio.get_running_loop().time()
        if now >= self._complained_at + COMPLAINT_PAUSE:
            self._complained_at = now
            logger.error(what)

    async def _own(self, connection: AbstractConnection | None) -> None:
        while True:
            if connection is None:
                connection = await self._reconnect()
            try:
                await self._serve(connection)
            except (RedisError, OSError, StoreUnavailable) as error:
                logger.warning("store connection closed: %s: %s", type(error).__name__, error)
            except Exception:
                logger.exception("defect in the store's owner; starting over with a new connection")
            finally:
                await connection.disconnect(nowait=True)
                self._fail_in_flight()
            connection = None

    async def _reconnect(self) -> AbstractConnection:
        """Tries at once, because what waits has not been sent and may yet be answered; then again until it works."""
        while True:
            too_late = asyncio.get_running_loop().call_later(self._timeout, self._lose, "connecting takes its time")
            try:
                async with asyncio.timeout(max(self._timeout, RECONNECT_PATIENCE)):
                    connection = await self._connect()
            except Exception as error:  # noqa: BLE001  whatever it is, the owner has to live on
                too_late.cancel()
                self._lose(f"{type(error).__name__}: {error}")
                await asyncio.sleep(RECONNECT_PAUSE)
            else:
                self._find()
                return connection
            finally:
                too_late.cancel()

    async def _serve(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                heartbeat = loop.call_later(HEARTBEAT, self._wake.set)
                await self._wake.wait()
                heartbeat.cancel()
            self._wake.clear()
            self._check_trust()
            self._take()
            async with asyncio.timeout(self._timeout):
                await self._exchange(connection)

    def _take(self) -> None:
        """Moves what waits into flight, up to the limit, leaving out what nobody waits for any more."""
        commands = 0
        while self._waiting and (not commands or commands + self._waiting[0].count <= BATCH_LIMIT):
            question = self._waiting.popleft()
            self._waiting_commands -= question.count
            if not question.answer.done():
                self._in_flight.append(question)
                commands += question.count

    async def _exchange(self, connection: AbstractConnection) -> None:
        asks_role = asyncio.get_running_loop().time() >= self._role_due
        waits = self._replica_acks > 0 and bool(self._in_flight)
        packed = [_TIME, *(question.packed for question in self._in_flight)]
        await connection.send_packed_command(
            [*([_ROLE] if asks_role else []), *packed, *([self._wait] if waits else [])], check_health=False
        )
        if asks_role:
            self._check_role(await _reply(connection))
        now = _milliseconds(await _reply(connection))
        answers = [
            Answer(now, [await _reply(connection) for _ in range(question.count)], self) for question in self._in_flight
        ]
        error = self._too_few(await _reply(connection)) if waits else None
        for question, answer in zip(self._in_flight, answers, strict=True):
            question.end(answer, error)
        self._in_flight = []

    def _check_role(self, reply: Any) -> None:
        """Sees that a primary has become a replica, which may lag behind, and answers as if nothing had happened."""
        if isinstance(reply, list) and reply[:1] != [b"master"]:
            raise StoreUnavailable("it is a primary no more")
        if isinstance(reply, NoPermissionError) and not self._role_refused:
            self._role_refused = True
            logger.warning("the store refused ROLE (%s): should it become a replica, that is not noticed", reply)
        self._role_due = asyncio.get_running_loop().time() + HEARTBEAT

    def _too_few(self, reply: Any) -> NotDurable | None:
        """Reads the reply to WAIT: how many replicas have what was written up to there."""
        if not isinstance(reply, int):
            raise StoreUnavailable(f"a reply to WAIT that is no number: {reply}")
        if reply >= self._replica_acks:
            return None
        self.complain(f"{reply} replicas acknowledged a write in time, of {self._replica_acks} that have to")
        return NotDurable("too few replicas acknowledged it")

    def _check_trust(self) -> None:
        if self._distrusted is not None:
            raise StoreUnavailable(self._distrusted)

    def _find(self) -> None:
        self._distrusted = None
        if self._lost is not None:
            self._lost = None
            logger.info("store found")
            self._on_change(True)

    def _lose(self, reason: str) -> None:
        if self._lost is None:
            logger.error("store lost: %s", reason)
            self._on_change(False)
        self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        self._lost = reason
        while self._waiting:
            self._waiting.popleft().fail(StoreUnavailable(reason))
        self._waiting_commands = 0

    def _fail_in_flight(self) -> None:
        for question in self._in_flight:
            question.fail(StoreUnavailable("the connection was lost before the answer"))
        self._in_flight = []


def _milliseconds(reply: Any) -> int:
    """Reads the reply to TIME."""
    match reply:
        case [bytes() as seconds, bytes() as microseconds] if seconds.isdigit() and microseconds.isdigit():
            return int(seconds) * 1000 + int(microseconds) // 1000
    raise StoreUnavailable("a reply to TIME that is no time")


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error
