"""The one way to Redis: a bounded queue, and one task that owns one connection.

Request handlers never await a Redis connection. A handler that is cancelled in the middle of a reply would leave the
rest of it to the next caller, which is how other services have shown one user another's data. Here a handler hands over
its commands and a deadline, and awaits a future. The owner takes everything that waits, writes it at once, reads the
replies in order and hands them out; if a handler has gone by then, its reply is read all the same and dropped. Any
doubt about the connection (a timeout, a reply that makes no sense) closes it and fails what was in flight.

If the other side closes the connection (CLIENT KILL, Redis' `timeout`, a restart) there is no such doubt, and mostly
time left. Requests whose replies were lost with it are sent again on a new one, within their deadlines and at most
REPEATS times. If no new connection can be made they fail at once: a store that is down is not waited for. Since the
first sending may have been executed, a repeated write may find its own work. The replies say that they are to a
repeated request; what that means only the code that wrote the command can know (see `Replies.repeated`).

So a slow moment makes the next batch larger instead of opening connections, and 1,000 callers cost little more than
one. Each batch starts with TIME: all replies carry the store's clock, which is the one that decides.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError as RedisConnectionError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
)

from catraca_server.redis.errors import NotDurable, Overloaded, StoreProblem, StoreUnavailable
from catraca_server.redis.replies import Replies, described

logger = logging.getLogger(__name__)

Command = tuple[Any, ...]
"""A command's name and arguments: str, bytes or int."""
Connector = Callable[[], Awaitable[AbstractConnection]]
"""Returns a new connection that is fit for use. Raises StoreUnavailable, RedisError or OSError."""

QUEUE_LIMIT = 32_768
"""Commands that may wait: what a store at its usual pace answers within its timeout, with room for a hiccup."""

BATCH_LIMIT = 4_096
"""Commands in one batch, so that a batch takes milliseconds and the timeout judges the store and not the batch."""

HEARTBEAT_SECONDS = 0.5
"""An idle connection is asked for the time this often, to notice a dead store before a caller does; and any connection
for its role, to notice that its server is no longer a primary."""

RECONNECT_PAUSE_SECONDS = 0.1
"""Between attempts to connect."""

RECONNECT_TIMEOUT_SECONDS = 0.5
"""For one attempt, unless the store's timeout is longer: it takes many exchanges, and with Sentinels several servers.
Callers wait for it no longer than their own timeout, and not at all once the store is known to be disconnected."""

CONNECT_TIMEOUT_SECONDS = 5.0
"""For the first connection: a name has to be resolved, and the machine may be busy starting everything at once."""

LOG_PAUSE_SECONDS = 1.0
"""Between two log lines about commands that the store refused."""

REPEATS = 2
"""Times that a request is sent again because its connection was closed: an accident may happen twice in a row."""

WAIT_FRACTION = 0.4
"""Of the timeout, for replicas to acknowledge: a caller that had to wait for one batch still hears about the next."""

_TIME = pack_command(("TIME",))
_ROLE = pack_command(("ROLE",))


class _Request:
    """Commands that wait for their replies."""

    __slots__ = ("count", "packed", "replies", "sent")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.packed = b"".join(map(pack_command, commands))
        self.count = len(commands)
        self.sent = 0
        """How many times."""
        self.replies: asyncio.Future[Replies] = asyncio.get_running_loop().create_future()

    def resolve(self, replies: Replies) -> None:
        if not self.replies.done():
            self.replies.set_result(replies)

    def expire(self) -> None:
        self.fail(StoreUnavailable("no reply by the deadline", StoreProblem.NOT_IN_TIME))

    def fail(self, error: Exception) -> None:
        if not self.replies.done():
            self.replies.set_exception(error)


