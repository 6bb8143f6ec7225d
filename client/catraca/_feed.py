"""`watch` without its I/O: what a stream's messages mean to the reader of the events, and when to open another."""

import logging
import random
import time
from collections.abc import Iterable

import grpc

from catraca._events import (
    SessionEvent,
    SessionEventType,
    WatchOpened,
    WatchReset,
    read_event,
    read_opened,
    read_reset,
)
from catraca._watching import REFUSALS, Backoff, Silence, nonces
from catraca.errors import CatracaError, NotAllowed, Unavailable, UnexpectedAnswer, UnusableAfterFork, from_status
from catraca.v1 import session_event_pb2 as events, session_service_pb2 as pb

_log = logging.getLogger("catraca")


class Feed:
    """One caller's watch, stream after stream."""

    def __init__(self, types: Iterable[SessionEventType], cursor: str) -> None:
        self._types = [events.SessionEventType.ValueType(each.value) for each in types]
        self._cursor = cursor
        self._backoff = Backoff(random.Random())  # noqa: S311  it spreads reconnects and guards nothing
        self._silence = Silence(time.monotonic)
        self._is_read = True
        self._was_open = False
        self.is_open = False
        """Whether the server has confirmed that the newest stream is open."""

    def start(self) -> pb.WatchSessionsRequest:
        """Returns the first request of a new stream, which continues where the last one ended."""
        return pb.WatchSessionsRequest(start=pb.WatchStart(cursor=self._cursor, types=self._types))

    def ping(self) -> pb.WatchSessionsRequest:
        """Returns a ping, whose pong shows that the connection is alive."""
        self._silence.pinged()
        return pb.WatchSessionsRequest(ping=pb.WatchPing(nonce=next(nonces)))

    def begins(self) -> None:
        """A stream is about to be opened."""
        self.is_open = False
        self.resumes()

    def pauses(self) -> None:
        """The caller handles what it got. Nothing is read from the stream until it asks for more."""
        self._is_read = False

    def resumes(self) -> None:
        """The stream is read from now on."""
        self._silence.ended()
        self._is_read = True

    def receive(self, response: pb.WatchSessionsResponse) -> SessionEvent | WatchOpened | WatchReset | None:
        """Takes a message from the server. Returns what the caller gets of it, if anything."""
        self._silence.ended()
        try:
            return self._read(response)
        except (ValueError, OverflowError) as error:
            raise UnexpectedAnswer(f"an event cannot be read: {type(error).__name__}") from None

    def _read(self, response: pb.WatchSessionsResponse) -> SessionEvent | WatchOpened | WatchReset | None:
        match response.WhichOneof("response"):
            case "opened":
                self._backoff.opened()
                self.is_open = self._was_open = True
                # If the server cannot resume at our cursor, it opens the stream at another, and the stream may be lost
                # before its reset comes. The next stream must not begin there.
                opened = read_opened(response.opened, cursor=self._cursor)
                self._cursor = opened.cursor
                return opened
            case "event":
                event = read_event(response.event)
                self._cursor = event.cursor
                return event
            case "reset":
                reset = read_reset(response.reset)
                self._cursor = reset.cursor
                return reset
            case _:
                return None

    def is_silent(self) -> bool:
        """Whether nothing has come for so long that the connection must be considered dead."""
        return self._is_read and self._silence.is_too_long()

    def ended(self, error: CatracaError | None) -> float:
        """Takes the end of a stream. Returns how many seconds to wait for the next. Raises if there is to be none."""
        error = error or Unavailable("the stream ended")
        passing = isinstance(error, Unavailable) and not isinstance(error, UnusableAfterFork)
        # The key of an open stream may have been replaced since: the next stream shows whether the server refuses.
        replaced = isinstance(error, NotAllowed) and self.is_open
        if not self._was_open or not (passing or replaced):
            raise error
        seconds = self._backoff.seconds(refused=False)
        _log.warning("watch lost, connecting again in %.1f s: %s", seconds, error)
        return seconds


def failure(error: grpc.RpcError) -> CatracaError:
    """Returns the exception for a stream that ended with an error."""
    code = error.code()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return NotAllowed("this server has no WatchSessions: it is older than the feed (UNIMPLEMENTED)")
    known = from_status(code, error.details(), error.trailing_metadata() or ())
    passing = isinstance(known, UnexpectedAnswer) and code not in REFUSALS
    # Whatever a proxy or a crashing server says, the next server may do better.
    return Unavailable(str(known)) if passing else known


def late(timeout: float) -> Unavailable:
    """Returns the error for a stream that was not opened in time."""
    return Unavailable(f"the watch was not opened within {timeout:g} s")
