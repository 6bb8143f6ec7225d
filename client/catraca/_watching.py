"""The watch stream without its I/O: what to send on it, what its messages mean, when to open another."""

import itertools
import logging
import math
import random
from typing import Protocol

import grpc

from catraca._near_cache import Clock, NearAnswers
from catraca.v1 import session_event_pb2 as events, session_service_pb2 as pb

SILENCE_SECONDS = 5.0
"""A stream is given up if nothing comes for this long after a ping, which asks for a pong."""
SILENT = f"no pong and no event within {SILENCE_SECONDS:g} s of a ping"
"""The error of a stream that was given up for its silence."""

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 3.0
_REFUSED_DELAY_SECONDS = 60.0
REFUSALS = (
    grpc.StatusCode.UNIMPLEMENTED,  # a server that is older than the feed
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
)
# What makes kept answers outdated. A new session is in no near cache, so logins are not asked for.
_TYPES = (
    events.SESSION_EVENT_TYPE_UPDATED,
    events.SESSION_EVENT_TYPE_ROTATED,
    events.SESSION_EVENT_TYPE_REVOKED,
)

_log = logging.getLogger("catraca")
nonces = itertools.count(1)  # shared by all streams, so that no pong is taken for the answer to another stream's ping


class Talk(Protocol):
    """What is sent on a stream, and when it must be considered dead."""

    def start(self) -> pb.WatchSessionsRequest:
        """Returns the first request of a new stream."""

    def ping(self) -> pb.WatchSessionsRequest:
        """Returns a ping, to be sent after this and not before."""

    def is_silent(self) -> bool:
        """Whether nothing has come for so long that the connection must be taken for dead."""


class Silence:
    """How long a server has said nothing on a stream after a ping. One thread may ping while another reads.

    Time without a ping does not count: if this process was stopped, or its event loop blocked, the stream may be good.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = math.inf

    def pinged(self) -> None:
        """A ping is about to be sent."""
        if self._since == math.inf:
            self._since = self._clock()

    def ended(self) -> None:
        """Something has come, or another stream begins."""
        self._since = math.inf

    def is_too_long(self) -> bool:
        """Whether the connection must be considered dead."""
        return self._clock() - self._since > SILENCE_SECONDS


class Backoff:
    """How long to wait before another stream is opened: longer after each failed opening."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._failures = 0

    def opened(self) -> None:
        """A stream was opened."""
        self._failures = 0

    def seconds(self, *, refused: bool) -> float:
        """Returns how long to wait after the end of a stream, or after a failed opening."""
        if refused:
            longest = _REFUSED_DELAY_SECONDS
        else:
            longest = min(_FIRST_DELAY_SECONDS * 2**self._failures, _LONGEST_DELAY_SECONDS)
            self._failures = min(self._failures + 1, 10)
        # Spread over the second half of the delay, so that a server's clients do not all move to the next one at once.
        return longest * self._chance.uniform(0.5, 1)


class Watch:
    """One client's watching, stream after stream."""

    def __init__(self, answers: NearAnswers, clock: Clock, chance: random.Random) -> None:
        self.refused = False
        """Whether the server last refused to be watched."""
        self._answers = answers
        self._clock = clock
        self._backoff = Backoff(chance)
        self._cursor = ""
        self._begun_after = ""
        self._silence = Silence(clock)
        self._open = False

    def start(self) -> pb.WatchSessionsRequest:
        """Returns the first request of a new stream, which continues where the last one ended."""
        self._begun_after = self._cursor
        self._silence.ended()
        return pb.WatchSessionsRequest(start=pb.WatchStart(cursor=self._cursor, types=_TYPES))

    def ping(self) -> pb.WatchSessionsRequest:
        """Returns a ping, to be sent after this and not before."""
        self._silence.pinged()
        nonce = next(nonces)
        self._answers.lease.ping(nonce, self._clock())
        return pb.WatchSessionsRequest(ping=pb.WatchPing(nonce=nonce))

    def receive(self, response: pb.WatchSessionsResponse) -> None:
        """Takes what the server sent."""
        self._silence.ended()
        match response.WhichOneof("response"):
            case "opened":
                self._backoff.opened()
                self.refused = False
                self._open = True
                # If the server cannot resume at our cursor, it opens the stream at another, and the stream may be lost
                # before its reset comes. The next stream must not begin there.
                self._cursor = self._begun_after or response.opened.cursor
                self._answers.opened(resumed=bool(self._begun_after))
            case "event":
                event = response.event
                self._answers.drop_for_event(event.session_id, event.user_id)
                self._cursor = event.cursor
            case "pong":
                pong = response.pong
                self._answers.lease.pong(pong.nonce, pong.age.seconds + pong.age.nanos / 1e9)
            case "reset":
                self._cursor = response.reset.cursor
                self._answers.reset()
            case _:  # from a newer server, which does not skip anything silently either
                pass

    def is_silent(self) -> bool:
        """Whether nothing has come for so long that the connection must be taken for dead."""
        return self._silence.is_too_long()

    def is_refusal(self, code: grpc.StatusCode) -> bool:
        """Whether the server refuses to be watched by this client.

        The end of an open stream does not show it: the key may have been replaced since, so the next stream decides.
        """
        return code in REFUSALS and not self._open

    def ended(self, code: grpc.StatusCode) -> float:
        """Takes the end of a stream. Returns the seconds to wait before opening another."""
        self._answers.ended()
        refused = self.is_refusal(code)
        self._open = False
        self.refused = self.refused or refused
        return self._backoff.seconds(refused=refused)


def log_refusal(watch: Watch, code: grpc.StatusCode) -> None:
    """Logs that there is no near cache with this server: once, until it is watched again."""
    if watch.is_refusal(code) and not watch.refused:
        _log.warning("near cache off: WatchSessions refused: %s", code.name)
