"""The one way to Redis: a bounded queue, and one connection that has one batch of commands in flight.

Request handlers never await a Redis connection. A handler that is cancelled in the middle of a reply would leave the
rest of it to the next caller, which is how other services have shown one user another's data. Here a handler hands over
its commands and a deadline, and awaits a future. All waiting commands are written at once. When all their replies are
there, these are handed out, and the commands that have arrived meanwhile are written. If a handler has been cancelled
by then, its reply is still read, and dropped. Any doubt about the connection (a timeout, a malformed reply) closes it
and fails the requests in flight. One task, the owner, connects and reconnects; the exchanges themselves need no task.

If the other side closes the connection (CLIENT KILL, Redis' `timeout`, a restart) there is no such doubt, and mostly
time left. Requests whose replies were lost with it are sent again on a new connection, within their deadlines and at
most REPEATS times. If no new connection can be made, they fail at once: nothing waits for a store that is down. Since
the first sending may have been executed, a repeated write may find its own work. The replies say that they are to a
repeated request; only the code that wrote the command knows what that means (see `Replies.repeated`).

So a slow moment makes the next batch larger instead of opening connections, and 1,000 callers cost little more than
one. Each batch starts with TIME: all replies carry the store's clock, the only one that decides.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError

from catraca_server.redis.errors import NotDurable, Overloaded, StoreProblem, StoreUnavailable
from catraca_server.redis.failures import again, failure_of, failure_to_connect
from catraca_server.redis.observer import NO_OBSERVER, StoreObserver
from catraca_server.redis.pending import Deadlines, PendingRequest
from catraca_server.redis.replies import Replies, described
from catraca_server.redis.wire import Wire, take_over

logger = logging.getLogger(__name__)

Command = tuple[Any, ...]
"""A command's name and arguments: str, bytes or int."""
Connector = Callable[[], Awaitable[AbstractConnection]]
"""Returns a new connection that is fit for use. Raises StoreUnavailable, RedisError or OSError."""

QUEUE_LIMIT = 32_768
"""How many commands may wait: what a store at its usual pace answers within its timeout, with room for a hiccup."""

BATCH_LIMIT = 4_096
"""Commands in one batch. It takes milliseconds, so a timeout means that the store is slow, not the batch large."""

HEARTBEAT_SECONDS = 0.5
"""How often an idle connection is asked for the time, to notice a dead store before a caller does; and any connection
for the server's role, to notice that the server is no longer a primary."""

RECONNECT_PAUSE_SECONDS = 0.1
"""The pause between attempts to connect."""

RECONNECT_TIMEOUT_SECONDS = 0.5
"""How long one attempt may take, unless the store's timeout is longer: it needs many exchanges, and with Sentinels
several servers. Callers wait no longer than their own timeout, and not at all once the store is known to be
disconnected."""

CONNECT_TIMEOUT_SECONDS = 5.0
"""How long the first connection may take: a name must be resolved, and a machine that is starting may be busy."""

LOG_PAUSE_SECONDS = 1.0
"""The pause between two log lines about commands that the store refused."""

REPEATS = 2
"""How many times a request is sent again after its connection was closed: that may happen twice in a row."""

WAIT_FRACTION = 0.4
"""How much of the timeout replicas have to acknowledge: a caller that waits for one batch is in time with the next."""

_TIME = pack_command(("TIME",))
_ROLE = pack_command(("ROLE",))


