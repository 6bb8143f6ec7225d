"""A gRPC load generator: a closed loop of unary calls over a few HTTP/2 connections, in one thread.

It exists because a gRPC client in Python costs more than the server it would load, so it could not saturate a server
from one other core. Only a message that passes the caller's check counts as an answer. Any other response ends the run
with an error: a failed call is cheaper than a good one and would flatter the server.
"""

import selectors
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import inf
from time import perf_counter

from bench.http2 import OPEN, SILENCE_SECONDS, Access, Call, Connection, LoadError, framed, header_block


@dataclass(frozen=True, slots=True)
class Load:
    """The requests to send, again and again, and how to recognise a good answer."""

    method: str
    """The path of the method: `/package.Service/Method`."""
    requests: Sequence[bytes]
    """Serialised messages, sent in turn."""
    check: Callable[[bytes], bool]
    """Returns whether a serialised response is the expected one."""
    once: bool = False
    """Each request can be sent only once: the run ends with the last of them, even if there is time left."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The result of one run."""

    seconds: float
    latencies: Sequence[float]
    """Seconds from sending a request to its answer, one for each call, ascending."""


class Client:
    """Open connections to one server. Loads run over them one after the other."""

    def __init__(self, port: int, *, connections: int, access: Access = OPEN) -> None:
        self._port = port
        self._access = access
        self._selector = selectors.DefaultSelector()
        self._connections = [_Connection(port, self._selector, access) for _ in range(connections)]

    def close(self) -> None:
        """Closes the connections."""
        for connection in self._connections:
            connection.close()
        self._selector.close()

    def run(self, load: Load, *, streams: int, seconds: float) -> Answers:
        """Keeps `streams` calls in flight on each connection for `seconds`, then waits for the last answers."""
        run = _Run(load, seconds)
        self._start(run, streams)
        return self._finish(run)

    def run_during(self, event: Load, load: Load, *, streams: int) -> Answers:
        """Runs `load` while one more caller makes all calls of `event`, one after the other."""
        another = _Connection(self._port, self._selector, self._access)
        try:
            run = _Run(load, inf)
            self._start(run, streams)
            another.start(_Run(event, inf), 1)
            while another.busy:
                self._turn()
            run.until = 0.0
            return self._finish(run)
        finally:
            another.close()

    def _start(self, run: "_Run", streams: int) -> None:
        for connection in self._connections:
            connection.start(run, streams)

    def _finish(self, run: "_Run") -> Answers:
        while any(connection.busy for connection in self._connections):
            self._turn()
        return Answers(perf_counter() - run.begin, sorted(run.latencies))

    def _turn(self) -> None:
        ready = self._selector.select(SILENCE_SECONDS)
        if not ready:
            raise LoadError(f"no answer within {SILENCE_SECONDS:.0f} s")
        for key, events in ready:
            key.data.on_ready(events)


class _Run:
    """The state that all connections share while one load runs."""

    def __init__(self, load: Load, seconds: float) -> None:
        self.load = load
        requests = [framed(request) for request in load.requests]
        self.requests = iter(requests) if load.once else cycle(requests)
        self.latencies: list[float] = []
        self.begin = perf_counter()
        self.until = self.begin + seconds


class _Connection(Connection):
    """A connection that sends another call after each answer."""

    def __init__(self, port: int, selector: selectors.BaseSelector, access: Access) -> None:
        super().__init__(port, selector, access)
        self._port = port
        self._access = access

    @property
    def busy(self) -> bool:
        """Whether calls are in flight."""
        return bool(self.calls)

    def start(self, run: _Run, streams: int) -> None:
        """Opens `streams` calls; each is followed by another until the time is over."""
        if streams > self.most_streams:
            raise LoadError(f"the server allows {self.most_streams} streams on a connection")
        self._run = run
        self._headers = header_block(run.load.method, self._port, timeout="10S", access=self._access)
        for _ in range(streams):
            self._next(perf_counter())
        self.flush()

    def on_answer(self, stream: int, call: Call, trailers: bytes) -> None:
        message = call.message()
        if message is None:
            raise LoadError(f"{self._run.load.method}: no message, but these trailers: {trailers!r}")
        if not self._run.load.check(message):
            raise LoadError(f"{self._run.load.method}: not the answer expected: {message[:200]!r}")
        self._run.latencies.append(self.received_at - call.since)
        if self.received_at < self._run.until:
            self._next(self.received_at)

    def on_reset(self, stream: int, call: Call, code: int) -> None:
        raise LoadError(f"{self._run.load.method}: the server reset the call, code {code}")

    def _next(self, now: float) -> None:
        request = next(self._run.requests, None)
        if request is not None:
            self.open(self._headers, request, now)
