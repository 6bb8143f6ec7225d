"""The watch stream of a client for asyncio: one task reads it, from the first validation in a loop until `close`."""

import asyncio
import random
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from catraca import _core
from catraca._channel_aio import AsyncChannel
from catraca._forks import WithoutConnection, forks
from catraca._lease import PING_SECONDS
from catraca._near_cache import Clock, NearAnswers
from catraca._watching import SILENT, Talk, Watch, log_refusal
from catraca.errors import CatracaError, Unavailable
from catraca.v1 import session_service_pb2 as pb


class AsyncStreams:
    """One stream after another, each read by the task that iterates over `messages`."""

    def __init__(self, channel: AsyncChannel, talk: Talk) -> None:
        self._channel = channel
        self._talk = talk
        self._call: Any = None
        self._silent = False

    async def messages(self) -> AsyncGenerator[pb.WatchSessionsResponse]:
        """Opens a stream and yields what comes. Raises grpc.aio.BaseError, CatracaError or DecodeError."""
        task, answered = asyncio.current_task(), asyncio.Event()
        self._silent = False
        try:
            async with self._channel.stream(_core.WATCH, self._requests(answered)) as self._call:
                async for response in self._call:
                    answered.set()
                    yield pb.WatchSessionsResponse.FromString(response)
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            # Only the call was cancelled, because its channel was closed or the server was silent.
            raise Unavailable(SILENT if self._silent else _core.CLOSED) from None
        finally:
            self._call = None

    def cancel(self) -> None:
        """Ends the stream that is open, if one is."""
        if self._call is not None:
            self._call.cancel()

    async def _requests(self, answered: asyncio.Event) -> AsyncGenerator[bytes]:
        """Yields the requests of a stream, in a task of gRPC's that ends with the stream."""
        yield self._talk.start().SerializeToString()
        # If the server refuses the stream, a second message may fail, and then gRPC says INTERNAL instead of why.
        with suppress(TimeoutError):
            async with asyncio.timeout(PING_SECONDS):
                await answered.wait()
        while True:
            yield self._talk.ping().SerializeToString()
            await asyncio.sleep(PING_SECONDS)
            if self._talk.is_silent():
                self._silent = True
                self.cancel()


class _Reader:
    """Reads one stream after another, in one loop. It knows nothing of the client, so that a client can be freed."""

    def __init__(self, channel: AsyncChannel, watch: Watch) -> None:
        self._watch = watch
        self._streams = AsyncStreams(channel, watch)

    async def run(self) -> None:
        """Reads until it is cancelled."""
        while True:
            code = grpc.StatusCode.CANCELLED
            try:
                code = await self._stream()
            finally:
                log_refusal(self._watch, code)
                delay = self._watch.ended(code)
            await asyncio.sleep(delay)

    async def _stream(self) -> grpc.StatusCode:
        """Reads a stream to its end. Returns how it ended."""
        try:
            async with aclosing(self._streams.messages()) as messages:
                async for response in messages:
                    self._watch.receive(response)
        except grpc.aio.AioRpcError as error:
            return error.code()
        except (CatracaError, DecodeError, grpc.aio.BaseError):
            return grpc.StatusCode.UNAVAILABLE
        return grpc.StatusCode.OK


class AsyncWatch(WithoutConnection):
    """Keeps a near cache up to date while a client is in use. At a fork, the channel speaks for the stream."""

    def __init__(self, channel: AsyncChannel, answers: NearAnswers, clock: Clock) -> None:
        self._channel = channel
        self._answers = answers
        self._clock = clock
        self._watch = self._new_watch()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finalizer: weakref.finalize[..., AsyncWatch] | None = None
        forks.watch(self)

    def begin(self) -> None:
        """Makes sure that the stream is read in the running loop. Raises UnusableAfterFork."""
        forks.check()
        loop = asyncio.get_running_loop()
        if self._loop is loop and self._task is not None and not self._task.done():
            return
        self._stop()
        if self._loop is not loop:
            # The other loop may still be reading its stream, and two streams must not share a cursor.
            self._answers.closed()
            self._watch = self._new_watch()
        self._loop = loop
        self._task = loop.create_task(_Reader(self._channel, self._watch).run(), name="catraca-watch")
        # For clients that nobody closes.
        self._finalizer = weakref.finalize(self, _cancel, self._task, loop)

    async def close(self) -> None:
        """Ends the stream and its task, and forgets the answers. A later `begin` begins anew."""
        task, loop = self._task, self._loop
        self._stop()
        self._task = self._loop = None
        self._watch = self._new_watch()
        if task is not None and loop is asyncio.get_running_loop():
            await asyncio.wait([task])
        self._answers.closed()

    def abandon(self) -> None:
        """See `Connection`."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = self._task = self._loop = None
        self._watch = self._new_watch()
        self._answers.renew()

    def _new_watch(self) -> Watch:
        return Watch(self._answers, self._clock, random.Random())  # noqa: S311  it spreads reconnects and guards nothing

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None


def _cancel(task: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
    # From the loop itself, from the garbage collector in any thread, or from the end of the program.
    with suppress(RuntimeError):  # the loop has been closed, and what ran in it with it
        loop.call_soon_threadsafe(task.cancel)