class Multiplexer:
    """Executes commands for any number of callers over one connection.

    `timeout_seconds` is the store's time for connecting and for answering a batch. `on_change` is called with True when
    the store is connected, with False when it is disconnected. With `replica_acks`, all replies wait until that many
    replicas have everything that was written before. This needs a multiplexer of its own, because all its callers wait.
    """

    def __init__(
        self,
        connect: Connector,
        *,
        timeout_seconds: float,
        on_change: Callable[[bool], None],
        replica_acks: int = 0,
        observer: StoreObserver = NO_OBSERVER,
    ) -> None:
        self._observer = observer
        self._sent_at = 0.0
        self._commands = 0
        """How many commands of callers are in flight."""
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._on_change = on_change
        self._replica_acks = replica_acks
        wait: Command = ("WAIT", replica_acks, int(timeout_seconds * 1000 * WAIT_FRACTION))
        self._wait = pack_command(wait)
        self._role_due = True
        self._heartbeat: asyncio.TimerHandle | None = None
        self._role_refused = False
        self._waiting: deque[PendingRequest] = deque()
        self._waiting_commands = 0
        self._in_flight: list[PendingRequest] = []
        self._received: list[Any] = []
        """The replies so far to the batch in flight, beginning with those to ROLE and TIME."""
        self._asks_role = False
        """Whether the batch in flight asks for the role."""
        self._deadlines = Deadlines(lambda: chain(self._in_flight, self._waiting))
        self._wire: Wire | None = None
        """The connection, while there is one and it is not in doubt."""
        self._exchanging = False
        self._send_due = False
        self._broken: asyncio.Future[None]
        """Fails with the error that ends the connection; set while there is a connection."""
        self._disconnected: StoreUnavailable | None = StoreUnavailable("not connected yet", StoreProblem.CANNOT_CONNECT)
        self._invalidated: StoreUnavailable | None = None
        self._logged_at = -LOG_PAUSE_SECONDS
        self._owner: asyncio.Task[None] | None = None

    @property
    def waiting_commands(self) -> int:
        """How many commands wait to be sent."""
        return self._waiting_commands

    async def start(self) -> None:
        """Connects and starts to answer.

        Raises what `connect` raises, or TimeoutError after CONNECT_TIMEOUT_SECONDS.
        """
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            connection = await self._connect()
        self._set_connected()
        self._owner = asyncio.create_task(self._own(connection), name="store-owner")
        # Lets the task begin. If it were cancelled earlier, it could not close the connection.
        await asyncio.sleep(0)

    def begin(self) -> None:
        """Starts to connect, and to answer once connected; `on_change` is called only if that fails."""
        self._disconnected = None
        self._owner = asyncio.create_task(self._own(None), name="store-owner")

    async def stop(self) -> None:
        """Closes the connection, and fails the requests that still wait."""
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
        self._refuse(StoreUnavailable("shutting down", StoreProblem.SHUTTING_DOWN))
        self._deadlines.close()
        if self._heartbeat is not None:
            self._heartbeat.cancel()

    async def execute(self, commands: Sequence[Command], deadline: float) -> Replies:
        """Sends commands and returns their replies by `deadline`, a time of the loop's clock, or the timeout.

        Raises StoreUnavailable if there are no replies by then, or at once if the store is known to be disconnected.
        Raises Overloaded if too many commands are waiting already.
        """
        return await self.execute_packed(b"".join(map(pack_command, commands)), len(commands), deadline)

    async def execute_packed(self, packed: bytes, count: int, deadline: float) -> Replies:
        """Does what `execute` does, with `count` commands that are packed already."""
        loop = asyncio.get_running_loop()
        deadline = min(deadline, loop.time() + self._timeout_seconds)
        if self._disconnected is not None:
            raise again(self._disconnected)
        if deadline <= loop.time():
            raise StoreUnavailable("the deadline has passed", StoreProblem.NOT_IN_TIME)
        if self._waiting_commands + count > QUEUE_LIMIT:
            raise Overloaded
        request = PendingRequest(packed, count, deadline)
        self._waiting.append(request)
        self._waiting_commands += count
        self._deadlines.add(deadline)
        self._send_soon()
        try:
            return await request.replies
        finally:
            # An exception in it refers to this frame, and so to the whole call: together they would be a garbage cycle.
            del request

    def invalidate(self, why: str, problem: StoreProblem = StoreProblem.MALFORMED_REPLY) -> None:
        """Has the connection replaced by a new one, because its replies can no longer be trusted."""
        self._invalidated = StoreUnavailable(why, problem)
        self._send_soon()

    def log_throttled(self, what: str) -> None:
        """Logs a problem of the store, but not once for every call that it affects."""
        now = asyncio.get_running_loop().time()
        if now >= self._logged_at + LOG_PAUSE_SECONDS:
            self._logged_at = now
            logger.error(what)

    def _beat(self) -> None:
        """Has a batch sent, even on an idle connection, and the server asked for its role."""
        self._role_due = True
        self._send_soon()
        self._set_heartbeat()

    def _set_heartbeat(self) -> None:
        # It is not set and cancelled for each idle time: a timer costs more than everything else about a small batch.
        self._heartbeat = asyncio.get_running_loop().call_later(HEARTBEAT_SECONDS, self._beat)

    async def _own(self, connection: AbstractConnection | None) -> None:
        self._set_heartbeat()
        connected_before = connection is not None
        while True:
            if connection is None:
                connection = await self._reconnect()
                if connected_before:
                    self._observer.reconnected()
            connected_before = True
            failure = StoreUnavailable("shutting down", StoreProblem.SHUTTING_DOWN)
            try:
                await self._serve(take_over(connection))
            except (RedisError, OSError, StoreUnavailable) as error:
                failure = failure_of(error)
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
        """Tries at once, because requests that wait may yet be answered in time; then again until it works."""
        loop = asyncio.get_running_loop()
        late = StoreUnavailable("not connected within the timeout", StoreProblem.CANNOT_CONNECT)
        while True:
            timer = loop.call_later(self._timeout_seconds, self._set_disconnected, late)
            try:
                async with asyncio.timeout(max(self._timeout_seconds, RECONNECT_TIMEOUT_SECONDS)):
                    connection = await self._connect()
            except Exception as error:  # noqa: BLE001  the owner must survive any error
                timer.cancel()
                self._set_disconnected(failure_to_connect(error))
                await asyncio.sleep(RECONNECT_PAUSE_SECONDS)
            else:
                self._set_connected()
                return connection
            finally:
                timer.cancel()

    async def _serve(self, wire: Wire) -> None:
        """Uses the connection until an error ends it, and raises that error."""
        self._broken = asyncio.get_running_loop().create_future()
        self._wire, self._exchanging = wire, False
        try:
            if self._waiting:
                self._send()
            await self._broken
        finally:
            self._wire = None

    def _send_soon(self) -> None:
        """Sends the waiting requests in the next turn of the loop, together with all others that come in this one."""
        if self._wire is not None and not (self._send_due or self._exchanging):
            self._send_due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._send_due = False
        wire = self._wire
        if wire is None or self._exchanging:
            return
        try:
            self._check_valid()
            # Notices a closed connection before anything is written, so that no request is lost with it.
            wire.check()
            self._take()
            if self._in_flight or self._role_due:
                self._begin_exchange(wire)
        except Exception as error:  # noqa: BLE001  whatever it is, the owner deals with it
            self._break(error)

    def _break(self, error: Exception) -> None:
        """Has the owner close the connection."""
        self._wire = None
        if not self._broken.done():
            self._broken.set_exception(error)

    def _take(self) -> None:
        """Moves waiting requests into flight, up to the limit. Drops those whose callers no longer wait."""
        commands = 0
        while self._waiting and (not commands or commands + self._waiting[0].count <= BATCH_LIMIT):
            request = self._waiting.popleft()
            self._waiting_commands -= request.count
            if not request.replies.done():
                request.sent += 1
                self._in_flight.append(request)
                commands += request.count

    def _begin_exchange(self, wire: Wire) -> None:
        self._asks_role = self._role_due
        packed = [_ROLE, _TIME] if self._asks_role else [_TIME]
        packed += [request.packed for request in self._in_flight]
        self._commands = sum([request.count for request in self._in_flight])
        count = 1 + self._asks_role + self._commands
        if self._waits():
            packed.append(self._wait)
            count += 1
        self._exchanging = True
        self._sent_at = perf_counter()
        wire.begin(b"".join(packed), count, self._received, self._timeout_seconds, partial(self._end_exchange, wire))

    def _end_exchange(self, wire: Wire, fault: Exception | None) -> None:
        """Hands out the replies, and sends the requests that have arrived meanwhile."""
        if wire is not self._wire:
            return
        self._exchanging = False
        self._observer.exchanged(self._commands, perf_counter() - self._sent_at)
        if fault is not None:
            self._break(fault)
            return
        try:
            self._check_valid()
            self._hand_out()
        except Exception as error:  # noqa: BLE001  whatever it is, the owner deals with it
            self._break(error)
        else:
            if self._waiting or self._invalidated is not None or self._role_due:
                self._send()

    def _hand_out(self) -> None:
        too_few = self._too_few_replicas(self._received.pop()) if self._waits() else None
        for request, replies in zip(self._in_flight, self._complete(), strict=True):
            if too_few is None:
                request.resolve(replies)
            else:
                request.fail(NotDurable(too_few.detail))
        self._in_flight, self._received = [], []

    def _waits(self) -> bool:
        """Whether the batch in flight waits for replicas."""
        return self._replica_acks > 0 and bool(self._in_flight)

    def _complete(self) -> list[Replies]:
        """Returns the replies to the first requests in flight, as far as all replies to a request have arrived."""
        received, complete = self._received, []
        at = 1 + self._asks_role
        if len(received) >= at:
            if self._asks_role:
                self._check_role(received[0])
            now_ms = _milliseconds(received[at - 1])
            for request in self._in_flight:
                if at + request.count > len(received):
                    break
                values = received[at : at + request.count]
                complete.append(Replies(now_ms, values, self, repeated=request.sent > 1))
                at += request.count
        return complete

    def _check_role(self, reply: Any) -> None:
        """Notices that a primary has become a replica: that may lag behind, but replies as if nothing had happened."""
        if isinstance(reply, list) and reply[:1] != [b"master"]:
            raise StoreUnavailable("it is no longer a primary", StoreProblem.NOT_PRIMARY)
        if isinstance(reply, NoPermissionError) and not self._role_refused:
            self._role_refused = True
            logger.warning("store refused ROLE: if it becomes a replica, that goes unnoticed: %s", described(reply))
        self._role_due = False

    def _too_few_replicas(self, reply: Any) -> NotDurable | None:
        """Reads the reply to WAIT: how many replicas have everything that was written before it."""
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
        """Fails all waiting requests, and from now on every new one at once."""
        self._disconnected = why
        while self._waiting:
            self._waiting.popleft().fail(again(why))
        self._waiting_commands = 0

    def _repeat_in_flight(self) -> None:
        """Puts the unanswered requests of a closed connection first in the queue for the next one."""
        if not self._replica_acks:
            with contextlib.suppress(StoreUnavailable):
                for request, replies in zip(self._in_flight, self._complete(), strict=False):
                    request.resolve(replies)
        repeated = [request for request in self._in_flight if request.sent <= REPEATS and not request.replies.done()]
        self._waiting.extendleft(reversed(repeated))
        self._waiting_commands += sum(request.count for request in repeated)
        self._in_flight = [request for request in self._in_flight if request.sent > REPEATS]

    def _fail_in_flight(self, failure: StoreUnavailable) -> None:
        for request in self._in_flight:
            request.fail(again(failure))
        self._in_flight, self._received = [], []


def _milliseconds(reply: Any) -> int:
    """Reads the reply to TIME."""
    match reply:
        case [bytes() as seconds, bytes() as microseconds] if seconds.isdigit() and microseconds.isdigit():
            return int(seconds) * 1000 + int(microseconds) // 1000
    raise StoreUnavailable("malformed TIME reply", StoreProblem.MALFORMED_REPLY)
