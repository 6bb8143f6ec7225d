"""A gRPC load generator: a closed loop of unary calls over a few HTTP/2 connections, in one thread.

It exists because a gRPC client in Python costs more than the server it would load, so that one could not saturate the
other from the next core. It speaks just enough HTTP/2 (RFC 9113) for unary calls without TLS: requests are prebuilt
bytes, response headers are not decoded, and only a message that passes the caller's check counts as an answer.
Whatever else comes back ends the run with an error: a failed call is cheaper than a good one and would flatter the
server.
"""

import selectors
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import inf
from time import perf_counter

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 1
_END_HEADERS = 4
_PADDED = 8

_SETTING_MAX_CONCURRENT_STREAMS, _SETTING_INITIAL_WINDOW_SIZE = 3, 4

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")
_MESSAGE_HEADER = struct.Struct(">BL")

_DEFAULT_WINDOW = 65_535
_LARGEST_WINDOW = 2**31 - 1
_LARGEST_FRAME = 16_384  # what every peer must accept; few ask for more

_SILENCE = 10.0  # seconds without an answer after which a run gives up


class LoadError(Exception):
    """The server did not answer, or answered something else than what was asked for."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask, again and again, and how to tell a good answer."""

    method: str
    """The path of the method: `/package.Service/Method`."""
    requests: Sequence[bytes]
    """Serialised messages, sent in turn."""
    check: Callable[[bytes], bool]
    """Says whether a serialised response is the one hoped for."""
    once: bool = False
    """Each request can be sent only once: the run ends with the last of them, be there time left or not."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one run brought."""

    seconds: float
    latencies: Sequence[float]
    """Seconds from the sending of a request to its answer, one for each call, ascending."""


