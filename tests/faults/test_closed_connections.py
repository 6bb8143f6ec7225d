"""Connections that the store closes under requests: within the deadline they are sent again, and no reply is wrong."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.connection import AbstractConnection
from tests.support.cluster import Cluster
from tests.support.fake_redis import HANG_UP, FakeRedis, bulk
from tests.support.load import load_in_process, load_over_stub
from tests.support.multiplexers import connector_to, in_seconds, running_multiplexer
from tests.support.operations import service_on
from tests.support.sentinel import Sentinels
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca import AsyncSessionClient
from catraca_server.redis.errors import StoreProblem, StoreUnavailable
from catraca_server.redis.multiplexer import REPEATS, Multiplexer

KILLS = 20
STORE_TIMEOUT_SECONDS = 0.25


def echoing(hang_ups: int, *, at: bytes = b"ECHO") -> Callable[[list[bytes]], bytes | None]:
    """Replies to ECHO and WAIT, but hangs up the first times that it gets a certain command."""
    left = hang_ups

    def reply_to(command: list[bytes]) -> bytes | None:
        nonlocal left
        if command[0] == at and left:
            left -= 1
            return HANG_UP
        if command[0] == b"ECHO":
            return bulk(command[1])
        return b":9\r\n" if command[0] == b"WAIT" else None

    return reply_to


def sent(fake: FakeRedis, *words: bytes) -> int:
    """Returns how often a command arrived."""
    return fake.commands.count(list(words))


# The multiplexer


@pytest.mark.parametrize("hang_ups", range(REPEATS + 1))
async def test_a_request_whose_connection_is_closed_is_repeated(hang_ups: int, tmp_path: Path) -> None:
    """On a new connection, and the replies say so."""
    async with (
        FakeRedis(tmp_path / "fake.sock", echoing(hang_ups)) as fake,
        running_multiplexer(fake.url) as running,
    ):
        replies = await running.execute(("ECHO", "word"))
        assert (replies.values, replies.repeated) == ([b"word"], hang_ups > 0)
        assert (sent(fake, b"ECHO", b"word"), fake.connected) == (hang_ups + 1, hang_ups + 1)
        assert running.changes == [True]


async def test_a_request_is_not_repeated_forever(tmp_path: Path) -> None:
    """A request at which the store hangs up each time fails with that reason, long before its deadline."""
    async with (
        FakeRedis(tmp_path / "fake.sock", echoing(1_000)) as fake,
        running_multiplexer(fake.url) as running,
    ):
        with pytest.raises(StoreUnavailable, match="the connection was closed before the reply") as caught:
            await running.execute(("ECHO", "word"))
        assert caught.value.problem is StoreProblem.DISCONNECTED
        assert sent(fake, b"ECHO", b"word") == REPEATS + 1


async def test_requests_with_a_reply_are_not_repeated(tmp_path: Path) -> None:
    """Of a batch only those requests are sent again whose replies were lost, and in their order."""
    async with (
        FakeRedis(tmp_path / "fake.sock", echoing(1, at=b"GET")) as fake,
        running_multiplexer(fake.url) as running,
    ):
        commands = [("ECHO", "first"), ("GET", "key"), ("ECHO", "last")]
        all_replies = await asyncio.gather(*(running.execute(command) for command in commands))
        assert [replies.repeated for replies in all_replies] == [False, True, True]
        assert [replies.values for replies in all_replies] == [[b"first"], [None], [b"last"]]
        assert (sent(fake, b"ECHO", b"first"), sent(fake, b"ECHO", b"last")) == (1, 1)
        assert [command[0] for command in fake.commands if command[1:] in ([b"key"], [b"last"])] == [
            *(b"GET", b"GET", b"ECHO")
        ]


async def test_requests_that_wait_for_replicas_are_repeated_together(tmp_path: Path) -> None:
    """Replies that were read before the reply to WAIT say nothing about replicas."""
    async with (
        FakeRedis(tmp_path / "fake.sock", echoing(1, at=b"WAIT")) as fake,
        running_multiplexer(fake.url, replica_acks=1) as running,
    ):
        all_replies = await asyncio.gather(*(running.execute(("ECHO", word)) for word in ("one", "two")))
        assert [(replies.values, replies.repeated) for replies in all_replies] == [([b"one"], True), ([b"two"], True)]
        assert sent(fake, b"ECHO", b"one") == 2


@pytest.mark.parametrize(
    ("reply", "problem"), [(b"", StoreProblem.NOT_IN_TIME), (b"?what\r\n", StoreProblem.MALFORMED_REPLY)]
)
async def test_after_other_failures_nothing_is_repeated(reply: bytes, problem: StoreProblem, tmp_path: Path) -> None:
    """Neither after a timeout nor after a malformed reply."""
    async with (
        FakeRedis(tmp_path / "fake.sock", lambda command: reply if command[0] == b"ECHO" else None) as fake,
        running_multiplexer(fake.url, timeout_seconds=0.1) as running,
    ):
        with pytest.raises(StoreUnavailable) as caught:
            await running.execute(("ECHO", "word"))
        assert caught.value.problem is problem
        await running.recovered()
        assert sent(fake, b"ECHO", b"word") == 1


async def test_a_store_that_is_down_is_not_waited_for(tmp_path: Path) -> None:
    """What was in flight when the store went away is refused as soon as it cannot be connected to."""
    store = FakeRedis(tmp_path / "fake.sock", lambda command: b"" if command[0] == b"ECHO" else None)
    async with store, running_multiplexer(store.url) as running:
        in_flight = asyncio.create_task(running.execute(("ECHO", "word")))

        async def has_arrived() -> bool:
            return sent(store, b"ECHO", b"word") == 1

        await eventually_async(has_arrived, "the request arrives")
        began = asyncio.get_running_loop().time()
        await store.close()
        with pytest.raises(StoreUnavailable) as caught:
            await in_flight
        assert caught.value.problem is StoreProblem.CANNOT_CONNECT
        assert asyncio.get_running_loop().time() - began < 1
        assert running.changes == [True, False]


async def test_a_connection_that_was_closed_while_idle_costs_nothing(own_valkey: Valkey) -> None:
    """It is seen before anything is written to it, so nothing has to be repeated."""
    writers: list[Any] = []
    connect_to_it = connector_to(own_valkey.url)

    async def connect() -> AbstractConnection:
        connection = await connect_to_it()
        writers.append(connection._writer)
        return connection

    async def is_closed() -> bool:
        return bool(writers[-1].is_closing())

    changes: list[bool] = []
    multiplexer = Multiplexer(connect, timeout_seconds=TIMEOUT_SECONDS, on_change=changes.append)
    await multiplexer.start()
    for _ in range(KILLS):
        own_valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await eventually_async(is_closed, "the connection is closed")
        replies = await multiplexer.execute([("ECHO", "word")], in_seconds(TIMEOUT_SECONDS))
        assert (replies.values, replies.repeated) == ([b"word"], False)
    await multiplexer.stop()
    assert changes == [True]


# The whole service


@pytest.mark.parametrize("lives", [0, 4], ids=["validations", "whole lives"])
async def test_killed_connections_cost_no_call(lives: int, own_valkey: Valkey) -> None:
    """Without any retry by the caller; only a revocation that cannot know whether it ended the session may fail."""
    async with service_on(own_valkey.url, store_timeout="5s") as service:
        tokens = [(await service.create(f"user-{number}")).token for number in range(8)]
        async with load_in_process(service, tokens, lives=lives) as load:
            for _ in range(KILLS):
                own_valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await load.go_on(times=2)
        assert not load.failures()
        assert all("does not tell what it did" in each for each in load.interrupted), load.interrupted
        assert len(load.interrupted) < KILLS
        assert service.changes == [True]


async def test_killed_connections_cost_no_call_over_the_wire(own_valkey: Valkey) -> None:
    """With the default store timeout, and stubs without any retry."""
    async with (
        ServeProcess(store_url=own_valkey.url) as process,
        AsyncSessionClient(process.target, timeout=TIMEOUT_SECONDS) as sessions,
    ):
        users = {(await sessions.create(user)).token: user for user in ("ana", "bea", "eva")}
        async with load_over_stub(process.target, users) as load:
            for _ in range(KILLS):
                await load.go_on(times=34)
                own_valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await load.go_on(times=34)
        failures = load.failures()
        # A machine that is slow for so long is no fault of a closed connection.
        assert all(each.seconds > STORE_TIMEOUT_SECONDS for each in failures), failures
        assert process.log.count("store connection closed: disconnected") >= KILLS / 2


async def test_killed_connections_that_wait_for_replicas_cost_no_call(valkey_sentinel: Sentinels) -> None:
    """The primary is found again through the Sentinels each time, and what is acknowledged is on a replica."""
    await asyncio.to_thread(valkey_sentinel.renew)
    async with service_on(valkey_sentinel.url, replica_acks="1", store_timeout="5s") as service:
        tokens = [(await service.create(f"user-{number}")).token for number in range(4)]
        async with load_in_process(service, tokens, lives=2) as load:
            for _ in range(KILLS // 4):
                valkey_sentinel.primary.command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
                await load.go_on(times=2)
        assert not load.failures()
        assert all("does not tell what it did" in each for each in load.interrupted), load.interrupted
        assert service.changes == [True]


async def test_killed_connections_to_a_cluster_cost_no_call(valkey_cluster: Cluster) -> None:
    """Connections to all its nodes are killed at once."""
    await asyncio.to_thread(valkey_cluster.renew)
    async with service_on(valkey_cluster.url, store_timeout="5s") as service:
        tokens = [(await service.create(f"user-{number}")).token for number in range(8)]
        async with load_in_process(service, tokens, lives=2) as load:
            for _ in range(KILLS // 4):
                for node in valkey_cluster.primaries:
                    node.command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
                await load.go_on(times=2)
        assert not load.failures()
        assert all("does not tell what it did" in each for each in load.interrupted), load.interrupted


async def test_an_end_is_reported_at_most_once(own_valkey: Valkey) -> None:
    """Several calls revoke each session while connections are killed: one reports it, or one of them fails."""
    async with service_on(own_valkey.url, store_timeout="5s") as service:
        logins = [await service.create(f"user-{number}") for number in range(100)]

        async def end(at: int) -> list[bool | BaseException]:
            return await asyncio.gather(*(service.revoke(logins[at]) for _ in range(3)), return_exceptions=True)

        outcomes: list[list[bool | BaseException]] = []
        for first in range(0, len(logins), 10):
            ending = [asyncio.create_task(end(at)) for at in range(first, first + 10)]
            await asyncio.to_thread(own_valkey.command, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            outcomes += await asyncio.gather(*ending)
        for results in outcomes:
            failed = [each for each in results if isinstance(each, BaseException)]
            assert all(isinstance(each, StoreUnavailable) for each in failed), failed
            assert results.count(True) <= 1
            assert results.count(True) == 1 or failed
        for login in logins:
            assert not await service.is_valid(login.token)


async def test_a_restart_costs_no_later_call(own_valkey: Valkey) -> None:
    """A connection from before the restart is replaced at the first call, or already has been."""
    async with service_on(own_valkey.url, store_timeout="5s") as service:
        login = await service.create()
        for _ in range(3):
            own_valkey.kill()
            own_valkey.start()
            await service.reported(*service.changes)

            async def is_connected() -> bool:
                return service.changes[-1]

            await eventually_async(is_connected, "the store is connected")
            assert await service.is_valid(login.token)
