"""A connection taken over from redis-py: what comes in belongs to what went out, or the connection is in doubt."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, InvalidResponse, RedisError, ResponseError
from tests.support.fake_redis import HANG_UP, OK, FakeRedis, array, bulk, integer
from tests.support.multiplexers import connector_to
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.redis.wire import Wire, take_over

Reply = Callable[[list[bytes]], bytes | None]


def echoing(reply: bytes) -> Reply:
    """Returns how a fake Redis replies that gives this reply to every ECHO."""
    return lambda command: reply if command[0] == b"ECHO" else None


async def exchanged(wire: Wire, count: int = 1, *, within: float = TIMEOUT_SECONDS) -> list[Any]:
    """Sends one ECHO and returns so many replies."""
    received: list[Any] = []
    await exchange(wire, count, received, within)
    return received


async def exchange(wire: Wire, count: int, received: list[Any], within: float = TIMEOUT_SECONDS) -> None:
    """Sends one ECHO and waits for so many replies. Raises what ends the exchange."""
    done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    wire.check()
    wire.begin(b"*1\r\n$4\r\nECHO\r\n", count, received, within, done.set_result)
    if fault := await done:
        raise fault


async def fails(wire: Wire, kind: type[Exception] = RedisError) -> None:
    """Waits until the wire says that it cannot be used."""

    async def does() -> bool:
        try:
            wire.check()
        except kind:
            return True
        return False

    await eventually_async(does, "the fault is noticed")


@asynccontextmanager
async def connected(directory: Path, reply: Reply) -> AsyncIterator[tuple[FakeRedis, Any]]:
    """Runs a fake Redis, and yields it with a connection to it, as redis-py has made it."""
    async with FakeRedis(directory / "fake.sock", reply) as fake:
        connection = await connector_to(fake.url)()
        try:
            yield fake, connection
        finally:
            await connection.disconnect(nowait=True)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (bulk(b"word"), b"word"),
        (bulk(b"x" * 1_000_000), b"x" * 1_000_000),
        (b"$-1\r\n", None),
        (integer(-2), -2),
        (array(integer(1), array(bulk(b"a"), b"*-1\r\n")), [1, [b"a", None]]),
        (OK, b"OK"),
    ],
    ids=["text", "long text", "nil", "number", "arrays", "status"],
)
async def test_a_reply_is_received(reply: bytes, value: object, tmp_path: Path) -> None:
    """Each kind of RESP2, however many pieces it comes in, and one exchange after the other."""
    async with connected(tmp_path, echoing(reply)) as (_fake, connection):
        wire = take_over(connection)
        for _ in range(3):
            assert await exchanged(wire) == [value]
        wire.check()


async def test_an_error_stands_in_its_place(tmp_path: Path) -> None:
    """A command that is refused does not cost the others their replies."""
    async with connected(tmp_path, echoing(bulk(b"1") + b"-ERR no\r\n" + bulk(b"2"))) as (_fake, connection):
        first, error, last = await exchanged(take_over(connection), 3)
        assert (first, last) == (b"1", b"2")
        assert isinstance(error, ResponseError)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (bulk(b"1") + bulk(b"2"), InvalidResponse),
        (bulk(b"1") + b"$1", InvalidResponse),
        (b"?what\r\n", InvalidResponse),
        (b">2\r\n+invalidate\r\n*0\r\n", InvalidResponse),
        (b"#t\r\n", InvalidResponse),
        (b",1.5\r\n", InvalidResponse),
        (b"%1\r\n+a\r\n+b\r\n", InvalidResponse),
        (b"-NOAUTH Authentication required.\r\n", AuthenticationError),
        (HANG_UP, ConnectionError),
    ],
    ids=["two", "one and a bit", "garbage", "push", "truth", "fraction", "map", "no longer let in", "closed"],
)
async def test_a_doubt_is_no_reply(reply: bytes, kind: type[Exception], tmp_path: Path) -> None:
    """A reply too many, one that RESP2 does not have, or none: the exchange fails."""
    async with connected(tmp_path, echoing(reply)) as (_fake, connection):
        with pytest.raises(kind):
            await exchanged(take_over(connection))


async def test_what_nobody_asked_for_is_a_doubt(tmp_path: Path) -> None:
    """A reply that comes after the last one was received is noticed before anything else is sent."""
    async with connected(tmp_path, echoing(bulk(b"1"))) as (fake, connection):
        wire = take_over(connection)
        connection._writer.write(b"*1\r\n$4\r\nECHO\r\n")
        await fails(wire)
        with pytest.raises(InvalidResponse):
            await exchanged(wire)
        assert sum(command == [b"ECHO"] for command in fake.commands) == 1


async def test_what_was_left_over_is_a_doubt(tmp_path: Path) -> None:
    """A connection on which redis-py has left a reply, parsed or not, is not taken over."""
    async with connected(tmp_path, echoing(bulk(b"1"))) as (_fake, connection):
        await connection.send_command("ECHO")

        async def has_arrived() -> bool:
            return bool(connection._reader._buffer)

        await eventually_async(has_arrived, "the reply arrives")
        with pytest.raises(InvalidResponse):
            take_over(connection)


async def test_a_closed_connection_is_noticed(tmp_path: Path) -> None:
    """Whether it was closed before it was taken over or later, and without sending anything."""
    async with connected(tmp_path, echoing(HANG_UP)) as (fake, connection):
        later: Any = await connector_to(fake.url)()
        wire = take_over(later)
        wire.check()
        later._writer.write(b"*1\r\n$4\r\nECHO\r\n")
        await fails(wire, OSError)
        await connection.send_command("ECHO")

        async def is_closed() -> bool:
            return bool(connection._reader.at_eof())

        await eventually_async(is_closed, "the news arrives")
        with pytest.raises(OSError, match="closed"):
            take_over(connection).check()
        await later.disconnect(nowait=True)


async def test_silence_has_an_end(tmp_path: Path) -> None:
    """A reply that does not come in time fails the exchange, and the connection is not used after it."""
    async with connected(tmp_path, echoing(b"")) as (_fake, connection):
        wire = take_over(connection)
        with pytest.raises(TimeoutError):
            await exchanged(wire, within=0.02)
        with pytest.raises(TimeoutError):
            wire.check()


async def test_what_was_received_before_a_fault_is_there(tmp_path: Path) -> None:
    """The replies that came before the connection was closed can still be handed out."""
    async with connected(tmp_path, echoing(bulk(b"1"))) as (_fake, connection):
        wire, received = take_over(connection), list[Any]()
        exchanging = asyncio.create_task(exchange(wire, 2, received))

        async def has_arrived() -> bool:
            return received == [b"1"]

        await eventually_async(has_arrived, "the first reply arrives")
        connection._writer.transport.abort()
        with pytest.raises(OSError, match="closed"):
            await exchanging
        assert received == [b"1"]
        await connection.disconnect(nowait=True)
