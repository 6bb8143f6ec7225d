"""Just enough HTTP/2 (RFC 9113) for unary gRPC calls, for load generators that must cost next to nothing.

Requests are prebuilt bytes, response headers are not decoded. Subclasses of `Connection` decide what answers mean, and
what to ask next.
"""

import selectors
import socket
import ssl
import struct
from dataclasses import dataclass
from time import perf_counter

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 1
_END_HEADERS = 4
_PADDED = 8

_SETTING_MAX_CONCURRENT_STREAMS, _SETTING_INITIAL_WINDOW_SIZE = 3, 4

_CANCEL = (8).to_bytes(4)

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")
_MESSAGE_HEADER = struct.Struct(">BL")

_DEFAULT_WINDOW = 65_535
_LARGEST_WINDOW = 2**31 - 1
_LARGEST_FRAME = 16_384  # what every peer must accept; few allow more

SILENCE_SECONDS = 10.0
"""How long a run waits for an answer before it gives up."""


class LoadError(Exception):
    """The server did not answer, or gave a wrong answer."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a server is called. By default without TLS and without a key."""

    tls: ssl.SSLContext | None = None
    api_key: str = ""

    def connect(self, port: int) -> socket.socket:
        """Returns a connected socket, after the TLS handshake if there is one."""
        plain = socket.create_connection(("127.0.0.1", port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(SILENCE_SECONDS)
        return plain if self.tls is None else self.tls.wrap_socket(plain, server_hostname="localhost")


OPEN = Access()


class Call:
    """One call in flight."""

    __slots__ = ("response", "sent", "since", "unsent", "window")

    def __init__(self, request: bytes, window: int, since: float) -> None:
        self.since = since
        self.sent = perf_counter()
        self.unsent = memoryview(request)
        self.window = window
        self.response = bytearray()

    def message(self) -> bytes | None:
        """Returns the message of the answer, if that is one whole message and nothing else."""
        if not self.response or self.response[0] or len(self.response) != 5 + int.from_bytes(self.response[1:5]):
            return None
        return bytes(self.response[5:])


class Connection:
    """One HTTP/2 connection and the calls in flight on it."""

    def __init__(self, port: int, selector: selectors.BaseSelector, access: Access = OPEN) -> None:
        self._socket = access.connect(port)
        self._selector = selector
        self._selector.register(self._socket, selectors.EVENT_READ, self)
        self.calls: dict[int, Call] = {}
        self.most_streams = 0
        """How many calls the server allows at a time."""
        self.received_at = 0.0
        """When the data that is being read came in."""
        self._next_stream = 1
        self._window = _DEFAULT_WINDOW
        self._stream_window = _DEFAULT_WINDOW
        self._received = 0
        self._unread = b""
        self._blocked = False
        # Our own windows are so large that only the connection's ever needs a refill.
        self._outgoing = bytearray(_PREFACE)
        self._send(_SETTINGS, 0, 0, _SETTING.pack(_SETTING_INITIAL_WINDOW_SIZE, _LARGEST_WINDOW))
        self._send(_WINDOW_UPDATE, 0, 0, (_LARGEST_WINDOW - _DEFAULT_WINDOW).to_bytes(4))
        self.flush()
        # A client sends no call before it knows what the server allows.
        while not self.most_streams:
            self._receive()
        self._socket.settimeout(0)
        self.flush()

    def on_answer(self, stream: int, call: Call, trailers: bytes) -> None:
        """Handles the end of a call, which is no longer in flight."""
        raise NotImplementedError

    def on_reset(self, stream: int, call: Call, code: int) -> None:
        """Handles the server's reset of a call, which is no longer in flight."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the connection, whatever is in flight."""
        self._selector.unregister(self._socket)
        self._socket.close()

    def open(self, headers: bytes, request: bytes, since: float) -> int:
        """Begins a call and returns its stream; `flush` sends it. `since` is when its caller began to wait."""
        stream = self._next_stream
        self._next_stream += 2
        call = self.calls[stream] = Call(request, self._stream_window, since)
        self._send(_HEADERS, _END_HEADERS, stream, headers)
        self._send_request(stream, call)
        return stream

    def open_stream(self, headers: bytes) -> int:
        """Begins a call whose requests are sent by `send_message`, and returns its stream."""
        stream = self._next_stream
        self._next_stream += 2
        self.calls[stream] = Call(b"", self._stream_window, perf_counter())
        self._send(_HEADERS, _END_HEADERS, stream, headers)
        return stream

    def send_message(self, stream: int, message: bytes) -> None:
        """Sends a request of such a call. It must be short: the flow control windows of these calls are not watched."""
        self._send(_DATA, 0, stream, framed(message))

    def cancel(self, stream: int) -> None:
        """Gives a call up; `flush` tells the server."""
        del self.calls[stream]
        self._send(_RST_STREAM, 0, stream, _CANCEL)

    def flush(self) -> None:
        """Sends as much as the socket takes; the rest is sent when it takes more."""
        if not self._outgoing:
            return
        try:
            sent = self._socket.send(self._outgoing)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except OSError as error:
            raise LoadError(f"the server closed the connection: {error}") from error
        del self._outgoing[:sent]
        if self._blocked != bool(self._outgoing):
            self._blocked = not self._blocked
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._blocked else 0)
            self._selector.modify(self._socket, wanted, self)

    def on_ready(self, events: int) -> None:
        """Reads or sends, as the socket is ready for it."""
        if events & selectors.EVENT_READ:
            self._receive()
        self.flush()

    def _send(self, kind: int, flags: int, stream: int, payload: bytes | memoryview) -> None:
        length = len(payload)
        self._outgoing += _FRAME_HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)
        self._outgoing += payload

    def _send_request(self, stream: int, call: Call) -> None:
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
        try:
            # Over TLS this reads one record, however large; the selector reports what is left.
            received = self._socket.recv(1 << 18)
        except ssl.SSLWantReadError:  # a part of a record
            return
        except OSError as error:
            raise LoadError(f"the server closed the connection: {error}") from error
        if not received:
            raise LoadError("the server closed the connection")
        self.received_at = perf_counter()
        data = self._unread + received
        position = 0
        while position + 9 <= len(data):
            high, low, kind, flags, stream = _FRAME_HEADER.unpack_from(data, position)
            payload = position + 9
            end = payload + (high << 8 | low)
            if end > len(data):
                break
            self._on_frame(kind, flags, stream, data[payload:end])
            position = end
        self._unread = data[position:]

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in {_DATA, _HEADERS}:
            if kind == _DATA:
                self._on_data(stream, flags, payload)
            # The rest of a call that was given up may still come.
            if flags & _END_STREAM and (call := self.calls.pop(stream, None)):
                self.on_answer(stream, call, payload)
        elif kind == _WINDOW_UPDATE:
            self._on_window_update(stream, int.from_bytes(payload))
        elif kind == _SETTINGS and not flags & _ACK:
            self._on_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._send(_PING, _ACK, 0, payload)
        elif kind == _GOAWAY:
            raise LoadError(f"the server closes the connection: {payload[8:]!r}")
        elif kind == _RST_STREAM and (call := self.calls.pop(stream, None)):
            self.on_reset(stream, call, int.from_bytes(payload))
        # All other frames carry nothing we need: CONTINUATION, PRIORITY, acknowledgements, unknown types.

    def _on_data(self, stream: int, flags: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > _LARGEST_WINDOW // 2:
            self._send(_WINDOW_UPDATE, 0, 0, self._received.to_bytes(4))
            self._received = 0
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if call := self.calls.get(stream):
            call.response += payload

    def _on_window_update(self, stream: int, increment: int) -> None:
        if stream == 0:
            starved = self._window <= 0
            self._window += increment
            if starved:
                self._resume()
        elif call := self.calls.get(stream):
            call.window += increment
            self._send_request(stream, call)

    def _on_settings(self, payload: bytes) -> None:
        self.most_streams = self.most_streams or _LARGEST_WINDOW
        for setting, value in _SETTING.iter_unpack(payload):
            if setting == _SETTING_MAX_CONCURRENT_STREAMS:
                self.most_streams = value
            elif setting == _SETTING_INITIAL_WINDOW_SIZE:
                for call in self.calls.values():
                    call.window += value - self._stream_window
                self._stream_window = value
        self._send(_SETTINGS, _ACK, 0, b"")
        self._resume()

    def _resume(self) -> None:
        for stream, call in self.calls.items():
            self._send_request(stream, call)


def framed(message: bytes) -> bytes:
    """Returns a serialised message with gRPC's framing."""
    return _MESSAGE_HEADER.pack(0, len(message)) + message


def header_block(method: str, port: int, *, timeout: str, access: Access = OPEN) -> bytes:
    """Returns the request headers in HPACK (RFC 7541), not indexed, so that they can be used for any call.

    Clients send a deadline with each call, so a load does too; `timeout` is in gRPC's format: `10S`, `250m`.
    """
    fields = {
        ":path": method,
        ":authority": f"127.0.0.1:{port}",
        "content-type": "application/grpc",
        "te": "trailers",
        "grpc-timeout": timeout,
        **({"authorization": f"Bearer {access.api_key}"} if access.api_key else {}),
    }
    block = bytes([0x83, 0x87 if access.tls else 0x86])  # :method POST, :scheme https or http
    for name, value in fields.items():
        block += b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return block
