"""Slots: how many calls are accepted, which give up their slots, and that no slot is ever lost."""

import asyncio
from typing import Any

import grpc
import pytest
from tests.support.engine import Desk, Pile, end_of, serving
from tests.support.waiting import TIMEOUT_SECONDS

from catraca_server.api.engine import Status, StatusError, StreamMethod, UnaryCall, UnaryMethod


async def answer(call: Any) -> bytes:
    """Waits for the answer of a call."""
    reply: bytes = await call
    return reply


async def fail(_call: UnaryCall) -> bytes:
    """Fails, as asked."""
    raise StatusError(Status(grpc.StatusCode.FAILED_PRECONDITION, "as asked"))


async def test_as_many_are_taken_in_as_there_are_slots() -> None:
    """All at the same time; who comes on top waits until one of them has gone."""
    desk = Desk()
    async with serving({"Stay": UnaryMethod(desk.stay), "Fail": UnaryMethod(fail)}, slots=3) as served:
        first = [asyncio.create_task(answer(served.unary("Stay", b"done"))) for _ in range(3)]
        await desk.has_inside(3)
        await served.has_taken(3)
        late = served.unary("Fail")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(late.code()), 0.1)
        desk.open.set()
        assert await asyncio.gather(*first) == [b"done"] * 3
        assert (await end_of(late)).details == "as asked"
        await served.has_taken(0)


async def test_a_batch_holds_its_slots_until_it_is_answered() -> None:
    """The handler has no more calls than there are slots, until it answers one."""
    pile = Pile()
    async with serving({"Ask": pile.method}, slots=2) as served:
        asked = [served.unary("Ask") for _ in range(3)]
        await pile.has(2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pile.has(3), 0.1)
        pile.calls[0].reply(b"")
        await pile.has(3)
        for call in pile.calls[1:]:
            call.reply(b"")
        await asyncio.gather(*(answer(call) for call in asked))


async def test_streams_hold_no_slot() -> None:
    """However many watch, a call is answered."""
    desk = Desk()
    methods = {"Watch": StreamMethod(desk.watch), "Stay": UnaryMethod(desk.stay)}
    async with serving(methods, slots=1) as served:
        watches = [served.server_stream("Watch") for _ in range(5)]
        assert [await watch.read() for watch in watches] == [b"watching"] * 5
        desk.open.set()
        assert await served.unary("Stay", b"done") == b"done"
        await served.has_taken(0)


async def test_a_call_that_lasts_gives_its_slot_up() -> None:
    """Others come in beside it, and when it ends there are as many slots as before."""
    desk = Desk()
    async with serving({"Stay": UnaryMethod(desk.stay)}, slots=2, slot_hold_limit_seconds=0.05) as served:
        lasting = [asyncio.create_task(answer(served.unary("Stay", b"done"))) for _ in range(4)]
        await desk.has_inside(4)
        served.server.slots.hold_limit_seconds = 1000.0
        desk.open.set()
        assert await asyncio.gather(*lasting) == [b"done"] * 4
        await desk.has_inside(0)
        desk.open.clear()
        await served.has_taken(0)
        staying = [asyncio.create_task(answer(served.unary("Stay", b"done"))) for _ in range(3)]
        await desk.has_inside(2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(staying[2]), 0.1)
        assert desk.inside == 2
        desk.open.set()
        assert await asyncio.gather(*staying) == [b"done"] * 3


async def test_calls_that_wait_for_too_long_are_given_up() -> None:
    """When a slot comes free, those that have waited for longer than the limit are CANCELLED and not begun."""
    desk = Desk()
    options = [("grpc.server_max_unrequested_time_in_server", 1)]
    async with serving({"Stay": UnaryMethod(desk.stay)}, options, slots=1, slot_hold_limit_seconds=1.5) as served:
        first = asyncio.create_task(answer(served.unary("Stay", b"done")))
        await desk.has_inside(1)
        late = [served.unary("Stay", timeout=TIMEOUT_SECONDS) for _ in range(5)]
        assert {(await end_of(call)).code for call in late} == {grpc.StatusCode.CANCELLED}
        assert (desk.inside, desk.cancelled) == (1, 0)
        next_one = asyncio.create_task(answer(served.unary("Stay", b"next")))
        await desk.has_inside(2)
        desk.open.set()
        assert [await first, await next_one] == [b"done", b"next"]


async def test_the_hold_limit_is_a_matter_of_the_clock() -> None:
    """Only calls that came longer ago than that give up, and twice is the same as once."""
    desk = Desk()
    async with serving({"Stay": UnaryMethod(desk.stay)}, slots=2, slot_hold_limit_seconds=1000) as served:
        slots, now = served.server.slots, asyncio.get_running_loop().time()
        calls = [served.unary("Stay") for _ in range(2)]
        await desk.has_inside(2)
        slots.give_up_held_too_long(now + 999)
        assert slots.taken == 2
        for _ in range(2):
            slots.give_up_held_too_long(now + 1001 + 60)
            assert slots.taken == 0
        calls += [served.unary("Stay") for _ in range(2)]
        await desk.has_inside(4)
        desk.open.set()
        await asyncio.gather(*(answer(call) for call in calls))


async def test_no_slot_is_lost() -> None:
    """Calls that fail, that their callers give up, and that nobody knows: each leaves its slot to the next."""
    desk, pile = Desk(), Pile()
    methods = {"Fail": UnaryMethod(fail), "Stay": UnaryMethod(desk.stay), "Ask": pile.method}
    async with serving(methods, slots=1) as served:
        for _ in range(50):
            assert (await end_of(served.unary("Fail"))).details == "as asked"
            assert (await end_of(served.unary("Unknown"))).code is grpc.StatusCode.UNIMPLEMENTED
            staying = served.unary("Stay")
            await desk.has_inside(1)
            staying.cancel()
            await desk.has_inside(0)
            asked = served.unary("Ask")
            (call,) = await pile.has(1)
            asked.cancel()
            # Work on a call goes on when its caller has left, so its slot is held until the handler has done with it.
            await served.has_taken(1)
            call.reply(b"to nobody")
            pile.calls.clear()
        desk.open.set()
        assert await served.unary("Stay", b"done") == b"done"
        await served.has_taken(0)
