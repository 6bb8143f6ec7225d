"""An HTTP/2 client that does what no gRPC client would: begins calls and sends no request, resets them in storms."""

import selectors
import time

from bench.http2 import Call, Connection, framed, header_block
from tests.support.waiting import TIMEOUT_SECONDS

_HEADERS, _CONTINUATION = 1, 9
_REFUSED_STREAM = 7
_END_STREAM, _END_HEADERS = 1, 4


class RawConnection(Connection):
    """A connection whose caller does not care what the server thinks of it."""

    def __init__(self, port: int, service: str = "test.Service") -> None:
        self.ended: set[int] = set()
        """Streams that the server has ended, by an answer or by a reset."""
        self.refused: set[int] = set()
        """Those of them that it would not begin."""
        self._service = service
        self._port = port
        self._own = selectors.DefaultSelector()
        super().__init__(port, self._own)

    def on_answer(self, stream: int, call: Call, trailers: bytes) -> None:  # noqa: D102  as its base says
        self.ended.add(stream)

    def on_reset(self, stream: int, call: Call, code: int) -> None:  # noqa: D102  as its base says
        self.ended.add(stream)
        if code == _REFUSED_STREAM:
            self.refused.add(stream)

    def begin(self, method: str, request: bytes | None, *, timeout: str = "60S") -> int:
        """Begins a call with this request, or without any, and returns its stream."""
        headers = header_block(f"/{self._service}/{method}", self._port, timeout=timeout)
        stream = self.open(headers, b"" if request is None else framed(request), time.monotonic())
        self.flush()
        return stream

    def begin_with_body(self, method: str, body: bytes) -> int:
        """Begins a call whose body is not what gRPC has in a body."""
        stream = self.open(header_block(f"/{self._service}/{method}", self._port, timeout="60S"), body, 0.0)
        self.flush()
        return stream

    def reset(self, stream: int) -> None:
        """Resets a stream."""
        self.cancel(stream)
        self.flush()

    def begin_and_reset(self, method: str, request: bytes, times: int) -> None:
        """Begins calls and resets each at once, all in one go: HTTP/2's rapid reset."""
        headers = header_block(f"/{self._service}/{method}", self._port, timeout="60S")
        for _ in range(times):
            self.cancel(self.open(headers, framed(request), 0.0))
        self.flush_all()

    def continue_headers(self, frames: int) -> None:
        """Begins a header block and goes on with it for so many frames, without an end."""
        stream = self._next_stream
        self._next_stream += 2
        self._send(_HEADERS, _END_STREAM, stream, b"\x83")
        field = b"\0\x04name" + bytes([100]) + b"v" * 100
        for _ in range(frames):
            self._send(_CONTINUATION, 0, stream, field * 100)
        self.flush_all()

    def flush_all(self) -> None:
        """Sends all there is to send, and takes what comes meanwhile. Raises LoadError if the server hangs up."""
        self.flush()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self._outgoing:
            assert time.monotonic() < deadline, "the server does not read"
            self.turn()

    def wait_for_end(self, stream: int) -> None:
        """Waits until the server has ended a stream."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while stream not in self.ended:
            assert time.monotonic() < deadline, f"stream {stream} does not end"
            self.turn()

    def turn(self) -> None:
        """Takes what has come, or waits for something a little while."""
        for key, events in self._own.select(0.1):
            key.data.on_ready(events)

    def close(self) -> None:  # noqa: D102  as its base says
        super().close()
        self._own.close()
