"""WatchSessions: what happens to sessions, as messages on a stream."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import partial
from math import ceil

from google.protobuf.message import DecodeError

from catraca.v1 import session_event_pb2 as event_pb, session_service_pb2 as pb
from catraca_server.api.call_ids import given_ids
from catraca_server.api.callers import CallerGuard
from catraca_server.api.cursors import read_cursor, write_cursor
from catraca_server.api.engine import StatusError, Stream
from catraca_server.api.statuses import status_of
from catraca_server.domain.errors import InvalidRequest, Stopping, Violation
from catraca_server.domain.events import EndCause, EventType, FeedEntry, Position, ResetReason
from catraca_server.operations.watch_buffer import Item, Opened, Pong, Reset, WatchBuffer
from catraca_server.operations.watching import Watching

_TYPE_VALUES = {each: event_pb.SessionEventType.Value(f"SESSION_EVENT_TYPE_{each.name}") for each in EventType}
_TYPES: Mapping[int, EventType] = {value: each for each, value in _TYPE_VALUES.items()}
_CAUSE_VALUES = {each: event_pb.RevocationCause.Value(f"REVOCATION_CAUSE_{each.name}") for each in EndCause}
_REASON_VALUES = {each: pb.WatchResetReason.Value(f"WATCH_RESET_REASON_{each.name}") for each in ResetReason}

UNREAD_SECONDS = 1.0
"""How long a caller who takes nothing in may hold up the end of its stream."""


class Watches:
    """The streams of one server. `guard` is asked whether their callers may go on; None: they may."""

    def __init__(self, watching: Watching, guard: CallerGuard | None = None) -> None:
        self._watching = watching
        self._guard = guard
        self._open: dict[Stream, WatchBuffer] = {}
        self._draining = False

    async def serve(self, stream: Stream) -> None:
        """Serves a stream until its caller leaves, may not go on, or the server drains. Raises StatusError."""
        buffer = WatchBuffer()
        with nullcontext() if self._guard is None else self._guard.watching(stream, partial(_end, stream, buffer)):
            await self._serve(stream, buffer)

    async def _serve(self, stream: Stream, buffer: WatchBuffer) -> None:
        self._open[stream] = buffer
        if self._draining:
            buffer.fail(Stopping())
        receiving = asyncio.create_task(self._receive(stream, buffer), name="watch-requests")
        try:
            while True:
                item = await buffer.take()
                await stream.send(_message(item, self._watching.clock), more_follows=buffer.has_more)
        except StatusError:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status made by `statuses`
            raise StatusError(status_of(error, given_ids(stream.metadata))) from None
        finally:
            del self._open[stream]
            self._watching.leave(buffer)
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    def drain(self) -> None:
        """Ends all streams, and those to come: their callers find another server."""
        self._draining = True
        for stream, buffer in self._open.items():
            _end(stream, buffer, Stopping())

    async def _receive(self, stream: Stream, buffer: WatchBuffer) -> None:
        """Takes requests in. A pong is sent before the next request is taken, so who floods it holds up only itself."""
        try:
            message = await stream.receive()
            await self._watching.join(buffer, *_start(b"" if message is None else message))
            async for message in stream:
                await buffer.ping(_ping(message), self._watching.read_to_end_at)
        except Exception as error:  # noqa: BLE001  the one who sends raises it
            buffer.fail(error)


def _end(stream: Stream, buffer: WatchBuffer, error: Exception) -> None:
    buffer.fail(error)
    asyncio.get_running_loop().call_later(UNREAD_SECONDS, stream.cancel)


def _start(message: bytes) -> tuple[Position | None, Collection[EventType]]:
    """Reads the first request. Raises InvalidRequest."""
    request = _parse(message)
    if request.WhichOneof("request") != "start":
        raise InvalidRequest(Violation("start", "must be the first request"))
    start = request.start
    if violations := [
        Violation(f"start.types[{at}]", "must be a type of event that exists")
        for at, value in enumerate(start.types)
        if value not in _TYPES
    ]:
        raise InvalidRequest(*violations)
    after = read_cursor(start.cursor) if start.cursor else None
    return after, frozenset(_TYPES[value] for value in start.types)


def _ping(message: bytes) -> int:
    """Reads a later request. Raises InvalidRequest."""
    request = _parse(message)
    match request.WhichOneof("request"):
        case "ping":
            return request.ping.nonce
        case "start":
            raise InvalidRequest(Violation("start", "must be the first request only"))
        case _:
            raise InvalidRequest(Violation("ping", "must be set"))


def _parse(message: bytes) -> pb.WatchSessionsRequest:
    try:
        return pb.WatchSessionsRequest.FromString(message)
    except DecodeError:
        raise InvalidRequest from None


def _message(item: Item, clock: Callable[[], float]) -> bytes:
    response = pb.WatchSessionsResponse()
    match item:
        case FeedEntry():
            if not item.rendered:
                item.rendered = _render(item)
            return item.rendered
        case Opened():
            response.opened.cursor = write_cursor(item.position)
        case Reset():
            response.reset.cursor = write_cursor(item.position)
            response.reset.reason = _REASON_VALUES[item.reason]
        case Pong():
            response.pong.nonce = item.nonce
            age_seconds = clock() - item.read_to_end_at
            # Never younger than it is.
            response.pong.age.FromMicroseconds(ceil(age_seconds * 1e6))
    return response.SerializeToString()


def _render(entry: FeedEntry) -> bytes:
    event = entry.event
    response = pb.WatchSessionsResponse()
    message = response.event
    message.type = _TYPE_VALUES[event.type]
    if event.cause is not None:
        message.cause = _CAUSE_VALUES[event.cause]
    message.session_id = event.session_id
    message.user_id = event.user_id
    message.event_time.FromMilliseconds(entry.position.entry_id.ms)
    message.cursor = write_cursor(entry.position)
    return response.SerializeToString()
