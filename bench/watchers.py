"""What many watching near caches cost a server: at rest, and while sessions end.

The watchers are connections of this process which read and ping as near caches do, and do nothing else: as many real
clients would need more cores than there are. One real client is beside them. Ends are appended to the feed as another
server would append them, so that the watched server's CPU is that of watching alone.
"""

import selectors
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import redis

from bench.checkouts import THIS
from bench.http2 import Call, Connection, LoadError, header_block
from bench.processes import Server, find_cores, pin, running, serving
from bench.report import Sheet
from bench.store import connect, temporary_store
from catraca.v1 import session_event_pb2 as events, session_service_pb2 as pb
from catraca_server.store import feed, scripts
from catraca_server.store.keys import Keys

_WATCHERS = 199
"""And one real client."""
_RATES = (0, 100, 1_000)
_PING_SECONDS = 0.7
_APPEND_SECONDS = 0.01
_START = pb.WatchSessionsRequest(
    start=pb.WatchStart(
        types=[
            events.SESSION_EVENT_TYPE_UPDATED,
            events.SESSION_EVENT_TYPE_ROTATED,
            events.SESSION_EVENT_TYPE_REVOKED,
        ]
    )
)


@dataclass(frozen=True)
class Watched:
    """The measurements at one rate."""

    per_second: int
    server_cores: float
    client_cores: float
    load_cores: float
    appended_per_second: float
    received: float
    """The part of the appended events that a watcher received in time."""
    resets: int


class _Watcher(Connection):
    """A watch on a connection of its own."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self.events = self.resets = 0
        self._unparsed = bytearray()
        super().__init__(port, selector)
        headers = header_block("/catraca.v1.SessionService/WatchSessions", port, timeout="1H")
        self._stream = self.open_stream(headers)
        self.send_message(self._stream, _START.SerializeToString())

    def ping(self) -> None:
        """Pings as a near cache does."""
        self.send_message(self._stream, pb.WatchSessionsRequest(ping=pb.WatchPing(nonce=1)).SerializeToString())
        self.flush()

    def on_answer(self, stream: int, call: Call, trailers: bytes) -> None:
        """See `Connection`."""
        raise LoadError("the server ended a watch")

    def on_reset(self, stream: int, call: Call, code: int) -> None:
        """See `Connection`."""
        raise LoadError(f"the server ended a watch: {code}")

    def _on_data(self, stream: int, flags: int, payload: bytes) -> None:
        super()._on_data(stream, flags, payload)
        call = self.calls[stream]
        self._unparsed += call.response
        call.response.clear()
        at = 0
        while at + 5 <= len(self._unparsed):
            end = at + 5 + int.from_bytes(self._unparsed[at + 1 : at + 5])
            if end > len(self._unparsed):
                break
            # The first byte of a message is its only field: opened 1, event 2, pong 3, reset 4.
            kind = self._unparsed[at + 5] >> 3
            self.events += kind == pb.WatchSessionsResponse.EVENT_FIELD_NUMBER
            self.resets += kind == pb.WatchSessionsResponse.RESET_FIELD_NUMBER
            at = end
        del self._unparsed[:at]


class _Ends:
    """Appends ends of sessions to the feed, evenly."""

    def __init__(self, store: redis.Redis, per_second: int) -> None:
        self.appended = 0
        self._append = store.register_script(scripts.load("append").decode())
        self.per_second = per_second
        self._began = time.perf_counter()

    def go_on(self) -> None:
        """Appends the ends that are due."""
        due = int((time.perf_counter() - self._began) * self.per_second) - self.appended
        for _ in range(due):
            end = ("REVOKED", "REQUEST", f"{self.appended:022d}", "12345")
            self._append(keys=[Keys().feed()], args=[feed.KEEP_MS, feed.ENTRIES_MAX, feed.EXPIRY_MS, *end])
            self.appended += 1


def measure_watchers(*, seconds: float, progress: Callable[[str], None]) -> Sheet:
    """Measures each rate for `seconds`."""
    cores = find_cores()
    found: list[Watched] = []
    with ExitStack() as stack:
        store = stack.enter_context(temporary_store(core=cores.load))
        server = stack.enter_context(serving(THIS.serve(store.url), core=cores.server))
        command = [sys.executable, "-m", "bench.watching_client", f"127.0.0.1:{server.port}"]
        client = stack.enter_context(running(command, core=cores.load))
        client.wait_for(lambda: "watching" in client.log())
        pin(cores.load)
        selector = stack.enter_context(selectors.DefaultSelector())
        watchers = [stack.enter_context(closing(_Watcher(server.port, selector))) for _ in range(_WATCHERS)]
        plain = stack.enter_context(connect(store.url))
        for per_second in _RATES:
            progress(f"{_WATCHERS + 1} near caches, {per_second:,} ends a second")
            ends = _Ends(plain, per_second)
            _run(watchers, selector, ends, 2.0)
            found.append(_measured(server, client.cpu_seconds, watchers, selector, ends, seconds))
    return _sheet(found)


def _measured(  # noqa: PLR0917  all differ, and there is one caller
    server: Server,
    client_cpu_seconds: Callable[[], float],
    watchers: Sequence[_Watcher],
    selector: selectors.BaseSelector,
    ends: _Ends,
    seconds: float,
) -> Watched:
    def now() -> tuple[float, ...]:
        got, resets = sum(each.events for each in watchers), sum(each.resets for each in watchers)
        cpu = server.cpu_seconds(), client_cpu_seconds(), time.process_time()
        return (time.perf_counter(), *cpu, ends.appended, got, resets)

    before = now()
    _run(watchers, selector, ends, seconds)
    took, server_cpu, client_cpu, load_cpu, appended, got, resets = (
        late - early for late, early in zip(now(), before, strict=True)
    )
    return Watched(
        per_second=ends.per_second,
        server_cores=server_cpu / took,
        client_cores=client_cpu / took,
        load_cores=load_cpu / took,
        appended_per_second=appended / took,
        received=got / len(watchers) / appended if appended else 1.0,
        resets=int(resets),
    )


def _run(watchers: Sequence[_Watcher], selector: selectors.BaseSelector, ends: _Ends, seconds: float) -> None:
    """Reads all messages, pings each watch regularly, and makes sessions end."""
    until = time.perf_counter() + seconds
    turn, next_ping = 0, time.perf_counter()
    while (now := time.perf_counter()) < until:
        for key, ready in selector.select(_APPEND_SECONDS if ends.per_second else _PING_SECONDS / len(watchers)):
            key.data.on_ready(ready)
        ends.go_on()
        while next_ping <= now:
            watchers[turn % len(watchers)].ping()
            turn, next_ping = turn + 1, next_ping + _PING_SECONDS / len(watchers)


def _sheet(found: Sequence[Watched]) -> Sheet:
    return Sheet(
        f"{_WATCHERS + 1} near caches watch a server: ends a second",
        found,
        {
            "ends a second": lambda row: f"{row.per_second:,}",
            "server, of a core": lambda row: f"{row.server_cores:.0%}",
            "one client": lambda row: f"{row.client_cores:.1%}",
            "the load": lambda row: f"{row.load_cores:.0%}",
            "appended/s": lambda row: f"{row.appended_per_second:,.0f}",
            "received": lambda row: f"{row.received:.0%}",
            "resets": lambda row: f"{row.resets:,}",
        },
        "All but one of the near caches are connections that read and ping, and no more.",
    )
