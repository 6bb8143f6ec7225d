"""The multiplexer under everything that goes wrong with callers, connections and replies: no reply is wrong."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.support.fake_redis import OK, FakeRedis, bulk
from tests.support.multiplexers import RunningMultiplexer, running_multiplexer
from tests.support.proxy import Proxy
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.redis.multiplexer import BATCH_LIMIT, HEARTBEAT_SECONDS, QUEUE_LIMIT
from catraca_server.redis.replies import Replies
from catraca_server.store import NotDurable, Overloaded, StoreUnavailable


@pytest.fixture
async def proxy(valkey: Valkey, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of a real Valkey."""
    async with Proxy(valkey.socket, tmp_path / "proxy.sock") as made:
        yield made


def echoing(reply: bytes) -> Callable[[list[bytes]], bytes | None]:
    """Replies this to every ECHO."""
    return lambda command: reply if command[0] == b"ECHO" else None


# Callers that come, go and run out of time


async def storm(running: RunningMultiplexer, seed: int, callers: int, requests: int) -> tuple[int, int, int]:
    """Makes requests by many callers, a third of which are cancelled at random moments, and some have hardly any time.

    Asserts that every reply belongs to its request. Returns how many were answered, cancelled and refused.
    """
    chance = random.Random(seed)  # noqa: S311
    answered = cancelled = refused = 0

    async def request(number: int) -> None:
        words = [f"{number}.{part}" for part in range(chance.randint(1, 5))]
        within_seconds = 0.001 if chance.random() < 0.1 else TIMEOUT_SECONDS
        replies = await running.execute(*(("ECHO", word) for word in words), within_seconds=within_seconds)
        assert replies.values == [word.encode() for word in words]

    async def caller(first: int) -> None:
        nonlocal answered, cancelled, refused
        for number in range(first, requests, callers):
            task = asyncio.create_task(request(number))
            if chance.random() < 1 / 3:
                asyncio.get_running_loop().call_later(chance.random() * 0.004, task.cancel)
            try:
                await task
                answered += 1
            except asyncio.CancelledError:
                cancelled += 1
            except StoreUnavailable:
                refused += 1
                await asyncio.sleep(0.005)  # or all requests would be spent while the store is disconnected

    await asyncio.gather(*(caller(first) for first in range(callers)))
    return answered, cancelled, refused


async def test_replies_never_shift(proxy: Proxy) -> None:
    """Whichever callers are cancelled, and when, all others get the replies to their requests, over one connection."""
    chance = random.Random(0)  # noqa: S311
    proxy.delay = lambda: chance.random() * 0.003
    async with running_multiplexer(proxy.url) as running:
        answered, cancelled, refused = await storm(running, seed=1, callers=100, requests=20_000)
        assert (await running.execute(("ECHO", "after"))).values == [b"after"]
        assert proxy.accepted == 1
        assert running.changes == [True]
    assert answered > 10_000
    assert cancelled > 1_000
    assert refused > 100


async def test_replies_never_shift_across_connections(proxy: Proxy) -> None:
    """The same while the connection is broken again and again, in the middle of replies."""
    chance = random.Random(2)  # noqa: S311
    proxy.delay = lambda: chance.random() * 0.003

    async def break_it() -> None:
        while True:
            await asyncio.sleep(chance.random() * 0.05)
            chance.choice((proxy.reset, proxy.half_close))()

    async with running_multiplexer(proxy.url, timeout_seconds=0.25) as running:
        breaking = asyncio.create_task(break_it())
        answered, _, refused = await storm(running, seed=3, callers=100, requests=20_000)
        breaking.cancel()

        async def is_available() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return (await running.execute(("ECHO", "after"))).values == [b"after"]
            return False

        # The last break may still be on its way.
        await eventually_async(is_available, "the store replies again")
    assert proxy.accepted > 3
    assert answered > 100
    assert refused > 100


