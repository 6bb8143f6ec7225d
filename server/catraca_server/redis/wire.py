"""A connection as the multiplexer uses it: a batch of commands goes out, and as many replies come in.

redis-py connects, authenticates and examines the server. After that, its way of reading would cost more than all the
rest, because it awaits every single reply. So the transport is taken over from it: hiredis parses whatever arrives at
once, and a callback is called when the batch is complete. A connection is no longer trusted once something arrives that
nobody asked for, or that RESP2 does not have.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from hiredis import Reader
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError, InvalidResponse, ResponseError

_INCOMPLETE = object()
_RESP2_TYPES = frozenset({bytes, int, list, type(None)})
"""The types of replies that are not errors."""

_PIECE_BYTES = 1024
"""fakeredis takes time that grows with the square of what it is sent at once."""


OnDone: TypeAlias = Callable[[Exception | None], None]


class Wire(Protocol):
    """A connection that is fit for use. It has one exchange at a time."""

    def check(self) -> None:
        """Raises OSError if the other side has closed it, RedisError if it sent what nobody asked for."""

    def begin(self, packed: bytes, count: int, received: list[Any], timeout_seconds: float, on_done: OnDone) -> None:
        """Sends commands, and appends their replies to `received`; an error reply is an exception in its place.

        `on_done` is called once: with None when all replies are there, else with the error that ended the exchange, an
        OSError (TimeoutError is one) or a RedisError. What was received by then is in `received`.
        """


def take_over(connection: AbstractConnection) -> Wire:
    """Returns the wire of a connection that redis-py has made, and does not read from any more.

    Raises InvalidResponse if there is something left to read.
    """
    # redis-py has no public access to what is underneath. fakeredis' connections have no transport.
    stream: Any = getattr(connection, "_reader", None)
    parser: Any = getattr(connection, "_parser", None)
    writer: Any = getattr(connection, "_writer", None)
    if not isinstance(stream, asyncio.StreamReader):
        return _DriverWire(connection)
    wire = _TransportWire(writer.transport, Reader(InvalidResponse, parser.parse_error, notEnoughData=_INCOMPLETE))
    if stream._buffer or parser._reader.has_data():  # type: ignore[attr-defined]  # noqa: SLF001  as above
        raise InvalidResponse("a reply that nobody asked for")
    if stream.at_eof():
        wire.eof_received()
    return wire


class _TransportWire(asyncio.Protocol):
    def __init__(self, transport: asyncio.Transport, reader: Reader) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = reader
        self._expected = 0
        self._received: list[Any] = []
        self._on_done: OnDone | None = None
        self._fault: Exception | None = None
        self._late_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._transport = transport
        transport.set_protocol(self)

    def check(self) -> None:
        if self._fault is not None:
            raise self._fault

    def begin(self, packed: bytes, count: int, received: list[Any], timeout_seconds: float, on_done: OnDone) -> None:
        self._expected, self._received, self._on_done = count, received, on_done
        self._late_at = self._loop.time() + timeout_seconds
        if self._late_at < self._timer_at:
            self._set_timer()
        self._transport.write(packed)

    def _set_timer(self) -> None:
        """Sets the timer for the exchange that is under way.

        It stays set when the exchange is over, and is set again if it fires during another: most exchanges end long
        before it fires.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._late_at
        self._timer = self._loop.call_at(self._late_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._on_done is None:
            return
        if self._late_at <= self._loop.time():
            self._fail(TimeoutError())
        else:
            self._set_timer()

    def data_received(self, data: bytes) -> None:
        reader, received = self._reader, self._received
        gets, append = reader.gets, received.append
        try:
            reader.feed(data)
            while (reply := gets()) is not _INCOMPLETE:
                append(reply)
        except InvalidResponse as error:
            self._fail(error)
            return
        if len(received) < self._expected:
            return
        if len(received) > self._expected or reader.has_data():
            self._fail(InvalidResponse("a reply that nobody asked for"))
        elif self._on_done is not None:
            self._finish(None if _RESP2_TYPES.issuperset(map(type, received)) else _fault_in(received))

    def eof_received(self) -> None:
        self._fail(ConnectionResetError("closed by the other side"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc if isinstance(exc, OSError) else ConnectionResetError("closed by the other side"))
        if self._timer is not None:
            self._timer.cancel()

    def _fail(self, fault: Exception) -> None:
        """The first fault is the one that counts: the connection is not used after it."""
        if self._fault is None:
            self._fault = fault
        self._finish(self._fault)

    def _finish(self, fault: Exception | None) -> None:
        on_done, self._on_done = self._on_done, None
        self._expected, self._received = 0, []
        if on_done is not None:
            on_done(fault)


class _DriverWire:
    """Over a connection without a transport, which has to be read from as its driver does."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._exchange: asyncio.Task[Exception | None]

    def check(self) -> None:
        """Does nothing: such a connection is within this process, and stays open."""

    def begin(self, packed: bytes, count: int, received: list[Any], timeout_seconds: float, on_done: OnDone) -> None:
        self._exchange = asyncio.create_task(self._exchanged(packed, count, received, timeout_seconds))
        self._exchange.add_done_callback(lambda task: None if task.cancelled() else on_done(task.result()))

    async def _exchanged(
        self, packed: bytes, count: int, received: list[Any], timeout_seconds: float
    ) -> Exception | None:
        try:
            async with asyncio.timeout(timeout_seconds):
                pieces = [packed[at : at + _PIECE_BYTES] for at in range(0, len(packed), _PIECE_BYTES)]
                await self._connection.send_packed_command(pieces, check_health=False)
                for _ in range(count):
                    try:
                        received.append(await self._connection.read_response(disable_decoding=True))
                    except ResponseError as error:
                        received.append(error)
        except Exception as error:  # noqa: BLE001  whatever it is, the exchange has to end with it
            return error
        return None


def _fault_in(received: list[Any]) -> Exception | None:
    """Returns the reply that says that this connection cannot be used, or a fault if RESP2 has no such reply."""
    for reply in received:
        if isinstance(reply, RedisConnectionError):
            return reply
        if type(reply) not in _RESP2_TYPES and not isinstance(reply, ResponseError):
            return InvalidResponse("a reply of a type that RESP2 does not have")
    return None
