"""Load shedding: clients that keep to their connection's limit are still refused the calls that are not let in."""

import asyncio
from contextlib import closing

import pytest
from tests.support.engine import Desk, serving
from tests.support.raw_http2 import RawConnection
from tests.support.waiting import eventually_async

from catraca_server.api.engine import UnaryMethod

LIMIT = 40


async def ended(connection: RawConnection, calls: int) -> None:
    """Waits until so many calls have ended, however."""

    async def are_over() -> bool:
        await asyncio.to_thread(connection.turn)
        return len(connection.ended) >= calls

    await eventually_async(are_over, f"{calls} calls have ended")


async def test_what_is_not_let_in_is_refused() -> None:
    """Once slots have run out, a connection gets half of its limit in; and all of it again when they no longer do."""
    desk = Desk()
    options = [("grpc.max_concurrent_streams", LIMIT)]
    async with serving({"Stay": UnaryMethod(desk.stay)}, options, slots=2) as served:
        shedding = served.server.shedding
        with closing(await asyncio.to_thread(RawConnection, served.port)) as connection:

            async def refused_of_a_full_connection() -> int:
                connection.ended.clear()
                connection.refused.clear()
                desk.open.clear()
                for _ in range(LIMIT):
                    connection.begin("Stay", b"")
                await desk.has_inside(2)
                desk.open.set()
                await ended(connection, LIMIT)
                await served.has_taken(0)
                return len(connection.refused)

            assert await refused_of_a_full_connection() == 0
            shedding.look(0.125)
            assert shedding.let_in == LIMIT / 2
            assert await refused_of_a_full_connection() == 0, "nothing has been kept until now"
            # The core lets one more in than its limit.
            assert LIMIT / 2 - 1 <= await refused_of_a_full_connection() <= LIMIT / 2
            while shedding.let_in < LIMIT:
                shedding.look(0.125)
            assert await refused_of_a_full_connection() == 0


async def test_callers_who_leave_late_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose calls have been taken in; the core tells nobody of the others. Who leaves early is not."""
    desk = Desk()
    options = [("grpc.max_concurrent_streams", LIMIT)]
    async with serving({"Stay": UnaryMethod(desk.stay)}, options, slots=30) as served:
        with closing(await asyncio.to_thread(RawConnection, served.port)) as connection:
            for late_seconds, let_in in ((0.1, LIMIT / 2), (0.1, LIMIT / 2), (100, LIMIT / 4)):
                # All of them have a minute.
                monkeypatch.setattr("catraca_server.api.engine.shedding._LAST_MOMENT_SECONDS", late_seconds)
                calls = [connection.begin("Stay", b"") for _ in range(30)]
                await desk.has_inside(30)
                for call in calls:
                    connection.reset(call)
                await desk.has_inside(0)
                served.server.shedding.look(0.125)
                assert served.server.shedding.let_in == let_in


async def test_answers_at_the_last_moment_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time that the calls themselves have left."""
    desk = Desk()
    options = [("grpc.max_concurrent_streams", 4 * LIMIT)]
    async with serving({"Stay": UnaryMethod(desk.stay)}, options, slots=30) as served:
        for late_seconds, let_in in ((0.1, 2 * LIMIT), (0.1, 2 * LIMIT), (100, LIMIT)):
            monkeypatch.setattr("catraca_server.api.engine.shedding._LAST_MOMENT_SECONDS", late_seconds)
            calls = [served.unary("Stay", timeout=60) for _ in range(30)]
            await desk.has_inside(30)
            desk.open.set()
            await asyncio.gather(*calls)
            await served.has_taken(0)
            desk.open.clear()
            served.server.shedding.look(0.125)
            assert served.server.shedding.let_in == let_in


async def test_it_looks_by_itself() -> None:
    """As often as the slots are looked at."""
    desk = Desk()
    options = [("grpc.max_concurrent_streams", LIMIT)]
    async with serving({"Stay": UnaryMethod(desk.stay)}, options, slots=2, slot_hold_limit_seconds=0.1) as served:

        async def is_on() -> bool:
            return served.server.shedding.let_in < LIMIT

        calls = [served.unary("Stay") for _ in range(2)]
        await eventually_async(is_on, "less is let in")
        desk.open.set()
        await asyncio.gather(*calls)