async def test_the_queue_is_bounded(proxy: Proxy) -> None:
    """A request that finds the queue full is refused at once; all that were accepted are answered in the end."""
    async with running_multiplexer(proxy.url) as running:
        proxy.hold()
        in_flight = asyncio.create_task(running.execute(*[("PING",)] * BATCH_LIMIT))
        await proxy.holding(b"PING")
        waiting = [asyncio.create_task(running.execute(*[("PING",)] * 1_024)) for _ in range(QUEUE_LIMIT // 1_024)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await running.execute(("PING",))
        waiting.pop().cancel()
        proxy.release()
        for task in (in_flight, *waiting):
            assert set((await task).values) == {b"PONG"}
        assert (await running.execute(("PING",))).values == [b"PONG"]


async def test_a_deadline_is_kept(proxy: Proxy) -> None:
    """A request with little time fails when that is over; one with more is answered when the store is back."""
    async with running_multiplexer(proxy.url) as running:
        proxy.hold()
        long = asyncio.create_task(running.execute(("ECHO", "long")))
        before = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable, match="by the deadline"):
            await running.execute(("ECHO", "short"), within_seconds=0.05)
        assert 0.05 <= asyncio.get_running_loop().time() - before < TIMEOUT_SECONDS / 2
        assert not long.done()
        proxy.release()
        assert (await long).values == [b"long"]
        assert running.changes == [True]


async def test_each_deadline_is_kept(proxy: Proxy) -> None:
    """In whatever order requests come, each one ends at its own deadline, sent or not; one timer serves them all."""
    async with running_multiplexer(proxy.url) as running:
        proxy.hold()
        clock = asyncio.get_running_loop().time
        begin, ended = clock(), dict[float, float]()

        async def request(within: float) -> None:
            with pytest.raises(StoreUnavailable, match="by the deadline"):
                await running.execute(("ECHO", "word"), within_seconds=within)
            ended[within] = clock() - begin

        await asyncio.gather(*map(request, (0.3, 0.1, 0.4, 0.2, 0.1001, 0.1002)))
        assert [*ended] == sorted(ended)
        assert all(within <= after for within, after in ended.items())
        assert ended[0.1] < 0.3, "it waited for the next deadline, or the last"
        proxy.release()
        assert (await running.execute(("ECHO", "after"))).values == [b"after"]


async def test_a_request_without_a_caller_is_not_sent(tmp_path: Path) -> None:
    """Cancelled, or past its deadline, before its turn, it never reaches the store."""
    async with (
        FakeRedis(tmp_path / "fake.sock", echoing(OK)) as fake,
        Proxy(tmp_path / "fake.sock", tmp_path / "proxy.sock") as proxy,
        running_multiplexer(proxy.url) as running,
    ):
        proxy.hold()
        first = asyncio.create_task(running.execute(("ECHO", "first")))
        await proxy.holding(b"first")
        gone = asyncio.create_task(running.execute(("ECHO", "gone")))
        late = asyncio.create_task(running.execute(("ECHO", "late"), within_seconds=0.01))
        last = asyncio.create_task(running.execute(("ECHO", "last")))
        await asyncio.wait([late])
        gone.cancel()
        with pytest.raises(StoreUnavailable):
            await running.execute(("ECHO", "too late"), within_seconds=0)
        proxy.release()
        await asyncio.gather(first, last)
        assert [command[1] for command in fake.commands if command[0] == b"ECHO"] == [b"first", b"last"]
        await asyncio.gather(gone, late, return_exceptions=True)


async def test_stopping_leaves_nobody_waiting(proxy: Proxy) -> None:
    """Callers that wait when it stops fail at once, whether their requests were sent or not."""
    async with running_multiplexer(proxy.url) as running:
        proxy.hold()
        in_flight = asyncio.create_task(running.execute(("ECHO", "in flight")))
        await proxy.holding(b"in flight")
        waiting = asyncio.create_task(running.execute(("ECHO", "waiting")))
        await asyncio.sleep(0)
        await running.multiplexer.stop()
        results = await asyncio.gather(in_flight, waiting, return_exceptions=True)
        assert [type(result) for result in results] == [StoreUnavailable] * 2
        with pytest.raises(StoreUnavailable):
            await running.execute()


async def test_stopping_at_once_closes_the_connection(proxy: Proxy) -> None:
    """A multiplexer that is stopped before its first request leaves no connection behind."""
    async with running_multiplexer(proxy.url):
        assert proxy.connections == 1

    async def none_left() -> bool:
        return proxy.connections == 0

    await eventually_async(none_left, "the connection is closed")


# Connections that break


@pytest.mark.parametrize("fault", ["reset", "half_close", "hold", "lose_replies"])
async def test_a_broken_connection_is_replaced(fault: str, proxy: Proxy) -> None:
    """However it breaks, if no other can be made in time the request in flight fails, and the next one is answered."""
    async with running_multiplexer(proxy.url, timeout_seconds=0.1) as running:
        if fault == "lose_replies":
            proxy.lose_replies(True)
        else:
            proxy.hold()
        in_flight = asyncio.create_task(running.execute(("ECHO", "in flight")))
        if fault in ("reset", "half_close"):
            await proxy.holding(b"in flight")
            proxy.reset() if fault == "reset" else proxy.half_close()
        with pytest.raises(StoreUnavailable):
            await in_flight
        proxy.lose_replies(False)
        proxy.release()
        await running.recovered()
        assert (await running.execute(("ECHO", "after"))).values == [b"after"]
        assert proxy.accepted >= 2

        async def one_connection() -> bool:
            return proxy.connections == 1

        await eventually_async(one_connection, "only one connection remains")


async def test_what_is_in_flight_on_a_connection_in_doubt_fails(proxy: Proxy) -> None:
    """Its replies came over a connection that can no longer be trusted, and are not handed out; the next ones are."""
    async with running_multiplexer(proxy.url) as running:
        proxy.hold()
        in_flight = asyncio.create_task(running.execute(("ECHO", "in flight")))
        await proxy.holding(b"in flight")
        running.multiplexer.invalidate("a reply that was another's")
        proxy.release()
        with pytest.raises(StoreUnavailable):
            await in_flight
        await running.recovered()
        assert (await running.execute(("ECHO", "after"))).values == [b"after"]


async def test_a_dead_store_is_noticed_without_a_request(proxy: Proxy) -> None:
    """An idle multiplexer notices that the store is lost and back, reports it, and refuses at once meanwhile."""
    async with running_multiplexer(proxy.url, timeout_seconds=0.1) as running:
        proxy.refuse(True)
        proxy.hold()

        async def reported(*expected: bool) -> bool:
            return running.changes == list(expected)

        await eventually_async(lambda: reported(True, False), "the store is reported disconnected")
        request = asyncio.create_task(running.execute(("PING",)))
        await asyncio.sleep(0)
        assert isinstance(request.exception() if request.done() else None, StoreUnavailable), "it was made to wait"
        proxy.refuse(False)
        proxy.release()
        await eventually_async(lambda: reported(True, False, True), "the store is reported connected")


async def test_every_new_connection_is_checked(tmp_path: Path) -> None:
    """A store that became a replica while it was away is not used until it is a primary again."""
    async with (
        FakeRedis(tmp_path / "fake.sock", echoing(b"")) as fake,
        running_multiplexer(fake.url, timeout_seconds=0.1) as running,
    ):
        fake.info["role"] = "slave"
        with pytest.raises(StoreUnavailable):
            await running.execute(("ECHO", "no reply"))

        async def is_disconnected() -> bool:
            return running.changes == [True, False]

        await eventually_async(is_disconnected, "the replica is refused")
        with pytest.raises(StoreUnavailable, match="is a replica"):
            await running.execute()
        fake.info["role"] = "master"
        await running.recovered()


# Servers that are no longer primaries


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
async def test_a_primary_that_becomes_a_replica_is_noticed(busy: bool, own_valkey: Valkey) -> None:
    """It goes on replying, and lags behind: within a heartbeat it is no longer used."""
    async with running_multiplexer(own_valkey.url) as running:
        assert (await running.execute(("GET", "key"))).values == [None]
        own_valkey.command("REPLICAOF", "127.0.0.1", "1")
        demoted = time.monotonic()

        async def is_noticed() -> bool:
            if busy:
                with contextlib.suppress(StoreUnavailable):
                    await running.execute(("GET", "key"))
            return running.changes == [True, False]

        await eventually_async(is_noticed, "the replica is noticed")
        assert time.monotonic() - demoted < HEARTBEAT_SECONDS + 0.75
        with pytest.raises(StoreUnavailable, match="is a replica"):
            await running.execute(("GET", "key"))
        own_valkey.command("REPLICAOF", "NO", "ONE")
        await running.recovered()
        assert running.changes == [True, False, True]


@pytest.mark.parametrize("of_script", [b"", b"ERR Error running script: @user_script: 1: -"], ids=["", "Redis 6.2"])
async def test_a_refused_write_shows_a_replica(of_script: bytes, tmp_path: Path) -> None:
    """If a server refuses a write because it is a replica, the connection is invalidated."""
    replies = [b"-%sREADONLY You can't write against a read only replica.\r\n" % of_script, bulk(b"OK")]
    async with (
        FakeRedis(tmp_path / "fake.sock", lambda command: replies.pop(0) if command[0] == b"ECHO" else None) as fake,
        running_multiplexer(fake.url) as running,
    ):
        refused = await running.execute(("ECHO", "first"))
        with pytest.raises(StoreUnavailable):
            refused.get(0, bytes)
        assert (await running.execute(("ECHO", "second"))).get(0, bytes) == b"OK"
        assert fake.connected == 2


async def test_a_user_may_lack_the_right_to_run_role(tmp_path: Path) -> None:
    """Other replies then have to show that a primary became a replica."""
    refused = b"-NOPERM this user has no permissions to run the 'role' command\r\n"
    async with (
        FakeRedis(tmp_path / "fake.sock", lambda command: refused if command[0] == b"ROLE" else None) as fake,
        running_multiplexer(fake.url) as running,
    ):
        assert (await running.execute(("GET", "key"))).values == [None]
        assert fake.connected == 1


# Waiting for replicas


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b":2\r\n", None),
        (b":1\r\n", NotDurable),
        (b":0\r\n", NotDurable),
        (b"-ERR WAIT cannot be used with replica instances.\r\n", StoreUnavailable),
        (b"-NOPERM this user has no permissions to run the 'wait' command\r\n", StoreUnavailable),
        (OK, StoreUnavailable),
    ],
)
async def test_how_many_replicas_have_it(reply: bytes, expected: type[Exception] | None, tmp_path: Path) -> None:
    """A write that too few replicas have is not durable; any other reply is a failure of the store."""
    async with (
        FakeRedis(tmp_path / "fake.sock", lambda command: reply if command[0] == b"WAIT" else None) as fake,
        running_multiplexer(fake.url, replica_acks=2) as running,
    ):
        both = asyncio.gather(running.execute(("GET", "key")), running.execute(("GET", "key")), return_exceptions=True)
        assert [type(each) for each in await both] == [expected or Replies] * 2
        assert [command[1:2] for command in fake.commands if command[0] == b"WAIT"] == [[b"2"]]
