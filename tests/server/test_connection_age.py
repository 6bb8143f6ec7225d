"""Connections that come of age: clients move on to new ones, and no call of theirs is any the worse for it."""

import asyncio
from pathlib import Path

import psutil
import pytest
from tests.support.load import OWN_CONNECTIONS, load_over_clients
from tests.support.processes import connections_of
from tests.support.proxy import Proxy
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, _core

OLD_SOON = "200ms"


async def moved_on(process: ServeProcess, times: int) -> None:
    """Returns once so many connections have been seen at the service."""
    server = psutil.Process(process.pid)
    seen: set[tuple[str, int]] = set()

    async def seen_enough() -> bool:
        seen.update(connections_of(server))
        return len(seen) >= times

    await eventually_async(seen_enough, f"{times} connections")


async def session_of(process: ServeProcess) -> str:
    """Returns the token of a new session of user 12345."""
    async with AsyncSessionClient(process.target, timeout=10) as sessions:
        return (await sessions.create("12345")).token


async def test_no_call_fails_while_connections_age(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection is told to go again and again, and all calls of the bundled client succeed."""
    monkeypatch.setattr(_core, "CHANNEL_OPTIONS", OWN_CONNECTIONS)
    async with ServeProcess(store_url=valkey.url, store_timeout="5s", max_connection_age=OLD_SOON) as process:
        token = await session_of(process)
        async with load_over_clients(process.target, {token: "12345"}) as load:
            await moved_on(process, 50)
            await load.go_on(times=200)
    assert not load.failures()


async def test_a_call_may_outlast_its_connections_age(valkey: Valkey, tmp_path: Path) -> None:
    """A call that takes longer than its connection has left is answered over it; the next takes another."""
    async with (
        Proxy(valkey.socket, tmp_path / "proxy.sock") as proxy,
        ServeProcess(store_url=proxy.url, store_timeout="30s", max_connection_age=OLD_SOON) as process,
        AsyncSessionClient(process.target, timeout=30) as sessions,
    ):
        token = (await sessions.create("12345")).token
        proxy.hold()
        call = asyncio.create_task(sessions.validate(token))
        await proxy.holding(token[4:26].encode())
        await moved_on(process, 5)
        assert not call.done()
        proxy.release()
        assert await call


async def test_connections_may_stay(valkey: Valkey) -> None:
    """With 0s they do, for as long as this test has patience for."""
    async with ServeProcess(store_url=valkey.url, max_connection_age="0s") as process:
        token = await session_of(process)
        server = psutil.Process(process.pid)
        async with load_over_clients(process.target, {token: "12345"}, clients=1) as load:
            before = connections_of(server)
            await load.go_on(times=1000)
            assert connections_of(server) == before
    assert not load.failures()
