"""The batcher under everything that goes wrong with callers, connections and replies: an answer is right or none."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.fake_redis import NIL, OK, FakeRedis, array, bulk, integer
from tests.support.proxy import Proxy
from tests.support.valkey import Valkey
from tests.support.waiting import PATIENCE, eventually_async

from catraca_server.domain import Live, Session
from catraca_server.store import Overloaded, StoreUnavailable
from catraca_server.store.batcher import BATCH_LIMIT, QUEUE_LIMIT, Answer, Batcher, Command
from catraca_server.store.connect import RedisConnector
from catraca_server.store.keys import Keys
from catraca_server.store.records import encode
from catraca_server.store.redis_store import RedisSessionStore

ID = "0000000000000000000001"
SESSION = Session(
    session_id=ID,
    user_id="12345",
    digest="d" * 43,
    attributes={},
    create_time=1_790_000_000_000,
    absolute_expire_time=9_790_000_000_000,
    idle_timeout=0,
)
RECORD = encode(SESSION)
EXPIRY = integer(9_000_000_000_000)


@dataclass
class Running:
    """A batcher and what it told about its store."""

    batcher: Batcher
    changes: list[bool] = field(default_factory=list)

    async def ask(self, *commands: Command, within: float = PATIENCE) -> Answer:
        """Asks with a deadline that is so many seconds away."""
        return await self.batcher.ask(commands, in_seconds(within))

    async def recovered(self) -> None:
        """Waits until it answers again."""

        async def answers() -> bool:
            try:
                await self.ask()
            except StoreUnavailable:
                return False
            return True

        await eventually_async(answers, "the store answers again")


def in_seconds(seconds: float) -> float:
    """Returns a deadline."""
    return asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def running_batcher(url: str, timeout: float = PATIENCE) -> AsyncIterator[Running]:
    """Runs a batcher on the store at a URL."""
    changes: list[bool] = []
    batcher = Batcher(RedisConnector(url), timeout=timeout, on_change=changes.append)
    await batcher.start()
    try:
        yield Running(batcher, changes)
    finally:
        await batcher.stop()


@pytest.fixture
async def proxy(valkey: Valkey, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of a real Valkey."""
    async with Proxy(valkey.socket, tmp_path / "proxy.sock") as made:
        yield made


def answering(name: bytes, *answers: bytes) -> Callable[[list[bytes]], bytes | None]:
    """Returns how a fake Redis that has one session answers: one answer after the other, the last one for ever."""
    rest = list(answers)

    def answer(command: list[bytes]) -> bytes | None:
        if command[0].upper() == name:
            return rest.pop(0) if len(rest) > 1 else rest[0]
        return bulk(RECORD) if command[0].upper() == b"GET" else None

    return answer


# Callers that come, go and lose patience


async def storm(running: Running, seed: int, callers: int, questions: int) -> tuple[int, int, int]:
    """Has callers ask, a third of them cancelled at any moment and some with hardly any time.

    Asserts that whatever is answered answers what was asked. Returns how many were answered, cancelled and refused.
    """
    chance = random.Random(seed)  # noqa: S311
    answered = cancelled = refused = 0

    async def question(number: int) -> None:
        words = [f"{number}.{part}" for part in range(chance.randint(1, 5))]
        within = 0.001 if chance.random() < 0.1 else PATIENCE
        answer = await running.ask(*(("ECHO", word) for word in words), within=within)
        assert answer.replies == [word.encode() for word in words]

    async def caller(first: int) -> None:
        nonlocal answered, cancelled, refused
        for number in range(first, questions, callers):
            task = asyncio.create_task(question(number))
            if chance.random() < 1 / 3:
                asyncio.get_running_loop().call_later(chance.random() * 0.004, task.cancel)
            try:
                await task
                answered += 1
            except asyncio.CancelledError:
                cancelled += 1
            except StoreUnavailable:
                refused += 1
                await asyncio.sleep(0.005)  # or all questions would be spent on a store that is known to be away

    await asyncio.gather(*(caller(first) for first in range(callers)))
    return answered, cancelled, refused


