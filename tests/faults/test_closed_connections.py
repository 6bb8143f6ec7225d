"""Connections that the store closes under requests: within the deadline they are sent again, and no answer is wrong."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio.connection import AbstractConnection
from tests.support.asking import Asking, service_on
from tests.support.backends import Backend, Operations, Stores, soon
from tests.support.cluster import Cluster
from tests.support.fake_redis import HANG_UP, FakeRedis, bulk
from tests.support.multiplexers import connector_to, in_seconds, running_multiplexer
from tests.support.sentinel import Sentinels
from tests.support.valkey import Valkey
from tests.support.waiting import PATIENCE, eventually_async

from catraca_server.domain.commands import EtagMismatch, NewSession, SessionNotFound, TokenInUse, Update
from catraca_server.domain.session import Check, Live, Session
from catraca_server.redis.errors import NotDurable, StoreProblem, StoreUnavailable
from catraca_server.redis.link import Link, Request
from catraca_server.redis.multiplexer import REPEATS, Multiplexer, _is_closed
from catraca_server.redis.replies import Replies
from catraca_server.store import Creation

BROUGHT = "a-token-that-was-brought-along"
KILLS = 20
HOUR = 3_600_000
ATTEMPT = 3_580_000_000_000_000


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A store that nobody else uses."""
    store = Valkey(tmp_path)
    store.start()
    with contextlib.closing(store):
        yield store


def echoing(hang_ups: int, *, at: bytes = b"ECHO") -> Callable[[list[bytes]], bytes | None]:
    """Answers ECHO and WAIT, but hangs up the first times that it gets a certain command."""
    left = hang_ups

    def answer(command: list[bytes]) -> bytes | None:
        nonlocal left
        if command[0] == at and left:
            left -= 1
            return HANG_UP
        if command[0] == b"ECHO":
            return bulk(command[1])
        return b":9\r\n" if command[0] == b"WAIT" else None

    return answer


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


async def test_a_request_is_not_repeated_for_ever(tmp_path: Path) -> None:
    """A request that makes the store hang up each time is told so, long before its deadline."""
    async with (
        FakeRedis(tmp_path / "fake.sock", echoing(1_000)) as fake,
        running_multiplexer(fake.url) as running,
    ):
        with pytest.raises(StoreUnavailable, match="the connection was closed before the reply") as caught:
            await running.execute(("ECHO", "word"))
        assert caught.value.problem is StoreProblem.DISCONNECTED
        assert sent(fake, b"ECHO", b"word") == REPEATS + 1


async def test_what_was_answered_before_the_end_is_not_repeated(tmp_path: Path) -> None:
    """Of a batch only those requests are sent again whose replies were lost, and in their order."""
    async with (
        FakeRedis(tmp_path / "fake.sock", echoing(1, at=b"GET")) as fake,
        running_multiplexer(fake.url) as running,
    ):
        commands = [("ECHO", "first"), ("GET", "key"), ("ECHO", "last")]
        answered = await asyncio.gather(*(running.execute(command) for command in commands))
        assert [replies.repeated for replies in answered] == [False, True, True]
        assert [replies.values for replies in answered] == [[b"first"], [None], [b"last"]]
        assert (sent(fake, b"ECHO", b"first"), sent(fake, b"ECHO", b"last")) == (1, 1)
        assert [command[0] for command in fake.commands if command[1:] in ([b"key"], [b"last"])] == [
            *(b"GET", b"GET", b"ECHO")
        ]


async def test_what_waits_for_replicas_is_repeated_whole(tmp_path: Path) -> None:
    """Replies that were read before WAIT was answered say nothing of replicas."""
    async with (
        FakeRedis(tmp_path / "fake.sock", echoing(1, at=b"WAIT")) as fake,
        running_multiplexer(fake.url, replica_acks=1) as running,
    ):
        answered = await asyncio.gather(*(running.execute(("ECHO", word)) for word in ("one", "two")))
        assert [(replies.values, replies.repeated) for replies in answered] == [([b"one"], True), ([b"two"], True)]
        assert sent(fake, b"ECHO", b"one") == 2


