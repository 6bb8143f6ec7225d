"""Connections that reach their maximum age: clients move on to new ones, and no call fails."""

import asyncio
from pathlib import Path

import psutil
import pytest
from tests.support.clients import OWN_CONNECTIONS, Clients
from tests.support.processes import connections_of
from tests.support.proxy import Proxy
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, _core

OLD_SOON = "200ms"


async def moved_on(process: ServeProcess, times: int) -> None:
    """Returns once the service has had that many connections."""
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
    """Every connection is closed again and again, and all calls of the bundled client succeed."""
    monkeypatch.setattr(_core, "CHANNEL_OPTIONS", OWN_CONNECTIONS)
    async with ServeProcess(store_url=valkey.url, store_timeout="5s", max_connection_age=OLD_SOON) as process:
        token = await session_of(process)
        async with Clients(process.target, token) as clients:
            await moved_on(process, 50)
            await clients.go_on()
    assert not clients.failures


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
    """With 0s none is replaced, over a thousand calls."""
    async with ServeProcess(store_url=valkey.url, max_connection_age="0s") as process:
        token = await session_of(process)
        server = psutil.Process(process.pid)
        async with Clients(process.target, token, clients=1) as clients:
            before = connections_of(server)
            await clients.go_on(1000)
            assert connections_of(server) == before
    assert not clients.failures
