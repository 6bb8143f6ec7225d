"""Servers, clients and a store for histories, and the faults they meet."""

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from tests.support.command import clean_environment
from tests.support.history_client import Plan
from tests.support.nodes import free_port
from tests.support.proxy import Proxy
from tests.support.sentinel import Sentinels
from tests.support.service import ServeProcess
from tests.support.session_history import History, read
from tests.support.valkey import Valkey

from catraca.v1 import session_service_pb2 as pb, session_service_pb2_grpc as pb_grpc

PROGRAM = Path(__file__).with_name("history_client.py")
BROKEN = Path(__file__).with_name("broken")
GRACE_SECONDS = 2

logger = logging.getLogger(__name__)


class ClientProcess:
    """A process that makes random calls about sessions."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(asdict(plan))],
            env=clean_environment({"PYTHONPATH": str(PROGRAM.parents[2])}),
            stderr=subprocess.PIPE,
            text=True,
            # With its children.
            process_group=0,
        )

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process and to those it has forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> str:
        """Ends it. Returns its stderr."""
        self.signal(signal.SIGCONT)
        self.process.terminate()
        try:
            return self.process.communicate(timeout=30)[1]
        finally:
            self.signal(signal.SIGKILL)

    def kill(self) -> None:
        """Kills it, and those it has forked."""
        self.signal(signal.SIGKILL)
        self.process.communicate()


class World:
    """Two servers on one store, and clients: threads and tasks, one by way of a proxy, one without a near cache.

    `broken`: a promise that the servers break, as `broken/sitecustomize.py` has it.
    """

    def __init__(
        self, directory: Path, store: Valkey | Sentinels, seed: int, *, clients: int = 6, broken: str = ""
    ) -> None:
        self.store = store
        self.dice = random.Random(seed)  # noqa: S311  no secret
        self.failures: list[str] = []
        self.clients: list[ClientProcess] = []
        self._directory = directory
        self._seed = seed
        self._count = clients
        settings = {"CATRACA_STORE_URL": store.url, "CATRACA_ROTATION_GRACE": f"{GRACE_SECONDS}s"}
        if isinstance(store, Sentinels):
            settings["CATRACA_REPLICA_ACKS"] = "1"
        if broken:
            settings |= {"BROKEN_SERVER": broken, "PYTHONPATH": str(BROKEN)}
        self._settings = settings
        self._ports = [free_port(), free_port()]
        self.servers: list[ServeProcess] = []

    def plan(self, number: int) -> Plan:
        """Returns the plan of a client: 0 and 1 use one server, 2 and 3 the other, the rest both."""
        target = f"127.0.0.1:{self._ports[number // 2 % 2]}"
        if number >= 4:
            # Asks both in turn, and watches one of them.
            target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self._ports)
        elif number == 1:
            target = self.proxy.url.removeprefix("redis://")
        return Plan(
            target=target,
            log=str(self._directory / "log"),
            pool=str(self._directory / "pool"),
            seed=self._seed * 1000 + number,
            kind="sync" if number % 2 else "async",
            near=number != 2,
            jumps=number == 3,
        )

    def start_client(self, plan: Plan) -> ClientProcess:
        """Starts a client."""
        client = ClientProcess(plan)
        self.clients.append(client)
        return client

    def serve(self, number: int) -> ServeProcess:
        """Starts a server."""
        settings = {**self._settings, "CATRACA_PORT": str(self._ports[number])}
        return ServeProcess(settings).start()

    def history(self) -> History:
        """Returns the records of all clients."""
        files = sorted(self._directory.glob("log-*"))
        return History((each for file in files for each in read(file)), grace_seconds=GRACE_SECONDS)

    async def __aenter__(self) -> Self:
        self._proxy = Proxy(self._ports[0])
        self.proxy = await self._proxy.__aenter__()
        self.servers = [await asyncio.to_thread(self.serve, number) for number in (0, 1)]
        for number in range(self._count):
            self.start_client(self.plan(number))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self.servers:
            os.killpg(server.pid, signal.SIGCONT)
        self.proxy.release()
        told = await asyncio.gather(*(asyncio.to_thread(each.stop) for each in self.clients))
        self.failures += [each for each in told if "Traceback" in each]
        for server in self.servers:
            await asyncio.to_thread(server.end)
            if "Traceback" in server.log or "CRITICAL" in server.log:
                self.failures.append(server.log)
        await self._proxy.__aexit__(exc_type, exc, traceback)


Fault = Callable[[World, float], Awaitable[None]]
"""The faults of a world; most last for some seconds."""


async def stop_client(world: World, seconds: float) -> None:
    """A client is stopped: its lease ends meanwhile, and its stream runs full."""
    client = world.dice.choice(world.clients)
    client.signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    client.signal(signal.SIGCONT)


async def stop_server(world: World, seconds: float) -> None:
    """A server is stopped; its clients get no events, and no connection is closed."""
    server = world.dice.choice(world.servers)
    os.killpg(server.pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    os.killpg(server.pid, signal.SIGCONT)


async def trim_feed(world: World, seconds: float) -> None:
    """The feed is trimmed past the cursor of a server that is stopped."""
    server = world.dice.choice(world.servers)
    os.killpg(server.pid, signal.SIGSTOP)
    await asyncio.sleep(seconds / 2)
    with contextlib.suppress(Exception):
        await asyncio.to_thread(world.store.command, "XTRIM", "session-feed", "MAXLEN", 1)
    await asyncio.sleep(seconds / 2)
    os.killpg(server.pid, signal.SIGCONT)


async def kill_client(world: World, seconds: float) -> None:
    """A client is killed, and another takes its place."""
    client = world.dice.choice(world.clients)
    client.kill()
    world.clients.remove(client)
    await asyncio.sleep(seconds / 10)
    world.start_client(client.plan)


async def kill_server(world: World, seconds: float) -> None:
    """A server is killed, and comes back."""
    number = world.dice.randrange(2)
    os.killpg(world.servers[number].pid, signal.SIGKILL)
    await asyncio.to_thread(world.servers[number].end)
    await asyncio.sleep(seconds)
    world.servers[number] = await asyncio.to_thread(world.serve, number)


async def kill_store(world: World, seconds: float) -> None:
    """The store is killed, and comes back; of a store with Sentinels, another takes over and the feed loses its end."""
    if isinstance(world.store, Sentinels):
        primary = world.store.primary
        primary.kill()
        await asyncio.to_thread(world.store.wait_for_takeover, primary)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(world.store.heal)
    else:
        world.store.kill()
        await asyncio.sleep(seconds / 4)
        await asyncio.to_thread(world.store.start)


async def stop_store(world: World, seconds: float) -> None:
    """The store is stopped: no server can prove anything."""
    store = world.store.primary if isinstance(world.store, Sentinels) else world.store
    store.pause()
    # Sentinels give a primary up after a second. One that returns then does not know yet that it has been replaced.
    await asyncio.sleep(seconds)
    store.resume()
    if isinstance(world.store, Sentinels):
        await asyncio.to_thread(world.store.heal)


async def kill_connections(world: World, seconds: float) -> None:
    """The store closes all connections of the servers, again and again."""
    for _ in range(5):
        with contextlib.suppress(Exception):
            await asyncio.to_thread(world.store.command, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(seconds / 10)


async def half_open(world: World, seconds: float) -> None:
    """Nothing gets through between a client and its server, and neither notices; then the connection breaks."""
    world.proxy.hold()
    await asyncio.sleep(seconds)
    world.proxy.reset()
    world.proxy.release()


async def stall(world: World, seconds: float) -> None:
    """The event loop of a client is blocked."""
    loops = [each for each in world.clients if each.plan.kind == "async"]
    world.dice.choice(loops).signal(signal.SIGUSR1)
    await asyncio.sleep(seconds)


async def fork(world: World, seconds: float) -> None:
    """A client forks, and both go on."""
    threads = [each for each in world.clients if each.plan.kind == "sync"]
    world.dice.choice(threads).process.send_signal(signal.SIGUSR2)
    await asyncio.sleep(seconds)


async def consume_slowly(world: World, seconds: float) -> None:
    """A caller watches, and reads nothing."""
    async with grpc.aio.insecure_channel(world.servers[0].target) as channel:
        call = pb_grpc.SessionServiceStub(channel).WatchSessions()
        await call.write(pb.WatchSessionsRequest(start=pb.WatchStart()))
        for nonce in range(int(seconds * 200)):
            with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                ping = pb.WatchSessionsRequest(ping=pb.WatchPing(nonce=nonce))
                await asyncio.wait_for(call.write(ping), 0.005)
            await asyncio.sleep(0.005)
        call.cancel()


FAULTS: Sequence[Fault] = (
    stop_client,
    stop_server,
    trim_feed,
    kill_client,
    kill_server,
    kill_store,
    stop_store,
    kill_connections,
    half_open,
    stall,
    fork,
    consume_slowly,
)


async def befall(world: World, faults: Sequence[Fault], pause_seconds: float) -> None:
    """Injects one fault after the other, each for up to seven seconds, with pauses between them."""
    for fault in faults:
        seconds = world.dice.uniform(1, 7)
        logger.info("%s for %.1f s", fault.__name__, seconds)
        await fault(world, seconds)
        await asyncio.sleep(pause_seconds)