@pytest.mark.parametrize(
    ("reply", "problem"), [(b"", StoreProblem.NOT_IN_TIME), (b"?what\r\n", StoreProblem.MALFORMED_REPLY)]
)
async def test_nothing_else_is_repeated(reply: bytes, problem: StoreProblem, tmp_path: Path) -> None:
    """Neither after silence nor after a reply that makes no sense."""
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
    connections: list[AbstractConnection] = []
    connect_to_it = connector_to(own_valkey.url)

    async def connect() -> AbstractConnection:
        connections.append(await connect_to_it())
        return connections[-1]

    async def is_closed() -> bool:
        return _is_closed(connections[-1])

    changes: list[bool] = []
    multiplexer = Multiplexer(connect, timeout_seconds=PATIENCE, on_change=changes.append)
    await multiplexer.start()
    for _ in range(KILLS):
        own_valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await eventually_async(is_closed, "the news arrives")
        replies = await multiplexer.execute([("ECHO", "word")], in_seconds(PATIENCE))
        assert (replies.values, replies.repeated) == ([b"word"], False)
    await multiplexer.stop()
    assert changes == [True]


# The whole service


@pytest.mark.parametrize("lives", [0, 4], ids=["validations", "whole lives"])
async def test_killed_connections_cost_no_call(lives: int, own_valkey: Valkey) -> None:
    """Without any retry by the caller: only an end whose own work cannot be told may be unknown."""
    async with service_on(own_valkey.url, store_timeout="5s") as service:
        tokens = [(await service.create(f"standing-{number}")).token for number in range(8)]
        async with Asking(service, tokens, lives=lives) as asking:
            for _ in range(KILLS):
                own_valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await asking.go_on(times=2)
        assert not asking.errors()
        assert all("does not tell what it did" in each for each in asking.unavailable), asking.unavailable
        assert len(asking.unavailable) < KILLS
        assert service.changes == [True]


