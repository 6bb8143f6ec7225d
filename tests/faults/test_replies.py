"""Replies that are errors, malformed, or of another request: none is taken for a result."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support.backends import Stores, a_call
from tests.support.fake_redis import NIL, OK, REPLICATION_ID, FakeRedis, array, bulk, integer
from tests.support.multiplexers import running_multiplexer
from tests.support.proxy import Proxy
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.domain.call import Call
from catraca_server.domain.events import BEFORE_ALL, EPOCH_BYTES, EndCause, Position, revoked
from catraca_server.domain.session import Session, StoredSession
from catraca_server.redis.link import Server
from catraca_server.store import IndexEntries, IndexEntry, Replacement, StoreUnavailable
from catraca_server.store.records import encode

ID = "0000000000000000000001"
SESSION = Session(
    session_id=ID,
    user_id="12345",
    digest="d" * 43,
    attributes={},
    create_time_ms=1_790_000_000_000,
    absolute_expire_time_ms=9_790_000_000_000,
    idle_timeout_ms=0,
)
RECORD = encode(SESSION)
EXPIRY = 9_000_000_000_000
LIVE = StoredSession(SESSION, EXPIRY, RECORD)
ENTRY = IndexEntry(ID, 2)
ENTRIES = IndexEntries(1_790_000_000_000, [ENTRY])


def replying(name: bytes, *replies: bytes) -> Callable[[list[bytes]], bytes | None]:
    """Replies to one command with these replies in turn, then always with the last; there is one session."""
    rest = list(replies)

    def reply_to(command: list[bytes]) -> bytes | None:
        if command[0].upper() == name:
            return rest.pop(0) if len(rest) > 1 else rest[0]
        return bulk(RECORD) if command[0].upper() == b"GET" else None

    return reply_to


ERRORS = [
    b"LOADING Redis is loading the dataset in memory",
    b"READONLY You can't write against a read only replica.",
    b"OOM command not allowed when used memory > 'maxmemory'.",
    b"MISCONF Errors writing to the AOF file",
    b"NOAUTH Authentication required.",
    b"NOPERM this user has no permissions",
    b"MASTERDOWN Link with MASTER is down",
    b"BUSY Redis is busy running a script",
    b"NOSCRIPT No matching script.",
    b"CLUSTERDOWN The cluster is down",
    b"MOVED 1234 127.0.0.1:7001",
    b"NOREPLICAS Not enough good replicas to write.",
    b"ERR unknown command",
]

REPLIES = {
    "a number": integer(1),
    "a text": bulk(b"what?"),
    "a status": b"+QUEUED\r\n",
    "nil": NIL,
    "no array": b"*-1\r\n",
    "an empty array": array(),
    "a pair": array(bulk(b"1"), bulk(b"2")),
    "half a pair": array(bulk(b"1")),
    "an id without a score": array(bulk(b"1"), bulk(b"what?")),
    "a pair of numbers": array(integer(1), integer(2)),
    "a pair of nils": array(NIL, NIL),
    "an error in a pair": array(bulk(b"1"), b"-ERR what?\r\n"),
    "arrays in an array": array(array(), array()),
    "a reservation without a score": array(bulk(b"what?"), array(), array()),
    "a reservation with half an evicted entry": array(bulk(b"2"), array(bulk(b"1")), array()),
    "a reservation with half another entry": array(bulk(b"2"), array(), array(bulk(b"1"))),
    "a reservation without others": array(bulk(b"2"), array()),
    "a boolean": b"#t\r\n",
    "a fraction": b",1.5\r\n",
    "a push": b">1\r\n$5\r\nwhat?\r\n",
    "garbage": b"?what\r\n",
    "nothing": b"",
}


@dataclass(frozen=True)
class Operation:
    """An operation of the store, the command that it depends on, and a right reply."""

    command: bytes
    run: Callable[[Stores, Call], Awaitable[object]]
    right: bytes
    plausible: frozenset[str] = frozenset()
    """Which of REPLIES are possible."""
    has_pexpiretime: bool = True


EPOCH = hashlib.sha256(REPLICATION_ID.encode()).digest()[:EPOCH_BYTES]
FIELDS = array(*map(bulk, (b"prev", b"0-0", b"type", b"CREATED", b"cause", b"", b"session_id", b"", b"user_id", b"")))
EMPTY = frozenset({"an empty array"})
NUMBER = frozenset({"a number"})
PAIRS = frozenset({"an empty array", "a pair"})
IDS = frozenset({"an empty array", "a pair", "half a pair", "an id without a score"})
SCORES = frozenset({"half a pair"})
OPERATIONS = {
    "the time": Operation(
        b"TIME",
        lambda made, call: made.sessions.read([ID], call),
        array(bulk(b"1"), bulk(b"2")),
        frozenset({"a pair"}),
    ),
    "read": Operation(
        b"GET",
        lambda made, call: made.sessions.read([ID], call),
        bulk(RECORD),
        frozenset({"a text", "a status", "nil", "no array"}),
    ),
    "read the expiry": Operation(
        b"PEXPIRETIME", lambda made, call: made.sessions.read([ID], call), integer(EXPIRY), NUMBER
    ),
    "read the time to live": Operation(
        b"PTTL", lambda made, call: made.sessions.read([ID], call), integer(1000), NUMBER, has_pexpiretime=False
    ),
    "create": Operation(b"EVAL", lambda made, call: made.sessions.create(SESSION, ENTRY, call), bulk(b"created")),
    "touch": Operation(
        b"EVAL", lambda made, call: made.sessions.touch([replace(LIVE, expiry_ms=EXPIRY + 1)], call), integer(1), NUMBER
    ),
    "replace": Operation(
        b"EVAL", lambda made, call: made.sessions.replace(Replacement(LIVE, LIVE), call), integer(1), NUMBER
    ),
    "delete": Operation(b"EVAL", lambda made, call: made.sessions.delete(ID, call), integer(1), NUMBER),
    "end": Operation(b"EVAL", lambda made, call: made.sessions.end("12345", ENTRIES, call), integer(1), NUMBER),
    "reserve": Operation(
        b"EVAL",
        lambda made, call: made.index.reserve(SESSION, limit=0, evict_oldest=False, call=call),
        array(bulk(b"2"), array(), array()),
    ),
    "commit": Operation(b"EVAL", lambda made, call: made.index.commit("12345", ENTRY, call), integer(0), NUMBER),
    "extend": Operation(b"EVAL", lambda made, call: made.index.extend(SESSION, call), integer(0), NUMBER),
    "entry": Operation(
        b"ZSCORE",
        lambda made, call: made.index.entry("12345", ID, call),
        bulk(b"2"),
        frozenset({"nil", "no array"}),
    ),
    "newest": Operation(
        b"ZREVRANGEBYSCORE", lambda made, call: made.index.newest("12345", None, 9, call), array(), PAIRS
    ),
    "session ids": Operation(b"ZRANGE", lambda made, call: made.index.session_ids("12345", call), array(), IDS),
    "entries": Operation(
        b"ZMSCORE", lambda made, call: made.index.entries("12345", [ID], call), array(bulk(b"2")), SCORES
    ),
    "append": Operation(
        b"EVAL",
        lambda made, call: made.feed.append([revoked(ID, "12345", EndCause.REQUEST)], call),
        integer(1),
        NUMBER,
    ),
    "the end of the feed": Operation(
        b"XREVRANGE", lambda made, call: made.feed.end(call), array(array(bulk(b"1-2"), FIELDS)), EMPTY
    ),
    "read the feed": Operation(
        b"XRANGE",
        lambda made, call: made.feed.read(Position(EPOCH, BEFORE_ALL), 10, call),
        array(array(bulk(b"1-2"), FIELDS)),
        EMPTY,
    ),
    "remove": Operation(b"EVAL", lambda made, call: made.index.remove("12345", [ENTRY], call), integer(0), NUMBER),
}


async def run(operation: Operation, reply: bytes, directory: Path, *, invalidates: bool = False) -> None:
    """Runs an operation whose command gets this reply; with `invalidates`, waits for another connection."""
    async with (
        FakeRedis(directory / "fake.sock", replying(operation.command, reply)) as fake,
        running_multiplexer(fake.url, timeout_seconds=0.2) as running,
    ):

        async def another() -> bool:
            return fake.connected > 1

        made = Stores.over(Server(running.multiplexer), has_pexpiretime=operation.has_pexpiretime)
        try:
            await operation.run(made, a_call(TIMEOUT_SECONDS))
        finally:
            assert operation.command in {command[0] for command in fake.commands}
            if invalidates:
                await eventually_async(another, "the connection is invalidated")


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_right_reply_is_a_result(operation: str, tmp_path: Path) -> None:
    """Each operation depends on the command that the table names."""
    await run(OPERATIONS[operation], OPERATIONS[operation].right, tmp_path)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.split()[0].decode())
async def test_an_error_reply_is_not_a_result(error: bytes, operation: str, tmp_path: Path) -> None:
    """Whatever the error, nothing is known: not "gone", not "taken", not "done"."""
    with pytest.raises(StoreUnavailable):
        await run(OPERATIONS[operation], b"-" + error + b"\r\n", tmp_path)


MALFORMED = [(name, reply) for name, each in OPERATIONS.items() for reply in REPLIES if reply not in each.plausible]


@pytest.mark.parametrize(("operation", "reply"), MALFORMED)
async def test_a_malformed_reply_is_not_a_result(operation: str, reply: str, tmp_path: Path) -> None:
    """A reply that cannot belong to the request invalidates the connection."""
    with pytest.raises(StoreUnavailable):
        await run(OPERATIONS[operation], REPLIES[reply], tmp_path, invalidates=True)


@pytest.mark.parametrize(
    "stray", [bulk(b"OK"), bulk(RECORD), integer(1), NIL, OK], ids=["text", "record", "1", "nil", "OK"]
)
async def test_a_surplus_reply_is_noticed(stray: bytes, tmp_path: Path) -> None:
    """It does not shift those that follow: the connection is closed, and the next one is right."""
    async with (
        FakeRedis(tmp_path / "fake.sock", replying(b"PEXPIRETIME", integer(EXPIRY) + stray, integer(EXPIRY))) as fake,
        running_multiplexer(fake.url) as running,
    ):
        store = Stores.over(Server(running.multiplexer)).sessions
        for _ in range(20):
            try:
                ((_, found, _),) = await store.read([ID], a_call(TIMEOUT_SECONDS))
            except StoreUnavailable:
                await running.recovered()
            else:
                assert found is not None, "a live session was denied"
                assert found.session == SESSION
        assert fake.connected == 2


async def test_a_record_of_another_session_is_not_a_result(tmp_path: Path) -> None:
    """It closes the connection, and requests behind it there fail."""
    other = "0000000000000000000002"
    async with (
        FakeRedis(tmp_path / "fake.sock", replying(b"GET", bulk(RECORD))) as fake,
        Proxy(tmp_path / "fake.sock", tmp_path / "proxy.sock") as proxy,
        running_multiplexer(proxy.url) as running,
    ):
        store = Stores.over(Server(running.multiplexer)).sessions
        proxy.hold()
        first = asyncio.create_task(running.execute())
        await proxy.holding(b"TIME")
        shifted = asyncio.create_task(store.read([other], a_call(TIMEOUT_SECONDS)))
        proxy.release()
        await first
        with pytest.raises(StoreUnavailable, match="another session"):
            await shifted
        await running.recovered()
        assert fake.connected == 2
        assert proxy.connections == 1
