"""The engine in the test's own process, with a grpc.aio client beside it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.api.engine import BatchMethod, Metadata, Method, Observer, Server, Stream, UnaryCall

THREAD = "grpc-completions"
LARGE = 8 << 20
OPTIONS = (("grpc.max_receive_message_length", LARGE + 1024), ("grpc.so_reuseport", 0))


@dataclass(frozen=True)
class Ended:
    """How a call ended for its caller."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: dict[str, str | bytes]


class Served:
    """A running server and a client of it."""

    def __init__(self, server: Server, port: int, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.port = port
        self.target = f"127.0.0.1:{port}"
        self.channel = channel

    def unary(self, method: str, request: bytes = b"", **how: Any) -> Any:
        """Begins a unary call of `/test.Service/…`."""
        stub: Any = self.channel.unary_unary(f"/test.Service/{method}")
        return stub(request, **how)

    def server_stream(self, method: str, request: bytes = b"", **how: Any) -> Any:
        """Begins a call that is answered by a stream."""
        stub: Any = self.channel.unary_stream(f"/test.Service/{method}")
        return stub(request, **how)

    def both_streams(self, method: str, **how: Any) -> Any:
        """Begins a stream of requests that is answered by a stream."""
        stub: Any = self.channel.stream_stream(f"/test.Service/{method}")
        return stub(**how)

    async def has_taken(self, slots: int) -> None:
        """Waits until this many slots are held."""

        async def are_taken() -> bool:
            return self.server.slots.taken == slots

        await eventually_async(are_taken, f"{slots} slots are taken")


@asynccontextmanager
async def serving(
    methods: Mapping[str, Method],
    options: Sequence[tuple[str, Any]] = (),
    *,
    slots: int = 100,
    slot_hold_limit_seconds: float = TIMEOUT_SECONDS,
    grace_seconds: float | None = None,
    observer: Observer | None = None,
    credentials: grpc.ServerCredentials | None = None,
    channel_credentials: grpc.ChannelCredentials | None = None,
    channel_options: Sequence[tuple[str, Any]] = (),
) -> AsyncIterator[Served]:
    """Serves methods of `/test.Service/…`. By default calls may hold their slots for a long time."""
    server = Server(
        (*OPTIONS, *options), slots=slots, slot_hold_limit_seconds=slot_hold_limit_seconds, observer=observer
    )
    server.add_methods({f"/test.Service/{name}": method for name, method in methods.items()})
    port = server.listen("127.0.0.1:0", credentials)
    server.start()
    # Each test has its own connections, and may receive as much as it sends.
    how = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1), *channel_options)
    try:
        async with _channel(f"127.0.0.1:{port}", channel_credentials, how) as channel:
            yield Served(server, port, channel)
    finally:
        await server.stop(grace_seconds)


def _channel(
    target: str, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]]
) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


class Desk:
    """Handlers whose calls stay open until they are released."""

    def __init__(self) -> None:
        self.inside = 0
        """Calls that have come in and are still open, without streams."""
        self.cancelled = 0
        """Calls whose handler was cancelled."""
        self.open = asyncio.Event()

    async def stay(self, call: UnaryCall) -> bytes:
        """Stays open."""
        self.inside += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        return call.request

    async def watch(self, stream: Stream) -> None:
        """Sends that it has begun, and stays open."""
        try:
            await stream.send(b"watching")
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def has_inside(self, count: int) -> None:
        """Waits until this many calls have come in."""

        async def are_inside() -> bool:
            return self.inside == count

        await eventually_async(are_inside, f"{count} calls are in")

    async def has_cancelled(self, count: int) -> None:
        """Waits until this many handlers have been cancelled."""

        async def are_cancelled() -> bool:
            return self.cancelled == count

        await eventually_async(are_cancelled, f"{count} handlers are cancelled")


class Pile:
    """A batch handler that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[UnaryCall] = []
        self.method = BatchMethod(self.calls.extend)

    async def has(self, count: int) -> list[UnaryCall]:
        """Waits until there are this many calls."""

        async def are_there() -> bool:
            return len(self.calls) >= count

        await eventually_async(are_there, f"{count} calls have come")
        return self.calls


def echo_all(calls: list[UnaryCall]) -> None:
    """Replies to each call with its request."""
    for call in calls:
        call.reply(call.request)


async def echo(call: UnaryCall) -> bytes:
    """Replies with the request."""
    return call.request


async def echo_each(stream: Stream) -> None:
    """Replies to each message with itself."""
    async for message in stream:
        await stream.send(message)


def unary(channel: grpc.aio.Channel, path: str, request: bytes, **how: Any) -> Any:
    """Begins a unary call on the test's own channel."""
    stub: Any = channel.unary_unary(path)
    return stub(request, **how)


async def end_of(call: Any) -> Ended:
    """Waits for the end of a call, with any status."""
    return Ended(await call.code(), await call.details() or "", as_dict(await call.trailing_metadata()))


def as_dict(metadata: Any) -> dict[str, str | bytes]:
    """Returns metadata without repeated keys."""
    pairs: Metadata = tuple(metadata or ())
    return dict(pairs)


def engine_threads() -> list[threading.Thread]:
    """Returns the threads of all engines in this process."""
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def descriptors() -> int:
    """Returns how many files and sockets this process has open."""
    return psutil.Process().num_fds()
