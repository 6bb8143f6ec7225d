"""Calls that end without an answer: their callers leave, or their deadlines pass, at every stage of a call."""

import asyncio
import logging
from contextlib import closing
from typing import Any

import grpc
import pytest
from tests.support.engine import Desk, Pile, Served, echo_all, end_of, serving
from tests.support.raw_http2 import RawConnection
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.api.engine import BatchMethod, Metadata, StreamMethod, UnaryMethod


async def test_a_batch_with_a_caller_who_has_left(caplog: pytest.LogCaptureFixture) -> None:
    """Answering it is no error, and the others get their answers."""
    pile = Pile()
    with caplog.at_level(logging.INFO):
        async with serving({"Ask": pile.method}) as served:
            leaving, staying = served.unary("Ask", b"leaving"), served.unary("Ask", b"staying")
            await pile.has(2)
            leaving.cancel()
            # Sent later on the same connection: when it is here, the server knows that the other has left.
            served.unary("Ask", b"later")
            await pile.has(3)
            for call in pile.calls:
                call.reply(call.request)
            assert await staying == b"staying"
            await served.has_taken(0)
    assert not caplog.records


async def test_a_batch_can_have_its_calls_watched() -> None:
    """From then on `cancelled` says who has left, and the call no longer counts for its connection."""
    pile = Pile()
    async with serving({"Ask": pile.method}, [("grpc.max_concurrent_streams", 2)]) as served:
        leaving, staying = served.unary("Ask", b"leaving"), served.unary("Ask", b"staying")
        for call in await pile.has(2):
            call.watch()
            call.watch()
        leaving.cancel()

        async def has_left() -> bool:
            return any(call.cancelled for call in pile.calls)

        await eventually_async(has_left, "the handler sees it")
        assert {call.request: call.cancelled for call in pile.calls} == {b"leaving": True, b"staying": False}
        third = served.unary("Ask", b"third")
        for call in await pile.has(3):
            call.reply(call.request)
            call.watch()
        assert (await staying, await third) == (b"staying", b"third")
        await served.has_taken(0)


async def test_a_coroutine_is_cancelled() -> None:
    """When its caller leaves, and no other with it."""
    desk = Desk()
    async with serving({"Stay": UnaryMethod(desk.stay)}) as served:
        calls = [served.unary("Stay", b"%d" % number) for number in range(10)]
        await desk.has_inside(10)
        for call in calls[::2]:
            call.cancel()
        await desk.has_cancelled(5)
        desk.open.set()
        assert [await call for call in calls[1::2]] == [b"1", b"3", b"5", b"7", b"9"]
        await served.has_taken(0)


async def test_a_coroutine_that_will_not_be_cancelled() -> None:
    """What it returns goes nowhere, and its slot to the next."""
    begun, swallowed = asyncio.Event(), asyncio.Event()

    async def stubborn(_call: Any) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        return b"to nobody"

    async with serving({"Stubborn": UnaryMethod(stubborn)}, slots=1) as served:
        for _ in range(3):
            call = served.unary("Stubborn")
            await asyncio.wait_for(begun.wait(), TIMEOUT_SECONDS)
            call.cancel()
            await asyncio.wait_for(swallowed.wait(), TIMEOUT_SECONDS)
            begun.clear()
            swallowed.clear()
            await served.has_taken(0)


async def test_a_coroutine_that_gives_up_by_itself() -> None:
    """A handler cancelled by something else than its caller leaves CANCELLED to the caller."""

    async def give_up(_call: Any) -> bytes:
        raise asyncio.CancelledError

    async with serving({"GiveUp": UnaryMethod(give_up)}) as served:
        assert (await end_of(served.unary("GiveUp"))).code is grpc.StatusCode.CANCELLED
        await served.has_taken(0)


async def test_a_caller_that_leaves_as_soon_as_it_has_come() -> None:
    """Whatever stage its call has reached: no slot, task or answer is lost."""
    desk, pile = Desk(), Pile()
    desk.open.set()
    methods = {
        "Stay": UnaryMethod(desk.stay),
        "Ask": pile.method,
        "Watch": StreamMethod(desk.watch),
        "Echo": BatchMethod(echo_all),
    }
    async with serving(methods, slots=10) as served:
        for turns in range(200):
            calls = [served.unary(name) for name in methods] + [served.server_stream("Watch")]
            for _ in range(turns % 10):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            for asked in pile.calls:
                asked.reply(b"")
            pile.calls.clear()
        assert await served.unary("Echo", b"after") == b"after"
        for asked in pile.calls:
            asked.reply(b"")
        await served.has_taken(0)


async def leave(served: Served, desk: Desk, *, half_closed: bool, timeout: str, reset: bool) -> None:
    """Begins a call by hand, with a request or without one, and leaves it or its whole connection."""
    with closing(await asyncio.to_thread(RawConnection, served.port)) as raw:
        stream = raw.begin("Stay", b"request" if half_closed else None, timeout=timeout)
        await served.has_taken(1)
        await desk.has_inside(int(half_closed))
        if reset:
            raw.reset(stream)
            await served.has_taken(0)
    await served.has_taken(0)


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "connection closed"])
@pytest.mark.parametrize("half_closed", [True, False], ids=["asked", "request never comes"])
async def test_streams_reset_by_hand(half_closed: bool, reset: bool) -> None:
    """A call ends with its stream and with its connection, whether or not its request has come."""
    desk = Desk()
    async with serving({"Stay": UnaryMethod(desk.stay)}) as served:
        for _ in range(5):
            await leave(served, desk, half_closed=half_closed, timeout="60S", reset=reset)
        assert not desk.inside
        assert desk.cancelled == (5 if half_closed else 0)


