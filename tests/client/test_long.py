"""Near-cache clients whose watches end over and over: nothing grows, neither in the clients nor in the server.

`CATRACA_TEST_LONG=1` makes over a million validations and 10,000 reconnects of it.
"""

import asyncio
import os
import random
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from tests.support.callers import Caller
from tests.support.metrics import free_port, scrape
from tests.support.proxy import Proxy
from tests.support.service import ServeProcess
from tests.support.use import COUNTING, Use, own_use, use_of
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, NearCache, SessionClient, _validations, _watch_aio, _watch_sync
from catraca._near_cache import NearAnswers
from catraca._watching import Watch
from catraca.v1 import session_service_pb2 as pb

LONG = os.environ.get("CATRACA_TEST_LONG") == "1"
ASYNC_CLIENTS, SYNC_CLIENTS = (16, 8) if LONG else (10, 4)
CLIENTS = ASYNC_CLIENTS + SYNC_CLIENTS
LAPS, ROUNDS_A_LAP = (20, 21) if LONG else (4, 6)
SETTLED = LAPS // 4
"""After so many laps memos, pools and buffers have what they hold."""
SESSIONS, HOT, NEAR = (5_000, 40, 200) if LONG else (100, 10, 20)
TIMEOUT_SECONDS = 20.0
MALFORMED = ["short", "ctr_" + "x" * 71]


@dataclass(frozen=True)
class Lap:
    """What there was after a lap."""

    client: Use
    server: Use
    tasks: int
    watches: float
    """That the server counts."""
    opened: int
    """Watches so far."""


@dataclass
class Soak:
    """What clients did so far."""

    target: str
    tokens: Sequence[str]
    dice: random.Random
    validations: int = 0
    opened: int = 0
    """Watches, by the clients."""
    spoiling: bool = False
    """Whether clients send pings that a server refuses, so that it ends their streams."""
    callers: list[Caller] = field(default_factory=list)

    def near(self, kind: type[SessionClient] | type[AsyncSessionClient]) -> Caller:
        """Makes a client with a near cache."""
        return Caller(kind(self.target, timeout=TIMEOUT_SECONDS, near_cache=NearCache(max_entries=NEAR)))

    async def validate(self, caller: Caller) -> None:
        """Hits, misses, batches, tokens that are none, and a session that ends and is there again."""
        hot = self.dice.choices(self.tokens[:HOT], k=70)
        rare = self.dice.choices(self.tokens[HOT:-CLIENTS], k=20)
        if isinstance(caller.client, SessionClient):
            sessions = caller.client
            answers = await asyncio.to_thread(lambda: [sessions.validate(token) for token in hot])
        else:
            answers = [await caller.validate(token) for token in hot]
        answers += await asyncio.gather(*map(caller.validate, rare))
        answers += await caller.validate_batch(rare)
        assert all(answers)
        assert not any([await caller.validate(f"an-unknown-token-{self.dice.random()}"), *await refused(caller)])
        own = self.tokens[-1 - self.callers.index(caller)]
        assert await caller.validate(own)
        assert await caller.revoke(token=own)
        assert not await caller.validate(own)
        await caller.create("12345", token=own)
        self.validations += len(answers) + 3 + len(MALFORMED)

    async def all_watch(self, more: int) -> None:
        """Waits until so many more watches were opened, and each client has one."""
        enough = self.opened + more

        async def done() -> bool:
            stats = [each.client.near_cache_stats() for each in self.callers]
            return self.opened >= enough and all(each and each.watching for each in stats)

        await eventually_async(done, f"{more} watches are opened again", 60)


async def refused(caller: Caller) -> list[object]:
    """Returns what is said of tokens that cannot be any."""
    return [await caller.validate(token) for token in MALFORMED]


