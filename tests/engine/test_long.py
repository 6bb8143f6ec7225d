"""Many calls, a third of which nobody waits for: nothing grows."""

import asyncio
import gc
import os
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from bench.http2 import Call
from tests.support.engine import descriptors, serving
from tests.support.raw_http2 import RawConnection

from catraca_server.api.engine import BatchMethod, StreamMethod, UnaryCall, UnaryMethod
from catraca_server.api.engine.streams import Stream

LONG = bool(os.environ.get("CATRACA_TEST_LONG"))
CALLS_A_LAP = 100_000 if LONG else 2_000
LAPS = int(os.environ.get("CATRACA_TEST_LAPS", "100")) if LONG else 4
AT_A_TIME = 60


class Callers(RawConnection):
    """A connection that is never without calls: of each six, one is past its deadline and one is reset."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        super().__init__(port)

    def on_answer(self, stream: int, call: Call, trailers: bytes) -> None:  # noqa: D102  as its base says
        self.answered += 1

    def on_reset(self, stream: int, call: Call, code: int) -> None:  # noqa: D102  as its base says
        self.answered += 1

    def lap(self, calls: int) -> None:
        """Makes so many calls, of each kind in turn, and waits for those that are not reset."""
        kinds = ("Now", "Now", "Later", "Later", "Stream", "Late")
        for number in range(calls):
            kind = kinds[number % len(kinds)]
            stream = self.begin(kind, b"request", timeout="5m" if kind == "Late" else "60S")
            if number % 6 == number // 6 % 5:
                self.reset(stream)
            while len(self.calls) >= AT_A_TIME:
                self.turn()
        while self.calls:
            self.turn()


@dataclass(frozen=True)
class Use:
    """What this process uses."""

    resident_bytes: int
    descriptors: int
    threads: int
    tasks: int


def use_now() -> Use:
    """Measures."""
    gc.collect()
    process = psutil.Process()
    return Use(process.memory_info().rss, descriptors(), process.num_threads(), len(asyncio.all_tasks()))


def late(calls: list[UnaryCall]) -> None:
    """Replies when the deadlines have passed."""
    for call in calls:
        asyncio.get_running_loop().call_later(0.02, call.reply, b"late")


async def later(call: UnaryCall) -> bytes:
    """Replies in a later turn."""
    await asyncio.sleep(0)
    return call.request


async def stream(stream: Stream) -> None:
    """Replies twice to each message."""
    async for message in stream:
        await stream.send(message)
        await stream.send(message)


@pytest.mark.timeout(3600)
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_nothing_grows(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory, descriptors, threads and tasks are flat over laps of calls."""

    def now(calls: list[UnaryCall]) -> None:
        for call in calls:
            call.reply(call.request)

    methods: dict[str, Any] = {
        "Now": BatchMethod(now),
        "Later": UnaryMethod(later),
        "Stream": StreamMethod(stream),
        "Late": BatchMethod(late),
    }
    uses = []
    async with serving(methods, [("grpc.max_concurrent_streams", 250)]) as served:
        for lap in range(LAPS):
            with closing(await asyncio.to_thread(Callers, served.port)) as callers:
                await asyncio.to_thread(callers.lap, CALLS_A_LAP)
            await served.has_taken(0)
            uses.append(use_now())
            if LONG:
                with capsys.disabled():
                    print(f"{(lap + 1) * CALLS_A_LAP:,} calls: {uses[-1]}", flush=True)  # noqa: T201
    settled, last = uses[len(uses) // 2], uses[-1]
    assert (last.descriptors, last.threads, last.tasks) <= (settled.descriptors + 2, settled.threads, settled.tasks)
    if LONG:
        # Allocators take a while to settle. One object a call would be fifteen times as much.
        assert last.resident_bytes - settled.resident_bytes < 16 << 20
