"""How a server stops: calls in flight have the grace to end, the rest are cancelled, and nothing is left behind."""

import asyncio
import gc
import subprocess
import sys
import time
import weakref
from typing import Any

import grpc
import pytest
from tests.support.engine import (
    OPTIONS,
    Desk,
    Pile,
    descriptors,
    echo,
    echo_all,
    echo_each,
    end_of,
    engine_threads,
    serving,
)
from tests.support.waiting import TIMEOUT_SECONDS, eventually, eventually_async

from catraca_server.api.engine import (
    BatchMethod,
    Call,
    Server,
    Status,
    StatusError,
    Stream,
    StreamMethod,
    UnaryCall,
    UnaryMethod,
)


async def cannot_connect(served: Any) -> None:
    """Waits until new calls are refused."""

    async def is_refused() -> bool:
        return (await end_of(served.unary("Unknown"))).code is grpc.StatusCode.UNAVAILABLE

    await eventually_async(is_refused, "new calls are refused")


async def test_calls_in_hand_may_end() -> None:
    """Within the grace they are answered as ever, while new ones are refused; the stop takes no longer than they do."""
    desk, pile = Desk(), Pile()
    methods = {"Stay": UnaryMethod(desk.stay), "Ask": pile.method, "Watch": StreamMethod(desk.watch)}
    async with serving(methods) as served:
        staying, asked, watching = served.unary("Stay", b"done"), served.unary("Ask"), served.server_stream("Watch")
        await desk.has_inside(1)
        (call,) = await pile.has(1)
        assert await watching.read() == b"watching"
        stop = asyncio.create_task(served.server.stop(10 * TIMEOUT_SECONDS))
        await cannot_connect(served)
        assert not stop.done()
        desk.open.set()
        call.reply(b"late")
        assert (await staying, await asked) == (b"done", b"late")
        assert (await end_of(watching)).code is grpc.StatusCode.OK
        await asyncio.wait_for(stop, TIMEOUT_SECONDS)
        assert not engine_threads()


@pytest.mark.parametrize("grace_seconds", [None, 0.05])
async def test_what_does_not_end_is_cancelled(grace_seconds: float | None) -> None:
    """After the grace. Its callers get UNAVAILABLE, which is to say unknown."""
    desk, pile = Desk(), Pile()
    methods = {"Stay": UnaryMethod(desk.stay), "Ask": pile.method, "Watch": StreamMethod(desk.watch)}
    async with serving(methods) as served:
        calls = [served.unary("Stay"), served.unary("Ask"), served.server_stream("Watch"), served.both_streams("Watch")]
        await desk.has_inside(1)
        (asked,) = await pile.has(1)
        for watching in calls[2:]:
            assert await watching.read() == b"watching"
        await asyncio.wait_for(served.server.stop(grace_seconds), TIMEOUT_SECONDS)
        assert [(await end_of(call)).code for call in calls] == [grpc.StatusCode.UNAVAILABLE] * 4
        assert desk.cancelled == 3
        asked.reply(b"too late, and no harm done")


async def test_stopping_twice() -> None:
    """A second stop waits for the first, and may shorten its grace; one after the end returns at once."""
    desk = Desk()
    async with serving({"Stay": UnaryMethod(desk.stay)}) as served:
        staying = served.unary("Stay")
        await desk.has_inside(1)
        first = asyncio.create_task(served.server.stop(10 * TIMEOUT_SECONDS))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(served.server.stop(10 * TIMEOUT_SECONDS), 0.05)
        assert not first.done()
        await asyncio.wait_for(served.server.stop(0.01), TIMEOUT_SECONDS)
        await asyncio.wait_for(first, TIMEOUT_SECONDS)
        assert (await end_of(staying)).code is grpc.StatusCode.UNAVAILABLE
        await served.server.stop(None)


async def test_a_server_that_never_started() -> None:
    """It stops as well, and its port is free again."""
    for _ in range(2):
        server = Server(OPTIONS)
        port = server.listen("127.0.0.1:0")
        await server.stop(None)
        again = Server(OPTIONS)
        assert again.listen(f"127.0.0.1:{port}") == port
        await again.stop(None)
    await Server(OPTIONS).stop(1)
    assert not engine_threads()


async def test_a_port_in_use() -> None:
    """It is an OSError, which names the address."""
    first, second = Server(OPTIONS), Server(OPTIONS)
    address = f"127.0.0.1:{first.listen('127.0.0.1:0')}"
    with pytest.raises(OSError, match=address):
        second.listen(address)
    await first.stop(None)
    await second.stop(None)


async def test_a_busy_loop_stops_too() -> None:
    """Work that keeps the loop turning, and calls that keep coming, do not hold a stop up."""
    going = True

    async def busy() -> None:
        while going:
            time.sleep(0.001)  # noqa: ASYNC251  it is to be busy
            await asyncio.sleep(0)

    async with serving({"Echo": UnaryMethod(echo)}) as served:
        ended: list[grpc.StatusCode] = []

        async def ask() -> None:
            while not ended or ended[-1] is grpc.StatusCode.OK:
                ended.append((await end_of(served.unary("Echo"))).code)

        tasks = [asyncio.create_task(busy()), *(asyncio.create_task(ask()) for _ in range(5))]
        await eventually_async(lambda: asyncio.sleep(0, len(ended) > 50), "calls are answered")
        await asyncio.wait_for(served.server.stop(TIMEOUT_SECONDS), TIMEOUT_SECONDS)
        going = False
        await asyncio.gather(*tasks)
    assert set(ended) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}


