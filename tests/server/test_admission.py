"""Slots: how many calls are accepted at a time, which calls free theirs early, and that none is ever lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.api import accepting as admission

_Context = grpc.aio.ServicerContext[bytes, bytes]


@pytest.fixture(autouse=True)
def unlimited_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls keep their slots, however slow the machine is."""
    monkeypatch.setattr(admission, "LASTING", TIMEOUT_SECONDS)


class SlowServer:
    """A server whose calls wait until they are released."""

    def __init__(self, slots: int) -> None:
        self.inside = 0
        """Calls that have been accepted and have not ended, streams not counted."""
        self.open = asyncio.Event()
        self.server = admission.server((), slots)
        handlers: dict[str, Any] = {
            "Stay": grpc.unary_unary_rpc_method_handler(self._stay),
            "Fail": grpc.unary_unary_rpc_method_handler(self._fail),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Slow", handlers),))
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}")

    def call(self, method: str) -> asyncio.Task[bytes]:
        """Begins a call."""
        stub: Any = self._channel.unary_unary(f"/test.Slow/{method}")
        return asyncio.create_task(_call(stub))

    def watch(self) -> AsyncIterator[bytes]:
        """Begins a stream."""
        stub: Any = self._channel.unary_stream("/test.Slow/Watch")
        return aiter(stub(b""))

    async def has_inside(self, count: int) -> None:
        """Waits until this many calls have been accepted."""

        async def are_inside() -> bool:
            return self.inside == count

        await eventually_async(are_inside, f"{count} calls are accepted")

    async def close(self) -> None:
        """Releases all calls and stops."""
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


async def _call(stub: Callable[[bytes], Awaitable[bytes]]) -> bytes:
    return await stub(b"")


@asynccontextmanager
async def server_with(slots: int) -> AsyncIterator[SlowServer]:
    """Runs a server with this many slots."""
    server = SlowServer(slots)
    await server.server.start()
    try:
        yield server
    finally:
        await server.close()


async def test_as_many_calls_are_accepted_as_there_are_slots() -> None:
    """All at the same time; one more waits until one of them has ended."""
    async with server_with(3) as server:
        first = [server.call("Stay") for _ in range(3)]
        await server.has_inside(3)
        late = server.call("Fail")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(late), 0.1)
        server.open.set()
        assert await asyncio.gather(*first) == [b"done"] * 3
        with pytest.raises(grpc.aio.AioRpcError, match="as asked"):
            await late


async def test_streams_take_no_slot() -> None:
    """However many there are, a call is answered."""
    async with server_with(1) as server:
        watches = [server.watch() for _ in range(5)]
        assert [await anext(watch) for watch in watches] == [b"watching"] * 5
        server.open.set()
        assert await server.call("Stay") == b"done"


async def test_a_long_call_frees_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are accepted meanwhile, and when it ends there are as many slots as before."""
    async with server_with(2) as server:
        monkeypatch.setattr(admission, "LASTING", 0.05)
        lasting = [server.call("Stay") for _ in range(4)]
        await server.has_inside(4)
        monkeypatch.setattr(admission, "LASTING", TIMEOUT_SECONDS)
        server.open.set()
        assert await asyncio.gather(*lasting) == [b"done"] * 4
        server.open.clear()
        staying = [server.call("Stay") for _ in range(3)]
        await server.has_inside(2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(staying[2]), 0.1)
        assert server.inside == 2
        server.open.set()
        assert await asyncio.gather(*staying) == [b"done"] * 3


async def test_no_slot_is_lost() -> None:
    """Calls that fail, are cancelled or name no method: each leaves its slot to the next."""
    async with server_with(1) as server:
        for _ in range(50):
            with pytest.raises(grpc.aio.AioRpcError, match="as asked"):
                await server.call("Fail")
            with pytest.raises(grpc.aio.AioRpcError, match="Method not found"):
                await server.call("Unknown")
            staying = server.call("Stay")
            await server.has_inside(1)
            staying.cancel()
            await server.has_inside(0)
        server.open.set()
        assert await server.call("Stay") == b"done"


async def test_a_stop_waits_for_calls_within_its_grace() -> None:
    """Also if no slot is free: calls may finish within the grace, and are ended after it."""
    async with server_with(2) as server:
        staying = [server.call("Stay") for _ in range(2)]
        await server.has_inside(2)
        stop = asyncio.create_task(server.server.stop(60))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stop), 0.1)
        server.open.set()
        assert await asyncio.gather(*staying) == [b"done"] * 2
        await stop
    async with server_with(1) as server:
        lost = server.call("Stay")
        await server.has_inside(1)
        await server.server.stop(0.1)
        with pytest.raises(grpc.aio.AioRpcError):
            await lost


async def test_a_stopped_server_leaves_no_task() -> None:
    """The tasks of its slots end with it."""
    before = asyncio.all_tasks()
    async with server_with(100) as server:
        server.open.set()
        assert await server.call("Stay") == b"done"
        assert len(asyncio.all_tasks() - before) >= 100

    async def are_gone() -> bool:
        return not asyncio.all_tasks() - before

    await eventually_async(are_gone, "the slots have ended")