class Multiplexer:
    """Executes commands for any number of callers over one connection.

    `timeout_seconds` is what the store has for connecting and for answering a batch. `on_change` is told when the store
    is connected (True) or disconnected (False). With `replica_acks` all replies wait until that many replicas have
    everything that was written before; this takes a multiplexer of its own, because everyone behind it waits too.
    """

    def __init__(
        self, connect: Connector, *, timeout_seconds: float, on_change: Callable[[bool], None], replica_acks: int = 0
    ) -> None:
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._on_change = on_change
        self._replica_acks = replica_acks
        wait: Command = ("WAIT", replica_acks, int(timeout_seconds * 1000 * WAIT_FRACTION))
        self._wait = pack_command(wait)
        self._role_due = 0.0
        self._role_refused = False
        self._waiting: deque[_Request] = deque()
        self._waiting_commands = 0
        self._in_flight: list[_Request] = []
        self._received: list[Replies] = []
        """Of the first requests in flight."""
        self._wake = asyncio.Event()
        self._disconnected: StoreUnavailable | None = StoreUnavailable("not connected yet", StoreProblem.CANNOT_CONNECT)
        self._invalidated: StoreUnavailable | None = None
        self._logged_at = -LOG_PAUSE_SECONDS
        self._owner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects and starts to answer.

        Raises what `connect` raises, or TimeoutError after CONNECT_TIMEOUT_SECONDS.
        """
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            connection = await self._connect()
        self._set_connected()
        self._owner = asyncio.create_task(self._own(connection), name="store-owner")
        # Lets the task begin: cancelled before that, it could not close the connection.
        await asyncio.sleep(0)

    def begin(self) -> None:
        """Starts to connect, and to answer once connected; `on_change` is told only if that fails."""
        self._disconnected = None
        self._owner = asyncio.create_task(self._own(None), name="store-owner")

    async def stop(self) -> None:
        """Closes the connection, and fails what still waits."""
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
        self._refuse(StoreUnavailable("shutting down", StoreProblem.SHUTTING_DOWN))

    async def execute(self, commands: Sequence[Command], deadline: float) -> Replies:
        """Sends commands and returns their replies by `deadline`, a time of the loop's clock, or the timeout.

        Raises StoreUnavailable if there are none by then, and at once while the store is known to be disconnected; and
        Overloaded if too much is waiting already.
        """
        loop = asyncio.get_running_loop()
        deadline = min(deadline, loop.time() + self._timeout_seconds)
        if self._disconnected is not None:
            raise _again(self._disconnected)
        if deadline <= loop.time():
            raise StoreUnavailable("the deadline has passed", StoreProblem.NOT_IN_TIME)
        if self._waiting_commands + len(commands) > QUEUE_LIMIT:
            raise Overloaded
        request = _Request(commands)
        self._waiting.append(request)
        self._waiting_commands += request.count
        self._wake.set()
        timer = loop.call_at(deadline, request.expire)
        try:
            return await request.replies
        finally:
            timer.cancel()
            # An exception in it refers to this frame, and with it to the whole call, which would be garbage in a cycle.
            del request, timer

    def invalidate(self, why: str, problem: StoreProblem = StoreProblem.MALFORMED_REPLY) -> None:
        """Has the connection closed and a new one made, because its replies can no longer be trusted."""
        self._invalidated = StoreUnavailable(why, problem)
        self._wake.set()

    def log_throttled(self, what: str) -> None:
        """Logs what is wrong with the store, but not once for every call that suffers from it."""
        now = asyncio.get_running_loop().time()
        if now >= self._logged_at + LOG_PAUSE_SECONDS:
            self._logged_at = now
            logger.error(what)

    async def _own(self, connection: AbstractConnection | None) -> None:
        while True:
            if connection is None:
                connection = await self._reconnect()
            failure = StoreUnavailable("shutting down", StoreProblem.SHUTTING_DOWN)
            try:
                await self._serve(connection)
            except (RedisError, OSError, StoreUnavailable) as error:
                failure = _failure_of(error)
                if failure.problem is StoreProblem.DISCONNECTED:
                    self._repeat_in_flight()
                logger.warning("store connection closed: %s: %s", failure.problem.value, failure)
            except Exception:
                failure = StoreUnavailable("a defect of catraca, see the log", StoreProblem.MALFORMED_REPLY)
                logger.exception("defect in the store's owner; starting over with a new connection")
            finally:
                await connection.disconnect(nowait=True)
                self._fail_in_flight(failure)
            connection = None

    async def _reconnect(self) -> AbstractConnection:
        """Tries at once, because what waits has not been sent and may yet be answered; then again until it works."""
        loop = asyncio.get_running_loop()
        late = StoreUnavailable("not connected within the timeout", StoreProblem.CANNOT_CONNECT)
        while True:
            timer = loop.call_later(self._timeout_seconds, self._set_disconnected, late)
            try:
                async with asyncio.timeout(max(self._timeout_seconds, RECONNECT_TIMEOUT_SECONDS)):
                    connection = await self._connect()
            except Exception as error:  # noqa: BLE001  whatever it is, the owner has to live on
                timer.cancel()
                self._set_disconnected(_failure_to_connect(error))
                await asyncio.sleep(RECONNECT_PAUSE_SECONDS)
            else:
                self._set_connected()
                return connection
            finally:
                timer.cancel()

    async def _serve(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                heartbeat = loop.call_later(HEARTBEAT_SECONDS, self._wake.set)
                await self._wake.wait()
                heartbeat.cancel()
            self._wake.clear()
            self._check_valid()
            if _is_closed(connection):
                # Seen before anything is written, so that nothing is lost with it.
                raise StoreUnavailable("the idle connection was closed", StoreProblem.DISCONNECTED)
            self._take()
            async with asyncio.timeout(self._timeout_seconds):
                await self._exchange(connection)

    def _take(self) -> None:
        """Moves what waits into flight, up to the limit, leaving out what nobody waits for any more."""
        commands = 0
        while self._waiting and (not commands or commands + self._waiting[0].count <= BATCH_LIMIT):
            request = self._waiting.popleft()
            self._waiting_commands -= request.count
            if not request.replies.done():
                request.sent += 1
                self._in_flight.append(request)
                commands += request.count

    async def _exchange(self, connection: AbstractConnection) -> None:
        asks_role = asyncio.get_running_loop().time() >= self._role_due
        waits = self._replica_acks > 0 and bool(self._in_flight)
        packed = [_TIME, *(request.packed for request in self._in_flight)]
        await connection.send_packed_command(
            [*([_ROLE] if asks_role else []), *packed, *([self._wait] if waits else [])], check_health=False
        )
        if asks_role:
            self._check_role(await _reply(connection))
        now_ms = _milliseconds(await _reply(connection))
        for request in self._in_flight:
            values = [await _reply(connection) for _ in range(request.count)]
            self._received.append(Replies(now_ms, values, self, repeated=request.sent > 1))
        too_few = self._too_few_replicas(await _reply(connection)) if waits else None
        for request, replies in zip(self._in_flight, self._received, strict=True):
            if too_few is None:
                request.resolve(replies)
            else:
                request.fail(NotDurable(too_few.detail))
        self._in_flight, self._received = [], []

    def _check_role(self, reply: Any) -> None:
        """Notices that a primary has become a replica, which may lag behind and replies as if nothing had happened."""
        if isinstance(reply, list) and reply[:1] != [b"master"]:
            raise StoreUnavailable("it is no longer a primary", StoreProblem.NOT_PRIMARY)
        if isinstance(reply, NoPermissionError) and not self._role_refused:
            self._role_refused = True
            logger.warning("store refused ROLE: if it becomes a replica, that goes unnoticed: %s", described(reply))
        self._role_due = asyncio.get_running_loop().time() + HEARTBEAT_SECONDS

    def _too_few_replicas(self, reply: Any) -> NotDurable | None:
        """Reads the reply to WAIT: how many replicas have everything that was written up to there."""
        if not isinstance(reply, int):
            raise StoreUnavailable("malformed WAIT reply", StoreProblem.MALFORMED_REPLY)
        if reply >= self._replica_acks:
            return None
        self.log_throttled(f"too few replicas acknowledged a write in time: {reply} of {self._replica_acks}")
        return NotDurable("too few replicas acknowledged the write in time")

    def _check_valid(self) -> None:
        if self._invalidated is not None:
            raise self._invalidated

    def _set_connected(self) -> None:
        self._invalidated = None
        if self._disconnected is not None:
            self._disconnected = None
            logger.info("store connected")
            self._on_change(True)

    def _set_disconnected(self, why: StoreUnavailable) -> None:
        if self._disconnected is None:
            logger.error("store disconnected: %s: %s", why.problem.value, why)
            self._on_change(False)
        self._refuse(why)

    def _refuse(self, why: StoreUnavailable) -> None:
        """Fails what waits, and from now on everything at once."""
        self._disconnected = why
        while self._waiting:
            self._waiting.popleft().fail(_again(why))
        self._waiting_commands = 0

    def _repeat_in_flight(self) -> None:
        """Has what was in flight on a closed connection sent first on the next one, but for what is answered."""
        if not self._replica_acks:
            for request, replies in zip(self._in_flight, self._received, strict=False):
                request.resolve(replies)
        repeated = [request for request in self._in_flight if request.sent <= REPEATS and not request.replies.done()]
        self._waiting.extendleft(reversed(repeated))
        self._waiting_commands += sum(request.count for request in repeated)
        self._in_flight = [request for request in self._in_flight if request.sent > REPEATS]

    def _fail_in_flight(self, failure: StoreUnavailable) -> None:
        for request in self._in_flight:
            request.fail(_again(failure))
        self._in_flight, self._received = [], []


def _is_closed(connection: AbstractConnection) -> bool:
    """Whether the other side has closed a connection, as far as can be told without using it."""
    reader = getattr(connection, "_reader", None)  # redis-py has no public way to ask
    return isinstance(reader, asyncio.StreamReader) and (reader.at_eof() or reader.exception() is not None)


def _again(error: StoreUnavailable) -> StoreUnavailable:
    """Returns an error to raise for one caller of several: a raised exception collects the frames that it passes."""
    return StoreUnavailable(error.detail, error.problem)


def _failure_of(error: RedisError | OSError | StoreUnavailable) -> StoreUnavailable:
    """Returns what ended a connection. A reply may be quoted in the exceptions of redis-py, hence only their types."""
    match error:
        case StoreUnavailable():
            return _again(error)
        case TimeoutError() | RedisTimeoutError():
            return StoreUnavailable("no reply within the timeout", StoreProblem.NOT_IN_TIME)
        case AuthenticationError() | AuthorizationError():
            return StoreUnavailable("the store no longer accepts the user or password", StoreProblem.REFUSED)
        case BusyLoadingError():
            return StoreUnavailable("the store is loading its data", StoreProblem.LOADING)
        case OSError() | RedisConnectionError():
            return StoreUnavailable("the connection was closed before the reply", StoreProblem.DISCONNECTED)
        case _:
            return StoreUnavailable(f"malformed reply ({type(error).__name__})", StoreProblem.MALFORMED_REPLY)


def _failure_to_connect(error: Exception) -> StoreUnavailable:
    match error:
        case StoreUnavailable():
            return _again(error)
        case TimeoutError():
            return StoreUnavailable("not connected within the timeout", StoreProblem.CANNOT_CONNECT)
        case _:
            return StoreUnavailable(f"{type(error).__name__}: {error}", StoreProblem.CANNOT_CONNECT)


def _milliseconds(reply: Any) -> int:
    """Reads the reply to TIME."""
    match reply:
        case [bytes() as seconds, bytes() as microseconds] if seconds.isdigit() and microseconds.isdigit():
            return int(seconds) * 1000 + int(microseconds) // 1000
    raise StoreUnavailable("malformed TIME reply", StoreProblem.MALFORMED_REPLY)


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error
