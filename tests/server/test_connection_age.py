"""Connections that reach their maximum age: clients move on to new ones, and no call fails."""

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

SHORT_AGE = "200ms"


async def wait_for_connections(process: ServeProcess, count: int) -> None:
    """Waits until this many different connections have been seen at the service."""
    server = psutil.Process(process.pid)
    seen: set[tuple[str, int]] = set()

    async def are_seen() -> bool:
        seen.update(connections_of(server))
        return len(seen) >= count

    await eventually_async(are_seen, f"{count} connections")


async def session_of(process: ServeProcess) -> str:
    """Returns the token of a new session of user 12345."""
    async with AsyncSessionClient(process.target, timeout=10) as sessions:
        return (await sessions.create("12345")).token


async def test_no_call_fails_while_connections_age(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection is closed again and again, and all calls of the bundled client succeed."""
    monkeypatch.setattr(_core, "CHANNEL_OPTIONS", OWN_CONNECTIONS)
    async with ServeProcess(store_url=valkey.url, store_timeout="5s", max_connection_age=SHORT_AGE) as process:
        token = await session_of(process)
        async with load_over_clients(process.target, {token: "12345"}) as load:
            await wait_for_connections(process, 50)
            await load.go_on(times=200)
    assert not load.failures()


async def test_a_call_may_outlast_its_connections_age(valkey: Valkey, tmp_path: Path) -> None:
    """A call that takes longer than its connection may live is answered on it."""
    async with (
        Proxy(valkey.socket, tmp_path / "proxy.sock") as proxy,
        ServeProcess(store_url=proxy.url, store_timeout="30s", max_connection_age=SHORT_AGE) as process,
        AsyncSessionClient(process.target, timeout=30) as sessions,
    ):
        token = (await sessions.create("12345")).token
        proxy.hold()
        call = asyncio.create_task(sessions.validate(token))
        await proxy.holding(token[4:26].encode())
        await wait_for_connections(process, 5)
        assert not call.done()
        proxy.release()
        assert await call


async def test_without_a_maximum_age_connections_stay(valkey: Valkey) -> None:
    """The client keeps its one connection."""
    async with ServeProcess(store_url=valkey.url, max_connection_age="0s") as process:
        token = await session_of(process)
        server = psutil.Process(process.pid)
        async with load_over_clients(process.target, {token: "12345"}, clients=1) as load:
            before = connections_of(server)
            await load.go_on(times=1000)
            assert connections_of(server) == before
    assert not load.failures()