async def test_replies_never_shift(proxy: Proxy) -> None:
    """Whoever is cancelled, whenever, everybody else gets the answer to what they asked, and the connection stays."""
    chance = random.Random(0)  # noqa: S311
    proxy.delay = lambda: chance.random() * 0.003
    async with running_batcher(proxy.url) as running:
        answered, cancelled, refused = await storm(running, seed=1, callers=100, questions=20_000)
        assert (await running.ask(("ECHO", "after"))).replies == [b"after"]
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

    async with running_batcher(proxy.url, timeout=0.25) as running:
        breaking = asyncio.create_task(break_it())
        answered, _, refused = await storm(running, seed=3, callers=100, questions=20_000)
        breaking.cancel()
        await running.recovered()
        assert (await running.ask(("ECHO", "after"))).replies == [b"after"]
    assert proxy.accepted > 5
    assert answered > 1_000
    assert refused > 100


async def test_the_queue_is_bounded(proxy: Proxy) -> None:
    """What is more than can wait is refused at once, and what was accepted is answered in the end."""
    async with running_batcher(proxy.url) as running:
        proxy.hold()
        in_flight = asyncio.create_task(running.ask(*[("PING",)] * BATCH_LIMIT))
        await proxy.holding(b"PING")
        waiting = [asyncio.create_task(running.ask(*[("PING",)] * 1_024)) for _ in range(QUEUE_LIMIT // 1_024)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await running.ask(("PING",))
        waiting.pop().cancel()
        proxy.release()
        for task in (in_flight, *waiting):
            assert set((await task).replies) == {b"PONG"}
        assert (await running.ask(("PING",))).replies == [b"PONG"]


async def test_a_deadline_is_kept(proxy: Proxy) -> None:
    """Who has little time is told so when it is over; who has more is answered when the store is back."""
    async with running_batcher(proxy.url) as running:
        proxy.hold()
        patient = asyncio.create_task(running.ask(("ECHO", "patient")))
        before = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable, match="by the deadline"):
            await running.ask(("ECHO", "hasty"), within=0.05)
        assert 0.05 <= asyncio.get_running_loop().time() - before < PATIENCE / 2
        assert not patient.done()
        proxy.release()
        assert (await patient).replies == [b"patient"]
        assert running.changes == [True]


async def test_what_nobody_waits_for_is_not_sent(tmp_path: Path) -> None:
    """A question whose caller has gone before it was its turn, or whose deadline has, never reaches the store."""
    async with (
        FakeRedis(tmp_path / "fake.sock", answering(b"ECHO", OK)) as fake,
        Proxy(tmp_path / "fake.sock", tmp_path / "proxy.sock") as proxy,
        running_batcher(proxy.url) as running,
    ):
        proxy.hold()
        first = asyncio.create_task(running.ask(("ECHO", "first")))
        await proxy.holding(b"first")
        gone = asyncio.create_task(running.ask(("ECHO", "gone")))
        late = asyncio.create_task(running.ask(("ECHO", "late"), within=0.01))
        last = asyncio.create_task(running.ask(("ECHO", "last")))
        await asyncio.wait([late])
        gone.cancel()
        with pytest.raises(StoreUnavailable):
            await running.ask(("ECHO", "too late"), within=0)
        proxy.release()
        await asyncio.gather(first, last)
        assert [command[1] for command in fake.commands if command[0] == b"ECHO"] == [b"first", b"last"]
        await asyncio.gather(gone, late, return_exceptions=True)


async def test_stopping_leaves_nobody_waiting(proxy: Proxy) -> None:
    """Who waits when it stops is told at once, whether the question was on its way or not."""
    async with running_batcher(proxy.url) as running:
        proxy.hold()
        in_flight = asyncio.create_task(running.ask(("ECHO", "in flight")))
        await proxy.holding(b"in flight")
        waiting = asyncio.create_task(running.ask(("ECHO", "waiting")))
        await asyncio.sleep(0)
        await running.batcher.stop()
        results = await asyncio.gather(in_flight, waiting, return_exceptions=True)
        assert [type(result) for result in results] == [StoreUnavailable] * 2
        with pytest.raises(StoreUnavailable):
            await running.ask()


# Connections that break


@pytest.mark.parametrize("fault", ["reset", "half_close", "hold", "lose_replies"])
async def test_a_broken_connection_is_replaced(fault: str, proxy: Proxy) -> None:
    """However the connection breaks, the question in flight is told unknown and the next connection is as good."""
    async with running_batcher(proxy.url, timeout=0.1) as running:
        if fault == "lose_replies":
            proxy.lose_replies(True)
        else:
            proxy.hold()
        asked = asyncio.create_task(running.ask(("ECHO", "asked")))
        if fault in ("reset", "half_close"):
            await proxy.holding(b"asked")
            proxy.reset() if fault == "reset" else proxy.half_close()
        with pytest.raises(StoreUnavailable):
            await asked
        proxy.lose_replies(False)
        proxy.release()
        await running.recovered()
        assert (await running.ask(("ECHO", "after"))).replies == [b"after"]
        assert proxy.accepted >= 2

        async def one_connection() -> bool:
            return proxy.connections == 1

        await eventually_async(one_connection, "only one connection remains")


async def test_a_dead_store_is_noticed_without_asking(proxy: Proxy) -> None:
    """An idle batcher sees the store go and come back, tells it, and refuses meanwhile without waiting."""
    async with running_batcher(proxy.url, timeout=0.1) as running:
        proxy.refuse(True)
        proxy.hold()

        async def told(*expected: bool) -> bool:
            return running.changes == list(expected)

        await eventually_async(lambda: told(True, False), "the store is seen to be gone")
        asked = asyncio.create_task(running.ask(("PING",)))
        await asyncio.sleep(0)
        assert isinstance(asked.exception() if asked.done() else None, StoreUnavailable), "it was made to wait"
        proxy.refuse(False)
        proxy.release()
        await eventually_async(lambda: told(True, False, True), "the store is seen to be back")


async def test_every_new_connection_is_examined(tmp_path: Path) -> None:
    """A store that has become a replica while it was away is not used, and again once it is a primary."""
    async with (
        FakeRedis(tmp_path / "fake.sock", answering(b"ECHO", b"")) as fake,
        running_batcher(fake.url, timeout=0.1) as running,
    ):
        fake.info["role"] = "slave"
        with pytest.raises(StoreUnavailable):
            await running.ask(("ECHO", "no answer"))

        async def lost() -> bool:
            return running.changes == [True, False]

        await eventually_async(lost, "the replica is refused")
        with pytest.raises(StoreUnavailable, match="is a replica"):
            await running.ask()
        fake.info["role"] = "master"
        await running.recovered()


# Replies that are errors, or make no sense

ERRORS = [
    b"LOADING Redis is loading the dataset in memory",
    b"READONLY You can't write against a read only replica.",
    b"OOM command not allowed when used memory > 'maxmemory'.",
    b"MISCONF Errors writing to the AOF file",
    b"NOAUTH Authentication required.",
    b"NOPERM this user has no permissions",
    b"MASTERDOWN Link with MASTER is down",
    b"BUSY Redis is busy running a script",
    b"CLUSTERDOWN The cluster is down",
    b"MOVED 1234 127.0.0.1:7001",
    b"NOREPLICAS Not enough good replicas to write.",
    b"ERR unknown command",
]

NONSENSE = {
    "a number": integer(1),
    "an array": array(bulk(b"1"), bulk(b"2")),
    "a status": b"+QUEUED\r\n",
    "garbage": b"?what\r\n",
    "an end": b"",
}


async def operate(store: RedisSessionStore, command: bytes) -> object:
    """Runs the operation that hangs on this command."""
    deadline = in_seconds(PATIENCE)
    match command:
        case b"TIME":
            return await store.now(deadline)
        case b"SET":
            return await store.create(SESSION, 9_000_000_000_000, deadline)
        case b"EVAL":
            return await store.touch([(Live(SESSION, 9_000_000_000_000, RECORD), 9_100_000_000_000)], deadline)
        case b"DEL":
            return await store.delete(ID, deadline)
        case _:
            return await store.read([ID], deadline)


async def assert_unavailable(command: bytes, reply: bytes, directory: Path) -> None:
    """Asserts that an operation whose command has this reply is told that nothing is known."""
    async with (
        FakeRedis(directory / "fake.sock", answering(command, reply)) as fake,
        running_batcher(fake.url, timeout=0.2) as running,
    ):
        store = RedisSessionStore(running.batcher, Keys(), tells_expiry=True)
        with pytest.raises(StoreUnavailable):
            await operate(store, command)


@pytest.mark.parametrize("command", [b"SET", b"GET", b"PEXPIRETIME", b"EVAL", b"DEL", b"TIME"], ids=bytes.decode)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.split()[0].decode())
async def test_an_error_reply_is_no_answer(error: bytes, command: bytes, tmp_path: Path) -> None:
    """Whatever error Redis answers an operation with, nothing is known: not "gone", not "taken", not "done"."""
    await assert_unavailable(command, b"-" + error + b"\r\n", tmp_path)


