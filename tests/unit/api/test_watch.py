"""The stream of a watch: what a pong says after the server's machine was suspended."""

import asyncio
import time
from typing import Any, cast

import pytest

from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.engine import Stream
from catraca_server.api.watch import Watches
from catraca_server.domain.events import BEFORE_ALL, Position
from catraca_server.operations.watching import Watching, suspend_counting_time
from catraca_server.store import FeedReading

END = Position(b"1st-reign", BEFORE_ALL)
START = pb.WatchSessionsRequest(start=pb.WatchStart())
PING = pb.WatchSessionsRequest(ping=pb.WatchPing(nonce=7))


class SleepingFeed:
    """An empty feed. Once its end is known, it does not reply: the machine is suspended."""

    on_append: Any

    async def end(self, _call: Any) -> Position:
        """Returns where it ends."""
        return END

    async def read(self, *_: Any, **__: Any) -> FeedReading:
        """Does not reply."""
        return await asyncio.Future[FeedReading]()


class FakeStream:
    """A stream, as those who serve it know it."""

    metadata = ()

    def __init__(self) -> None:
        self.requests: asyncio.Queue[bytes] = asyncio.Queue()
        self.responses: asyncio.Queue[pb.WatchSessionsResponse] = asyncio.Queue()

    async def receive(self) -> bytes:
        """Returns the next request."""
        return await self.requests.get()

    def __aiter__(self) -> "FakeStream":
        return self

    __anext__ = receive

    async def send(self, message: bytes, *, more_follows: bool) -> None:
        """Takes a response."""
        assert not more_follows, "nothing does"
        self.responses.put_nowait(pb.WatchSessionsResponse.FromString(message))

    async def exchange(self, request: pb.WatchSessionsRequest) -> pb.WatchSessionsResponse:
        """Sends a request, and returns the next response."""
        self.requests.put_nowait(request.SerializeToString())
        return await asyncio.wait_for(self.responses.get(), 20)


async def test_the_age_in_a_pong_counts_suspension() -> None:
    """Meanwhile other servers may have acknowledged revocations, of which nothing has been read here."""
    now = 1000.0
    stream = FakeStream()
    watching = Watching(cast("Any", SleepingFeed()), timeout_seconds=1, clock=lambda: now)
    serving = asyncio.create_task(Watches(watching).serve(cast("Stream", stream)))
    assert (await stream.exchange(START)).WhichOneof("response") == "opened"
    now += 5.7
    pong = (await stream.exchange(PING)).pong
    assert pong.nonce == 7
    assert pong.age.ToTimedelta().total_seconds() == pytest.approx(5.7)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await watching.stop()


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has CLOCK_BOOTTIME")
def test_time_counts_suspension() -> None:
    """It is that of the clock that runs from the boot on."""
    before: float = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= suspend_counting_time() <= time.clock_gettime(time.CLOCK_BOOTTIME)
