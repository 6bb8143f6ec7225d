"""Malicious and broken callers: honest callers are served all the same."""

import asyncio
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import grpc
import pytest
from bench.http2 import LoadError, framed
from tests.support.engine import Served, echo, echo_all, end_of, serving
from tests.support.raw_http2 import RawConnection
from tests.support.waiting import TIMEOUT_SECONDS

from catraca_server.api.engine import BatchMethod, Method, UnaryMethod

# By default a core from 1.82 on refuses calls at random, whoever makes them, with CANCELLED while 1,000 of them wait.
PENDING = (
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
)

METHODS: dict[str, Callable[[], Method]] = {
    "batch": lambda: BatchMethod(echo_all),
    "coroutine": lambda: UnaryMethod(echo),
}


async def served_meanwhile(served: Served, storm: Callable[[], None]) -> int:
    """Runs a storm in a thread and returns how many honest calls were answered meanwhile. None may fail."""
    raging = asyncio.create_task(asyncio.to_thread(storm))
    answered = 0
    while not raging.done():
        assert await served.unary("Echo", b"honest", timeout=TIMEOUT_SECONDS) == b"honest"
        answered += 1
    await raging
    return answered


@pytest.mark.parametrize("shape", METHODS)
async def test_rapid_resets(shape: str) -> None:
    """Calls that are reset as soon as they have come, by the thousand."""
    async with serving({"Echo": METHODS[shape]()}, [*PENDING, ("grpc.max_concurrent_streams", 250)]) as served:

        def storm() -> None:
            for _ in range(10):
                # The core may hang up on such a caller, who comes again.
                with suppress(LoadError), closing(RawConnection(served.port)) as raw:
                    for _ in range(10):
                        raw.begin_and_reset("Echo", b"x", 100)

        assert await served_meanwhile(served, storm)
        assert await served.unary("Echo", b"after") == b"after"
        await served.has_taken(0)


async def test_header_blocks_without_end() -> None:
    """A CONTINUATION flood: the core hangs up on it, and takes no more memory than headers may."""
    async with serving({"Echo": BatchMethod(echo_all)}) as served:

        def storm() -> None:
            for _ in range(5):
                with suppress(LoadError), closing(RawConnection(served.port)) as raw:
                    raw.continue_headers(500)

        await served_meanwhile(served, storm)
        assert await served.unary("Echo", b"after") == b"after"
        await served.has_taken(0)


BODIES = {
    "longer than it says": framed(b"x") + b"more",
    "shorter than it says": framed(b"xxxx")[:-1],
    "no header": b"\0",
    "a flag nobody knows": b"\x07" + framed(b"x")[1:],
    "compressed, but not said how": b"\1" + framed(b"x")[1:],
    "larger than allowed": b"\0\xff\xff\xff\xff" + b"x" * 100,
    "two messages": framed(b"one") + framed(b"two"),
}


@pytest.mark.parametrize("body", BODIES)
async def test_bodies_that_are_not_messages(body: str) -> None:
    """Their calls end one way or the other, and nothing else does."""
    async with serving({"Echo": BatchMethod(echo_all)}, slot_hold_limit_seconds=0.2) as served:
        for _ in range(5):
            with suppress(LoadError), closing(await asyncio.to_thread(RawConnection, served.port)) as raw:
                stream = raw.begin_with_body("Echo", BODIES[body])
                await asyncio.to_thread(raw.wait_for_end, stream)
            assert await served.unary("Echo", b"honest") == b"honest"
        await served.has_taken(0)


async def test_connections_cut_short() -> None:
    """Connections that close in the middle of calls, many at a time.

    Before grpcio 1.80 the core may lose track of such a call, also under grpc.server: it ends at its deadline only.
    """
    async with serving({"Echo": BatchMethod(echo_all), "EchoOne": UnaryMethod(echo)}) as served:

        def storm() -> None:
            for number in range(30):
                with closing(RawConnection(served.port)) as raw:
                    for _ in range(number):
                        request = b"x" if number % 3 else None
                        raw.begin("Echo" if number % 2 else "EchoOne", request, timeout="2S")

        await served_meanwhile(served, storm)
        await served.has_taken(0)


async def test_what_is_not_http2() -> None:
    """Gets nowhere."""
    async with serving({"Echo": BatchMethod(echo_all)}) as served:
        for sent in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\0" * 100,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 50,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(sent)
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            assert await served.unary("Echo", b"honest") == b"honest"


async def test_honest_callers_in_a_crowd() -> None:
    """Many callers, a third of whom leave: each of the others gets its own answer."""
    async with serving({"Echo": BatchMethod(echo_all), "EchoOne": UnaryMethod(echo)}) as served:

        async def one(number: int) -> Any:
            call = served.unary("Echo" if number % 2 else "EchoOne", b"%d" % number)
            if number % 3 == 0:
                await asyncio.sleep(0)
                call.cancel()
                return (await end_of(call)).code in {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
            return await call == b"%d" % number

        for start in range(0, 3000, 300):
            assert all(await asyncio.gather(*(one(number) for number in range(start, start + 300))))
        await served.has_taken(0)