@pytest.fixture
def soak(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Soak:
    """Counts the watches that are opened. Clients ping often, so that a ping which is refused is so soon."""
    valkey.command("FLUSHALL")
    tokens = [f"a-token-that-was-brought-{number}" for number in range(SESSIONS)]
    made = Soak("", tokens, random.Random(1))  # noqa: S311  no secret
    opened, ping, lock = NearAnswers.opened, Watch.ping, threading.Lock()

    def counted(answers: NearAnswers, *, resumed: bool) -> None:
        opened(answers, resumed=resumed)
        with lock:
            made.opened += 1

    def spoilt(watch: Watch) -> pb.WatchSessionsRequest:
        right = ping(watch)
        return pb.WatchSessionsRequest(start=pb.WatchStart()) if made.spoiling else right

    monkeypatch.setattr(NearAnswers, "opened", counted)
    monkeypatch.setattr(Watch, "ping", spoilt)
    # So that what clients keep of sessions is all there soon.
    monkeypatch.setattr(_validations, "_MEMO_SESSIONS", HOT)
    for module in (_watch_aio, _watch_sync):
        monkeypatch.setattr(module, "PING_SECONDS", 0.1)
    return made


async def end_by_client(soak: Soak, _: Proxy) -> None:
    """Closes every client; they watch again when they are used."""
    for each in soak.callers:
        await each.close()
    await asyncio.gather(*(each.validate(soak.tokens[0]) for each in soak.callers))


async def end_by_server(soak: Soak, _: Proxy) -> None:
    """Has the server end every stream, because it refuses what it is sent."""
    soak.spoiling = True
    enough = soak.opened + CLIENTS

    async def reopened() -> bool:
        return soak.opened >= enough

    try:
        await eventually_async(reopened, "the server has ended the streams", 60)
    finally:
        soak.spoiling = False


async def end_by_connection(_: Soak, proxy: Proxy) -> None:
    """Breaks the connections."""
    proxy.reset()


ENDS = (end_by_client, end_by_server, end_by_connection)


@pytest.mark.timeout(3600)
async def test_nothing_grows(soak: Soak, valkey: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory, objects, descriptors, threads and tasks are flat, and no watch stays open that nobody has."""
    metrics_port = free_port()
    laps: list[Lap] = []
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            ServeProcess(COUNTING, store_url=valkey.url, store_timeout="5s", metrics_port=str(metrics_port))
        )
        proxy = await stack.enter_async_context(Proxy(int(server.target.rpartition(":")[2])))
        soak.target = proxy.url.partition("//")[2]
        async with AsyncSessionClient(server.target, timeout=TIMEOUT_SECONDS) as creating:
            await asyncio.gather(*(creating.create("12345", token=token) for token in soak.tokens))
        soak.callers = [soak.near(AsyncSessionClient) for _ in range(ASYNC_CLIENTS)]
        soak.callers += [soak.near(SessionClient) for _ in range(SYNC_CLIENTS)]
        for each in soak.callers:
            stack.push_async_callback(each.close)
        for _ in range(LAPS):
            for number in range(ROUNDS_A_LAP):
                before = soak.opened
                await asyncio.gather(*map(soak.validate, soak.callers))
                await ENDS[number % len(ENDS)](soak, proxy)
                await soak.all_watch(max(CLIENTS - (soak.opened - before), 0))
            laps.append(await used(server, metrics_port, soak.opened))
            with capsys.disabled():
                if LONG:
                    print(f"{soak.validations:,} validations, {laps[-1]}", flush=True)  # noqa: T201
        ended = sum(
            value
            for name, value in scrape(metrics_port).items()
            if name.startswith("grpc_server_handled_total") and 'grpc_method="WatchSessions"' in name
        )
    reconnects = soak.opened - CLIENTS
    assert reconnects >= (10_000 if LONG else CLIENTS * LAPS)
    assert ended >= reconnects, "the server has seen the end of each"
    assert soak.validations >= (1_000_000 if LONG else 1_000)
    check(laps[SETTLED], laps[-1])


async def used(server: ServeProcess, metrics_port: int, opened: int) -> Lap:
    """Measures, once what has ended is gone."""

    async def settled() -> bool:
        return (await asyncio.to_thread(scrape, metrics_port))["catraca_watches"] == CLIENTS

    await eventually_async(settled, f"the server has {CLIENTS} watches")
    server_use = await asyncio.to_thread(use_of, server)
    watches = (await asyncio.to_thread(scrape, metrics_port))["catraca_watches"]
    return Lap(own_use(), server_use, len(asyncio.all_tasks()), watches, opened)


def check(settled: Lap, last: Lap) -> None:
    """Fails if something grows with the reconnects: in the long run an object for each, in the short one a few.

    A short run is over before all pools and memos are full.
    """
    few = (last.opened - settled.opened) * (1 / 3 if LONG else 3)
    assert last.watches == settled.watches
    assert last.tasks <= settled.tasks + 2
    for before, after in ((settled.client, last.client), (settled.server, last.server)):
        assert after.objects < before.objects + few
        assert after.descriptors <= before.descriptors + 4
        assert after.threads <= before.threads + 4
        if LONG:
            assert after.resident_bytes < before.resident_bytes * 1.05
