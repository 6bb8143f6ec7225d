"""A gRPC load generator with an open loop: calls come at a fixed rate, whatever happens to earlier calls.

A closed loop slows down with the server and so never asks more of it than it can do. Here every call has a time at
which its caller begins to wait, and is counted from that time on, even if this process gets to it late. Callers
wait until their deadline and then give up, telling the server (RST_STREAM). They are well-behaved, as gRPC clients
are: a connection has no more calls in flight than the server allows. Further calls are held back, first come, first
served, and may reach their deadlines without ever being sent.
"""

import selectors
from array import array
from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import cycle
from math import ceil
from time import perf_counter

from bench.closed_loop import Load
from bench.http2 import Call, Connection, LoadError, framed, header_block

_TICK_SECONDS = 0.001
_WATCH_SECONDS = 0.1

# Deadlines are sent in steps of this size, so that the headers for all of them can be prebuilt.
_STEP_MS = 10


class Fate(Enum):
    """How a call can end."""

    GOOD = "good"
    REFUSED = "refused"
    """Answered without a message: with an error status."""
    RESET = "reset"
    """Refused by the engine, before it was a call: the stream was reset."""
    GIVEN_UP = "given up"
    """In flight when its deadline came."""
    HELD_BACK = "held back"
    """Not even sent when its deadline came."""


class Outcomes:
    """How the calls of one run ended, in the order of their ends."""

    def __init__(self) -> None:
        self.begin = self.end = perf_counter()
        """When the first call was due, and when the call after the last would have been."""
        self.late_seconds = 0.0
        """The longest delay from when a call was due until it began. If it is long, the load was not as intended."""
        self._times = {fate: (array("d"), array("d")) for fate in Fate}
        self._refusals = array("d")

    def add(self, fate: Fate, since: float, until: float) -> None:
        """Adds a call that has ended."""
        starts, ends = self._times[fate]
        starts.append(since)
        ends.append(until)

    def add_refusal(self, sent: float, until: float) -> None:
        """Adds how long the server took to refuse a call. The call itself must be added as well."""
        self._refusals.append(until - sent)

    def refusals(self) -> list[float]:
        """Returns how long the server took to refuse calls, from when they were sent, ascending."""
        return sorted(self._refusals)

    def count(self, *fates: Fate) -> int:
        """Returns how many calls ended this way, or how many there were."""
        return sum(len(self._times[fate][0]) for fate in fates or Fate)

    def seconds(self, fate: Fate, *, skip: float = 0.0) -> list[float]:
        """Returns how long callers waited for this end, ascending.

        Only calls that ended during the load count, and none from its first `skip` seconds.
        """
        first, last = self.begin + skip, self.end
        times = zip(*self._times[fate], strict=True)
        return sorted(until - since for since, until in times if first <= until <= last)

    def slow(self, limit: float) -> list[tuple[float, bool]]:
        """Returns when each call was due, and whether it got no good answer within `limit` seconds."""
        return sorted(
            (since, fate is not Fate.GOOD or until - since > limit)
            for fate in Fate
            for since, until in zip(*self._times[fate], strict=True)
        )


class Callers:
    """Connections to one server, with callers that wait for `timeout_seconds`."""

    def __init__(self, port: int, load: Load, *, connections: int, timeout_seconds: float) -> None:
        self._selector = selectors.DefaultSelector()
        headers = [
            header_block(load.method, port, timeout=f"{step * _STEP_MS}m")
            for step in range(ceil(timeout_seconds * 1000 / _STEP_MS) + 2)
        ]
        self._connections = [
            _Connection(port, self._selector, load, headers, timeout_seconds=timeout_seconds)
            for _ in range(connections)
        ]
        self._requests = cycle([framed(request) for request in load.requests])

    def close(self) -> None:
        """Closes the connections."""
        for connection in self._connections:
            connection.close()
        self._selector.close()

    def run(self, rate: float, seconds: float, *, watch: Callable[[], None] = lambda: None) -> Outcomes:
        """Adds `rate` callers a second for `seconds`, and waits until the last has an answer or has given up.

        `watch` is called about ten times a second, also while the last callers wait.
        """
        outcomes = Outcomes()
        outcomes.end += seconds
        for connection in self._connections:
            connection.outcomes = outcomes
        begun, all_of_them, watched = 0, int(rate * seconds), 0.0
        while begun < all_of_them or any(connection.busy for connection in self._connections):
            now = perf_counter()
            due = min(all_of_them, int((now - outcomes.begin) * rate) + 1)
            if begun < due:
                outcomes.late_seconds = max(outcomes.late_seconds, now - outcomes.begin - begun / rate)
            for number in range(begun, due):
                connection = self._connections[number % len(self._connections)]
                connection.take(next(self._requests), outcomes.begin + number / rate)
            begun = due
            for connection in self._connections:
                connection.turn(now)
            if now >= watched + _WATCH_SECONDS:
                watched = now
                watch()
            for key, events in self._selector.select(_TICK_SECONDS):
                key.data.on_ready(events)
        return outcomes


class _Connection(Connection):
    """A connection that callers share."""

    def __init__(
        self, port: int, selector: selectors.BaseSelector, load: Load, headers: list[bytes], *, timeout_seconds: float
    ) -> None:
        super().__init__(port, selector)
        self.outcomes = Outcomes()
        self._load = load
        self._headers = headers
        self._timeout_seconds = timeout_seconds
        self._held: deque[tuple[float, bytes]] = deque()
        self._sent: deque[tuple[float, int]] = deque()
        """The calls in flight and those that have ended recently, oldest first."""

    @property
    def busy(self) -> bool:
        """Whether any caller waits."""
        return bool(self.calls or self._held)

    def take(self, request: bytes, since: float) -> None:
        """Adds a caller, after all others on this connection."""
        self._held.append((since, request))

    def turn(self, now: float) -> None:
        """Gives up the calls whose deadlines have come, and sends those that the limit allows."""
        overdue = now - self._timeout_seconds
        while self._sent and self._sent[0][0] <= overdue:
            since, stream = self._sent.popleft()
            if stream in self.calls:
                self.cancel(stream)
                self.outcomes.add(Fate.GIVEN_UP, since, now)
        while self._held and self._held[0][0] <= overdue:
            since, _ = self._held.popleft()
            self.outcomes.add(Fate.HELD_BACK, since, now)
        while self._held and len(self.calls) < self.most_streams:
            since, request = self._held.popleft()
            left = self._headers[ceil((since - overdue) * 1000 / _STEP_MS)]
            self._sent.append((since, self.open(left, request, since)))
        self.flush()

    def on_answer(self, stream: int, call: Call, trailers: bytes) -> None:
        # With an error status grpc.aio may send an empty message. Errors of catraca have details.
        message = None if b"grpc-status-details-bin" in trailers else call.message()
        if message is not None and not self._load.check(message):
            raise LoadError(f"{self._load.method}: not the answer expected: {message[:200]!r}")
        if self.received_at - call.since > self._timeout_seconds:
            fate = Fate.GIVEN_UP
        else:
            fate = Fate.REFUSED if message is None else Fate.GOOD
        self.outcomes.add(fate, call.since, self.received_at)
        if message is None:
            self.outcomes.add_refusal(call.sent, self.received_at)

    def on_reset(self, stream: int, call: Call, code: int) -> None:
        self.outcomes.add(Fate.RESET, call.since, self.received_at)
        self.outcomes.add_refusal(call.sent, self.received_at)
