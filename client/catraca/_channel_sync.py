"""The connection of a client for threads: opened at the first call, closed by `close` and before forks."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from catraca import _core
from catraca._access import Access
from catraca._forks import forks, never_free
from catraca.errors import CatracaError, Unavailable, from_status

_CLOSED_BY_FORK = "this process forked while the call was under way"
_FORKING = "not sent in time, because this process was forking"


def open_channel(target: str, credentials: grpc.ChannelCredentials | None, *, use_proxy: bool) -> grpc.Channel:
    """Opens a channel, which connects when it is first used."""
    options = _core.channel_options(use_proxy=use_proxy)
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)


class _Opened:
    """A channel between its opening and its closing."""

    def __init__(self, channel: grpc.Channel, access: Access) -> None:
        self.calls = 0
        self.closed = ""
        """Why it was closed, if it was."""
        self._channel: grpc.Channel | None = channel
        self._access = access
        self._stubs: dict[str, Callable[..., Any]] = {}

    def send(self, call: _core.Call[Any], timeout: float) -> bytes:
        """Makes a call and returns the answer's bytes."""
        stub = self._stubs.get(call.path) or self._stub(call.path)
        metadata = self._access.metadata()
        answer: bytes = stub(call.request, timeout=timeout, metadata=metadata)
        return answer

    def stream(self, path: str, requests: Iterator[bytes]) -> Any:
        """Begins a call with a stream both ways. Returns its responses, as gRPC gives them."""
        if self._channel is None:
            raise Unavailable(self.closed)
        begin: Callable[..., Any] = self._channel.stream_stream(path)
        return begin(requests, metadata=self._access.metadata())

    def close(self, why: str) -> None:
        """Ends the calls under way and lets go of the channel."""
        self.closed = why
        channel, self._channel, self._stubs = self._channel, None, {}
        if channel is not None:
            channel.close()

    def _stub(self, path: str) -> Callable[..., Any]:
        if self._channel is None:
            raise Unavailable(self.closed)
        stub: Callable[..., Any] = self._channel.unary_unary(path)
        self._stubs[path] = stub
        return stub


class SyncChannel:
    """A connection for all threads of a process."""

    def __init__(self, target: str, access: Access, *, use_proxy: bool) -> None:
        self._target = target
        self._access = access
        self._use_proxy = use_proxy
        self._opened: _Opened | None = None
        forks.watch(self)

    def call(self, call: _core.Call[Any], timeout: float) -> bytes:
        """Makes a call and returns the answer's bytes. Raises CatracaError."""
        opened, timeout = self._enter(timeout)
        try:
            return opened.send(call, timeout)
        except grpc.RpcError as error:
            raise _failure(opened, error) from error
        except ValueError:
            if opened.closed:  # how gRPC says that the channel was closed before it looked at the call
                raise Unavailable(opened.closed) from None
            raise
        finally:
            self._leave(opened)

    def stream(self, path: str, requests: Iterator[bytes]) -> Any:
        """Begins a call with a stream both ways. A fork does not wait for it, but ends it. Raises CatracaError."""
        opened, _ = self._enter(_core.DEFAULT_TIMEOUT_SECONDS)
        try:
            return opened.stream(path, requests)
        except ValueError:
            raise Unavailable(opened.closed or _core.CLOSED) from None
        finally:
            self._leave(opened)

    def close(self) -> None:
        """Ends the calls under way and closes the connection. A call after this opens another."""
        with forks.gate:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close(_core.CLOSED)

    def calls_to_drain(self) -> int:
        """See `Connection`."""
        return self._opened.calls if self._opened else 0

    def is_open(self) -> bool:
        """See `Connection`."""
        return self._opened is not None

    def close_for_fork(self) -> None:
        """See `Connection`."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close(_CLOSED_BY_FORK)

    def abandon(self) -> None:
        """See `Connection`."""
        opened, self._opened = self._opened, None
        if opened is not None:
            never_free(opened)

    def _enter(self, timeout: float) -> tuple[_Opened, float]:
        """Counts a call in. Returns the channel, and what is left of the timeout."""
        forks.check()
        with forks.gate:
            if forks.forking:
                began = time.monotonic()
                if not forks.wait(timeout):
                    raise Unavailable(_FORKING)
                timeout -= time.monotonic() - began
            if self._opened is None:
                channel = open_channel(self._target, self._access.credentials, use_proxy=self._use_proxy)
                self._opened = _Opened(channel, self._access)
            self._opened.calls += 1
            return self._opened, timeout

    @staticmethod
    def _leave(opened: _Opened) -> None:
        with forks.gate:
            opened.calls -= 1
            if forks.forking:
                forks.gate.notify_all()


def _failure(opened: _Opened, error: grpc.RpcError) -> CatracaError:
    code = error.code()
    if opened.closed and code is grpc.StatusCode.CANCELLED:
        return Unavailable(opened.closed)
    return from_status(code, error.details(), error.trailing_metadata() or ())
