"""Replies of the store that are errors, or make no sense, or are another's: none is taken for an answer."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.batchers import in_seconds, running_batcher
from tests.support.fake_redis import NIL, OK, FakeRedis, array, bulk, integer
from tests.support.proxy import Proxy
from tests.support.waiting import PATIENCE

from catraca_server.domain import Live, Session
from catraca_server.store import StoreUnavailable
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


def answering(name: bytes, *answers: bytes) -> Callable[[list[bytes]], bytes | None]:
    """Returns how a fake Redis that has one session answers: one answer after the other, the last one for ever."""
    rest = list(answers)

    def answer(command: list[bytes]) -> bytes | None:
        if command[0].upper() == name:
            return rest.pop(0) if len(rest) > 1 else rest[0]
        return bulk(RECORD) if command[0].upper() == b"GET" else None

    return answer


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
    "nothing": b"",
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
    *((b"TIME", each) for each in ("a number", "a status", "garbage", "nothing")),
    *((b"GET", each) for each in ("a number", "an array", "garbage", "nothing")),
    *((b"PEXPIRETIME", each) for each in ("an array", "a status", "garbage", "nothing")),
    *((b"SET", each) for each in ("a number", "an array", "a status", "garbage", "nothing")),
    *((b"EVAL", each) for each in ("an array", "a status", "garbage", "nothing")),
    *((b"DEL", each) for each in ("an array", "a status", "garbage", "nothing")),
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
