"""Places: how many calls are taken in, who gives up a place, and that none is ever lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tests.support.waiting import PATIENCE, eventually_async

from catraca_server.api import accepting as admission

_Context = grpc.aio.ServicerContext[bytes, bytes]


@pytest.fixture(autouse=True)
def nothing_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls keep their places, however slow the machine is."""
    monkeypatch.setattr(admission, "LASTING", PATIENCE)


class Desk:
    """A server whose calls stay until they are let go."""

    def __init__(self, places: int) -> None:
        self.inside = 0
        """Calls that have come in and are still there, streams not counted."""
        self.open = asyncio.Event()
        self.server = admission.server((), places)
        handlers: dict[str, Any] = {
            "Stay": grpc.unary_unary_rpc_method_handler(self._stay),
            "Fail": grpc.unary_unary_rpc_method_handler(self._fail),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Desk", handlers),))
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}")

    def call(self, method: str) -> asyncio.Task[bytes]:
        """Begins a call."""
        stub: Any = self._channel.unary_unary(f"/test.Desk/{method}")
        return asyncio.create_task(_answer(stub))

    def watch(self) -> AsyncIterator[bytes]:
        """Begins a stream."""
        stub: Any = self._channel.unary_stream("/test.Desk/Watch")
        return aiter(stub(b""))

    async def has_inside(self, count: int) -> None:
        """Waits until so many calls have come in."""

        async def are_inside() -> bool:
            return self.inside == count

        await eventually_async(are_inside, f"{count} calls are in")

    async def close(self) -> None:
        """Lets all go and stops."""
        self.open.set()
        await self._channel.close()
        await self.server.stop(None)

    async def _stay(self, request: bytes, context: _Context) -> bytes:
        del request, context
        self.inside += 1
        try:
            await self.open.wait()
        finally:
            self.inside -= 1
        return b"done"

    async def _fail(self, request: bytes, context: _Context) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")

    async def _watch(self, request: bytes, context: _Context) -> AsyncIterator[bytes]:
        del request, context
        yield b"watching"
        await self.open.wait()


async def _answer(stub: Callable[[bytes], Awaitable[bytes]]) -> bytes:
    return await stub(b"")


@asynccontextmanager
async def desk_with(places: int) -> AsyncIterator[Desk]:
    """Opens a desk with so many places."""
    desk = Desk(places)
    await desk.server.start()
    try:
        yield desk
    finally:
        await desk.close()


async def test_as_many_are_taken_in_as_there_are_places() -> None:
    """All at the same time; who comes on top waits until one of them has gone."""
    async with desk_with(3) as desk:
        first = [desk.call("Stay") for _ in range(3)]
        await desk.has_inside(3)
        late = desk.call("Fail")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(late), 0.1)
        desk.open.set()
        assert await asyncio.gather(*first) == [b"done"] * 3
        with pytest.raises(grpc.aio.AioRpcError, match="as asked"):
            await late


async def test_streams_take_no_place() -> None:
    """However many watch, a call is answered."""
    async with desk_with(1) as desk:
        watches = [desk.watch() for _ in range(5)]
        assert [await anext(watch) for watch in watches] == [b"watching"] * 5
        desk.open.set()
        assert await desk.call("Stay") == b"done"


async def test_a_call_that_lasts_gives_up_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others come in beside it, and when it ends there are as many places as before."""
    async with desk_with(2) as desk:
        monkeypatch.setattr(admission, "LASTING", 0.05)
        lasting = [desk.call("Stay") for _ in range(4)]
        await desk.has_inside(4)
        monkeypatch.setattr(admission, "LASTING", PATIENCE)
        desk.open.set()
        assert await asyncio.gather(*lasting) == [b"done"] * 4
        desk.open.clear()
        staying = [desk.call("Stay") for _ in range(3)]
        await desk.has_inside(2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(staying[2]), 0.1)
        assert desk.inside == 2
        desk.open.set()
        assert await asyncio.gather(*staying) == [b"done"] * 3


async def test_no_place_is_lost() -> None:
    """Calls that fail, that their callers give up, and that nobody knows: each leaves its place to the next."""
    async with desk_with(1) as desk:
        for _ in range(50):
            with pytest.raises(grpc.aio.AioRpcError, match="as asked"):
                await desk.call("Fail")
            with pytest.raises(grpc.aio.AioRpcError, match="Method not found"):
                await desk.call("Unknown")
            staying = desk.call("Stay")
            await desk.has_inside(1)
            staying.cancel()
            await desk.has_inside(0)
        desk.open.set()
        assert await desk.call("Stay") == b"done"


async def test_a_stop_waits_for_calls_and_no_longer_than_told() -> None:
    """Also when no place is free: calls may finish within the grace, and are ended after it."""
    async with desk_with(2) as desk:
        staying = [desk.call("Stay") for _ in range(2)]
        await desk.has_inside(2)
        stop = asyncio.create_task(desk.server.stop(60))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stop), 0.1)
        desk.open.set()
        assert await asyncio.gather(*staying) == [b"done"] * 2
        await stop
    async with desk_with(1) as desk:
        lost = desk.call("Stay")
        await desk.has_inside(1)
        await desk.server.stop(0.1)
        with pytest.raises(grpc.aio.AioRpcError):
            await lost


async def test_a_stopped_server_leaves_no_task() -> None:
    """Places end with their server."""
    before = asyncio.all_tasks()
    async with desk_with(100) as desk:
        desk.open.set()
        assert await desk.call("Stay") == b"done"
        assert len(asyncio.all_tasks() - before) >= 100

    async def are_gone() -> bool:
        return not asyncio.all_tasks() - before

    await eventually_async(are_gone, "the places have ended")