async def test_killed_connections_that_wait_for_replicas_cost_no_call(valkey_sentinel: Sentinels) -> None:
    """Found anew through the Sentinels each time, and what is acknowledged is on a replica."""
    await asyncio.to_thread(valkey_sentinel.renew)
    async with service_on(valkey_sentinel.url, replica_acks="1", store_timeout="5s") as service:
        tokens = [(await service.create(f"standing-{number}")).token for number in range(4)]
        async with Asking(service, tokens, lives=2) as asking:
            for _ in range(KILLS // 4):
                valkey_sentinel.primary.command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
                await asking.go_on(times=2)
        assert not asking.errors()
        assert all("does not tell what it did" in each for each in asking.unavailable), asking.unavailable
        assert service.changes == [True]


async def test_killed_connections_to_a_cluster_cost_no_call(valkey_cluster: Cluster) -> None:
    """Of all its nodes at once."""
    await asyncio.to_thread(valkey_cluster.renew)
    async with service_on(valkey_cluster.url, store_timeout="5s") as service:
        tokens = [(await service.create(f"standing-{number}")).token for number in range(8)]
        async with Asking(service, tokens, lives=2) as asking:
            for _ in range(KILLS // 4):
                for node in valkey_cluster.primaries:
                    node.command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
                await asking.go_on(times=2)
        assert not asking.errors()
        assert all("does not tell what it did" in each for each in asking.unavailable), asking.unavailable


async def test_a_restart_costs_no_call_that_comes_after_it(own_valkey: Valkey) -> None:
    """A connection to the store before its restart is replaced by the first call, or has been by then."""
    async with service_on(own_valkey.url, store_timeout="5s") as service:
        login = await service.create()
        for _ in range(3):
            own_valkey.kill()
            own_valkey.start()
            await service.told(*service.changes)

            async def is_connected() -> bool:
                return service.changes[-1]

            await eventually_async(is_connected, "the store is connected")
            assert await service.is_valid(login.token)


# What a repeated request finds


class Repeating(Link):
    """A link whose every connection is closed once before the reply: each request is executed, lost, and repeated.

    With `executed` False it was lost on its way there.
    """

    def __init__(self, inner: Link, *, executed: bool) -> None:
        self.replicates = inner.replicates
        self._inner = inner
        self._executed = executed

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Executes requests, and answers as to repeated ones."""
        if self._executed:
            await self._inner.execute(requests, deadline, durable=durable)
        answered = await self._inner.execute(requests, deadline, durable=durable)
        return [replace(replies, repeated=True) for replies in answered]


@pytest.fixture(params=[True, False], ids=["reply lost", "request lost"])
async def repeating(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[Repeating]:
    """A link to a backend that repeats everything."""
    async with backend.link() as link:
        yield Repeating(link, executed=request.param)


async def revoked_once(operations: Operations, session_id: str, *, told: bool) -> None:
    """Revokes a session. If its own work cannot be told from another call's, it is unknown, and done all the same."""
    sessions = operations.sessions
    if told:
        assert await sessions.revoke(session_id, soon())
    else:
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await sessions.revoke(session_id, soon())
    with pytest.raises(SessionNotFound):
        await sessions.get(session_id, soon())


async def test_a_whole_life(repeating: Repeating) -> None:
    """Logging in, being validated, changing and rotating come to the same; ending does, or says that it is unknown."""
    operations = Operations.over(Stores.over(repeating))
    sessions = operations.sessions
    login = await operations.users.create(NewSession("ana"), soon())
    session_id = login.live.session.session_id
    (verdict,) = await sessions.validate([Check(login.token)], soon())
    assert verdict.live is not None
    updated = await sessions.update(Update(session_id, entries={"step": "1"}), soon())
    assert (updated.session.attributes, updated.session.version) == ({"step": "1"}, 2)
    rotation = await sessions.rotate(login.token, soon())
    (verdict,) = await sessions.validate([Check(rotation.token)], soon())
    assert verdict.live is not None
    page = await operations.users.page("ana", None, 10, soon())
    assert [live.session.session_id for live in page.sessions] == [session_id]
    await revoked_once(operations, session_id, told=not repeating._executed)
    page = await operations.users.page("ana", None, 10, soon())
    assert not page.sessions


async def test_an_update_with_an_etag(repeating: Repeating) -> None:
    """Of two updates with one etag one wins, also if they write the same: one that may be the other is unknown."""
    operations = Operations.over(Stores.over(repeating))
    login = await operations.users.create(NewSession("ana"), soon())
    update = Update(login.live.session.session_id, entries={"count": "2"}, etag=login.live.session.etag)
    if repeating._executed:
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await operations.sessions.update(update, soon())
    else:
        await operations.sessions.update(update, soon())
    with pytest.raises(EtagMismatch):
        await operations.sessions.update(update, soon())


async def test_a_session_that_its_index_does_not_name(repeating: Repeating, backend: Backend) -> None:
    """It is ended by its key alone, which is told once or not at all."""
    operations = Operations.over(Stores.over(repeating))
    login = await operations.users.create(NewSession("ana"), soon())
    await backend.command("DEL", "user-sessions:ana")
    await revoked_once(operations, login.live.session.session_id, told=not repeating._executed)


async def test_a_token_that_was_brought(repeating: Repeating) -> None:
    """Exactly one of two creations with one token wins: one that may be the other does not say that it has."""
    users = Operations.over(Stores.over(repeating)).users
    if repeating._executed:
        with pytest.raises(StoreUnavailable, match="may have been used by another call"):
            await users.create(NewSession("ana", token=BROUGHT), soon())
    else:
        await users.create(NewSession("ana", token=BROUGHT), soon())
    with pytest.raises(TokenInUse):
        await users.create(NewSession("ana", token=BROUGHT), soon())


async def test_the_same_record_twice(backend: Backend) -> None:
    """Two creations in one millisecond write the same: only one did it, and the other, not repeated, knows that."""
    async with backend.link() as link:
        store = Stores.over(link).sessions
        session, expiry = a_session(await backend.now()), await backend.now() + HOUR
        outcomes = [
            (await store.create(session, expiry, attempt, expiry, soon()))[0] for attempt in (ATTEMPT, ATTEMPT + 2)
        ]
        assert outcomes == [Creation.CREATED, Creation.TAKEN]


async def test_what_a_repeated_write_finds_may_have_come_after_it(backend: Backend) -> None:
    """Another record says nothing of whether the first sending was executed, before it was there."""
    async with backend.link() as link:
        store, repeating = Stores.over(link).sessions, Stores.over(Repeating(link, executed=False)).sessions
        session, expiry = a_session(await backend.now()), await backend.now() + HOUR
        _, before = await store.create(session, expiry, ATTEMPT, expiry, soon())
        others, own = (replace(session, attributes={"step": step}, version=2) for step in ("others", "own"))
        assert await store.replace(before, Live(others, expiry, b""), soon())
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await repeating.replace(before, Live(own, expiry, b""), soon())
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await repeating.create(session, expiry, ATTEMPT + 2, expiry, soon())


def a_session(now: int) -> Session:
    """Returns a session that begins now."""
    return Session(
        session_id="0000000000000000000001",
        user_id="ana",
        digest="d" * 43,
        attributes={},
        create_time=now,
        absolute_expire_time=now + HOUR,
        idle_timeout=0,
    )


async def test_a_login_at_the_limit(repeating: Repeating) -> None:
    """It makes room once, and never for nothing; where it cannot tell whom it logged out, it does not log in."""
    users = Operations.over(Stores.over(repeating), max_sessions_per_user=1).users
    first = await users.create(NewSession("ana"), soon())
    if repeating._executed:
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await users.create(NewSession("ana"), soon())
    else:
        second = await users.create(NewSession("ana"), soon())
        assert second.evicted == [first.live.session.session_id]
    page = await users.page("ana", None, 10, soon())
    assert len(page.sessions) <= 1
    assert first.live.session.session_id not in [live.session.session_id for live in page.sessions]


async def test_logging_out_everywhere(repeating: Repeating) -> None:
    """All sessions end; how many, is told right or not at all."""
    users = Operations.over(Stores.over(repeating)).users
    for _ in range(3):
        await users.create(NewSession("ana"), soon())
    if repeating._executed:
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await users.revoke("ana", "", soon())
    else:
        assert await users.revoke("ana", "", soon()) == 3
    page = await users.page("ana", None, 10, soon())
    assert not page.sessions


class Recording(Link):
    """A link that waits for replicas, and writes down which commands are to be durable."""

    replicates = True

    def __init__(self, inner: Link) -> None:
        self._inner = inner
        self.durable: list[bytes] = []

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Executes requests; the replicas lag behind what a later script confirms."""
        answered = await self._inner.execute(requests, deadline)
        if durable:
            scripts = [command[1] for _, commands in requests for command in commands]
            self.durable += scripts
            if any(b"Writes under a session's key without changing anything" in script for script in scripts):
                raise NotDurable("no replica has it")
        return answered


async def test_a_repeated_write_that_finds_its_work_done_waits_for_replicas(backend: Backend) -> None:
    """WAIT says nothing on a connection over which nothing was written: the work of the first sending is confirmed."""
    async with backend.link() as link:
        login = await Operations.over(Stores.over(link)).users.create(NewSession("ana"), soon())
        operations = Operations.over(Stores.over(Repeating(Recording(link), executed=True)))
        with pytest.raises(NotDurable):
            await operations.users.create(NewSession("bob"), soon())
        session_id = login.live.session.session_id
        with pytest.raises(NotDurable):
            await operations.sessions.update(Update(session_id, entries={"step": "1"}), soon())
