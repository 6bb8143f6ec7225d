"""Requests that wait for their replies, and what happens when they have waited too long."""

import asyncio
import math
from collections.abc import Callable, Iterable

from catraca_server.redis.errors import StoreProblem, StoreUnavailable
from catraca_server.redis.replies import Replies

_PAUSE_SECONDS = 0.001
"""The least time between two checks of the deadlines."""


class PendingRequest:
    """Commands that wait for their replies."""

    __slots__ = ("count", "deadline", "packed", "replies", "sent")

    def __init__(self, packed: bytes, count: int, deadline: float) -> None:
        self.packed = packed
        self.count = count
        """How many commands there are."""
        self.deadline = deadline
        self.sent = 0
        """How many times it was sent."""
        self.replies: asyncio.Future[Replies] | None = asyncio.get_running_loop().create_future()
        """None once its caller has them, or waits no longer: an error in it would keep the frames of the whole call."""

    @property
    def is_awaited(self) -> bool:
        """Whether its caller still waits."""
        return self.replies is not None and not self.replies.done()

    def resolve(self, replies: Replies) -> None:
        """Hands the replies to the caller, if it still waits."""
        if self.replies is not None and not self.replies.done():
            self.replies.set_result(replies)

    def fail(self, error: Exception) -> None:
        """Hands an error to the caller, if it still waits."""
        if self.replies is not None and not self.replies.done():
            self.replies.set_exception(error)


class Deadlines:
    """Fails requests whose deadline has passed. One timer serves all: set for the earliest, which is rarely reached."""

    def __init__(self, pending: Callable[[], Iterable[PendingRequest]]) -> None:
        self._pending = pending
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def add(self, deadline: float) -> None:
        """Watches a deadline, a time of the loop's clock."""
        if deadline < self._timer_at:
            self.close()
            self._timer = asyncio.get_running_loop().call_at(deadline, self._fail_late)
            self._timer_at = deadline

    def close(self) -> None:
        """Stops watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf

    def _fail_late(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = asyncio.get_running_loop().time()
        next_at = math.inf
        for request in self._pending():
            if request.deadline <= now:
                request.fail(StoreUnavailable("no reply by the deadline", StoreProblem.NOT_IN_TIME))
            elif request.is_awaited:
                next_at = min(next_at, request.deadline)
        if next_at < math.inf:
            # The clock may be coarser than the deadlines, and many deadlines may be close together.
            self.add(max(next_at, now + _PAUSE_SECONDS))