NO_SENSE = [
    *((b"TIME", each) for each in ("a number", "a status", "garbage", "an end")),
    *((b"GET", each) for each in ("a number", "an array", "garbage", "an end")),
    *((b"PEXPIRETIME", each) for each in ("an array", "a status", "garbage", "an end")),
    *((b"SET", each) for each in ("a number", "an array", "a status", "garbage", "an end")),
    *((b"EVAL", each) for each in ("an array", "a status", "garbage", "an end")),
    *((b"DEL", each) for each in ("an array", "a status", "garbage", "an end")),
]


@pytest.mark.parametrize(("command", "reply"), NO_SENSE, ids=[f"{name.decode()} {reply}" for name, reply in NO_SENSE])
async def test_a_reply_that_makes_no_sense_is_no_answer(command: bytes, reply: str, tmp_path: Path) -> None:
    """A reply that cannot be one to what was asked is not taken for one."""
    await assert_unavailable(command, NONSENSE[reply], tmp_path)


@pytest.mark.parametrize(
    "stray", [bulk(b"OK"), bulk(RECORD), integer(1), NIL, OK], ids=["text", "record", "1", "nil", "OK"]
)
async def test_a_reply_too_many_is_seen(stray: bytes, tmp_path: Path) -> None:
    """A reply to nothing does not shift those that follow: the connection is given up, and the next is right."""
    async with (
        FakeRedis(tmp_path / "fake.sock", answering(b"PEXPIRETIME", EXPIRY + stray, EXPIRY)) as fake,
        running_batcher(fake.url) as running,
    ):
        store = RedisSessionStore(running.batcher, Keys(), tells_expiry=True)
        for _ in range(20):
            try:
                (found,) = (await store.read([ID], in_seconds(PATIENCE))).found
            except StoreUnavailable:
                await running.recovered()
            else:
                assert found is not None, "a live session was denied"
                assert found.session == SESSION
        assert fake.connected == 2


