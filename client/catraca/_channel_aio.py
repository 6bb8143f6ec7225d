"""The connection of a client for asyncio: opened at the first call in an event loop, closed by `close` and by forks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from catraca import _core
from catraca._access import Access
from catraca._forks import forks, never_free
from catraca.errors import Unavailable, UnexpectedAnswer, from_status


class _Opened:
    """A channel between its opening and its closing, in the event loop that it belongs to."""

    def __init__(self, channel: grpc.aio.Channel, access: Access, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._access = access
        self.calls = 0
        self.closed = False
        self.streams = 0
        self.turns = asyncio.Semaphore(_core.CALLS_AT_A_TIME)
        self._channel: grpc.aio.Channel | None = channel
        self._stubs: dict[str, Callable[..., Awaitable[Any]]] = {}

    def send(self, call: _core.Call[Any], timeout: float) -> Awaitable[bytes]:
        """Begins a call."""
        # No variable may hold the stub: an error that a caller keeps would keep the channel open, and gRPC alive.
        return (self._stubs.get(call.path) or self._stub(call.path))(
            call.request, timeout=timeout, metadata=self._access.metadata()
        )

    def stream(self, path: str, requests: AsyncIterator[bytes]) -> Any:
        """Begins a call with a stream both ways. Returns its responses, as gRPC gives them."""
        if self._channel is None:
            raise Unavailable(_core.CLOSED)
        begin: Callable[..., Any] = self._channel.stream_stream(path)
        return begin(requests, metadata=self._access.metadata())

    def detach(self) -> grpc.aio.Channel | None:
        """Lets go of the channel and returns it. Calls that have not begun will not."""
        self.closed = True
        channel, self._channel, self._stubs = self._channel, None, {}
        return channel

    def _stub(self, path: str) -> Callable[..., Awaitable[Any]]:
        if self._channel is None:
            raise Unavailable(_core.CLOSED)
        stub: Callable[..., Awaitable[Any]] = self._channel.unary_unary(path)
        self._stubs[path] = stub
        return stub


class AsyncChannel:
    """A connection for all tasks of an event loop. Used in another loop, it is opened anew there."""

    def __init__(self, target: str, access: Access, *, use_proxy: bool) -> None:
        self._target = target
        self._access = access
        self._use_proxy = use_proxy
        self._opened: _Opened | None = None
        forks.watch(self)

    async def call(self, call: _core.Call[Any], timeout: float) -> bytes:
        """Makes a call and returns the answer's bytes. Raises CatracaError."""
        opened = self._enter()
        try:
            if opened.turns.locked():
                timeout = await _turn(opened.turns, timeout)
            else:
                await opened.turns.acquire()
            try:
                return await _answer(opened, call, timeout)
            finally:
                opened.turns.release()
        finally:
            opened.calls -= 1

    @asynccontextmanager
    async def stream(self, path: str, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Makes a call with a stream both ways, for as long as the context lasts. Raises CatracaError."""
        opened = self._enter()
        opened.calls -= 1
        opened.streams += 1
        call = None
        try:
            call = opened.stream(path, requests)
            yield call
        finally:
            opened.streams -= 1
            if call is not None:
                call.cancel()

    async def close(self) -> None:
        """Ends the calls under way and closes the connection. A call after this opens another."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        channel = opened.detach()
        # A channel of another loop is closed by letting go of it: this loop may not touch its calls.
        if channel is not None and opened.loop is asyncio.get_running_loop():
            await channel.close()

    def calls_to_drain(self) -> int:
        """See `Connection`. None: their loop may be the one that is waiting for the fork."""
        return 0

    def is_open(self) -> bool:
        """See `Connection`."""
        return self._opened is not None

    def close_for_fork(self) -> None:
        """See `Connection`. An idle channel can be closed unless its loop runs in another thread."""
        opened = self._opened
        if (
            opened is None
            or opened.calls
            or opened.streams
            or (opened.loop.is_running() and opened.loop is not _running_loop())
        ):
            return
        self._opened = None
        # Nothing else holds the channel, so this closes it at once.
        opened.detach()

    def abandon(self) -> None:
        """See `Connection`."""
        opened, self._opened = self._opened, None
        if opened is not None:
            never_free(opened)

    def _enter(self) -> _Opened:
        """Counts a call in. Returns the channel for the running loop."""
        forks.check()
        loop = asyncio.get_running_loop()
        if self._opened is None or self._opened.loop is not loop:
            with forks.gate:
                # Only another thread can be forking, and it does not wait for this one.
                forks.wait(_core.DEFAULT_TIMEOUT_SECONDS)
                self._opened = _Opened(self._open_channel(), self._access, loop)
        self._opened.calls += 1
        return self._opened

    def _open_channel(self) -> grpc.aio.Channel:
        options = _core.channel_options(use_proxy=self._use_proxy)
        credentials = self._access.credentials
        if credentials is None:
            return grpc.aio.insecure_channel(self._target, options)
        return grpc.aio.secure_channel(self._target, credentials, options)


async def _answer(opened: _Opened, call: _core.Call[Any], timeout: float) -> bytes:
    task = asyncio.current_task()
    cancellations = task.cancelling() if task else 0
    if cancellations:
        # A cancellation that was requested but not yet delivered is delivered here. A later one changes the count.
        await asyncio.sleep(0)
    try:
        return await opened.send(call, timeout)
    except asyncio.CancelledError:
        if opened.closed and task is not None and task.cancelling() == cancellations:
            # Nobody cancelled this task: closing a channel cancels its calls.
            raise Unavailable(_core.CLOSED) from None
        raise
    except grpc.aio.AioRpcError as error:
        # Without its traceback, whose frames would keep the channel open for as long as a caller keeps the error.
        failure = from_status(error.code(), error.details(), error.trailing_metadata())
        raise failure from error.with_traceback(None)
    except grpc.aio.BaseError as error:
        if opened.closed:
            raise Unavailable(_core.CLOSED) from None
        raise UnexpectedAnswer(f"gRPC failed: {error}") from error.with_traceback(None)


async def _turn(turns: asyncio.Semaphore, timeout: float) -> float:
    """Waits for a turn and returns what is left of the timeout. Raises Unavailable if no turn comes in time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(timeout):
            await turns.acquire()
    except TimeoutError:
        raise Unavailable(f"not sent within {timeout:g} s, behind this client's other calls") from None
    return timeout - (loop.time() - began)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