class Client:
    """Open connections to one server. Loads run over them one after the other."""

    def __init__(self, port: int, *, connections: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._connections = [_Connection(port, self._selector) for _ in range(connections)]

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
        """Runs `load` for as long as one more caller takes for all calls of `event`, one after the other."""
        another = _Connection(self._port, self._selector)
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
        ready = self._selector.select(_SILENCE)
        if not ready:
            raise LoadError(f"no answer within {_SILENCE:.0f} s")
        for key, events in ready:
            key.data.on_ready(events)


class _Run:
    """What the connections have in common while one load runs."""

    def __init__(self, load: Load, seconds: float) -> None:
        self.load = load
        framed = [_MESSAGE_HEADER.pack(0, len(request)) + request for request in load.requests]
        self.requests = iter(framed) if load.once else cycle(framed)
        self.latencies: list[float] = []
        self.begin = perf_counter()
        self.until = self.begin + seconds


class _Call:
    """One call in flight."""

    __slots__ = ("response", "sent_at", "unsent", "window")

    def __init__(self, request: bytes, window: int, now: float) -> None:
        self.sent_at = now
        self.unsent = memoryview(request)
        self.window = window
        self.response = bytearray()


class _Connection:
    """One HTTP/2 connection and the calls in flight on it."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(0)
        self._selector = selector
        self._selector.register(self._socket, selectors.EVENT_READ, self)
        self._authority = f"127.0.0.1:{port}"
        self._calls: dict[int, _Call] = {}
        self._next_stream = 1
        self._most_streams = _LARGEST_WINDOW
        self._window = _DEFAULT_WINDOW
        self._stream_window = _DEFAULT_WINDOW
        self._received = 0
        self._unread = b""
        self._blocked = False
        # Our own windows are opened so wide that only the connection's ever needs a refill.
        self._outgoing = bytearray(_PREFACE)
        self._send(_SETTINGS, 0, 0, _SETTING.pack(_SETTING_INITIAL_WINDOW_SIZE, _LARGEST_WINDOW))
        self._send(_WINDOW_UPDATE, 0, 0, (_LARGEST_WINDOW - _DEFAULT_WINDOW).to_bytes(4))
        self._flush()

    @property
    def busy(self) -> bool:
        """Whether calls are in flight."""
        return bool(self._calls)

    def close(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()

    def start(self, run: _Run, streams: int) -> None:
        """Opens `streams` calls; each is followed by another until the time has come."""
        self._run = run
        self._headers = _header_block(run.load.method, self._authority)
        for _ in range(streams):
            self._open(perf_counter())
        self._flush()

    def on_ready(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            self._receive()
        self._flush()

    def _send(self, kind: int, flags: int, stream: int, payload: bytes | memoryview) -> None:
        length = len(payload)
        self._outgoing += _FRAME_HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)
        self._outgoing += payload

    def _flush(self) -> None:
        if not self._outgoing:
            return
        try:
            sent = self._socket.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        del self._outgoing[:sent]
        if self._blocked != bool(self._outgoing):
            self._blocked = not self._blocked
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._blocked else 0)
            self._selector.modify(self._socket, wanted, self)

    def _open(self, now: float) -> None:
        request = next(self._run.requests, None)
        if request is None:
            return
        stream = self._next_stream
        self._next_stream += 2
        call = self._calls[stream] = _Call(request, self._stream_window, now)
        if len(self._calls) > self._most_streams:
            raise LoadError(f"the server allows {self._most_streams} streams on a connection")
        self._send(_HEADERS, _END_HEADERS, stream, self._headers)
        self._send_request(stream, call)

    def _send_request(self, stream: int, call: _Call) -> None:
        """Sends what the windows allow; `_on_window_update` sends the rest."""
        while call.unsent:
            size = min(len(call.unsent), call.window, self._window, _LARGEST_FRAME)
            if size <= 0:
                return
            chunk, call.unsent = call.unsent[:size], call.unsent[size:]
            call.window -= size
            self._window -= size
            self._send(_DATA, 0 if call.unsent else _END_STREAM, stream, chunk)

    def _receive(self) -> None:
        received = self._socket.recv(1 << 18)
        if not received:
            raise LoadError("the server closed the connection")
        now = perf_counter()
        data = self._unread + received
        position = 0
        while position + 9 <= len(data):
            high, low, kind, flags, stream = _FRAME_HEADER.unpack_from(data, position)
            payload = position + 9
            end = payload + (high << 8 | low)
            if end > len(data):
                break
            self._on_frame(kind, flags, stream, data[payload:end], now)
            position = end
        self._unread = data[position:]

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes, now: float) -> None:
        if kind in {_DATA, _HEADERS}:
            if kind == _DATA:
                self._on_data(stream, flags, payload)
            if flags & _END_STREAM:
                self._on_answer(stream, payload, now)
        elif kind == _WINDOW_UPDATE:
            self._on_window_update(stream, int.from_bytes(payload))
        elif kind == _SETTINGS and not flags & _ACK:
            self._on_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._send(_PING, _ACK, 0, payload)
        elif kind == _GOAWAY:
            raise LoadError(f"the server closes the connection: {payload[8:]!r}")
        elif kind == _RST_STREAM and stream in self._calls:
            raise LoadError(f"{self._run.load.method}: the server reset the call, code {int.from_bytes(payload)}")
        # What is left carries nothing we need: CONTINUATION, PRIORITY, acknowledgements, unknown kinds.

    def _on_data(self, stream: int, flags: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > _LARGEST_WINDOW // 2:
            self._send(_WINDOW_UPDATE, 0, 0, self._received.to_bytes(4))
            self._received = 0
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        self._calls[stream].response += payload

    def _on_answer(self, stream: int, trailers: bytes, now: float) -> None:
        call = self._calls.pop(stream)
        size = int.from_bytes(call.response[1:5])
        if not call.response or call.response[0] or len(call.response) != 5 + size:
            raise LoadError(f"{self._run.load.method}: no message, but these trailers: {trailers!r}")
        if not self._run.load.check(bytes(call.response[5:])):
            raise LoadError(f"{self._run.load.method}: not the answer hoped for: {bytes(call.response[5:205])!r}")
        self._run.latencies.append(now - call.sent_at)
        if now < self._run.until:
            self._open(now)

    def _on_window_update(self, stream: int, increment: int) -> None:
        if stream == 0:
            starved = self._window <= 0
            self._window += increment
            if starved:
                self._resume()
        elif stream in self._calls:
            call = self._calls[stream]
            call.window += increment
            self._send_request(stream, call)

    def _on_settings(self, payload: bytes) -> None:
        for setting, value in _SETTING.iter_unpack(payload):
            if setting == _SETTING_MAX_CONCURRENT_STREAMS:
                self._most_streams = value
            elif setting == _SETTING_INITIAL_WINDOW_SIZE:
                for call in self._calls.values():
                    call.window += value - self._stream_window
                self._stream_window = value
        self._send(_SETTINGS, _ACK, 0, b"")
        self._resume()

    def _resume(self) -> None:
        for stream, call in self._calls.items():
            self._send_request(stream, call)


def _header_block(method: str, authority: str) -> bytes:
    """Writes the request headers in HPACK (RFC 7541), nothing indexed, so that they are the same for each call.

    Clients send a deadline with each call, so a load does too.
    """
    fields = {
        ":path": method,
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
        "grpc-timeout": "10S",
    }
    block = bytes([0x83, 0x86])  # :method POST, :scheme http
    for name, value in fields.items():
        block += b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return block