async def test_handlers_have_time_for_last_words() -> None:
    """A stop waits for what a cancelled handler still does."""
    said: list[str] = []

    async def slow_to_leave(call: UnaryCall) -> bytes:
        said.append("here")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            said.append("gone")
        return call.request

    async with serving({"Leave": UnaryMethod(slow_to_leave)}) as served:
        served.unary("Leave")
        await eventually_async(lambda: asyncio.sleep(0, bool(said)), "the handler has begun")
        await served.server.stop(None)
        assert said == ["here", "gone"]


async def one_life() -> "weakref.ref[Server]":
    """Starts a server, has every kind of call, and stops it with some of them open."""
    desk, pile = Desk(), Pile()
    methods = {
        "Echo": BatchMethod(echo_all),
        "EchoEach": StreamMethod(echo_each),
        "Stay": UnaryMethod(desk.stay),
        "Ask": pile.method,
        "Watch": StreamMethod(desk.watch),
    }
    async with serving(methods) as served:
        assert await served.unary("Echo", b"x") == b"x"
        both = served.both_streams("EchoEach")
        await both.write(b"x")
        assert await both.read() == b"x"
        left = [served.unary("Stay"), served.unary("Ask"), served.server_stream("Watch")]
        await left[-1].read()
        await pile.has(1)
        await desk.has_inside(1)
        await served.server.stop(None)
        return weakref.ref(served.server)


async def test_nothing_stays_behind() -> None:
    """Servers start and stop many times in one process: no thread, descriptor, task or server is left."""
    await one_life()  # what grpcio keeps once for the process
    gc.collect()
    before = descriptors(), asyncio.all_tasks()
    servers = [await one_life() for _ in range(20)]
    assert not engine_threads()

    async def nothing_left() -> bool:
        gc.collect()
        return not any(server() for server in servers) and (descriptors(), asyncio.all_tasks()) <= before

    await eventually_async(nothing_left, "all is gone")


def calls_in_memory() -> int:
    """Returns how many calls there are, whoever holds them."""
    return sum(isinstance(each, Call) for each in gc.get_objects())


async def test_calls_are_freed_at_their_end() -> None:
    """At once, without the garbage collector: a call that lives on counts towards the streams of its connection."""

    async def fail(call: UnaryCall) -> bytes:
        raise StatusError(Status(grpc.StatusCode.ABORTED, call.peer()))

    async def fail_stream(stream: Stream) -> None:
        raise ValueError(await stream.receive())

    methods = {
        "Echo": BatchMethod(echo_all),
        "EchoOne": UnaryMethod(echo),
        "Fail": UnaryMethod(fail),
        "FailStream": StreamMethod(fail_stream),
    }
    gc.collect()
    gc.disable()
    try:
        async with serving(methods) as served:
            for _ in range(20):
                for method in ("Echo", "EchoOne", "Fail", "Unknown"):
                    await end_of(served.unary(method, b"x"))
                await end_of(served.server_stream("FailStream"))
            await eventually_async(lambda: asyncio.sleep(0, calls_in_memory() == 0), "all calls are freed")
    finally:
        gc.enable()


PROGRAM = """
import asyncio, sys, threading
import grpc
from catraca_server.api.engine import BatchMethod, Server, StreamMethod

async def main():
    server = Server()
    async def watch(stream):
        await stream.send(b"")
        await asyncio.Event().wait()
    kept = []
    server.add_methods({"/s/Keep": BatchMethod(kept.extend), "/s/Watch": StreamMethod(watch)})
    port = server.listen("127.0.0.1:0")
    server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    call = channel.unary_unary("/s/Keep")(b"")
    stream = channel.unary_stream("/s/Watch")(b"")
    await stream.read()
    while not kept:
        await asyncio.sleep(0.01)
    return server, kept, call, stream, channel

%s
print("end of program", flush=True)
"""

EXITS = {
    "loop closed": "asyncio.run(main())",
    "loop left": "loop = asyncio.new_event_loop(); left = loop.run_until_complete(main())",
    "exception": "asyncio.run(main()); print('end of program'); raise ValueError",
    "not the main thread": "t = threading.Thread(target=asyncio.run, args=(main(),)); t.start(); t.join()",
    "sys.exit in the loop": """
async def leave():
    await main()
    print("end of program")
    sys.exit(0)
asyncio.run(leave())""",
}


@pytest.mark.parametrize("how", EXITS)
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_an_interpreter_that_exits_without_a_stop(how: str) -> None:
    """It exits, though nobody stopped the server and calls are open; it neither hangs nor crashes."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", PROGRAM % EXITS[how]],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert "end of program" in done.stdout, done.stderr
    assert done.returncode == (1 if how == "exception" else 0), done.stderr


async def test_the_thread_ends_with_its_loop() -> None:
    """A loop that was closed without a stop does not leave a thread behind."""

    def run() -> None:
        async def start() -> None:
            server = Server(OPTIONS)
            server.listen("127.0.0.1:0")
            server.start()

        asyncio.run(start())

    await asyncio.to_thread(run)
    await asyncio.to_thread(eventually, lambda: not engine_threads(), "the thread has ended")