async def test_calls_whose_requests_never_come_hold_nobody_up() -> None:
    """As many as there are slots, and then others are answered; the core ends them at their deadlines."""
    async with serving({"Echo": BatchMethod(echo_all)}, slots=4, slot_hold_limit_seconds=0.05) as served:
        with closing(await asyncio.to_thread(RawConnection, served.port)) as raw:
            for _ in range(4):
                raw.begin("Echo", None, timeout="60S")
            await served.has_taken(4)
            assert await served.unary("Echo", b"x", timeout=TIMEOUT_SECONDS) == b"x"
            stream = raw.begin("Echo", None, timeout="50m")
            await asyncio.to_thread(raw.wait_for_end, stream)


async def test_a_half_closed_call_without_a_request() -> None:
    """It is UNIMPLEMENTED, as the protocol has it, and the handler does not see it."""
    pile = Pile()
    async with serving({"Ask": pile.method}) as served:
        # A stream of no requests, to a unary method.
        call = served.both_streams("Ask")
        await call.done_writing()
        assert (await end_of(call)).code is grpc.StatusCode.UNIMPLEMENTED
        await served.has_taken(0)
    assert not pile.calls


async def test_a_deadline_passes_while_the_handler_works() -> None:
    """The caller gets DEADLINE_EXCEEDED, the handler is cancelled or sees it, and the slots are free again."""
    desk, pile = Desk(), Pile()
    methods = {"Stay": UnaryMethod(desk.stay), "Ask": pile.method, "Watch": StreamMethod(desk.watch)}
    async with serving(methods) as served:
        calls = [served.unary("Stay", timeout=0.1), served.unary("Ask", timeout=0.1)]
        calls.append(served.server_stream("Watch", timeout=0.1))
        assert {(await end_of(call)).code for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        await desk.has_cancelled(2)
        for call in await pile.has(1):
            call.reply(b"late")
        await served.has_taken(0)


async def test_the_core_ends_a_call_past_its_deadline() -> None:
    """Also for a caller that does not watch the clock itself."""
    desk, pile = Desk(), Pile()
    methods = {"Stay": UnaryMethod(desk.stay), "Ask": pile.method}
    async with serving(methods) as served:
        with closing(await asyncio.to_thread(RawConnection, served.port)) as raw:
            streams = [raw.begin(name, b"request", timeout="1S") for name in methods]
            await desk.has_inside(1)
            for stream in streams:
                await asyncio.to_thread(raw.wait_for_end, stream)
        await desk.has_cancelled(1)
        (asked,) = await pile.has(1)
        asked.reply(b"late")
        await served.has_taken(0)


async def test_a_deadline_passed_before_the_handler_gets_the_call() -> None:
    """It may get such a call after it has waited for a slot, and can tell by the deadline."""
    desk, pile = Desk(), Pile()
    async with serving({"Stay": UnaryMethod(desk.stay), "Ask": pile.method}, slots=1) as served:
        staying = served.unary("Stay")
        await desk.has_inside(1)
        waiting = [served.unary("Ask", timeout=0.1) for _ in range(10)]
        assert {(await end_of(call)).code for call in waiting} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        desk.open.set()
        await staying
        last = served.unary("Ask", b"last")

        async def has_come() -> bool:
            for call in pile.calls:
                if not call.answered:
                    call.reply(b"")
            return bool(pile.calls) and pile.calls[-1].request == b"last"

        await eventually_async(has_come, "the last call has come")
        now = asyncio.get_running_loop().time()
        assert all(call.deadline <= now for call in pile.calls[:-1])
        await last
        await served.has_taken(0)


class Ends:
    """An observer that keeps the status codes with which calls end."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    def started(self, method: bytes, metadata: Metadata) -> None:
        """Keeps nothing."""

    def handled(self, observed: None, method: bytes, code: int, reason: str, seconds: float) -> None:
        """Keeps the code."""
        self.codes.append(code)


@pytest.mark.parametrize("method", ["Stay", "Ask"])
async def test_the_observer_learns_why_a_caller_has_left(method: str) -> None:
    """Because its deadline has passed, or on its own accord: at once, or when a batch answers."""
    ends, desk, pile = Ends(), Desk(), Pile()

    async def have_ended() -> bool:
        return len(ends.codes) == 2

    methods = {"Stay": UnaryMethod(desk.stay), "Ask": pile.method}
    async with serving(methods, observer=ends) as served:
        leaving, staying = served.unary(method), served.unary(method, timeout=0.5)
        if method == "Stay":
            await desk.has_inside(2)
        else:
            await pile.has(2)
        leaving.cancel()
        assert (await end_of(staying)).code is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.sleep(0.1)  # the server may notice the deadline later than the client
        for call in pile.calls:
            call.reply(b"late")
        await eventually_async(have_ended, "both are over")
        assert [await call.code() for call in (leaving, staying)] == [
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        ]
    assert sorted(ends.codes) == [grpc.StatusCode.CANCELLED.value[0], grpc.StatusCode.DEADLINE_EXCEEDED.value[0]]
