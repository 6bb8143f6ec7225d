"""A rolling restart: every server is stopped and started again, one after the other, and no call fails."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator

import psutil
import pytest
from tests.support.load import OWN_CONNECTIONS, load_over_clients
from tests.support.processes import connections_of, workers_of
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, _core

ROUNDS = 5 if os.environ.get("CATRACA_TEST_LONG") else 1


class Fleet:
    """Servers that share a store, and the target that names them all."""

    def __init__(self, servers: int, *, store_url: str, workers: str) -> None:
        self._store_url = store_url
        self._workers = workers
        self._ports = _free_ports(servers)
        self._servers = [self._server(port) for port in self._ports]
        self.target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self._ports)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs them all."""
        try:
            for each in self._servers:
                await asyncio.to_thread(each.start)
            yield
        finally:
            for each in self._servers:
                await asyncio.to_thread(each.end)

    async def restart(self, number: int, clients: int) -> None:
        """Restarts one, and returns once this many clients are connected to it again."""
        assert await asyncio.to_thread(self._servers[number].stop) == 0
        self._servers[number] = server = self._server(self._ports[number])
        await asyncio.to_thread(server.start)

        async def are_connected() -> bool:
            processes = [psutil.Process(server.pid), *workers_of(server)]
            return sum(len(connections_of(each)) for each in processes) >= clients

        await eventually_async(are_connected, "clients are connected again")

    def _server(self, port: str) -> ServeProcess:
        return ServeProcess(port=port, store_url=self._store_url, workers=self._workers, store_timeout="5s")


def _free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [str(each.getsockname()[1]) for each in found]


WORKERS = ["1", "2"] if sys.platform == "linux" else ["1"]


@pytest.mark.parametrize("workers", WORKERS)
async def test_a_rolling_restart_fails_no_call(workers: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three servers are restarted one after the other, again and again, under the bundled client's load."""
    monkeypatch.setattr(_core, "CHANNEL_OPTIONS", OWN_CONNECTIONS)
    fleet = Fleet(3, store_url=valkey.url, workers=workers)
    async with fleet.running():
        async with AsyncSessionClient(fleet.target, timeout=10) as sessions:
            token = (await sessions.create("12345")).token
        async with load_over_clients(fleet.target, {token: "12345"}, clients=4, callers=4) as load:
            for number in [0, 1, 2] * ROUNDS:
                await fleet.restart(number, clients=4)
                await load.go_on(times=200)
        assert not load.failures()
