"""Streams: of replies, of requests, of both; half-closed, held up, given up."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from tests.support.engine import LARGE, Desk, as_dict, echo_each, end_of, serving
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.api.engine import Status, StatusError, Stream, StreamMethod


async def count_up(stream: Stream) -> None:
    """Replies with as many messages as the request says."""
    message = await stream.receive()
    assert message is not None
    for number in range(int(message)):
        await stream.send(b"%d" % number)


async def test_a_stream_of_replies() -> None:
    """All arrive, in order, and then OK; also when there are none."""
    async with serving({"Count": StreamMethod(count_up)}) as served:
        for count in (0, 1, 1000):
            call = served.server_stream("Count", b"%d" % count)
            assert [message async for message in call] == [b"%d" % number for number in range(count)]
            assert await call.code() is grpc.StatusCode.OK


async def test_streams_both_ways() -> None:
    """Replies come between requests, which end when the caller says so."""
    async with serving({"Echo": StreamMethod(echo_each)}) as served:
        call = served.both_streams("Echo")
        for number in range(100):
            await call.write(b"%d" % number)
            assert await call.read() == b"%d" % number
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_replies_after_the_last_request() -> None:
    """A caller that has nothing more to ask still gets what there is to say."""

    async def sum_up(stream: Stream) -> None:
        total = 0
        async for message in stream:
            total += int(message)
        await stream.send(b"%d" % total)
        assert await stream.receive() is None

    async def numbers() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d" % number

    async with serving({"Sum": StreamMethod(sum_up)}) as served:
        call = served.both_streams("Sum", request_iterator=numbers())
        assert [message async for message in call] == [b"4950"]


async def test_a_handler_need_not_hear_all() -> None:
    """It may end the stream while its caller goes on sending."""

    async def one(stream: Stream) -> None:
        await stream.send(await anext(stream))

    async with serving({"One": StreamMethod(one)}) as served:
        call = served.both_streams("One")
        await call.write(b"first")
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # the handler may have ended it by now
            await call.write(b"second")
        assert await call.read() == b"first"
        assert (await end_of(call)).code is grpc.StatusCode.OK


async def test_large_and_compressed_messages() -> None:
    """8 MiB go both ways, and what came compressed is handed on as it was before."""
    async with serving({"Echo": StreamMethod(echo_each)}) as served:
        call = served.both_streams("Echo", compression=grpc.Compression.Gzip)
        for message in (bytes(range(256)) * (LARGE // 256), b"small", b""):
            await call.write(message)
            assert await call.read() == message
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_metadata_and_statuses() -> None:
    """Initial metadata can be sent ahead of any message, trailing metadata come with the status."""
    go_on = asyncio.Event()

    async def fail(stream: Stream) -> None:
        stream.initial_metadata = (("first", "1"),)
        await stream.send_initial_metadata()
        await stream.send_initial_metadata()
        await go_on.wait()
        await stream.send(b"message")
        stream.trailing_metadata = (("last", "2"),)
        raise StatusError(Status(grpc.StatusCode.ABORTED, "why", (("grpc-status-details-bin", b"\0"),)))

    async with serving({"Fail": StreamMethod(fail)}) as served:
        call = served.server_stream("Fail")
        assert as_dict(await call.initial_metadata()) == {"first": "1"}
        go_on.set()
        assert await call.read() == b"message"
        ended = await end_of(call)
        assert (ended.code, ended.details) == (grpc.StatusCode.ABORTED, "why")
        assert ended.trailing_metadata == {"last": "2", "grpc-status-details-bin": b"\0"}


@pytest.mark.parametrize("ends", ["with a message", "with its status"])
async def test_messages_that_are_written_together(ends: str) -> None:
    """All arrive, in order: at the latest with the first message that nothing follows, or with the end."""

    async def together(stream: Stream) -> None:
        for number in range(1000):
            await stream.send(b"%d" % number, more_follows=number % 100 != 99 or ends == "with its status")
        if ends == "with a message":
            assert await stream.receive() == b"arrived"

    async with asyncio.timeout(TIMEOUT_SECONDS), serving({"Together": StreamMethod(together)}) as served:
        call = served.both_streams("Together")
        assert [await call.read() for _ in range(1000)] == [b"%d" % number for number in range(1000)]
        if ends == "with a message":
            await call.write(b"arrived")
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_send_given_up_goes_on() -> None:
    """A timeout around a send loses no message, and the next one waits for it."""
    given_up = 0

    async def impatient(stream: Stream) -> None:
        nonlocal given_up
        for number in range(200):
            try:
                await asyncio.wait_for(stream.send(b"%d " % number + bytes(1 << 16)), 0.001)
            except TimeoutError:
                given_up += 1

    async def has_given_up() -> bool:
        return given_up > 0

    async with serving({"Impatient": StreamMethod(impatient)}) as served:
        call = served.server_stream("Impatient")
        await eventually_async(has_given_up, "nobody reads")
        numbers = [int(message.split()[0]) async for message in call]
        assert numbers == sorted(set(numbers))
        assert len(numbers) >= 200 - given_up
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("more_follows", [False, True])
async def test_a_caller_that_does_not_read_holds_the_sender_up(more_follows: bool) -> None:
    """A send returns when the core has taken the message, so that what nobody reads does not pile up."""
    sent = 0

    async def pour(stream: Stream) -> None:
        nonlocal sent
        for _ in range(1000):
            await stream.send(bytes(1 << 16), more_follows=more_follows)
            sent += 1

    async def has_begun() -> bool:
        return sent > 0

    async with serving({"Pour": StreamMethod(pour), "Echo": StreamMethod(echo_each)}) as served:
        call = served.server_stream("Pour")
        await eventually_async(has_begun, "some is sent")
        # As long as it takes to ask something else many times, over the same connection.
        other = served.both_streams("Echo")
        for _ in range(100):
            await other.write(b"x")
            assert await other.read() == b"x"
        assert sent < 500
        assert sum([len(message) async for message in call]) == 1000 << 16
        other.cancel()
    assert sent == 1000


async def test_a_receive_given_up_loses_nothing() -> None:
    """A timeout around a receive leaves the message to the next one."""
    timeouts = 0

    async def impatient(stream: Stream) -> None:
        nonlocal timeouts
        while True:
            try:
                message = await asyncio.wait_for(stream.receive(), 0.001)
            except TimeoutError:
                timeouts += 1
                continue
            if message is None:
                return
            await stream.send(message)

    async def has_timed_out() -> bool:
        return timeouts >= 3

    async with serving({"Impatient": StreamMethod(impatient)}) as served:
        call = served.both_streams("Impatient")
        for number in range(20):
            timeouts = 0
            await eventually_async(has_timed_out, "it waits in vain")
            await call.write(b"%d" % number)
            assert await call.read() == b"%d" % number
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_receiving_and_sending_at_the_same_time() -> None:
    """One task may receive while another sends, and several sends queue up."""

    async def handle(stream: Stream) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(stream.send(bytes(100_000)))
            assert await stream.receive() == b"go"

    async with serving({"Both": StreamMethod(handle)}) as served:
        call = served.both_streams("Both")
        await call.write(b"go")
        assert [len(message) async for message in call] == [100_000] * 10


async def test_a_caller_that_leaves_cancels_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    """While it waits for something, receives, or sends; and it is no error to be logged."""
    desk = Desk()

    async def receive(stream: Stream) -> None:
        await stream.send(b"receiving")
        try:
            async for _ in stream:
                pass
            raise AssertionError("the requests ended, though the caller only left")
        except asyncio.CancelledError:
            desk.cancelled += 1
            raise

    async def pour(stream: Stream) -> None:
        try:
            while True:
                await stream.send(bytes(1 << 16))
        except asyncio.CancelledError:
            desk.cancelled += 1
            raise

    methods = {"Wait": StreamMethod(desk.watch), "Receive": StreamMethod(receive), "Pour": StreamMethod(pour)}
    with caplog.at_level(logging.INFO):
        async with serving(methods) as served:
            for number, method in enumerate([*methods] * 20, start=1):
                call: Any = served.both_streams(method)
                await call.read()
                call.cancel()
                await desk.has_cancelled(number)
    assert not caplog.records


async def test_a_handler_that_goes_on_after_its_caller_has_left() -> None:
    """It is cancelled again by the next thing it wants of the stream."""
    outcomes: list[str] = []
    begun = asyncio.Event()

    async def stubborn(stream: Stream) -> None:
        await stream.send(b"here")
        begun.set()
        for attempt in (asyncio.Event().wait, lambda: stream.send(b"x"), stream.receive):
            try:
                await attempt()
            except asyncio.CancelledError:
                outcomes.append("cancelled")
        assert stream.cancelled

    async def has_ended() -> bool:
        return len(outcomes) == 3

    async with serving({"Stubborn": StreamMethod(stubborn)}) as served:
        call = served.server_stream("Stubborn")
        await begun.wait()
        call.cancel()
        await eventually_async(has_ended, "the handler has ended")
    assert outcomes == ["cancelled"] * 3


async def test_handlers_with_defects(caplog: pytest.LogCaptureFixture) -> None:
    """The caller gets what was sent before, and INTERNAL."""

    async def fail(stream: Stream) -> None:
        await stream.send(b"before")
        raise ValueError("s3cret")

    async def send_text(stream: Stream) -> None:
        await stream.send("s3cret")  # type: ignore[arg-type]

    async with serving({"Fail": StreamMethod(fail), "Text": StreamMethod(send_text)}) as served:
        call = served.server_stream("Fail")
        assert await call.read() == b"before"
        assert (await end_of(call)).code is grpc.StatusCode.INTERNAL
        assert (await end_of(served.server_stream("Text"))).code is grpc.StatusCode.INTERNAL
    assert "the handler of /test.Service/Fail failed: ValueError" in caplog.text
    assert 's3cret")' in caplog.text, "the line of the handler"
    assert "ValueError: s3cret" not in caplog.text


async def test_a_message_too_large_to_send_ends_the_stream() -> None:
    """The handler is cancelled, the caller gets a status, and nothing hangs."""
    desk = Desk()

    async def too_large(stream: Stream) -> None:
        try:
            await stream.send(bytes(2000))
        except asyncio.CancelledError:
            desk.cancelled += 1
            raise

    async with serving({"TooLarge": StreamMethod(too_large)}, [("grpc.max_send_message_length", 1000)]) as served:
        call = served.server_stream("TooLarge", timeout=TIMEOUT_SECONDS)
        assert (await end_of(call)).code is not grpc.StatusCode.OK
        await desk.has_cancelled(1)


async def test_nothing_can_be_sent_after_the_end() -> None:
    """A task that outlives the handler gets an error, not a stream that never answers."""
    left: list[Stream] = []

    async def leave(stream: Stream) -> None:
        left.append(stream)

    async with serving({"Leave": StreamMethod(leave)}) as served:
        assert (await end_of(served.server_stream("Leave"))).code is grpc.StatusCode.OK
        with pytest.raises(RuntimeError, match="ended"):
            await left[0].send(b"late")
        with pytest.raises(RuntimeError, match="ended"):
            await left[0].receive()


async def test_metadata_that_cannot_be_sent_hold_nothing_up() -> None:
    """A handler that thinks better of them goes on."""

    async def careless(stream: Stream) -> None:
        stream.initial_metadata = (("Upper", "x"),)
        with pytest.raises(ValueError, match="key"):
            await stream.send(b"first")
        stream.initial_metadata = (("lower", "x"),)
        await stream.send(b"second")

    async with serving({"Careless": StreamMethod(careless)}) as served:
        call = served.server_stream("Careless")
        assert [message async for message in call] == [b"second"]
        assert as_dict(await call.initial_metadata()) == {"lower": "x"}


async def test_a_task_beside_the_handler_ends_with_the_call() -> None:
    """What waits to receive or to send in a task of its own is cancelled when the caller leaves."""
    beside: list[asyncio.Task[None]] = []

    async def receive(stream: Stream) -> None:
        await stream.receive()

    async def pour(stream: Stream) -> None:
        while True:
            await stream.send(bytes(1 << 16))

    async def handle(stream: Stream) -> None:
        beside.append(asyncio.create_task(receive(stream)))
        beside.append(asyncio.create_task(pour(stream)))
        await asyncio.Event().wait()

    async def are_cancelled() -> bool:
        return len(beside) == 2 and all(task.cancelled() for task in beside)

    async with serving({"Handle": StreamMethod(handle)}) as served:
        call = served.both_streams("Handle")
        await call.read()
        call.cancel()
        await eventually_async(are_cancelled, "both tasks are cancelled")


async def test_a_stream_whose_caller_does_not_read_can_be_cancelled() -> None:
    """A handler that is held up in sending ends; cancelling it again does nothing."""
    held: list[Stream] = []
    ended = asyncio.Event()

    async def flood(stream: Stream) -> None:
        held.append(stream)
        try:
            while True:
                await stream.send(bytes(LARGE))
        finally:
            ended.set()

    async with serving({"Flood": StreamMethod(flood)}) as served:
        call = served.server_stream("Flood", b"")

        async def has_begun() -> bool:
            return bool(held)

        await eventually_async(has_begun, "the stream has begun")
        held[0].cancel()
        await asyncio.wait_for(ended.wait(), TIMEOUT_SECONDS)
        held[0].cancel()
        assert held[0].cancelled
        call.cancel()