async def test_an_answer_about_another_session_is_none(tmp_path: Path) -> None:
    """A record that names another session closes the connection, and whoever comes after it there is told unknown."""
    other = "0000000000000000000002"
    async with (
        FakeRedis(tmp_path / "fake.sock", answering(b"GET", bulk(RECORD))) as fake,
        Proxy(tmp_path / "fake.sock", tmp_path / "proxy.sock") as proxy,
        running_batcher(proxy.url) as running,
    ):
        store = RedisSessionStore(running.batcher, Keys(), tells_expiry=True)
        proxy.hold()
        first = asyncio.create_task(store.now(in_seconds(PATIENCE)))
        await proxy.holding(b"TIME")
        shifted = asyncio.create_task(store.read([other], in_seconds(PATIENCE)))
        proxy.release()
        await first
        with pytest.raises(StoreUnavailable, match="another session"):
            await shifted
        await running.recovered()
        assert fake.connected == 2
        assert proxy.connections == 1


async def test_stopping_at_once_closes_the_connection(proxy: Proxy) -> None:
    """A batcher that is stopped before it was asked anything leaves no connection behind."""
    async with running_batcher(proxy.url):
        assert proxy.connections == 1

    async def none_left() -> bool:
        return proxy.connections == 0

    await eventually_async(none_left, "the connection is closed")
