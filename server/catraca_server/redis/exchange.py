"""One exchange with the store: requests that are sent together, and their replies. It does no I/O.

TIME comes first, so that all replies carry the store's clock. ROLE comes before it now and then. WAIT comes last if
replicas must have what was written.
"""

from time import perf_counter
from typing import Any

from hiredis import pack_command

from catraca_server.redis.errors import StoreProblem, StoreUnavailable
from catraca_server.redis.pending import PendingRequest
from catraca_server.redis.replies import Replies, Source

_TIME = pack_command(("TIME",))
_ROLE = pack_command(("ROLE",))


class Exchange:
    """The requests in flight and the replies so far. `wait` is a packed WAIT; empty: no replica is waited for."""

    __slots__ = ("_began_seconds", "_wait", "asks_role", "commands", "received", "requests")

    def __init__(self, requests: list[PendingRequest], *, asks_role: bool, wait: bytes) -> None:
        self.requests = requests
        self.commands = sum([request.count for request in requests])
        """How many commands the callers sent."""
        self.received: list[Any] = []
        """The replies so far, in order."""
        self.asks_role = asks_role
        """Whether the first reply is to ROLE."""
        self._wait = wait if requests else b""
        self._began_seconds = perf_counter()

    @property
    def seconds(self) -> float:
        """How long ago it began."""
        return perf_counter() - self._began_seconds

    @property
    def waits(self) -> bool:
        """Whether it waits for replicas."""
        return bool(self._wait)

    @property
    def reply_count(self) -> int:
        """How many replies it has when it is over."""
        return self._first + self.commands + self.waits

    def packed(self) -> bytes:
        """Returns its commands."""
        head = _ROLE + _TIME if self.asks_role else _TIME
        return b"".join([head, *[request.packed for request in self.requests], self._wait])

    def replicas(self) -> int:
        """Returns the reply to WAIT: how many replicas have what was written. Raises StoreUnavailable."""
        reply = self.received[-1]
        if not isinstance(reply, int):
            raise StoreUnavailable("malformed WAIT reply", StoreProblem.MALFORMED_REPLY)
        return reply

    def complete(self, source: Source) -> list[Replies]:
        """Returns the replies to the first requests, as far as all replies to a request have arrived.

        Raises StoreUnavailable if the store's clock cannot be read.
        """
        received, complete = self.received, []
        at = self._first
        if len(received) >= at:
            now_ms = _milliseconds(received[at - 1])
            for request in self.requests:
                if at + request.count > len(received):
                    break
                values = received[at : at + request.count]
                complete.append(Replies(now_ms, values, source, repeated=request.sent > 1))
                at += request.count
        return complete

    @property
    def _first(self) -> int:
        """The position of the callers' first reply."""
        return 1 + self.asks_role


def _milliseconds(reply: Any) -> int:
    """Reads the reply to TIME."""
    match reply:
        case [bytes() as seconds, bytes() as microseconds] if seconds.isdigit() and microseconds.isdigit():
            return int(seconds) * 1000 + int(microseconds) // 1000
    raise StoreUnavailable("malformed TIME reply", StoreProblem.MALFORMED_REPLY)
