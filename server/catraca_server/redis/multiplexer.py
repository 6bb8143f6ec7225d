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
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError

from catraca_server.redis.errors import NotDurable, Overloaded, StoreProblem, StoreUnavailable
from catraca_server.redis.exchange import Exchange
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
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._on_change = on_change
        self._replica_acks = replica_acks
        wait: Command = ("WAIT", replica_acks, int(timeout_seconds * 1000 * WAIT_FRACTION))
        self._wait = pack_command(wait) if replica_acks else b""
        self._role_due = True
        self._heartbeat: asyncio.TimerHandle | None = None
        self._role_refused = False
        self._waiting: deque[PendingRequest] = deque()
        self._waiting_commands = 0
        self._exchange: Exchange | None = None
        """What is in flight; after the connection has failed, until the owner has dealt with it."""
        self._deadlines = Deadlines(lambda: chain(self._exchange.requests if self._exchange else (), self._waiting))
        self._wire: Wire | None = None
        """The connection, while there is one and it is not in doubt."""
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
        assert request.replies is not None, "nobody else has taken them"
        try:
            return await request.replies
        finally:
            # The request may have to wait for its place in the store's replies for longer than its caller does.
            request.replies = None

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
        self._wire = wire
        try:
            if self._waiting:
                self._send()
            await self._broken
        finally:
            self._wire = None

    def _send_soon(self) -> None:
        """Sends the waiting requests in the next turn of the loop, together with all others that come in this one."""
        if self._wire is not None and self._exchange is None and not self._send_due:
            self._send_due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._send_due = False
        wire = self._wire
        if wire is None or self._exchange is not None:
            return
        try:
            self._check_valid()
            # Notices a closed connection before anything is written, so that no request is lost with it.
            wire.check()
            requests = self._take()
            if requests or self._role_due:
                self._begin_exchange(wire, requests)
        except Exception as error:  # noqa: BLE001  whatever it is, the owner deals with it
            self._break(error)

    def _break(self, error: Exception) -> None:
        """Has the owner close the connection."""
        self._wire = None
        if not self._broken.done():
            self._broken.set_exception(error)

    def _take(self) -> list[PendingRequest]:
        """Returns the requests to send next, up to the limit. Drops those whose callers no longer wait."""
        taken: list[PendingRequest] = []
        commands = 0
        while self._waiting and (not commands or commands + self._waiting[0].count <= BATCH_LIMIT):
            request = self._waiting.popleft()
            self._waiting_commands -= request.count
            if request.is_awaited:
                request.sent += 1
                taken.append(request)
                commands += request.count
        return taken

    def _begin_exchange(self, wire: Wire, requests: list[PendingRequest]) -> None:
        exchange = self._exchange = Exchange(requests, asks_role=self._role_due, wait=self._wait)
        on_done = partial(self._end_exchange, wire, exchange)
        wire.begin(exchange.packed(), exchange.reply_count, exchange.received, self._timeout_seconds, on_done)

    def _end_exchange(self, wire: Wire, exchange: Exchange, fault: Exception | None) -> None:
        """Hands out the replies, and sends the requests that have arrived meanwhile."""
        if wire is not self._wire:
            return
        self._observer.exchanged(exchange.commands, exchange.seconds)
        if fault is not None:
            self._break(fault)
            return
        try:
            self._check_valid()
            self._hand_out(exchange)
        except Exception as error:  # noqa: BLE001  whatever it is, the owner deals with it
            self._break(error)
        else:
            self._exchange = None
            if self._waiting or self._invalidated is not None or self._role_due:
                self._send()

    def _hand_out(self, exchange: Exchange) -> None:
        too_few = exchange.waits and self._has_too_few(exchange.replicas())
        self._check_role(exchange)
        for request, replies in zip(exchange.requests, exchange.complete(self), strict=True):
            if too_few:
                request.fail(NotDurable("too few replicas acknowledged the write in time"))
            else:
                request.resolve(replies)

    def _check_role(self, exchange: Exchange) -> None:
        """Notices that a primary has become a replica: that may lag behind, but replies as if nothing had happened."""
        if not exchange.asks_role or not exchange.received:
            return
        reply = exchange.received[0]
        if isinstance(reply, list) and reply[:1] != [b"master"]:
            raise StoreUnavailable("it is no longer a primary", StoreProblem.NOT_PRIMARY)
        if isinstance(reply, NoPermissionError) and not self._role_refused:
            self._role_refused = True
            logger.warning("store refused ROLE: if it becomes a replica, that goes unnoticed: %s", described(reply))
        self._role_due = False

    def _has_too_few(self, replicas: int) -> bool:
        if replicas >= self._replica_acks:
            return False
        self.log_throttled(f"too few replicas acknowledged a write in time: {replicas} of {self._replica_acks}")
        return True

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
        exchange = self._exchange
        if exchange is None:
            return
        if not exchange.waits:
            with contextlib.suppress(StoreUnavailable):
                self._check_role(exchange)
                for request, replies in zip(exchange.requests, exchange.complete(self), strict=False):
                    request.resolve(replies)
        repeated = [request for request in exchange.requests if request.sent <= REPEATS and request.is_awaited]
        self._waiting.extendleft(reversed(repeated))
        self._waiting_commands += sum(request.count for request in repeated)
        exchange.requests = [request for request in exchange.requests if request.sent > REPEATS]

    def _fail_in_flight(self, failure: StoreUnavailable) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            for request in exchange.requests:
                request.fail(again(failure))
